#!/usr/bin/env bash
# Do the GPUs of this machine train alike, and how much faster are several? Takes less than five minutes.
#
#   bash scripts/check_gpus.sh [--models=mobilenet_thin,cmu] [--towers=N] [--batchsize=8] [--input-size=368x368] [--json]
#
# Trains a few steps with 1, 2, 4, ... N towers and with two processes, checks that the losses agree, and prints images/s.
# --towers-per-gpu=2 does it with one GPU, which two towers share, then two processes.
# Without GPUs it does the same on CPU devices. Exit codes: 0 all agree, 1 they do not, 2 a wrong call.
# Runs with $PYTHON, or the Python that scripts/interpreter.sh finds.
set -euo pipefail
root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=scripts/interpreter.sh
. "$root/scripts/interpreter.sh"

python=$(find_python "$root")
exec "$python" "$root/scripts/check_gpus.py" "$@"
