#!/usr/bin/env bash
# One night's work: build the dataset from the newest logs, train on it, evaluate, export and report.
#
#   infra/scheduler/nightly.sh CONFIG LOGS OUTPUT
#
# Everything of one night is in OUTPUT/<date>; `OUTPUT/current` then points to it. A night that fails leaves `current` as
# it was, and the exit code says so. A second call while one is at work ends at once. Needs flock (Linux).
set -euo pipefail
[ $# = 3 ] || { sed -n '2,7s/^# \{0,1\}//p' "$0" >&2; exit 2; }
config=$(realpath "$1") logs=$(realpath "$2")
mkdir -p "$3"
output=$(realpath "$3")
cd "$(dirname "$0")/../.."

exec 9>"$output/.lock"
flock --nonblock 9 || { echo "error: another night is still at work in $output" >&2; exit 1; }

night=$output/$(date -u +%Y-%m-%d)
dataset=$night/dataset run=$night/run
infra/package.sh
.venv/bin/spark-submit --master 'local[*]' --driver-memory 4g --driver-java-options -XX:-DontCompileHugeMethods --py-files dist/twinfocus.zip jobs/build_dataset.py \
    --config "$config" "pipeline.input.train=$logs" "pipeline.output=$dataset"
# --resume: called again on the same day, it goes on where the first call stopped.
.venv/bin/python -m jobs.train --config "$config" --run "$run" --resume "training.dataset=$dataset"
.venv/bin/python -m jobs.evaluate --run "$run" --split valid
.venv/bin/python -m jobs.export --run "$run" --output "$night/artifact"
.venv/bin/python -m jobs.report --run "$run"
ln -sfn "$night" "$output/current.new"
mv -fT "$output/current.new" "$output/current"
