# A data worker, without TensorFlow. From the checkout:  docker build -f docker/worker.Dockerfile -t openpose-worker .
#   docker run -v /data/coco:/data/coco:ro openpose-worker --master=tcp://trainer:1027 --datapath=/data/coco
FROM python:3.12-slim-bookworm
WORKDIR /openpose
COPY . .
RUN TF=0 bash scripts/setup_env.sh && rm -rf /root/.cache
ENV PATH=/openpose/.venv-worker/bin:$PATH
# What Python ends at; the first process of a container ignores SIGTERM.
STOPSIGNAL SIGINT
ENTRYPOINT ["python3", "pose_dataworker.py"]
CMD ["--help"]
