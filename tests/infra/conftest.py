"""A dataset built once on a real Spark cluster of two workers: what one test looks at, the other trains on."""

import os
import re
import socket
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]

CONFIG = """
[features]
label = "click"
[[features.sparse]]
name = "user"
encoding = {{ kind = "hash", num_buckets = 64 }}
[[features.sparse]]
name = "site"
encoding = {{ kind = "vocabulary" }}
[[features.dense]]
name = "price"
[pipeline]
output = "{folder}/dataset"
input.train = "{folder}/train.csv"
input.valid = "{folder}/valid.csv"
write = {{ min_files = 2 }}
[training]
from_data = []
dataset = "{folder}/dataset"
num_workers = 2
max_epochs = 1
global_batch_size = 64
evaluation_batch_size = 64
[training.model]
embedding_dim = 8
easy.hidden_units = [8]
hard.hidden_units = [8]
"""


@dataclass(frozen=True)
class Built:
    """What ``infra/spark/standalone.sh`` did."""

    folder: Path
    config: Path
    rows: dict[str, list[dict[str, str]]]
    """Split -> raw rows."""
    output: str
    refused: subprocess.CompletedProcess[str]
    """A second call at the same time, with a config key that does not exist."""


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("standalone")
    config = folder / "tiny.toml"
    config.write_text(CONFIG.format(folder=folder))
    rng = np.random.default_rng(0)
    rows = {split: [make_row(rng) for _ in range(count)] for split, count in (("train", 600), ("valid", 128))}
    for split, lines in rows.items():
        text = "\n".join([",".join(lines[0]), *(",".join(row.values()) for row in lines)])
        (folder / f"{split}.csv").write_text(text + "\n")
    command = [str(ROOT / "infra" / "spark" / "standalone.sh"), "--config", str(config)]
    # Logs below the test's folder; small, because both clusters run at once.
    environment = {
        **os.environ, "TMPDIR": str(folder), "WORKER_CORES": "1", "WORKER_MEMORY": "1g", "DRIVER_MEMORY": "1g",
    }  # fmt: skip
    good = subprocess.Popen(
        command,
        env={**environment, "KEEP_LOGS": "1", "WORKERS": "2"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    refused = subprocess.run(
        [*command, "pipeline.outptu=x"], env=environment, capture_output=True, text=True, timeout=400, check=False
    )
    output, errors = good.communicate(timeout=400)
    assert good.returncode == 0, output + errors
    return Built(folder, config, rows, output, refused)


def make_row(rng: np.random.Generator) -> dict[str, str]:
    user, site = rng.integers(0, 40), rng.integers(0, 5)
    return {
        "click": str(int(rng.random() < (0.7 if (user + site) % 2 else 0.2))),
        "user": f"u{user}",
        "site": f"s{site}",
        "price": f"{rng.random():.3f}",
    }


@pytest.fixture(scope="session")
def listens() -> Callable[[str], bool]:
    """Whether something listens at ``host:port``."""

    def listens(address: str) -> bool:
        host, port = address.rsplit(":", 1)
        with socket.socket() as probe:
            probe.settimeout(1)
            return probe.connect_ex((host, int(port))) == 0

    return listens


@pytest.fixture(scope="session")
def find_one() -> Callable[[str, str], str]:
    """What the one group of a pattern stands for in a text, which must be the same wherever it occurs."""

    def find_one(pattern: str, text: str) -> str:
        found = set(re.findall(pattern, text))
        assert len(found) == 1, f"{pattern!r} stands for {len(found)} things in:\n{text}"
        return found.pop()

    return find_one
