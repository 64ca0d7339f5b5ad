#!/usr/bin/env bash
# Sets up the environment, checks the sources (flake8, setup.cfg; shellcheck where it is installed) and runs the whole
# test suite, or what the arguments (pytest's own) select.
#
#   [TF=1|2] bash scripts/run_tests.sh [pytest arguments]
#   bash scripts/run_tests.sh -m "not slow"       what takes 2 minutes
set -euo pipefail
case ${1:-} in -h|--help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"; exit ;; esac

root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=scripts/interpreter.sh
. "$root/scripts/interpreter.sh"
venv=$(environment_folder)

bash "$root/scripts/setup_env.sh"
# The tests of helper nodes run without TensorFlow; any supported Python will do for them.
if [ -e "$root/.venv-worker/setup_env.stamp" ]; then
    TF=0 PYTHON='' bash "$root/scripts/setup_env.sh"
else
    TF=0 PYTHON="$root/$venv/bin/python" bash "$root/scripts/setup_env.sh"
fi

cd "$root"
"$venv/bin/python" -m flake8
if command -v shellcheck >/dev/null; then
    shellcheck scripts/*.sh .ci/run
fi
export MPLBACKEND=Agg
exec "$venv/bin/python" -m pytest "$@"
