"""Serve a model over HTTP on Ray Serve: raw rows in, click probabilities of the current champion out."""

import argparse

from jobs.cli.conventions import TOKEN, plain_parser, run_program
from jobs.cli.logging import add_log_options, set_up_logging
from jobs.launch.loopback import LOOPBACK
from jobs.registry.found_artifact import MODELS, REGISTRY
from jobs.serving.score_request import RequestLimits
from jobs.serving.server import serve

_EXAMPLE = (
    "python -m jobs.serve --model models:/ctr@champion --registry /shared/retrain/registry\n"
    "  python -m jobs.serve --artifact runs/demo/artifact --port 8080 --replicas 2\n"
    '  curl http://127.0.0.1:8080/v1/score -d \'{"rows": [{"user": "u1", "movie": "m7"}]}\'\n'
    "  python -m jobs.models rollback --registry /shared/retrain/registry    # taken up within seconds"
)


def main() -> int:
    """Serve until a signal ends the process."""
    arguments = _parser().parse_args()
    set_up_logging("jobs.serve", arguments)
    return serve(arguments)


def _parser() -> argparse.ArgumentParser:
    limits = RequestLimits()
    parser = plain_parser(
        "jobs.serve",
        "Serve a model over HTTP: POST /v1/score and /v1/buckets, GET /healthz, /metrics, /docs, /openapi.json. Where "
        f"{TOKEN} is set, all but /healthz ask for it as a bearer token.",
        _EXAMPLE,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--model", metavar="NAME", help=f"{MODELS}NAME@ALIAS, which is followed, or {MODELS}NAME/VERSION")
    what.add_argument(
        "--artifact", metavar="DIR", help="folder, file:// or s3:// URL of an artifact without a registry"
    )
    parser.add_argument("--registry", default=REGISTRY, metavar="DIR|URL", help=f"of --model (default: {REGISTRY})")
    parser.add_argument("--host", default=LOOPBACK, help=f"address to listen at (default: {LOOPBACK})")
    parser.add_argument("--port", type=int, default=8000, help="0: any that is free (default: 8000)")
    for name, default, what_for in (
        ("--replicas", 1, "processes that score"),
        ("--threads", 1, "of each replica"),
        ("--max-rows", limits.rows, "rows of one request"),
        ("--max-bytes", limits.body, "bytes of its body"),
        ("--max-value", limits.value, "characters of one value"),
    ):
        parser.add_argument(name, type=int, default=default, metavar="N", help=f"{what_for} (default: {default})")
    parser.add_argument("--timeout", type=float, default=30.0, metavar="SECONDS", help="of one request (default: 30)")
    parser.add_argument(
        "--poll", type=float, default=2.0, metavar="SECONDS", help="between two looks at the registry (default: 2)"
    )
    add_log_options(parser)
    return parser


if __name__ == "__main__":
    run_program(main)
