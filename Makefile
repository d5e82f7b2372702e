# Everything runs in .venv, which each target makes for itself (infra/setup.sh).
ACCELERATOR ?= cpu
export ACCELERATOR
export RAY_USAGE_STATS_ENABLED = 0

PYTHON_BIN := .venv/bin/python

.DEFAULT_GOAL := help
.PHONY: help setup demo retrain-demo bench chaos chaos-retrain test check format package lock airflow-check

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "make %-13s %s\n", $$1, $$2 }'

setup: ## make .venv from the lock (ACCELERATOR=cpu or cuda); does nothing when it is up to date
	@infra/setup.sh

demo: setup package ## generated logs -> dataset -> trained, exported and scored model, in runs/demo
	$(PYTHON_BIN) -m jobs.demo

retrain-demo: setup ## nine days of a log that drifts, retrained on every day and served, in runs/retrain-demo
	$(PYTHON_BIN) -m jobs.retrain_demo

test: setup ## run the tests, two at a time (ARGS="tests/features -x" for some of them, "-n 0" for one at a time)
	$(PYTHON_BIN) -m pytest -n 2 $(ARGS)

check: setup ## lint, format, types, import rules, unsafe code, known vulnerabilities
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 .venv/bin/pyright
	.venv/bin/lint-imports
	@infra/audit/audit.sh

bench: setup ## speed, as ratios against peers and limits, in runs/bench (ARGS=--full: all of it)
	$(PYTHON_BIN) -m jobs.bench $(ARGS)

chaos: setup ## kill, fill, cut and hang jobs and count what they lose, in runs/chaos (ARGS="--seeds 5", "--only CASE ...")
	$(PYTHON_BIN) -m tests.chaos $(ARGS)

chaos-retrain: setup ## the same to retraining, in runs/chaos-retrain
	$(PYTHON_BIN) -m tests.chaos --group retrain --output runs/chaos-retrain/chaos.json $(ARGS)

format: setup ## put the sources into their one format
	.venv/bin/ruff check --fix-only .
	.venv/bin/ruff format .

package: setup ## make dist/twinfocus.zip for spark-submit --py-files
	@infra/package.sh

lock: setup ## resolve pyproject.toml into requirements/*.txt (UPGRADE=1 takes newer versions)
	infra/lock.sh

airflow-check: setup ## load the Airflow DAG in a real Airflow (.venv-airflow) and run it on a small log (ARGS=--load: load alone)
	@infra/airflow/check.sh $(ARGS)
