#!/usr/bin/env bash
# Run a command as a job on a Ray cluster made for it on this machine, and take the cluster down again.
#
#   infra/ray/submit.sh python -m jobs.train --config jobs/configs/demo.toml --run "$PWD/runs/demo"
#   NODES=3 RAY_NUM_CPUS=1 infra/ray/submit.sh python -m jobs.train ... training.num_workers=3
#
# All paths must be absolute: the job runs in Ray's own copy of the project. Several can run at once: every port is a
# free one. The output is the job's, and the exit code is not 0 if it fails; then Ray's logs are kept and their folder
# is named. NODES=3 makes it a head and two more nodes, each with its own processes, ports, object store and folder.
# RAY_NUM_CPUS gives each node another number of CPUs than the machine has; KEEP_LOGS=1 keeps logs always.
set -euo pipefail
cd "$(dirname "$0")/../.."

num_nodes=${NODES:-1}
[[ $# -gt 0 && $num_nodes =~ ^[1-9][0-9]?$ ]] || { sed -n '2,10s/^# \{0,1\}//p' "$0" >&2; exit 2; }
[ -x .venv/bin/ray ] || { echo "error: .venv is missing: run make setup" >&2; exit 1; }

# The job's shell inherits the head's PATH, so that "python" means .venv's.
export PATH="$PWD/.venv/bin:$PATH" RAY_USAGE_STATS_ENABLED=0
# The head starts a dozen Python processes for its dashboard: on a busy machine that takes longer than Ray's 30 s.
export RAY_DASHBOARD_STARTUP_TIMEOUT_S=240 RAY_DASHBOARD_SUBPROCESS_MODULE_WAIT_READY_TIMEOUT=240
unset RAY_ADDRESS

# Nobody but this script and its job may use the cluster: without the token every Ray port answers with a refusal.
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN
if [ "$num_nodes" = 1 ]; then
    # Ray takes 127.0.0.1 for "the address of this machine" and listens on every interface. Told that clusters are
    # switched off, as on macOS, it stays on loopback; it then takes no second node.
    export RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0
    addresses=(127.0.0.1)
else
    export RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=1 # whatever a local cluster of the caller has set
    # An address a node, so that Ray sees as many hosts as nodes. Linux answers to all of 127.0.0.0/8.
    mapfile -t addresses < <(seq -f '127.0.0.%g' 2 $((num_nodes + 1)))
fi

read -ra ports <<<"$(python infra/free_ports.py $((3 + 4 * num_nodes)))"
address=${addresses[0]}:${ports[0]} dashboard_url=http://127.0.0.1:${ports[1]}
# Short, because Ray puts Unix sockets below it and their paths are limited to 107 bytes.
scratch=$(mktemp -d /tmp/tf-ray.XXXXXX)
nodes=()

clean_up() {
    local code=$? node
    trap - EXIT INT TERM
    # --block ties the daemons to this process: they go when it goes. (`ray stop` would take every cluster down.)
    # The head is the last to go, since the others would report that they lost it.
    for node in $(printf '%s\n' "${nodes[@]}" | tac); do
        kill -TERM "$node" 2>/dev/null || true
        wait "$node" 2>/dev/null || true
    done
    # They outlive it by a moment and still write their logs: nobody is in its process group when the last is gone.
    for node in "${nodes[@]}"; do
        for _ in $(seq 50); do
            kill -0 -- "-$node" 2>/dev/null || break
            sleep 0.2
        done
        kill -KILL -- "-$node" 2>/dev/null || true
    done
    if [ "$code" = 0 ] && [ -z "${KEEP_LOGS:-}" ]; then
        rm -rf "$scratch"
    else
        echo "Ray's logs are in $scratch" >&2
    fi
    exit "$code"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

start_node() { # number from 0, then what makes it a head or tells it of the head
    local folder=$scratch/node$1 own=("${ports[@]:3 + 4 * $1:4}")
    mkdir "$folder"
    # -m: each node gets a process group of its own.
    set -m
    ray start --block --disable-usage-stats --log-color=false --temp-dir="$folder" --node-ip-address="${addresses[$1]}" \
        --dashboard-agent-listen-port="${own[0]}" --dashboard-agent-grpc-port="${own[1]}" \
        --runtime-env-agent-port="${own[2]}" --metrics-export-port="${own[3]}" \
        --min-worker-port=0 --max-worker-port=0 --object-store-memory=134217728 --include-log-monitor=false \
        ${RAY_NUM_CPUS:+--num-cpus="$RAY_NUM_CPUS"} "${@:2}" >"$folder/start.log" 2>&1 &
    nodes+=($!)
    set +m
}

wait_for_nodes() { # how many
    if ! python infra/wait_for_url.py "$dashboard_url/api/v0/nodes" "$(IFS=,; echo "${nodes[*]}")" "\"total\": $1,"; then
        tail -n 20 "$scratch"/node*/start.log >&2
        echo "error: the Ray cluster did not come up" >&2
        exit 1
    fi
}

start_node 0 --head --port="${ports[0]}" --dashboard-host=127.0.0.1 --dashboard-port="${ports[1]}" \
    --ray-client-server-port="${ports[2]}"
wait_for_nodes 1
for ((i = 1; i < num_nodes; i++)); do
    start_node "$i" --address="$address"
done
wait_for_nodes "$num_nodes"
echo "Ray cluster of $num_nodes at $address, jobs at $dashboard_url"
ray job submit --address "$dashboard_url" --log-color=false --working-dir . -- "$@"
