#!/usr/bin/env bash
# Skeletons on your own photographs, with the weights that come with the project.
#
#   [TF=1|2] bash scripts/demo.sh PHOTO_OR_FOLDER [OUTPUT_FOLDER]
#
# Makes the environment first where there is none. OUTPUT_FOLDER is `demo` unless given; SCALE the short edge in pixels to
# which photographs are brought (256): people are found best when they are 100 to 200 pixels tall there. 368 finds small
# ones too, and more that are none.
set -euo pipefail
case ${1:-} in -h|--help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"; exit ;; esac

fail() { echo "error: $*" >&2; exit 2; }

[ $# = 1 ] || [ $# = 2 ] || fail "give a photograph or a folder of photographs: bash scripts/demo.sh PHOTO_OR_FOLDER"
[ -e "$1" ] || fail "there is no photograph or folder $1; give the path of one"
photos=$(CDPATH='' cd -- "$(dirname -- "$1")" && pwd)/$(basename -- "$1")
output=${2:-demo}
case $output in /*) ;; *) output=$PWD/$output ;; esac
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/interpreter.sh
. scripts/interpreter.sh

# The best go first: see etcs/weights/README.md.
weights=''
for file in etcs/weights/mobilenet_v2_small.npy etcs/weights/mobilenet_thin_photos.npy etcs/weights/mobilenet_thin_lspet.npy \
        etcs/weights/mobilenet_thin_rendered.npy; do
    [ -n "$weights" ] || [ ! -f "$file" ] || weights=$file
done
[ -n "$weights" ] || fail "this checkout has no etcs/weights/*.npy; get a complete one, or run scripts/quickstart.sh first"

bash scripts/setup_env.sh
python=$(environment_folder)/bin/python

echo "finding people with $weights"
"$python" pose_eval.py --weights="$weights" --images="$photos" --scale="${SCALE:-256}" --output-dir="$output"
echo "look at $output/*_rendered.*"
