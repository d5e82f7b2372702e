#!/usr/bin/env bash
# Look for unsafe code with bandit ([tool.bandit] in pyproject.toml), and for packages of the lock that have known
# vulnerabilities with pip-audit (infra/audit/ignored.txt). Without a way to the vulnerability service that part is
# skipped, and says so.
set -euo pipefail
cd "$(dirname "$0")/../.."

lock=requirements/${ACCELERATOR:-cpu}.txt
service=https://pypi.org/pypi/pip/24.0/json

.venv/bin/bandit --quiet --recursive --configfile pyproject.toml features pipeline training jobs infra

if ! .venv/bin/python - "$service" 2>/dev/null <<'PYTHON'; then
import json, sys, urllib.request
sys.exit("vulnerabilities" not in json.load(urllib.request.urlopen(sys.argv[1], timeout=5)))
PYTHON
    echo "SKIPPED: pip-audit: $service cannot be reached, so $lock was not compared with known vulnerabilities"
    exit 0
fi
mapfile -t ignored < <(sed -nE 's/^([A-Z][A-Za-z0-9-]+) .*/--ignore-vuln=\1/p' infra/audit/ignored.txt)
.venv/bin/pip-audit --progress-spinner off --disable-pip --no-deps --requirement "$lock" "${ignored[@]}"
