"""Docstrings of the product: a first line that says verb and object, or what a thing holds."""

import ast
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROOMS = ("features", "pipeline", "training", "jobs")
RELATIVE = frozenset(
    [
        "After",
        "And",
        "As",
        "At",
        "Because",
        "Before",
        "Behind",
        "Beside",
        "Besides",
        "Between",
        "But",
        "By",
        "For",
        "From",
        "How",
        "In",
        "Not",
        "Of",
        "On",
        "Only",
        "Or",
        "Over",
        "Since",
        "That",
        "Through",
        "To",
        "Under",
        "Until",
        "What",
        "When",
        "Where",
        "Which",
        "While",
        "Who",
        "Whose",
        "With",
        "Without",
    ]
)
"""Words that open a fragment: its reader would have to know what stands above it."""
LEFT = {"features": 0, "pipeline": 0, "training": 0, "jobs": 0}
"""Docstrings of each package that still open with such a word; a number may only fall."""


def docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Every docstring with its line: of modules, classes and functions, and the texts below attributes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield node.body[0].lineno, text
        body = getattr(node, "body", None)
        for first, second in pairwise(body if isinstance(body, list) else ()):
            match first, second:
                case ast.Assign() | ast.AnnAssign(), ast.Expr(value=ast.Constant(value=str(text))):
                    yield second.lineno, text


def fragments(package: str) -> list[str]:
    """FILE:LINE: first line, of each docstring of a package that opens with a relative word."""
    found = []
    for path in sorted((ROOT / package).rglob("*.py")):
        for line, text in docstrings(ast.parse(path.read_text(encoding="utf-8"))):
            word = re.match(r"\W*(\w+)", text)
            if word and word[1] in RELATIVE:
                found.append(f"{path.relative_to(ROOT)}:{line}: {text.splitlines()[0]}")
    return found


def test_docstrings_do_not_open_as_fragments() -> None:
    found = {package: fragments(package) for package in ROOMS}
    counts = {package: len(lines) for package, lines in found.items()}
    assert counts == LEFT, "\n".join(line for lines in found.values() for line in lines)
