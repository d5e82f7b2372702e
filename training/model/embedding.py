"""FieldEmbedding: all embeddings of the model in one module, which is the one to shard.

A feature may have several tables (easy and hard, first-order weights). They live in one TorchRec
``EmbeddingBagCollection``, but for those that sequences look up as well: an event's vector is not pooled, so these
live in an ``EmbeddingCollection`` for each stream and width. The blocks downstream only ever see stacked vectors.

Shapes: B rows, F fields (sparse features, then dense ones), D width of a field, N dense features, V rows of a table,
N events of all rows, K width of a sequence's parts side by side, E that of an event.
"""

import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torchrec import (
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
    JaggedTensor,
    KeyedJaggedTensor,
    KeyedTensor,
    PoolingType,
)
from torchrec.modules.embedding_modules import get_embedding_names_by_table

from features.schema import FeatureSchema, SparseFeature
from training.model.jagged import rows_of, sum_by

StreamName = Literal["easy", "hard", "shared", "first_order_easy", "first_order_hard", "context_easy", "context_hard"]
STREAMS: tuple[StreamName, ...] = get_args(StreamName)
"""Streams, the uses of an embedding: one encoder's vectors, both encoders' vectors, one encoder's first-order weights,
or the context that one encoder's gate reads (of some sparse features only)."""

FIRST_ORDER: tuple[StreamName, ...] = ("first_order_easy", "first_order_hard")

Streams = dict[StreamName, Tensor]
"""Stream -> (B, F, D) vectors; a stream the model does not use has D = 0."""

HISTORY_STREAMS: tuple[StreamName, ...] = ("easy", "hard", "shared")
"""Streams that have sequences: an encoder's vectors. First-order weights and contexts are of single features alone."""

PAD_MULTIPLE = 4
"""Divisor of the table widths that FBGEMM's fused kernels accept."""

_CHUNK_ROWS = 1 << 16
_COLLECTION = re.compile(r"(?:bags\.embedding_bags|sequences\.[^.]+\.embeddings)\.")
_TENSOR_OF_TABLE = re.compile(r"(?:^|\.)(?:embedding_bags|embeddings)\.([^.]+)\.")


class EventVectors(NamedTuple):
    """EventVectors: vectors of one sequence in one stream.

    Attributes:
        target_BK: those of the row's own values, the sequence's parts side by side.
        events_NE: those of the events, row by row and newest first; a gap's vector last, where there is one.
        lengths_B: number of each row's events.
    """

    target_BK: Tensor
    events_NE: Tensor
    lengths_B: Tensor


_Events = Mapping[str, JaggedTensor]

EventStreams = dict[StreamName, dict[str, EventVectors]]
"""Stream -> sequence -> its vectors, for the streams and sequences that a model has."""


class ModelError(ValueError):
    """The model the config asks for cannot be built on this schema."""


@dataclass(frozen=True)
class EmbeddingTable:
    """EmbeddingTable: ``num_embeddings`` rows of ``width`` numbers, stored ``padded_width`` wide.

    Attributes:
        name: unique in the model, ``TABLE__STREAM``.
        features: features whose ids are looked up in it, in the schema's order; a table of gaps has none.
        stream: stream of the model that it feeds.
        num_embeddings: rows.
        width: numbers of a row.
        padded_width: numbers of a row as it is stored.
        init_std: standard deviation of the rows at the start.
        seed: seed of the rows at the start.
        sequences: keys of the sequences whose events are looked up in it.
    """

    name: str
    features: tuple[str, ...]
    stream: StreamName
    num_embeddings: int
    width: int
    padded_width: int
    init_std: float
    seed: int
    sequences: tuple[str, ...] = ()

    @property
    def keys(self) -> tuple[str, ...]:
        """List what is looked up in it: features, then sequences' keys."""
        return (*self.features, *self.sequences)

    @property
    def feature(self) -> str:
        """Return the first of what is looked up in it."""
        return self.keys[0]

    @property
    def collection(self) -> str:
        """Return the path of the collection that holds the table, inside its ``FieldEmbedding``."""
        return f"sequences.{self.stream}_{self.width}" if self.sequences else "bags"

    @property
    def shared_name(self) -> str:
        """Return the table's name in the schema, which a feature's tables of all streams share."""
        return self.name.removesuffix(f"__{self.stream}")

    def tensor_name(self, part: str = "weight") -> str:
        """Name one of the table's tensors as the ``state_dict`` of its ``FieldEmbedding`` does."""
        return f"{self.collection}.{'embeddings' if self.sequences else 'embedding_bags'}.{self.name}.{part}"

    def initialize(self, weight_VD: Tensor, row_offset: int = 0, column_offset: int = 0) -> None:
        """Fill a table, or the shard of it whose first element is at the offsets: N(0, init_std), row 0 and pad 0.

        A number depends on (seed, table name, row, column) alone, so any sharding starts from the same table.
        """
        rows, columns = weight_VD.shape
        width = max(0, min(self.width - column_offset, columns))
        with torch.no_grad():
            weight_VD.zero_()
            for first in range(row_offset - row_offset % _CHUNK_ROWS, row_offset + rows, _CHUNK_ROWS):
                chunk = self._chunk(first // _CHUNK_ROWS)[:, column_offset : column_offset + width]
                start, stop = max(first, row_offset), min(first + len(chunk), row_offset + rows)
                weight_VD[start - row_offset : stop - row_offset, :width] = chunk[start - first : stop - first]

    def _chunk(self, index: int) -> Tensor:
        rows = min(_CHUNK_ROWS, self.num_embeddings - index * _CHUNK_ROWS)
        chunk = torch.empty(rows, self.width).normal_(0, self.init_std, generator=self._generator(f"chunk {index}"))
        if index == 0:
            chunk[0] = 0
        return chunk

    def _generator(self, part: str) -> torch.Generator:
        return torch.Generator().manual_seed(stable_seed(self.seed, self.name, part))


def table_of(tensor: str) -> str | None:
    """Name the table that a tensor belongs to, or its optimizer's state; None for any other tensor.

    Args:
        tensor: its name in a ``state_dict`` of a model or an optimizer, or in a checkpoint, under whatever wraps the
            model.
    """
    match = _TENSOR_OF_TABLE.search(tensor)
    return match[1] if match else None


def without_collection(tensor: str) -> str:
    """Name a table's tensor without the collection that holds the table, which a sequence more or less changes."""
    return _COLLECTION.sub("", tensor)


def stable_seed(seed: int, *names: str) -> int:
    """Compute a 63-bit seed that is equal in every process, unlike Python's ``hash``."""
    digest = hashlib.sha256("\0".join((str(seed), *names)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def declare_tables(
    schema: FeatureSchema,
    num_embeddings: Mapping[str, int],
    widths: Mapping[StreamName, int],
    features: Mapping[StreamName, tuple[str, ...]],
    *,
    embedding_dim: int,
    init_std: float,
    seed: int,
    pad_tables: bool,
    gaps: Collection[str] = (),
) -> tuple[EmbeddingTable, ...]:
    """Declare the tables of a model, named ``TABLE__STREAM``: stream by stream, in the order of their first features.

    Raises:
        ModelError: a feature has no number of rows, or features that share a table have different ones.
    """
    gap_keys = {s.name: s.gap_column for s in schema.sequence if s.gap_column is not None and s.name in gaps}
    missing = [name for name in (*schema.sparse_names, *gap_keys.values()) if num_embeddings.get(name, 0) < 1]
    if missing:
        raise ModelError(f"num_embeddings has no rows for: {', '.join(missing)}")
    unknown = sorted({name for names in features.values() for name in names} - set(schema.sparse_names))
    if unknown:
        raise ModelError(f"a gate's context names features that are not sparse ones: {', '.join(unknown)}")
    multiple = PAD_MULTIPLE if pad_tables else 1
    tables = []

    def declare(
        name: str, names: tuple[str, ...], stream: StreamName, rows: int, width: int, keys: tuple[str, ...]
    ) -> EmbeddingTable:
        padded_width = -(-width // multiple) * multiple
        return EmbeddingTable(f"{name}__{stream}", names, stream, rows, width, padded_width, init_std, seed, keys)

    for stream, stream_width in widths.items():
        has_sequences = stream in HISTORY_STREAMS and stream not in features
        for name, shared in schema.tables.items() if stream_width else ():
            names = tuple(f.name for f in shared if f.name in features.get(stream, schema.sparse_names))
            if not names:
                continue
            if len(sizes := {num_embeddings[feature.name] for feature in shared}) > 1:
                raise ModelError(f"{', '.join(names)} share the table {name!r}, but it would have {sizes} rows")
            width = own_width(shared[0], stream, stream_width, embedding_dim)
            keys = _sequence_keys(schema, names) if has_sequences else ()
            tables.append(declare(name, names, stream, sizes.pop(), width, keys))
        for key in gap_keys.values() if stream_width and has_sequences else ():
            tables.append(declare(key, (), stream, num_embeddings[key], stream_width, (key,)))
    return tuple(tables)


def _sequence_keys(schema: FeatureSchema, features: Collection[str]) -> tuple[str, ...]:
    """List the keys of the sequences' parts that are looked up with these features, in the schema's order."""
    return tuple(part.name for part in schema.parts if part.part in features)


def own_width(feature: SparseFeature, stream: StreamName, stream_width: int, embedding_dim: int) -> int:
    """Width of a feature's table in a stream: the stream's, or in proportion to the feature's ``embedding_dim``.

    A first-order weight is one number, whatever the feature's width.
    """
    if feature.embedding_dim is None or stream in FIRST_ORDER:
        return stream_width
    return max(1, stream_width * feature.embedding_dim // embedding_dim)


class FieldEmbedding(nn.Module):
    """FieldEmbedding: ids and floats of a batch -> vectors of every stream.

    One row of a schema with a single-valued ``user``, a multi-valued ``genres`` and a dense ``age``::

        user    [7]         user__hard[7]                             field 0
        genres  [4, 9]      mean(genres__hard[4], genres__hard[9])    field 1    (an empty bag is the zero vector)
        age     0.5         0.5 * dense_vectors.hard[0]               field 2

    Features may share a table. A table that is not as wide as its stream's fields, because its features have an
    ``embedding_dim`` of their own, has a matrix (width, D) that its vectors are multiplied by, as in mixed-dimension
    embeddings (arXiv 1909.11810); it starts as N(0, 1 / width), so that projected vectors are as large as others.

    Tables add up a bag's rows, and means are made here: TorchRec's own, of tables cut by rows, divide what other
    features looked up as well (``_create_mean_pooling_divisor``).

    Args:
        schema: fields and their order.
        num_embeddings: sparse feature -> rows of each of its tables.
        widths: stream -> width of a field; streams that are absent or 0 get no table.
        embedding_dim: width that a feature's own ``embedding_dim`` is in proportion to; None: the widest stream's.
        features: stream -> the sparse features it is of, without dense ones; a stream that is absent has all fields.
        init_std: standard deviation of a table's rows at the start.
        seed: the tables' start is a function of it.
        gaps: sequences whose events have a vector of their gap as well.
        pad_tables: store tables in widths that are multiples of PAD_MULTIPLE; the pad stays 0 and is cut off.
        device: device of the tables. ``meta``: ``parallelize`` makes them later; dense vectors are then made on CPU.

    Raises:
        ModelError: a feature has no number of rows, or features that share a table have different ones.
    """

    def __init__(
        self,
        schema: FeatureSchema,
        num_embeddings: Mapping[str, int],
        widths: Mapping[StreamName, int],
        *,
        embedding_dim: int | None = None,
        features: Mapping[StreamName, tuple[str, ...]] | None = None,
        init_std: float,
        gaps: Collection[str] = (),
        seed: int = 0,
        pad_tables: bool = False,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        self.widths: dict[StreamName, int] = {stream: widths.get(stream, 0) for stream in STREAMS}
        self.num_fields = len(schema.sparse) + len(schema.dense)
        self.mean_pooled = frozenset(f.name for f in schema.sparse if f.kind.pooling(f) == "mean")
        self.tables = declare_tables(
            schema,
            num_embeddings,
            self.widths,
            features or {},
            embedding_dim=embedding_dim or max(self.widths.values()),
            init_std=init_std,
            seed=seed,
            pad_tables=pad_tables,
            gaps=gaps,
        )
        is_meta = device is not None and device.type == "meta"
        pooled = [table for table in self.tables if not table.sequences]
        configs = [EmbeddingBagConfig(**_config_values(t, is_meta=is_meta), pooling=PoolingType.SUM) for t in pooled]
        self.bags = EmbeddingBagCollection(tables=configs, device=device)
        self.sequences = nn.ModuleDict()
        for path in dict.fromkeys(table.collection for table in self.tables if table.sequences):
            own = [table for table in self.tables if table.collection == path]
            of = [EmbeddingConfig(**_config_values(table, is_meta=is_meta)) for table in own]
            self.sequences[path.rpartition(".")[2]] = EmbeddingCollection(tables=of, device=device)
        self.projections = nn.ParameterDict()
        for table in self.tables:
            if table.width != (width := self.widths[table.stream]):
                self.projections[table.name] = _projection(table, width, seed)
        self.features, self._groups = self._order(schema, configs)
        self._histories = self._order_histories(schema)
        self.dense_vectors = nn.ParameterDict()
        for stream in self._groups:
            if schema.dense and stream not in (features or {}):
                self.dense_vectors[stream] = _dense_vectors(len(schema.dense), self.widths[stream], seed, stream)

    def forward(
        self, sparse_features: KeyedJaggedTensor, dense_features_BN: Tensor, num_rows: int
    ) -> tuple[Streams, EventStreams]:
        """Look up; the first ``num_rows`` rows of every stream and history, so that no block sees padding."""
        groups = [run.keys for group in self._groups.values() for run in group if not run.table.sequences]
        pooled = iter(KeyedTensor.regroup([self.bags(sparse_features)], groups) if groups else ())
        vectors = {f"sequences.{name}": collection(sparse_features) for name, collection in self.sequences.items()}
        num_ids = self._num_ids(sparse_features, num_rows)
        streams: Streams = {s: dense_features_BN.new_zeros(num_rows, self.num_fields, 0) for s in STREAMS}
        histories: EventStreams = {}
        for stream, group in self._groups.items():
            parts = [
                self._fields(
                    next(pooled)[:num_rows] if not run.table.sequences else _pool(run, vectors, num_rows), run, num_ids
                )
                for run in group
            ]
            if stream in self._histories:
                histories[stream] = self._look_back(stream, parts, vectors, num_rows)
            if stream in self.dense_vectors:
                parts.append(dense_features_BN[:num_rows, :, None] * self.dense_vectors[stream])
            streams[stream] = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        return streams, histories

    @property
    def sequence_keys(self) -> dict[str, tuple[str, ...]]:
        """Map each sequence to the keys that are looked up, in the order of an event's vectors, in any stream."""
        return {name: tuple(of.tables) for name, of in next(iter(self._histories.values()), {}).items()}

    @property
    def collections(self) -> list[nn.Module]:
        """List the collections of tables that are looked up in; ``bags`` may have no table."""
        has_bags = any(not table.sequences for table in self.tables)
        return [*([self.bags] if has_bags else []), *self.sequences.values()]

    def _look_back(
        self, stream: StreamName, parts: Sequence[Tensor], vectors: Mapping[str, _Events], num_rows: int
    ) -> dict[str, EventVectors]:
        """Bring together each sequence's events and the fields of its target."""
        fields_BFD = parts[0] if len(parts) == 1 else torch.cat([*parts], dim=1)
        found = {}
        for name, history in self._histories[stream].items():
            looked_up = [vectors[table.collection][key] for key, table in history.tables.items()]
            events = [
                self._projected(jagged.values()[:, : table.width], table)
                for jagged, table in zip(looked_up, history.tables.values(), strict=True)
            ]
            target_BK = fields_BFD[:, history.fields].flatten(1)
            found[name] = EventVectors(target_BK, _side_by_side(events), looked_up[0].lengths()[:num_rows])
        return found

    def _order(
        self, schema: FeatureSchema, configs: list[EmbeddingBagConfig]
    ) -> tuple[dict[StreamName, tuple[str, ...]], dict[StreamName, list["_Run"]]]:
        """Order each stream's features as in the schema, and group them into runs that are looked up in one way."""
        keys = dict(
            zip((c.name for c in configs), get_embedding_names_by_table(configs) if configs else [], strict=True)
        )
        found: dict[StreamName, dict[str, tuple[str, EmbeddingTable]]] = {}
        for table in self.tables:
            names = keys.get(table.name, table.features)
            found.setdefault(table.stream, {}).update(
                {feature: (key, table) for feature, key in zip(table.features, names, strict=True)}
            )
        jagged = frozenset(feature.name for feature in schema.jagged.values())
        features: dict[StreamName, tuple[str, ...]] = {}
        groups: dict[StreamName, list[_Run]] = {}
        for stream, of in found.items():
            features[stream] = tuple(name for name in schema.sparse_names if name in of)
            ways = [
                (name, of[name][1].collection, self._projection_of(of[name][1]), name in self.mean_pooled)
                for name in features[stream]
            ]
            runs = [[name for name, *_ in run] for _, run in groupby(ways, lambda way: way[1:])]
            groups[stream] = [
                _Run(
                    tuple(names),
                    [of[name][0] for name in names],
                    of[names[0]][1],
                    names[0] in self.mean_pooled,
                    jagged.intersection(names),
                )
                for names in runs
            ]
        return features, groups

    def _order_histories(self, schema: FeatureSchema) -> dict[StreamName, dict[str, "_Sequence"]]:
        """Find each stream's tables of each sequence's keys, and the fields of its target."""
        tables: dict[StreamName, dict[str, EmbeddingTable]] = {}
        for table in self.tables:
            for key in table.sequences:
                tables.setdefault(table.stream, {})[key] = table
        found: dict[StreamName, dict[str, _Sequence]] = {}
        for stream, of in tables.items():
            found[stream] = {
                sequence.name: _Sequence(
                    {key: of[key] for key in sequence.keys if key in of},
                    [self.features[stream].index(part) for part in sequence.parts],
                )
                for sequence in schema.sequence
            }
        return found

    def _projection_of(self, table: EmbeddingTable) -> str | None:
        return table.name if table.name in self.projections else None

    def _num_ids(self, sparse_features: KeyedJaggedTensor, num_rows: int) -> dict[str, Tensor]:
        """Count each mean-pooled feature's ids, (num_rows,), at least 1: the mean of no rows is their sum, 0."""
        if not self.mean_pooled:
            return {}
        lengths_FB = sparse_features.lengths().view(len(sparse_features.keys()), -1)[:, :num_rows].clamp(min=1)
        fields = enumerate(sparse_features.keys())
        return {name: lengths_FB[f] for f, name in fields if name in self.mean_pooled}

    def _fields(self, vectors_BK: Tensor, run: "_Run", num_ids: dict[str, Tensor]) -> Tensor:
        """Look-ups next to each other -> (B, F, D), without their pads."""
        vectors_BFD = vectors_BK.unflatten(1, (len(run.keys), -1))[..., : run.table.width]
        if run.is_mean:
            vectors_BFD = vectors_BFD / torch.stack([num_ids[name] for name in run.features], dim=1)[..., None]
        return self._projected(vectors_BFD, run.table)

    def _projected(self, vectors: Tensor, table: EmbeddingTable) -> Tensor:
        name = self._projection_of(table)
        return vectors if name is None else vectors @ self.projections[name]


def _pool(run: "_Run", vectors: Mapping[str, _Events], num_rows: int) -> Tensor:
    """Sum up the vectors of each row's ids: (num_rows, F * D) of the features of a run, next to each other."""
    found = [vectors[run.table.collection][key] for key in run.keys]
    parts = [
        _sum_up(jagged, num_rows) if name in run.jagged else jagged.values()
        for name, jagged in zip(run.keys, found, strict=True)
    ]
    return _side_by_side(parts)


def _side_by_side(parts: list[Tensor]) -> Tensor:
    """Lay columns next to each other; a single part is not copied."""
    return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]


def _sum_up(vectors: JaggedTensor, num_rows: int) -> Tensor:
    values = vectors.values()
    return sum_by(rows_of(vectors.lengths()[:num_rows], len(values)), values, num_rows)


@dataclass(frozen=True)
class _Run:
    """Neighbouring features of a stream that are looked up in one way.

    Attributes:
        features: their names.
        keys: names of their look-ups.
        table: table of the first of them, whose width and projection are those of all.
        is_mean: divide sums by the number of ids.
        jagged: those of them with any number of ids a row.
    """

    features: tuple[str, ...]
    keys: list[str]
    table: EmbeddingTable
    is_mean: bool
    jagged: frozenset[str]


@dataclass(frozen=True)
class _Sequence:
    """Look-ups of a sequence in a stream.

    Attributes:
        tables: key -> the table its events are looked up in.
        fields: places of the target's parts among the stream's fields.
    """

    tables: dict[str, EmbeddingTable]
    fields: list[int]


def _leave_alone(_shard: Tensor) -> None:
    """TorchRec asks for a shard's first numbers without telling its place; ``parallelize`` knows it, and gives them."""


def _config_values(table: EmbeddingTable, *, is_meta: bool) -> dict[str, Any]:
    """Describe a table as the configs of both kinds of TorchRec's collections do."""
    return {
        "name": table.name,
        "feature_names": list(table.keys),
        "num_embeddings": table.num_embeddings,
        "embedding_dim": table.padded_width,
        "init_fn": _leave_alone if is_meta else table.initialize,
    }


def _projection(table: EmbeddingTable, width: int, seed: int) -> nn.Parameter:
    """(table's width, field's width), which keeps the size of random vectors."""
    generator = torch.Generator().manual_seed(stable_seed(seed, "projection", table.name))
    return nn.Parameter(torch.empty(table.width, width).normal_(0, table.width**-0.5, generator=generator))


def _dense_vectors(num_dense: int, width: int, seed: int, stream: StreamName) -> nn.Parameter:
    """One vector a dense feature, each a bias-free Linear(1 -> D), Xavier-normal as every Linear here."""
    generator = torch.Generator().manual_seed(stable_seed(seed, "dense_vectors", stream))
    std = (2 / (1 + width)) ** 0.5
    return nn.Parameter(torch.empty(num_dense, width).normal_(0, std, generator=generator))
