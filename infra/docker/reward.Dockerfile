# Rewards alone: the nodes of a cluster that serves and never trains (infra/kuberay/overlays/rewards).
#   docker build --file infra/docker/reward.Dockerfile --tag slingstone/reward:0.1.0 .
# No DeepSpeed, diffusers or MLflow. torch comes with CUDA 13.0: driver 580 or newer, as for the trainer.
FROM python:3.11-slim-bookworm

# KubeRay probes the pods of a cluster with wget.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends wget \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 1000 --create-home ray

WORKDIR /opt/slingstone

# Another package index, such as one with CPU builds of torch, is a build argument: --build-arg PIP_INDEX_URL=...
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
COPY constraints.txt ./
RUN python -m pip install --quiet --no-cache-dir --constraint constraints.txt \
    "ray[default,serve]" torch transformers pydantic safetensors huggingface_hub jaxtyping ftfy grpcio numpy pillow starlette urllib3

# The embedded world's rewards lie where configs/serve/rewards.yaml names them.
COPY platform/slingstone/world/scenes/ platform/slingstone/world/scenes/
COPY reward_services/ reward_services/

# For `backend: upstream`, environments under /opt/upstream of the packages that are named:
#   --build-arg UPSTREAM="imagereward hps"
ARG UPSTREAM=""
RUN if [ -n "$UPSTREAM" ]; then python -m reward_services.upstream.environment /opt/upstream $UPSTREAM; fi

ENV PYTHONPATH=/opt/slingstone \
    RAY_AUTH_MODE=token \
    RAY_USAGE_STATS_ENABLED=0 \
    PYTHONUNBUFFERED=1

USER 1000
EXPOSE 6379 8080 8265 10001
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=6 \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://localhost:52365/api/local_raylet_healthz', timeout=4)"]
# A cluster of one node. It refuses to start without a token: docker run --env RAY_AUTH_TOKEN ...
CMD ["ray", "start", "--head", "--block", "--dashboard-host=0.0.0.0"]
