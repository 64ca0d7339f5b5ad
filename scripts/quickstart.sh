#!/usr/bin/env bash
# From a fresh clone to a trained network and pictures of what it sees, on rendered people; about 4 minutes on 2 cores
# after the installs. TF=1 or TF=2 chooses the TensorFlow, as in setup_env.sh.
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

folder=${1:-quickstart}
steps=${STEPS:-300}
bash scripts/setup_env.sh
python=.venv/bin/python
[ "${TF:-}" = 2 ] && python=.venv-tf2/bin/python

echo "== 1/5 sample data: rendered people in COCO's format"
"$python" scripts/make_sample_coco.py --output-dir="$folder/data"
"$python" pose_dataset.py --datapath="$folder/data" --output-dir="$folder/samples" --count=4

echo "== 2/5 training: mobilenet_thin from scratch, $steps steps"
train=("$python" train.py --model=mobilenet_thin --pretrained=none --datapath="$folder/data" --batchsize=4 --lr=0.004
    --input-width=160 --input-height=160 --max-steps="$steps" --valid-every=150 --modelpath="$folder/model")
"${train[@]}"

echo "== 3/5 loss curves"
"$python" scripts/plot_loss.py "$folder/model/logs" --output-dir="$folder"

echo "== 4/5 freezing and optimizing for inference"
PYTHON="$python" bash scripts/freeze_and_optimize.sh --model=mobilenet_thin --checkpoint="$folder/model" \
    --output-dir="$folder/graph" --input-size=160x160 --datapath="$folder/data"

echo "== 5/5 people found in unseen images (few yet: AP stays near 0 in a training of minutes)"
"$python" pose_eval.py --graph="$folder/graph/graph_opt.pb" --datapath="$folder/data" --output-dir="$folder/people"

cat <<EOF

Done. Look at:
  $folder/samples/contact_sheet.png         augmented samples with heatmaps, PAFs and mask
  $folder/model/logs/validation.png         true maps beside predicted ones, on unseen images
  $folder/loss_ll_heat.png, loss_ll_paf.png training and validation loss
  $folder/people/people_val2017.png         labelled people beside the people found
  $folder/model                             checkpoints (to train on: the next line with a higher --max-steps)
    ${train[*]}
  $folder/graph/graph_opt.pb                the network for inference
  $python -m tensorboard.main --logdir=$folder/model/logs
Next, with real photographs: download COCO 2017 (README, "Training on COCO"), then
  bash scripts/download_pretrained.sh mobilenet_v1_0.75
  $python train.py --model=mobilenet_thin --datapath=COCO_FOLDER --batchsize=64 --lr=0.001 --modelpath=models/thin
EOF
