#!/usr/bin/env bash
# Load the DAG in a real Airflow, and run it with the real jobs.retrain on a small generated log.
#
#   infra/airflow/check.sh            `make airflow-check`; about three minutes, and one more to install Airflow
#   infra/airflow/check.sh --load     the DAG alone, in seconds
#   infra/airflow/check.sh --lock     resolve requirements.in into requirements.txt
#
# Airflow is in an environment of its own, .venv-airflow: its packages and ours need not agree. Its database and the log
# are in a folder that is deleted afterwards.
set -euo pipefail
cd "$(dirname "$0")/../.."

lock=infra/airflow/requirements.txt
if [ "${1:-}" = --lock ]; then
    exec .venv/bin/uv pip compile infra/airflow/requirements.in --universal --python-version 3.11 --generate-hashes --no-annotate \
        --quiet --custom-compile-command "infra/airflow/check.sh --lock" --output-file "$lock"
fi
wanted=$(cksum <"$lock")
if [ "$(cat .venv-airflow/.installed 2>/dev/null)" != "$wanted" ]; then
    echo "setting up .venv-airflow from $lock"
    .venv/bin/uv venv --quiet --clear --python .venv/bin/python .venv-airflow
    .venv/bin/uv pip install --quiet --python .venv-airflow/bin/python --require-hashes -r "$lock"
    echo "$wanted" >.venv-airflow/.installed
fi

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkdir "$folder/dags"
ln -s "$PWD/infra/airflow/twinfocus_retrain.py" "$folder/dags"
export AIRFLOW_HOME=$folder/airflow AIRFLOW__CORE__DAGS_FOLDER=$folder/dags AIRFLOW__CORE__LOAD_EXAMPLES=False
export TWINFOCUS_HOME=$PWD TWINFOCUS_CONFIG=$folder/retrain.toml
export TWINFOCUS_WEBHOOK='' # whoever's it is shall not hear of this

run() { # a program of Airflow's; what it prints is shown when it fails
    ".venv-airflow/bin/$1" "${@:2}" 3>&1 >"$folder/log" 2>&1 || { tail -n 60 "$folder/log" >&2; exit 1; }
}
run airflow db migrate
run python infra/airflow/check.py "$folder" "$@"
