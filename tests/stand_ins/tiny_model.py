"""A registry of small models that were really trained, in seconds and without Spark or Ray."""

import random
import tomllib
from pathlib import Path
from typing import Any

import torch.distributed as dist
from pydantic import TypeAdapter

from features.disk.trained_on import TrainedOn
from jobs.cli.config import parse_config
from jobs.registry.registry import Registry
from tests.stand_ins.tiny_dataset import TINY_FEATURES, write_tiny_dataset
from training.config import MLPEncoder, ModelConfig, TrainingConfig
from training.fit.run import Run, train_rank
from training.ship.export import export

COLUMNS = ("user", "genres", "device", "age", "row", "price")
NAME = "ctr"


def train_tiny(folder: Path, seed: int) -> Path:
    """Train a model a little; the folder of its artifact."""
    dataset = write_tiny_dataset(folder / "dataset")
    model = ModelConfig(embedding_dim=8, embedding_init_std=0.5, easy=MLPEncoder((64, 32)), hard=MLPEncoder((128, 64)))
    config = TrainingConfig(dataset=str(dataset.path), model=model, global_batch_size=64, max_epochs=1, seed=seed)
    run = Run(folder / "run")
    tree = parse_config(
        {
            "features": tomllib.loads(TINY_FEATURES)["features"],
            "pipeline": {"output": "unused", "input": {"format": {"kind": "csv"}, "lookups": []}},
            "training": {"dataset": str(dataset.path)},
        }
    ).to_dict()
    tree["training"] = TypeAdapter(TrainingConfig).dump_python(config, mode="json")
    run.write("config.json", tree)
    run.write_dataset(TrainedOn.of(dataset.path, dataset.manifest).to_json())
    golden = folder / "golden.csv"
    golden.write_text(",".join(COLUMNS) + "\n" + "\n".join(",".join(map(str, row.values())) for row in raw_rows(20)))
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
    try:
        train_rank(run, config)
    finally:
        dist.destroy_process_group()
    export(run, folder / "artifact", str(golden))
    return folder / "artifact"


def register_tiny(folder: Path, num_versions: int) -> tuple[Registry, list[Path]]:
    """A registry in ``folder/registry``, its first version the champion, and the artifact of each version."""
    artifacts = [train_tiny(folder / f"model-{seed}", seed) for seed in range(1, num_versions + 1)]
    registry = Registry.open(None, folder / "registry")
    for artifact in artifacts:
        registry.register(NAME, artifact)
    registry.promote(NAME, 1)
    return registry, artifacts


def raw_rows(num_rows: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows as a client sends them: text, numbers, known and unknown values."""
    rng = random.Random(seed)
    return [
        {
            "user": rng.randrange(500),
            "genres": "|".join(rng.sample("abcdefgh", rng.randrange(4))),
            "device": rng.choice(["mobile", "tablet", "watch"]),
            "age": rng.randrange(90),
            "row": round(rng.random(), 3),
            "price": round(rng.gauss(0, 2), 3),
        }
        for _ in range(num_rows)
    ]
