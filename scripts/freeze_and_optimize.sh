#!/usr/bin/env bash
# From a training checkpoint to a graph for inference: bash scripts/freeze_and_optimize.sh --help
# Runs with $PYTHON if set, else with the project's .venv, else with python3.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

if [ -z "${PYTHON:-}" ]; then
    PYTHON=python3
    [ -x "$root/.venv/bin/python" ] && PYTHON=$root/.venv/bin/python
fi
if ! "$PYTHON" -c 'import importlib.util as i, sys; sys.exit(not all(map(i.find_spec, ("tensorflow", "cv2"))))' 2>/dev/null; then
    echo "error: $PYTHON has no TensorFlow and OpenCV; run bash scripts/setup_env.sh, or set \$PYTHON to an interpreter that has" >&2
    exit 2
fi
exec "$PYTHON" "$root/scripts/freeze_and_optimize.py" "$@"
