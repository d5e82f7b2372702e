#!/usr/bin/env bash
# Make dist/twinfocus.zip, what spark-submit --py-files sends to Spark's workers. The same sources give the same bytes.
set -euo pipefail
cd "$(dirname "$0")/.."

mkdir -p dist
.venv/bin/python - <<'PYTHON'
import os
import zipfile
from pathlib import Path

sources = [p for package in ("features", "pipeline", "training", "jobs") for p in Path(package).rglob("*.py")]
files = sorted([*sources, *Path("jobs/pages/templates").iterdir()])
temporary = Path(f"dist/.twinfocus.{os.getpid()}.zip")
with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
    for path in files:
        archive.writestr(zipfile.ZipInfo(path.as_posix(), (1980, 1, 1, 0, 0, 0)), path.read_bytes())
os.replace(temporary, "dist/twinfocus.zip")
PYTHON
