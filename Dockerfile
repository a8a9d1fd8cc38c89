# syntax=docker/dockerfile:1.7
# Two images: `worker` (default) for production, `sandbox` with the whole stand-in beside it.
# Pin the base by digest for builds that are the same to the byte: --build-arg PYTHON_IMAGE=python@sha256:...
ARG PYTHON_IMAGE=python:3.13.9-slim-bookworm

# --- packages: exactly those of the lock, each by its hash, none built here ------------------------------------------
FROM ${PYTHON_IMAGE} AS packages
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
COPY requirements-worker.lock /tmp/
RUN python -m venv /opt/runbooks \
 && /opt/runbooks/bin/pip install --require-hashes --only-binary :all: -r /tmp/requirements-worker.lock

# --- base: packages, code, a user without rights ---------------------------------------------------------------------
FROM ${PYTHON_IMAGE} AS base
# A volume that is mounted where the image has no folder would belong to root.
RUN useradd --uid 10001 --no-create-home --home-dir /var/lib/runbooks --shell /usr/sbin/nologin runbooks \
 && install -d -o runbooks -g runbooks /var/lib/runbooks /etc/runbooks \
      /var/lib/runbooks/alerts /var/lib/runbooks/sandbox
COPY --from=packages /opt/runbooks /opt/runbooks
WORKDIR /app
COPY workflows workflows
COPY activities activities
COPY worker worker
COPY starters starters
COPY --chmod=755 deploy/runbooks /usr/local/bin/runbooks
ENV PATH=/opt/runbooks/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONPATH=/app \
    PYTHONUNBUFFERED=1 \
    RUNBOOKS_CONFIG=/etc/runbooks/runbooks.toml \
    RUNBOOKS_METRICS=0.0.0.0:9464 \
    RUNBOOKS_LOG=json
RUN python -m compileall -q /app
WORKDIR /var/lib/runbooks
STOPSIGNAL SIGTERM
EXPOSE 9464

# --- sandbox: for trying things, never for production ----------------------------------------------------------------
FROM base AS sandbox
COPY requirements.lock /tmp/
RUN /opt/runbooks/bin/pip install --no-cache-dir --disable-pip-version-check --require-hashes -r /tmp/requirements.lock
COPY sandbox /app/sandbox
USER runbooks
CMD ["runbooks", "sandbox", "up", "--dir", "/var/lib/runbooks/sandbox", "--worker"]

# --- worker ----------------------------------------------------------------------------------------------------------
FROM base AS worker
USER runbooks
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s --retries=4 \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9464/metrics', timeout=4)"]
CMD ["python", "-m", "worker"]
