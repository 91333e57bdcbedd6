"""Requests made by schemathesis from /openapi.json, right and wrong ones, and what must be true of each reply.

tests/daemon/test_api_fuzz.py sends a few into the application; tools/fuzz_api.py sends many to a daemon.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jsonschema_rs
import msgspec
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode

from daemon.operations import OPERATIONS, Operation

MODES = {"valid": GenerationMode.POSITIVE, "invalid": GenerationMode.NEGATIVE}
DELIBERATE = (503, 504)
SPARED = ("/api/delete", "/api/create", "/api/pull", "/api/import", "/api/remote-tags")
"""These get random names only: they change what the others need, or wait for other machines."""
ROWS = {(row.method, row.path): row for row in OPERATIONS}


@dataclass(frozen=True)
class Case:
    """One request."""

    row: Operation
    mode: str
    path: str
    headers: dict[str, str]
    body: bytes


class Described:
    """The description as it was served."""

    def __init__(self, document: dict[str, Any]) -> None:
        self._document = document
        self._schema = schemathesis.openapi.from_dict(document)
        self._validators: dict[str, jsonschema_rs.Validator] = {}

    def cases(self, count: int, models: list[str], *, derandomize: bool) -> Iterator[Case]:
        """Requests to every operation, as many as `count` right and `count` wrong ones.

        Args:
            models: names that a daemon has; every second right body names one of these.
            derandomize: the same requests each time.
        """
        for found in self._schema.get_all_operations():
            operation = found.ok()
            row = ROWS[operation.method.upper(), operation.path]
            for mode, generation_mode in MODES.items():
                if mode == "invalid" and row.body in (None, bytes):
                    continue  # nothing can be wrong with it; schemathesis looks for it in vain
                strategy = operation.as_strategy(generation_mode=generation_mode)
                for number, made in enumerate(_examples(strategy, count, derandomize=derandomize)):
                    body = _body(made)
                    if mode == "valid" and number % 2 and isinstance(body, dict) and _takes_model(row):
                        body = _deeper(body, models[number // 2 % len(models)])
                    yield _case(row, mode, made, body)

    def complaint(self, case: Case, status: int, content_type: str, content: bytes) -> str:
        """What is wrong with a reply, or ""."""
        if status >= 500 and status not in DELIBERATE and status not in case.row.errors:
            return f"the status {status}"
        if b"internal error" in content or b"Traceback" in content:
            return "an error that nobody designed"
        responses = self._document["paths"][case.row.path][case.row.method.lower()]["responses"]
        if status == 404 and content == b"404 page not found":  # the path parameter made another path
            return ""
        if str(status) not in responses:
            return f"the status {status}, which is not described"
        described = responses[str(status)].get("content", {})
        media_type = content_type.partition(";")[0]
        if not content:
            return "" if not described or case.row.method == "HEAD" else "no content where some is described"
        if media_type not in described:
            return f"the content type {media_type}, which is not described"
        if media_type == "text/plain":
            return ""
        if case.mode == "valid" and b"invalid request: " in content:
            return f"refused although it is as described: {content[:200]!r}"
        pieces = _pieces(media_type, content)
        return next(filter(None, (self._mismatch(described[media_type]["schema"], piece) for piece in pieces)), "")

    def _mismatch(self, schema: dict[str, Any], text: bytes) -> str:
        value = json.loads(text)
        if isinstance(value, dict) and value.get("error"):  # the last piece of a stream may be one
            return ""
        key = json.dumps(schema)
        if key not in self._validators:
            whole = {**schema, "components": self._document["components"]}
            self._validators[key] = jsonschema_rs.validator_for(whole)
        error = next(self._validators[key].iter_errors(value), None)
        return f"a reply that is not as described: {error.message[:200]}" if error else ""


def _pieces(media_type: str, content: bytes) -> list[bytes]:
    """The JSON values of a reply."""
    if media_type == "text/event-stream":
        lines = (line.removeprefix(b"data: ") for line in content.splitlines() if line.startswith(b"data: "))
        return [line for line in lines if line != b"[DONE]"]
    return content.splitlines() if media_type == "application/x-ndjson" else [content]


def summary(statuses: Counter[tuple[str, int]]) -> str:
    """ "valid: 30 of 200, 12 of 400; invalid: ..." """
    parts = []
    for mode in MODES:
        counts = sorted((status, count) for (of, status), count in statuses.items() if of == mode)
        parts.append(f"{mode}: " + ", ".join(f"{count} of {status}" for status, count in counts))
    return "; ".join(parts)


def _examples(strategy: Any, count: int, *, derandomize: bool) -> list[Any]:
    made: list[Any] = []

    @settings(
        max_examples=count,
        database=None,
        derandomize=derandomize,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def collect(case: Any) -> None:
        made.append(case)

    collect()
    return made


def _takes_model(row: Operation) -> bool:
    fields = msgspec.structs.fields(row.body) if row.body not in (None, bytes, str) else ()
    return row.path not in SPARED and any(field.encode_name == "model" for field in fields)


def _deeper(body: dict[str, Any], model: str) -> dict[str, Any]:
    """The body with a model and roles that there are, so that it comes further than to the first refusal."""
    messages = body.get("messages")
    if isinstance(messages, list):
        roles = ("user", "assistant")
        messages = [{**message, "role": roles[index % 2]} for index, message in enumerate(messages)]
    return {**body, "model": model, "messages": messages}


def _body(made: Any) -> Any:
    arguments = made.as_transport_kwargs(base_url="http://localhost")
    return arguments["json"] if "json" in arguments else arguments.get("data", b"")


def _case(row: Operation, mode: str, made: Any, body: Any) -> Case:
    arguments = made.as_transport_kwargs(base_url="http://localhost")
    is_json = "json" in arguments
    data = json.dumps(body).encode() if is_json else body.encode() if isinstance(body, str) else bytes(body)
    headers = {"content-type": "application/json"} if is_json else {}
    return Case(row, mode, arguments["url"].removeprefix("http://localhost"), headers, data)
