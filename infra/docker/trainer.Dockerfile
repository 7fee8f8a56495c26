# What every node of a training cluster runs: head, trainers and the rewards beside them.
#   docker build --file infra/docker/trainer.Dockerfile --build-arg GIT_COMMIT=$(git rev-parse HEAD) --tag slingstone/trainer:0.1.0 .
# The base has the Python that constraints.txt was tried with and no CUDA: the wheel of the pinned torch brings the CUDA 13.0
# libraries it was built with. Nodes need the NVIDIA container toolkit and driver 580 or newer.
FROM python:3.11-slim-bookworm

# KubeRay probes the pods of a cluster with wget.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends wget \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 1000 --create-home ray

WORKDIR /opt/slingstone

# Another package index is a build argument: --build-arg PIP_INDEX_URL=...
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
# This layer changes with the versions only. An editable install is a link to the source, which the next layer brings.
COPY pyproject.toml constraints.txt README.md LICENSE ./
RUN python -m pip install --quiet --no-cache-dir --constraint constraints.txt --editable '.[postgres]' \
    && python -c "import torch; assert torch.version.cuda, 'the index offered the CPU build of torch'"

COPY jobs/ jobs/
COPY configs/ configs/
COPY reward_services/ reward_services/
COPY platform/ platform/

# Runs record the commit they were made with.
ARG GIT_COMMIT=unknown
ENV SLINGSTONE_GIT_COMMIT=${GIT_COMMIT} \
    RAY_AUTH_MODE=token \
    RAY_USAGE_STATS_ENABLED=0 \
    PYTHONUNBUFFERED=1

USER 1000
EXPOSE 6379 8080 8265 10001
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=6 \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://localhost:52365/api/local_raylet_healthz', timeout=4)"]
# A cluster of one node. It refuses to start without a token: docker run --env RAY_AUTH_TOKEN ...
CMD ["ray", "start", "--head", "--block", "--dashboard-host=0.0.0.0"]
