# The MLflow server with the drivers of Postgres and S3, which the published image lacks.
#   docker build --file infra/docker/mlflow.Dockerfile --tag slingstone/mlflow:3.17.2 .
FROM python:3.11-slim-bookworm

RUN useradd --uid 1000 --create-home mlflow

WORKDIR /opt/mlflow
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
COPY constraints.txt ./
RUN python -m pip install --quiet --no-cache-dir --constraint constraints.txt mlflow psycopg2-binary==2.9.13 boto3==1.44.5

# Job execution is for MLflow's own evaluations of language models: eight more processes.
ENV MLFLOW_DISABLE_TELEMETRY=true \
    MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false \
    PYTHONUNBUFFERED=1

USER 1000
EXPOSE 5000
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=6 \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://localhost:5000/health', timeout=4)"]
# MLFLOW_BACKEND_STORE_URI, MLFLOW_S3_ENDPOINT_URL and AWS_* come from the environment.
CMD ["mlflow", "server", "--host=0.0.0.0", "--port=5000", "--artifacts-destination=s3://mlflow"]
