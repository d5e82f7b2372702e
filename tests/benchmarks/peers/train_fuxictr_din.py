"""FuxiCTR training DIN on a built dataset of items with a history, with its own layers, loader and ``train_step``.

Its package has no model files, so the network is put together from its layers as its model zoo does. Started by
``tests.benchmarks.peers_sequences`` with the peers' folder on the path; prints one JSON line.
"""

import json
import logging
import sys
import tempfile
import time
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute
import torch
from columns import read_split
from fuxictr.features import FeatureMap
from fuxictr.pytorch.dataloaders import RankDataLoader
from fuxictr.pytorch.layers import DIN_Attention, FeatureEmbeddingDict, MLP_Block
from fuxictr.pytorch.models import BaseModel

WIDTH, ATTENTION, HIDDEN = 32, [80, 40], [256, 128]


class DIN(BaseModel):
    """DIN (arXiv 1706.06978) over one sequence; what it gives takes the places of the sequence's columns."""

    def __init__(self, feature_map: FeatureMap, parts: list[str], sequence: str, folder: str) -> None:
        super().__init__(feature_map, model_root=folder, metrics=["logloss", "AUC"], verbose=0, model_id="din")
        self.parts, self.columns = parts, [f"{sequence}__{part}" for part in parts]
        self.embedding_layer = FeatureEmbeddingDict(feature_map, WIDTH)
        self.attention = DIN_Attention(WIDTH * len(parts), attention_units=ATTENTION, hidden_activations="Dice")
        width = feature_map.sum_emb_out_dim()
        self.mlp = MLP_Block(input_dim=width, output_dim=1, hidden_units=HIDDEN, batch_norm=False)
        self.compile("adam", "binary_crossentropy", 1e-3)
        self.reset_parameters()
        self.model_to_device()

    def forward(self, inputs):
        x = self.get_inputs(inputs)
        vectors = self.embedding_layer(x)
        target, history = (torch.cat([vectors[name] for name in names], -1) for names in (self.parts, self.columns))
        interest = self.attention(target, history, x[self.columns[0]].long() != 0)
        vectors.update(zip(self.columns, interest.split(WIDTH, dim=-1), strict=True))
        flat = self.embedding_layer.dict2tensor(vectors, flatten_emb=True)
        return {"y_pred": self.output_activation(self.mlp(flat))}


def main(dataset: Path, sequence: str, length: int, batch_size: int) -> None:
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    torch.manual_seed(2023)
    manifest, table = read_split(dataset, "train")
    declared = next(s for s in manifest["schema"]["sequence"] if s["name"] == sequence)
    columns, features = {"label": table["label"].to_numpy()}, OrderedDict()
    sizes = {}
    for feature in manifest["schema"]["sparse"]:
        name, is_list = feature["name"], pa.types.is_list(table.schema.field(feature["name"]).type)
        columns[name] = padded(table[name], feature["max_length"]) if is_list else table[name].to_numpy()
        sizes[name] = int(columns[name].max()) + 2
        features[name] = {"source": "", "type": "categorical", "padding_idx": 0, "vocab_size": sizes[name]}
        if is_list:
            more = {"max_len": feature["max_length"], "feature_encoder": "layers.MaskedAveragePooling()"}
            features[name] |= {"type": "sequence", **more}
    for part in declared["parts"]:
        name = f"{sequence}__{part}"
        columns[name] = padded(table[name], length)
        size = max(sizes[part], int(columns[name].max()) + 2)
        features[part]["vocab_size"] = size
        features[name] = {"source": "", "type": "sequence", "padding_idx": 0, "vocab_size": size, "max_len": length}
        features[name] |= {"share_embedding": part, "feature_encoder": None}
    feature_map = FeatureMap("bench", str(dataset))
    feature_map.features, feature_map.labels = features, ["label"]
    feature_map.num_fields = feature_map.get_num_fields()
    feature_map.default_emb_dim = WIDTH
    feature_map.set_column_index()
    with tempfile.TemporaryDirectory() as folder:
        np.savez(f"{folder}/train.npz", **{name: columns[name] for name in [*features, "label"]})
        network = DIN(feature_map, declared["parts"], sequence, folder)
        batches = RankDataLoader(
            feature_map, stage="train", train_data=f"{folder}/train.npz", batch_size=batch_size, num_workers=0
        )[0]
        network._max_gradient_norm = 10.0  # the default of its ``fit``
        network.train()
        started, cpu = time.perf_counter(), time.process_time()
        for batch in batches:  # what its ``fit`` does each epoch
            network.train_step(batch)
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    print(json.dumps({"rows_per_second": len(table) / seconds, "rows_per_cpu_second": len(table) / cpu}))


def padded(lists: pa.ChunkedArray, length: int) -> np.ndarray:
    """The ids of each row, (n, length), zeros where there are none."""
    lists = lists.combine_chunks()
    counts = pa.compute.list_value_length(lists).to_numpy(zero_copy_only=False).astype(np.int64)
    ids = np.zeros((len(lists), length), np.int64)
    ids[np.arange(length) < counts[:, None]] = lists.flatten().to_numpy()
    return ids


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:]))
