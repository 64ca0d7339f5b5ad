#!/usr/bin/env bash
# Do the GPUs of this machine train alike, and how much faster are several? Takes less than five minutes.
#
#   bash scripts/check_gpus.sh [--models=mobilenet_thin,cmu] [--towers=N] [--batchsize=8] [--input-size=368x368] [--json]
#
# Trains a few steps with 1, 2, 4, ... N towers and with two processes, checks that the losses agree, and prints images/s.
# Without GPUs it does the same on CPU devices. Exit codes: 0 all agree, 1 they do not, 2 a wrong call.
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
if ! "$PYTHON" -c 'import importlib.util as i, sys; sys.exit(not i.find_spec("tensorflow"))' 2>/dev/null; then
    echo "error: $PYTHON has no TensorFlow; run bash scripts/setup_env.sh, or set \$PYTHON to an interpreter that has" >&2
    exit 2
fi
exec "$PYTHON" "$root/scripts/check_gpus.py" "$@"
