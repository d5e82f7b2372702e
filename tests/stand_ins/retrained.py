"""Ten days of a retraining's folder, written by the classes that write real ones, in seconds and without Spark or Ray.

Day 24 comes late, 25 is broken (labels tripled, a column emptied), 27 is refused by the gate, 29 is rolled back, and 30
is not yet seen; a categorical feature drifts all the while.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from features.disk.atomic import write_json
from features.disk.dataset import DataFile, DatasetManifest, DenseStatistics, FeatureStatistics, Rejected, Split
from features.profile.bins import choose_bins, count
from features.profile.profile import DataProfile, total
from features.rows import Columns
from features.schema import DenseFeature, FeatureSchema, HashEncoding, SparseFeature, VocabularyEncoding
from jobs.cli.data_checks_config import DataChecksConfig
from jobs.registry.registry import Registry
from jobs.retraining.data_checks import check_data
from jobs.retraining.shapes import shapes
from tests.jobs.registry.test_registry import make_artifact, make_registry
from training.judge.gate import GateConfig, judge
from training.judge.metrics import evaluate
from training.judge.scores import Scores

HOSTILE = "</script><img src=x onerror=alert(1)>"
"""A name that is HTML."""
SCHEMA = FeatureSchema(
    "click",
    sparse=(
        *(SparseFeature(name, HashEncoding(2_000)) for name in ("site", "app", "model", "user")),
        *(SparseFeature(name, VocabularyEncoding()) for name in ("banner", "device", "country")),
    ),
    dense=(DenseFeature("price"), DenseFeature("hour")),
)
DAYS = tuple(f"201410{day}" for day in range(21, 31))
FIRST, LATE, BROKEN, REFUSED, ROLLED_BACK, UNSEEN = DAYS[0], DAYS[3], DAYS[4], DAYS[6], DAYS[8], DAYS[9]
CONFIG = """
[features]
label = "click"
[[features.sparse]]
name = "site"
encoding = {{ kind = "hash", num_buckets = 2000 }}
[pipeline]
output = "unused"
[training]
from_data = []
dataset = "unused"
[retrain]
root = "{root}"
partitions = "{logs}/day={{date}}/*.csv"
window = 5
"""


@dataclass(frozen=True)
class Retrained:
    """A log of ten days and what retraining left of it."""

    root: Path
    config: Path
    logs: Path

    def raw(self, day: str) -> Path:
        return self.logs / f"day={day[:4]}-{day[4:6]}-{day[6:]}" / "part.csv"


def make_retrained(folder: Path) -> Retrained:
    """Days 21 to 29 as they were retrained, 24 and 30 as raw files alone."""
    made = Retrained(folder / "retrain", folder / "c.toml", folder / "logs")
    made.config.write_text(CONFIG.format(root=made.root, logs=made.logs), encoding="utf-8")
    registry = make_registry(made.root / "registry")
    profiles: dict[str, DataProfile] = {}
    for day in DAYS:
        made.raw(day).parent.mkdir(parents=True)
        made.raw(day).write_text("site,click\n", encoding="utf-8")
    trained: list[str] = []
    for day in DAYS:
        if day in (LATE, UNSEEN):
            continue
        profile = add_partition(made, day, profiles)
        if day == BROKEN:
            continue
        if profiles:
            unseen = [other for other in profiles if other not in trained]
            is_promoted = decide(made, registry, day, [*trained, *unseen], len(unseen))
            trained = [*trained, *unseen] if is_promoted else trained
        profiles[day] = profile
    registry.rollback("ctr")
    return made


# ------------------------------------------------------------------------------------------------------- one partition


def add_partition(made: Retrained, day: str, before: dict[str, DataProfile]) -> DataProfile:
    """Its manifest, its profile and its checks against the days before."""
    columns, missing = _rows(DAYS.index(day), is_broken=day == BROKEN)
    manifest = _manifest(columns, missing, str(made.raw(day)))
    folder = made.root / "partitions" / day
    folder.mkdir(parents=True)
    manifest.write(folder)
    reference = total(list(before.values())[-5:]) if before else None
    rows = len(columns["label"])
    bins = choose_bins(SCHEMA, [columns], rows) if reference is None else reference.bins
    profile = DataProfile(
        manifest.schema_fingerprint,
        "root",
        (manifest.fingerprint,),
        rows,
        int(columns["label"].sum()),
        {name: float(is_missing.mean()) for name, is_missing in missing.items()},
        dict.fromkeys(("banner", "device", "country"), 0.0),
        count(SCHEMA, [columns], bins),
    )
    found = check_data(manifest, profile, reference, DataChecksConfig())
    kept = {} if reference is None else {"shapes": shapes(found, profile, reference)}
    _write(made.root / "checks" / f"{day}.json", {**found.to_json(), **kept})
    return profile


def _rows(number: int, is_broken: bool) -> tuple[Columns, dict[str, np.ndarray]]:
    """A day's columns, and which of their values are missing."""
    random = np.random.default_rng(number)
    size = int(3_000 * random.uniform(0.8, 1.2))
    drift = number / 10
    columns: Columns = {
        name: (random.zipf(1.4, size) % 1_999 + 1).astype(np.int32) for name in ("site", "app", "model", "user")
    }
    columns["banner"] = random.choice([1, 2, 3], size, p=[0.6 - drift / 3, 0.3, 0.1 + drift / 3]).astype(np.int32)
    columns["device"] = random.choice([1, 2, 3, 4], size, p=[0.5, 0.3, 0.15, 0.05]).astype(np.int32)
    columns["country"] = random.integers(1, 30, size).astype(np.int32)
    columns["price"] = random.lognormal(0.15 * number, 1, size).astype(np.float32)
    columns["hour"] = random.integers(0, 24, size).astype(np.float32)
    columns["label"] = (random.random(size) < (0.5 if is_broken else 0.16 + 0.01 * (number % 3))).astype(np.float32)
    rates = {"price": 0.1 + 0.02 * number, "user": 0.05, "app": 1.0 if is_broken else 0.02, "device": 0.01}
    missing = {n: random.random(size) < rates.get(n, 0.0) for n in (*SCHEMA.sparse_names, *SCHEMA.dense_names)}
    columns["app"][missing["app"]] = 0
    return columns, missing


def _manifest(columns: Columns, missing: dict[str, np.ndarray], source: str) -> DatasetManifest:
    rows, label_rate = len(columns["label"]), float(columns["label"].mean())
    rates = {name: float(is_missing.mean()) for name, is_missing in missing.items()}
    split = Split(
        (DataFile("v1/train/part-00000.parquet", 8 * rows, (rows,), f"{rows:064x}"),),
        label_rate,
        {name: FeatureStatistics(29, rates[name], 0.0, 0.3, 1_999) for name in SCHEMA.sparse_names},
        {name: DenseStatistics(rates[name], 1.0, 1.0, 0.0, 24.0) for name in SCHEMA.dense_names},
    )
    return DatasetManifest(
        schema=SCHEMA,
        schema_fingerprint=SCHEMA.fingerprint,
        learnt_fingerprint="f" * 64,
        learnt_path="v1/learnt",
        splits={"train": split},
        rejected=Rejected(0, {}, None),
        num_input_rows=rows,
        num_duplicates=0,
        inputs={"train": [source]},
        config={},
    )


# ------------------------------------------------------------------------------------------------------- one candidate


def decide(made: Retrained, registry: Registry, day: str, seen: list[str], num_new: int) -> bool:
    """A candidate of a day: judged, registered, promoted or refused, and written down as it is decided."""
    is_warm = num_new < len(seen)
    summary = judge_day(day, is_warm)
    artifact = make_artifact(made.root / "runs" / day / "artifact", day)
    metrics = summary["metrics"]["candidate"]
    version = registry.register("ctr", artifact, metrics=metrics, tags={"trained_on": json.dumps(seen)})
    is_promoted = summary["gate"]["passed"]
    champion = registry.champion("ctr")
    summary |= {
        "day": day,
        "verdict": "promoted" if is_promoted else "refused",
        "stopped_by": None if is_promoted else "gate",
        "version": version,
        "champion_version": version if is_promoted else champion and champion.version,
        "auc": metrics["auc"],
        "logloss": metrics["logloss"],
        "trained_on": seen[-num_new:],
        "train_rows": 3_000 * num_new,
        "is_warm": is_warm,
        "is_done": True,
        "seconds": 61.5,
    }
    _write(made.root / "verdicts" / f"{day}.json", summary)
    write_json(made.root / "last.json", summary)
    if is_promoted:
        registry.promote("ctr", version)
    else:
        failed = [rule for rule in summary["gate"]["rules"] if not rule["passed"]]
        registry.refuse("ctr", version, [f"{rule['name']}: {rule['reason']}" for rule in failed])
    return is_promoted


def judge_day(day: str, has_champion: bool) -> dict[str, Any]:
    """What the gate says of simulated scores: good ones, or on one day those of a candidate that unlearnt."""
    random = np.random.default_rng(int(day))
    signal = random.normal(size=2_000)
    labels = (random.random(2_000) < 1 / (1 + np.exp(-(signal - 1.8)))).astype(float)
    before = signal - 1.8 + random.normal(scale=0.7, size=2_000)
    after = signal - 1.8 + random.normal(scale=3.0 if day == REFUSED else 0.5, size=2_000)
    config = GateConfig(num_resamples=20, max_logloss_rise=0.05)
    segments = {"country": random.integers(0, 5, 2_000)}
    verdict = judge(after, before if has_champion else None, labels, None, config=config, segments=segments)
    metrics = {"candidate": evaluate(Scores.of(after, labels))}
    if has_champion:
        metrics["champion"] = evaluate(Scores.of(before, labels))
    return {"gate": verdict.to_json(), "metrics": metrics}


def _write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, value)
