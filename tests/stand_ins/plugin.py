"""A user's package of plugins outside the tree: the code blocks of docs/extending.md, written where a test wants it."""

import importlib
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from training import plugins

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"


def page_files() -> dict[str, str]:
    """File -> its text, of every code block of the page whose first line is a comment with a path."""
    found = re.findall(r"^```(?:python|toml)\n# (\S+)\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    assert len(dict(found)) == len(found)
    return dict(found)


@pytest.fixture
def user_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[dict[str, str]], Path]]:
    """``user_modules({"name.py": text}) -> folder``, which is on sys.path; what they register goes with the test."""
    folder = tmp_path / "user"
    folder.mkdir()
    before = plugins.registered()
    modules = set(sys.modules)
    monkeypatch.setenv(plugins.PLUGINS_VARIABLE, "")
    monkeypatch.syspath_prepend(folder)

    def write(files: dict[str, str]) -> Path:
        for name, text in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")
        importlib.invalidate_caches()
        return folder

    yield write
    plugins.restore(before)
    users = {path.stem for path in folder.iterdir()}
    for name in set(sys.modules) - modules:
        if name.partition(".")[0] in users:
            del sys.modules[name]
