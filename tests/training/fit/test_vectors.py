"""Files of vectors in a training: every lane on one and two ranks, artifacts, resuming, warm starts, first rows."""

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed.checkpoint as dcp

from features.disk.run_folder import RunError
from features.disk.vector_tables import vector_table_path
from features.vector_source import VectorFileError
from jobs.cli.config import parse_config
from jobs.cli.errors import ConfigError
from jobs.forecasts.sharding_plan import as_trained
from jobs.launch.follow import describe_training
from jobs.launch.run_guard import prepare_run, with_places
from tests.ranks import on_two_ranks
from tests.stand_ins.tiny_dataset import TinyDataset, write_tiny_dataset
from tests.training.fit.test_run import EASY, HARD, Interrupted, losses
from tests.training.fit.test_warm_start import finish
from tests.training.sharding.test_sequence_tables import LANES as SEQUENCE_LANES
from tests.training.sharding.test_sequence_tables import make_sequence_config, sequence_schema
from training.config import (
    ModelConfig,
    PretrainedConfig,
    SeparateSelection,
    SharedSelection,
    TablePrecision,
    TrainingConfig,
    VectorsConfig,
)
from training.data.batch import to_batch
from training.data.opened_dataset import Dataset
from training.fit.run import Run, build_model, find_transplant, find_warm_start, train_rank
from training.fit.vectors import keep_vectors, kept_vectors, read_starts, settle_vectors
from training.sharding import checkpoint
from training.sharding.parallelize import parallelize
from training.sharding.table_planner import make_reservation
from training.sharding.tables import parts_of
from training.ship.export import export, load_best
from training.ship.predict import Predictor
from training.ship.quantization import quantize

LANES = {
    name: SEQUENCE_LANES[name]
    for name in ("row_wise", "column_wise", "replicated", "dense", "averaged dense", "regularised", "pipelined")
}
CPU = torch.device("cpu")
USERS = [f"u{n}" for n in range(30)]


def write_vectors(path: Path, values: list[str], width: int, seed: int = 0) -> Path:
    vectors = np.random.default_rng(seed).normal(size=(len(values), width))
    pq.write_table(pa.table({"id": values, "vector": vectors.tolist()}), path)
    return path


@pytest.fixture
def dataset(tmp_path: Path) -> TinyDataset:
    return write_tiny_dataset(tmp_path / "dataset", number_rows=True, schema=sequence_schema())


@pytest.fixture
def vectors(tmp_path: Path) -> dict[str, VectorsConfig]:
    """Of users, whose buckets are not all covered, and of devices, one of which has none."""
    users = write_vectors(tmp_path / "users.parquet", USERS, 5)
    np.savez(tmp_path / "devices.npz", id=["mobile", "car"], vector=[[1.0, 2.0, 2.0], [0.0, 1.0, 0.0]])
    return {
        "text": VectorsConfig(path=str(users), feature="user", normalise=True),
        "image": VectorsConfig(
            path=str(tmp_path / "devices.npz"), feature="device", in_sequences=False, precision="float16"
        ),
    }


def make_config(dataset: Path, vectors: dict[str, VectorsConfig], **changes: Any) -> TrainingConfig:
    config = make_sequence_config(dataset, **changes)
    return replace(config, model=settle_vectors(replace(config.model, vectors=vectors)))


def fit_lanes(folder: Path, dataset: Path, vectors: dict[str, VectorsConfig]) -> None:
    for lane, changes in LANES.items():
        train_rank(Run(folder / lane), make_config(dataset, vectors, **changes))


def final_model(run: Run, config: TrainingConfig) -> Any:
    model = build_model(Dataset.open(config.dataset), config, CPU, kept_vectors(run, config.model))
    newest = checkpoint.newest(run.checkpoints)
    assert newest is not None
    checkpoint.restore_model(newest, model)
    return model


def test_two_ranks_equal_one_in_every_lane(
    dataset: TinyDataset, vectors: dict[str, VectorsConfig], tmp_path: Path, one_rank: None
) -> None:
    on_two_ranks(tmp_path, fit_lanes, tmp_path / "two", dataset.path, vectors)
    fit_lanes(tmp_path / "one", dataset.path, vectors)
    for lane, changes in LANES.items():
        config = make_config(dataset.path, vectors, **changes)
        alone, together = Run(tmp_path / "one" / lane), Run(tmp_path / "two" / lane)
        assert losses(together) == pytest.approx(losses(alone), rel=1e-6, abs=1e-6), lane
        one, other = (final_model(run, config).state_dict() for run in (alone, together))
        for name, value in one.items():
            if name.endswith("weight") or name.startswith("vectors."):
                # Adam makes a step of a gradient that is nothing but rounding, for one weight in a thousand here.
                tolerance = 1e-4 if "dense" in lane else 1e-5
                torch.testing.assert_close(other[name], value, rtol=0, atol=tolerance, msg=f"{lane} {name}")
        newest = checkpoint.newest(together.checkpoints)
        assert newest is not None
        saved = dcp.FileSystemReader(newest.path).read_metadata().state_dict_metadata
        assert any("vectors.projections.text__hard" in name for name in saved)
        assert not any("__table" in name or "is_known" in name for name in saved), (
            "checkpoints would hold them each time"
        )
    piped, plain = (
        final_model(Run(tmp_path / "one" / lane), make_config(dataset.path, vectors)).state_dict()
        for lane in ("pipelined", "row_wise")
    )
    assert all(torch.equal(piped[name], plain[name]) for name in plain)


def test_vectors_matter_and_cost_nothing_where_there_are_none(
    dataset: TinyDataset, vectors: dict[str, VectorsConfig], tmp_path: Path, one_rank: None
) -> None:
    for name, of in (("with", vectors), ("without", {}), ("again", {})):
        train_rank(Run(tmp_path / name), make_config(dataset.path, of))
    plain = losses(Run(tmp_path / "without"))
    assert plain == losses(Run(tmp_path / "again")) != losses(Run(tmp_path / "with"))
    assert not (tmp_path / "without" / "vectors").exists()


ROWS = [
    {"user": user, "genres": "a|b", "device": device, "age": age, "row": "0.1", "price": "2", "time": "10000", **events}
    for user, device, age, events in (
        ("u1", "mobile", "33", {"visits__user": "u2 u3", "visits__device": "mobile car", "visits__time": "9990 9000"}),
        ("u7", "tablet", None, {"visits__user": None, "visits__device": None, "visits__time": None}),
        (None, "watch", "60", {"visits__user": "w", "visits__device": "tablet", "visits__time": "1"}),
    )
]
ROWS = [{**row, "devices__device": "mobile tablet", "visits__dwell": row["visits__time"]} for row in ROWS]


def test_an_artifact_holds_them_and_scores_as_the_trained_model(
    dataset: TinyDataset, vectors: dict[str, VectorsConfig], tmp_path: Path, one_rank: None
) -> None:
    log = tmp_path / "made.csv"
    lines = [[*ROWS[0]], *([value or "" for value in row.values()] for row in ROWS)]
    log.write_text("\n".join(map(",".join, lines)) + "\n")
    run = finish(tmp_path / "run", make_config(dataset.path, vectors))
    found = run.read("metrics.json")["vectors"]
    assert found["image"] == {
        "sha256": run.config().model.vectors["image"].sha256,
        "dimension": 3,
        **{"values": 2, "unknown": 1, "shared": 0, "rows": 2, "covered": 1},
    }
    assert "vectors image: 1 of 2 ids have one, of 3 numbers" in describe_training(run.path, 1.0)
    for config in vectors.values():
        Path(config.path).unlink()  # a run keeps what it was begun with
    model, scores = load_best(run).model, {}
    batch = to_batch(dataset.columns["valid"], dataset.schema)
    for tables in get_args(TablePrecision):
        export(run, tmp_path / tables, str(log), tables)
        predictor = Predictor.load(tmp_path / tables)
        scores[tables] = predictor.predict(ROWS)
        np.testing.assert_array_equal(scores[tables], Predictor.load(tmp_path / tables).predict(ROWS))
        with torch.no_grad():
            served, expected = predictor.model(batch).fused, quantize(model, tables)(batch).fused
        assert torch.equal(served, expected), tables
        dtype = torch.float32 if tables == "float32" else torch.float16
        assert predictor.model.vectors.tables["text__table"].dtype == dtype
        assert predictor.model.vectors.tables["image__table"].dtype == torch.float16
        assert bool(predictor.model.vectors.tables["text__table"].any())
    assert len(set(scores["float32"])) == 3
    for tables, tolerance in (("float16", 1e-3), ("int8", 1e-2)):
        assert 0 < np.abs(scores[tables] - scores["float32"]).max() < tolerance
    vector_table_path(run.path, "text").unlink()
    with pytest.raises(RunError, match=r"has no .*text\.safetensors: train the model again"):
        load_best(run)


def test_an_interrupted_run_goes_on_with_its_own(
    dataset: TinyDataset, vectors: dict[str, VectorsConfig], tmp_path: Path, one_rank: None
) -> None:
    config = make_config(dataset.path, vectors)
    undisturbed, interrupted = Run(tmp_path / "undisturbed"), Run(tmp_path / "interrupted")
    train_rank(undisturbed, config)

    def crash(event: Any) -> None:
        if event["event"] == "checkpoint" and event["step"] == 4:
            raise Interrupted

    with pytest.raises(Interrupted):
        train_rank(interrupted, config, crash)
    write_vectors(Path(vectors["text"].path), USERS, 5, seed=9)  # the workers start again, and the file is another
    train_rank(interrupted, config)
    ours, theirs = (final_model(run, config) for run in (undisturbed, interrupted))
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in ours.state_dict().items())
    assert all(torch.equal(table, theirs.vectors.tables[name]) for name, table in ours.vectors.tables.items())


def test_resuming_with_another_file_is_refused(
    dataset: TinyDataset, vectors: dict[str, VectorsConfig], tmp_path: Path, one_rank: None
) -> None:
    plain = replace(make_sequence_config(dataset.path), max_epochs=1)
    pretrained = PretrainedConfig(path=vectors["text"].path, stream="hard")
    wide = write_vectors(tmp_path / "wide.parquet", USERS, 8)
    pretrained = replace(pretrained, path=str(wide))
    asked = replace(plain, model=replace(plain.model, vectors=vectors, pretrained={"user": pretrained}))
    tree = {"features": dataset.schema, "pipeline": {"output": "unused"}, "training": asked}
    run = Run(tmp_path / "run")
    run.path.mkdir()
    settled = prepare_run(run.path, parse_config(tree), resume=False).training
    assert settled.model.vectors["text"].dimension == 5 and settled.model.vectors["text"].sha256
    assert run.config() == settled
    train_rank(run, settled)
    prepare_run(run.path, parse_config(tree), resume=True)
    moved = tmp_path / "moved.parquet"
    moved.write_bytes(Path(vectors["text"].path).read_bytes())
    elsewhere = {**vectors, "text": replace(vectors["text"], path=str(moved))}
    model = replace(asked.model, vectors=elsewhere)
    prepare_run(run.path, parse_config({**tree, "training": replace(asked, model=model)}), resume=True)
    model = replace(asked.model, vectors={**vectors, "text": replace(vectors["text"], normalise=False)})
    with pytest.raises(ConfigError, match=r"--resume cannot change training\.model:"):
        prepare_run(run.path, parse_config({**tree, "training": replace(asked, model=model)}), resume=True)
    before = Path(vectors["text"].path).read_bytes()
    write_vectors(Path(vectors["text"].path), USERS[:9], 5)
    with pytest.raises(ConfigError, match=r"another file of vectors: training\.model\.vectors\.text: .*users\.parquet"):
        prepare_run(run.path, parse_config(tree), resume=True)
    Path(vectors["text"].path).write_bytes(before)
    write_vectors(wide, USERS[:9], 8)
    with pytest.raises(ConfigError, match=r"training\.model\.pretrained\.user: .*wide\.parquet \(sha256"):
        prepare_run(run.path, parse_config(tree), resume=True)
    wide.unlink()
    with pytest.raises(VectorFileError, match=r"training\.model\.pretrained\.user: .*wide\.parquet is missing"):
        prepare_run(run.path, parse_config(tree), resume=True)


def test_a_new_run_in_a_folder_has_its_own_tables(
    dataset: TinyDataset, vectors: dict[str, VectorsConfig], tmp_path: Path, one_rank: None
) -> None:
    run, opened = Run(tmp_path / "run"), Dataset.open(dataset.path)
    config = make_config(dataset.path, vectors)
    first = keep_vectors(run, config.model, opened)
    kept = vector_table_path(run.path, "text").stat()
    assert keep_vectors(run, config.model, opened)["text"].counts == first["text"].counts
    assert vector_table_path(run.path, "text").stat() == kept
    other = make_config(dataset.path, {**vectors, "text": replace(vectors["text"], normalise=False)})
    again = keep_vectors(run, other.model, opened)["text"]
    assert not np.array_equal(again.vectors_VW, first["text"].vectors_VW)
    lengths = np.linalg.norm(first["text"].vectors_VW, axis=1)
    np.testing.assert_allclose(lengths[first["text"].is_known_V], 1, rtol=1e-6)


def test_a_warm_start_makes_them_anew_from_a_file_that_has_grown(
    dataset: TinyDataset, vectors: dict[str, VectorsConfig], tmp_path: Path, one_rank: None
) -> None:
    """With a vocabulary that has grown as well; the projection goes on, the vectors do not."""
    before = finish(tmp_path / "before", make_config(dataset.path, vectors, max_epochs=1))
    devices = ("watch",)
    grown = write_tiny_dataset(
        tmp_path / "grown", number_rows=True, schema=sequence_schema(), devices=devices, seed=3
    ).path
    path = tmp_path / "devices.npz"
    np.savez(path, id=["mobile", "watch"], vector=[[5.0, 2.0, 2.0], [0.0, 1.0, 0.0]])
    for others in (False, True):
        config = make_config(
            grown, vectors, warm_start=str(before.path), warm_start_other_features=others, max_epochs=1
        )
        opened = Dataset.open(grown)
        assert find_warm_start(config, opened) is not None
        tables = keep_vectors(Run(tmp_path / f"tables-{others}"), config.model, opened)
        model = build_model(opened, config, torch.device("meta"), tables)
        parallel = parallelize(model, config, CPU)
        checkpoint.begin(checkpoint.best(before.checkpoints), parallel)
        old = load_best(before).model
        assert torch.equal(model.vectors.projections["image__hard"], old.vectors.projections["image__hard"])
        new = model.vectors.tables["image__table"]
        assert (len(old.vectors.tables["image__table"]), len(new)) == (4, 5)
        assert new[1].tolist() == [5.0, 2.0, 2.0] and new[4].tolist() == [0.0, 1.0, 0.0] and not new[[0, 2, 3]].any()
        assert model.vectors.tables["image__is_known"].tolist() == [False, True, False, False, True]
        train_rank(Run(tmp_path / f"warm-{others}"), config)


def test_a_warm_start_with_vectors_that_the_other_run_lacks(
    dataset: TinyDataset, vectors: dict[str, VectorsConfig], tmp_path: Path, one_rank: None
) -> None:
    before = finish(tmp_path / "before", make_config(dataset.path, {"image": vectors["image"]}, max_epochs=1))
    warm = make_config(dataset.path, vectors, warm_start=str(before.path), max_epochs=1)
    run = Run(tmp_path / "warm")
    tree = {**before.read("config.json"), "training": warm}
    run.path.mkdir()
    prepare_run(run.path, parse_config(tree), resume=False)

    opened = Dataset.open(dataset.path)
    transplant = find_transplant(warm, opened)
    assert transplant is not None and transplant.kept_vectors == ["image"]
    assert "devices" in transplant.kept and "visits" not in transplant.kept, "its events have one part more"
    model = build_model(opened, warm, torch.device("meta"), keep_vectors(run, warm.model, opened))
    parallel = parallelize(model, warm, CPU)
    fresh = {name: value.clone() for name, value in model.vectors.named_parameters()}
    checkpoint.begin_with_others(checkpoint.best(before.checkpoints), parallel, transplant)
    old = load_best(before).model
    assert torch.equal(model.vectors.projections["image__hard"], old.vectors.projections["image__hard"])
    assert torch.equal(model.vectors.projections["text__hard"], fresh["projections.text__hard"])
    # Fields: user, genres, device, age, row, price, then text and image, three of visits, one of devices.
    ours = model.hard_encoder.state_dict()["layers.0.weight"].unflatten(1, (12, -1))
    theirs = old.hard_encoder.state_dict()["layers.0.weight"].unflatten(1, (10, -1))
    places = {**{n: n for n in range(6)}, 7: 6, 11: 9}
    for place, was in places.items():
        assert torch.equal(ours[:, place], theirs[:, was]), place
    assert not any(torch.equal(ours[:, 6], theirs[:, was]) for was in range(10))
    train_rank(run, warm)
    assert run.is_finished
    said = "begins anew: encoders of sequence visits (of user, device), matrices of vectors text (5 numbers of user, be"
    assert transplant.describe().count(said) == 1 and run.history.read_text().count(said) == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"width": 7},
            "begins anew: encoders of sequence visits (of user, device), matrices of vectors text (7 numbers",
        ),
        ({"feature": "device", "in_sequences": False}, "vectors text (5 numbers of device, before 5 of user)"),
        ({"normalise": False}, "vectors text (5 numbers of user, before 5 of user)"),
        ({"is_gone": True}, "knows of 7 of 8 features: changed visits; dropped vectors text; begins anew: enco"),
    ],
)
def test_a_warm_start_with_other_vectors_takes_over_all_else(
    dataset: TinyDataset,
    vectors: dict[str, VectorsConfig],
    tmp_path: Path,
    one_rank: None,
    caplog: pytest.LogCaptureFixture,
    change: dict[str, Any],
    said: str,
) -> None:
    """As a retraining does whose file of vectors is a wider one on this day."""
    before = finish(tmp_path / "before", make_config(dataset.path, vectors, max_epochs=1))
    values = ["mobile", "car"] if "feature" in change else USERS
    path = write_vectors(tmp_path / "later.parquet", values, change.pop("width", 5))
    later = {**vectors, "text": replace(vectors["text"], path=str(path))}
    if change.pop("is_gone", False):
        del later["text"]
    else:
        later["text"] = replace(later["text"], **change)
    asked = replace(make_sequence_config(dataset.path), model=make_config(dataset.path, vectors).model)
    asked = replace(asked, model=replace(asked.model, vectors=later), warm_start=str(before.path), max_epochs=1)
    run = Run(tmp_path / "warm")
    run.path.mkdir()
    with caplog.at_level("INFO"):
        warm = prepare_run(run.path, parse_config({**before.read("config.json"), "training": asked}), resume=False)
    assert said in caplog.text
    opened = Dataset.open(dataset.path)
    transplant = find_transplant(warm.training, opened)
    assert transplant is not None and transplant.kept_vectors == ["image"]
    model = build_model(opened, warm.training, CPU, keep_vectors(run, warm.training.model, opened))
    parallel = parallelize(model, warm.training, CPU)
    checkpoint.begin_with_others(checkpoint.best(before.checkpoints), parallel, transplant)
    old, new = load_best(before).model.state_dict(), model.state_dict()
    taken = [name for name, value in old.items() if name in new and value.shape == new[name].size()]
    names = [name for name in taken if "vectors.image" in name or "user__hard.weight" in name or "devices__" in name]
    assert len(names) >= 3 and all(
        torch.equal(old[name], parts_of(new[name])[0][0].view_as(old[name])) for name in names
    )
    train_rank(run, warm.training)
    assert run.is_finished and said in run.history.read_text()


def test_a_plan_counts_them(dataset: TinyDataset, vectors: dict[str, VectorsConfig], tmp_path: Path) -> None:
    asked = replace(make_sequence_config(dataset.path), model=ModelConfig(vectors=vectors))
    tree = {"features": dataset.schema, "pipeline": {"output": "unused"}, "training": asked}
    config = as_trained(parse_config(tree)).training
    assert config.model.vectors["text"].dimension == 5
    elsewhere = parse_config({**tree, "training": replace(asked, dataset=str(tmp_path / "not built"))})
    assert as_trained(elsewhere).training.model.vectors["text"].dimension == 5
    model = build_model(Dataset.open(dataset.path), config, torch.device("meta"))
    plain = build_model(Dataset.open(dataset.path), replace(config, model=ModelConfig()), torch.device("meta"))
    held, dense = (make_reservation(m, config, 0)._dense_tensor_estimate or 0 for m in (model, plain))
    parameters = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in plain.parameters())
    assert held - dense == 4 * 6 * parameters + 50 * (5 * 4 + 1) + 4 * (3 * 2 + 1)


def test_paths_are_made_absolute(dataset: TinyDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    vectors = {"text": VectorsConfig(path="a.npy", ids_path="b.npy", feature="user")}
    training = replace(make_sequence_config(dataset.path), model=ModelConfig(vectors=vectors))
    tree = {"features": dataset.schema, "pipeline": {"output": "unused"}, "training": training}
    found = with_places(parse_config(tree)).training.model.vectors["text"]
    assert (found.path, found.ids_path) == (str(tmp_path / "a.npy"), str(tmp_path / "b.npy"))


# ---------------------------------------------------------------------------------------------------------- pretrained


def make_pretrained(folder: Path, dataset: Path, **changes: Any) -> TrainingConfig:
    """Users' rows in both streams, of a table that sequences look up; ages' in one, of a table in a bag collection."""
    config = make_sequence_config(dataset, **changes)
    model = replace(
        config.model,
        selection=SeparateSelection(easy_ratio=1.0),
        pretrained={
            "user": PretrainedConfig(path=str(folder / "users8.parquet")),
            "age": PretrainedConfig(path=str(folder / "ages.parquet"), stream="hard", normalise=True),
        },
    )
    return replace(config, model=settle_vectors(model))


def start_all(folder: Path, dataset: Path, at: str) -> None:
    """Save each lane's tables as they are before the first step."""
    for lane, changes in LANES.items():
        config, opened = make_pretrained(folder, dataset, **changes), Dataset.open(dataset)
        model = build_model(opened, config, torch.device("meta"))
        starts = read_starts(config.model, opened, model.tables)
        checkpoint.save(folder / at / lane, 1, parallelize(model, config, CPU, starts), {})


def test_tables_start_with_them_in_every_lane(dataset: TinyDataset, tmp_path: Path, one_rank: None) -> None:
    write_vectors(tmp_path / "users8.parquet", USERS, 8)
    write_vectors(tmp_path / "ages.parquet", ["20", "60"], 8)
    start_all(tmp_path, dataset.path, "one")
    on_two_ranks(tmp_path, start_all, tmp_path, dataset.path, "two")
    opened = Dataset.open(dataset.path)
    config = make_pretrained(tmp_path, dataset.path)
    usual = build_model(opened, config, CPU).state_dict()
    users = read_starts(config.model, opened, build_model(opened, config, CPU).tables)["user__easy"]
    ages = np.random.default_rng(0).normal(size=(2, 8)).astype(np.float32).astype(np.float64)
    for at in ("one", "two"):
        for lane, changes in LANES.items():
            model = build_model(opened, make_pretrained(tmp_path, dataset.path, **changes), CPU)
            newest = checkpoint.newest(tmp_path / at / lane)
            assert newest is not None
            checkpoint.restore_model(newest, model)
            for table in model.tables:
                name = f"embedding.{table.tensor_name()}"
                expected = usual[name].clone()
                if table.shared_name == "user":
                    expected[users.is_known_V] = torch.from_numpy(users.vectors_VW[users.is_known_V])
                elif table.name == "age__hard":
                    expected[[2, 4]] = torch.from_numpy(ages / np.linalg.norm(ages, axis=1, keepdims=True)).float()
                assert torch.equal(model.state_dict()[name], expected), (at, lane, name)
    assert 20 < users.counts.covered < 30 and bool(usual["embedding." + table_name("user__easy")].any())


def table_name(table: str) -> str:
    return f"sequences.{table.partition('__')[2]}_8.embeddings.{table}.weight"


def test_rows_are_trained_from_there_and_a_resumed_run_needs_no_file(
    dataset: TinyDataset, tmp_path: Path, one_rank: None
) -> None:
    path = write_vectors(tmp_path / "users8.parquet", USERS, 8)
    write_vectors(tmp_path / "ages.parquet", ["20", "60"], 8)
    config = make_pretrained(tmp_path, dataset.path)
    run = Run(tmp_path / "run")
    train_rank(run, replace(config, max_epochs=1))
    plain = replace(config, model=replace(config.model, pretrained={}))
    train_rank(Run(tmp_path / "plain"), replace(plain, max_epochs=1))
    assert losses(run) != losses(Run(tmp_path / "plain"))
    [event] = [e for e in run.events() if e["event"] == "pretrained"]
    assert event["features"]["user"]["tables"] == ["user__easy", "user__hard"]
    assert (event["features"]["age"]["tables"], event["features"]["age"]["covered"]) == (["age__hard"], 2)
    path.unlink()
    train_rank(run, config)
    assert event in run.events(), "the report tells of them after a resumed run too"
    with pytest.raises(VectorFileError, match=r"training\.model\.pretrained\.user: .*users8\.parquet is missing"):
        train_rank(Run(tmp_path / "other"), config)


def test_pretrained_vectors_that_do_not_fit(dataset: TinyDataset, tmp_path: Path) -> None:
    source = PretrainedConfig(path=str(write_vectors(tmp_path / "users.parquet", USERS, 8)))
    opened = Dataset.open(dataset.path)

    def read(pretrained: dict[str, PretrainedConfig], **blocks: Any) -> Any:
        model = ModelConfig(embedding_dim=8, easy=EASY, hard=HARD, pretrained=pretrained, **blocks)
        config = replace(make_sequence_config(dataset.path), model=model)
        return read_starts(model, opened, build_model(opened, config, torch.device("meta")).tables)

    with pytest.raises(VectorFileError, match=r"vectors of 8 numbers, and the table of the easy stream has rows of 4"):
        read({"user": source})
    assert list(read({"user": replace(source, stream="hard")})) == ["user__hard"]
    assert list(read({"user": source}, selection=SharedSelection())) == ["user__shared"]
    with pytest.raises(VectorFileError, match=r"no table of that feature is in a stream of the model \(shared\)"):
        read({"user": replace(source, stream="shared")})
    with pytest.raises(VectorFileError, match=r"pretrained\.nobody: no table of that feature"):
        read({"nobody": source})
    with pytest.raises(VectorFileError, match="'genres' has vectors, but is no sparse feature of one value"):
        read({"genres": replace(source, stream="hard")})
