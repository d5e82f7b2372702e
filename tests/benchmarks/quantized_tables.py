"""Size and latency of large tables in each precision: the lookups alone, and a whole model around them.

    python -m tests.benchmarks.quantized_tables --rows 1000000 --output runs/bench/quantized_tables.json

26 tables of width 16 with random numbers, random ids, one a row and table; an MLP of 3 x 400 on top. All precisions
take turns over the same batches, and medians are compared. ``float32`` looks up with TorchRec's plain module, as a
float32 artifact does; ``float32 fused`` has the same numbers in the module of the quantised tables, which shows what of
the difference is the module and what the precision.
"""

import argparse
import copy
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchrec.quant.embedding_modules import EmbeddingBagCollection as QuantEmbeddingBagCollection

from features.disk.atomic import write_json
from features.schema import FeatureSchema, HashEncoding, SparseFeature
from training.config import BCEObjective, MLPEncoder, ModelConfig, NoEncoder, SharedSelection, SingleFusion
from training.data.batch import Batch
from training.model.ctr_model import CTRModel
from training.ship.quantization import quantize, table_bytes, to_tensors
from training.ship.table_precision import PRECISIONS, time_models

NUM_TABLES = 26
CONFIG = ModelConfig(
    embedding_dim=16,
    selection=SharedSelection(),
    easy=NoEncoder(),
    hard=MLPEncoder((400, 400, 400)),
    fusion=SingleFusion(),
    objective=BCEObjective(),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="of each table")
    parser.add_argument("--seconds", type=float, default=10.0, help="for timing a batch size")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    result = measure(arguments.rows, arguments.seconds)
    print(json.dumps(result, indent=1))
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        write_json(arguments.output, result)


def measure(num_rows: int, seconds: float) -> dict[str, Any]:
    names = [f"f{i}" for i in range(NUM_TABLES)]
    schema = FeatureSchema("click", tuple(SparseFeature(name, HashEncoding(num_rows)) for name in names))
    model = CTRModel(schema, dict.fromkeys(names, num_rows), CONFIG).eval()
    models, sizes, quantising = {}, {}, {}
    for tables in PRECISIONS:
        started = time.perf_counter()
        models[tables] = quantize(model, tables)
        quantising[tables] = time.perf_counter() - started
        sizes[tables] = table_bytes(model, to_tensors(model, tables))
    models["float32 fused"] = fused(model)
    random = np.random.default_rng(0)
    columns = {name: random.integers(0, num_rows, 200_000).astype(np.int32) for name in names}
    columns["label"] = np.zeros(200_000, np.float32)
    lookups = {name: Lookup(one) for name, one in models.items()}
    return {
        "rows": num_rows,
        "threads": torch.get_num_threads(),
        "table_bytes": sizes,
        "quantising_seconds": quantising,
        "lookups": time_models(lookups, columns, schema, seconds=seconds, seed=0),
        "model": time_models(models, columns, schema, seconds=seconds, seed=0),
    }


class Lookup:
    """A model's lookups alone."""

    def __init__(self, model: CTRModel) -> None:
        self._embedding = model.embedding

    def __call__(self, batch: Batch) -> None:
        self._embedding(batch.sparse_features, batch.dense_features, batch.num_rows)


def fused(model: CTRModel) -> CTRModel:
    """The same float32 numbers in the module of the quantised tables."""
    bags = model.embedding.bags
    weights = {
        config.name: (bags.embedding_bags[config.name].weight.detach().view(torch.uint8), None)
        for config in bags.embedding_bag_configs()
    }
    same = QuantEmbeddingBagCollection(
        bags.embedding_bag_configs(),
        is_weighted=False,
        device=torch.device("cpu"),
        table_name_to_quantized_weights=weights,
        row_alignment=1,
    )
    return copy.deepcopy(model, {id(bags): same})


if __name__ == "__main__":
    main()
