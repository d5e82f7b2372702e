"""Transplant: what a model takes over from one that was trained with other features.

Tables go by name and by value: a row is that of the same value, wherever its id is now. Of the dense net, whatever does
not depend on the fields is taken over whole; of a weight that has a place for each field, the places of the fields that
are in both. What is new is as an untrained model has it, and its optimizer state is empty.

Shapes: V rows of a table, F fields.
"""

import re
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from features.fingerprint import departures
from features.learnt import Learnt
from features.schema import VOCABULARY_KINDS, DenseFeature, FeatureSchema, SparseFeature
from training.config import ModelConfig, VectorsConfig
from training.model.ctr_model import CTRModel
from training.model.embedding import table_of, without_collection
from training.model.field_axes import field_major
from training.sharding.checkpoint_reader import CheckpointError
from training.sharding.tables import parts_of

_PROBE = "probe__"
"""Name of one more field, of a model that is built to see which weights grow with the fields."""

_OF_SEQUENCE = re.compile(r"(?:^|\.)(?:histories\.encoders\.([^.]+)__[a-z]+\.|dwell_weights\.([^.]+)$)")
"""Encoder of a sequence in a stream, or the weights of its events' dwell times."""

_VECTORS = re.compile(r"(?:^|\.)vectors\.(?:projections|missing)\.(.+)__(?:easy|hard|shared)(?:\.|$)")
"""Weights of fixed vectors in a stream."""

Places = tuple[Tensor, Tensor]
"""Places along an axis of the old weights, and of the new ones that take their numbers."""


@dataclass(frozen=True)
class Knowledge:
    """Knowledge: the meaning of a model's ids and fields.

    Attributes:
        schema: its features.
        learnt: its vocabularies, boundaries and moments.
        vectors: its fixed vectors; None: those of the config of both models.
    """

    schema: FeatureSchema
    learnt: Learnt
    vectors: Mapping[str, VectorsConfig] | None = None

    @property
    def fields(self) -> list[str]:
        """Names of the fields, in the model's order."""
        return [f.name for f in (*self.schema.sparse, *self.schema.dense)]

    @property
    def names(self) -> list[str]:
        """Names of the features, then of the sequences."""
        return self.fields + [sequence.name for sequence in self.schema.sequence]

    def num_embeddings(self) -> dict[str, int]:
        """Count the rows of each sparse feature's table."""
        return {f.name: self.learnt.num_embeddings(f) for f in self.schema.id_features}


@dataclass(frozen=True)
class Transplant:
    """A model's features and those of the one that it begins from.

    Attributes:
        before: the old model's.
        now: the new model's.
        config: blocks of both.
    """

    before: Knowledge
    now: Knowledge
    config: ModelConfig
    _axes: dict[str, list["_Axis"]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def kept(self) -> list[str]:
        """Features and sequences that mean the same in both models."""
        before = _by_name(self.before.schema)
        kept = [name for name, feature in _by_name(self.now.schema).items() if self._is_same(before.get(name), feature)]
        parts_before, parts = self._vector_parts(self.before, kept), self._vector_parts(self.now, kept)
        return kept + [
            s.name
            for s in self.now.schema.sequence
            if s in self.before.schema.sequence
            and {*s.parts} <= {*kept}
            and parts[s.name] == parts_before[s.name] is not None
        ]

    @property
    def kept_vectors(self) -> list[str]:
        """Fixed vectors that mean the same in both models: of a feature that does, from the same kind of file."""
        return self._same_vectors(self.kept)

    def _same_vectors(self, kept: Collection[str]) -> list[str]:
        before, now = (self._vectors_of(knowledge) for knowledge in (self.before, self.now))
        return [
            name
            for name, own in now.items()
            if own.feature in kept and name in before and vectors_meaning(before[name]) == vectors_meaning(own)
        ]

    def _vector_parts(self, knowledge: Knowledge, kept: Collection[str]) -> dict[str, list[str] | None]:
        """Map each sequence to the fixed vectors of its events; None: some are not the same in both models."""
        same, found = self._same_vectors(kept), {}
        for sequence in knowledge.schema.sequence:
            own = [n for n, v in self._vectors_of(knowledge).items() if v.in_sequences and v.feature in sequence.parts]
            found[sequence.name] = own if {*own} <= {*same} else None
        return found

    def _vectors_of(self, knowledge: Knowledge) -> dict[str, VectorsConfig]:
        """Fixed vectors of a model, of features that it has."""
        vectors = self.config.vectors if knowledge.vectors is None else knowledge.vectors
        return {name: own for name, own in vectors.items() if own.feature in knowledge.schema.sparse_names}

    def describe(self) -> str:
        """Say which features, sequences and fixed vectors are added, dropped and changed, and what begins anew."""
        before, now, kept = self.before.names, self.now.names, self.kept
        parts = {
            "added": [name for name in now if name not in before],
            "dropped": [name for name in before if name not in now],
            "changed": [name for name in now if name in before and name not in kept],
        }
        said = [f"{word} {', '.join(names)}" for word, names in parts.items() if names]
        if gone := [name for name in self._vectors_of(self.before) if name not in self._vectors_of(self.now)]:
            said.append(f"dropped vectors {', '.join(gone)}")
        if not said:
            is_grown = self.now.learnt.extends(self.before.learnt)
            said = ["the same features" if is_grown else "the same features, with other vocabularies"]
        what, anew = "; ".join(said), self._anew()
        ending = f"; begins anew: {', '.join(anew)}" if anew else ""
        return f"begins with what another model knows of {len(kept)} of {len(now)} features: {what}{ending}"

    def _anew(self) -> list[str]:
        """Name the encoders of sequences and the vectors that both models have, and that take nothing over."""
        kept, same, found = {*self.kept}, self.kept_vectors, []
        sequences = {s.name: s for s in self.before.schema.sequence}
        for sequence in self.now.schema.sequence:
            old = sequences.get(sequence.name)
            if old is not None and sequence.name not in kept:
                own, theirs = (f"of {', '.join(s.parts)}" for s in (sequence, old))
                was = f", before {theirs}" if theirs != own else ""
                found.append(f"encoders of sequence {sequence.name} ({own}{was})")
        before, now = (self._vectors_of(knowledge) for knowledge in (self.before, self.now))
        for name, vectors in now.items():
            if name not in same:
                own, theirs = f"{vectors.dimension} numbers", before.get(name)
                was = "none" if theirs is None else f"{theirs.dimension} of {theirs.feature}"
                found.append(f"matrices of vectors {name} ({own} of {vectors.feature}, before {was})")
        return found

    def targets(self, saved: Mapping[str, Any], state: Mapping[str, Any]) -> Iterator[tuple[str, str, "Taken"]]:
        """List the tensors of a new model's state that take something over.

        Args:
            saved: name of a tensor in the checkpoint -> its shape.
            state: name -> tensor of the new model, weights and optimizer state.

        Yields:
            The tensor's name, the old one's, and which of its places take what.

        Raises:
            CheckpointError: a weight has another shape for another reason than the features.
        """
        axes, kept, same_vectors = self._dense_axes(), {*self.kept}, self.kept_vectors
        old_names = {without_collection(name): name for name in saved}
        for name, value in state.items():
            old_name = old_names.get(without_collection(name))
            if old_name is None or not parts_of(value):
                continue
            if (own := _OF_SEQUENCE.search(name)) and (own[1] or own[2]) not in kept:
                continue
            if (vectors := _VECTORS.search(name)) and vectors[1] not in same_vectors:
                continue
            before, now = tuple(saved[old_name]), tuple(value.size())
            table, weight = table_of(name), name.removeprefix("model.")
            if table is not None:
                rows = self._rows(table)
                if rows is not None and not before and not now:  # how many steps an optimizer has done
                    yield name, old_name, Taken(())
                elif rows is not None and before[:1] + now[:1] == rows.sizes and before[1:] == now[1:]:
                    yield name, old_name, Taken((rows.places, *map(_all, now[1:])))
                elif rows is not None and name.startswith("model."):
                    raise _misfit(name, before, now)
                continue
            if not name.startswith("model."):
                weight = next((w for w in axes if name.startswith(f"optimizer.state.{w}.")), "")
            if not now and not before:
                yield name, old_name, Taken(())
            elif weight in axes and len(axes[weight]) == len(now):
                if len(before) != len(now):
                    raise _misfit(name, before, now)
                found = [axis.match(*sizes) for axis, *sizes in zip(axes[weight], before, now, strict=True)]
                places = tuple(pairs for pairs in found if pairs is not None)
                if len(places) < len(now):
                    raise _misfit(name, before, now)
                yield name, old_name, Taken(places)

    def _is_same(self, before: SparseFeature | DenseFeature | None, now: SparseFeature | DenseFeature) -> bool:
        if before is None or _meaning(before) != _meaning(now):
            return False
        if _encoding_kind(now) != "quantiles":
            return True
        return self.before.learnt.boundaries[now.name] == self.now.learnt.boundaries[now.name]

    def _rows(self, table: str) -> "_Rows | None":
        """Pair the rows of a table, ``TABLE__STREAM``, by what they stand for; None: the old model has none like it."""
        name, kept = table.rpartition("__")[0], self.kept
        old = {f.name for f in self.before.schema.tables.get(name, ())}
        common = [f for f in self.now.schema.tables.get(name, ()) if f.name in old and f.name in kept]
        if not common:
            return None
        feature = common[0]
        old_rows, new_rows = (k.learnt.num_embeddings(feature) for k in (self.before, self.now))
        sizes = (old_rows, new_rows)
        if feature.encoding.kind not in VOCABULARY_KINDS:
            return _Rows(sizes, _all(new_rows))
        ids = [knowledge.learnt.ids_of(feature.name) for knowledge in (self.before, self.now)]
        pairs = [(id_, ids[1][token]) for token, id_ in ids[0].items() if token in ids[1]]
        pairs += [(0, 0), (self.before.learnt.oov_id(feature.name), self.now.learnt.oov_id(feature.name))]
        return _Rows(sizes, _places(pairs))

    def _dense_axes(self) -> dict[str, list["_Axis"]]:
        """Describe each axis of the weights of the dense net: by field where it grows with their number."""
        if self._axes:
            return self._axes
        schema = self.now.schema
        larger = replace(self.now, schema=replace(schema, dense=(*schema.dense, DenseFeature(_PROBE))))
        old, model, probe = (self._net(knowledge) for knowledge in (self.before, self.now, larger))
        grown = probe.state_dict()
        for name, weight in model.state_dict().items():
            if table_of(name) is None:
                self._axes[name] = [
                    self._axis((old, model, probe), name, axis) if size != grown[name].shape[axis] else _Axis()
                    for axis, size in enumerate(weight.shape)
                ]
        return self._axes

    def _net(self, knowledge: Knowledge) -> CTRModel:
        names = {sequence.name for sequence in knowledge.schema.sequence}
        encoders = {name: encoder for name, encoder in self.config.sequences.items() if name in names}
        config = replace(self.config, vectors=self._vectors_of(knowledge), sequences=encoders)
        return CTRModel(knowledge.schema, knowledge.num_embeddings(), config, device="meta")

    def _axis(self, models: tuple[CTRModel, CTRModel, CTRModel], name: str, axis: int) -> "_Axis":
        old, model, probe = models
        kept, same_vectors, sides = {*self.kept}, self.kept_vectors, enumerate((self.before, self.now))
        block, _, parameter = name.partition(".")
        is_of_dense = block == "embedding"  # the vectors of dense features
        fields = [
            [f if f in kept else (f, side) for f in ([d.name for d in k.schema.dense] if is_of_dense else k.fields)]
            + ([] if is_of_dense else [("vectors", n, 0 if n in same_vectors else side) for n in net.vectors.names])
            + ([] if is_of_dense else [(of, n, 0 if of in kept else side) for of, n in net.histories.fields])
            for (side, k), net in zip(sides, (old, model), strict=True)
        ]
        if is_of_dense:
            return _Axis(tuple(fields), field_major)
        if block == "fusion" and not parameter.startswith(("easy_", "hard_")):
            # Both encoders' outputs side by side, of which one may have a place for each field and the other not.
            outputs = [(m.easy_encoder.output_dim, m.hard_encoder.output_dim) for m in (old, model)]
            if model.state_dict()[name].shape[axis] == sum(outputs[1]):
                grows = [
                    m[0].output_dim != m[1].output_dim
                    for m in ((model.easy_encoder, probe.easy_encoder), (model.hard_encoder, probe.hard_encoder))
                ]
                return _Axis(tuple(fields), partial(_side_by_side, {sum(widths): widths for widths in outputs}, grows))
        part: Any = getattr(model, block)
        return _Axis(tuple(fields), partial(part.axis_labels, parameter, axis))


@dataclass(frozen=True)
class Taken:
    """Taken: places of a tensor that take numbers of another one, axis by axis."""

    places: tuple[Places, ...]

    @torch.no_grad()
    def fill(self, value: Any, old: Tensor) -> None:
        """Take over what ``old``, the whole old tensor, has for ``value``, which may be sharded."""
        for part, offsets in parts_of(value):
            self._fill(part, old, offsets)

    def _fill(self, part: Tensor, old: Tensor, offsets: Sequence[int]) -> None:
        if not self.places:
            part.copy_(old)
            return
        theirs, ours = [], []
        for axis, (before, now) in enumerate(self.places):
            inside = (now >= offsets[axis]) & (now < offsets[axis] + part.shape[axis])
            shape = [-1 if other == axis else 1 for other in range(part.dim())]
            theirs.append(before[inside].view(shape))
            ours.append((now[inside] - offsets[axis]).view(shape).to(part.device))
        part[tuple(ours)] = old[tuple(theirs)].to(part.device)


@dataclass(frozen=True)
class _Rows:
    """Rows of a table in both models, by what they stand for."""

    sizes: tuple[int, int]
    places: Places


@dataclass(frozen=True)
class _Axis:
    """Axis of a weight; without labels it does not depend on the fields."""

    names: tuple[Sequence[Hashable], ...] = ()
    labels: Callable[[int, Sequence[Hashable]], list[Hashable]] | None = None

    def match(self, before: int, now: int) -> Places | None:
        """Pair the places of an axis; None: it should be of one size and is not."""
        if self.labels is None:
            return _all(now) if before == now else None
        old, new = (self.labels(size, names) for size, names in zip((before, now), self.names, strict=True))
        places = {label: place for place, label in enumerate(old)}
        pairs = [(places[label], place) for place, label in enumerate(new) if label in places]
        return _places(pairs)


def _side_by_side(
    outputs: Mapping[int, tuple[int, int]], grows: Sequence[bool], size: int, fields: Sequence[Hashable]
) -> list[Hashable]:
    """Label both encoders' outputs side by side.

    Args:
        outputs: width of both together -> width of each.
        grows: whether each has a place for each field.
        size: width of both together.
        fields: names of the fields.
    """
    labels: list[Hashable] = []
    for side, (width, is_by_field) in enumerate(zip(outputs[size], grows, strict=True)):
        labels += [(side, label) for label in (field_major(width, fields) if is_by_field else range(width))]
    return labels


def _places(pairs: Sequence[tuple[int, int]]) -> Places:
    places = torch.tensor(pairs, dtype=torch.long).view(-1, 2)
    return places[:, 0], places[:, 1]


def _all(size: int) -> Places:
    return torch.arange(size), torch.arange(size)


def _by_name(schema: FeatureSchema) -> dict[str, SparseFeature | DenseFeature]:
    return {f.name: f for f in (*schema.sparse, *schema.dense)}


def _meaning(feature: SparseFeature | DenseFeature) -> Any:
    """Describe how values become ids or floats; which of them a vocabulary takes in is no part of it."""
    tree, kind = departures(feature), _encoding_kind(feature)
    if kind in VOCABULARY_KINDS:
        tree["encoding"] = kind
    return type(feature).__name__, tree


def vectors_meaning(vectors: VectorsConfig) -> tuple[Any, ...]:
    """Describe what a projection of fixed vectors depends on; a file that has grown is of the same meaning."""
    return vectors.feature, vectors.dimension, vectors.normalise, vectors.in_sequences


def _encoding_kind(feature: SparseFeature | DenseFeature) -> str | None:
    """Return the kind of a feature's encoding; None: it is a number as it is."""
    return getattr(getattr(feature, "encoding", None), "kind", None)


def _misfit(name: str, before: tuple[int, ...], now: tuple[int, ...]) -> CheckpointError:
    return CheckpointError(
        f"{name} has the shape {before} in the checkpoint and {now} in this model, and not because of other features: "
        "a warm start needs the same training.model"
    )
