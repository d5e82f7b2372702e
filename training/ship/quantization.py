"""Quantised tables, smaller to serve: rows of 8-bit integers with a scale and an offset of their own, or of float16.

A row w is kept as integers q = round((w - offset) / scale) and read as scale * q + offset by FBGEMM's inference kernels
in TorchRec's quantised EmbeddingBagCollection, which gives float32 vectors. All that is no table stays float32.

Shapes: V rows of a table, D its width without padding.
"""

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, EmbeddingCollection
from torchrec.modules.embedding_configs import DataType
from torchrec.quant.embedding_modules import EmbeddingBagCollection as QuantEmbeddingBagCollection
from torchrec.quant.embedding_modules import EmbeddingCollection as QuantEmbeddingCollection

from training.config import TablePrecision
from training.model.ctr_model import EMBEDDING, CTRModel
from training.model.embedding import EmbeddingTable, table_of

SCALE_OFFSET_BYTES = 4
"""Bytes that int8 adds to a row: scale and offset in float16, as FBGEMM reads them."""
MAX_LEVEL = 255

_CHUNK_ROWS = 1 << 20


class QuantizationError(ValueError):
    """A table holds numbers that the precision cannot represent, or stored tensors do not fit the model."""


def stored_type(table: EmbeddingTable, tables: TablePrecision) -> torch.dtype:
    """Choose the type of a table's numbers; with int8, widths up to 4 take float16: no larger there, and more exact."""
    if tables == "float32":
        return torch.float32
    return torch.float16 if tables == "float16" or table.width <= SCALE_OFFSET_BYTES else torch.uint8


def quantize_rows(weight_VD: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise float32 rows to 8-bit integers, each number to within half its row's scale.

    Offsets are rounded down to float16 and scales up, so that a row's ends are within 0 to 255. FBGEMM's own quantiser
    rounds both to the nearest, which cuts ends off, and makes the scale of a row of nearly equal numbers 0.

    Returns:
        (V, D) uint8 integers, (V, 2) float16 scales and offsets; a row of zeros stays exactly that.
    """
    parts = [_quantize_chunk(chunk) for chunk in weight_VD.split(_CHUNK_ROWS)]
    levels, scale_offsets = zip(*parts, strict=True)
    return torch.cat(levels), torch.cat(scale_offsets)


def _quantize_chunk(weight_VD: Tensor) -> tuple[Tensor, Tensor]:
    offset_V1 = -_rounded_up(-weight_VD.amin(1, keepdim=True))
    scale_V1 = _rounded_up((weight_VD.amax(1, keepdim=True) - offset_V1.float()) / MAX_LEVEL)
    step_V1 = torch.where(scale_V1 > 0, scale_V1, 1).float()
    levels = ((weight_VD - offset_V1.float()) / step_V1).round().clamp(0, MAX_LEVEL)
    return levels.to(torch.uint8), torch.cat([scale_V1, offset_V1], dim=1)


def _rounded_up(x: Tensor) -> Tensor:
    """Round up to float16."""
    near = x.half()
    # The bits of float16 numbers of one sign are in the order of their sizes.
    bits = near.view(torch.int16)
    above = torch.where(near > 0, bits + 1, torch.where(near < 0, bits - 1, 1)).to(torch.int16).view(torch.float16)
    return torch.where(near.float() < x, above, near)


def to_tensors(model: CTRModel, tables: TablePrecision) -> dict[str, Tensor]:
    """Make the tensors that an artifact stores of a model: its ``state_dict``, with quantised tables.

    A table T is ``T.weight``, (V, D) float16 or uint8 without its padding, and with uint8 ``T.scale_offset``, (V, 2).
    Fixed vectors are float16 in both.
    """
    tensors = dict(model.state_dict()) | _vector_tensors(model, tables)
    for table in model.tables if tables != "float32" else ():
        weight, scale_offset = _names(table)
        weight_VD = tensors[weight][:, : table.width]
        if stored_type(table, tables) == torch.uint8:
            tensors[weight], tensors[scale_offset] = quantize_rows(weight_VD)
        else:
            tensors[weight] = weight_VD.half()
    return tensors


def _vector_tensors(model: CTRModel, tables: TablePrecision) -> dict[str, Tensor]:
    """Make the tensors of a model's fixed vectors, which its ``state_dict`` leaves out."""
    found = model.vectors.tables.items()
    return {f"vectors.{n}": t.half() if tables != "float32" and t.is_floating_point() else t for n, t in found}


def _names(table: EmbeddingTable) -> tuple[str, str]:
    """Return the names of a table's tensors in an artifact: its numbers, its scales and offsets."""
    weight, scale_offset = (f"{EMBEDDING}.{table.tensor_name(part)}" for part in ("weight", "scale_offset"))
    return weight, scale_offset


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Check that no number overflowed float16, which ends at 65504.

    Raises:
        QuantizationError: names the tensor.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise QuantizationError(
                f"{name} holds numbers that are not finite or too large for float16: export it with float32 tables"
            )


def table_bytes(model: CTRModel, tensors: Mapping[str, Tensor]) -> int:
    """Add up the bytes of the tables among a model's stored tensors."""
    names = {name for table in model.tables for name in _names(table)}
    return sum(tensor.nbytes for name, tensor in tensors.items() if name in names)


def check_layout(outline: CTRModel, tensors: Mapping[str, Tensor], tables: TablePrecision) -> None:
    """Check that stored tensors fit a model, which may be on the meta device.

    Raises:
        QuantizationError: names a tensor that is missing, too many, or of another shape or type.
    """
    whole = outline.state_dict() | _vector_tensors(outline, tables)
    expected = {name: (tuple(t.shape), t.dtype) for name, t in whole.items()}
    for table in outline.tables if tables != "float32" else ():
        (weight, scale_offset), dtype = _names(table), stored_type(table, tables)
        expected[weight] = (table.num_embeddings, table.width), dtype
        if dtype == torch.uint8:
            expected[scale_offset] = (table.num_embeddings, 2), torch.float16
    found = {name: (tuple(t.shape), t.dtype) for name, t in tensors.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise QuantizationError(
                f"tensor {name:.200} is {_shown(found.get(name))} and should be {_shown(expected.get(name))}"
            )


def _shown(shape_and_type: tuple[tuple[int, ...], torch.dtype] | None) -> str:
    return "absent" if shape_and_type is None else f"{shape_and_type[1]} of shape {shape_and_type[0]}"


def quantize(model: CTRModel, tables: TablePrecision) -> CTRModel:
    """Copy a trained model with its tables quantised as they would be served; with float32 return the model itself."""
    if tables == "float32":
        return model
    made = _make_collections(model, to_tensors(model, tables), tables)
    kept: dict[int, Any] = {id(model.embedding.get_submodule(path)): of for path, of in made.items()}
    halves = _vector_tensors(model, tables)
    kept |= {id(table): halves[f"vectors.{name}"] for name, table in model.vectors.tables.items()}
    return copy.deepcopy(model, kept)  # pyright: ignore[reportArgumentType]


def restore_artifact(model: CTRModel, tensors: Mapping[str, Tensor], tables: TablePrecision) -> None:
    """Give a model an artifact's tensors, which ``check_layout`` passed; its own tables may be on the meta device."""
    model.vectors.set_tables({name.removeprefix("vectors."): t for name, t in tensors.items()})
    own = {name: t for name, t in tensors.items() if name.removeprefix("vectors.") not in model.vectors.tables}
    if tables == "float32":
        model.load_state_dict(own)
        return
    model.load_state_dict({name: t for name, t in own.items() if table_of(name) is None}, strict=False)
    for path, collection in _make_collections(model, tensors, tables).items():
        model.embedding.set_submodule(path, collection)


def _make_collections(
    model: CTRModel, tensors: Mapping[str, Tensor], precision: TablePrecision
) -> dict[str, nn.Module]:
    """Make the look-ups of quantised tables, with copies of their tensors: path inside the embedding -> collection."""
    by_path: dict[str, dict[str, EmbeddingTable]] = {}
    for table in model.tables:
        by_path.setdefault(table.collection, {})[table.name] = table
    return {
        path: _make_collection(model.embedding.get_submodule(path), tables, tensors, precision)
        for path, tables in by_path.items()
    }


def _make_collection(
    original: nn.Module, tables: Mapping[str, EmbeddingTable], tensors: Mapping[str, Tensor], precision: TablePrecision
) -> nn.Module:
    """Make the look-up of the quantised tables of one collection."""
    weights = {}
    for table in tables.values():
        numbers, scale_offset = map(tensors.get, _names(table))
        assert numbers is not None
        # FBGEMM takes and keeps bytes: a row's scale and offset, then its numbers.
        pair = (numbers.view(torch.uint8), None if scale_offset is None else scale_offset.view(torch.uint8))
        weights[table.name] = pair
    arguments: dict[str, Any] = {
        "device": torch.device("cpu"),
        "table_name_to_quantized_weights": weights,
        "row_alignment": 1,  # TorchRec's 16, for GPUs, makes 32 bytes of the 20 of a row of 16 numbers
    }
    if isinstance(original, EmbeddingCollection):
        configs = _quantized(original.embedding_configs(), tables, precision)
        made = QuantEmbeddingCollection(configs, **arguments)
    else:
        assert isinstance(original, EmbeddingBagCollection)
        configs = _quantized(original.embedding_bag_configs(), tables, precision)
        made = QuantEmbeddingBagCollection(configs, is_weighted=False, **arguments)
    weights.clear()  # FBGEMM has copied them, and TorchRec would keep these as well
    return made


def _quantized(configs: Sequence[Any], tables: Mapping[str, EmbeddingTable], precision: TablePrecision) -> list[Any]:
    types = {torch.uint8: DataType.INT8, torch.float16: DataType.FP16}
    return [
        dataclasses.replace(
            config,
            embedding_dim=tables[config.name].width,
            data_type=types[stored_type(tables[config.name], precision)],
        )
        for config in configs
    ]
