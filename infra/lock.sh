#!/usr/bin/env bash
# Resolve pyproject.toml into the two full locks, requirements/{cpu,cuda}.txt, which hold for every Python that it allows.
# Versions already locked stay unless pyproject.toml forbids them; `make lock UPGRADE=1` takes the newest allowed.
set -euo pipefail
cd "$(dirname "$0")/.."

UV=${UV:-.venv/bin/uv}
PYTHONS=(3.11 3.12 3.13)
upgrade=()
[ -z "${UPGRADE:-}" ] || upgrade=(--upgrade)

resolve() { # lane, version of Python, lock to write, then more options for uv
    local overrides=(--override requirements/overrides.txt)
    [ "$1" != cpu ] || overrides+=(--override requirements/overrides-cpu.txt)
    "$UV" pip compile pyproject.toml --extra "$1" --extra dev "${overrides[@]}" \
        --python-version "$2" --python-platform x86_64-manylinux_2_28 \
        --no-annotate --quiet --custom-compile-command "make lock" "${@:4}" --output-file "$3"
}

lock() { # lane
    local lane=$1 other=$scratch/lock.txt version
    echo "locking requirements/$lane.txt"
    resolve "$lane" "${PYTHONS[0]}" "requirements/$lane.txt" "${upgrade[@]}"
    for version in "${PYTHONS[@]:1}"; do
        cp "requirements/$lane.txt" "$other"
        resolve "$lane" "$version" "$other"
        if ! diff "requirements/$lane.txt" "$other"; then
            echo "error: Python $version needs other packages than ${PYTHONS[0]} (above): choose versions in" \
                "pyproject.toml that all of ${PYTHONS[*]} can have, and lock again" >&2
            exit 1
        fi
    done
}

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
lock cpu
lock cuda

if grep -qE '^torch==.*\+' requirements/cpu.txt requirements/cuda.txt; then
    echo "error: a lock names a local build of torch; unset UV_FIND_LINKS and UV_INDEX and lock again" >&2
    exit 1
fi
