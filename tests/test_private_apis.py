"""Every private API that the product uses of others, every name that it replaces there, and why.

Each exists in the versions that are pinned."""

import ast
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("features", "pipeline", "training", "jobs")
DOCUMENTED = {
    "_asdict": "of a named tuple",
    "_replace": "of a named tuple",
    "_exit": "of os: ends the process at once",
    "excepthook": "of sys: made to be replaced",
    "unraisablehook": "of sys: made to be replaced",
}
"""Names that begin with an underscore and are public all the same, or are there to be replaced."""


class PrivateApi(NamedTuple):
    """A private name of a library, and its use."""

    module: str
    name: str
    used_by: str
    """The file of the product."""
    why: str

    @property
    def path(self) -> str:
        """The whole dotted name."""
        return f"{self.module}.{self.name}"


READER = "training/sharding/checkpoint_reader.py"
CHECKPOINT = "torch.distributed.checkpoint"
APIS = (
    PrivateApi(
        f"{CHECKPOINT}._nested_dict",
        "flatten_state_dict",
        READER,
        "names that a checkpoint's index gives to what lies in nested dictionaries, to find tables that have grown",
    ),
    PrivateApi(
        f"{CHECKPOINT}._traverse",
        "set_element",
        READER,
        "puts an un-pickled value in its place, as load_bytes does, which offers no other way to un-pickle",
    ),
    PrivateApi(
        f"{CHECKPOINT}.filesystem",
        "_StorageInfo",
        READER,
        "class in a checkpoint's index that says where a tensor lies; a safe un-pickler has to name what it may build",
    ),
    PrivateApi(
        f"{CHECKPOINT}.filesystem",
        "FileSystemReader._slice_file",
        READER,
        "one record of a file, to be checked before it is opened; the public read_data gives no hold of it",
    ),
    PrivateApi(
        f"{CHECKPOINT}.filesystem",
        "FileSystemReader._get_metadata_path",
        READER,
        "place of the index, which read_metadata un-pickles without a check and which is read here instead",
    ),
    PrivateApi(
        f"{CHECKPOINT}.metadata",
        "_MEM_FORMAT_ENCODING",
        READER,
        "class in a checkpoint's index; a safe un-pickler has to name what it may build",
    ),
    PrivateApi(
        f"{CHECKPOINT}.utils",
        "_ReaderView",
        READER,
        "view of a part of a file, which zipfile can read once its seek from the end is right",
    ),
    PrivateApi(
        "torch.serialization",
        "_get_layout",
        READER,
        "function that a checkpoint's index names; a safe un-pickler has to name what it may call",
    ),
    PrivateApi(
        "pickle",
        "_Unpickler.dispatch",
        READER,
        "un-pickler in Python, whose operations can be left out; the one in C takes memory for as many objects as a "
        "pickle says it has",
    ),
    PrivateApi(
        "torch.distributed._shard.sharded_tensor",
        "ShardedTensor",
        "training/sharding/tables.py",
        "what TorchRec's state_dict has for a sharded table: shards and their offsets, with no public import",
    ),
    PrivateApi(
        "torch.distributed.optim",
        "_apply_optimizer_in_backward",
        "training/sharding/tables.py",
        "marks tables that FBGEMM updates in its backward; TorchRec's own examples use it, there is no public name",
    ),
    PrivateApi(
        "torchrec.distributed.embeddingbag",
        "ShardedEmbeddingBagCollection._lookups",
        "training/sharding/tables.py",
        "look-ups and kernels, to time them apart from the exchanges; they are no submodules that modules() has",
    ),
    PrivateApi(
        "torch",
        "_foreach_add_",
        "training/sharding/parallelize.py",
        "adds to the gradients of all tables in one kernel, as torch.optim does within",
    ),
    PrivateApi(
        "torch",
        "_foreach_lerp_",
        "training/sharding/weight_average.py",
        "moves the average of all weights in one kernel, as torch.optim.swa_utils does within",
    ),
    PrivateApi(
        "torch.autograd",
        "Variable._execution_engine",
        "training/fit/step_times.py",
        "calls back at the end of a backward pass, as DDP does; hooks on tensors come before the tables' updates",
    ),
    PrivateApi(
        "petastorm.reader",
        "Reader._results_queue_reader",
        "training/data/reader.py",
        "hands over Arrow tables; Petastorm's own conversion takes 2 microseconds a row and column of lists",
    ),
    *(
        PrivateApi(f"petastorm.{module}", name, "training/data/petastorm_shim.py", f"replaced: {why}")
        for module, name, why in (
            ("reader", "pq", "opens the dataset as a ParquetDataset of pyarrow before 15"),
            ("etl.dataset_metadata", "pq", "makes its pieces, one a row group"),
            ("arrow_reader_worker", "pq", "opens the dataset again, in the worker"),
            ("fs_utils", "pyarrow", "takes pyarrow's old local file system for file://"),
            ("unischema", "np", "names text and bytes as NumPy before 2 did"),
            ("arrow_reader_worker", "np", "does so too"),
        )
    ),
    PrivateApi(
        "pyspark",
        "SparkContext._gateway",
        "pipeline/session.py",
        "Java's process, to be ended at once when a signal comes; stop() waits for what it is doing",
    ),
    PrivateApi(
        "pyspark",
        "SparkContext._accumulatorServer",
        "pipeline/session.py",
        "thread that prints a traceback when Java has been ended so",
    ),
    PrivateApi(
        "ray._private.worker",
        "_global_node",
        "jobs/launch/ray_cluster.py",
        "process of the cluster's node, to say a word when it is gone; Ray ends the driver without one",
    ),
    PrivateApi(
        "ray.train.torch",
        "TorchTrainer._register_sigint_handler",
        "jobs/launch/ray_cluster.py",
        "taken away: it waits for workers that may never start, and outlives a second Ctrl-C",
    ),
    PrivateApi(
        "ray._raylet",
        "GcsClient",
        "jobs/launch/cluster_answer.py",
        "asks an address for its cluster and says why there is no answer; ray.init waits for minutes",
    ),
    PrivateApi(
        "ray._private.services",
        "canonicalize_bootstrap_address",
        "jobs/launch/cluster_answer.py",
        'address of the cluster that RAY_ADDRESS = "auto" means',
    ),
    PrivateApi(
        "ray.train.torch.config",
        "_setup_torch_process_group",
        "jobs/launch/process_group.py",
        "forms a rank's process group; given a file to meet at, since Ray offers only a store that all may reach",
    ),
    PrivateApi(
        "ray.train.torch.config",
        "_TorchBackend",
        "jobs/launch/process_group.py",
        "start of a process group, replaced by one through a file; Ray has no setting for that",
    ),
    PrivateApi(
        "ray.serve._private.common",
        "ReplicaState",
        "jobs/serving/service.py",
        "keys of replica_states in the public serve.status(), which counts running replicas",
    ),
    PrivateApi(
        "grpc.aio._server",
        "Server.add_insecure_port",
        "jobs/serving/scorer.py",
        "address on which a replica listens: Ray Serve takes every interface and has no setting for it",
    ),
    PrivateApi(
        "mlflow.store.db.utils",
        "_initialize_tables",
        "jobs/registry/store.py",
        "makes a registry's tables before its file has its name, so that nobody opens half of them",
    ),
)
USES = tuple(sorted({api.used_by for api in APIS}))


class Use(NamedTuple):
    """A private name of a library in a file of the product; an attribute's owner is not known."""

    file: str
    name: str
    is_import: bool

    def is_of(self, api: PrivateApi) -> bool:
        """Whether this is a use of ``api``."""
        if self.file != api.used_by:
            return False
        return f"{api.path}.".startswith(f"{self.name}.") if self.is_import else self.name in api.path.split(".")


def is_private(name: str) -> bool:
    return name.startswith("_") and name.strip("_") != "" and not name.endswith("__")


def private_uses(file: str, text: str) -> Iterator[Use]:
    """Find the private names of libraries that a module uses, and the names that it replaces in them.

    A private attribute is a library's if the module does not define one of that name, or if it is read from an imported
    library or from ``super()``.
    """
    nodes = list(ast.walk(ast.parse(text)))
    defined = {n.name for n in nodes if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}
    defined |= {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    defined |= {n.attr for n in nodes if isinstance(n, ast.Attribute) and _is_own_field(n)}
    libraries = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names if alias.name.split(".")[0] not in ROOMS]
            libraries |= {alias.asname or alias.name.split(".")[0] for alias in node.names if alias.name in modules}
            yield from (Use(file, module, True) for module in modules if any(map(is_private, module.split("."))))
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] not in ROOMS:
            paths = {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            libraries |= paths.keys()
            yield from (Use(file, path, True) for path in paths.values() if any(map(is_private, path.split("."))))
    for node in nodes:
        if isinstance(node, ast.Attribute) and node.attr not in DOCUMENTED:
            is_replaced = isinstance(node.ctx, ast.Store) and _root(node) in libraries
            is_theirs = node.attr not in defined or _root(node) in libraries | {"super"}
            if is_replaced or (is_private(node.attr) and is_theirs):
                yield Use(file, node.attr, False)
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("getattr", "setattr", "hasattr"):
            name = getattr(node.args[1], "value", "")
            if isinstance(name, str) and is_private(name) and name not in defined:
                yield Use(file, name, False)


def _is_own_field(node: ast.Attribute) -> bool:
    return isinstance(node.ctx, ast.Store) and isinstance(node.value, ast.Name) and node.value.id == "self"


def _root(node: ast.expr) -> str:
    """Name that a chain of attributes and calls begins with."""
    while isinstance(node, ast.Attribute | ast.Call):
        node = node.value if isinstance(node, ast.Attribute) else node.func
    return node.id if isinstance(node, ast.Name) else ""


def uses_of_the_product() -> set[Use]:
    files = (path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
    return {
        use for path in files for use in private_uses(str(path.relative_to(ROOT)), path.read_text(encoding="utf-8"))
    }


def test_each_use_is_in_the_table() -> None:
    found = uses_of_the_product()
    assert len(found) >= len(USES)
    assert not sorted(use for use in found if not any(use.is_of(api) for api in APIS))


def test_each_entry_is_in_use() -> None:
    found = uses_of_the_product()
    assert not [api for api in APIS if not any(use.is_of(api) for use in found)]
    assert len({api.path for api in APIS}) == len(APIS)


@pytest.mark.parametrize("api", APIS, ids=lambda api: api.path)
def test_it_exists_in_the_pinned_version(api: PrivateApi) -> None:
    if api.module.startswith("petastorm"):
        importlib.import_module("training.data.petastorm_shim")  # without it nothing of Petastorm can be imported
    owner = importlib.import_module(api.module)
    if api.why.startswith("replaced"):
        assert api.name in names_imported_by(owner)
        return
    *parents, last = api.name.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    assert hasattr(owner, last) or last in fields_of(owner)


def names_imported_by(module: ModuleType) -> set[str]:
    """Names that a module's own imports give to it, whatever was replaced since."""
    imports = (n for n in ast.walk(ast.parse(inspect.getsource(module))) if isinstance(n, ast.Import | ast.ImportFrom))
    return {alias.asname or alias.name for node in imports for alias in node.names}


def fields_of(owner: type) -> set[str]:
    """Names that the methods of a class give to ``self``."""
    tree = ast.parse(inspect.getsource(owner))
    targets = (n for n in ast.walk(tree) if isinstance(n, ast.Attribute) and _is_own_field(n))
    return {target.attr for target in targets}


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("import ray._private.worker", {"ray._private.worker"}),
        ("import ray._private.worker as w\nw._node", {"ray._private.worker", "_node"}),
        ("from torch.serialization import _get_layout", {"torch.serialization._get_layout"}),
        ("from grpc.aio._server import Server", {"grpc.aio._server.Server"}),
        ("import pickle\nclass _Unpickler(pickle._Unpickler): ...", {"_Unpickler"}),
        ("import torch\ntorch._foreach_add_([], [])", {"_foreach_add_"}),
        ("from grpc.aio import Server\nServer.listen = print", {"listen"}),
        ("from petastorm import reader\nreader.pq = None", {"pq"}),
        ("def f(module): return module._lookups", {"_lookups"}),
        ("def f(reader): reader._queue = 1", {"_queue"}),
        ("def f(reader): setattr(reader, '_queue', 1)", {"_queue"}),
        ("class A(B):\n def _f(self): super()._f()", {"_f"}),
        ("class A(B):\n def f(self): self._g()", {"_g"}),
        ("class A:\n def __init__(self): self._x = 1\n def f(self, other): return other._x", set()),
        ("from training.x import _y\nimport os\nos._exit(1)\nrow._asdict()\nA.__name__", set()),
    ],
)
def test_a_use_is_seen(text: str, names: set[str]) -> None:
    assert {use.name for use in private_uses("x.py", text)} == names
