"""check_validation: what a validation split must hold for what a config asks of it, told before anything is trained."""

from features.disk.dataset import DatasetManifest
from features.disk.run_folder import RunError
from training.config import TrainingConfig
from training.judge.metrics import METRICS


def check_validation(manifest: DatasetManifest, config: TrainingConfig) -> None:
    """Refuse a validation split that cannot give what is monitored, or what a calibration is fitted on.

    Without a validation split nothing is monitored, and a model is trained all the same.

    Raises:
        RunError: its rows are of one class, and a monitored metric or the calibration needs both.
    """
    split = manifest.splits.get("valid")
    has_both = split is not None and split.num_rows > 0 and 0 < split.label_rate < 1
    if config.calibration.kind == "platt" and not config.calibration.only_where_it_helps and not has_both:
        raise RunError(f"training.calibration needs a validation split with both labels, and {config.dataset} has none")
    undefined = [name for name in config.monitor if METRICS[name].needs_both_labels]
    if split is not None and split.num_rows and not has_both and undefined:
        raise RunError(
            f"training.monitor uses {', '.join(undefined)}, undefined on rows of one class, and all {split.num_rows:,} "
            f"validation rows of {config.dataset} have label {split.label_rate:g}: move the split's border or take "
            "more rows, and build again; or set training.monitor = { logloss = -1.0 }"
        )
