#!/usr/bin/env bash
# Build a dataset on a Spark standalone cluster made for it on loopback, and take it down again.
#
#   infra/spark/standalone.sh --config jobs/configs/demo.toml pipeline.output=runs/demo-dataset
#   WORKERS=2 infra/spark/standalone.sh --config jobs/configs/demo.toml pipeline.output=runs/demo-dataset
#
# The arguments go to jobs/build_dataset.py; paths are relative to the project. Several can run at once: every port is a
# free one. Output and exit code are the job's; if it fails, Spark's logs are kept and their folder is named.
# WORKERS (1) is how many workers, each with one executor; WORKER_CORES and WORKER_MEMORY (4g) size each of them,
# DRIVER_MEMORY (2g) the driver; KEEP_LOGS=1 keeps the logs always.
set -euo pipefail
cd "$(dirname "$0")/../.."

num_workers=${WORKERS:-1}
[[ $# -gt 0 && $num_workers =~ ^[1-9][0-9]?$ ]] || { sed -n '2,10s/^# \{0,1\}//p' "$0" >&2; exit 2; }
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

# Loopback keeps other machines out and the secret this machine's other users. Master, workers and driver read it from
# here; an executor is given it by its worker.
cat >"$scratch/secret.conf" <<EOF
spark.authenticate        true
spark.authenticate.secret $("$python" -c 'import secrets; print(secrets.token_hex(32))')
spark.network.crypto.enabled true
EOF

start() { # name, class, then its arguments
    "$SPARK_HOME/bin/spark-class" "org.apache.spark.deploy.$2" --host 127.0.0.1 --properties-file "$scratch/secret.conf" \
        "${@:3}" >"$scratch/$1.log" 2>&1 &
    processes+=($!)
}

start master master.Master --port "$port" --webui-port "$web"
for ((i = 1; i <= num_workers; i++)); do
    start "worker$i" worker.Worker --webui-port 0 --memory "$memory" --work-dir "$scratch/work$i" \
        ${WORKER_CORES:+--cores "$WORKER_CORES"} "spark://127.0.0.1:$port"
done
if ! "$python" infra/wait_for_url.py "http://127.0.0.1:$web/json/" "$(IFS=,; echo "${processes[*]}")" "\"aliveworkers\" : $num_workers,"; then
    tail -n 20 "$scratch"/*.log >&2
    echo "error: the Spark cluster did not come up" >&2
    exit 1
fi
echo "Spark master at spark://127.0.0.1:$port"
# The first task waits for every executor: a small job would be over before the second has come up.
SPARK_CONF_DIR=$PWD/infra/spark/conf .venv/bin/spark-submit --master "spark://127.0.0.1:$port" \
    --properties-file "$scratch/secret.conf" --driver-memory "${DRIVER_MEMORY:-2g}" \
    --executor-memory "$memory" --conf spark.driver.host=127.0.0.1 --conf spark.ui.enabled=false \
    --conf spark.scheduler.minRegisteredResourcesRatio=1 \
    --conf "spark.local.dir=$scratch" --py-files dist/twinfocus.zip jobs/build_dataset.py "$@"
