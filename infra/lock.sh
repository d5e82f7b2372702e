#!/usr/bin/env bash
# Resolve pyproject.toml into the two full locks, requirements/{cpu,cuda}.txt.
# Versions already locked stay unless pyproject.toml forbids them; `make lock UPGRADE=1` takes the newest allowed.
set -euo pipefail
cd "$(dirname "$0")/.."

UV=${UV:-.venv/bin/uv}
upgrade=()
[ -z "${UPGRADE:-}" ] || upgrade=(--upgrade)

lock() { # lane, then more options for uv
    local lane=$1
    echo "locking requirements/$lane.txt"
    "$UV" pip compile pyproject.toml --extra "$lane" --extra dev "${@:2}" \
        --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
        --no-annotate --quiet --custom-compile-command "make lock" "${upgrade[@]}" \
        --output-file "requirements/$lane.txt"
}

lock cpu --override requirements/overrides.txt --override requirements/overrides-cpu.txt
lock cuda --override requirements/overrides.txt

if grep -qE '^torch==.*\+' requirements/cpu.txt requirements/cuda.txt; then
    echo "error: a lock names a local build of torch; unset UV_FIND_LINKS and UV_INDEX and lock again" >&2
    exit 1
fi
