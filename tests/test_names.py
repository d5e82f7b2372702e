"""One word, one thing: a public name stands for one thing in the whole product."""

import ast
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROOMS = ("features", "pipeline", "training", "jobs")
EVERYWHERE = {"main", "T"}
"""What each program, and each generic function, has one of."""


def public_names(module: Path) -> set[str]:
    """Classes, functions and variables that a module defines at its top level."""
    names = set()
    for node in ast.parse(module.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)}
    return {name for name in names if not name.startswith("_")} - EVERYWHERE


def shared_names(root: Path) -> dict[str, list[str]]:
    """Public names that more than one module below the rooms defines, and where."""
    owners = defaultdict(list)
    for room in ROOMS:
        for module in sorted((root / room).rglob("*.py")):
            for name in public_names(module):
                owners[name].append(module.relative_to(root).as_posix())
    return {name: modules for name, modules in sorted(owners.items()) if len(modules) > 1}


def test_a_public_name_exists_once() -> None:
    found = shared_names(ROOT)
    assert not found, f"each of these names says two things; rename one: {found}"


def test_what_counts_as_a_public_name(tmp_path: Path) -> None:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "training" / "fit").mkdir(parents=True)
    text = "import os\nA, (B, _C) = 1, (2, 3)\nD: int = 4\ndef e(): F = 5\nclass G: H = 6\ndef main(): ...\n"
    (tmp_path / "jobs" / "one.py").write_text(text)
    (tmp_path / "training" / "fit" / "two.py").write_text(text + "I = 7\n")
    two = ["training/fit/two.py", "jobs/one.py"]
    assert shared_names(tmp_path) == dict.fromkeys(("A", "B", "D", "G", "e"), two)


def test_the_glossary_has_forty_words_each_once() -> None:
    rows = [line for line in (ROOT / "docs" / "glossary.md").read_text().splitlines() if line.startswith("| ")]
    words = [word.strip() for row in rows for word in row.split("|")[1].split(" (")[0].split(",")]
    words = [word for word in words if word != "word"]
    assert len(set(words)) == len(words) and 35 <= len(words) <= 45, words
