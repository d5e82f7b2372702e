"""Attribution against naive oracles: rows permuted by hand, parts by formula, gates summed by hand."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from features.rows import Columns
from training.config import (
    BCEObjective,
    BilinearFusion,
    ConcatFusion,
    GateSelection,
    LinearEncoder,
    MLPEncoder,
    ModelConfig,
    MoEFusion,
    MoESelection,
    NoEncoder,
    SeparateSelection,
    SharedSelection,
    SingleFusion,
    StreamGatesSelection,
    SumFusion,
    TwinFocusObjective,
    VotingFusion,
    WeightedSumFusion,
)
from training.data.batch import to_batch
from training.judge.calibration import Calibration
from training.judge.metrics import auc, logloss
from training.model.ctr_model import CTRModel
from training.model.fusion import FUSIONS
from training.model.selection import SELECTIONS
from training.ship.attribution import AttributionError, attribute, num_passes

EASY, HARD = MLPEncoder((8,), dropout=0.0), MLPEncoder((16, 8), dropout=0.0)
SELECTION_CONFIGS = {
    "separate": SeparateSelection(),
    "gate": GateSelection(),
    "moe": MoESelection(),
    "stream_gates": StreamGatesSelection(easy_context=("user",), hidden_units=(8,)),
    "shared": SharedSelection(),
}
FUSION_CONFIGS = {
    "weighted_sum": WeightedSumFusion(),
    "voting": VotingFusion(),
    "concat": ConcatFusion(),
    "moe": MoEFusion(),
    "sum": SumFusion(),
    "bilinear": BilinearFusion(),
}
LINEAR = ModelConfig(
    selection=SharedSelection(),
    easy=NoEncoder(),
    hard=LinearEncoder(),
    fusion=SingleFusion(),
    objective=BCEObjective(),
)
assert SELECTION_CONFIGS.keys() == SELECTIONS.keys()
assert {*FUSION_CONFIGS, "single"} == FUSIONS.keys()


@pytest.fixture
def tiny(make_dataset: Callable[..., Any]) -> Any:
    return make_dataset(valid=((150, 50), (100,)))


def two_streams(selection: str = "shared", fusion: str = "sum", **changes: Any) -> ModelConfig:
    blocks = {"selection": SELECTION_CONFIGS[selection], "fusion": FUSION_CONFIGS[fusion]}
    return ModelConfig(embedding_dim=4, embedding_init_std=1.0, easy=EASY, hard=HARD, **blocks, **changes)


def make_model(tiny: Any, config: ModelConfig) -> CTRModel:
    """In evaluation mode, with biases that are not zero."""
    model = CTRModel(tiny.schema, tiny.num_embeddings, config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(generator=torch.Generator().manual_seed(len(name)))
    return model


def run(tiny: Any, model: CTRModel, columns: Columns | None = None, **changes: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {"num_repeats": 2, "seed": 5, "batch_size": 128}
    settings |= {"objective": TwinFocusObjective(), "calibration": Calibration(), **changes}
    return attribute(model, columns or tiny.columns["valid"], tiny.schema, **settings)


def orders(num_rows: int, num_repeats: int = 2, seed: int = 5) -> list[np.ndarray]:
    return [np.random.default_rng((seed, repeat)).permutation(num_rows) for repeat in range(num_repeats)]


def test_importance_is_that_of_permuting_by_hand(tiny: Any):
    model = make_model(tiny, LINEAR)
    rng = np.random.default_rng(0)
    user, genres = np.where(np.arange(50) % 2, 1.5, -1.5), rng.normal(size=20)
    by_hand = {"user": user, "genres": genres}
    with torch.no_grad():
        for table in model.tables:
            weight_VD = model.get_parameter(f"embedding.bags.embedding_bags.{table.name}.weight").zero_()
            if table.feature in by_hand:
                weight_VD[:, 0] = torch.from_numpy(by_hand[table.feature])
        model.embedding.dense_vectors["first_order_hard"].copy_(torch.tensor([[0.0], [0.01]]))
        for name, value in (("weight", 1.0), ("bias", 0.3)):
            model.get_parameter(f"fusion.hard_head.{name}").fill_(value)
    columns = tiny.columns["valid"]
    calibration = Calibration(0.5, 0.1)

    def logits(**changed: np.ndarray) -> np.ndarray:
        c = columns | changed
        used = np.arange(3) < c["genres__length"][:, None]
        bag = (genres[c["genres"]] * used).sum(axis=1) / np.maximum(c["genres__length"], 1)
        return user[c["user"]] + bag + 0.01 * c["price"] + 0.3

    def cost(permuted: np.ndarray) -> tuple[float, float]:
        rows = columns["label"], columns["weight"]
        before, after = (0.5 * z + 0.1 for z in (logits(), permuted))
        return auc(before, *rows) - auc(after, *rows), logloss(after, *rows) - logloss(before, *rows)  # pyright: ignore

    found = run(tiny, model, calibration=calibration, objective=BCEObjective())
    features = {entry["name"]: entry for entry in found["features"]}
    for name in ("user", "genres", "price"):
        group = ("genres", "genres__length") if name == "genres" else (name,)
        costs = [cost(logits(**{c: columns[c][order] for c in group})) for order in orders(300)]
        for measure, values in zip(("auc_drop", "logloss_rise"), zip(*costs, strict=True), strict=True):
            assert features[name][measure] == pytest.approx(np.mean(values), abs=1e-6)
            assert features[name][f"{measure}_std"] == pytest.approx(np.std(values, ddof=1), abs=1e-6)
    for name in ("device", "age", "row"):  # the model ignores them
        assert features[name]["auc_drop"] == features[name]["auc_drop_std"] == features[name]["logloss_rise"] == 0

    assert found["features"][0]["name"] == "user"  # what the label depends on, used the right way round
    assert features["user"]["auc_drop"] > 0.1
    assert [branch["name"] for branch in found["branches"]] == ["hard"]
    [part] = found["parts"]
    assert part.keys() == {"name", "mean_abs_part", "variance_share"}
    assert (part["name"], part["variance_share"]) == ("hard", pytest.approx(1))


def test_a_branch_is_permuted_as_features_are(tiny: Any):
    model = make_model(tiny, two_streams(selection="separate"))
    with torch.no_grad():
        model.fusion.hard_head.weight.zero_()  # pyright: ignore
        batch = to_batch(tiny.columns["valid"], tiny.schema)
        logits = model(batch).fused.double().numpy()
        own_bias = float(model.get_parameter("fusion.hard_head.bias"))
    rows = tiny.columns["valid"]["label"], tiny.columns["valid"]["weight"]
    found = run(tiny, model)
    easy, hard = found["branches"]
    drops = [auc(logits, *rows) - auc(logits[order], *rows) for order in orders(300)]  # pyright: ignore
    assert easy["auc_drop"] == pytest.approx(np.mean(drops), abs=1e-6)
    assert easy["auc_drop"] != 0
    easy, hard_part = found["parts"]
    assert hard["auc_drop"] == hard_part["variance_share"] == 0
    assert easy["variance_share"] == pytest.approx(1)
    assert easy["auc"] == pytest.approx(auc(logits - own_bias, *rows))


@pytest.mark.parametrize("fusion", ["weighted_sum", "sum", "concat", "bilinear"])
def test_parts_of_the_fused_logit_by_formula(tiny: Any, fusion: str):
    model = make_model(tiny, two_streams(fusion=fusion))
    columns = tiny.columns["valid"]
    weights = columns["weight"].astype(float)
    outputs: dict[str, Any] = {}
    model.fusion.register_forward_pre_hook(lambda _, vectors: outputs.update(easy=vectors[0], hard=vectors[1]))
    with torch.no_grad():
        if fusion == "weighted_sum":
            model.fusion.weight.copy_(torch.tensor([0.7, -0.2]))  # pyright: ignore
        fused = model(to_batch(columns, tiny.schema)).fused.double().numpy()
    easy, hard = (outputs[name].double().numpy() for name in ("easy", "hard"))
    means = [np.average(h, axis=0, weights=weights) for h in (easy, hard)]
    easy, hard = easy - means[0], hard - means[1]
    state = {name: value.double().numpy() for name, value in model.fusion.state_dict().items()}
    scales = state["weight"] if fusion == "weighted_sum" else (1, 1)
    heads = [s * state[f"{name}_head.weight"][0] for s, name in zip(scales, ("easy", "hard"), strict=True)]
    if fusion == "concat":
        heads = np.split(state["fused_head.weight"][0], 2)
    if fusion == "bilinear":  # the other branch's mean output is part of what this one is multiplied with
        matrix = state["weight"][0]
        heads = [heads[0] + matrix @ means[1], heads[1] + means[0] @ matrix]
    expected = {"easy": easy @ heads[0], "hard": hard @ heads[1]}
    if fusion == "bilinear":
        expected["joint"] = ((easy @ matrix) * hard).sum(axis=1)  # pyright: ignore

    found = run(tiny, model)
    parts = {part["name"]: part for part in found["parts"]}
    assert parts.keys() == expected.keys()
    mean = np.average(fused, weights=weights)
    for name, part in expected.items():
        assert parts[name]["mean_abs_part"] == pytest.approx(np.average(np.abs(part), weights=weights), rel=1e-4)
        centred = part - np.average(part, weights=weights)
        share = (weights @ (centred * (fused - mean))) / (weights @ (fused - mean) ** 2)
        assert parts[name]["variance_share"] == pytest.approx(share, abs=1e-4)


@pytest.mark.parametrize(
    ("selection", "fusion"), [*((s, "voting") for s in SELECTION_CONFIGS), *(("shared", f) for f in FUSION_CONFIGS)]
)
def test_every_selection_and_fusion(tiny: Any, selection: str, fusion: str):
    model = make_model(tiny, two_streams(selection, fusion))
    passes = []
    found = run(tiny, model, num_repeats=1, on_pass=lambda: passes.append(1))
    assert len(passes) == num_passes(tiny.schema, 1)
    assert [branch["name"] for branch in found["branches"]] == ["easy", "hard"]
    names = ["easy", "hard", *(["joint"] if fusion in ("voting", "moe", "bilinear") else [])]
    assert [part["name"] for part in found["parts"]] == names
    assert sum(part["variance_share"] for part in found["parts"]) == pytest.approx(1, abs=1e-4)
    assert ["auc" in part for part in found["parts"]] == [name != "joint" for name in names]
    assert np.sum(found["p_t"]) == pytest.approx(1)
    assert (found["fusion_weights"] is not None) == (fusion == "weighted_sum")

    gates = {gate["name"]: gate for gate in found["gates"]}
    num_gates = {"gate": 1, "moe": 2, "stream_gates": 2}.get(selection, 0) + (fusion in ("voting", "moe"))
    assert len(gates) == num_gates
    for gate in gates.values():
        for series in gate["series"].values():
            assert 0 < series["mean"] < gate["top"]
            assert 0 <= series["deviation"] < gate["top"] / 2
            assert sum(series["histogram"]) == pytest.approx(1)
    if selection == "stream_gates":
        factors = gates["selection, hard stream"]["series"]
        assert list(factors) == ["user", "genres", "device", "age", "row", "price"]


def test_the_seed_decides(tiny: Any):
    model = make_model(tiny, two_streams("gate", "voting"))
    assert run(tiny, model) == run(tiny, model)
    assert run(tiny, model, seed=6)["features"] != run(tiny, model)["features"]


def test_gates_are_summarised_by_weight(tiny: Any):
    model = make_model(tiny, two_streams("gate"))
    columns = tiny.columns["valid"]
    batch = to_batch(columns, tiny.schema)
    with torch.no_grad():
        streams, _ = model.embedding(batch.sparse_features, batch.dense_features, batch.num_rows)
        g = model.selection.gates(streams)["selection"][:, 0].numpy()
    [gate] = run(tiny, model)["gates"]
    series = gate["series"]["share of the easy stream"]
    weights = columns["weight"]
    mean = np.average(g, weights=weights)
    assert series["mean"] == pytest.approx(mean, abs=1e-6)
    assert series["deviation"] == pytest.approx(np.average((g - mean) ** 2, weights=weights) ** 0.5, abs=1e-6)
    histogram = [weights[(g >= i / 20) & (g < (i + 1) / 20)].sum() / weights.sum() for i in range(20)]
    assert series["histogram"] == pytest.approx(histogram, abs=1e-6)


def test_gates_of_coordinates_are_summarised_field_by_field(tiny: Any):
    model = make_model(tiny, two_streams("stream_gates"))
    columns = tiny.columns["valid"]
    batch = to_batch(columns, tiny.schema)
    with torch.no_grad():
        streams, _ = model.embedding(batch.sparse_features, batch.dense_features, batch.num_rows)
        factors_BFD = model.selection.gates(streams)["selection, easy stream"].view_as(streams["shared"]).numpy()
    gates = {gate["name"]: gate for gate in run(tiny, model)["gates"]}
    for i, name in enumerate((*tiny.schema.sparse_names, *tiny.schema.dense_names)):
        mean = np.average(factors_BFD[:, i].mean(axis=1), weights=columns["weight"])
        assert gates["selection, easy stream"]["series"][name]["mean"] == pytest.approx(mean, abs=1e-6)
    assert gates["selection, easy stream"]["top"] == 2


@pytest.mark.parametrize(
    ("fusion", "objective", "judged"),
    [
        ("sum", BCEObjective(), set()),  # a part of each logit may lie in either head
        ("concat", BCEObjective(), set()),  # nothing trains the heads
        ("sum", TwinFocusObjective(alpha=0.0), {"hard"}),
        ("sum", TwinFocusObjective(alpha=1.0), {"easy"}),
        ("concat", TwinFocusObjective(), {"easy", "hard"}),
    ],
)
def test_only_logits_that_a_loss_asks_to_predict_are_judged(tiny: Any, fusion: str, objective: Any, judged: set[str]):
    model = make_model(tiny, two_streams(fusion=fusion, objective=objective))
    found = run(tiny, model, num_repeats=1, objective=objective)
    own = {"auc", "logloss", "mean_logit_positives", "mean_logit_negatives"}
    assert {part["name"] for part in found["parts"] if own & part.keys()} == judged
    assert (found["p_t"] is not None) == (len(judged) == 2)
    assert all(branch["auc_drop"] for branch in found["branches"])


def test_one_repeat_has_no_deviation(tiny: Any):
    found = run(tiny, make_model(tiny, two_streams()), num_repeats=1)
    assert all(entry["auc_drop_std"] is None for entry in (*found["features"], *found["branches"]))


def test_rows_of_one_class_are_refused(tiny: Any):
    columns = tiny.columns["valid"] | {"label": np.zeros(300, np.float32)}
    with pytest.raises(AttributionError, match="one class"):
        run(tiny, make_model(tiny, two_streams()), columns)
