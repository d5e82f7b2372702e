"""alert: send a retraining's summary to a webhook; a failure to send is logged and does not stop the retraining."""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from http.client import HTTPException
from typing import Any
from urllib.request import Request, urlopen

_log = logging.getLogger(__name__)
VARIABLE = "TWINFOCUS_WEBHOOK"
"""Environment variable with the address, which may hold a secret and so is in no config and no message."""
TIMEOUT_SECONDS = 10.0


def alert(summary: Mapping[str, Any], alert_on: Sequence[str]) -> bool:
    """POST a summary as JSON to the webhook, if one is set and the verdict is in ``alert_on``.

    Returns:
        Whether it was sent."""
    address = os.environ.get(VARIABLE)
    if not address or summary["verdict"] not in alert_on:
        return False
    if not address.startswith(("http://", "https://")):
        return _warn(f"{VARIABLE} is no http:// or https:// address")
    try:
        body = json.dumps(summary).encode()
        request = Request(address, body, {"Content-Type": "application/json"}, method="POST")
        # The scheme is checked above.
        with urlopen(request, timeout=TIMEOUT_SECONDS):  # nosec B310
            return True
    except (OSError, HTTPException, ValueError) as error:
        # An error's own words may hold the address.
        return _warn(f"the webhook of {VARIABLE} was not reached ({type(error).__name__})")


def _warn(text: str) -> bool:
    _log.warning("%s: nobody was alerted", text)
    return False
