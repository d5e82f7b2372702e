"""A first model with nothing set, beside LightGBM, on nine small public logs.

It runs ``jobs.leaderboard`` over configs that have ``[features]`` and ``[pipeline]`` alone:

    python -m tests.benchmarks.first_model --data ../shared/data --output runs/first_model

Logs are cut into training, validation and test rows as their makers do, or else by time; Avazu and Criteo at random, of
which there are a few thousand rows. It needs the raw files (``--data``) and ``pip install 'twinfocus[lightgbm]'``.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

Parts = dict[str, pd.DataFrame]
SHARES = (0.7, 0.85)
"""Ends of the training and of the validation rows in a log that is cut here."""


def cut(rows: pd.DataFrame, order: str | None = None) -> Parts:
    """Cut a log by time, or at random where no column orders it."""
    rows = rows.sample(frac=1, random_state=0) if order is None else rows.sort_values(order, kind="stable")
    first, second = (int(share * len(rows)) for share in SHARES)
    return {"train": rows[:first], "valid": rows[first:second], "test": rows[second:]}


def halves(train: pd.DataFrame, held: pd.DataFrame) -> Parts:
    """Take half of the held rows, every second one, for validation and the others as test."""
    return {"train": train, "valid": held[::2], "test": held[1::2]}


def talkingdata(data: Path) -> Parts:
    """Ad clicks, one in 400 of which ends in an installation."""
    return cut(pd.read_csv(data / "talkingdata/clicks.csv.gz"), "click_time")


def yandex(data: Path) -> Parts:
    """Pages of ten search results; a tenth of the training pages is validation."""
    rows = pd.read_csv(data / "yandex_sessions/sessions.tsv.gz", sep="\t")
    train = rows[rows.split == "train"]
    held = train.session % 10 == 9
    return {"train": train[~held], "valid": train[held], "test": rows[rows.split == "test"]}


def mind(data: Path) -> Parts:
    """News impressions, a row for each article that was shown."""
    names = ["impression", "user", "time", "history", "shown"]
    rows = pd.read_csv(data / "mind_sample/behaviors.tsv.gz", sep="\t", header=None, names=names)
    rows["time"] = pd.to_datetime(rows.time, format="%m/%d/%Y %I:%M:%S %p")
    rows["num_read"] = rows.history.fillna("").str.split().str.len()
    rows["shown"] = rows.shown.str.split(" ")
    rows = rows.explode("shown", ignore_index=True)
    rows[["item", "click"]] = rows.shown.str.rsplit("-", n=1, expand=True)
    rows["hour"], rows["weekday"] = rows.time.dt.hour, rows.time.dt.weekday
    return cut(rows[["time", "user", "item", "hour", "weekday", "num_read", "click"]], "time")


def avazu(data: Path) -> Parts:
    """Mobile ads."""
    return cut(pd.read_csv(data / "avazu/impressions.csv.gz", dtype=str))


def criteo(data: Path) -> Parts:
    """Display ads; many values are missing."""
    names = ["label", *(f"I{i}" for i in range(1, 14)), *(f"C{i}" for i in range(1, 27))]
    return cut(pd.read_csv(data / "criteo/day_0.tsv.gz", sep="\t", header=None, names=names, dtype=str))


def movielens_1m(data: Path) -> Parts:
    """Ratings of films; four or five of five stars are a positive."""
    folder = data / "movielens_1m"
    names = ["user", "gender", "age", "occupation", "zip"]
    users = pd.read_csv(folder / "users.dat", sep="::", engine="python", header=None, names=names, encoding="latin-1")
    train, held = (
        pd.read_csv(
            folder / f"ratings_{part}.dat.gz",
            sep="::",
            engine="python",
            header=None,
            names=["user", "movie", "rating", "time"],
        ).merge(users, on="user")
        for part in ("train", "valid")
    )
    return halves(train, held)


def frappe(data: Path) -> Parts:
    """Uses of apps, and two drawn negatives for each."""
    return halves(*(pd.read_csv(data / f"frappe/{part}.csv.gz") for part in ("train", "valid")))


def retailrocket(data: Path) -> Parts:
    """Views of a shop's items; the label is that the user put it into the cart or bought it."""
    return halves(*(pd.read_csv(data / f"retailrocket/impressions_{part}.csv.gz") for part in ("train", "valid")))


def census_income(data: Path) -> Parts:
    """Persons of a census; the label is an income above 50,000."""
    return halves(*(pd.read_csv(data / f"census_income/{part}.csv.gz") for part in ("train", "valid")))


NUMBERS = ("age", "wage_per_hour", "capital_gains", "capital_losses", "stock_dividends", "num_emp", "weeks_worked")
NO_FEATURES = ("income_50k", "never_married", "instance_weight", "year")
AVAZU = "C1 banner_pos site_id site_domain site_category app_id app_domain app_category device_id device_ip "
AVAZU += "device_model device_type device_conn_type C14 C15 C16 C17 C18 C19 C20 C21"


def census_categories(columns: Sequence[str]) -> list[str]:
    """List the columns of the census that are categories."""
    return [name for name in columns if name not in (*NUMBERS, *NO_FEATURES)]


Log = tuple[Callable[[Path], Parts], str, Callable[[Sequence[str]], Sequence[str]], Sequence[str], Sequence[str]]
LOGS: dict[str, Log] = {
    "TalkingData": (talkingdata, "is_attributed", lambda _: ("ip", "app", "device", "os", "channel"), (), ()),
    "Yandex": (yandex, "click", lambda _: ("query_region", "position", "url"), (), ()),
    "MIND": (mind, "click", lambda _: ("user", "item", "hour", "weekday"), ("num_read",), ()),
    "Avazu": (avazu, "click", lambda _: AVAZU.split(), (), ()),
    "Criteo": (criteo, "label", lambda _: [f"C{i}" for i in range(1, 27)], (), [f"I{i}" for i in range(1, 14)]),
    "MovieLens-1M": (
        movielens_1m,
        "rating >= 4",
        lambda _: ("user", "gender", "age", "occupation", "movie"),
        (),
        (),
    ),
    "Frappe": (frappe, "label", lambda columns: [name for name in columns if name != "label"], (), ()),
    "Retailrocket": (retailrocket, "y", lambda _: ("user", "item", "hour", "weekday"), ("n_views_before",), ()),
    "Census income": (census_income, "income_50k", census_categories, NUMBERS, ()),
}
"""Name -> the log's rows, its label, its categories, its numbers, and its counts (log_squared)."""


def config_of(folder: Path, log: Log, columns: Sequence[str]) -> str:
    """Write what a user would: the columns, and where the files are."""
    _, label, categories, numbers, counts = log
    lines = [f'features.label = "{label}"', f'pipeline.output = "{folder}/dataset"']
    lines += [f'pipeline.input.{part} = "{folder}/{part}.csv"' for part in ("train", "valid", "test")]
    groups = [
        ("sparse", categories(columns), 'encoding = { kind = "vocabulary" }'),
        ("sparse", counts, 'encoding = { kind = "log_squared" }'),
        ("dense", numbers, "standardise = true"),
    ]
    for kind, names, settings in groups:
        if names:
            lines += [f"[[features.{kind}]]", f"names = {list(names)!r}", settings]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write the logs and their configs, and run the leaderboard."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--output", type=Path, default=Path("runs/first_model"))
    parser.add_argument("--logs", nargs="+", default=list(LOGS), choices=list(LOGS), metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1])
    parser.add_argument("overrides", nargs="*", metavar="training.key=value", help="instead of nothing set")
    arguments = parser.parse_args()
    entries = []
    for name in arguments.logs:
        folder = (arguments.output / "logs" / name.lower().replace(" ", "-")).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "config.toml").exists():
            parts = LOGS[name][0](arguments.data)
            for part, rows in parts.items():
                rows.to_csv(folder / f"{part}.csv", index=False)
            (folder / "config.toml").write_text(config_of(folder, LOGS[name], list(parts["train"])))
        entries.append(f'[[datasets]]\nname = "{name}"\nconfigs = ["{folder}/config.toml"]\n')
    overrides = ["training.threads_per_worker=2", *arguments.overrides]
    board = arguments.output / "leaderboard.toml"
    head = (
        f'output = "{arguments.output}"\nreference = "LightGBM"\nseeds = {arguments.seeds}\noverrides = {overrides!r}\n'
    )
    models = '[[models]]\nname = "Nothing set"\n[[models]]\nname = "LightGBM"\nlibrary = "lightgbm"\n'
    board.write_text(head + "".join(entries) + models)
    return subprocess.run([sys.executable, "-m", "jobs.leaderboard", "--config", str(board)], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
