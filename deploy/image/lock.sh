#!/bin/sh
# Writes what the image installs, each file by its hash, as constraints.txt has it. Needs `uv`.
set -eu
cd "$(dirname "$0")/../.."

lock() {
    uv pip compile --quiet --generate-hashes --no-annotate --upgrade \
        --python-version 3.13 --python-platform linux --constraint constraints.txt \
        --custom-compile-command deploy/image/lock.sh "$@"
}

lock --extra console --extra odoo --extra otel --extra postgres pyproject.toml --output-file deploy/image/requirements.txt
echo maturin | lock - --output-file deploy/image/build-requirements.txt
