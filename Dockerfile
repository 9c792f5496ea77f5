# Two images from one file: `api` has no torch, `worker` has it. Both install the exact versions of requirements.lock.
#   docker build --target api -t gistmill-api .
#   docker build --target worker -t gistmill-worker .

FROM python:3.11-slim AS base
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN useradd --create-home --uid 10001 gistmill && install --directory --owner gistmill /var/lib/gistmill /app
WORKDIR /app
COPY requirements.lock pyproject.toml README.md LICENSE ./
COPY gistmill ./gistmill
COPY models_store ./models_store
ENV GISTMILL_HOME=/var/lib/gistmill
VOLUME /var/lib/gistmill

FROM base AS api
COPY api ./api
RUN pip install --constraint requirements.lock ".[server,postgres]"
USER gistmill
EXPOSE 8321
CMD ["python", "-m", "api"]

FROM base AS worker
# Triton compiles the launchers of its kernels on the GPU's host; without a compiler jobs run on transformers there.
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
COPY workers ./workers
RUN pip install --constraint requirements.lock ".[worker,postgres]"
USER gistmill
STOPSIGNAL SIGTERM
CMD ["python", "-m", "workers"]
