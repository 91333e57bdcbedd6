"""The OpenAPI description of the daemon, made from the table of operations and the types that they name. Pure.

Its schemas are what msgspec makes of the structs by which requests are decoded and replies encoded, so they cannot say
anything else than the daemon does. Source: OpenAPI 3.1.0 (https://spec.openapis.org/oas/v3.1.0).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import msgspec

from daemon.operations import Operation

PATH_PARAMETER = re.compile(r"\{([a-z_]+)\}")
REF = "#/components/schemas/{name}"
JSON = "application/json"

REASONS = {
    200: "done",
    201: "stored",
    400: "the request is wrong; the error says where",
    401: "an access key is missing",
    403: "the host, the origin, or the source of a model refuses",
    404: "there is none of this name",
    409: "it does not go with the daemon's state",
    413: "the body is too large",
    415: "the body is a form",
    422: "the request cannot be done",
    429: "too many requests",
    500: "the model or the daemon failed",
    502: "the source of a model failed",
    503: "no place in the queue, or the daemon is about to end; try again",
    504: "it took too long",
    507: "the disk is full",
}
ERRORS_OF_ALL = (403, 500)
ERRORS_OF_JSON_BODIES = (400, 413, 415)


def openapi_document(operations: Iterable[Operation], version: str) -> dict[str, Any]:
    """The description as JSON values.

    Args:
        version: the daemon's.
    """
    rows = list(operations)
    types = {type_ for row in rows for type_ in (row.body, row.reply, row.chunk, row.error) if type_ is not None}
    schemas, components = _schemas(sorted(types, key=str))
    paths: dict[str, dict[str, Any]] = {}
    for row in rows:
        paths.setdefault(row.path, {})[row.method.lower()] = _operation(row, schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Hob", "version": version, "description": "Local models over HTTP: docs/api.md"},
        "paths": paths,
        "components": {"schemas": components},
    }


Schemas = dict[type, dict[str, Any]]


def _schemas(types: list[type]) -> tuple[Schemas, dict[str, Any]]:
    schemas, components = msgspec.json.schema_components(types, ref_template=REF)
    return dict(zip(types, schemas, strict=True)), components


def _operation(row: Operation, schemas: Schemas) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": re.sub(r"[^a-z0-9]+", "_", f"{row.method} {row.path}".lower()).strip("_"),
        "summary": row.summary,
        "tags": [row.tag],
        "responses": _responses(row, schemas),
    }
    names = PATH_PARAMETER.findall(row.path)
    if names:
        described["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
        ]
    if row.body is not None:
        media_type = "application/octet-stream" if row.body is bytes else JSON
        schema = {} if row.body is bytes else schemas[row.body]
        described["requestBody"] = {"required": row.body is not bytes, "content": {media_type: {"schema": schema}}}
    return described


def _responses(row: Operation, schemas: Schemas) -> dict[str, Any]:
    errors = {*ERRORS_OF_ALL, *row.errors, *(ERRORS_OF_JSON_BODIES if row.body not in (None, bytes) else ())}
    error = {JSON: {"schema": schemas[row.error]}}
    responses = {str(status): _response(status, _content(row, schemas)) for status in row.successes}
    # A reply to HEAD has no body, whatever it says.
    return responses | {
        str(status): _response(status, {} if row.method == "HEAD" else error) for status in sorted(errors)
    }


def _response(status: int, content: dict[str, Any]) -> dict[str, Any]:
    described = {"description": REASONS[status]}
    return {**described, "content": content} if content else described


def _content(row: Operation, schemas: Schemas) -> dict[str, Any]:
    if row.reply is None:
        return {}
    if row.reply is str:
        return {"text/plain": {"schema": schemas[str]}}
    whole = {} if row.is_always_stream else {JSON: {"schema": schemas[row.reply]}}
    # The schema of a stream is that of one piece, as OpenAPI 3.1 has no word for a sequence.
    return whole | ({row.stream: {"schema": schemas[row.chunk or row.reply]}} if row.stream else {})
