"""DeepCTR-Torch training DeepFM or DCN-V2 on a built dataset, as its own documentation does: ``compile`` and ``fit``.

Started by ``tests.benchmarks.peers_training`` with the peers' folder on the path; prints one JSON line.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from columns import read_columns
from deepctr_torch.inputs import DenseFeat, SparseFeat
from deepctr_torch.models import DCN, DeepFM
from sklearn.metrics import log_loss


def main(model: str, dataset: Path, num_rows: int, num_test: int, batch_size: int, threads: int) -> None:
    torch.set_num_threads(threads)
    torch.manual_seed(2023)
    schema, train, test = read_columns(dataset, num_rows, num_test)
    features = [SparseFeat(name, vocabulary_size=size, embedding_dim=16) for name, size in schema["sparse"].items()]
    features += [DenseFeat(name, 1) for name in schema["dense"]]
    names = [feature.name for feature in features]
    settings = {"dnn_hidden_units": (400, 400, 400), "dnn_use_bn": True, "l2_reg_embedding": 0, "l2_reg_linear": 0}
    if model == "deepfm":
        network = DeepFM(features, features, device="cpu", **settings)
    else:
        network = DCN(features, features, cross_num=3, cross_parameterization="matrix", device="cpu", **settings)
    network.compile("adam", "binary_crossentropy")
    labels = train["label"].astype(np.float32)
    started = time.perf_counter()
    network.fit({name: train[name] for name in names}, labels, batch_size=batch_size, epochs=1, verbose=0)
    seconds = time.perf_counter() - started
    probs = network.predict({name: test[name] for name in names}, batch_size=16_384).ravel()
    logloss = float(log_loss(test["label"], np.clip(probs.astype(np.float64), 1e-7, 1 - 1e-7)))
    print(json.dumps({"rows_per_second": num_rows / seconds, "logloss": logloss}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:]))
