#!/usr/bin/env bash
# Run a command as a job on a Ray cluster made for it (one head node on loopback), and take the cluster down again.
#
#   infra/ray/submit.sh python -m jobs.train --config jobs/configs/demo.toml --run "$PWD/runs/demo"
#
# All paths must be absolute: the job runs in Ray's own copy of the project. Several can run at once: every port is a
# free one. The output is the job's, and the exit code is not 0 if it fails; then Ray's logs are kept and their folder
# is named. RAY_NUM_CPUS gives the cluster another number of CPUs than the machine has; KEEP_LOGS=1 keeps logs always.
set -euo pipefail
cd "$(dirname "$0")/../.."

[ $# -gt 0 ] || { sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 2; }
[ -x .venv/bin/ray ] || { echo "error: .venv is missing: run make setup" >&2; exit 1; }

# The job's shell inherits the head's PATH, so that "python" means .venv's.
export PATH="$PWD/.venv/bin:$PATH" RAY_USAGE_STATS_ENABLED=0
unset RAY_ADDRESS

read -r port dashboard client agent agent_grpc runtime_env metrics <<<"$(python infra/free_ports.py 7)"
dashboard_url=http://127.0.0.1:$dashboard
# Short, because Ray puts Unix sockets below it and their paths are limited to 107 bytes.
scratch=$(mktemp -d /tmp/tf-ray.XXXXXX)
head=

clean_up() {
    local code=$?
    trap - EXIT INT TERM
    if [ -n "$head" ]; then
        # --block ties the daemons to this process: they go when it goes. (`ray stop` would take every cluster down.)
        kill -TERM "$head" 2>/dev/null || true
        wait "$head" 2>/dev/null || true
        # They outlive it by a moment and still write their logs: nobody is in its process group when the last is gone.
        for _ in $(seq 50); do
            kill -0 -- "-$head" 2>/dev/null || break
            sleep 0.2
        done
        kill -KILL -- "-$head" 2>/dev/null || true
    fi
    if [ "$code" = 0 ] && [ -z "${KEEP_LOGS:-}" ]; then
        rm -rf "$scratch"
    else
        echo "Ray's logs are in $scratch/session_latest/logs" >&2
    fi
    exit "$code"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# No port to connect from outside: everything listens on loopback only. (-m: the head gets a process group of its own.)
set -m
ray start --head --block --disable-usage-stats --log-color=false --temp-dir="$scratch" --node-ip-address=127.0.0.1 \
    --port="$port" --dashboard-host=127.0.0.1 --dashboard-port="$dashboard" --ray-client-server-port="$client" \
    --dashboard-agent-listen-port="$agent" --dashboard-agent-grpc-port="$agent_grpc" \
    --runtime-env-agent-port="$runtime_env" --metrics-export-port="$metrics" \
    --min-worker-port=0 --max-worker-port=0 --object-store-memory=268435456 \
    ${RAY_NUM_CPUS:+--num-cpus="$RAY_NUM_CPUS"} >"$scratch/start.log" 2>&1 &
head=$!
set +m

if ! python infra/wait_for_url.py "$dashboard_url/api/jobs/" "$head"; then
    cat "$scratch/start.log" >&2
    echo "error: the Ray cluster did not come up" >&2
    exit 1
fi
echo "Ray cluster at 127.0.0.1:$port, jobs at $dashboard_url"
ray job submit --address "$dashboard_url" --log-color=false --working-dir . -- "$@"
