"""Show the events that a dataset's build left of one user: what an online store would hold, newest first."""

import sys
from datetime import UTC, datetime

from features.disk.dataset import DatasetManifest
from features.disk.place import temporary_folder
from features.disk.user_histories import fetch_histories
from features.history import UserEvent
from features.learnt import Learnt
from features.schema import VOCABULARY_KINDS, FeatureSchema, SequenceFeature
from jobs.cli.conventions import place, plain_parser, run_program
from jobs.cli.text_table import text_table

_ALWAYS = sys.maxsize
"""Time at which every event may be seen."""


def main() -> int:
    """Print a table for each history that the build made."""
    parser = plain_parser(
        "jobs.history",
        "Show one user's histories after a build: the events that a row of the user would see.",
        "python -m jobs.history --dataset data/demo --user u42",
    )
    parser.add_argument("--dataset", required=True, metavar="DIR")
    parser.add_argument("--user", required=True, metavar="VALUE", help="raw value of the column that names users")
    parser.add_argument("--time", type=int, default=_ALWAYS, metavar="SECONDS", help="Unix time of the row; any: all")
    arguments = parser.parse_args()
    dataset = place(arguments.dataset)
    manifest = DatasetManifest.load(dataset)
    learnt = manifest.load_learnt(dataset)
    with temporary_folder() as folder:
        state = fetch_histories(manifest, dataset, folder)
        for sequence in manifest.schema.sequence:
            if sequence.history is None:
                continue
            events = state.of_user(sequence, arguments.user).at(arguments.time, sequence.max_length)
            print(f"{sequence.name}: {len(events)} events of {sequence.history.of} {arguments.user!r}")
            if events:
                print(text_table(_rows(events, sequence, manifest.schema, learnt)))
    return 0


def _rows(
    events: list[UserEvent], sequence: SequenceFeature, schema: FeatureSchema, learnt: Learnt
) -> list[tuple[str, ...]]:
    """Describe events by time and values; an id that no value is known for is shown as such."""
    sparse = {feature.name: feature for feature in schema.sparse}
    names = {
        part: {id_: token for token, id_ in learnt.ids_of(part).items()}
        for part in sequence.parts
        if sparse[part].encoding.kind in VOCABULARY_KINDS
    }
    stayed = ["dwell (s)"] if sequence.dwell_weights else []
    rows = [("time (UTC)", *sequence.parts, *stayed)]
    for event in events:
        time = datetime.fromtimestamp(event.time, UTC).strftime("%Y-%m-%d %H:%M:%S")
        values = [
            names.get(part, {}).get(id_, f"id {id_}") for part, id_ in zip(sequence.parts, event.value, strict=True)
        ]
        if sequence.dwell_weights:
            values.append("not known" if event.dwell is None else f"{event.dwell:g}")
        rows.append((time, *values))
    return rows


if __name__ == "__main__":
    run_program(main)
