#!/usr/bin/env bash
# Makes the Python environment of this checkout, on Linux (Windows: in WSL; macOS: for evaluation only). Run it as often as
# you like: it does only what is missing.
#
#   bash scripts/setup_env.sh          .venv         TensorFlow 1.15 where Python 3.7 or 3.6 is found, else TensorFlow 2
#   TF=1 bash scripts/setup_env.sh     .venv         TensorFlow 1.15 or an error
#   TF=2 bash scripts/setup_env.sh     .venv-tf2     TensorFlow 2 on Python 3.10 to 3.13
#   TF=0 bash scripts/setup_env.sh     .venv-worker  no TensorFlow: what pose_dataworker.py needs on a helper node
#   TF=lite bash scripts/setup_env.sh  .venv-infer   no TensorFlow: what pose_eval.py needs to run .tflite files
#
# With TensorFlow 2 on Linux x86_64, where nvidia-smi answers, CUDA's libraries are installed too (tensorflow[and-cuda]);
# GPU=1 and GPU=0 before the command force that or leave them out. TensorFlow 1.15 needs CUDA 10.0 and cuDNN 7 from
# elsewhere: it is said whether they load.
#
# PYTHON=/path/to/python names the interpreter to build on; otherwise PATH, pyenv and conda are searched.
# --dry-run says what would be chosen and changes nothing.
# Exit codes: 0 ready, 1 the installation failed (run it again), 2 no suitable Python or a wrong setting.
set -euo pipefail

root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
unset PYTHONHOME PYTHONPATH
export PIP_USER=0 PIP_DISABLE_PIP_VERSION_CHECK=1

say() { echo "setup_env: $*"; }
fail() { echo "error: ${*:2}" >&2; exit "$1"; }

# Run a command that might hang (an interpreter found somewhere on PATH) for at most 20 seconds, where `timeout` exists.
limited() { if command -v timeout >/dev/null; then timeout 20 "$@"; else "$@"; fi; }

dry_run=
for flag in "$@"; do
    case $flag in
        --dry-run) dry_run=1 ;;
        -h|--help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"; exit ;;
        *) fail 2 "unknown flag $flag: there is --dry-run, and the variables TF (1, 2, 0 or lite), GPU (1 or 0) and PYTHON" ;;
    esac
done

case $OSTYPE in
    linux*) ;;
    darwin*) say "this is macOS, where pose_eval.py runs (AP, photographs, films); training and data workers need Linux" ;;
    *) fail 2 "this project runs on Linux; on Windows use its subsystem for Linux: wsl --install" ;;
esac

tf1_pythons='3.7 3.6'
tf2_pythons='3.13 3.12 3.11 3.10'
requirements=requirements.txt
case ${TF:-} in
    '') venv=.venv; wanted="$tf1_pythons $tf2_pythons" ;;
    1) venv=.venv; wanted=$tf1_pythons ;;
    2) venv=.venv-tf2; wanted=$tf2_pythons ;;
    0) venv=.venv-worker; wanted="$tf2_pythons $tf1_pythons"; requirements='requirements-worker.txt' ;;
    lite) venv=.venv-infer; wanted="$tf2_pythons 3.7"; requirements='requirements-infer.txt' ;;
    *) fail 2 "TF=$TF is not a choice: set TF=1, TF=2, TF=0 or TF=lite (no TensorFlow), or leave it unset" ;;
esac
# Whether the GPUs are to be used, and why.
gpu='' gpu_why=''
case ${GPU:-} in
    '') if { [ -z "${TF:-}" ] || [ "$TF" = 1 ] || [ "$TF" = 2 ]; } && [[ $OSTYPE = linux* && $HOSTTYPE = x86_64 ]] &&
                command -v nvidia-smi >/dev/null && limited nvidia-smi --list-gpus 2>/dev/null | grep -q '^GPU '; then
            gpu=1 gpu_why='nvidia-smi answers'
        fi ;;
    1) gpu=1 gpu_why='GPU=1 asks for them' ;;
    0) ;;
    *) fail 2 "GPU=$GPU is not a choice: set GPU=1 (with CUDA's libraries), GPU=0 (without), or leave it unset" ;;
esac
# 'building', or three lines: checksum of the requirements, Python version, what was chosen and why.
stamp=$root/$venv/setup_env.stamp

# Prints "version|system machine|missing module or empty|base prefix|path of the interpreter itself", or fails.
# A virtual environment is looked through to the Python below it, so that it never becomes its own base.
probe() {
    limited "$1" -E -c '
import os, platform, sys
missing = ""
try:
    import ensurepip, ssl, venv
except ImportError as error:
    missing = str(error).split()[-1].strip(chr(39))
base = getattr(sys, "base_prefix", sys.prefix)
executable = os.path.join(base, "bin", "python%d.%d" % sys.version_info[:2])
if base == sys.prefix or not os.path.exists(executable):
    executable = sys.executable
system = platform.system() + " " + platform.machine()
print("|".join(["%d.%d" % sys.version_info[:2], system, missing, base, executable]))
' </dev/null 2>/dev/null
}

# Every interpreter worth trying, one path a line. Names on PATH need not run: pyenv puts shims there for versions that
# are not active, and those fail when called.
candidates() {
    local version conda home=${HOME:-/root}
    for version in $wanted 3 ''; do
        type -aP "python$version" || true
    done
    ls -d "${PYENV_ROOT:-$home/.pyenv}"/versions/*/bin/python 2>/dev/null || true
    for conda in "${CONDA_PREFIX:-}" "${CONDA_EXE:+${CONDA_EXE%/bin/conda}}" "$home"/miniconda3 \
            "$home"/miniforge3 "$home"/anaconda3 /opt/conda; do
        [ -z "$conda" ] || ls -d "$conda"/bin/python "$conda"/envs/*/bin/python 2>/dev/null || true
    done
}

# The place of version $1 in the list of wanted versions, 0 the best; fails when it is not wanted.
rank() {
    local place=0 version
    for version in $wanted; do
        [ "$version" != "$1" ] || { echo $place; return; }
        place=$((place + 1))
    done
    return 1
}

# True when Python version $1 gets TensorFlow 1.15.
tensorflow_1() { [ "${TF:-}" != 0 ] && [ "${TF:-}" != lite ] && [[ " $tf1_pythons " == *" $1 "* ]]; }

# Sets python, version and chosen (the sentence that says what and why), or ends with an error line.
choose() {
    local path facts found_version system missing base executable place why tensorflow
    local best=99 tried=' ' broken='' lacking='' others=' '
    python=
    while IFS= read -r path; do
        [ -n "$path" ] || continue
        case $tried in *" $path "*) continue ;; esac
        tried="$tried$path "
        if ! facts=$(probe "$path"); then
            broken="$broken, $path does not run"
            continue
        fi
        IFS='|' read -r found_version system missing base executable <<<"$facts"
        if ! place=$(rank "$found_version"); then
            case $others in *" $found_version "*) ;; *) others="$others$found_version " ;; esac
        elif [ -n "$missing" ]; then
            lacking="$lacking, $path ($found_version) lacks its module $missing"
            lacking="$lacking (on Debian and Ubuntu: apt-get install python$found_version-venv)"
        elif tensorflow_1 "$found_version" && [ "$system" != 'Linux x86_64' ]; then
            lacking="$lacking, $path ($found_version) has no TensorFlow 1.15: that is for Linux x86_64, not $system"
        elif [ "$place" -lt "$best" ]; then
            best=$place python=$executable version=$found_version
            [ "$place" != 0 ] || break
        fi
    done < <(if [ -n "${PYTHON:-}" ]; then type -P "$PYTHON" || echo "$PYTHON"; else candidates; fi)

    if [ -z "$python" ]; then
        local problem="no Python ${wanted// / or } that works${PYTHON:+ in PYTHON=$PYTHON}$lacking$broken"
        [ "$others" = ' ' ] || problem="$problem, found only$others"
        local remedy="install one (such as: pyenv install ${wanted%% *}) or set PYTHON=/path/to/python"
        [ -z "${PYTHON:-}" ] || remedy="point PYTHON at a suitable one or unset it"
        [ "${TF:-}" != 1 ] || remedy="$remedy; TF=2 works with Python 3.10 to 3.13"
        fail 2 "${problem% }: $remedy"
    fi
    case ${TF:-} in
        1) why="TF=1 asks for TensorFlow 1.15" ;;
        2) why="TF=2 asks for TensorFlow 2" ;;
        0) why="TF=0 asks for no TensorFlow" ;;
        lite) why="TF=lite asks for TensorFlow Lite alone" ;;
        *) why="found a working Python $version, so the reference platform"
           tensorflow_1 "$version" || why="found no working Python 3.7 or 3.6$lacking$broken" ;;
    esac
    [ -z "${PYTHON:-}" ] || why="PYTHON=$PYTHON asks for it"
    tensorflow='TensorFlow 2'
    ! tensorflow_1 "$version" || tensorflow='TensorFlow 1.15'
    [ "${TF:-}" != 0 ] || tensorflow='no TensorFlow'
    [ "${TF:-}" != lite ] || tensorflow='TensorFlow Lite alone'
    if [ -n "$gpu" ] && [ "$tensorflow" = 'TensorFlow 2' ]; then
        [ "$system" = 'Linux x86_64' ] ||
            fail 2 "GPU=1: CUDA's libraries are for Linux x86_64, not $system; unset GPU"
        tensorflow="$tensorflow with CUDA's libraries ($gpu_why)"
    fi
    chosen="$venv gets Python $version ($python) and $tensorflow: $why"
}

# True when the environment is complete, for these requirements and for what TF and PYTHON ask.
ready() {
    local built_for version base
    { read -r built_for && read -r version && IFS= read -r chosen; } 2>/dev/null <"$stamp" || return 1
    [ "$built_for" = "$checksum" ] && rank "$version" >/dev/null || return 1
    base=$(probe "$root/$venv/bin/python" | cut -d'|' -f1,4) || return 1
    [ "${base%%|*}" = "$version" ] || return 1
    [ -z "${PYTHON:-}" ] || [ "$(probe "$PYTHON" | cut -d'|' -f1,4)" = "$base" ]
}

# What an installation that was cut short leaves behind may look complete to pip, so everything but stamp and lock goes.
make_venv() {
    say "making $venv with $python"
    find "$root/$venv" -mindepth 1 -maxdepth 1 ! -name 'setup_env.*' -exec rm -rf {} +
    "$python" -E -m venv "$root/$venv" || fail 1 "$python could not make $root/$venv (see above); then run this again"
}

install() {
    local pip=("$root/$venv/bin/python" -m pip) log=$root/$venv/setup_env.log
    local modules='cv2, numpy, pycocotools.mask, tqdm' again='run the same command again' interpreter='' cuda=''
    [ "${TF:-}" = lite ] || modules="msgpack, zmq, $modules"
    case $version in
        3.6) ;;
        3.7) interpreter=tflite_runtime ;;
        *) interpreter=ai_edge_litert ;;
    esac
    case ${TF:-} in
        0) ;;
        lite) modules="$interpreter.interpreter, $modules" ;;
        *) modules="tensorflow.compat.v1, matplotlib${interpreter:+, $interpreter.interpreter}, $modules" ;;
    esac
    # Older ones know neither today's wheels nor the resolver that the pins were made with.
    [ "$("${pip[@]}" --version | sed 's/^pip \([0-9]*\).*/\1/')" -ge 21 ] ||
        "${pip[@]}" install --quiet 'pip>=21.3,<25' >&2 ||
        fail 1 "upgrading pip in $venv failed (see above): check the network and $again"
    [[ $chosen != *'CUDA'* ]] ||
        cuda=$(sed -n "s/^tensorflow==\([0-9.]*\).*/tensorflow[and-cuda]==\1/p" "$root/requirements.txt")
    say "installing $requirements${cuda:+ and $cuda} into $venv (this can take minutes; log: $log)"
    "${pip[@]}" install -r "$root/$requirements" ${cuda:+"$cuda"} 2>&1 | tee "$log" >&2 ||
        fail 1 "installing $requirements failed: $(grep '^ERROR' "$log" | tail -n 1): check the network and $again"
    # It runs with TensorFlow 1.15's numpy, but asks for a newer one.
    ! tensorflow_1 "$version" || [ -z "$interpreter" ] ||
        "${pip[@]}" install --no-deps "$(sed -n 's/^\(tflite-runtime==[0-9.]*\).*/\1/p' "$root/requirements-infer.txt")" \
            >>"$log" 2>&1 ||
        fail 1 "installing tflite-runtime failed: $(grep '^ERROR' "$log" | tail -n 1): check the network and $again"
    "$root/$venv/bin/python" -c "import $modules" >"$log.import" 2>&1 ||
        fail 1 "the new $venv does not work: $(tail -n 1 "$log.import") (all of it: $log.import)"
    rm -f "$log.import"
}

# Says whether CUDA's libraries load, which TensorFlow itself tells only among many other lines.
report_cuda() {
    local major=2
    ! tensorflow_1 "$version" || major=1
    [ -z "$gpu" ] || [ "${TF:-}" = 0 ] || [ "${TF:-}" = lite ] ||
        (cd "$root" && "$venv/bin/python" -c "from training.devices import cuda_report; print('setup_env: ' + cuda_report($major))")
}

# In a function, so that bash has read all of it before it starts: the file may change under a run (git pull).
main() {
    checksum=$(cd "$root" && cat constraints.txt requirements-infer.txt requirements-worker.txt "$requirements" | cksum | tr ' ' '-') ||
        fail 2 "$root lacks its requirements files: get a complete checkout"
    checksum=$checksum${gpu:+-gpu}

    if [ -z "$dry_run" ] && ready; then
        say "$chosen (ready)"
        exit
    fi
    choose
    say "$chosen"
    [ -z "$dry_run" ] || exit 0
    if ! { mkdir -p "$root/$venv" 2>/dev/null && [ -w "$root/$venv" ]; }; then
        fail 2 "cannot write the folder $root/$venv: remove what is in its place or make $root writable"
    fi
    exec 9>>"$root/$venv/setup_env.lock"
    if command -v flock >/dev/null && ! flock -n 9; then
        say "another run is at work on $venv: waiting for it"
        flock 9
        if ready; then
            say "$chosen (ready)"
            exit
        fi
    fi

    if [ "$(cat "$stamp" 2>/dev/null)" = building ] ||
            [ "$(probe "$root/$venv/bin/python" | cut -d'|' -f1,4)" != "$(probe "$python" | cut -d'|' -f1,4)" ] ||
            ! "$root/$venv/bin/python" -m pip --version >/dev/null 2>&1; then
        echo building >"$stamp"
        make_venv
    fi
    echo building >"$stamp"
    install
    printf '%s\n' "$checksum" "$version" "$chosen" >"$stamp.new"
    mv -f "$stamp.new" "$stamp"
    report_cuda
    say "$venv is ready: $venv/bin/python"
}

main; exit
