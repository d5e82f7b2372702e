"""A model that begins with what one of other features knows: what is the same computes the same."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchrec import KeyedJaggedTensor

from features.disk.run_folder import RunError
from features.learnt import Learnt
from features.schema import (
    BoundariesEncoding,
    DenseFeature,
    FeatureSchema,
    HashEncoding,
    SequenceFeature,
    SparseFeature,
    VocabularyEncoding,
)
from jobs.launch.run_guard import prepare_run
from tests.ranks import on_two_ranks
from tests.stand_ins.tiny_dataset import tiny_schema
from tests.training.fit.test_run import LANES, make_config
from tests.training.fit.test_warm_start import begun, finish
from tests.training.model.test_encoders import CONFIGS
from training.config import (
    BilinearFusion,
    ConcatFusion,
    DINHistory,
    GateSelection,
    MLPEncoder,
    ModelConfig,
    MoESelection,
    StreamGatesSelection,
)
from training.data.batch import Batch, to_batch
from training.data.opened_dataset import Dataset
from training.fit.run import Run, build_model, find_transplant, train_rank
from training.model.ctr_model import CTRModel
from training.sharding import checkpoint
from training.sharding.checkpoint_reader import CheckpointError
from training.sharding.transplant import Knowledge, Transplant

A, B, C = (SparseFeature(name, VocabularyEncoding()) for name in ("a", "b", "c"))
TAGS = SparseFeature("tags", HashEncoding(9), separator="|", max_length=2)
X, Y = DenseFeature("x"), DenseFeature("y")
VALUES = {"a": ["a1", "a2", "a3"], "b": ["b1", "b2"], "c": ["c1", "c2"]}
OLD = Knowledge(FeatureSchema("click", (A, B, TAGS), (X, Y)), Learnt({n: VALUES[n] for n in "ab"}))
MLP = MLPEncoder((6, 5), dropout=0.0)


def shuffled() -> Knowledge:
    """The same features in another order, and the same values under other ids."""
    learnt = Learnt({"a": ["a3", "new", "a1", "a2"], "b": ["b2", "b1"]}, out_of_vocabulary={"a": 2})
    return Knowledge(FeatureSchema("click", (TAGS, B, A), (Y, X)), learnt)


def rows_for(knowledge: Knowledge, tokens: dict[str, list[str]], num_rows: int = 8) -> Batch:
    """Rows of the given values, as ids of a model."""
    random = np.random.default_rng(3)
    columns: dict[str, Any] = {
        "tags": random.integers(1, 9, (num_rows, 2), dtype=np.int32),
        "tags__length": random.integers(0, 3, num_rows).astype(np.int32),
        "x": random.normal(size=num_rows).astype(np.float32),
        "y": random.normal(size=num_rows).astype(np.float32),
        "z": np.zeros(num_rows, np.float32),
        "label": np.zeros(num_rows, np.float32),
    }
    for name, values in tokens.items():
        if name in knowledge.learnt.vocabularies:
            ids = knowledge.learnt.ids_of(name)
            columns[name] = np.array([ids.get(v, knowledge.learnt.oov_id(name)) for v in values], np.int32)
    return to_batch(columns, knowledge.schema, None)


TOKENS = {"a": ["a1", "a2", "a3", "?"] * 2, "b": ["b1", "b2"] * 4, "c": ["c1"] * 8}


def model_of(knowledge: Knowledge, config: ModelConfig, seed: int) -> CTRModel:
    """A model whose every number, batch norms' too, is far from its beginning."""
    model = CTRModel(knowledge.schema, knowledge.num_embeddings(), config, seed=seed)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.copy_(torch.rand(value.shape, generator=random) - 0.4)
        for name, value in model.state_dict().items():
            if name.endswith("running_var"):
                value.abs_()
    return model.eval()


def take_over(old: CTRModel, new: CTRModel, transplant: Transplant) -> set[str]:
    ours, theirs = ({f"model.{n}": v for n, v in model.state_dict().items()} for model in (new, old))
    found = transplant.targets({name: value.shape for name, value in theirs.items()}, ours)
    taken = {name: (old_name, of) for name, old_name, of in found}
    for name, (old_name, places) in taken.items():
        places.fill(ours[name], theirs[old_name])
    return set(taken)


SELECTIONS = [GateSelection(dropout=0.0), MoESelection(dropout=0.0), StreamGatesSelection(hidden_units=(4,))]
MODELS = {
    **{
        f"{kind} {i}": ModelConfig(embedding_dim=4, easy=MLP, hard=config)
        for kind, configs in CONFIGS.items()
        for i, config in enumerate(configs)
        if kind not in ("fgcnn", "none")
    },
    **{s.kind: ModelConfig(embedding_dim=4, easy=MLP, hard=MLP, selection=s) for s in SELECTIONS},
    "concat": ModelConfig(embedding_dim=4, easy=CONFIGS["cross_net"][0], hard=MLP, fusion=ConcatFusion()),
    "bilinear": ModelConfig(
        embedding_dim=4, easy=CONFIGS["cross_net"][0], hard=MLP, fusion=BilinearFusion(num_heads=1)
    ),
}


@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)
def test_the_same_features_in_another_order_compute_the_same(config: ModelConfig) -> None:
    transplant = Transplant(OLD, shuffled(), config)
    old, new = model_of(OLD, config, 1), model_of(shuffled(), config, 2)
    assert take_over(old, new, transplant) == {f"model.{name}" for name in new.state_dict()}
    before, now = (m(rows_for(k, TOKENS)).fused for m, k in ((old, OLD), (new, shuffled())))
    torch.testing.assert_close(now, before, rtol=1e-4, atol=1e-6)
    assert before.std() > 5e-5
    assert (
        transplant.describe()
        == "begins with what another model knows of 5 of 5 features: the same features, with other vocabularies"
    )


def with_sequence(knowledge: Knowledge, *names: str) -> Knowledge:
    """The same features, and a sequence of ``a`` of each name."""
    sequences = tuple(SequenceFeature(name, ("a",), 3, newest="first") for name in names)
    return Knowledge(replace(knowledge.schema, sequence=sequences), knowledge.learnt)


def with_events(batch: Batch, knowledge: Knowledge, lengths: list[int]) -> Batch:
    """The batch with so many events of id 2 in each row of each sequence."""
    ids, keys = batch.sparse_features, [part.name for part in knowledge.schema.parts]
    events = torch.full((len(keys) * sum(lengths),), 2)
    return replace(
        batch,
        sparse_features=KeyedJaggedTensor(
            [*ids.keys(), *keys],
            torch.cat([ids.values(), events]),
            lengths=torch.cat([ids.lengths(), torch.tensor(lengths * len(keys))]),
        ),
    )


def test_a_new_sequence_finds_the_tables_of_a_model_without_it() -> None:
    config = ModelConfig(embedding_dim=4, easy=MLP, hard=MLP)
    later = with_sequence(shuffled(), "clicks")
    old, new = model_of(OLD, config, 1), model_of(later, config, 2)
    transplant = Transplant(OLD, later, config)
    assert take_over(old, new, transplant) == {f"model.{name}" for name in new.state_dict()}
    assert transplant.describe().endswith("knows of 5 of 6 features: added clicks")
    before = old(rows_for(OLD, TOKENS)).fused
    now = new(with_events(rows_for(shuffled(), TOKENS), later, [0] * 8)).fused
    torch.testing.assert_close(now, before, rtol=1e-4, atol=1e-6)  # no events are no field
    assert (new(with_events(rows_for(shuffled(), TOKENS), later, [2] * 8)).fused - before).abs().min() > 1e-5


def test_a_sequence_that_is_kept_is_taken_over() -> None:
    config = ModelConfig(embedding_dim=4, easy=MLP, hard=MLP, sequences={"clicks": DINHistory((3,))})
    before, now = with_sequence(OLD, "clicks", "buys"), with_sequence(OLD, "saves", "clicks")
    old, new = model_of(before, config, 1), model_of(now, config, 2)
    transplant = Transplant(before, now, config)
    assert transplant.describe().endswith("knows of 6 of 7 features: added saves; dropped buys")
    taken = take_over(old, new, transplant)
    assert {name for name in taken if "histories" in name} == {
        f"model.{name}" for name in new.state_dict() if "histories" in name and "clicks" in name
    }
    batch = rows_for(OLD, TOKENS)
    theirs = with_events(batch, before, [2] * 8)
    theirs.sparse_features = _without(theirs.sparse_features, "buys__a")
    ours = with_events(batch, now, [2] * 8)
    ours.sparse_features = _without(ours.sparse_features, "saves__a")
    torch.testing.assert_close(new(ours).fused, old(theirs).fused, rtol=1e-4, atol=1e-6)


def test_a_sequence_of_other_parts_begins_anew_and_that_is_said() -> None:
    config = ModelConfig(embedding_dim=4, easy=MLP, hard=MLP, sequences={"clicks": DINHistory((3,))})
    before = with_sequence(OLD, "clicks", "buys")
    clicks, buys = before.schema.sequence
    now = Knowledge(replace(before.schema, sequence=(replace(clicks, parts=("b",)), buys)), OLD.learnt)
    transplant = Transplant(before, now, config)
    assert transplant.describe() == (
        "begins with what another model knows of 6 of 7 features: changed clicks; begins anew: encoders of sequence "
        "clicks (of b, before of a)"
    )
    taken = take_over(model_of(before, config, 1), model_of(now, config, 2), transplant)
    assert not [name for name in taken if "histories.encoders.clicks" in name]


def test_a_cut_off_of_dwell_times_is_kept_with_its_sequence() -> None:
    def knowledge(max_length: int) -> Knowledge:
        clicks = SequenceFeature("clicks", ("a",), 3, newest="first", dwell_weights=True)
        buys = SequenceFeature("buys", ("a",), max_length, newest="first", dwell_weights=True)
        return Knowledge(replace(OLD.schema, sequence=(clicks, buys)), OLD.learnt)

    config = ModelConfig(embedding_dim=4, easy=MLP, hard=MLP)
    before, now = knowledge(3), knowledge(4)
    old, new = model_of(before, config, 1), model_of(now, config, 2)
    taken = take_over(old, new, Transplant(before, now, config))
    assert {name for name in taken if "dwell" in name} == {"model.dwell_weights.clicks"}
    theirs, ours = old.dwell_weights.state_dict(), new.dwell_weights.state_dict()
    assert torch.equal(ours["clicks"], theirs["clicks"]) and not torch.equal(ours["buys"], theirs["buys"])


def _without(ids: KeyedJaggedTensor, empty: str) -> KeyedJaggedTensor:
    """The same ids, but none of one key."""
    parts = {key: ids[key] for key in ids.keys()}  # noqa: SIM118
    values = torch.cat([part.values()[: 0 if key == empty else None] for key, part in parts.items()])
    lengths = torch.cat([part.lengths() * (key != empty) for key, part in parts.items()])
    return KeyedJaggedTensor([*parts], values, lengths=lengths)


ZERO_IS_NOTHING = [name for name in MODELS if name.split()[0] not in ("autoint", "moe", "gate", "stream_gates")]
ZERO_IS_NOTHING.remove("qnn 0")  # its batch norm moves zeros
"""Models to which a field of zeros is as no field, where the other weights are the same."""


@pytest.mark.parametrize("name", ZERO_IS_NOTHING)
def test_a_field_that_is_new_changes_nothing_while_it_is_zero(name: str) -> None:
    now = Knowledge(FeatureSchema("click", (B, A, TAGS), (DenseFeature("z"), X, Y)), OLD.learnt)
    transplant = Transplant(OLD, now, MODELS[name])
    old, new = model_of(OLD, MODELS[name], 1), model_of(now, MODELS[name], 2)
    take_over(old, new, transplant)
    before, after = (m(rows_for(k, TOKENS)).fused for m, k in ((old, OLD), (new, now)))
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)
    assert transplant.describe() == "begins with what another model knows of 5 of 6 features: added z"


def test_added_dropped_and_changed_features_are_told_apart() -> None:
    schema = FeatureSchema(
        "click",
        (replace(A, encoding=VocabularyEncoding(min_count=3)), C, replace(TAGS, encoding=HashEncoding(12))),
        (replace(X, log1p=True), Y),
    )
    now = Knowledge(schema, Learnt({n: VALUES[n] for n in "ac"}))
    config = ModelConfig(embedding_dim=4, easy=MLP, hard=MLP)
    transplant = Transplant(OLD, now, config)
    assert transplant.kept == ["a", "y"], "which values a vocabulary takes in does not change what they mean"
    assert transplant.describe() == (
        "begins with what another model knows of 2 of 5 features: added c; dropped b; changed tags, x"
    )
    old, new = model_of(OLD, config, 1), model_of(now, config, 2)
    fresh = {name: value.clone() for name, value in new.state_dict().items()}
    take_over(old, new, transplant)
    state, before = new.state_dict(), old.state_dict()
    for stream in ("easy", "hard"):
        assert torch.equal(*(s[f"embedding.bags.embedding_bags.a__{stream}.weight"] for s in (state, before)))
        for table in ("c", "tags"):
            name = f"embedding.bags.embedding_bags.{table}__{stream}.weight"
            assert torch.equal(state[name], fresh[name]), "untrained"
        name = f"embedding.dense_vectors.{stream}"
        assert torch.equal(state[name][1], before[name][1]) and torch.equal(state[name][0], fresh[name][0])
        weight = f"{stream}_encoder.layers.0.weight"
        ours, theirs, untrained = (s[weight].unflatten(1, (5, -1)) for s in (state, before, fresh))
        for field, was in ((0, 0), (4, 4)):
            assert torch.equal(ours[:, field], theirs[:, was])
        assert torch.equal(ours[:, 1:4], untrained[:, 1:4])
        name = f"{stream}_encoder.layers.3.weight"
        assert torch.equal(state[name], before[name])


def test_another_model_is_no_matter_of_features() -> None:
    wide = ModelConfig(embedding_dim=4, easy=MLP, hard=MLPEncoder((7, 5), dropout=0.0))
    old, new = model_of(OLD, ModelConfig(embedding_dim=4, easy=MLP, hard=MLP), 1), model_of(shuffled(), wide, 2)
    with pytest.raises(CheckpointError, match=r"hard_encoder.layers.0.weight .* needs the same training\.model"):
        take_over(old, new, Transplant(OLD, shuffled(), wide))
    wide = replace(wide, hard=MLP, embedding_dim=8)
    with pytest.raises(CheckpointError, match="needs the same"):
        take_over(old, model_of(shuffled(), wide, 2), Transplant(OLD, shuffled(), wide))


# -------------------------------------------------------------------------------------------------------- in a training


def other_schema() -> FeatureSchema:
    tiny = tiny_schema()
    user, _, device, _ = tiny.sparse
    age = SparseFeature("age", BoundariesEncoding((18.0, 35.0, 50.0)))
    more = SparseFeature("more", HashEncoding(num_buckets=20), separator="|", max_length=2)
    return replace(tiny, sparse=(more, device, age, user), dense=(*tiny.dense[1:], tiny.dense[0]))


@pytest.mark.parametrize("lane", ["row_wise", "column_wise", "replicated", "averaged dense"])
def test_a_training_with_other_features_takes_over_weights_and_optimizer(
    tmp_path: Path, one_rank: None, make_dataset: Any, lane: str
) -> None:
    first = make_dataset(name="first").path
    second = make_dataset(name="second", schema=other_schema(), devices=("watch",), seed=4).path
    config = make_config(first, **LANES[lane], max_epochs=1)
    run = finish(tmp_path / "first-run", config)
    warm = replace(config, dataset=str(second), warm_start=str(run.path))
    with pytest.raises(RunError, match=r"training\.warm_start_other_features = true begins"):
        train_rank(Run(tmp_path / "refused"), warm)
    warm = replace(warm, warm_start_other_features=True)
    transplant = find_transplant(warm, Dataset.open(second))
    assert transplant is not None
    said = "begins with what another model knows of 4 of 6 features: added more; dropped genres; changed age"
    assert transplant.describe() == said

    from training.sharding.parallelize import parallelize

    parallel = parallelize(build_model(Dataset.open(second), warm, torch.device("meta")), warm, torch.device("cpu"))
    checkpoint.begin_with_others(checkpoint.best(run.checkpoints), parallel, transplant)
    assert parallel.learning_rates == begun(first, config, run)[0].learning_rates
    checkpoint.save(tmp_path / "whole", 1, parallel, {})
    old, new = (build_model(Dataset.open(d), config, torch.device("cpu")) for d in (first, second))
    for found, model in ((checkpoint.best(run.checkpoints), old), (checkpoint.newest(tmp_path / "whole"), new)):
        assert found is not None
        checkpoint._load(found, {"model": model.state_dict()})
    before, now = old.state_dict(), new.state_dict()
    for stream in ("easy", "hard"):
        name = f"embedding.bags.embedding_bags.{{}}__{stream}.weight"
        assert torch.equal(now[name.format("user")], before[name.format("user")])
        assert torch.equal(now[name.format("device")][:4], before[name.format("device")])
        ours, theirs = (s[f"{stream}_encoder.layers.0.weight"].unflatten(1, (6, -1)) for s in (now, before))
        for field, was in ((1, 2), (3, 0), (4, 5), (5, 4)):
            assert torch.equal(ours[:, field], theirs[:, was])
    if lane != "column_wise":  # SGD has no state
        states = [_optimizer_of(checkpoint.best(run.checkpoints)), _optimizer_of(checkpoint.newest(tmp_path / "whole"))]
        rows = [name for name in states[1] if "user__hard.weight" in name and states[1][name].dim()]
        assert rows and all(torch.equal(*(state[name] for state in states)) for name in rows)
        assert all(bool(states[1][name].any()) for name in rows)

    trained = Run(tmp_path / "warm")
    tree = {**run.read("config.json"), "features": other_schema(), "training": warm}
    from jobs.cli.config import parse_config

    trained.path.mkdir()
    prepare_run(trained.path, parse_config(tree), resume=False)
    train_rank(trained, warm)
    events = [line for line in trained.history.read_text().splitlines() if said in line]
    assert len(events) == 1 and trained.is_finished


def _optimizer_of(found: checkpoint.Checkpoint | None) -> dict[str, torch.Tensor]:
    assert found is not None
    with checkpoint._reader(found) as reader:
        entries = reader.read_metadata().state_dict_metadata
    state = {
        n: torch.empty(e.size) for n, e in entries.items() if n.startswith("optimizer.state.") and hasattr(e, "size")
    }
    checkpoint._load(found, dict(state), alone=True)
    return state


def fit(run: Run, config: Any) -> None:
    train_rank(run, config)


def test_two_ranks_take_over_as_one_does(tmp_path: Path, one_rank: None, make_dataset: Any) -> None:
    changes = LANES["mixed"] | {"max_epochs": 1}
    run = finish(tmp_path / "first-run", make_config(make_dataset(name="first").path, **changes))
    second = make_dataset(name="second", schema=other_schema(), seed=4).path
    config = make_config(second, **changes, warm_start=str(run.path), warm_start_other_features=True)
    alone, together = Run(tmp_path / "alone"), Run(tmp_path / "together")
    alone.path.mkdir()
    together.path.mkdir()
    train_rank(alone, config)
    on_two_ranks(tmp_path, fit, together, config)
    ours, theirs = (found.read("metrics.json") for found in (alone, together))
    assert theirs["train"]["loss"] == pytest.approx(ours["train"]["loss"], rel=1e-5)
    assert theirs["valid"]["logloss"] == pytest.approx(ours["valid"]["logloss"], rel=1e-5)


def test_the_same_dataset_begins_as_ever(tmp_path: Path, one_rank: None, make_dataset: Any) -> None:
    first = make_dataset(name="first").path
    run = finish(tmp_path / "first-run", make_config(first, max_epochs=1))
    config = make_config(first, warm_start=str(run.path), max_epochs=1)
    runs = [Run(tmp_path / f"{switch}") for switch in (False, True)]
    for switch, warm in zip((False, True), runs, strict=True):
        train_rank(warm, replace(config, warm_start_other_features=switch))
    losses = [[e.get("loss") for e in map(__import__("json").loads, r.history.read_text().splitlines())] for r in runs]
    assert losses[0] == losses[1] and not any("begins with" in r.history.read_text() for r in runs)


def test_labels_pair_up() -> None:
    cin = CTRModel(OLD.schema, OLD.num_embeddings(), MODELS["cin 0"]).hard_encoder
    labels = cin.axis_labels("layers.1.weight", 1, 15, OLD.fields)
    assert labels == list(itertools.product(range(3), OLD.fields))


def test_an_encoder_of_a_sequence_that_the_old_model_lacks() -> None:
    config = ModelConfig(embedding_dim=4, easy=MLP, hard=MLP, sequences={"clicks": DINHistory((3,))})
    later = with_sequence(shuffled(), "clicks")
    old, new = model_of(OLD, replace(config, sequences={}), 1), model_of(later, config, 2)
    untouched = {f"model.{n}" for n in new.state_dict() if n.startswith("histories.")}
    assert (
        untouched
        and take_over(old, new, Transplant(OLD, later, config))
        == {f"model.{name}" for name in new.state_dict()} - untouched
    )
