"""Scoring: a model's scores of a split, on one rank or gathered from all of them."""

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from training.config import TrainingConfig
from training.data.reader import Reader
from training.judge.metrics import METRICS
from training.judge.scores import Scores
from training.sharding.parallelize import ParallelModel, gather


def score(model: nn.Module, reader: Reader, device: torch.device) -> Scores:
    """Score this rank's rows of a split, in reading order; a rank without a row has empty scores."""
    model.eval()
    logits, labels, weights, group_ids = [], [], [], []
    with torch.no_grad():
        for batch in reader.batches(epoch=0):
            rows = slice(batch.num_rows)
            logits.append(model(batch.to(device)).fused.double().cpu())
            labels.append(batch.labels[rows])
            weights.append(batch.weights[rows])
            if batch.group_ids is not None:
                group_ids.append(batch.group_ids[rows])
    groups = torch.cat(group_ids).numpy() if group_ids else None
    return Scores(torch.cat(logits).numpy(), torch.cat(labels).numpy(), torch.cat(weights).numpy(), groups)


def score_all(parallel: ParallelModel, reader: Reader, device: torch.device) -> Scores:
    """Score every rank's rows of a split with the weights that would be shipped, on every rank, in rank order."""
    with parallel.shipped_weights():
        return gathered(score(parallel.model, reader, device))


def check_sample(reader: Reader, config: TrainingConfig, device: torch.device) -> None:
    """Refuse a sample of validation that cannot give what is monitored, before anything is trained.

    Args:
        reader: of the sample; it is read once.

    Raises:
        ValueError: its rows are of one class, and a monitored metric needs both; on every rank alike.
    """
    undefined = [name for name in config.monitor if METRICS[name].needs_both_labels]
    if not undefined:
        return
    counts = torch.zeros(2, dtype=torch.float64, device=device)
    for batch in reader.batches(epoch=0):
        counts += torch.tensor([batch.labels[: batch.num_rows].sum(), batch.num_rows]).to(counts)
    dist.all_reduce(counts)
    positives, rows = counts.tolist()
    if positives in (0, rows):
        raise ValueError(
            f"training.monitor uses {', '.join(undefined)}, undefined on validation rows of one class, and all "
            f"{rows:,.0f} rows of the sample have label {int(positives > 0)}: raise "
            "training.evaluation.sample_rows, or leave it out"
        )


def gathered(scores: Scores) -> Scores:
    """Put all ranks' scores together, on every rank, in rank order."""
    return scores if dist.get_world_size() == 1 else scores.map(_gather)


def _gather(part: np.ndarray) -> np.ndarray:
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
    return gather(torch.from_numpy(part).to(device)).cpu().numpy()
