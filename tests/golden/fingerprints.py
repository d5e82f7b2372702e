"""Schema fingerprints of the shipped configs and of the frozen dataset, as ``fingerprints.json`` has them.

``python -m tests.golden.fingerprints --write VERSION`` records those of today under ``version VERSION``: of a new
definition of the fingerprint, beside the earlier ones, which manifests of their time hold.
"""

import argparse
import json
from pathlib import Path

from jobs.cli.config import load_config

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "jobs" / "configs"
FINGERPRINTS = Path(__file__).with_name("fingerprints.json")
FROZEN = "tests/golden/v1/config.toml"

BASES = (
    "avazu", "bench", "criteo", "demo", "frappe", "movielens_1m", "plans/criteo_1tb", "sequences/amazon_beauty",
    "sequences/ebnerd", "sequences/mind", "sequences/movielens_1m", "sequences/retailrocket",
)  # fmt: skip
"""Configs that load alone."""
LAYERS = {
    "movielens_1m/all_columns": ("movielens_1m",),
    "movielens_1m/tuned": ("movielens_1m",),
    "sequences/amazon_beauty/qin": ("sequences/amazon_beauty",),
    "retrain/avazu": ("avazu",),
    "retrain/demo": ("demo",),
    "retrain/movielens_1m": ("movielens_1m",),
    "schedules/paper": ("frappe",),
    "models/twin_focus/one_stream": ("frappe", "models/fgcnn"),
    "models/twin_focus/two_streams": ("frappe", "models/deepfm"),
    **{f"models/{path.stem}": ("frappe",) for path in sorted(CONFIGS.glob("models/*.toml"))},
}
"""Config -> those that it is laid over, as its first lines say."""
OTHERS = ("leaderboards", "machines", "tune")
"""Folders of files that hold no features."""


def current() -> dict[str, str]:
    """Config, or configs laid over each other -> fingerprint."""
    layered = [(name,) for name in BASES] + [(*below, name) for name, below in LAYERS.items()]
    shipped = {" + ".join(names): [str(CONFIGS / f"{name}.toml") for name in names] for names in layered}
    return {
        name: load_config(paths).features.fingerprint
        for name, paths in {**shipped, FROZEN: [str(ROOT / FROZEN)]}.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.golden.fingerprints", description="Record fingerprints.")
    parser.add_argument("--write", required=True, metavar="VERSION", help="of the fingerprint's definition")
    version = f"version {parser.parse_args().write}"
    kept = json.loads(FINGERPRINTS.read_text(encoding="utf-8")) if FINGERPRINTS.exists() else {}
    FINGERPRINTS.write_text(json.dumps({**kept, version: current()}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
