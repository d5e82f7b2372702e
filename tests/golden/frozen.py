"""Frozen formats, copied to where a test wants them; ``make.py`` says what is in them."""

import shutil
import sqlite3
import tarfile
from pathlib import Path

from tests.golden.make import PLACE

GENERATIONS = Path(__file__).parent
ARTIFACTS = ("artifact", "artifact-int8")
"""Folders whose files have a sha256 written down; the paths in them are of the machine that made them, as everywhere
where an artifact is taken to another."""


def copy_frozen(generation: str, folder: Path) -> Path:
    """Copy a generation such as ``v1`` to ``folder``, which it makes, and let its paths lead there.

    Returns:
        The folder.
    """
    shutil.copytree(GENERATIONS / generation, folder)
    for archive in folder.glob("*.tar.xz"):
        with tarfile.open(archive) as packed:
            packed.extractall(folder, filter="data")
        archive.unlink()
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".json", ".jsonl", ".toml") and not set(ARTIFACTS) & set(path.relative_to(folder).parts):
            text = path.read_text(encoding="utf-8")
            if str(PLACE) in text:
                path.write_text(text.replace(str(PLACE), str(folder)), encoding="utf-8")
        elif path.suffix == ".db":
            _move_database(path, folder)
    return folder


def _move_database(path: Path, folder: Path) -> None:
    connection = sqlite3.connect(path)
    tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    with connection:
        for table in tables:
            for _, column, type_, *_ in connection.execute(f"PRAGMA table_info({table})").fetchall():
                if type_.upper().startswith(("VARCHAR", "TEXT")):
                    connection.execute(
                        f"UPDATE {table} SET {column} = replace({column}, ?, ?) WHERE {column} LIKE ?",
                        (str(PLACE), str(folder), f"%{PLACE}%"),
                    )
    connection.close()
