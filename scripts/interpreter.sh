# shellcheck shell=bash
# Which Python the other scripts run; they source this file.

# Prints the folder that setup_env.sh makes or made under the same TF, below the checkout's.
environment_folder() {
    if [ "${TF:-}" = 2 ]; then echo .venv-tf2; else echo .venv; fi
}

# Prints $PYTHON if set, else the Python of .venv-tf2 under TF=2, of the activated environment, of .venv, or python3.
# Exits with 2 where that one cannot run this project. $1 is the checkout's folder.
find_python() {
    local python=${PYTHON:-} choices=("${VIRTUAL_ENV:+$VIRTUAL_ENV/bin/python}" "$1/.venv/bin/python" python3)
    [ "${TF:-}" != 2 ] || choices=("$1/.venv-tf2/bin/python")
    if [ -z "$python" ]; then
        for python in "${choices[@]}"; do
            if command -v "$python" >/dev/null; then break; fi
        done
    fi
    "$python" -c 'from importlib.util import find_spec; exit(not (find_spec("tensorflow") and find_spec("cv2")))' \
            >/dev/null 2>&1 || {
        echo "error: $python has no TensorFlow and OpenCV; run bash scripts/setup_env.sh or give one in PYTHON" >&2
        exit 2
    }
    echo "$python"
}
