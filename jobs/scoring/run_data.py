"""Say whether the dataset that a program reads is the one that its run was trained on."""

import sys
from typing import TYPE_CHECKING, Any

from features.disk.dataset import DatasetManifest

if TYPE_CHECKING:
    from training.data.opened_dataset import Dataset
    from training.fit.run import Run


def warn_if_other(run: "Run", manifest: DatasetManifest) -> None:
    """Print a warning on stderr where a run's own dataset has changed since its training.

    Args:
        run: the run.
        manifest: of its dataset, as it is now.
    """
    trained_on = run.trained_on()
    difference = trained_on.difference(manifest)
    if difference is not None:
        print(f"warning: {trained_on.dataset} is not what {run.path} was trained on: {difference}", file=sys.stderr)


def describe_data(run: "Run", dataset: "Dataset", split: str, *, is_named: bool) -> dict[str, Any]:
    """Identity of the rows that a program scores; see ``TrainedOn.describe``.

    Args:
        run: the run that is scored.
        dataset: what is read.
        split: the split that is scored.
        is_named: the user named the dataset, so that it is another one is no surprise and no warning is printed.
    """
    if not is_named:
        warn_if_other(run, dataset.manifest)
    return run.trained_on().describe(dataset.manifest, split)
