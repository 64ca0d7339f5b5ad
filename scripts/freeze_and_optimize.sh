#!/usr/bin/env bash
# From a training checkpoint to a graph for inference: bash scripts/freeze_and_optimize.sh --help
# Runs with $PYTHON, or the Python that scripts/interpreter.sh finds.
set -euo pipefail
root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=scripts/interpreter.sh
. "$root/scripts/interpreter.sh"

python=$(find_python "$root")
exec "$python" "$root/scripts/freeze_and_optimize.py" "$@"
