"""HTTP interface of a service, with FastAPI: scores, health, metrics, and their documentation."""

import json
import secrets
import time
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, Field
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from jobs.pages.score_api_page import render_score_api
from jobs.registry.found_artifact import FoundArtifact
from jobs.serving.score_request import MAX_JSON_NUMBER, TOKEN, RequestError, RequestLimits, ScoreRequest
from jobs.serving.scorer import RequestScores
from jobs.serving.service import Service

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


class Problem(BaseModel):
    """Why there is no answer."""

    detail: str


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
        responses={**refusals, **{code: {"model": Problem} for code in (413, 422, 503)}},
        **guarded,
    )
    async def score(request: Request) -> Response:
        """Score raw rows: raw column -> value, as text or number; null for a missing value."""
        started = time.perf_counter()
        response = await _score(service, request, limits)
        service.metrics.latency.observe(time.perf_counter() - started)
        service.metrics.requests.labels(str(response.status_code)).inc()
        return response

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
        return _with_columns(FastAPI.openapi(api), service.served.columns, limits)

    @api.get("/openapi.json", include_in_schema=False, **guarded)
    async def openapi() -> Response:
        return JSONResponse(describe())

    @api.get("/docs", include_in_schema=False, **guarded)
    async def docs() -> Response:
        return HTMLResponse(render_score_api(describe(), service.served.columns))

    return api


async def _score(service: Service, request: Request, limits: RequestLimits) -> Response:
    try:
        parsed = ScoreRequest.parse(await _read(request, limits.body), limits)
        artifact, scores = await service.score(parsed)
    except RequestError as error:
        return JSONResponse({"detail": str(error)}, error.status)
    except TimeoutError:
        return _unavailable(f"no replica has answered within {service.config.seconds:g} s")
    except (RayServeException, RayError) as error:
        return _unavailable(f"no replica can answer now: {type(error).__name__}")
    service.metrics.rows.inc(len(scores.scores))
    service.metrics.row_errors.inc(len(scores.errors))
    return Response(_encode(artifact, scores), media_type="application/json")


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


def _encode(artifact: FoundArtifact, scores: RequestScores) -> bytes:
    errors = [{"row": number, "error": error} for number, error in scores.errors.items()]
    return json.dumps({**artifact.named, "scores": scores.scores, "errors": errors}).encode()


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


def _with_columns(document: dict[str, Any], columns: Sequence[str], limits: RequestLimits) -> dict[str, Any]:
    """Add the schema of a row of the served version to an OpenAPI document."""
    text = {"type": "string", "maxLength": limits.value}
    number = {"type": "number", "minimum": -MAX_JSON_NUMBER, "maximum": MAX_JSON_NUMBER}
    scalar = [text, number, {"type": "boolean"}, {"type": "null"}]
    value = {"anyOf": [*scalar, {"type": "array", "items": {"anyOf": scalar}, "maxItems": limits.value}]}
    row = {"type": "object", "properties": dict.fromkeys(columns, value), "required": list(columns)}
    rows = {"type": "array", "items": row, "maxItems": limits.rows}
    body = {"type": "object", "properties": {"rows": rows}, "required": ["rows"], "additionalProperties": False}
    paths = {path: dict(methods) for path, methods in document["paths"].items()}
    content = {"application/json": {"schema": {"anyOf": [body, rows]}}}
    paths["/v1/score"]["post"] = {**paths["/v1/score"]["post"], "requestBody": {"required": True, "content": content}}
    return {**document, "paths": paths}
