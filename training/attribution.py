"""Attribution: what a model's predictions rest on, feature by feature, branch by branch and gate by gate.

Features and branches have one yardstick, so that they can be compared: how much worse the rows are ranked when what one
of them says of a row is swapped for what it says of another row, over the whole split (permutation importance, Fisher
et al., arXiv 1801.01489). A feature that another one can stand in for loses little: importance is the model's, not the
world's.

Shapes: n rows, B rows of a batch, F fields, D width of a field, H width of an encoder's output.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from features.encoding import Columns
from features.schema import FeatureSchema
from training.batch import Batch, to_batch
from training.calibration import Calibration
from training.metrics import Floats, auc, logloss, to_probs
from training.model.ctr_model import CTRModel
from training.model.fusion import Concat, MixtureOfHeads, Single, Sum, Voting, WeightedSum
from training.model.selection import Gate, MixtureOfExperts, StreamGates
from training.reader import Reader

NUM_BINS = 20
"""Of each histogram."""
BRANCHES = ("easy", "hard")

Gates = dict[str, tuple[int, dict[str, Tensor]]]
"""Gate -> its largest value and its series, each (B, D): what it lets through, by row and coordinate."""


class AttributionError(ValueError):
    """Nothing can be attributed on these rows; the message says why."""


def read_columns(reader: Reader, max_rows: int) -> Columns:
    """A split's rows in memory, named as in the Parquet files; of a longer split, ``max_rows`` evenly spaced rows."""
    n = reader.num_rows
    kept = np.arange(n) if n <= max_rows else np.arange(max_rows) * n // max_rows
    parts, start = [], 0
    for batch in reader.batches(epoch=0):
        first, last = np.searchsorted(kept, (start, start + batch.num_rows))
        parts.append(_to_columns(batch, reader.schema, kept[first:last] - start))
        start += batch.num_rows
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def num_passes(schema: FeatureSchema, num_repeats: int) -> int:
    """How often ``attribute`` goes through the rows."""
    return 2 + num_repeats * (len(schema.sparse) + len(schema.dense) + 1)


def attribute(
    model: CTRModel,
    columns: Columns,
    schema: FeatureSchema,
    calibration: Calibration,
    *,
    num_repeats: int,
    seed: int,
    batch_size: int,
    on_pass: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """Attribute the predictions of rows to features, branches and gates.

    Args:
        columns: of ``read_columns``.
        calibration: of the fused logit; the logloss is of what is served, all else of the model's own logits.
        num_repeats: permutations; each one is tried on every feature and branch.
        seed: of the permutations.
        on_pass: called ``num_passes`` times.

    Returns:
        rows, auc, logloss: of the rows as they are.
        features: most important first, each with the mean over the repeats of what permuting it costs (``auc_drop``,
            ``logloss_rise``) and its standard deviation (``..._std``, None with one repeat). A multi-valued feature
            moves as a whole.
        branches: the same for permuting an encoder's outputs; with ``mean_abs_part`` and ``variance_share`` (see
            ``joint``), and, where the branch's own logit is trained, its ``auc``, ``logloss`` and mean by label.
        joint: the fused logit is that of the branches' mean outputs, plus a part a branch (what changes when that
            branch alone has its own output), plus this joint part, which is None where the fusion is additive. The
            variance shares, cov(part, fused) / var(fused), add up to 1.
        gates: mean, deviation and histogram of each gate's series.
        fusion_weights: learnt weights of the fusion weighted_sum, or None.
        p_t: (20, 20) share of rows by the probability that the easy and the hard branch give the row's own class, or
            None where there are no two trained branch logits.

    Raises:
        AttributionError: the rows are of one class, which no AUC can rank.
    """
    rows = _Rows(model.eval(), columns, schema, batch_size)
    labels, weights = rows.labels, rows.weights
    if not 0 < weights @ labels < weights.sum():
        raise AttributionError("rows of one class only cannot be ranked: attribute a split that has both")

    def measure(fused: Floats) -> Floats:
        """AUC and logloss."""
        return np.array([auc(fused, labels, weights), logloss(calibration.apply(fused), labels, weights)])

    with torch.no_grad():
        logits, means, gates = rows.look()
        on_pass()
        parts = rows.split(means)
        on_pass()
        intact = measure(logits["fused"])
        changes = defaultdict[tuple[str, str], list[Floats]](list)
        for repeat in range(num_repeats):
            order = np.random.default_rng((seed, repeat)).permutation(len(labels))
            for key, permuted in rows.permute(order, on_pass):
                changes[key].append(measure(permuted) - intact)
    kinds = dict.fromkeys(schema.sparse_names, "sparse") | dict.fromkeys(schema.dense_names, "dense")
    features = [{"name": n, "kind": kind, **_summarise(changes["feature", n])} for n, kind in kinds.items()]
    has_trained_heads = model.fusion.hard_head.weight.requires_grad  # pyright: ignore[reportAttributeAccessIssue]
    branches = [
        {
            "name": branch,
            **_summarise(changes["branch", branch]),
            **_describe_part(parts[branch], logits["fused"], weights),
            **(_describe_logit(logits[branch], labels, weights) if has_trained_heads else {}),
        }
        for branch in BRANCHES[isinstance(model.fusion, Single) :]
    ]
    is_additive = isinstance(model.fusion, WeightedSum | Sum | Concat | Single)
    return {
        "rows": len(labels),
        "auc": float(intact[0]),
        "logloss": float(intact[1]),
        "features": sorted(features, key=lambda feature: -feature["auc_drop"]),
        "branches": branches,
        "joint": None if is_additive else _describe_part(parts["joint"], logits["fused"], weights),
        "gates": gates,
        "fusion_weights": _fusion_weights(model),
        "p_t": _joint_histogram(logits, labels, weights) if has_trained_heads and len(branches) > 1 else None,
    }


class _Rows:
    """Rows that a model scores again and again."""

    def __init__(self, model: CTRModel, columns: Columns, schema: FeatureSchema, batch_size: int) -> None:
        self.model, self.columns, self.schema, self.batch_size = model, columns, schema, batch_size
        self.labels, self.weights = (columns[name].astype(np.float64) for name in ("label", "weight"))

    def batches(self, changed: Columns | None = None) -> Iterator[Batch]:
        """The rows, with some columns changed."""
        columns = {**self.columns, **(changed or {})}
        for start in range(0, len(self.labels), self.batch_size):
            yield to_batch({n: c[start : start + self.batch_size] for n, c in columns.items()}, self.schema)

    def look(self) -> tuple[dict[str, Floats], list[Tensor], list[dict[str, Any]]]:
        """Logits of each kind; the weighted mean (1, H) of each encoder's output; every gate."""
        model, logits = self.model, {"fused": [], "easy": [], "hard": []}
        sums, spreads = [torch.zeros(()), torch.zeros(())], _Spreads()
        with _inputs(model.selection) as streams, _inputs(model.fusion) as outputs:
            for batch in self.batches():
                for name, values in model(batch)._asdict().items():
                    logits[name].append(values)
                weights_B1 = batch.weights.double()[:, None]
                sums = [s + (weights_B1 * h_BH).sum(dim=0, keepdim=True) for s, h_BH in zip(sums, outputs, strict=True)]
                fields = (*self.schema.sparse_names, *self.schema.dense_names)
                spreads.add(selection_gates(model.selection, streams[0], fields), batch.weights)
                spreads.add(fusion_gates(model.fusion, outputs[0], outputs[1]), batch.weights)
        means = [(s / self.weights.sum()).to(h_BH.dtype) for s, h_BH in zip(sums, outputs, strict=True)]
        return {name: _join(values) for name, values in logits.items()}, means, spreads.describe()

    def split(self, means: list[Tensor]) -> dict[str, Floats]:
        """(n,) parts of the fused logit: easy, hard, joint; see ``attribute``."""
        fusion, parts = self.model.fusion, {"easy": [], "hard": [], "joint": []}
        neither = fusion(*means).fused.double()
        with _inputs(fusion) as outputs:
            for batch in self.batches():
                fused = self.model(batch).fused.double()
                easy_BH, hard_BH = outputs
                easy_mean_BH, hard_mean_BH = (m.expand_as(h) for m, h in zip(means, outputs, strict=True))
                easy = fusion(easy_BH, hard_mean_BH).fused.double() - neither
                hard = fusion(easy_mean_BH, hard_BH).fused.double() - neither
                for name, part in (("easy", easy), ("hard", hard), ("joint", fused - neither - easy - hard)):
                    parts[name].append(part)
        return {name: _join(part) for name, part in parts.items()}

    def permute(
        self, order: NDArray[np.int64], on_pass: Callable[[], object]
    ) -> Iterator[tuple[tuple[str, str], Floats]]:
        """(``feature`` or ``branch``, its name) -> (n,) fused logits when it is that of the rows in ``order``."""
        sparse = {f.name: (f.name, f.length_name) if f.is_multi_valued else (f.name,) for f in self.schema.sparse}
        for name, group in (sparse | {name: (name,) for name in self.schema.dense_names}).items():
            permuted = {column: self.columns[column][order] for column in group}
            yield ("feature", name), _join(self.model(batch).fused for batch in self.batches(permuted))
            on_pass()
        for branch, logits in self._permute_branches(order).items():
            yield ("branch", branch), logits
        on_pass()

    def _permute_branches(self, order: NDArray[np.int64]) -> dict[str, Floats]:
        """Branch -> (n,) fused logits.

        The outputs are made anew rather than kept: with thousands of numbers a row there would be no room.
        """
        fusion, easy, hard = self.model.fusion, [], []
        others = self.batches({name: column[order] for name, column in self.columns.items()})
        with _inputs(fusion) as outputs:
            for batch, other in zip(self.batches(), others, strict=True):
                self.model(batch)
                easy_BH, hard_BH = outputs
                self.model(other)
                other_easy_BH, other_hard_BH = outputs
                easy.append(fusion(other_easy_BH, hard_BH).fused)
                hard.append(fusion(easy_BH, other_hard_BH).fused)
        return {"easy": _join(easy), "hard": _join(hard)}


def selection_gates(selection: nn.Module, streams: dict[str, Tensor], fields: tuple[str, ...]) -> Gates:
    """What a selection lets through; empty for one without gates.

    Args:
        streams: its input.
        fields: names of the F fields.
    """
    if isinstance(selection, Gate):
        g_B1 = selection.gate(streams["shared"].flatten(1)).sigmoid()
        return {"selection": (1, {"share of the easy stream": g_B1})}
    if isinstance(selection, MixtureOfExperts):
        x_BK = streams["shared"].flatten(1)
        shares = {"easy": selection.easy_gate(x_BK).softmax(dim=1), "hard": selection.hard_gate(x_BK).softmax(dim=1)}
        return {
            f"selection, {side} stream": (1, {f"expert {i + 1}": s[:, None] for i, s in enumerate(share.unbind(dim=1))})
            for side, share in shares.items()
        }
    if isinstance(selection, StreamGates):
        factors = {
            "easy": selection.easy_gate(streams["context_easy"]),
            "hard": selection.hard_gate(streams["context_hard"]),
        }
        return {
            f"selection, {side} stream": (
                2,
                dict(zip(fields, factor.unflatten(1, (len(fields), -1)).unbind(dim=1), strict=True)),
            )
            for side, factor in factors.items()
        }
    return {}


def fusion_gates(fusion: nn.Module, easy_BH: Tensor, hard_BH: Tensor) -> Gates:
    """Each branch's (each head's) share in a fusion's row-wise mixture; empty for one without."""
    if isinstance(fusion, Voting):
        votes_B2 = torch.cat([fusion.easy_vote(easy_BH), fusion.hard_vote(hard_BH)], dim=1)
        easy_B1, hard_B1 = (votes_B2 / fusion.temperature).softmax(dim=1).split(1, dim=1)
        return {"fusion": (1, {"easy": easy_B1, "hard": hard_B1})}
    if isinstance(fusion, MixtureOfHeads):
        first_B1, second_B1 = fusion.gate(torch.cat([easy_BH, hard_BH], dim=1)).softmax(dim=1).split(1, dim=1)
        return {"fusion": (1, {"head 1": first_B1, "head 2": second_B1})}
    return {}


def _fusion_weights(model: CTRModel) -> dict[str, float] | None:
    if not isinstance(model.fusion, WeightedSum):
        return None
    return dict(zip(BRANCHES, model.fusion.weight.tolist(), strict=True))


class _Spreads:
    """Weighted mean, deviation and histogram of gates, batch by batch: the gates of all rows would not fit."""

    def __init__(self) -> None:
        self._gates: dict[str, tuple[int, dict[str, tuple[Floats, Floats]]]] = {}

    def add(self, gates: Gates, weights_B: Tensor) -> None:
        """Take in a batch."""
        for name, (top, series) in gates.items():
            _, known = self._gates.setdefault(name, (top, {}))
            for key, values_BD in series.items():
                values = values_BD.double().numpy()
                weights = np.broadcast_to(weights_B.double().numpy()[:, None], values.shape)
                moments = np.array([np.sum(weights * values**power) for power in range(3)])
                histogram = np.histogram(values, NUM_BINS, (0, top), weights=weights)[0]
                old = known.get(key, (np.zeros(3), np.zeros(NUM_BINS)))
                known[key] = old[0] + moments, old[1] + histogram

    def describe(self) -> list[dict[str, Any]]:
        """Each gate for JSON; a histogram is of ``NUM_BINS`` equal bins from 0 to ``top`` and adds up to 1."""
        described = []
        for name, (top, known) in self._gates.items():
            series = {}
            for key, ((total, first, second), histogram) in known.items():
                mean = first / total
                deviation = max(0.0, second / total - mean**2) ** 0.5
                series[key] = {"mean": mean, "deviation": deviation, "histogram": (histogram / total).tolist()}
            described.append({"name": name, "top": top, "series": series})
        return described


@contextmanager
def _inputs(module: nn.Module) -> Iterator[list[Any]]:
    """A list that holds the arguments of the module's last call."""
    last: list[Any] = []

    def remember(_: nn.Module, arguments: tuple[Any, ...]) -> None:
        last[:] = arguments

    handle = module.register_forward_pre_hook(remember)
    try:
        yield last
    finally:
        handle.remove()


def _to_columns(batch: Batch, schema: FeatureSchema, rows: NDArray[np.int64]) -> Columns:
    """Some real rows of a batch; the way back from ``to_batch``."""
    columns: Columns = {"label": batch.labels.numpy()[rows], "weight": batch.weights.numpy()[rows]}
    for feature in schema.sparse:
        bags = batch.sparse_features[feature.name]
        ids = bags.values().numpy()
        if feature.is_multi_valued:
            lengths = bags.lengths().numpy()
            padded = np.zeros((len(lengths), feature.max_length), ids.dtype)
            padded[np.arange(feature.max_length) < lengths[:, None]] = ids
            columns[feature.length_name], ids = lengths[rows], padded
        columns[feature.name] = ids[rows]
    for i, name in enumerate(schema.dense_names):
        columns[name] = batch.dense_features[:, i].numpy()[rows]
    return columns


def _summarise(changes: list[Floats]) -> dict[str, float | None]:
    """Of (AUC, logloss) after a permutation less before, one a repeat."""
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
