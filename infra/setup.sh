#!/usr/bin/env bash
# Make .venv from requirements/$ACCELERATOR.txt; does nothing when it already matches the lock.
#
#   ACCELERATOR=cpu|cuda   which lock (default cpu)
#   PYTHON=/path/python    the Python 3.11, 3.12 or 3.13 to use (default: found on PATH)
#   TORCH_CPU_INDEX=URL    where the CPU build of torch comes from besides pip's own configuration
set -euo pipefail
cd "$(dirname "$0")/.."

ACCELERATOR=${ACCELERATOR:-cpu}
TORCH_CPU_INDEX=${TORCH_CPU_INDEX:-https://download.pytorch.org/whl/cpu}
LOCK=requirements/$ACCELERATOR.txt
STAMP=.venv/.installed

fail() {
    echo "error: $*" >&2
    exit 1
}

# ------------------------------------------------------------------------------------------- what must already be there

is_supported() {
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1
}

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.11 python3.12 python3.13 python3 python}; do
        if is_supported "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    fail "no Python 3.11, 3.12 or 3.13 was found${PYTHON:+ at $PYTHON}: install one with" \
        "'sudo apt-get install python3.11 python3.11-venv' (Debian, Ubuntu) or 'brew install python@3.11' (macOS), or give" \
        "its path as PYTHON=/path/to/python3.11"
}

check_java() {
    local java=${JAVA_HOME:+$JAVA_HOME/bin/}java version major
    local cure="install it with 'sudo apt-get install openjdk-17-jre-headless' (Debian, Ubuntu) or 'brew install openjdk@17' (macOS)"
    if ! version=$("$java" -version 2>&1); then
        fail "Spark needs Java 17 or newer and '$java' does not run: $cure"
    fi
    # 'openjdk version "17.0.15"' or, up to Java 8, 'java version "1.8.0_392"'
    major=$(sed -nE 's/.* version "(1\.)?([0-9]+).*/\2/p' <<<"$version" | head -n 1)
    if [ -z "$major" ] || [ "$major" -lt 17 ]; then
        fail "Spark needs Java 17 or newer and '$java' is version ${major:-unknown}: $cure${JAVA_HOME:+, and set JAVA_HOME to it}"
    fi
}

# ----------------------------------------------------------------------------------------------------------- installing

pinned() { # the requirement of one package, as the lock has it
    grep -E "^$1==" "$LOCK"
}

can_reach() {
    .venv/bin/python -c 'import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=10)' "$1" >/dev/null 2>&1
}

install_torch() {
    # pip and not uv: whoever keeps the CPU build elsewhere has told pip so (pip.conf, PIP_FIND_LINKS). Of several
    # builds of one version pip takes the one marked +cpu. Its dependencies follow with the rest of the lock.
    local index=()
    if [ "$ACCELERATOR" = cpu ]; then
        if can_reach "$TORCH_CPU_INDEX/"; then
            index=(--extra-index-url "$TORCH_CPU_INDEX")
        else
            echo "note: $TORCH_CPU_INDEX cannot be reached; looking for torch where pip is configured to look"
        fi
    fi
    .venv/bin/pip install --quiet --no-deps "${index[@]}" "$(pinned torch)"
}

check_torch_build() {
    # Read from the file torch keeps it in: importing torch would take seconds, and fail on a CUDA build without CUDA.
    local cuda
    cuda=$(.venv/bin/python -c '
import importlib.util, pathlib, runpy
package = pathlib.Path(importlib.util.find_spec("torch").origin).parent
print(runpy.run_path(str(package / "version.py"))["cuda"])')
    if [ "$ACCELERATOR" = cpu ] && [ "$cuda" != None ]; then
        fail "the torch that pip found is a CUDA $cuda build, and the CPU lane needs the CPU one: make $TORCH_CPU_INDEX" \
            "reachable, or set TORCH_CPU_INDEX or PIP_FIND_LINKS to a place that has it, and run make setup again"
    fi
    if [ "$ACCELERATOR" = cuda ] && [ "$cuda" = None ]; then
        fail "the torch that pip found is a CPU build, and the CUDA lane needs a CUDA one: check pip's find-links and" \
            "index (pip config list) and run make setup ACCELERATOR=cuda again"
    fi
}

install_rest() {
    # --no-deps: the lock is complete, and torchrec's own demand for fbgemm-gpu must not be followed on CPU.
    .venv/bin/pip install --quiet "$(pinned uv)"
    if ! .venv/bin/uv pip install --quiet --python .venv/bin/python --compile-bytecode --no-deps -r "$LOCK"; then
        echo "note: uv could not install the lock; trying pip, which reads pip.conf"
        .venv/bin/pip install --quiet --no-deps -r "$LOCK"
    fi
}

# ----------------------------------------------------------------------------------------------------------------- main

[ -f "$LOCK" ] || fail "ACCELERATOR=$ACCELERATOR is unknown: it is cpu or cuda"
check_java
wanted="$ACCELERATOR $(cksum <"$LOCK")"
if [ "$(cat "$STAMP" 2>/dev/null)" = "$wanted" ] && is_supported .venv/bin/python; then
    exit 0
fi
python=$(find_python)
echo "setting up .venv from $LOCK (a few minutes the first time)"
export PIP_DISABLE_PIP_VERSION_CHECK=1
rm -f "$STAMP"
# The two lanes share import folders, so a change of lane starts from nothing.
if ! is_supported .venv/bin/python || [ "$(cat .venv/.lane 2>/dev/null || echo "$ACCELERATOR")" != "$ACCELERATOR" ]; then
    rm -rf .venv
    if ! "$python" -m venv .venv; then
        rm -rf .venv
        fail "$python cannot make virtual environments: the package pythonX.Y-venv of its version (Debian, Ubuntu) adds that"
    fi
    echo "$ACCELERATOR" >.venv/.lane
fi
install_torch
check_torch_build
install_rest
echo "$wanted" >"$STAMP"
echo "done: .venv has the $ACCELERATOR lane; 'python -m jobs.doctor' in it checks the whole set"
