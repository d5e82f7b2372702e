"""Look at a raw log and write a first config for it, ready to build: columns, kinds, sizes, label, group, time.

Engines and the project itself are imported inside ``main``: a program of this folder that is started by its file finds
this module where the standard library looks for its own ``inspect``, which ``_make_way`` then puts in its place.
"""


def main() -> int:
    """Inspect the log, write the config, and print a table of the columns and what is odd."""
    from pathlib import Path

    from jobs.cli.argument_types import positive
    from jobs.cli.config import read_overrides
    from jobs.cli.conventions import local, plain_parser
    from jobs.cli.errors import ConfigError

    parser = plain_parser(
        "jobs.inspect",
        "Look at a raw log and write a first config for it, ready for jobs.build_dataset.",
        "python -m jobs.inspect --input 'logs/*.csv.gz' --output mine.toml\n"
        '  python -m jobs.inspect --input ratings.dat --label "rating >= 4" pipeline.input.format.separator=::',
    )
    parser.usage = "%(prog)s --input LOG [LOG ...] [options] [pipeline.input.format.key=value ...]"
    parser.add_argument("--input", required=True, nargs="+", metavar="LOG", help="files, folders or globs")
    parser.add_argument("--output", default="first.toml", metavar="FILE", help="the config (default: %(default)s)")
    parser.add_argument("--label", metavar="RULE", help='such as click, "rating >= 4" or "action == buy"')
    parser.add_argument("--group", metavar="COLUMN", help="of the rows that GAUC compares, such as a user id")
    parser.add_argument("--time", metavar="COLUMN", help="of the row's time")
    parser.add_argument("--rows", type=positive, default=200_000, metavar="N", help="to look at (default: %(default)s)")
    parser.add_argument("--json", metavar="FILE", help="also write what was found there")
    parser.add_argument("--force", action="store_true", help="replace the config if it is there")
    arguments, words = parser.parse_known_args()
    key = "pipeline.input.format."
    paths = [word for word in arguments.input if not (word.startswith(key) and "=" in word)]
    words += [word for word in arguments.input if word not in paths]
    strange = [word for word in words if not word.startswith(key) or "=" not in word]
    if strange or not paths:
        parser.error(f"unrecognised arguments: {' '.join(strange)}" if strange else "--input names no log")
    output: Path = local(arguments.output)
    if output.exists() and not arguments.force:
        raise ConfigError(f"{output} is there already: --force replaces it, --output names another")
    given = read_overrides(words).get("pipeline", {}).get("input", {}).get("format", {})

    from features.disk.atomic import write_json, write_text
    from jobs.inspection.inspection import inspect_log

    found = inspect_log(
        paths, arguments.output, arguments.rows, given, arguments.label, arguments.group, arguments.time
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    write_text(output, found.toml)
    if arguments.json:
        write_json(local(arguments.json), found.to_dict())
    print(found.describe())
    print(f"{output}: build it by python -m jobs.build_dataset --config {output}")
    return 0


def _make_way() -> None:
    """Load the standard library's module of this name in place of this one."""
    import sys
    from importlib.machinery import PathFinder
    from importlib.util import module_from_spec

    here = __file__.rsplit("/", 1)[0]
    spec = PathFinder.find_spec("inspect", [path for path in sys.path if path.rstrip("/") != here])
    assert spec is not None and spec.loader is not None
    sys.modules["inspect"] = module = module_from_spec(spec)
    spec.loader.exec_module(module)


if __name__ == "__main__":
    from jobs.cli.conventions import run_program

    run_program(main)
elif __name__ == "inspect":
    _make_way()
