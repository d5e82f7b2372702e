"""Replacing files and folders: a reader finds the old one or the new one, wherever the writer is killed."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from features.disk import atomic
from features.disk.atomic import (
    ReplacementError,
    adding_folder,
    new_folder,
    replacing,
    standing,
    write_json,
    write_text,
)
from tests.stand_ins.killed import NO_MORE_CALLS, die_at_call


def accept(output: Path) -> None:
    """Let anything be replaced."""


def test_a_file_is_replaced_or_stays(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_json(path, {"a": [1]})
    assert path.read_text() == '{\n "a": [\n  1\n ]\n}\n'
    write_json(path, {"ä": 1}, indent=None, ensure_ascii=False, durable=True)
    assert path.read_text(encoding="utf-8") == '{"ä": 1}\n'
    with pytest.raises(KeyError), replacing(path) as temporary:
        temporary.write_text("half")
        raise KeyError
    with pytest.raises(TypeError):
        write_json(path, object())
    assert json.loads(path.read_text()) == {"ä": 1} and [p.name for p in tmp_path.iterdir()] == ["file.json"]


def test_what_is_left_of_a_file_is_recognised(tmp_path: Path) -> None:
    script = "import os, sys, pathlib; from features.disk.atomic import replacing\n"
    script += "with replacing(pathlib.Path(sys.argv[1])) as path:\n    path.touch()\n    os._exit(0)"
    subprocess.run([sys.executable, "-c", script, tmp_path / "a.json"], check=True)
    [left] = [p.name for p in tmp_path.iterdir()]
    assert re.fullmatch(atomic.leftover_pattern("a.json"), left)
    assert not re.fullmatch(atomic.leftover_pattern("a.json"), "a.json")


@pytest.mark.parametrize("swaps", [True, False])
def test_a_folder_replaces_another(swaps: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "out"
    if not swaps:
        monkeypatch.setattr(atomic, "_exchange", lambda *_: False)
    for text in ("one", "two"):
        with new_folder(output, accept) as (new, scratch):
            (scratch / "x").touch()
            (new / "mark").write_text(text)
            with pytest.raises(ReplacementError, match="another job is writing to"), new_folder(output, accept):
                pass
        assert (output / "mark").read_text() == text and [p.name for p in tmp_path.iterdir()] == ["out"]
    with pytest.raises(KeyError), new_folder(output, accept) as (new, _):
        (new / "mark").write_text("three")
        raise KeyError
    assert (output / "mark").read_text() == "two" and [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_folder_that_must_not_be_replaced_stays(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").touch()

    def refuse(output: Path) -> None:
        raise ValueError(f"{output} is no such thing")

    with pytest.raises(ValueError, match="is no such thing"), new_folder(tmp_path / "out", refuse):
        pass
    assert [p.name for p in tmp_path.rglob("*")] == ["out", "thesis.txt"]


def test_a_job_killed_between_two_renames(tmp_path: Path) -> None:
    aside = tmp_path / ".out.partial" / "old"
    aside.mkdir(parents=True)
    (aside / "mark").write_text("one")
    assert standing(tmp_path / "out") == aside
    with pytest.raises(KeyError), new_folder(tmp_path / "out", accept):
        raise KeyError
    assert (tmp_path / "out" / "mark").read_text() == "one" and [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("swaps", [True, False])
@pytest.mark.parametrize("had_one", [True, False])
def test_killed_at_every_call(swaps: bool, had_one: bool, tmp_path: Path) -> None:
    """The old folder or the new one stands, whole, and the next job replaces it and leaves nothing else."""
    output, found = tmp_path / "out", set()
    for number in range(1, 100):
        if had_one:
            write(output, "old")
        ended = die_at_call(number, write, output, "new", swaps=swaps)
        there = {path.read_text() for path in standing(output).glob("*")}
        assert there in ([{"old"}, {"new"}] if had_one else [set(), {"new"}]), f"call {number} left {there}"
        assert not there or len(list(standing(output).iterdir())) == 2
        found |= there
        write(output, "next")
        assert [p.name for p in tmp_path.iterdir()] == ["out"]
        if ended == NO_MORE_CALLS:
            break
        if not had_one:
            for path in (*output.iterdir(), output):
                path.unlink() if path.is_file() else path.rmdir()
    else:
        pytest.fail("it never ended")
    assert number > 10 and found == ({"old", "new"} if had_one else {"new"})


def write(output: Path, text: str) -> None:
    with new_folder(output, accept) as (new, _):
        write_text(new / "one", text)
        write_text(new / "two", text)


def test_a_folder_is_added_once(tmp_path: Path) -> None:
    output = tmp_path / "out"
    for text in ("one", "two"):
        with adding_folder(output) as temporary:
            (temporary / "mark").write_text(text)
    assert (output / "mark").read_text() == "one"
    with pytest.raises(KeyError), adding_folder(tmp_path / "other"):
        raise KeyError
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
