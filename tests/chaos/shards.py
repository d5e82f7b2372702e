"""What can happen to a dataset's Parquet files: before they are read, meanwhile, between two epochs, in a training.

Whatever a reader hands out is compared with what was written, so a wrong row is found whether or not anybody complains.
"""

import functools
import os
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet

from tests.chaos.outcome import Outcome, Unexpected
from tests.stand_ins.tiny_dataset import TinyDataset, write_tiny_dataset

TRAIN = ((300, 300), (300, 300), (300, 300), (300, 300))
NUM_ROWS, EPOCHS = sum(map(sum, TRAIN)), 3

Damage = Callable[[random.Random, Path], str]
"""Does its damage to a file and says what it did."""


def vanish(rng: random.Random, path: Path) -> str:
    path.unlink()
    return "removed"


def cut(rng: random.Random, path: Path) -> str:
    size = rng.randrange(path.stat().st_size)
    os.truncate(path, size)
    return f"cut to {size} bytes"


def flip(rng: random.Random, path: Path) -> str:
    """Change one bit of a page, of a page's header or of the footer; the size stays, and so does the time."""
    before = path.stat()
    place = rng.choice(("page", "page header", "footer"))
    footer = pyarrow.parquet.read_metadata(path)
    data = bytearray(path.read_bytes())
    if place == "footer":
        at = rng.randrange(len(data) - 8 - footer.serialized_size, len(data))
    else:
        chunk = footer.row_group(rng.randrange(footer.num_row_groups)).column(rng.randrange(footer.num_columns))
        start = chunk.data_page_offset
        end = (chunk.dictionary_page_offset or start) + chunk.total_compressed_size
        at = start + rng.randrange(8) if place == "page header" else rng.randrange(start + 24, end)
    data[at] ^= 1 << rng.randrange(8)
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    return f"byte {at} of {len(data)}, in a {place}"


class Reading:
    """Epochs of one reader over a small dataset, each row compared and counted."""

    def __init__(self, dataset: TinyDataset, seed: int) -> None:
        from training.config import ReaderConfig, TrainingConfig
        from training.data.opened_dataset import Dataset
        from training.data.reader import Reader

        reading = ReaderConfig(num_streams=2, shuffle_row_groups=1, prefetch_batches=1)
        config = TrainingConfig(str(dataset.path), reader=reading, seed=seed, global_batch_size=40)
        self.dataset = dataset
        self.reader = Reader(Dataset(dataset.path, dataset.manifest, dataset.learnt), "train", config)

    def epoch(self, number: int, after_step: Callable[[int], None] = lambda step: None) -> Counter[int]:
        """Row -> how often it came, of a whole epoch.

        Raises:
            Unexpected: a row is not the one that was written.
        """
        counts: Counter[int] = Counter()
        columns = self.dataset.columns["train"]
        for step, batch in enumerate(self.reader.batches(number)):
            rows = batch.group_ids.numpy()[: batch.num_rows]
            same = (batch.labels.numpy()[: len(rows)] == columns["label"][rows]).all()
            same &= (batch.dense_features.numpy()[: len(rows), 1] == columns["price"][rows]).all()
            for name in ("user", "device", "age"):
                same &= (batch.sparse_features[name].values().numpy() == columns[name][rows]).all()
            if not same:
                raise Unexpected(f"epoch {number}, step {step}: rows that nobody wrote")
            counts.update(rows.tolist())
            after_step(step)
        return counts

    def refuses(
        self, number: int, path: Path, what: str, after_step: Callable[[int], None] = lambda step: None
    ) -> None:
        """An epoch ends with an error that names the file and the cure.

        Raises:
            Unexpected: it does not.
        """
        from training.data.file_checker import ReaderError

        try:
            self.epoch(number, after_step)
        except ReaderError as error:
            if str(path) not in str(error) or "build the dataset again" not in str(error):
                raise Unexpected(f"{what}: the error does not say which file or what to do: {error}") from error
        else:
            raise Unexpected(f"{what}: {path} was read without a word")


def damage_reading(damage: Damage, folder: Path, seed: int) -> Outcome:
    """A file is damaged before an epoch, in the middle of one, and between two; then it is put back."""
    from training.data.file_checker import ReaderError

    rng = random.Random(seed)
    dataset = write_tiny_dataset(folder / "dataset", TRAIN, (), (), seed=seed, number_rows=True)
    file = rng.choice(dataset.manifest.splits["train"].files)
    path, lost, doubled = dataset.path / file.path, 0, 0
    whole = path.read_bytes()
    for moment in ("before", "in", "between") * 5:
        reading, said = Reading(dataset, seed), []
        if moment == "between":
            counts = reading.epoch(0)
            lost, doubled = lost + NUM_ROWS - len(counts), doubled + counts.total() - len(counts)
        if moment != "in":
            said.append(damage(rng, path))
        else:
            when = rng.randrange(8)

            def strike(step: int, when: int = when, said: list[str] = said) -> None:
                if step == when:
                    said.append(damage(rng, path))

            try:  # the file may have been read already: then the epoch ends well, with the rows that were written
                counts = reading.epoch(0, strike)
                lost, doubled = lost + NUM_ROWS - len(counts), doubled + counts.total() - len(counts)
            except ReaderError as error:
                if str(path) not in str(error):
                    raise Unexpected(f"{said}: the error does not say which file: {error}") from error
        reading.refuses(1, path, f"{moment} an epoch, {said}")
        path.write_bytes(whole)
        counts = reading.epoch(1)
        lost, doubled = lost + NUM_ROWS - len(counts), doubled + counts.total() - len(counts)
    return Outcome(lost, doubled, weights_equal=None)


def damage_training(folder: Path, seed: int) -> Outcome:
    """One bit of a file changes in the middle of a training, which ends; with the file put back it goes on."""
    import torch
    import torch.distributed as dist

    rng = random.Random(seed)
    dataset = write_tiny_dataset(folder / "dataset", TRAIN, ((200,),), (), seed=seed, number_rows=True)
    path = dataset.path / rng.choice(dataset.manifest.splits["train"].files).path
    whole, said = path.read_bytes(), []
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
    try:
        undisturbed, disturbed = Trained(folder / "undisturbed", dataset, seed), Trained(folder / "run", dataset, seed)
        undisturbed.fit()
        try:
            disturbed.fit(rng.randrange(20, 100, 20), lambda: said.append(flip(rng, path)))
        except ValueError as error:
            if str(path) not in str(error):
                raise Unexpected(f"{said}: the error does not say which file: {error}") from error
        else:
            raise Unexpected(f"{said}: {path} was trained on without a word")
        path.write_bytes(whole)
        disturbed.fit()
        ours, theirs = disturbed.weights(), undisturbed.weights()
    finally:
        dist.destroy_process_group()
    counts = disturbed.rows()
    return Outcome(
        rows_lost=sum(max(0, EPOCHS - counts[row]) for row in range(NUM_ROWS)),
        rows_doubled=sum(max(0, counts[row] - EPOCHS) for row in range(NUM_ROWS)),
        weights_equal=all(torch.equal(ours[name], theirs[name]) for name in theirs),
    )


class Trained:
    """A run of one rank in this process, and the rows of each of its steps."""

    def __init__(self, folder: Path, dataset: TinyDataset, seed: int) -> None:
        from training.config import CheckpointConfig, MLPEncoder, ModelConfig, ReaderConfig, TrainingConfig
        from training.fit.run import Run

        self.run, self.steps = Run(folder), dict[tuple[int, int], list[int]]()
        self.config = TrainingConfig(
            dataset=str(dataset.path),
            model=ModelConfig(embedding_dim=8, easy=MLPEncoder((8,)), hard=MLPEncoder((8,))),
            reader=ReaderConfig(num_streams=2, shuffle_row_groups=1),
            checkpoint=CheckpointConfig(every_steps=20),
            global_batch_size=40,
            evaluation_batch_size=40,
            max_epochs=EPOCHS,
            seed=seed,
        )

    def fit(self, step: int | None = None, strike: Callable[[], object] = lambda: None) -> None:
        """Train to the end, from the newest checkpoint; ``strike`` when the checkpoint of ``step`` is written."""
        from training.fit import run

        steps, reader = self.steps, run.Reader

        class Ledger(reader):
            def batches(self, epoch: int, start_step: int = 0) -> Any:
                for step, batch in enumerate(super().batches(epoch, start_step), start_step):
                    if self.shuffle:
                        steps[epoch, step] = batch.group_ids[: batch.num_rows].tolist()
                    yield batch

        def on_event(event: dict[str, Any]) -> None:
            if event["event"] == "checkpoint" and event["step"] == step:
                strike()

        run.Reader = Ledger
        try:
            run.train_rank(self.run, self.config, on_event)
        finally:
            run.Reader = reader

    def rows(self) -> Counter[int]:
        return Counter(row for rows in self.steps.values() for row in rows)

    def weights(self) -> dict[str, Any]:
        import torch

        from training.data.opened_dataset import Dataset
        from training.fit.run import build_model
        from training.sharding import checkpoint

        model = build_model(Dataset.open(self.config.dataset), self.config, torch.device("cpu"))
        found = checkpoint.newest(self.run.checkpoints)
        assert found is not None
        checkpoint.restore_model(found, model)
        return model.state_dict()


CASES: dict[str, Callable[[Path, int], Outcome]] = {
    "file-vanishes": functools.partial(damage_reading, vanish),
    "file-truncated": functools.partial(damage_reading, cut),
    "file-bit-flipped": functools.partial(damage_reading, flip),
    "file-bit-flipped-in-training": damage_training,
}
