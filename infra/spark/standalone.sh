#!/usr/bin/env bash
# Build a dataset on a Spark standalone cluster made for it (a master and a worker on loopback), and take it down again.
#
#   infra/spark/standalone.sh --config jobs/configs/demo.toml pipeline.output=runs/demo-dataset
#
# The arguments go to jobs/build_dataset.py; paths are relative to the project. Several can run at once: every port is a
# free one. Output and exit code are the job's; if it fails, Spark's logs are kept and their folder is named.
# WORKER_CORES, WORKER_MEMORY (4g) and DRIVER_MEMORY (2g) size it; KEEP_LOGS=1 keeps the logs always.
set -euo pipefail
cd "$(dirname "$0")/../.."

[ $# -gt 0 ] || { sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 2; }
[ -x .venv/bin/spark-submit ] || { echo "error: .venv is missing: run make setup" >&2; exit 1; }
infra/package.sh

python=$PWD/.venv/bin/python
SPARK_HOME=$("$python" -c 'import importlib.util; print(importlib.util.find_spec("pyspark").submodule_search_locations[0])')
export SPARK_HOME SPARK_LOCAL_IP=127.0.0.1 PYSPARK_PYTHON=$python PYSPARK_DRIVER_PYTHON=$python
read -r port web <<<"$("$python" infra/free_ports.py 2)"
memory=${WORKER_MEMORY:-4g}
scratch=$(mktemp -d "${TMPDIR:-/tmp}/twinfocus-spark.XXXXXX")
processes=()

clean_up() {
    local code=$?
    trap - EXIT INT TERM
    if [ ${#processes[@]} -gt 0 ]; then
        kill -TERM "${processes[@]}" 2>/dev/null || true
        wait "${processes[@]}" 2>/dev/null || true
    fi
    if [ "$code" = 0 ] && [ -z "${KEEP_LOGS:-}" ]; then
        rm -rf "$scratch"
    else
        echo "Spark's logs are in $scratch" >&2
    fi
    exit "$code"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

start() { # name, class, then its arguments
    "$SPARK_HOME/bin/spark-class" "org.apache.spark.deploy.$2" --host 127.0.0.1 "${@:3}" >"$scratch/$1.log" 2>&1 &
    processes+=($!)
}

start master master.Master --port "$port" --webui-port "$web"
start worker worker.Worker --webui-port 0 --memory "$memory" --work-dir "$scratch/work" \
    ${WORKER_CORES:+--cores "$WORKER_CORES"} "spark://127.0.0.1:$port"
if ! "$python" infra/wait_for_url.py "http://127.0.0.1:$web/json/" "${processes[0]}" '"aliveworkers" : 1'; then
    tail -n 20 "$scratch"/*.log >&2
    echo "error: the Spark cluster did not come up" >&2
    exit 1
fi
echo "Spark master at spark://127.0.0.1:$port"
SPARK_CONF_DIR=$PWD/infra/spark/conf .venv/bin/spark-submit --master "spark://127.0.0.1:$port" --driver-memory "${DRIVER_MEMORY:-2g}" \
    --executor-memory "$memory" --conf spark.driver.host=127.0.0.1 --conf spark.ui.enabled=false \
    --conf "spark.local.dir=$scratch" --py-files dist/twinfocus.zip jobs/build_dataset.py "$@"
