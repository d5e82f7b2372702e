"""Attribution of a model's predictions to features, branches and gates.

Features and branches are compared by permutation importance (Fisher et al., arXiv 1801.01489): how much worse the rows
are ranked when the values of one feature, or the outputs of one branch, are permuted over the whole split. A feature
that the model can replace by another one has little importance, whatever it means in the world.

Shapes: n rows, B rows of a batch, S series of a gate, D coordinates of a series, H width of an encoder's output.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import repeat
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from features.rows import Columns
from features.schema import FeatureSchema
from training.config import ObjectiveConfig
from training.data.batch import Batch, to_batch
from training.judge.calibration import Calibration
from training.judge.metrics import auc, logloss
from training.judge.scores import Floats, to_probs
from training.model.ctr_model import CTRModel
from training.model.fusion import Fusion, WeightedSum
from training.model.selection import Selection

NUM_BINS = 20
"""Number of bins of each histogram."""
BRANCHES = ("easy", "hard")


class AttributionError(ValueError):
    """Nothing can be attributed on these rows; the message says why."""


def num_passes(schema: FeatureSchema, num_repeats: int) -> int:
    """Count the passes of ``attribute`` over the rows."""
    return 2 + num_repeats * (len(schema.sparse) + len(schema.sequence) + len(schema.dense) + 1)


def attribute(
    model: CTRModel,
    columns: Columns,
    schema: FeatureSchema,
    objective: ObjectiveConfig,
    calibration: Calibration,
    *,
    num_repeats: int,
    seed: int,
    batch_size: int,
    on_pass: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """Attribute the predictions of rows to features, branches and gates.

    Args:
        columns: result of ``training.data.columns.read_columns``.
        objective: objective of the model's training; a branch logit is reported only where the loss supervises it.
        calibration: calibration of the fused logit; only the logloss is of calibrated logits.
        num_repeats: permutations; each one is tried on every feature and branch.
        seed: seed of the permutations.
        on_pass: function called ``num_passes`` times.

    Returns:
        rows, auc, logloss: of the rows as they are.
        features: most important first, each with the mean cost of permuting it over the repeats (``auc_drop``,
            ``logloss_rise``) and its standard deviation (``..._std``, None with one repeat). A multi-valued feature
            moves as a whole.
        branches: the same for permuting an encoder's outputs.
        parts: the fused logit is that of the branches' mean outputs, plus a part a branch (what changes when that
            branch alone has its own output), plus a joint part, which an additive fusion has not. Each with
            ``mean_abs_part`` and ``variance_share``, cov(part, fused) / var(fused), which add up to 1; and, where the
            branch's own logit is supervised, with its ``auc``, ``logloss`` and mean by label.
        gates: mean, deviation and histogram of each gate's series.
        fusion_weights: learnt weights of the fusion weighted_sum, or None.
        p_t: (20, 20) share of rows by the probability that the easy and the hard branch give the row's own class, or
            None where not both of their logits are supervised.

    Raises:
        AttributionError: the rows are of one class, which no AUC can rank.
    """
    rows = _Rows(model.eval(), columns, schema, batch_size)
    fusion, labels, weights = model.fusion, rows.labels, rows.weights
    if not 0 < weights @ labels < weights.sum():
        raise AttributionError("rows of one class only cannot be ranked: attribute a split that has both")
    shares = {"easy": objective.alpha, "hard": 1 - objective.alpha} if objective.kind == "twin_focus" else {}
    supervised = tuple(branch for branch, share in shares.items() if share)

    def measure(fused: Floats) -> Floats:
        """Compute AUC and logloss."""
        return np.array([auc(fused, labels, weights), logloss(calibration.apply(fused), labels, weights)])

    with torch.no_grad():
        logits, means, gates = rows.look()
        on_pass()
        parts = rows.split(logits["fused"], means)
        on_pass()
        intact = measure(logits["fused"])
        changes = defaultdict[tuple[str, str], list[Floats]](list)
        for number in range(num_repeats):
            order = np.random.default_rng((seed, number)).permutation(len(labels))
            for key, permuted in rows.permute(order, on_pass):
                changes[key].append(measure(permuted) - intact)
    kinds = dict.fromkeys(schema.sparse_names, "sparse") | {s.name: "sequence" for s in schema.sequence}
    kinds |= dict.fromkeys(schema.dense_names, "dense")
    features = [{"name": n, "kind": kind, **_summarise(changes["feature", n])} for n, kind in kinds.items()]
    fusion_weights = (
        dict(zip(BRANCHES, fusion.weight.tolist(), strict=True)) if isinstance(fusion, WeightedSum) else None
    )
    return {
        "rows": len(labels),
        "auc": float(intact[0]),
        "logloss": float(intact[1]),
        "features": sorted(features, key=lambda feature: -feature["auc_drop"]),
        "branches": [{"name": name, **_summarise(changes["branch", name])} for name in fusion.branches],
        "parts": [
            {
                "name": name,
                **_describe_part(part, logits["fused"], weights),
                **(_describe_logit(logits[name], labels, weights) if name in supervised else {}),
            }
            for name, part in parts.items()
        ],
        "gates": gates,
        "fusion_weights": fusion_weights,
        "p_t": _joint_histogram(logits, labels, weights) if supervised == BRANCHES else None,
    }


class _Rows:
    """Rows of a split, scored by a model in many variants."""

    def __init__(self, model: CTRModel, columns: Columns, schema: FeatureSchema, batch_size: int) -> None:
        self.model, self.columns, self.schema, self.batch_size = model, columns, schema, batch_size
        self.labels, self.weights = (columns[name].astype(np.float64) for name in ("label", "weight"))

    def batches(self, changed: Columns | None = None) -> Iterator[Batch]:
        """Yield the rows as batches, with some columns changed."""
        columns = {**self.columns, **(changed or {})}
        for start in range(0, len(self.labels), self.batch_size):
            yield to_batch({n: c[start : start + self.batch_size] for n, c in columns.items()}, self.schema)

    def look(self) -> tuple[dict[str, Floats], list[Tensor], list[dict[str, Any]]]:
        """Compute the logits of each kind, the weighted mean (1, H) of each encoder's output, and every gate."""
        selection, fusion = self.model.selection, self.model.fusion
        logits = {"fused": [], "easy": [], "hard": []}
        sums, gates = [torch.zeros(()), torch.zeros(())], _Gates((*self.schema.sparse_names, *self.schema.dense_names))
        with _inputs(selection) as streams, _inputs(fusion) as outputs:
            for batch in self.batches():
                for name, values in self.model(batch)._asdict().items():
                    logits[name].append(values)
                weights_B1 = batch.weights.double()[:, None]
                sums = [s + (weights_B1 * h_BH).sum(dim=0, keepdim=True) for s, h_BH in zip(sums, outputs, strict=True)]
                gates.add(selection, selection.gates(*streams), batch.weights)
                gates.add(fusion, fusion.gates(*outputs), batch.weights)
        means = [(s / self.weights.sum()).to(h_BH.dtype) for s, h_BH in zip(sums, outputs, strict=True)]
        return {name: _join(values) for name, values in logits.items()}, means, gates.describe()

    def split(self, fused: Floats, means: list[Tensor]) -> dict[str, Floats]:
        """Split the fused logit into (n,) parts: one a branch and, if any, the joint part; see ``attribute``."""
        fusion, without = self.model.fusion, self.exchange(repeat(means))
        neither = self.model.fuse(*means).fused.item()
        easy, hard = without["hard"] - neither, without["easy"] - neither
        parts = {"easy": easy, "hard": hard, "joint": fused - neither - easy - hard}
        return {name: parts[name] for name in (*fusion.branches, *(() if fusion.is_additive else ("joint",)))}

    def permute(
        self, order: NDArray[np.int64], on_pass: Callable[[], object]
    ) -> Iterator[tuple[tuple[str, str], Floats]]:
        """Permute every feature and branch: (``feature`` or ``branch``, its name), (n,) fused logits in ``order``."""
        permuted = {name: column[order] for name, column in self.columns.items()}
        groups = {f.name: [c.name for c in f.kind.columns(f)] for f in self.schema.sparse}
        groups |= {sequence.name: list(sequence.keys) for sequence in self.schema.sequence}
        groups |= {f.name: [c.name for c in f.kind.columns(f)] for f in self.schema.dense}
        for name, group in groups.items():
            batches = self.batches({column: permuted[column] for column in group})
            yield ("feature", name), _join(self.model(batch).fused for batch in batches)
            on_pass()
        for branch, logits in self.exchange(self.outputs(permuted)).items():
            yield ("branch", branch), logits
        on_pass()

    def exchange(self, others: Iterable[Sequence[Tensor]]) -> dict[str, Floats]:
        """Replace each branch's output alone by that of ``others``, by batch: branch -> (n,) fused logits."""
        fuse, easy, hard = self.model.fuse, [], []
        for (easy_BH, hard_BH), (other_easy_BH, other_hard_BH) in zip(self.outputs(), others, strict=False):
            easy.append(fuse(other_easy_BH.expand_as(easy_BH), hard_BH).fused)
            hard.append(fuse(easy_BH, other_hard_BH.expand_as(hard_BH)).fused)
        return {"easy": _join(easy), "hard": _join(hard)}

    def outputs(self, changed: Columns | None = None) -> Iterator[list[Tensor]]:
        """Yield the encoders' outputs by batch; thousands of numbers a row would not fit in memory."""
        with _inputs(self.model.fusion) as outputs:
            for batch in self.batches(changed):
                self.model(batch)
                yield list(outputs)


class _Gates:
    """Weighted mean, deviation and histogram of gates, summed by batch: all rows' gates would not fit in memory."""

    def __init__(self, fields: tuple[str, ...]) -> None:
        self.fields = fields
        # (gate, its largest value) -> series -> three moments, then the histogram
        self._sums = defaultdict[tuple[str, int], dict[str, Floats]](dict)

    def add(self, block: Selection | Fusion, gates: dict[str, Tensor], weights_B: Tensor) -> None:
        """Add a batch."""
        names = block.gate_series or self.fields
        for gate, values_BK in gates.items():
            sums, values_BSD = self._sums[gate, block.gate_top], values_BK.double().unflatten(1, (len(names), -1))
            for name, values in zip(names, values_BSD.numpy().swapaxes(0, 1), strict=True):
                weights = np.broadcast_to(weights_B.double().numpy()[:, None], values.shape)
                moments = [np.sum(weights * values**power) for power in range(3)]
                histogram = np.histogram(values, NUM_BINS, (0, block.gate_top), weights=weights)[0]
                sums[name] = sums.get(name, 0.0) + np.r_[moments, histogram]

    def describe(self) -> list[dict[str, Any]]:
        """Describe each gate for JSON; a histogram is of ``NUM_BINS`` equal bins from 0 to ``top`` and adds up to 1."""
        described = []
        for (gate, top), sums in self._sums.items():
            series = {}
            for name, (total, first, second, *histogram) in sums.items():
                mean = first / total
                deviation = max(0.0, second / total - mean**2) ** 0.5
                series[name] = {"mean": mean, "deviation": deviation, "histogram": [x / total for x in histogram]}
            described.append({"name": gate, "top": top, "series": series})
        return described


@contextmanager
def _inputs(module: nn.Module) -> Iterator[list[Any]]:
    """Give a list that holds the arguments of the module's last call, within this context."""
    last: list[Any] = []

    def remember(_: nn.Module, arguments: tuple[Any, ...]) -> None:
        last[:] = arguments

    handle = module.register_forward_pre_hook(remember)
    try:
        yield last
    finally:
        handle.remove()


def _summarise(changes: list[Floats]) -> dict[str, float | None]:
    """Summarise the changes of (AUC, logloss) by a permutation, one a repeat: means and standard deviations."""
    summary: dict[str, float | None] = {}
    auc_changes, rises = np.array(changes).T
    # Subtracted from 0, so that no change is 0 and not -0.
    for name, values in (("auc_drop", 0 - auc_changes), ("logloss_rise", rises)):
        summary[name] = float(values.mean())
        summary[f"{name}_std"] = float(values.std(ddof=1)) if len(values) > 1 else None
    return summary


def _describe_part(part: Floats, fused: Floats, weights: Floats) -> dict[str, float | None]:
    covariance = np.cov(part, fused, ddof=0, aweights=weights)
    return {
        "mean_abs_part": float(np.average(np.abs(part), weights=weights)),
        "variance_share": float(covariance[0, 1] / covariance[1, 1]) if covariance[1, 1] > 0 else None,
    }


def _describe_logit(logits: Floats, labels: Floats, weights: Floats) -> dict[str, float | None]:
    return {
        "auc": auc(logits, labels, weights),
        "logloss": logloss(logits, labels, weights),
        "mean_logit_positives": float(np.average(logits, weights=weights * labels)),
        "mean_logit_negatives": float(np.average(logits, weights=weights * (1 - labels))),
    }


def _joint_histogram(logits: dict[str, Floats], labels: Floats, weights: Floats) -> list[list[float]]:
    p_t = [to_probs((2 * labels - 1) * logits[branch]) for branch in BRANCHES]
    counts = np.histogram2d(*p_t, bins=NUM_BINS, range=((0, 1), (0, 1)), weights=weights)[0]
    return (counts / weights.sum()).tolist()


def _join(parts: Iterable[Tensor]) -> Floats:
    return torch.cat([part.double() for part in parts]).numpy()
