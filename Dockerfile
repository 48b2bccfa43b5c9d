# All roles in one image; the command says which: bridge, process, publish, sink, query, odoo, run.
#
#   docker build --build-arg REVISION="$(git rev-parse HEAD)" -t bss-stream .
#
# Needs BuildKit. What it installs is locked: Cargo.lock, and deploy/image/*.txt by hashes.
ARG PYTHON=3.13.9-slim-bookworm
ARG RUST=1.90.0-slim-bookworm

FROM rust:${RUST} AS wheel
# No version of Debian's packages: they are only here to build, and Debian keeps but the newest.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
COPY deploy/image/build-requirements.txt /build/
RUN --mount=type=cache,target=/root/.cache/pip \
    python3 -m venv /build/venv \
    && /build/venv/bin/pip install --require-hashes -r /build/build-requirements.txt
WORKDIR /src
COPY Cargo.toml Cargo.lock pyproject.toml README.md LICENSE ./
COPY rust rust
COPY python python
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    /build/venv/bin/maturin build --release --locked --compatibility linux --out /wheels

FROM python:${PYTHON} AS installed
COPY deploy/image/requirements.txt /build/
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv --without-pip /opt/bss \
    && python -m pip --python /opt/bss/bin/python install --require-hashes -r /build/requirements.txt
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    python -m pip --python /opt/bss/bin/python install --no-cache-dir --no-deps --no-index \
        /wheels/*.whl \
    && /opt/bss/bin/bss-stream config check

FROM python:${PYTHON}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="bss-stream" \
      org.opencontainers.image.description="Stream processor for battery-swap networks" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# Nothing is installed into a running container.
RUN python -m pip uninstall --yes pip \
    && groupadd --gid 10001 bss \
    && useradd --uid 10001 --gid bss --no-create-home --home-dir /var/lib/bss bss \
    && install --directory --owner=bss --group=bss --mode=0750 /var/lib/bss
COPY --from=installed /opt/bss /opt/bss
ENV PATH=/opt/bss/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    BSS_DATA_DIR=/var/lib/bss \
    BSS_HTTP__HOST=0.0.0.0 \
    BSS_HTTP__PORT=9464 \
    BSS_LOGGING__FORMAT=json
# By number, so that Kubernetes can tell that it is not root.
USER 10001:10001
WORKDIR /var/lib/bss
STOPSIGNAL SIGTERM
EXPOSE 9464
# Of a role; other commands answer nothing here and need --no-healthcheck.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:9464/healthz', timeout=4)"]
ENTRYPOINT ["bss-stream"]
