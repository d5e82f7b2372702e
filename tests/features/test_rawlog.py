"""Reading small raw logs in Python: formats, lookups, and what is refused."""

import gzip

import pytest

from features.log_format import LogError, LogFormat, Lookup
from tests.oracles.row_reader import expand_paths, read_rows


def rows(path, log_format, *lookups):
    return list(read_rows(str(path), log_format, lookups))


def test_csv_with_quotes_crlf_and_byte_order_mark(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b'\xef\xbb\xbfa,b\r\n"x, ""y""",\r\n\r\n1,NA\r\n')
    assert rows(path, LogFormat(null_values=("NA",))) == [{"a": 'x, "y"', "b": None}, {"a": "1", "b": None}]


def test_headerless_latin_1_with_a_long_separator(tmp_path):
    path = tmp_path / "a.dat.gz"
    path.write_bytes(gzip.compress("1::é\n2::\n".encode("latin-1")))
    log_format = LogFormat(separator="::", header=False, columns=("id", "name"), quote="", encoding="ISO-8859-1")
    assert rows(path, log_format) == [{"id": "1", "name": "é"}, {"id": "2", "name": None}]


def test_json_numbers_keep_their_text(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1.50, "b": [1, "x"], "c": true, "d": null}\n\n')
    assert rows(path, LogFormat("jsonl")) == [{"a": "1.50", "b": ["1", "x"], "c": True, "d": None}]


@pytest.mark.parametrize(
    ("text", "message"),
    [("a,b\n1\n", "line 2: 1 columns where 2"), ('a,b\n"x,1\n', "line 2: badly quoted")],
)
def test_malformed_csv(tmp_path, text, message):
    path = tmp_path / "a.csv"
    path.write_text(text)
    with pytest.raises(LogError, match=message):
        rows(path, LogFormat())


@pytest.mark.parametrize("line", ["[1]", "{", '{"a": NaN}', "{} x"])
def test_malformed_json(tmp_path, line):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n' + line + "\n")
    with pytest.raises(LogError, match="line 2: not a JSON object"):
        rows(path, LogFormat("jsonl"))


def test_truncated_gzip_names_the_file(tmp_path):
    path = tmp_path / "cut.csv.gz"
    path.write_bytes(gzip.compress(b"a,b\n" + b"1,2\n" * 9999)[:-20])
    with pytest.raises(LogError, match=r"cut\.csv\.gz cannot be read"):
        rows(path, LogFormat())


def test_lookups_join_by_text_and_are_looked_for_beside_the_log(tmp_path):
    (tmp_path / "users.csv").write_text("user,age\n1,30\n2,\n")
    (tmp_path / "log.jsonl").write_text('{"user": 1}\n{"user": "2"}\n{"user": 3}\n{"user": null}\n')
    lookup = Lookup("elsewhere/users.csv", "user", LogFormat())
    found = rows(tmp_path / "log.jsonl", LogFormat("jsonl"), lookup)
    assert [row["age"] for row in found] == ["30", None, None, None]


def test_lookup_errors(tmp_path):
    (tmp_path / "users.csv").write_text("user,age\n1,30\n1,31\n")
    (tmp_path / "log.csv").write_text("user\n1\n")
    with pytest.raises(LogError, match="key 'user' is missing or twice: '1'"):
        rows(tmp_path / "log.csv", LogFormat(), Lookup("users.csv", "user", LogFormat()))
    with pytest.raises(LogError, match="neither there nor beside"):
        rows(tmp_path / "log.csv", LogFormat(), Lookup("none.csv", "user", LogFormat()))
    with pytest.raises(LogError, match="has no column 'id'"):
        rows(tmp_path / "log.csv", LogFormat(), Lookup("users.csv", "id", LogFormat()))


def test_paths_are_files_folders_or_globs_each_once(tmp_path):
    for name in ("b.csv", "a.csv", "_skip", "sub/c.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    names = [path.removeprefix(f"{tmp_path}/") for path in expand_paths((str(tmp_path), f"{tmp_path}/*.csv"))]
    assert names == ["a.csv", "b.csv", "sub/c.csv"]
    with pytest.raises(LogError, match="no input file matches"):
        expand_paths(f"{tmp_path}/*.tsv")


def test_a_format_has_a_header_or_columns():
    with pytest.raises(ValueError, match="either header"):
        LogFormat(header=False)
