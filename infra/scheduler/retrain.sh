#!/usr/bin/env bash
# What cron and systemd start: jobs.retrain on the days whose log is complete, and then the status page.
#
#   infra/scheduler/retrain.sh CONFIG [section.key=value ...]
#
#   BACK=DURATION   how old the newest complete partition is, as date(1) says it (default "1 day ago"; "1 hour ago")
#   DATES=FORMAT    of partitions, as date(1) says it (default %Y-%m-%d; %Y-%m-%d%H for hours, %Y-%m for months)
#
# The exit code is that of jobs.retrain: 1 when a step failed for good or another retraining is at work, 2 when the config
# is wrong. It is safe to start again at any time. Paths in the config should be absolute.
set -euo pipefail
[ $# -ge 1 ] || { sed -n '2,10s/^# \{0,1\}//p' "$0" >&2; exit 2; }
config=$(realpath -m "$1")
cd "$(dirname "$0")/../.."

code=0
as_of=$(date -u -d "${BACK:-1 day ago}" "+${DATES:-%Y-%m-%d}")
.venv/bin/python -m jobs.retrain --config "$config" --as-of "$as_of" "${@:2}" || code=$?
# The page says why a retraining failed, too; that there is none must not hide that one did.
[ "$code" = 2 ] || .venv/bin/python -m jobs.status --config "$config" "${@:2}" || true
exit "$code"
