"""FrozenVectors: fixed vectors of values, such as of text or images, as more fields and more parts of events.

QIN (arXiv 2504.17699) has vectors of items in target and history, AdSEE (arXiv 2309.08159) vectors of images; both
project them to a field's width.

Shapes: B rows, N events of all rows, W numbers of a fixed vector, V rows of a table, D width of a field, F fields.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchrec import KeyedJaggedTensor

from features.schema import FeatureSchema
from features.vector_source import find_vector_feature
from training.config import VectorsConfig
from training.model.embedding import EventStreams, EventVectors, ModelError, StreamName, Streams, stable_seed

if TYPE_CHECKING:  # it needs pyarrow
    from features.vector_table import VectorTable


class FrozenVectors(nn.Module):
    """Field v P of a value with the vector v, and a learnt vector m, zeros at the start, of a value without one.

    P (W, D) and m (D) are a stream's own, and those of its events too. The tables of vectors are buffers that a
    ``state_dict`` leaves out: checkpoints would hold them again and again.

    Args:
        configs: name -> vectors.
        schema: the features.
        num_embeddings: sparse feature -> rows of its tables.
        widths: stream -> width D of a field.
        tables: name -> the vectors, by id; None: zeros, to be replaced by ``set_tables``.
        seed: the projections' start is a function of it.
        device: device of the tables where ``tables`` is None.

    Attributes:
        names: names of the fields, in order.

    Raises:
        ModelError: a feature is not single-valued, the dimension is not known, or a table does not fit.
    """

    def __init__(
        self,
        configs: Mapping[str, VectorsConfig],
        schema: FeatureSchema,
        num_embeddings: Mapping[str, int],
        widths: Mapping[StreamName, int],
        *,
        tables: Mapping[str, "VectorTable"] | None = None,
        seed: int = 0,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        self.names = tuple(configs)
        self._features = {name: config.feature for name, config in configs.items()}
        self._events = {name: _keys_of_events(schema, config) for name, config in configs.items()}
        self.projections, self.missing = nn.ParameterDict(), nn.ParameterDict()
        for name, config in configs.items():
            find_vector_feature(schema, config.feature)
            if config.dimension is None:
                raise ModelError(
                    f"training.model.vectors.{name} has no dimension: training reads it from the file when it starts; "
                    "elsewhere give it"
                )
            shape = (num_embeddings[config.feature], config.dimension)
            for part, value in _table_tensors(name, config, shape, tables, device).items():
                self.register_buffer(f"{name}__{part}", value, persistent=False)
            for stream, width in widths.items():
                seed_of_own = stable_seed(seed, "vectors", name, stream)
                self.projections[f"{name}__{stream}"] = _xavier(config.dimension, width, seed_of_own)
                self.missing[f"{name}__{stream}"] = nn.Parameter(torch.zeros(width))

    def parts_of(self, sequence: str) -> tuple[str, ...]:
        """List the vectors that are parts of a sequence's events."""
        return tuple(name for name in self.names if sequence in self._events[name])

    @property
    def tables(self) -> dict[str, Tensor]:
        """Map names of tensors to the tables: ``NAME__table`` (V, W), and ``NAME__is_known`` (V,) bool."""
        return {name: value for name, value in self.named_buffers()}

    def set_tables(self, tables: Mapping[str, Tensor]) -> None:
        """Replace the tables, without copying them; names as in ``tables``."""
        for name in self.tables:
            setattr(self, name, tables[name])

    def forward(
        self, sparse_features: KeyedJaggedTensor, streams: Streams, histories: EventStreams
    ) -> tuple[Streams, EventStreams]:
        """Add a field to each stream with encoders, and a part to the targets and events of sequences.

        Args:
            sparse_features: ids of a batch.
            streams: stream -> (B, F, D) fields.
            histories: stream -> sequence -> its vectors.
        """
        streams, histories = dict(streams), {stream: dict(of) for stream, of in histories.items()}
        for name in self.names:
            fields = self._project(name, sparse_features[self._features[name]].values(), streams)
            for stream, field_BD in fields.items():
                streams[stream] = torch.cat([streams[stream], field_BD.unsqueeze(1)], dim=1)
            for sequence, key in self._events[name].items():
                events = self._project(name, sparse_features[key].values(), streams)
                for stream, of in histories.items():
                    of[sequence] = _with_part(of[sequence], fields[stream], events[stream])
        return streams, histories

    def _project(self, name: str, ids: Tensor, streams: Streams) -> dict[StreamName, Tensor]:
        """Look up ids and project their vectors: stream -> (N, D)."""
        table_VW, is_known_V = getattr(self, f"{name}__table"), getattr(self, f"{name}__is_known")
        vectors_NW = F.embedding(ids, table_VW).float()
        is_missing_N1 = (~is_known_V.index_select(0, ids)).unsqueeze(1)
        found: dict[StreamName, Tensor] = {}
        for stream, fields in streams.items():
            key = f"{name}__{stream}"
            if key in self.projections:
                projected = vectors_NW @ self.projections[key] + is_missing_N1 * self.missing[key]
                found[stream] = projected.to(fields.dtype)
        return found


def _keys_of_events(schema: FeatureSchema, config: VectorsConfig) -> dict[str, str]:
    """Map each sequence whose events have the vectors to the key of the events' ids."""
    if not config.in_sequences:
        return {}
    return {part.sequence: part.name for part in schema.parts if part.part == config.feature}


def _with_part(vectors: EventVectors, target_BD: Tensor, events_ND: Tensor) -> EventVectors:
    """Put a part behind the others, before the gap's vector."""
    width = vectors.target_BK.shape[1]
    events = [vectors.events_NE[:, :width], events_ND, vectors.events_NE[:, width:]]
    return EventVectors(torch.cat([vectors.target_BK, target_BD], dim=1), torch.cat(events, dim=1), vectors.lengths_B)


def _table_tensors(
    name: str,
    config: VectorsConfig,
    shape: tuple[int, int],
    tables: Mapping[str, "VectorTable"] | None,
    device: torch.device | None,
) -> dict[str, Tensor]:
    dtype = torch.float16 if config.precision == "float16" else torch.float32
    if tables is None:
        empty: dict[str, Any] = {"table": (shape, dtype), "is_known": (shape[:1], torch.bool)}
        return {part: torch.zeros(size, dtype=kind, device=device) for part, (size, kind) in empty.items()}
    table = tables[name]
    if table.vectors_VW.shape != shape:
        raise ModelError(
            f"training.model.vectors.{name}: the vectors are {table.vectors_VW.shape} and the model asks for {shape}"
        )
    return {"table": torch.from_numpy(table.vectors_VW), "is_known": torch.from_numpy(table.is_known_V)}


def _xavier(dimension: int, width: int, seed: int) -> nn.Parameter:
    """(W, D) matrix, Xavier-normal as every Linear of the model."""
    std = (2 / (dimension + width)) ** 0.5
    return nn.Parameter(torch.empty(dimension, width).normal_(0, std, generator=torch.Generator().manual_seed(seed)))
