#!/usr/bin/env bash
# From a fresh clone to people found in unseen images, on rendered people: at most 5 minutes on 2 cores after the installs.
#
#   [TF=1|2] bash scripts/quickstart.sh [--from-scratch] [FOLDER]
#
# Trains on from the weights in etcs/weights; --from-scratch starts from random ones, which takes hours to find people.
# FOLDER (quickstart) gets everything; what an earlier start left there is gone on from. TF chooses the TensorFlow, as in
# setup_env.sh; STEPS the length of the training.
set -euo pipefail
case ${1:-} in -h|--help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"; exit ;; esac
start=$PWD
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/interpreter.sh
. scripts/interpreter.sh

weights=etcs/weights/mobilenet_thin_rendered.npy
folder=quickstart model=model
for argument in "$@"; do
    case $argument in
        --from-scratch) weights='' model=model_from_scratch ;;
        -*) echo "error: unknown flag $argument: there is --from-scratch, and a folder" >&2; exit 2 ;;
        /*) folder=$argument ;;
        *) folder=$argument; [ "$start" = "$PWD" ] || folder=$start/$argument ;;
    esac
done
if [ -n "$weights" ] && [ ! -f "$weights" ]; then
    echo "no $weights in this checkout: training starts from scratch"
    weights='' model=model_from_scratch
fi

bash scripts/setup_env.sh
python=$(environment_folder)/bin/python
begin=$SECONDS
say() { echo "== $1 ($((SECONDS - begin)) s so far)"; }

mkdir -p "$folder"
say "1/6 sample data: rendered people in COCO's format"
data=$folder/data
# Other people than those that the weights were trained on: another seed.
"$python" scripts/make_sample_coco.py --output-dir="$data" --train=160 --val=32 --seed=2020
"$python" pose_dataset.py --datapath="$data" --output-dir="$folder/samples" --count=4

train=("$python" train.py --model=mobilenet_thin --datapath="$data" --modelpath="$folder/$model" --log-every=10)
if [ -n "$weights" ]; then
    steps=${STEPS:-60} before=$(basename "$weights")
    train+=(--pretrained="$weights" --batchsize=8 --lr=0.0001 --input-width=256 --input-height=256 --valid-every=30)
else
    steps=${STEPS:-300} before='random weights'
    train+=(--pretrained=none --batchsize=4 --lr=0.004 --input-width=160 --input-height=160 --valid-every=150)
fi
say "2/6 training: mobilenet_thin from $before, $steps steps"
"${train[@]}" --max-steps="$steps"

say "3/6 loss curves"
"$python" scripts/plot_loss.py "$folder/$model/logs" --output-dir="$folder"

say "4/6 freezing, optimizing and measuring the graph"
# The 8-bit layers of Python 3.7's interpreter are too slow to wait for.
int8=()
if "$python" -c 'import ai_edge_litert' 2>/dev/null; then
    int8=(--quantize=int8)
else
    echo "no graph_int8.tflite here: on Python 3.7 its layers are slow (README, \"Optimization for inference\")"
fi
PYTHON="$python" bash scripts/freeze_and_optimize.sh --model=mobilenet_thin --checkpoint="$folder/$model" \
    --output-dir="$folder/graph" --input-size=256x256 --datapath="$data" --runs=10 ${int8[@]+"${int8[@]}"}

say "5/6 people found in unseen images"
evaluate=("$python" pose_eval.py --datapath="$data" --input-size=256x256)
"${evaluate[@]}" --graph="$folder/graph/graph_opt.pb" --output-dir="$folder/people" 2>&1 | tee "$folder/people.txt"
if [ -n "$weights" ]; then
    say "6/6 the same with the weights as they were before this training"
    "${evaluate[@]}" --weights="$weights" --output-dir="$folder/people_before" | tail -n 1 >"$folder/before.txt"
else
    rm -f "$folder/before.txt"
fi

cat <<END

Look at:
  $folder/samples/contact_sheet.png         augmented samples with heatmaps, PAFs and mask
  $folder/$model/logs/validation.png         true maps beside predicted ones, on unseen images
  $folder/loss_ll_heat.png, loss_ll_paf.png training and validation loss
  $python -m tensorboard.main --logdir=$folder/$model/logs
  the same training, longer: ${train[*]} --max-steps=$((10 * steps))
On your own photographs:
  bash scripts/demo.sh PHOTO_OR_FOLDER
With real photographs: download COCO 2017 (README, "Training on COCO"), then
  bash scripts/download_pretrained.sh mobilenet_v1_0.75
  $python train.py --model=mobilenet_thin --datapath=COCO_FOLDER --batchsize=64 --lr=0.001 --modelpath=models/thin

END
"$python" - "$folder" "$((SECONDS - begin))" <<'END'
import json
import os
import sys

folder, seconds = sys.argv[1:]


def last_line(name):
    with open(os.path.join(folder, name)) as file:
        return json.loads(file.read().splitlines()[-1])


before = ''
if os.path.exists(os.path.join(folder, 'before.txt')):
    before = ' (%.3f before this training)' % last_line('before.txt')['AP']
print('AP %.3f on unseen images%s, in %s s' % (last_line('people.txt')['AP'], before, seconds))
with open(os.path.join(folder, 'graph', 'report.json')) as file:
    for name, row in json.load(file).items():
        if name != 'graph_frozen':
            suffix = '.tflite' if row['runtime'] != 'TensorFlow' else '.pb'
            print('%s: %.1f MB, %.0f ms an image of 256x256'
                  % (os.path.join(folder, 'graph', name + suffix), row['bytes'] / 1e6, row['latency_ms']))
print('labelled people beside the people found: ' + os.path.join(folder, 'people', 'people_val2017.png'))
END
