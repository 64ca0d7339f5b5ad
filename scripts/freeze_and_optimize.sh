#!/usr/bin/env bash
# From a training checkpoint to a graph for inference: bash scripts/freeze_and_optimize.sh --help
# Runs with $PYTHON if set, else with .venv-tf2 under TF=2, the activated environment, the project's .venv, or python3.
set -euo pipefail
root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)

choices=("${VIRTUAL_ENV:+$VIRTUAL_ENV/bin/python}" "$root/.venv/bin/python" python3)
[ "${TF:-}" != 2 ] || choices=("$root/.venv-tf2/bin/python")
if [ -z "${PYTHON:-}" ]; then
    for PYTHON in "${choices[@]}"; do
        if command -v "$PYTHON" >/dev/null; then break; fi
    done
fi
if ! "$PYTHON" -c 'import importlib.util as i, sys; sys.exit(not all(map(i.find_spec, ("tensorflow", "cv2"))))' 2>/dev/null; then
    echo "error: $PYTHON has no TensorFlow and OpenCV; run bash scripts/setup_env.sh, or set \$PYTHON to an interpreter that has" >&2
    exit 2
fi
exec "$PYTHON" "$root/scripts/freeze_and_optimize.py" "$@"
