"""score_here: score raw logs into one CSV file, in this process."""

import json
from argparse import Namespace
from pathlib import Path

from tqdm import tqdm

from features.disk.atomic import replacing
from features.rawlog import expand_paths
from jobs.cli.conventions import EXIT_DATA, local
from jobs.registry.found_artifact import find_artifact
from jobs.scoring.score_rows import HEADER, describe_scoring, exceeds_limit, write_scores
from training.ship.predict import Predictor


def score_here(arguments: Namespace) -> int:
    """Score in this process; return the exit code.

    Args:
        arguments: arguments of ``jobs.score``.
    """
    artifact = find_artifact(arguments.artifact, arguments.registry)
    predictor = Predictor.load(artifact.place)
    output = local(arguments.output)
    num_rows = num_errors = 0
    with replacing(output) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        file.write(HEADER.decode())
        for path in expand_paths(tuple(arguments.input)):
            lines = tqdm(predictor.read_log(path), disable=None, unit="row", desc=Path(path).name)
            rows, errors = write_scores(file, path, predictor, lines)
            num_rows, num_errors = num_rows + rows, num_errors + errors
    summary = {"rows": num_rows, "errors": num_errors, "output": str(output), "artifact": artifact.named}
    output.with_name(output.name + ".json").write_text(json.dumps(summary) + "\n", encoding="utf-8")
    print(describe_scoring(num_rows, num_errors, output))
    return EXIT_DATA if exceeds_limit(num_rows, num_errors, predictor) else 0
