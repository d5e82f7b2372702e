"""Targets: each loader with valid files to start from, and the errors that it may answer with."""

import gzip
import hashlib
import io
import json
import random
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow as pa
import pyarrow.orc
import pyarrow.parquet
from hypothesis import strategies as st

from features.disk.dataset import DatasetError, DatasetManifest, Rejected, Split
from features.encode_rows import FeatureEncoder
from features.fingerprint import FINGERPRINT_FORMAT
from features.learnt import Learnt, LearntError
from features.log_format import LogError, LogFormat, Lookup
from features.read.log_reader import LogReader, wanted_of_features
from features.read.portions import Portion, PortionEnd, misplaced, plan_portions
from features.schema import DenseFeature, FeatureSchema, HashEncoding, SparseFeature, VocabularyEncoding
from jobs.cli.config import Config, load_config, parse_config
from jobs.cli.errors import ConfigError
from pipeline.build.sources import plan_sources
from tests.fuzz.mutation import JSON_TREES, mutate_bytes, mutate_in_place, mutate_tree
from tests.stand_ins.tiny_dataset import (
    TINY_FEATURES,
    statistics,
    tiny_columns,
    tiny_schema,
    tiny_sequences,
    write_files,
)
from training.config import TablePrecision

CONFIG = (
    TINY_FEATURES
    + """\
[pipeline]
output = "out"
input.train = ["log.csv"]
input.lookups = [{ path = "side.csv", key = "user", format = { kind = "csv" } }]
split = { kind = "hash", column = "user" }
quality.limits.max_oov_rate = 0.5
[training]
from_data = []
dataset = "out"
global_batch_size = 32
monitor = { auc = 1.0, gauc = 1.0 }
sharding.features = { user = "row_wise" }
[training.model]
embedding_dim = 8
easy = { kind = "cross_net", num_layers = 2 }
hard = { kind = "mlp", hidden_units = [16, 8] }
"""
)
OVERRIDES = (
    "training.seed=1",
    'training.model.hard={kind="autoint"}',
    "training.model.hard.kind=fgcnn",
    "features.carry=['a{1..4}']",
    "pipeline.input.train=a",
    "training.optimizer.kind=dense",
)


@dataclass(frozen=True)
class Target:
    """One loader.

    Attributes:
        make: from a generator of random numbers, a nearly valid input.
        strategy: what hypothesis makes instead.
        run: hands an input to the loader.
        documented: what it may raise; anything else is a defect.
    """

    make: Callable[[random.Random], Any]
    strategy: st.SearchStrategy[Any]
    run: Callable[[Any], object]
    documented: tuple[type[Exception], ...]


def tree_bytes(tree: Any) -> bytes:
    return json.dumps(tree).encode()


# ---------------------------------------------------------------------------------------------------------------- logs

LOG_FORMATS = {
    "log.csv": LogFormat(),
    "log.csv.gz": LogFormat(null_values=("NA",)),
    "log.tsv": LogFormat("tsv"),
    "quoted.txt": LogFormat(separator="|", quote="'"),
    "long.dat": LogFormat(separator="::", header=False, columns=("user", "genres", "click"), quote=""),
    "latin.csv": LogFormat(encoding="ISO-8859-1"),
    "log.jsonl": LogFormat("jsonl"),
    "log.parquet": LogFormat("parquet"),
}


def log_bytes(name: str) -> bytes:
    """A small valid log, which may be a lookup as well: no user is there twice."""
    rows = [("u1", "a|b", "1"), ("ü 2", "c,d", "0"), ("u3", 'x"y', "1"), ("1.50", "", "0")]
    if name == "log.parquet":
        file = io.BytesIO()
        columns = {"user": [r[0] for r in rows], "genres": [["a", None]] * 4, "click": [1, 0] * 2}
        columns["t"] = pyarrow.array([1, None] * 2, pyarrow.timestamp("ns"))
        pyarrow.parquet.write_table(pyarrow.table(columns), file, compression="snappy")
        return file.getvalue()
    if name == "log.jsonl":
        more = ['{"user": 2.50, "genres": ["a", 2, null], "click": true}', '{"user": true, "click": -1e5}']
        lines = [json.dumps(dict(zip(("user", "genres", "click"), row, strict=True))) for row in rows] + more
        return "\n".join(lines).encode()
    log_format = LOG_FORMATS[name]
    separator, quote = log_format.delimiter, log_format.quote_character
    lines = [("user", "genres", "click")] if log_format.header else []
    lines += [tuple(f"{quote}{v.replace(quote, 2 * quote)}{quote}" if quote and i % 2 else v for v in row)
              for i, row in enumerate(rows) if quote or '"' not in row[1]]  # fmt: skip
    text = "\r\n".join(separator.join(line) for line in lines) + "\r\n"
    data = text.encode("latin-1" if log_format.encoding == "ISO-8859-1" else "utf-8")
    return gzip.compress(data) if name.endswith(".gz") else data


def _log_inputs(more: Mapping[str, bytes] = {}) -> tuple[Callable[[random.Random], Any], st.SearchStrategy[Any]]:
    seeds = {name: log_bytes(name) for name in LOG_FORMATS} | dict(more)

    def make(rng: random.Random) -> tuple[str, bytes]:
        name = rng.choice(list(seeds))
        data, packed = seeds[name], name.endswith(".gz") and rng.random() < 0.7
        data = mutate_bytes(rng, gzip.decompress(data) if packed else data, list(seeds.values()))
        return name, gzip.compress(data, 1) if packed else data

    return make, st.tuples(st.sampled_from(list(seeds)), st.binary(max_size=200))


def log(folder: Path) -> Target:
    """features.read.log_reader: every line is a row or an error of its own, wherever the file is cut, or it is refused.

    What is read is encoded, too.
    """
    (folder / "side.csv").write_text("user,city\nu1,x\n1.50,y\n")
    lookups = (Lookup("side.csv", "user", LogFormat()),)
    schema = FeatureSchema(
        "click",
        (
            SparseFeature("user", HashEncoding(num_buckets=9)),
            SparseFeature("genres", VocabularyEncoding(), separator="|", max_length=3),
        ),
        (DenseFeature("click"),),
    )
    encoder = FeatureEncoder(schema, Learnt({"genres": ("a", "b")}))
    formats = LOG_FORMATS | {
        "log.ffm": LogFormat("libffm", columns=("click", "user", "genres")),
        "log.orc": LogFormat("orc"),
        "utf16.csv": LogFormat(encoding="UTF-16"),
        "gbk.csv": LogFormat(encoding="GBK"),
        "spark.csv": LogFormat(escape="\\"),
        "log.csv.zst": LogFormat(),
    }
    text = 'user,genres,click\n"u\n1",a|b,1\n"x\\"y",,0\r\n'
    packed = pa.compress(text.encode(), codec="zstd", asbytes=True)
    file = io.BytesIO()
    pyarrow.orc.write_table(pa.table({"user": ["u1", None], "genres": [["a", None]] * 2, "click": [1, 0]}), file)
    more = {"log.ffm": b"1 1:3:1 2:a:1\n0 1:4:0.5\n", "log.orc": file.getvalue(), "spark.csv": text.encode()}
    more |= {"utf16.csv": text.encode("utf-16"), "gbk.csv": (text + "\u4e2d,b,1").encode("gbk"), "log.csv.zst": packed}

    def run(given: tuple[str, bytes]) -> None:
        name, data = given
        path = folder / name
        path.write_bytes(data)
        joined = lookups if len(data) % 3 == 0 else ()
        wanted = wanted_of_features(schema, optional=("genres",))
        reader = LogReader(formats[name], joined, wanted, schema.values)
        whole = read_all([Portion(str(path))], reader)
        if len(data) % 4 == 0 and data:
            assert read_all(plan_portions(str(path), len(data), formats[name], 40), reader) == whole

    def read_all(portions: list[Portion], reader: LogReader) -> list[tuple[int, str]]:
        found: list[Any] = [read(portion, reader) for portion in portions]
        while wrong := misplaced(portions, [end for _, end in found]):
            for place, portion in wrong.items():
                portions[place] = portion
                found[place] = read(portion, reader)
        lines, before = [], 0
        for own, end in found:
            lines += [(number + before, line) for number, line in own]
            before += end.num_lines
        numbers = [number for number, _ in lines]
        assert numbers == sorted(set(numbers)), "lines are numbered as they come, each once"
        return lines

    def read(portion: Portion, reader: LogReader) -> tuple[list[tuple[int, str]], PortionEnd]:
        lines = []
        tables = tuple(str(folder / lookup.path) for lookup in reader.lookups)
        reading = reader.read(portion, reader.wanted_of_file(tables), tables, {})
        for block in reading:
            encoded, prepared = encoder.encode_columns(block.columns, block.lists)
            good = prepared.is_good.tolist()
            ids = encoded["user"].tolist()
            own = zip(block.numbers.tolist(), ids, good, strict=True)
            rows = [(number, str(id_ if is_good else "bad")) for number, id_, is_good in own]
            lines += sorted([*rows, *((line.number, line.reason) for line in block.rejected)])
        return lines, reading.end

    return Target(*_log_inputs(more), run, (LogError,))


def sources(folder: Path) -> Target:
    """pipeline.build.sources: what the driver looks at before Spark starts, the lookup's table included."""
    configs = {}
    for name, log_format in LOG_FORMATS.items():
        format_ = {k: v for k, v in vars(log_format).items() if not k.startswith("_")}
        tree = {
            "features": {"label": "click", "sparse": [{"name": "user", "encoding": {"kind": "vocabulary"}}]},
            "pipeline": {
                "output": "x",
                "input": {
                    "train": str(folder / name),
                    "format": format_,
                    "lookups": [{"path": f"side-{name}", "key": "user", "format": format_}],
                },
            },
            "training": {"dataset": "x"},
        }
        configs[name] = parse_config(tree)
        (folder / f"side-{name}").write_bytes(log_bytes(name))

    def run(given: tuple[str, bytes]) -> None:
        name, data = given
        place = folder / (f"side-{name}" if len(data) % 2 else name)
        (folder / name).write_bytes(log_bytes(name))
        place.write_bytes(data)
        plan_sources(configs[name].pipeline, configs[name].features)

    return Target(*_log_inputs(), run, (LogError,))


# -------------------------------------------------------------------------------------------------------------- config


def config(folder: Path) -> Target:
    """jobs.cli.config: TOML files, overrides, and saved resolved trees."""
    path = folder / "config.toml"
    path.write_text(CONFIG)
    tree = load_config([str(path)]).to_dict()
    texts = [CONFIG.encode(), *(o.encode() for o in OVERRIDES)]
    keys = [line.split(" = ")[0] for line in CONFIG.splitlines() if " = " in line]

    def make(rng: random.Random) -> tuple[str, Any, list[str]]:
        kind = rng.randrange(3)
        overrides = [rng.choice(OVERRIDES) for _ in range(rng.randrange(2))]
        if kind == 0:
            return "tree", mutate_tree(rng, tree), []
        if kind == 1:
            overrides.append(mutate_bytes(rng, rng.choice(texts[1:]), texts).decode("utf-8", "replace"))
            overrides.append(
                f"training.{rng.choice(keys)}={rng.choice(('[', '1', '{a=1}', 'nan', '[[]]', '1979-05-27'))}"
            )
            return "file", CONFIG.encode(), overrides
        return "file", mutate_bytes(rng, texts[0], texts), overrides

    def run(given: tuple[str, Any, list[str]]) -> Config:
        kind, data, overrides = given
        if kind == "tree":
            return parse_config(data if isinstance(data, dict) else {"features": data})
        path.write_bytes(data)
        loaded = load_config([str(path)], overrides)
        assert parse_config(loaded.to_dict()) == loaded
        return loaded

    trees = st.dictionaries(st.sampled_from(["features", "pipeline", "training", "x"]), JSON_TREES, max_size=4)
    strategy = st.one_of(
        st.tuples(st.just("tree"), trees, st.just([])),
        st.tuples(st.just("file"), st.text(max_size=80).map(str.encode), st.lists(st.text(max_size=30), max_size=2)),
    )
    return Target(make, strategy, run, (ConfigError,))


# ------------------------------------------------------------------------------------------------------------- dataset


def make_dataset(path: Path, schema: FeatureSchema | None = None) -> DatasetManifest:
    """A dataset of one split on disk; of the tiny schema, if no other is given."""
    schema = schema or tiny_schema()
    learnt = Learnt(vocabularies={"device": ["mobile", "tablet"]}, out_of_vocabulary={"device": 2})
    learnt.save(path / "v1" / "learnt")
    columns = tiny_columns(schema, 20, np.random.default_rng(0))
    split = Split(write_files(path, "v1/train", columns, ((12, 8),)), *statistics(schema, columns))
    manifest = DatasetManifest(
        schema, schema.fingerprint, learnt.fingerprint, "v1/learnt", {"train": split},
        Rejected(0, {}, None), 20, 0, {"train": ["log.csv"]}, {},
    )  # fmt: skip
    manifest.write(path)
    return manifest


def manifest(folder: Path) -> Target:
    """features.disk.dataset and features.learnt: manifest, learnt files, files on disk, ids."""
    make_dataset(folder)
    parts = ("vocabulary.device", "boundaries", "moments", "out_of_vocabulary")
    names = ("manifest.json", *(f"v1/learnt/{part}.json" for part in parts))
    seeds = {name: (folder / name).read_bytes() for name in names}
    trees = {name: json.loads(data) for name, data in seeds.items()}

    def make(rng: random.Random) -> tuple[str, bytes]:
        name = rng.choice((names[0], names[0], *names))
        if rng.random() < 0.6:
            return name, tree_bytes(mutate_tree(rng, trees[name]))
        return name, mutate_bytes(rng, seeds[name], list(seeds.values()))

    def run(given: tuple[str, bytes]) -> None:
        name, data = given
        (folder / name).write_bytes(data)
        try:
            loaded = DatasetManifest.load(folder)
            learnt = loaded.load_learnt(folder)
            for split in loaded.splits:
                loaded.check_files(folder, split)
            loaded.check_ids(learnt)
            loaded.schema.raw_columns, loaded.fingerprint  # noqa: B018
        finally:
            (folder / name).write_bytes(seeds[name])

    strategy = st.tuples(st.sampled_from(names), JSON_TREES.map(tree_bytes) | st.binary(max_size=100))
    return Target(make, strategy, run, (DatasetError, LearntError))


def shard(folder: Path, schema: FeatureSchema | None = None) -> Target:
    """training.data.reader and .file_checker: a stranger's Parquet file, with a manifest that agrees with it."""
    from training.config import ReaderConfig, TrainingConfig
    from training.data.file_checker import digest_of_file
    from training.data.opened_dataset import Dataset
    from training.data.reader import Reader

    made = make_dataset(folder, schema)
    [file] = made.splits["train"].files
    path = folder / file.path
    reading = ReaderConfig(num_streams=1, shuffle_row_groups=1, prefetch_batches=1)
    config, learnt = TrainingConfig(str(folder), reader=reading, global_batch_size=8), made.load_learnt(folder)
    table = pyarrow.parquet.read_table(path, partitioning=None)
    seeds = {name: parquet_bytes(table, **options) for name, options in PARQUET.items()}

    def make(rng: random.Random) -> tuple[bytes, bool]:
        data = seeds[rng.choice(list(seeds))]
        if rng.random() < 0.3:
            options = PARQUET[rng.choice(("snappy", "plain", "zstd", "gzip"))]
            return parquet_bytes(_mutate_table(rng, table), **options), rng.random() < 0.5
        size = int.from_bytes(data[-8:-4], "little")
        footer = data[-8 - size : -8]
        if rng.random() < 0.5:  # the footer is where sizes, offsets and types stand
            changed = mutate_bytes(rng, footer, [footer, data])
            told = len(changed) if rng.random() < 0.9 else rng.randrange(2**32)
            return data[: -8 - size] + changed + told.to_bytes(4, "little") + b"PAR1", rng.random() < 0.2
        if rng.random() < 0.8:  # pages, with the footer as it was
            return mutate_in_place(rng, data[: -8 - size]) + data[-8 - size :], False
        return mutate_bytes(rng, data, list(seeds.values())), False

    def run(given: tuple[bytes, bool]) -> None:
        data, agree = given
        path.write_bytes(data)
        digest_of_file.cache_clear()  # two files of one size in the same tick of the clock
        described = replace(file, num_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
        if agree:  # with the row groups that the file now says it has
            with suppress(OSError, pyarrow.ArrowException, ValueError):
                footer = pyarrow.parquet.read_metadata(path)
                groups = tuple(footer.row_group(i).num_rows for i in range(footer.num_row_groups))
                described = replace(described, row_groups=groups)
        split = replace(made.splits["train"], files=(described,))
        manifest = replace(made, splits={"train": split})
        for batch in Reader(Dataset(folder, manifest, learnt), "train", config).batches(0):
            assert batch.dense_features.isfinite().all()

    return Target(make, st.tuples(st.binary(max_size=200), st.just(False)), run, (DatasetError,))


PARQUET: dict[str, dict[str, Any]] = {
    "snappy": {},
    "plain": {"compression": "none", "use_dictionary": False},
    "zstd": {"compression": "zstd", "data_page_version": "2.0"},
    "gzip": {"compression": "gzip", "write_page_index": True},
    "split": {"compression": "lz4", "use_dictionary": False, "use_byte_stream_split": ["row", "price"]},
}


def parquet_bytes(table: pyarrow.Table, **options: Any) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(table, file, row_group_size=12, **options)
    return file.getvalue()


def _mutate_table(rng: random.Random, table: pyarrow.Table) -> pyarrow.Table:
    """The same table with a column of other values or of another type; as a stranger may well write it."""
    name = rng.choice(table.schema.names)
    at, n = table.schema.names.index(name), table.num_rows
    extremes = (0, 1, 2**31 - 1, -(2**31), 19, 49, None)
    columns: tuple[Callable[[], pyarrow.Array], ...] = (
        lambda: pyarrow.array([rng.choice(extremes) for _ in range(n)], pyarrow.int32()),
        lambda: pyarrow.array([rng.choice((0, 2**63 - 1, -(2**63))) for _ in range(n)], pyarrow.int64()),
        lambda: pyarrow.array(
            [rng.choice((0.5, float("nan"), float("inf"), None)) for _ in range(n)], pyarrow.float32()
        ),
        lambda: pyarrow.array([["x"] * rng.choice((0, 1, 3, 400)) for _ in range(n)], pyarrow.list_(pyarrow.string())),
        lambda: pyarrow.array([[1] * rng.choice((0, 3, 9)) for _ in range(n)], pyarrow.list_(pyarrow.int32())),
        lambda: pyarrow.array(
            [rng.choice(([], [1], [1, None], [49] * 4, [2**31 - 1], None)) for _ in range(n)],
            pyarrow.list_(pyarrow.int32()),
        ),
        lambda: pyarrow.array([[1]] * n, pyarrow.large_list(pyarrow.int32())),
        lambda: pyarrow.array([[[1, 2]] * 2] * n, pyarrow.list_(pyarrow.list_(pyarrow.int32()))),
        lambda: pyarrow.array([{"element": 1, "list": [1]}] * n),
        lambda: pyarrow.array([[("a", 1)]] * n, pyarrow.map_(pyarrow.string(), pyarrow.int32())),
        lambda: pyarrow.array(["x" * rng.choice((0, 9_999))] * n).dictionary_encode(),
        lambda: pyarrow.array([None] * n, rng.choice((pyarrow.null(), pyarrow.int32(), pyarrow.bool_()))),
        lambda: pyarrow.array([b"ab"] * n, rng.choice((pyarrow.binary(), pyarrow.binary(2)))),
        lambda: pyarrow.array([1] * n, rng.choice((pyarrow.timestamp("ns"), pyarrow.date32(), pyarrow.uint32()))),
        lambda: pyarrow.array([[1, 2, 3]] * n, pyarrow.list_(pyarrow.int32(), 3)),
    )
    kind = rng.random()
    if kind < 0.1:
        return table.append_column(rng.choice((name, "x", "user.x", "", "label\0")), rng.choice(columns)())
    if kind < 0.2:
        return table.rename_columns([rng.choice((*table.schema.names, "", "a.b")) if i == at else old
                                     for i, old in enumerate(table.schema.names)])  # fmt: skip
    if kind < 0.3:
        return table.select(rng.sample(table.schema.names, rng.randrange(1, table.num_columns + 1)))
    return table.set_column(at, name, rng.choice(columns)())


# ------------------------------------------------------------------------------------------------------------ artifact


def make_artifact(path: Path, tables: TablePrecision = "float32") -> None:
    """The artifact of an untrained model, as ``training.ship.export`` would write it."""
    from safetensors.torch import save_file

    from training.judge.calibration import Calibration
    from training.model.ctr_model import CTRModel
    from training.ship.predict import Predictor
    from training.ship.quantization import quantize, to_tensors

    (path / "config.toml").write_text(CONFIG)
    config = load_config([str(path / "config.toml")], ['training.calibration={kind="platt"}'])
    learnt = Learnt(vocabularies={"device": ["mobile", "tablet"]})
    learnt.save(path / "learnt")
    rows = {f.name: learnt.num_embeddings(f) for f in config.features.sparse}
    model = CTRModel(config.features, rows, config.training.model)
    save_file({k: v.contiguous() for k, v in to_tensors(model, tables).items()}, path / "weights.safetensors")
    tree, calibration = config.to_dict(), Calibration(0.9, -0.1)
    columns = config.features.feature_columns
    raw = [dict(zip(columns, ("u", "a|\u2028", "mobile", "33", "1", "2.5"), strict=True)), dict.fromkeys(columns)]
    scores = Predictor(quantize(model, tables), config.features, learnt, tree, calibration).predict(raw)
    golden = [
        json.dumps({"row": r, "probability": float(p)}, ensure_ascii=False) for r, p in zip(raw, scores, strict=True)
    ]
    (path / "golden.jsonl").write_text("".join(line + "\n" for line in golden))
    (path / "config.json").write_text(json.dumps(tree))
    (path / "calibration.json").write_text(json.dumps(calibration.to_json()))
    (path / "config.toml").unlink()
    prints = {
        "schema_fingerprint": config.features.fingerprint,
        "learnt_fingerprint": learnt.fingerprint,
        "fingerprint_version": FINGERPRINT_FORMAT.version,
    }
    version = {"version": 1} if tables == "float32" else {"version": 2, "tables": tables}
    (path / "artifact.json").write_text(json.dumps({**version, **prints, "files": digests(path)}))


def digests(path: Path) -> dict[str, str]:
    files = [p for p in sorted(path.rglob("*")) if p.is_file() and p.name != "artifact.json"]
    return {p.relative_to(path).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def artifact(folder: Path, tables: TablePrecision = "float32") -> Target:
    """training.ship.predict: any file of an artifact, mostly with a description that agrees with it."""
    import torch

    from features.disk.artifact import ArtifactError
    from training.model.embedding import ModelError
    from training.ship.predict import Predictor

    torch.set_num_threads(1)
    make_artifact(folder, tables)
    seeds = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    trees = {name: json.loads(data) for name, data in seeds.items() if name.endswith(".json")}
    small = [data for name, data in seeds.items() if name != "weights.safetensors"]

    def make(rng: random.Random) -> tuple[str, bytes, bool]:
        name = rng.choice(("config.json", "artifact.json", "weights.safetensors", *seeds))
        agree = rng.random() < 0.9
        if name == "golden.jsonl" and rng.random() < 0.6:
            lines = [
                json.dumps(mutate_tree(rng, json.loads(line))) for line in seeds[name].decode().split("\n") if line
            ]
            return name, "\n".join(lines).encode(), agree
        if name in trees and rng.random() < 0.7:
            return name, tree_bytes(mutate_tree(rng, trees[name])), agree
        if name == "weights.safetensors":  # its header is where the sizes stand
            length = int.from_bytes(seeds[name][:8], "little")
            header = mutate_bytes(rng, seeds[name][8 : 8 + length], small)
            size = (len(header) if rng.random() < 0.8 else rng.randrange(2**64)).to_bytes(8, "little")
            return name, size + header + seeds[name][8 + length :], agree
        return name, mutate_bytes(rng, seeds[name], small), agree

    def run(given: tuple[str, bytes, bool]) -> None:
        name, data, agree = given
        (folder / name).write_bytes(data)
        if agree and name != "artifact.json":
            (folder / "artifact.json").write_text(json.dumps({**trees["artifact.json"], **_prints(folder, trees)}))
        try:
            loaded = Predictor.load(folder)
            str(loaded.log_reader)
        finally:
            for other in (name, "artifact.json"):
                (folder / other).write_bytes(seeds[other])

    strategy = st.tuples(
        st.sampled_from(list(seeds)), JSON_TREES.map(tree_bytes) | st.binary(max_size=200), st.booleans()
    )
    return Target(make, strategy, run, (ArtifactError, LearntError, ModelError))


def _prints(folder: Path, trees: dict[str, Any]) -> dict[str, Any]:
    """Files, and fingerprints of what the config and the learnt files now say, where they say anything."""
    from pydantic import TypeAdapter

    from features.schema import FeatureSchema

    found: dict[str, Any] = {"files": digests(folder)}
    try:
        schema = TypeAdapter(FeatureSchema).validate_python(
            json.loads((folder / "config.json").read_text())["features"]
        )
        found["schema_fingerprint"] = schema.fingerprint
        found["fingerprint_version"] = FINGERPRINT_FORMAT.version
        found["learnt_fingerprint"] = Learnt.load(folder / "learnt", schema).fingerprint
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass  # no such config: the loader under test has to say so
    return found


# ---------------------------------------------------------------------------------------------------------- checkpoint


def make_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of a small network, as ``training.sharding.checkpoint.save`` would write it; returns its weights."""
    import warnings

    import torch
    import torch.distributed.checkpoint as dcp

    torch.manual_seed(0)
    weights = {"weight": torch.randn(3, 4), "bias": torch.randn(3)}
    state = {"model": weights, "optimizer": {"state": {}, "step": torch.tensor(3.0), "note": {"lr": 0.1}}}
    shutil.rmtree(path, ignore_errors=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(state, storage_writer=dcp.FileSystemWriter(path), no_dist=True)
    sizes = {p.name: p.stat().st_size for p in path.iterdir()}
    progress = {"epoch": 0, "step": 4, "best_step": 4, "rows": 10}
    (path / "checkpoint.json").write_text(json.dumps({"step": 4, "progress": progress, "files": sizes}))
    return weights


def checkpoint(folder: Path) -> Target:
    """training.checkpoint: the description, the pickled index and the shards, each with sizes that agree."""
    import torch
    from torch import nn

    from training.sharding import checkpoint as module
    from training.sharding.checkpoint_reader import CheckpointError

    path = folder / "step=000000004"
    make_checkpoint(path)
    seeds = {p.name: p.read_bytes() for p in path.iterdir()}
    [shard] = [name for name in seeds if name.endswith(".distcp")]
    tree = json.loads(seeds["checkpoint.json"])

    def make(rng: random.Random) -> tuple[str, bytes]:
        name = rng.choice((".metadata", ".metadata", shard, "checkpoint.json"))
        if name == "checkpoint.json" and rng.random() < 0.8:
            return name, tree_bytes(mutate_tree(rng, tree))
        if name == ".metadata" and rng.random() < 0.4:
            return name, _mutate_pickle(rng, seeds[name])
        return name, mutate_bytes(rng, seeds[name], list(seeds.values()))

    def run(given: tuple[str, bytes]) -> None:
        name, data = given
        (path / name).write_bytes(data)
        if name != "checkpoint.json":
            sizes = {**tree["files"], name: len(data)}
            (path / "checkpoint.json").write_text(json.dumps({**tree, "files": sizes}))
        try:
            model = nn.Linear(4, 3)
            found = module.best(folder)
            module.restore_model(found, model)
            everything = {"model": model.state_dict(), "optimizer": {"step": torch.tensor(0.0), "note": {"lr": 0.0}}}
            module._load(found, everything)
        finally:
            for other in (name, "checkpoint.json"):
                (path / other).write_bytes(seeds[other])

    names = list(seeds)
    strategy = st.tuples(st.sampled_from(names), JSON_TREES.map(tree_bytes) | st.binary(max_size=200))
    return Target(make, strategy, run, (CheckpointError,))


def _mutate_pickle(rng: random.Random, data: bytes) -> bytes:
    """The index with opcodes taken out, doubled, or put in: what cuts in mid-opcode seldom reach."""
    import pickletools

    starts = [position for _, _, position in pickletools.genops(data)]
    pieces = [data[a:b] for a, b in zip(starts, [*starts[1:], len(data)], strict=True)]
    more = [opcode.code.encode("latin-1") for opcode in pickletools.opcodes]
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(len(pieces))
        kind = rng.randrange(3)
        if kind == 0:
            del pieces[at]
        elif kind == 1:
            pieces.insert(at, rng.choice(pieces))
        else:
            pieces.insert(at, rng.choice(more) + rng.randrange(2**64).to_bytes(8, "little")[: rng.choice((0, 1, 4, 8))])
    return b"".join(piece for piece in pieces if piece[:1] != b"\x95" or rng.random() < 0.1)  # frames say the sizes


TARGETS: dict[str, Callable[[Path], Target]] = {
    "log": log,
    "sources": sources,
    "config": config,
    "manifest": manifest,
    "shard": shard,
    "ragged_shard": partial(shard, schema=tiny_sequences()),
    "artifact": artifact,
    "quantised_artifact": partial(artifact, tables="int8"),
    "checkpoint": checkpoint,
}
