"""The page that describes a service's HTTP interface; it needs nothing from the internet."""

import json
from collections.abc import Sequence
from html import escape
from typing import Any

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:880px;margin:24px auto;padding:0 20px;color:#1d2733}"
    "pre{background:#f5f7f9;border:1px solid #dfe4ea;border-radius:6px;padding:12px;overflow-x:auto}"
    "td,th{text-align:left;padding:4px 14px 4px 0;vertical-align:top}"
)


def render(document: dict[str, Any], columns: Sequence[str]) -> str:
    """HTML of an OpenAPI document, with an example of a request.

    Args:
        columns: that a row must have.
    """
    rows = "".join(
        f"<tr><td><code>{method.upper()} {escape(path)}</code></td><td>{escape(what.get('description', ''))}</td>"
        f"<td>{escape(', '.join(what['responses']))}</td></tr>"
        for path, methods in document["paths"].items()
        for method, what in methods.items()
    )
    body = json.dumps({"rows": [dict.fromkeys(columns)]}, ensure_ascii=False)
    example = f"curl -H 'Content-Type: application/json' http://HOST:PORT/v1/score -d @- <<'END'\n{body}\nEND"
    if "securitySchemes" in document.get("components", {}):
        example = example.replace("curl", 'curl -H "Authorization: Bearer $TWINFOCUS_TOKEN"', 1)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>twinfocus</title><style>{_STYLE}</style>'
        f"</head><body><h1>twinfocus</h1><p>{escape(document['info']['description'])}</p>"
        f"<table><tr><th>Request</th><th></th><th>Answers</th></tr>{rows}</table>"
        f"<h2>Example</h2><pre>{escape(example)}</pre>"
        '<p>As an OpenAPI document: <a href="/openapi.json">/openapi.json</a></p>'
        f"<pre>{escape(json.dumps(document, indent=1, ensure_ascii=False))}</pre></body></html>\n"
    )
