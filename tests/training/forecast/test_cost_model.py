"""Products, bytes and messages of small layers and tables, counted by hand."""

import dataclasses

import numpy as np
import pytest
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from features.rows import Columns
from features.schema import DenseFeature, FeatureSchema, HashEncoding, SequenceFeature, SparseFeature
from training.config import (
    DINHistory,
    HistoryConfig,
    MeanHistory,
    MLPEncoder,
    ModelConfig,
    ShardingConfig,
    ShardingKind,
    SharedSelection,
    TrainingConfig,
)
from training.data.batch import to_batch
from training.forecast.cost_model import Kind, Machine, Shard, Traffic, predict
from training.forecast.dry_run import plan_tables
from training.forecast.what_if_layouts import dealt_shards, planned_shards, whole_tables
from training.model.cost import Net
from training.model.ctr_model import CTRModel
from training.sharding.table_planner import Cluster

NOTHING = Net(flops=0.0, field_numbers=0, hidden_numbers=0, parameters=0, num_norms=0)
FAST = Machine(flops=1e30, memory_bandwidth=1e30)


def make_model(rows: dict[str, int], width: int = 4) -> CTRModel:
    sparse = tuple(SparseFeature(name, HashEncoding(num_buckets=number)) for name, number in rows.items())
    schema = FeatureSchema(label="label", sparse=sparse, dense=(DenseFeature("price"),))
    config = ModelConfig(
        embedding_dim=width,
        selection=SharedSelection(),
        easy=MLPEncoder(hidden_units=(3,)),
        hard=MLPEncoder(hidden_units=(5, 7)),
    )
    return CTRModel(schema, rows, config, pad_tables=True, device="meta")


def test_products_of_a_network():
    net = Net.of(make_model({"user": 50}))
    # Two fields of width 4 are 8 inputs. Easy: 8 x 3 and a head of 3; hard: 8 x 5, 5 x 7 and a head of 7.
    assert net.flops == 6 * (8 * 3 + 3 + 8 * 5 + 5 * 7 + 7)
    assert net.field_numbers == 8
    assert net.hidden_numbers == 3 + 1 + 5 + 7 + 1
    assert net.num_norms == 3


def test_a_history_costs_its_events():
    clicks = SequenceFeature("clicks", ("user",), 20, newest="first")
    schema = FeatureSchema("label", (SparseFeature("user", HashEncoding(50)),), sequence=(clicks,))

    def net(config: HistoryConfig, mean_length: float) -> Net:
        model = ModelConfig(embedding_dim=4, easy=MLPEncoder((3,)), hard=MLPEncoder((5,)), sequences={"clicks": config})
        rows, lengths = {"user": 50, "clicks__user": 50}, {"clicks__user": mean_length}
        return Net.of(CTRModel(schema, rows, model, mean_lengths=lengths, device="meta"))

    easy, hard = 2, 4  # widths of a field in the two streams
    matrices = sum(4 * width * 8 + 8 for width in (easy, hard))
    din = DINHistory(hidden_units=(8,))
    assert net(din, 10.0).flops - net(din, 2.0).flops == 6 * (10 - 2) * matrices
    assert net(din, 2.0).flops - net(MeanHistory(), 2.0).flops == 6 * 2 * matrices


# Two features share a table narrower than the model, one has a wider table, and one a table as wide as the model.
SHARING = FeatureSchema(
    label="label",
    sparse=(
        SparseFeature("clicked", HashEncoding(num_buckets=40), table="item", embedding_dim=4),
        SparseFeature("wide", HashEncoding(num_buckets=30), embedding_dim=12),
        SparseFeature("item", HashEncoding(num_buckets=40), embedding_dim=4),
        SparseFeature("plain", HashEncoding(num_buckets=20)),
    ),
    dense=(DenseFeature("price"), DenseFeature("age")),
)


def make_sharing_model(device: str) -> CTRModel:
    encoder = MLPEncoder(hidden_units=(5,), dropout=0.0)
    config = ModelConfig(embedding_dim=8, selection=SharedSelection(), easy=encoder, hard=encoder)
    return CTRModel(SHARING, {"clicked": 40, "wide": 30, "item": 40, "plain": 20}, config, device=device)


def test_a_network_with_projections_and_shared_tables_as_counted_in_a_real_step():
    model, num_rows = make_sharing_model("cpu"), 6
    numbers: dict[str, list[int]] = {"fields": [], "hidden": []}

    def count_fields(module: nn.Module, inputs: tuple[Tensor, ...], vectors: tuple[dict[str, Tensor], dict]) -> None:
        numbers["fields"].append(sum(of_stream.numel() for of_stream in vectors[0].values()))

    def count_outputs(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        numbers["hidden"].append(output.numel())

    model.embedding.register_forward_hook(count_fields)
    for part in model.modules():
        if isinstance(part, nn.Linear):
            part.register_forward_hook(count_outputs)
    columns: Columns = {name: np.arange(num_rows, dtype=np.int32) for name in SHARING.sparse_names}
    columns |= {name: np.ones(num_rows, np.float32) for name in SHARING.dense_names}
    batch = to_batch(columns, SHARING)
    with FlopCounterMode(display=False) as counter:
        logits = model(batch)
        (logits.fused + logits.easy + logits.hard).sum().backward()
    net = Net.of(make_sharing_model("meta"))
    assert num_rows * net.flops == counter.get_total_flops()
    # Two vectors of 4 numbers and one of 12 are projected.
    assert num_rows * (net.field_numbers - 2 * 4 - 12) == sum(numbers["fields"])
    assert num_rows * net.hidden_numbers == sum(numbers["hidden"])
    tables = {id(p) for p in model.embedding.bags.parameters()}
    assert net.parameters == sum(p.numel() for p in model.parameters() if id(p) not in tables)


def test_a_shared_table_is_looked_up_once_a_feature():
    model, batch_size = make_sharing_model("meta"), 16
    machine, traffic = dataclasses.replace(FAST, id_seconds=1.0), Traffic(2, 2, batch_size)
    kinds: tuple[ShardingKind, ...] = ("table_wise", "row_wise", "data_parallel")
    layouts = {
        kind: planned_shards(
            model,
            TrainingConfig(
                dataset="unused",
                model=ModelConfig(embedding_dim=8),
                sharding=ShardingConfig(kind),
                global_batch_size=batch_size,
            ),
            Cluster("cpu", 2, 2),
        )
        for kind in kinds
    }
    layouts["dealt"] = dealt_shards(model, Net.of(model), FAST, traffic)
    layouts["whole"] = whole_tables(model, traffic)
    for name, shards in layouts.items():
        of = {table: [s for s in shards if s.table == table] for table in ("item__shared", "wide__shared")}
        shared, alone = ([dataclasses.replace(s, table="t", rows=40, columns=8) for s in of[t]] for t in of)
        ids = [predict(found, NOTHING, machine, traffic).seconds["tables"] for found in (shared, alone)]
        assert ids[1] > 0 and ids[0] == pytest.approx(2 * ids[1]), name
        assert {s.num_features for s in shared} == {2} and {s.num_features for s in alone} == {1}
    slow = dataclasses.replace(FAST, within_host=1.0)
    once, twice = (
        predict([Shard("t", "table_wise", 0, 100, 16, 0, n)], NOTHING, slow, traffic).seconds for n in (1, 2)
    )
    assert (twice["ids"], twice["vectors"]) == pytest.approx((2 * once["ids"], 2 * once["vectors"]))


def test_the_planner_counts_each_feature_of_a_shared_table():
    config = TrainingConfig(dataset="unused", sharding=ShardingConfig("table_wise"), global_batch_size=64)
    plan = plan_tables(make_sharing_model("meta"), config, Cluster("cpu", 1, 1))
    lookups = {entry["table"]: entry["lookups"] for entry in plan.tables}
    bags = 64 * (8 + 4 * 4)  # of "item": an id and a vector of each row, once a feature
    assert lookups["item__shared"] == 2 * bags
    assert lookups["plain__shared"] == 64 * (8 + 4 * 8)


def test_bytes_of_a_look_up_and_its_update():
    # 8 ids of a table of 100 rows x 16, each row a line of 64 bytes. Forward: ids 8 x 8, rows 8 x 64, vectors 8 x 64.
    # Backward: gradients 8 x 64, sorting 8 x 64, and 8 rows and their sums of squares, read and written: 8 x 2 x 128.
    machine = dataclasses.replace(FAST, memory_bandwidth=64 + 5 * 512 - 512 + 2048)
    alone = Traffic(world_size=1, ranks_per_host=1, batch_size=8)
    step = predict([Shard("t", "table_wise", 0, 100, 16)], NOTHING, machine, alone)
    assert step.seconds["tables"] == pytest.approx(1.0)
    assert sum(step.seconds.values()) == pytest.approx(1.0)
    # Of a table of two rows only two are updated; a row of 16 bytes moves a line all the same.
    few = predict([Shard("t", "table_wise", 0, 2, 4)], NOTHING, dataclasses.replace(FAST, memory_bandwidth=1), alone)
    assert few.seconds["tables"] == pytest.approx(8 * (8 + 64 + 16) + 8 * (16 + 64) + 2 * 2 * 128)


def test_bytes_between_two_ranks():
    machine = dataclasses.replace(FAST, within_host=1.0)
    two = Traffic(world_size=2, ranks_per_host=2, batch_size=8)
    whole = predict([Shard("t", "table_wise", 0, 100, 16)], NOTHING, machine, two)
    # Rank 0 gets 4 lengths and 4 ids of rank 1, and sends it 4 vectors of 64 bytes; their gradients come back.
    assert whole.seconds["ids"] == pytest.approx(4 * 16)
    assert whole.seconds["vectors"] == pytest.approx(2 * 4 * 64)
    rows = [Shard("t", "row_wise", rank, 50, 16, 50 * rank) for rank in range(2)]
    halves = predict(rows, NOTHING, machine, two)
    # Each rank gets 4 lengths and 2 ids of the other; of 8 partial vectors it sends those of the other's 4 bags.
    assert halves.seconds["ids"] == pytest.approx(4 * 8 + 2 * 8)
    assert halves.seconds["vectors"] == pytest.approx(2 * 4 * 64)
    assert halves.imbalance == pytest.approx(1.0) and whole.imbalance > 1.0
    # A tenth of the ids are row 0, which rank 0 has.
    skewed = predict(rows, NOTHING, dataclasses.replace(FAST, id_seconds=1.0), dataclasses.replace(two, head=0.1))
    assert skewed.seconds["tables"] == pytest.approx(8 * (0.1 + 0.9 / 2))
    halved = predict(rows, NOTHING, machine, dataclasses.replace(two, vector_bytes=2))
    assert halved.seconds["vectors"] == pytest.approx(4 * 64)


def test_row_wise_grows_with_the_ranks_and_two_dimensions_do_not():
    """8 rows a rank: each rank of a row-wise table brings a vector for every row of the global batch."""
    machine = dataclasses.replace(FAST, between_hosts=1.0)

    def vectors(kind: Kind, hosts: int) -> float:
        t = Traffic(world_size=2 * hosts, ranks_per_host=2, batch_size=16 * hosts)
        ranks = range(2 * hosts) if kind == "row_wise" else range(2)
        return predict([Shard("t", kind, r, 10, 16, 10 * r) for r in ranks], NOTHING, machine, t).seconds["vectors"]

    # A ring carries (hosts - 1) / hosts of all vectors over two links; both ways.
    assert vectors("row_wise", 4) == pytest.approx(2 * 64 * 64 * 3 / 4 / 2)
    assert vectors("row_wise", 8) == pytest.approx(2 * 128 * 64 * 7 / 8 / 2)
    # Two ranks have half of the sums each, and send what is not their host's.
    assert vectors("table_row_wise", 4) == pytest.approx(2 * 64 * 64 / 2 * 6 / 8)


def test_dense_gradients_and_messages():
    machine = Machine(flops=1e30, memory_bandwidth=1e30, within_host=4.0, between_hosts=1.0, latency_between=1.0)
    net = dataclasses.replace(NOTHING, parameters=8, num_norms=1)
    step = predict([], net, machine, Traffic(world_size=8, ranks_per_host=2, batch_size=8))
    # 32 bytes around and around again: 7/8 within hosts; between four hosts 3/4 of them over two links.
    assert step.seconds["dense gradients"] == pytest.approx(2 * max(32 * 7 / 8 / 4, 32 * 3 / 4 / 2))
    # Four hosts are two levels of a tree: two sums of the loop, two of a norm, one bucket of gradients.
    assert step.seconds["messages"] == pytest.approx(2 * (2 + 2 + 1))
    assert step.limit == "dense gradients" and step.rows_per_second == pytest.approx(8 / 34)
    slow = predict([], net, dataclasses.replace(machine, read_rows=0.01), Traffic(8, 2, 8))
    assert slow.limit == "reading" and slow.rows_per_second == pytest.approx(8 / 100)


@pytest.mark.parametrize("kind", ["auto", "row_wise", "column_wise"])
def test_planned_shards_are_the_tables(kind: ShardingKind):
    rows = {"user": 1_000, "item": 300, "device": 5}
    model = make_model(rows, 8)
    config = TrainingConfig(dataset="unused", model=ModelConfig(embedding_dim=8), sharding=ShardingConfig(kind))
    shards = planned_shards(model, config, Cluster("cpu", 4, 2))
    cover_every_number_once(model, shards)
    assert {shard.rank for shard in shards} <= set(range(4))
    assert kind == "auto" or {shard.kind for shard in shards} == {kind}


def test_tables_dealt_out():
    model = make_model({"giant": 10_000, "large": 1_000, "other": 900, "tiny": 5}, 8)
    t, machine = Traffic(world_size=8, ranks_per_host=4, batch_size=64), dataclasses.replace(FAST, memory=1e6)
    shards = dealt_shards(model, Net.of(model), machine, t)
    cover_every_number_once(model, [s for s in shards if s.kind != "data_parallel"], without=("tiny",))
    tiny = [s for s in shards if s.table == "tiny__shared"]
    assert [s.rank for s in tiny] == list(range(8)) and {s.kind for s in tiny} == {"data_parallel"}
    giant = [s for s in shards if s.table == "giant__shared"]
    assert {s.kind for s in giant} == {"table_row_wise"} and len({s.rank // 4 for s in giant}) == 1
    whole = whole_tables(model, t)
    assert len(whole) == len({s.rank for s in whole}) == 4


def cover_every_number_once(model: CTRModel, shards: list[Shard], without: tuple[str, ...] = ()) -> None:
    for table in model.tables:
        if table.feature in without:
            continue
        found = np.zeros(table.num_embeddings, int)
        for shard in shards:
            if shard.table == table.name:
                found[shard.first_row : shard.first_row + shard.rows] += shard.columns
        assert (found == table.padded_width).all(), table.name
