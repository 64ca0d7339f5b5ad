# Training, evaluation and freezing, with TensorFlow 2 and CUDA's libraries; the host needs NVIDIA's driver and container
# toolkit alone. From the checkout:  docker build -f docker/trainer.Dockerfile -t openpose-trainer .
#   docker run --gpus=all -v $PWD/models:/openpose/models:ro -v /data/coco:/data/coco:ro -v /runs:/runs \
#       openpose-trainer train.py --model=mobilenet_thin --datapath=/data/coco --batchsize=64 --modelpath=/runs/thin
# models: what scripts/download_pretrained.sh fetched into the checkout; it is not part of the image.
FROM python:3.12-slim-bookworm
WORKDIR /openpose
COPY . .
RUN TF=2 GPU=1 bash scripts/setup_env.sh && rm -rf /root/.cache
ENV PATH=/openpose/.venv-tf2/bin:$PATH
# Training saves at SIGTERM, which is what `docker stop` sends; it waits 10 seconds unless --time says more.
ENTRYPOINT ["python3"]
CMD ["train.py", "--help"]
