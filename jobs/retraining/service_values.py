"""ServiceValues: missing and unknown values that a running service has scored, read from its ``/v1/values``."""

import os
from http.client import HTTPException
from typing import Any, Literal
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from features.unknown_values import name_unknown
from jobs.cli.conventions import TOKEN

_PATIENCE_SECONDS = 10.0


@dataclass(frozen=True)
class ServiceValues:
    """Values that a service has scored since its version serves.

    Attributes:
        version: version that serves; None: the artifact comes without a registry.
        rows: rows that it has scored.
        values: by feature, shares of missing and unknown values and those of its training.
        warnings: features that are far above their training, a sentence each.
    """

    version: int | None
    rows: int
    values: dict[str, dict[str, Any]]
    warnings: tuple[str, ...]

    @property
    def summary(self) -> str:
        """Describe the values in a sentence."""
        unknown = name_unknown(self.values) or "no unknown values"
        return f"version {self.version} has scored {self.rows:,} rows; {unknown}"

    def share(self, name: str, what: Literal["missing", "unknown"], split: str | None = None) -> float | None:
        """Return a feature's share of missing or unknown values, here or in a split; None: it is not known."""
        found = self.values[name] if split is None else self.values[name].get(split, {})
        return found.get(what)


def read_values(address: str) -> ServiceValues | str:
    """Ask a running service for its values; return a sentence where it does not tell them.

    Args:
        address: the service's http:// or https:// address.

    Raises:
        ValueError: the address is none.
    """
    if urlsplit(address).scheme not in ("http", "https"):
        raise ValueError(f"--service {address!r:.80} is no http:// or https:// address")
    request = Request(f"{address.rstrip('/')}/v1/values")
    if token := os.environ.get(TOKEN):
        request.add_unredirected_header("Authorization", f"Bearer {token}")  # no other host gets it
    try:
        with urlopen(request, timeout=_PATIENCE_SECONDS) as answer:  # nosec B310: the scheme is checked above
            return TypeAdapter(ServiceValues).validate_json(answer.read())
    except ValidationError:
        return f"{address} is no service of this project"
    except (OSError, HTTPException) as error:
        return f"the service at {address} says nothing: {' '.join(str(error).split()):.200}"
