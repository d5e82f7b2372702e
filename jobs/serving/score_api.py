"""HTTP interface of a service, with FastAPI: scores, health, metrics, and their documentation."""

import json
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Annotated, Any, cast

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, Field
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from features.bucket_tables import BUCKET_PRECISIONS, BucketColumn, BucketPrecision
from jobs.cli.conventions import TOKEN
from jobs.pages.score_api_page import render_score_api
from jobs.registry.found_artifact import FoundArtifact
from jobs.serving.row_schema import RowSchema
from jobs.serving.score_request import (
    BUDGET_HEADER,
    MAX_JSON_NUMBER,
    RequestError,
    RequestLimits,
    ScoreRequest,
    read_budget,
)
from jobs.serving.service import BudgetError, Service

DESCRIPTION = (
    "Click probabilities of raw rows, by the version of a model that serves. A malformed row has the score null and an "
    "error of its own, and the others are scored; what is wrong with the request itself is answered with 413 or 422. "
    "All scores of an answer are of the version that it names."
)


class RowProblem(BaseModel):
    """A malformed row."""

    row: int = Field(description="Number in the request, from 1")
    error: str


class Answer(BaseModel):
    """Scores of a request's rows."""

    model: str
    version: int | None = Field(description="In the registry; null for an artifact without one")
    sha256: str = Field(description="Of the artifact's artifact.json, which has those of its other files")
    scores: list[float | None] = Field(description="Click probabilities in the order of the rows")
    errors: list[RowProblem]


class TableAnswer(BaseModel):
    """Bucket tables of a request's rows."""

    model: str
    version: int | None = Field(description="In the registry; null for an artifact without one")
    sha256: str = Field(description="Of the artifact's artifact.json, which has those of its other files")
    tables: list[dict[str, str] | None] = Field(description="Column -> text, to be sent in place of the events")
    errors: list[RowProblem]


class Problem(BaseModel):
    """Why there is no answer."""

    detail: str


class RowFeature(BaseModel):
    """A feature that reads a column."""

    feature: str
    encoding: str = Field(description="hash, vocabulary, ..., or number")
    separator: str | None = Field(None, description="Of a text with several values")


class RowColumn(BaseModel):
    """A column of a row."""

    name: str
    required: bool = Field(description="Whether a row must have it; null stands for a missing value")
    types: list[str] = Field(description="JSON types of a value")
    features: list[RowFeature]
    in_place_of: list[str] | None = Field(None, description="Of a bucket table: columns that a row with it leaves out")


class RowLabel(BaseModel):
    """Label: a score is the probability that it is 1."""

    column: str
    is_1_where: str


class RowDescription(BaseModel):
    """Columns of a row and the label, for the version that serves."""

    model: str
    version: int | None
    sha256: str
    columns: list[RowColumn]
    label: RowLabel
    max_rows: int
    max_value: int = Field(description="Characters of one value, or items of a list")


class SeenValues(BaseModel):
    """Missing and unknown values since the version serves, beside those of the dataset that it was trained on."""

    model: str
    version: int | None
    sha256: str
    rows: int
    values: dict[str, dict[str, Any]] = Field(description="By feature: shares of missing and unknown values")
    warnings: list[str]


class Health(BaseModel):
    """Health of the service: the version that serves, and why another cannot."""

    status: str = Field(description="ready, or waiting for a replica")
    model: str
    version: int | None
    sha256: str
    replicas: int
    refused: str | None = Field(description="The version that should serve and cannot be loaded, and why")
    registry: str | None = Field(description="Why nobody knows which version should serve")


def make_api(service: Service, limits: RequestLimits, token: str | None = None) -> FastAPI:
    """Make the FastAPI application of a service.

    Args:
        service: the running service.
        limits: limits on each request.
        token: bearer token that all endpoints but /healthz require; None: no token is required.
    """
    api = FastAPI(
        title="twinfocus", version="1", description=DESCRIPTION, docs_url=None, redoc_url=None, openapi_url=None
    )
    bearer = HTTPBearer(auto_error=False, description=f"The server's {TOKEN}")

    async def check_token(given: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]) -> None:
        said = given.credentials.encode() if given else b""
        if not secrets.compare_digest(said, (token or "").encode()):
            raise HTTPException(401, f"the server's {TOKEN} is asked for", {"WWW-Authenticate": "Bearer"})

    guarded: dict[str, Any] = {"dependencies": [Depends(check_token)]} if token else {}
    refusals: dict[int | str, Any] = {401: {"model": Problem}} if token else {}

    @api.post(
        "/v1/score",
        response_model=Answer,
        responses={**refusals, **{code: {"model": Problem} for code in (413, 422, 503, 504)}},
        **guarded,
    )
    async def score(request: Request) -> Response:
        """Score raw rows: raw column -> value, as text or number; null for a missing value.

        Columns that all rows have may be given once: {"shared": {...}, "candidates": [...]}. A client that waits for
        so many milliseconds says it in the header X-Time-Budget-Ms, and gets 504 when they are over.
        """
        started = time.perf_counter()

        async def answer(parsed: ScoreRequest, deadline: float | None) -> Response:
            artifact, found = await service.score(parsed, deadline)
            service.metrics.rows.inc(len(found.scores))
            service.metrics.row_errors.inc(len(found.errors))
            return _encode(artifact, "scores", found.scores, found.errors)

        response = await _answered(service, request, limits, answer)
        service.metrics.latency.observe(time.perf_counter() - started)
        service.metrics.requests.labels(str(response.status_code)).inc()
        return response

    @api.post(
        "/v1/buckets",
        response_model=TableAnswer,
        responses={**refusals, **{code: {"model": Problem} for code in (409, 413, 422, 503, 504)}},
        **guarded,
    )
    async def buckets(request: Request) -> Response:
        """Make bucket tables of histories, of sequences whose encoder is sdim: a row to score has them in their place.

        Rows have the columns of the histories, without times; others are ignored. A table belongs to the version that
        made it: another version refuses it, row by row, and it has to be made again. Precision float16 takes half
        the bytes and has three digits.
        """

        async def answer(parsed: ScoreRequest, deadline: float | None) -> Response:
            precision = _read_precision(request.query_params.get("precision", BUCKET_PRECISIONS[0]))
            artifact, found = await service.make_tables(parsed, precision, deadline)
            service.metrics.table_rows.inc(len(found.tables) - len(found.errors))
            return _encode(artifact, "tables", found.tables, found.errors)

        response = await _answered(service, request, limits, answer)
        service.metrics.table_requests.labels(str(response.status_code)).inc()
        return response

    @api.get("/v1/schema", response_model=RowDescription, responses=refusals, **guarded)
    async def schema() -> Response:
        """Columns that a row needs, with their types and encodings, and the label, of the version that serves."""
        served = service.served
        found = {**served.artifact.named, **served.row_schema.to_json()}
        return JSONResponse({**found, "max_rows": limits.rows, "max_value": limits.value})

    @api.get("/v1/values", response_model=SeenValues, responses=refusals, **guarded)
    async def values() -> Response:
        """Missing and unknown values since the version serves, and what is far above its training's."""
        served = service.served
        report = served.report_values()
        found = {"rows": report.tally.rows, "values": report.to_json(), "warnings": list(report.warnings().values())}
        return JSONResponse({**served.artifact.named, **found})

    @api.get("/healthz", response_model=Health, responses={503: {"model": Health}})
    async def healthz() -> Response:
        """Whether requests are answered, and by which version; needs no token."""
        health = _health(service)
        return JSONResponse(health, 200 if health["status"] == "ready" else 503)

    counters: dict[int | str, Any] = {200: {"content": {"text/plain": {}}}, **refusals}

    @api.get("/metrics", response_class=Response, responses=counters, **guarded)
    async def metrics() -> Response:
        """Counters for Prometheus."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    def describe() -> dict[str, Any]:
        return _with_columns(FastAPI.openapi(api), service.served.row_schema, limits)

    @api.get("/openapi.json", include_in_schema=False, **guarded)
    async def openapi() -> Response:
        return JSONResponse(describe())

    @api.get("/docs", include_in_schema=False, **guarded)
    async def docs() -> Response:
        return HTMLResponse(render_score_api(describe(), service.served.row_schema.columns))

    return api


async def _answered(
    service: Service,
    request: Request,
    limits: RequestLimits,
    answer: Callable[[ScoreRequest, float | None], Awaitable[Response]],
) -> Response:
    """Answer a request, or say why there is no answer; ``answer`` has the rows and the end of the time budget."""
    begun = time.time()
    budget = None
    try:
        budget = read_budget(request.headers.get(BUDGET_HEADER))
        parsed = ScoreRequest.parse(await _read(request, limits.body), limits)
        return await answer(parsed, None if budget is None else begun + budget)
    except RequestError as error:
        return JSONResponse({"detail": str(error)}, error.status)
    except BudgetError:
        assert budget is not None
        service.metrics.over_budget.inc()
        return JSONResponse({"detail": f"the time budget of {1000 * budget:g} ms is over"}, 504)
    except TimeoutError:
        return _unavailable(f"no replica has answered within {service.config.seconds:g} s")
    except (RayServeException, RayError) as error:
        return _unavailable(f"no replica can answer now: {type(error).__name__}")


def _read_precision(text: str) -> BucketPrecision:
    if text not in BUCKET_PRECISIONS:
        raise RequestError(f"precision {text!r:.40} is none of {', '.join(BUCKET_PRECISIONS)}")
    return cast(BucketPrecision, text)


async def _read(request: Request, limit: int) -> bytes:
    """Read the body up to a limit in bytes.

    Raises:
        RequestError: it is longer.
    """
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise RequestError(f"the body is longer than {limit} bytes", 413)
        chunks.append(chunk)
    return b"".join(chunks)


def _encode(artifact: FoundArtifact, name: str, found: Sequence[Any], errors: Mapping[int, str]) -> Response:
    problems = [{"row": number, "error": error} for number, error in errors.items()]
    body = json.dumps({**artifact.named, name: found, "errors": problems}).encode()
    return Response(body, media_type="application/json")


def _health(service: Service) -> dict[str, Any]:
    refused = service.refused
    return {
        "status": "ready" if service.num_running else "waiting",
        **service.served.artifact.named,
        "replicas": service.num_running,
        "refused": refused and f"{refused[0].title}: {refused[1]}",
        "registry": service.trouble,
    }


def _unavailable(detail: str) -> Response:
    return JSONResponse({"detail": detail}, 503, {"Retry-After": "1"})


def _with_columns(document: dict[str, Any], wanted: RowSchema, limits: RequestLimits) -> dict[str, Any]:
    """Add the schema of a row of the served version, and the header of a time budget, to an OpenAPI document."""
    text = {"type": "string", "maxLength": limits.value}
    number = {"type": "number", "minimum": -MAX_JSON_NUMBER, "maximum": MAX_JSON_NUMBER}
    scalar = [text, number, {"type": "boolean"}, {"type": "null"}]
    value = {"anyOf": [*scalar, {"type": "array", "items": {"anyOf": scalar}, "maxItems": limits.value}]}
    replaced = {name for column in wanted.made for name in column.replaces}
    required = [name for name in wanted.required if name not in replaced]
    tables = {column.name: {"anyOf": [{"type": "string"}, {"type": "null"}]} for column in wanted.made}
    ways = {"allOf": [_events_or_table(column, wanted) for column in wanted.made if column.replaces]}
    ways = ways if ways["allOf"] else {}
    properties = {**dict.fromkeys(wanted.columns, value), **tables}
    row = {"type": "object", "properties": properties, "required": required, **ways}
    rows = {"type": "array", "items": row, "maxItems": limits.rows}
    body = _object({"rows": rows})
    # Which column is shared and which is not is the client's choice; each must be in exactly one of both.
    first, *others = wanted.columns
    shared = _object({first: value}, [name for name in (first,) if name in required])
    needed = [name for name in others if name in required]
    candidate = {**_object({**dict.fromkeys(others, value), **tables}, needed), **ways}
    candidates = {"type": "array", "items": candidate, "maxItems": limits.rows}
    parted = _object({"shared": shared, "candidates": candidates})
    paths = {path: dict(methods) for path, methods in document["paths"].items()}
    content = {"application/json": {"schema": {"anyOf": [body, rows, parted]}}}
    budget = {
        "name": BUDGET_HEADER,
        "in": "header",
        "required": False,
        "description": "Milliseconds that the client waits, from the request's first byte",
        "schema": {"type": "number", "exclusiveMinimum": 0},
    }
    asked = {"requestBody": {"required": True, "content": content}, "parameters": [budget]}
    paths["/v1/score"]["post"] = {**paths["/v1/score"]["post"], **asked}
    lists = wanted.of_histories.columns
    history = {"type": "object", "properties": dict.fromkeys(lists, value), "required": list(lists)}
    histories = {"type": "array", "items": history, "maxItems": limits.rows}
    content = {"application/json": {"schema": {"anyOf": [_object({"rows": histories}), histories]}}}
    precision = {"name": "precision", "in": "query", "required": False, "schema": {"enum": list(BUCKET_PRECISIONS)}}
    asked = {"requestBody": {"required": True, "content": content}, "parameters": [budget, precision]}
    paths["/v1/buckets"]["post"] = {**paths["/v1/buckets"]["post"], **asked}
    return {**document, "paths": paths}


def _events_or_table(column: BucketColumn, wanted: RowSchema) -> dict[str, Any]:
    """Make the schema of a row that has a sequence's events, or a bucket table in their place."""
    events = [name for name in column.replaces if name in wanted.required]
    return {
        "anyOf": [
            {"required": events},
            {"required": [column.name], "properties": {column.name: {"type": "string"}}},
        ]
    }


def _object(properties: dict[str, Any], required: Sequence[str] | None = None) -> dict[str, Any]:
    needed = list(properties) if required is None else list(required)
    return {"type": "object", "properties": properties, "required": needed, "additionalProperties": False}
