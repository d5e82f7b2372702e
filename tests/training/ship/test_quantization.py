"""Quantised tables against numpy's own dequantisation, through TorchRec's lookup, an artifact and a run."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from features.disk.artifact import ArtifactError
from features.disk.place import locate
from tests.fuzz.targets import digests
from tests.stand_ins.object_store import Bucket
from tests.training.fit.test_run import LANES, make_config
from tests.training.fit.test_warm_start import finish
from training.config import FMEncoder, MLPEncoder, ModelConfig, TablePrecision
from training.data.batch import to_batch
from training.fit.run import Run
from training.judge.metrics import auc
from training.model.ctr_model import CTRModel
from training.ship.export import export, load_best
from training.ship.predict import Predictor
from training.ship.quantization import (
    QuantizationError,
    check_finite,
    check_layout,
    quantize,
    quantize_rows,
    restore_artifact,
    table_bytes,
    to_tensors,
)

QUANTIZED: tuple[TablePrecision, ...] = ("float16", "int8")
# First-order weights are 1 wide, easy vectors 5, hard ones 10: in float16, in uint8, and padded to 8 and 12.
CONFIG = ModelConfig(
    embedding_dim=10,
    embedding_init_std=0.3,
    easy=FMEncoder(),
    hard=MLPEncoder((8,), dropout=0.0),
)
NAMES = "user,genres,device,age,row,price"


@pytest.fixture
def tiny(make_dataset: Callable[..., Any]) -> Any:
    return make_dataset(valid=((150, 50), (100,)))


def make_model(tiny: Any, *, padded: bool = True, seed: int = 3) -> CTRModel:
    """With a row of zeros, one of equal numbers, large, tiny and one-sided ones in each table of some size."""
    model = CTRModel(tiny.schema, tiny.num_embeddings, CONFIG, seed=seed, pad_tables=padded).eval()
    with torch.no_grad():
        for table in model.tables:
            weight_VD = model.get_parameter(f"embedding.bags.embedding_bags.{table.name}.weight")
            weight_VD[1:2, : table.width] = 0.3
            weight_VD[2:3, : table.width] *= 1e-5
            weight_VD[3:4, : table.width] += 5
            weight_VD[4:5, : table.width] *= 300
    return model


def dequantized(table: Any, tensors: dict[str, torch.Tensor]) -> np.ndarray:
    """(V, D) in float64, by the formula alone."""
    name = f"embedding.bags.embedding_bags.{table.name}"
    weight = tensors[f"{name}.weight"].numpy().astype(np.float64)
    if f"{name}.scale_offset" not in tensors:
        return weight
    scale, offset = tensors[f"{name}.scale_offset"].numpy().astype(np.float64).T
    return scale[:, None] * weight + offset[:, None]


# ----------------------------------------------------------------------------------------------------------------- rows


@pytest.mark.parametrize("deviation", [1e-7, 1e-4, 1.0, 1e3])
@pytest.mark.parametrize("mean", [0.0, 1.0, -300.0])
def test_no_number_is_off_by_more_than_half_a_step(deviation: float, mean: float) -> None:
    weight = torch.randn(500, 9, generator=torch.Generator().manual_seed(1)) * deviation + mean
    weight[0] = 0
    levels, scale_offset = quantize_rows(weight)
    assert (levels.dtype, scale_offset.dtype) == (torch.uint8, torch.float16)
    scale, offset = scale_offset.numpy().astype(np.float64).T[:, :, None]
    exact = weight.numpy().astype(np.float64)
    error = np.abs(scale * levels.numpy() + offset - exact)
    assert (error <= scale / 2 + 2.0**-22 * np.abs(exact)).all()  # a half, and what float32 rounds
    assert not error[0].any()
    # The steps are as fine as float16 can say: an even split of the row, and of what its offset is rounded by.
    width = np.ptp(exact, axis=1, keepdims=True) + np.abs(exact).max(1, keepdims=True) * 2.0**-10 + 2.0**-24
    assert (scale <= width / 255 * (1 + 2.0**-10) + 2.0**-24).all()


def test_rows_are_quantised_alike_alone_and_in_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(50, 8, generator=torch.Generator().manual_seed(2))
    whole = quantize_rows(weight)
    monkeypatch.setattr("training.ship.quantization._CHUNK_ROWS", 7)
    assert all(torch.equal(a, b) for a, b in zip(whole, quantize_rows(weight), strict=True))


# --------------------------------------------------------------------------------------------------------------- lookup


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("tables", QUANTIZED)
def test_lookups_are_those_of_dequantised_tables(tiny: Any, tables: TablePrecision, padded: bool) -> None:
    """Sums and means, several values a row and none, two tables a feature, with padding and without."""
    model = make_model(tiny, padded=padded)
    tensors = to_tensors(model, tables)
    columns = tiny.columns["valid"]
    assert {0, 1, 3} <= set(columns["genres__length"])
    batch = to_batch(columns, tiny.schema)
    with torch.no_grad():
        streams, _ = quantize(model, tables).embedding(batch.sparse_features, batch.dense_features, batch.num_rows)
    fields = {feature.name: i for i, feature in enumerate(tiny.schema.sparse)}
    assert {table.width for table in model.tables} == {1, 5, 10}
    for table in model.tables:
        rows = dequantized(table, tensors)
        assert rows.shape == (table.num_embeddings, table.width) and not rows[0].any()
        if table.feature == "genres":
            used = np.arange(3) < columns["genres__length"][:, None]
            sums = (rows[columns["genres"]] * used[:, :, None]).sum(axis=1)
            expected = sums / np.maximum(columns["genres__length"], 1)[:, None]
        else:
            expected = rows[columns[table.feature]]
        found = streams[table.stream][:, fields[table.feature]]
        assert found.dtype == torch.float32
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6, atol=1e-6)


def test_pads_are_cut_off_and_narrow_tables_stay_float16(tiny: Any) -> None:
    model = make_model(tiny)
    whole, float16, int8 = (to_tensors(model, tables) for tables in get_args(TablePrecision))
    rows = sum(tiny.num_embeddings.values())
    assert table_bytes(model, whole) == 4 * rows * (4 + 8 + 12)
    assert table_bytes(model, float16) == 2 * rows * (1 + 5 + 10)
    assert table_bytes(model, int8) == rows * (2 * 1 + 4 + 5 + 4 + 10)
    kinds = {table.width: int8[f"embedding.bags.embedding_bags.{table.name}.weight"].dtype for table in model.tables}
    assert kinds == {1: torch.float16, 5: torch.uint8, 10: torch.uint8}
    dense = {name for name in whole if ".embedding_bags." not in name}
    assert dense and all(torch.equal(whole[name], int8[name]) for name in dense)


@pytest.mark.parametrize("tables", get_args(TablePrecision))
def test_stored_tensors_give_the_model_back(tiny: Any, tables: TablePrecision) -> None:
    model = make_model(tiny)
    tensors = to_tensors(model, tables)
    again = CTRModel(
        tiny.schema, tiny.num_embeddings, CONFIG, pad_tables=True, device="cpu" if tables == "float32" else "meta"
    )
    check_layout(again, tensors, tables)
    restore_artifact(again, tensors, tables)
    batch = to_batch(tiny.columns["valid"], tiny.schema)
    with torch.no_grad():
        served, found, exact = (m.eval()(batch).fused for m in (quantize(model, tables), again, model))
    assert torch.equal(served, found)
    assert torch.equal(served, exact) == (tables == "float32")
    assert quantize(model, "float32") is model
    if tables != "float32":
        assert again.embedding.bags._table_name_to_quantized_weights == {}, "tables are in memory once"


def test_numbers_that_float16_cannot_hold(tiny: Any) -> None:
    name = "embedding.bags.embedding_bags.user__hard.weight"
    for tables in QUANTIZED:
        for number in (-7e4, np.nan):
            model = make_model(tiny)
            check_finite(to_tensors(model, tables))
            with torch.no_grad():
                model.get_parameter(name)[7, 2] = number
            with pytest.raises(QuantizationError, match=r"user__hard.*float32 tables"):
                check_finite(to_tensors(model, tables))


# ------------------------------------------------------------------------------------------------------------- artifact


@pytest.fixture
def run(tiny: Any, tmp_path: Path, one_rank: None) -> Callable[[str], Run]:
    """A run of a lane, as if a calibration had been fitted; beside it lies a raw log of its kind."""
    (tmp_path / "made.csv").write_text(f"{NAMES}\nu,a|b,mobile,33,1,2.5\nv,,tablet,,2,\n,c|a|b|d,watch,60,,7\n")

    def make(lane: str) -> Run:
        made = finish(tmp_path / lane, make_config(tiny.path, **LANES[lane]))
        config = made.read("config.json")
        config["training"]["calibration"] = {"kind": "platt"}
        made.write("config.json", config)
        made.write("calibration.json", {"step": made.read("metrics.json")["best_step"], "scale": 0.9, "offset": -0.1})
        return made

    return make


@pytest.mark.parametrize("lane", ["row_wise", "averaged dense"])
def test_an_artifact_replays_its_own_probabilities(run: Any, tmp_path: Path, lane: str) -> None:
    trained, log = run(lane), str(tmp_path / "made.csv")
    plain = export(trained, tmp_path / "plain", log)
    rows = [json.loads(line)["row"] for line in (tmp_path / "plain" / "golden.jsonl").read_text().splitlines()]
    assert len(rows) == 3
    best = load_best(trained)
    for tables in QUANTIZED:
        served = export(trained, tmp_path / tables, log, tables)
        description = json.loads((tmp_path / tables / "artifact.json").read_text())
        assert (description["version"], description["tables"]) == (2, tables)
        lines = (tmp_path / tables / "golden.jsonl").read_text().splitlines()
        golden = [json.loads(line)["probability"] for line in lines]
        assert np.abs(served.predict(rows) - golden).max() <= 1e-6
        assert 0 < np.abs(served.predict(rows) - plain.predict(rows)).max() < 0.01
        scores = best.with_tables(tables).score("valid")
        logits, labels, weights = scores.logits, scores.labels, scores.weights
        exact = best.score("valid").logits
        assert 0 < np.abs(logits - exact).max() < 0.05
        assert abs(auc(logits, labels, weights) - auc(exact, labels, weights)) < 0.01  # type: ignore[operator]
        smaller = (tmp_path / tables / "weights.safetensors").stat().st_size
        assert smaller < (tmp_path / "plain" / "weights.safetensors").stat().st_size
    assert json.loads((tmp_path / "plain" / "artifact.json").read_text())["version"] == 1


def damage(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Change the stored tensors and let artifact.json agree, as a stranger would."""
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / "weights.safetensors").items()}
    change(tensors)
    save_file(tensors, folder / "weights.safetensors")
    describe(folder, files=digests(folder))


def describe(folder: Path, **changes: Any) -> None:
    description = json.loads((folder / "artifact.json").read_text())
    (folder / "artifact.json").write_text(json.dumps({**description, **changes}))


def test_damaged_artifacts_are_refused(run: Any, tmp_path: Path) -> None:
    export(run("row_wise"), tmp_path / "artifact", str(tmp_path / "made.csv"), "int8")
    weight, scale_offset = (f"embedding.bags.embedding_bags.user__hard.{part}" for part in ("weight", "scale_offset"))
    damages: dict[str, Callable[[dict[str, torch.Tensor]], Any]] = {
        "is torch.int8 of shape": lambda t: t.update({weight: t[weight].to(torch.int8)}),
        "is torch.float32 of shape": lambda t: t.update({scale_offset: t[scale_offset].float()}),
        r"is torch.uint8 of shape \(49, ": lambda t: t.update({weight: t[weight][1:].clone()}),
        r"of shape \(50, 1\)": lambda t: t.update({scale_offset: t[scale_offset][:, :1].clone()}),
        "is absent and should be torch.float16": lambda t: t.pop(scale_offset),
        "should be absent": lambda t: t.update({"more": torch.zeros(1)}),
        "scores .* here but": lambda t: t[scale_offset].mul_(1.5),
        "scores nan here but": lambda t: t[scale_offset].fill_(torch.nan),
    }
    for number, (words, change) in enumerate(damages.items()):
        folder = tmp_path / f"damaged-{number}"
        shutil.copytree(tmp_path / "artifact", folder)
        damage(folder, change)
        with pytest.raises(ArtifactError, match=words):
            Predictor.load(folder)


def test_versions_and_precisions_that_do_not_belong_together(run: Any, tmp_path: Path) -> None:
    trained, log = run("row_wise"), str(tmp_path / "made.csv")
    export(trained, tmp_path / "plain", log)
    export(trained, tmp_path / "int8", log, "int8")
    wrong: list[tuple[str, dict[str, Any], str]] = [
        (
            "int8",
            {"version": 3},
            r"newer version of twinfocus \(artifact version 3; this program reads up to 2\): update",
        ),
        ("int8", {"version": [2]}, r"has artifact version \[2\]"),
        ("int8", {"version": 1}, "has tables of 'int8', which version 1 has not"),
        ("int8", {"tables": "int4"}, "has tables of 'int4'"),
        ("int8", {"tables": ["int8"]}, "has tables of"),
        ("int8", {"tables": "float16"}, r"age__hard.scale_offset is torch.float16 .* should be absent"),
        ("plain", {"tables": "int8"}, "has tables of 'int8', which version 1 has not"),
        ("plain", {"version": 2}, "has tables of 'float32', which version 2 has not"),
        ("plain", {"version": 2, "tables": "float16"}, r"is torch.float32 .* should be torch.float16"),
    ]
    for name, changes, words in wrong:
        before = (tmp_path / name / "artifact.json").read_text()
        describe(tmp_path / name, **changes)
        with pytest.raises(ArtifactError, match=words):
            Predictor.load(tmp_path / name)
        (tmp_path / name / "artifact.json").write_text(before)
    Predictor.load(tmp_path / "plain"), Predictor.load(tmp_path / "int8")


def test_an_object_store(run: Any, tmp_path: Path, bucket: Bucket) -> None:
    trained, log = run("averaged dense"), str(tmp_path / "made.csv")
    stored = export(trained, locate(f"{bucket.url}/artifact"), log, "int8")
    kept = export(trained, tmp_path / "disk", log, "int8")
    row = [dict(zip(NAMES.split(","), ("u", "a|b", "mobile", "33", "1", "2.5"), strict=True))]
    assert stored.predict(row) == kept.predict(row)
