"""CTRModel: the logs' parameter counts, the published first version, and every block with every other."""

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from features.schema import FeatureSchema
from training.config import (
    AutoIntEncoder,
    BCEObjective,
    BilinearFusion,
    CINEncoder,
    ConcatFusion,
    CrossNetEncoder,
    FGCNNEncoder,
    FMEncoder,
    GatedCrossNetEncoder,
    GateSelection,
    LinearEncoder,
    MLPEncoder,
    ModelConfig,
    MoEFusion,
    MoESelection,
    NoEncoder,
    QNNEncoder,
    SeparateSelection,
    SharedSelection,
    SingleFusion,
    StreamGatesSelection,
    SumFusion,
    TwinFocusObjective,
    VotingFusion,
    WeightedSumFusion,
)
from training.data.batch import Batch
from training.model.ctr_model import CTRModel
from training.model.embedding import ModelError
from training.model.encoders import ENCODERS, QuadraticNetwork
from training.model.fusion import FUSIONS
from training.model.hidden_layers import ReLUDropout
from training.model.normalization import GlobalBatchNorm
from training.model.objective import BCE, TwinFocus
from training.model.selection import SELECTIONS

Rows = dict[str, int]
SchemaMaker = Callable[..., FeatureSchema]
BatchMaker = Callable[..., Batch]
ModelMaker = Callable[..., CTRModel]

# Vocabulary sizes: the benchmark's published feature maps.
FRAPPE = "user 942, item 4084, daytime 9, weekday 9, isweekend 4, homework 5, cost 4, weather 11, country 82, city 233"
MOVIELENS = "user_id 16362, item_id 22575, tag_id 49659"
ML_1M = "UserID 6042, Gender 4, Age 9, Occupation 23, MovieID 3548"
KKBOX = (
    "msno 29506, song_id 172297, source_system_tab 10, source_screen_name 22, source_type 14, city 23, gender 4, "
    "registered_via 7, language 12, genre_ids 483, artist_name 25369, isrc 97, bd 9"
)
CRITEO_SIZES = (
    "44 99 122 41 220 112 80 69 92 6 27 37 72 1446 554 157339 117822 306 18 11882 630 5 39530 5131 156656 3176 28 "
    "11043 148913 12 4560 2003 5 154564 18 17 53031 82 40955"
)
CRITEO = ", ".join(f"F{i} {size}" for i, size in enumerate(CRITEO_SIZES.split()))
EASY_1, EASY_2 = MLPEncoder(hidden_units=(400,)), MLPEncoder(hidden_units=(400, 400))
SER, GM, MOE, NONE = SeparateSelection(), GateSelection(), MoESelection(), SharedSelection()
WSF, VF, CF, MOEF, SUM = WeightedSumFusion(), VotingFusion(), ConcatFusion(), MoEFusion(), SumFusion()


@pytest.mark.parametrize(
    ("dataset", "bags", "selection", "easy", "fusion", "expected"),
    [
        (FRAPPE, "", SER, EASY_2, WSF, 711_996),
        (FRAPPE, "", SER, EASY_1, VF, 551_596),
        (FRAPPE, "", SER, EASY_2, CF, 712_795),
        (FRAPPE, "", SER, EASY_2, MOEF, 715_198),
        (FRAPPE, "", SER, EASY_2, SUM, 711_994),
        (FRAPPE, "", NONE, EASY_1, WSF, 539_732),
        (FRAPPE, "", GM, EASY_1, CF, 547_092),
        (FRAPPE, "", MOE, EASY_1, WSF, 605_576),
        (FRAPPE, "", MOE, EASY_1, MOEF, 608_778),
        (FRAPPE, "", SER, FMEncoder(), WSF, 522_581),
        (MOVIELENS, "", SER, EASY_2, WSF, 2_641_908),
        (KKBOX, "genre_ids artist_name", SER, EASY_2, MOEF, 6_083_278),
        (ML_1M, "", SER, EASY_1, WSF, 604_628),
        (CRITEO, "", SER, EASY_2, WSF, 22_719_132),
        (CRITEO, "", NONE, EASY_2, WSF, 15_557_956),
    ],
)
def test_number_of_parameters_is_the_logs(
    dataset: str, bags: str, selection: Any, easy: Any, fusion: Any, expected: int, make_schema: SchemaMaker
) -> None:
    rows = {name: int(size) for name, size in (entry.split() for entry in dataset.split(", "))}
    schema = make_schema(" ".join(rows), bags=bags)
    config = ModelConfig(selection=selection, easy=easy, fusion=fusion)
    model = CTRModel(schema, rows, config, device="meta")
    assert sum(p.numel() for p in model.parameters()) == model.num_parameters == expected
    padded = CTRModel(schema, rows, config, device="meta", pad_tables=True)
    assert padded.num_parameters == expected
    width = {"separate": 24}.get(selection.kind, 16) + (easy.kind == "fm")
    assert sum(p.numel() for p in model.embedding.parameters()) == sum(rows.values()) * width


ROWS: Rows = {"user": 40, "item": 30, "genres": 9}
BLOCKS: dict[str, dict[str, Any]] = {
    "selection": {
        "separate": SER,
        "gate": GM,
        "moe": MOE,
        "stream_gates": StreamGatesSelection(easy_context=("user",), hidden_units=(5,)),
        "shared": NONE,
    },
    "encoder": {
        "mlp": MLPEncoder(hidden_units=(8, 6)),
        "cross_net": CrossNetEncoder(num_layers=2, low_rank=2),
        "gated_cross_net": GatedCrossNetEncoder(num_layers=2),
        "qnn": QNNEncoder(num_layers=2),
        "cin": CINEncoder(layer_units=(4, 3), first_order=True),
        "autoint": AutoIntEncoder(num_layers=2, attention_dim=8),
        "fgcnn": FGCNNEncoder(channels=(2, 2), kernel_height=3, new_channels=1, hidden_units=(6,)),
        "fm": FMEncoder(),
        "linear": LinearEncoder(),
    },
    "fusion": {"weighted_sum": WSF, "voting": VF, "concat": CF, "moe": MOEF, "sum": SUM, "bilinear": BilinearFusion()},
}


def test_every_block_is_tested_here() -> None:
    """A model of one stream ("none" and "single") has tests of its own below."""
    assert list(BLOCKS["selection"]) == list(SELECTIONS)
    assert [*BLOCKS["encoder"], "none"] == list(ENCODERS)
    assert [*BLOCKS["fusion"], "single"] == list(FUSIONS)


@pytest.fixture
def schema(make_schema: SchemaMaker) -> FeatureSchema:
    return make_schema("user item genres", bags="genres", dense="age")


def make_config(selection: str, easy: str, hard: str, fusion: str) -> ModelConfig:
    return ModelConfig(
        embedding_dim=6,
        selection=BLOCKS["selection"][selection],
        easy=BLOCKS["encoder"][easy],
        hard=BLOCKS["encoder"][hard],
        fusion=BLOCKS["fusion"][fusion],
    )


def trained(model: CTRModel) -> list[tuple[str, nn.Parameter]]:
    """Parameters that training sets: all but the biases before a batch norm, of which a qnn's products have none."""
    parameters = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    idle = len(list(model.parameters())) - len(parameters)
    of_products = [norm for part in model.modules() if isinstance(part, QuadraticNetwork) for norm in part.norms]
    assert idle == sum(isinstance(part, GlobalBatchNorm) for part in model.modules()) - len(of_products)
    return parameters


PAIRS = [
    *itertools.product(["separate"], BLOCKS["encoder"], BLOCKS["encoder"], ["weighted_sum"]),
    *itertools.product(["shared"], ["mlp", "fm", "linear", "autoint", "cin"], ["mlp", "linear"], ["weighted_sum"]),
    *itertools.product(["gate", "moe", "stream_gates"], ["mlp", "cross_net", "fm"], ["mlp"], ["weighted_sum"]),
    *itertools.product(["separate"], ["fm"], ["mlp"], BLOCKS["fusion"]),
]


@pytest.mark.parametrize(("selection", "easy", "hard", "fusion"), PAIRS)
def test_every_combination(
    selection: str,
    easy: str,
    hard: str,
    fusion: str,
    schema: FeatureSchema,
    make_batch: BatchMaker,
    make_model: ModelMaker,
) -> None:
    config = make_config(selection, easy, hard, fusion)
    model: CTRModel = make_model(schema, ROWS, config)
    batch: Batch = make_batch(schema, ROWS, num_rows=20, batch_size=24)
    logits = model(batch)
    assert [z.shape for z in logits] == [(20,)] * 3
    TwinFocus(TwinFocusObjective())(logits, batch.labels[:20], batch.weights[:20], 20.0).backward()
    for name, parameter in trained(model):
        assert parameter.grad is not None, f"{name} is never used"
        assert torch.isfinite(parameter.grad).all()
    for table in model.tables:
        gradient = model.embedding.bags.embedding_bags[table.name].weight.grad
        assert isinstance(gradient, Tensor) and gradient.abs().sum() > 0
    model.eval()
    first = model(batch)
    assert all(torch.equal(a, b) for a, b in zip(first, model(batch), strict=True))
    # A row's prediction is its own: not the other rows', not the padding's.
    alone: Batch = make_batch(schema, ROWS, num_rows=20)
    assert all(torch.equal(a, b) for a, b in zip(first, model(alone), strict=True))
    other: Batch = make_batch(schema, ROWS, num_rows=20, seed=1)
    assert not torch.allclose(first.fused, model(other).fused)
    # What is exported scores the same.
    exported = CTRModel(schema, ROWS, config, seed=1).eval()
    exported.load_state_dict(load(save({name: value.contiguous() for name, value in model.state_dict().items()})))
    assert all(torch.equal(a, b) for a, b in zip(first, exported(batch), strict=True))


@pytest.mark.parametrize(("selection", "easy", "hard", "fusion"), PAIRS)
def test_no_gradient_is_rounding_alone(
    selection: str,
    easy: str,
    hard: str,
    fusion: str,
    schema: FeatureSchema,
    make_batch: BatchMaker,
    make_model: ModelMaker,
) -> None:
    """Adam makes full steps of a gradient that is 0 but for rounding, so no such parameter may be trained."""
    model: CTRModel = make_model(schema, ROWS, make_config(selection, easy, hard, fusion)).double()
    batch: Batch = make_batch(schema, ROWS, num_rows=20)
    model.embedding.register_forward_hook(lambda _, __, out: ({name: x.double() for name, x in out[0].items()}, out[1]))
    logits = model(batch)
    TwinFocus(TwinFocusObjective())(logits, batch.labels, batch.weights, 20.0).backward()
    largest = {name: p.grad.abs().max() for name, p in trained(model) if p.grad is not None}
    for name, gradient in largest.items():
        assert gradient == 0 or gradient > 1e-10 * max(largest.values()), f"{name}: {gradient:.1e} is rounding"


@pytest.mark.parametrize("selection", ["gate", "moe", "stream_gates"])
@pytest.mark.parametrize(("easy", "hard"), [("linear", "mlp"), ("mlp", "linear")])
def test_sharing_an_embedding_with_an_encoder_that_reads_none_is_refused(
    selection: str, easy: str, hard: str, schema: FeatureSchema
) -> None:
    with pytest.raises(ModelError, match=f"selection '{selection}'.*linear.*reads none"):
        CTRModel(schema, ROWS, make_config(selection, easy, hard, "sum"))


def test_sharing_an_embedding_with_an_encoder_of_two_views_is_refused(schema: FeatureSchema) -> None:
    with pytest.raises(ModelError, match=r"hard encoder \(fgcnn\) has a second view"):
        CTRModel(schema, ROWS, make_config("shared", "mlp", "fgcnn", "sum"))


@pytest.mark.parametrize("kind", BLOCKS["encoder"])
def test_one_stream(kind: str, schema: FeatureSchema, make_batch: BatchMaker, make_model: ModelMaker) -> None:
    hard = BLOCKS["encoder"][kind]
    one = {"selection": NONE, "easy": NoEncoder(), "fusion": SingleFusion(), "objective": BCEObjective()}
    model: CTRModel = make_model(schema, ROWS, ModelConfig(embedding_dim=6, hard=hard, **one))
    batch: Batch = make_batch(schema, ROWS, num_rows=20)
    BCE(BCEObjective())(model(batch), batch.labels, batch.weights, 20.0).backward()
    for name, parameter in trained(model):
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, f"{name} is never used"
    with pytest.raises(ValueError, match="go together"):
        ModelConfig(hard=hard, **{**one, "fusion": SUM})
    with pytest.raises(ValueError, match="one stream takes"):
        ModelConfig(hard=hard, **{**one, "objective": TwinFocusObjective()})


def test_branch_heads_that_nothing_trains_are_frozen(schema: FeatureSchema) -> None:
    for fusion, objective, frozen in (
        (CF, BCEObjective(), ["fusion.easy_head", "fusion.hard_head"]),
        (CF, TwinFocusObjective(), []),
        (WSF, BCEObjective(), []),
    ):
        model = CTRModel(schema, ROWS, ModelConfig(fusion=fusion, objective=objective))
        found = {n.rsplit(".", 1)[0] for n, p in model.fusion.named_parameters(prefix="fusion") if not p.requires_grad}
        assert sorted(found) == frozen


def test_finalmlp_has_the_published_sizes(make_schema: SchemaMaker) -> None:
    """MovieLens: 1,040,902 = 90,242 rows of 10 + 138,482. Criteo_x4: 4,953,002 besides the tables."""
    rows = {"user": 90_000, "item": 200, "tag": 42}
    gates = StreamGatesSelection(hidden_units=(800,))
    easy, hard = MLPEncoder(hidden_units=(400,)), MLPEncoder(hidden_units=(800,))
    config = ModelConfig(embedding_dim=10, selection=gates, easy=easy, hard=hard, fusion=BilinearFusion(num_heads=10))
    assert CTRModel(make_schema(" ".join(rows)), rows, config, device="meta").num_parameters == 1_040_902

    rows = dict.fromkeys((f"f{i}" for i in range(39)), 2)
    easy, hard = (MLPEncoder(hidden_units=units, batch_norm=False) for units in ((1000,) * 5, (500,)))
    config = ModelConfig(selection=NONE, easy=easy, hard=hard, fusion=BilinearFusion(num_heads=50))
    model = CTRModel(make_schema(" ".join(rows)), rows, config, device="meta")
    assert model.num_parameters - 39 * 2 * 16 == 4_953_002


def test_a_gates_context_has_tables_of_its_own(schema: FeatureSchema) -> None:
    gates = StreamGatesSelection(easy_context=("user",), hard_context=("item", "genres"))
    model = CTRModel(schema, ROWS, ModelConfig(selection=gates))
    names = [t.name for t in model.tables if "context" in t.name]
    assert names == ["user__context_easy", "item__context_hard", "genres__context_hard"]
    with pytest.raises(ModelError, match="not sparse ones: age"):
        CTRModel(schema, ROWS, ModelConfig(selection=StreamGatesSelection(easy_context=("age",))))


def test_pairs_of_a_single_feature_are_refused(make_schema: SchemaMaker) -> None:
    with pytest.raises(ModelError, match="at least two features"):
        CTRModel(make_schema("user"), ROWS, make_config("separate", "fm", "mlp", "sum"))
    CTRModel(make_schema("user", dense="age"), ROWS, make_config("separate", "fm", "mlp", "sum"))


def test_separate_streams_are_independent(
    schema: FeatureSchema, make_batch: BatchMaker, make_model: ModelMaker
) -> None:
    model: CTRModel = make_model(schema, ROWS, make_config("separate", "mlp", "mlp", "sum"))
    batch: Batch = make_batch(schema, ROWS, num_rows=20)
    logits = model(batch)
    for logit, own in ((logits.easy, "easy"), (logits.hard, "hard")):
        tables = list(model.embedding.parameters())
        gradients = torch.autograd.grad(logit.square().sum(), tables, retain_graph=True, allow_unused=True)
        for name, gradient in zip(model.embedding_parameter_names(), gradients, strict=True):
            is_touched = gradient is not None and bool(gradient.abs().sum() > 0)
            assert is_touched == (own in name), name


class FirstVersion(nn.Module):
    """TF4CTR's first version, written apart: one table a field, two MLPs with their heads inside."""

    def __init__(self, tables: list[Tensor], easy: list[int], hard: list[int]) -> None:
        super().__init__()
        self.tables = nn.ParameterList(tables)
        self.easy, self.hard = self.make_mlp(easy), self.make_mlp(hard)
        self.weight = nn.Parameter(torch.tensor([0.5, 0.5]))

    def make_mlp(self, widths: list[int]) -> nn.Sequential:
        layers: list[nn.Module] = []
        for i, o in itertools.pairwise(widths):
            layers += [nn.Linear(i, o), nn.BatchNorm1d(o), ReLUDropout(0.2)]
        return nn.Sequential(*layers, nn.Linear(widths[-1], 1))

    def forward(self, ids_BF: Tensor) -> Tensor:
        e = torch.cat([table[ids_BF[:, f]] for f, table in enumerate(self.tables)], dim=1)
        return self.weight[0] * self.easy(e)[:, 0] + self.weight[1] * self.hard(e)[:, 0]


def test_shared_selection_and_weighted_sum_are_the_first_version(
    make_schema: SchemaMaker, make_batch: BatchMaker, make_model: ModelMaker
) -> None:
    schema = make_schema("user item")
    config = ModelConfig(
        embedding_dim=4, selection=NONE, easy=MLPEncoder(hidden_units=(8,)), hard=MLPEncoder(hidden_units=(8, 5))
    )
    model: CTRModel = make_model(schema, ROWS, config)
    tables = [p.detach().clone() for p in model.embedding.parameters()]
    first = FirstVersion(tables, [8, 8], [8, 8, 5])
    assert sum(p.numel() for p in first.parameters()) == model.num_parameters
    for own, layers, head in (
        (first.easy, model.easy_encoder.layers, model.fusion.easy_head),
        (first.hard, model.hard_encoder.layers, model.fusion.hard_head),
    ):
        assert isinstance(layers, nn.Sequential)
        own.load_state_dict({**layers.state_dict(), **{f"{len(layers)}.{k}": v for k, v in head.state_dict().items()}})
    batch: Batch = make_batch(schema, ROWS, num_rows=20)
    ids_BF = batch.sparse_features.values().view(2, 20).T
    for training in (True, False):  # in training mode with the same dropout: the running statistics move alike
        outputs = []
        for module, argument in ((model, batch), (first, ids_BF)):
            torch.manual_seed(11)
            outputs.append(module.train(training)(argument))
        assert torch.equal(outputs[0].fused, outputs[1])


@pytest.mark.parametrize("fusion", [WSF, VF, CF, MOEF, SUM])
@pytest.mark.parametrize("selection", [SER, GM, MOE, NONE])
def test_a_fresh_model_starts_near_the_loss_of_zero_logits(
    selection: Any, fusion: Any, make_schema: SchemaMaker, make_batch: BatchMaker
) -> None:
    """One hidden layer each: embeddings of 1e-4 are below BatchNorm's epsilon, so the first layer leaves them small.

    A second BatchNorm would stretch what the first one left (about 0.02, whose square is well over epsilon) to order 1;
    the MoE selection's experts do that too.
    """
    rows = {f"f{i}": 200 for i in range(8)}
    schema = make_schema(" ".join(rows))
    config = ModelConfig(
        selection=selection, easy=MLPEncoder(hidden_units=(64,)), hard=MLPEncoder(hidden_units=(64,)), fusion=fusion
    )
    batch: Batch = make_batch(schema, rows, num_rows=512)
    for seed in range(3):
        logits = CTRModel(schema, rows, config, seed=seed)(batch)
        loss = TwinFocus(TwinFocusObjective())(logits, batch.labels, batch.weights, 512.0).item()
        assert 1.25 < loss < 2.5 if selection == MOE else abs(loss - 1.3169796) < 0.01


def test_the_seed_decides_the_start(schema: FeatureSchema) -> None:
    config = make_config("moe", "cross_net", "mlp", "concat")
    state = torch.random.get_rng_state()
    model = CTRModel(schema, ROWS, config, seed=5)
    assert torch.equal(torch.random.get_rng_state(), state)
    start = dict(model.named_parameters())
    torch.manual_seed(99)
    again = dict(CTRModel(schema, ROWS, config, seed=5).named_parameters())
    on_meta = dict(CTRModel(schema, ROWS, config, seed=5, device="meta", pad_tables=True).named_parameters())
    other = dict(CTRModel(schema, ROWS, config, seed=6).named_parameters())
    tables = {f"embedding.bags.embedding_bags.{table.name}.weight" for table in model.tables}
    for name, parameter in start.items():
        assert torch.equal(again[name], parameter)
        assert on_meta[name].is_meta if name in tables else torch.equal(on_meta[name], parameter)
        is_constant = name.endswith("bias") or "bias." in name or bool((parameter == parameter.mean()).all())
        assert is_constant or not torch.equal(other[name], parameter), name


def test_dense_layers_start_xavier_normal(make_schema: SchemaMaker) -> None:
    model = CTRModel(make_schema("a b"), {"a": 3, "b": 3}, ModelConfig(embedding_dim=100))
    layer = model.hard_encoder.layers[3]  # pyright: ignore
    assert isinstance(layer, nn.Linear)
    assert layer.weight.std().item() == pytest.approx((2 / 800) ** 0.5, rel=0.01)
    assert (layer.bias == 0).all()


def test_padded_tables_change_nothing(schema: FeatureSchema, make_batch: BatchMaker) -> None:
    """Same seed, same steps: the same logits, and a pad that stays 0."""
    config = make_config("separate", "fm", "mlp", "weighted_sum")
    batch: Batch = make_batch(schema, ROWS, num_rows=20, batch_size=21)
    models = [CTRModel(schema, ROWS, config, seed=1, pad_tables=pad) for pad in (False, True)]
    assert [t.padded_width for t in models[1].tables][::3] == [4, 8, 4]
    outputs = []
    for model in models:
        optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
        for step in range(3):
            torch.manual_seed(step)
            logits = model(batch)
            optimizer.zero_grad()
            TwinFocus(TwinFocusObjective())(logits, batch.labels[:20], batch.weights[:20], 20.0).backward()
            optimizer.step()
        outputs.append(model.eval()(batch))
    for plain, padded in zip(*outputs, strict=True):
        torch.testing.assert_close(plain, padded, atol=1e-5, rtol=1e-5)
    for table in models[1].tables:
        weight = models[1].embedding.bags.embedding_bags[table.name].weight
        assert isinstance(weight, Tensor) and (weight[:, table.width :] == 0).all()
        assert (weight[:, : table.width] != 0).any()


def test_l2_of_the_embedding_parameters_reaches_every_row(
    schema: FeatureSchema, make_batch: BatchMaker, make_model: ModelMaker
) -> None:
    model: CTRModel = make_model(schema, ROWS, make_config("separate", "fm", "mlp", "weighted_sum"))
    batch: Batch = make_batch(schema, ROWS, num_rows=4)
    named = dict(trained(model))
    embeddings = {name: named[name] for name in model.embedding_parameter_names()}
    assert [id(p) for p in embeddings.values()] == [id(p) for p in model.embedding.parameters()]
    assert {name.split(".")[0] for name in named.keys() - embeddings.keys()} == {
        "easy_encoder",
        "hard_encoder",
        "fusion",
    }

    def gradients(l2: float) -> dict[str, Tensor]:
        torch.manual_seed(0)
        loss = TwinFocus(TwinFocusObjective())(model(batch), batch.labels, batch.weights, 4.0)
        loss = loss + l2 / 2 * sum(p.square().sum() for p in embeddings.values())
        return dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))

    without, with_l2 = gradients(0.0), gradients(0.1)
    for name, parameter in named.items():
        difference = with_l2[name] - without[name]
        torch.testing.assert_close(difference, 0.1 * parameter.detach() if name in embeddings else difference * 0)
    ids = batch.sparse_features["user"].values()
    unseen = [row for row in range(ROWS["user"]) if row not in ids]
    user = "embedding.bags.embedding_bags.user__hard.weight"
    assert (without[user][unseen] == 0).all()
    assert torch.equal(with_l2[user][unseen], 0.1 * named[user][unseen])


@pytest.mark.parametrize("num_rows", [0, 1])
def test_small_batches_train(num_rows: int, schema: FeatureSchema, make_batch: BatchMaker) -> None:
    model = CTRModel(schema, ROWS, make_config("moe", "mlp", "mlp", "voting"))
    batch: Batch = make_batch(schema, ROWS, num_rows=num_rows, batch_size=4)
    logits = model(batch)
    assert [z.shape for z in logits] == [(num_rows,)] * 3
    rows = slice(num_rows)
    TwinFocus(TwinFocusObjective())(logits, batch.labels[rows], batch.weights[rows], 4.0).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for _, p in trained(model))


def test_model_can_be_copied_and_saved(schema: FeatureSchema, make_batch: BatchMaker, make_model: ModelMaker) -> None:
    model: CTRModel = make_model(schema, ROWS, make_config("separate", "fm", "mlp", "moe")).eval()
    batch: Batch = make_batch(schema, ROWS, num_rows=5)
    loaded = CTRModel(schema, ROWS, make_config("separate", "fm", "mlp", "moe"), seed=9).eval()
    loaded.load_state_dict(model.state_dict())
    for twin in (copy.deepcopy(model), loaded):
        assert torch.equal(twin(batch).fused, model(batch).fused)
