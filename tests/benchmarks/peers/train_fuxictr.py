"""FuxiCTR training DeepFM or DCN-V2 on a built dataset, with its own layers, loader and ``fit``.

Its package has no model files, so the two networks are put together from its layers as its model zoo does. Started by
``tests.benchmarks.peers_training`` with the peers' folder on the path; prints one JSON line.
"""

import json
import logging
import sys
import tempfile
import time
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from columns import read_columns
from fuxictr.features import FeatureMap
from fuxictr.pytorch.dataloaders import RankDataLoader
from fuxictr.pytorch.layers import CrossNetV2, FactorizationMachine, FeatureEmbedding, MLP_Block
from fuxictr.pytorch.models import BaseModel
from sklearn.metrics import log_loss


class Network(BaseModel):
    """DeepFM (FM beside an MLP) or DCN-V2 (cross layers beside an MLP)."""

    def __init__(self, kind: str, feature_map: FeatureMap, folder: str) -> None:
        super().__init__(feature_map, model_root=folder, metrics=["logloss", "AUC"], verbose=0, model_id=kind)
        self.embedding_layer = FeatureEmbedding(feature_map, 16)
        width = feature_map.sum_emb_out_dim()
        self.fm = FactorizationMachine(feature_map) if kind == "deepfm" else None
        self.cross = CrossNetV2(width, 3) if kind != "deepfm" else None
        self.mlp = MLP_Block(
            input_dim=width, output_dim=1 if self.fm else None, hidden_units=[400, 400, 400], batch_norm=True
        )
        self.fc = torch.nn.Linear(width + 400, 1) if self.cross else None
        self.compile("adam", "binary_crossentropy", 1e-3)
        self.reset_parameters()
        self.model_to_device()

    def forward(self, inputs):
        x = self.get_inputs(inputs)
        vectors = self.embedding_layer(x)
        flat = vectors.flatten(start_dim=1)
        if self.fm is not None:
            logits = self.fm(x, vectors) + self.mlp(flat)
        else:
            logits = self.fc(torch.cat([self.cross(flat), self.mlp(flat)], dim=-1))
        return {"y_pred": self.output_activation(logits)}


def main(kind: str, dataset: Path, num_rows: int, num_test: int, batch_size: int, threads: int) -> None:
    logging.disable(logging.WARNING)
    torch.set_num_threads(threads)
    torch.manual_seed(2023)
    schema, train, test = read_columns(dataset, num_rows, num_test)
    feature_map = FeatureMap("bench", str(dataset))
    features = OrderedDict()
    for name, size in schema["sparse"].items():
        features[name] = {"source": "", "type": "categorical", "padding_idx": None, "vocab_size": size}
    for name in schema["dense"]:
        features[name] = {"source": "", "type": "numeric"}
    feature_map.features, feature_map.labels = features, ["label"]
    feature_map.num_fields = feature_map.get_num_fields()
    feature_map.default_emb_dim = 16
    feature_map.set_column_index()
    with tempfile.TemporaryDirectory() as folder:
        for split, rows in (("train", train), ("test", test)):
            np.savez(f"{folder}/{split}.npz", **{name: rows[name] for name in [*features, "label"]})
        network = Network(kind, feature_map, folder)
        batches = RankDataLoader(
            feature_map, stage="train", train_data=f"{folder}/train.npz", batch_size=batch_size, num_workers=0
        )[0]
        started = time.perf_counter()
        network._max_gradient_norm = 10.0  # the default of its ``fit``
        network.train()
        for batch in batches:  # what its ``fit`` does each epoch, without the evaluation that it asks for
            network.train_step(batch)
        seconds = time.perf_counter() - started
        tests = RankDataLoader(
            feature_map, stage="test", test_data=f"{folder}/test.npz", batch_size=16_384, num_workers=0
        )
        network.eval()
        with torch.no_grad():
            probs = np.concatenate([network(batch)["y_pred"].numpy().ravel() for batch in tests])
    logloss = float(log_loss(test["label"], np.clip(probs.astype(np.float64), 1e-7, 1 - 1e-7)))
    print(json.dumps({"rows_per_second": num_rows / seconds, "logloss": logloss}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:]))
