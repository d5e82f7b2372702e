"""Write a run's best checkpoint as an artifact that scores raw rows."""

from features.disk.dataset import DatasetManifest
from jobs.cli.conventions import local, place, plain_parser, run_program
from jobs.scoring.run_data import warn_if_other


def main() -> int:
    """Export the checkpoint and print what was written."""
    parser = plain_parser(
        "jobs.export",
        "Export a run's best checkpoint.",
        "python -m jobs.export --run runs/demo --output runs/demo/artifact",
    )
    parser.add_argument("--run", required=True, metavar="DIR")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder, file:// or s3:// URL")
    parser.add_argument(
        "--tables",
        default="float32",
        choices=["float32", "float16", "int8"],
        help="precision of the tables that are served (default: float32); jobs.compare_tables says what each costs",
    )
    parser.add_argument("--golden-input", metavar="FILE", help="raw log for the golden rows, if the dataset's is gone")
    arguments = parser.parse_args()

    from training.fit.run import Run
    from training.ship.export import NUM_GOLDEN_ROWS, export

    run = Run(local(arguments.run))
    warn_if_other(run, DatasetManifest.load(run.trained_on().dataset))
    predictor = export(run, place(arguments.output), arguments.golden_input, arguments.tables)
    print(
        f"exported {len(predictor.model.tables)} {arguments.tables} tables and the network to {arguments.output}; "
        f"up to {NUM_GOLDEN_ROWS} golden rows replayed"
    )
    return 0


if __name__ == "__main__":
    run_program(main)
