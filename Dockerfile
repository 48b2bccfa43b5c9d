# The four roles in one image; the command says which: bridge, process, publish, sink, run.
FROM rust:1.88-slim-bookworm AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-pip python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN python3 -m venv /venv && /venv/bin/pip install -c constraints.txt maturin \
    && /venv/bin/maturin build --release --out /wheels

FROM python:3.13-slim-bookworm
RUN useradd --system --create-home bss
COPY --from=build /wheels /wheels
COPY constraints.txt /wheels/
RUN pip install --no-cache-dir -c /wheels/constraints.txt "$(ls /wheels/*.whl)[odoo,postgres]" \
    && rm -r /wheels
USER bss
WORKDIR /home/bss
ENTRYPOINT ["bss-stream"]
