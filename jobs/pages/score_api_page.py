"""render_score_api: the page that describes a service's HTTP interface; it opens without a network."""

import json
from collections.abc import Sequence
from typing import Any

from jobs.pages.template import fill


def render_score_api(document: dict[str, Any], columns: Sequence[str]) -> str:
    """Make the HTML of an OpenAPI document, with an example of a request.

    Args:
        document: the OpenAPI document.
        columns: raw columns that a row must have.
    """
    requests = [
        {
            "method": method.upper(),
            "path": path,
            "description": what.get("description", ""),
            "answers": ", ".join(what["responses"]),
        }
        for path, methods in document["paths"].items()
        for method, what in methods.items()
    ]
    body = json.dumps({"rows": [dict.fromkeys(columns)]}, ensure_ascii=False)
    example = f"curl -H 'Content-Type: application/json' http://HOST:PORT/v1/score -d @- <<'END'\n{body}\nEND"
    if "securitySchemes" in document.get("components", {}):
        example = example.replace("curl", 'curl -H "Authorization: Bearer $TWINFOCUS_TOKEN"', 1)
    return fill(
        "score_api.html",
        description=document["info"]["description"],
        requests=requests,
        example=example,
        document=json.dumps(document, indent=1, ensure_ascii=False),
    )
