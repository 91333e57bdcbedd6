"""What the requests of OpenAI's API have in common, in the words of daemon.generation. Pure; refusals name the field.

Temperature and top_p are 1 where a request does not say, as OpenAI and Ollama have it here, whatever the model's own
parameters are; all other options are the model's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from daemon.api import Think
from daemon.errors import BadRequest
from daemon.extensions import CONSTRAINTS, check_named, read_extensions
from daemon.openai import api
from daemon.options import MAX_INT, RANDOM_SEED, Options
from engine.constraint import Constraint
from engine.sampling_params import MAX_LOGIT_BIAS, MAX_TOP_LOGPROBS

NEUTRAL = {"temperature": 1.0, "top_p": 1.0}
SAMPLING_FIELDS = ("temperature", "top_p", "frequency_penalty", "presence_penalty", "seed")
"""Fields that are options of the same name."""
MAX_CHOICES = 128
MAX_BIAS = 100.0
MAX_SHOWN = 40

EFFORTS: dict[str, Think] = {
    "none": False,
    "minimal": "low",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "xhigh": "max",
    "max": "max",
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a request wants its text: what a Job takes, but for the prompt."""

    options: dict[str, Any]
    """Of the native API."""
    keep_alive_s: float | None = None
    truncate: bool = True
    """Whether old messages may be dropped."""
    shift: bool = False
    """Whether anything may be cut. Where nobody says so, a full context ends the answer with "length", as clients of
    this API expect, instead of going on without its beginning."""
    constraint: Constraint | None = None
    constraint_param: str = "tools"
    """The field that is at fault where what constrains the text cannot be enforced."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)


def read_settings(
    body: api.TextRequest,
    params: Mapping[str, Any],
    limit: str,
    *,
    truncate: bool = True,
    low: int = 1,
    constraint: Constraint | None = None,
) -> Settings:
    """The request's settings, complete and checked.

    Args:
        params: the model's own parameters.
        limit: the field that says how many tokens there may be; without it, as many as there is room for.
        low: the fewest that it may say.
        truncate: where the request says nothing of it.
        constraint: what the request says beside `options`.

    Raises:
        BadRequest: a field is out of range, or two of them exclude each other.
    """
    own = read_extensions(body.options, body.keep_alive, constraint)
    given = {name: value for name in SAMPLING_FIELDS if (value := getattr(body, name)) is not None}
    check_named(given)
    options = {**NEUTRAL, **own.options, **given}
    if body.stop:
        # A client knows nothing of the model's own stop strings, so they count beside its own.
        options["stop"] = [*Options.merge(params, {}).stop, *([body.stop] if isinstance(body.stop, str) else body.stop)]
        check_named({"stop": options["stop"]})
    if (max_tokens := getattr(body, limit)) is not None:
        options["num_predict"] = min(check_integer(limit, max_tokens, low, None, low), MAX_INT)
    return Settings(
        options=options,
        keep_alive_s=own.keep_alive_s,
        truncate=truncate if own.truncate is None else own.truncate,
        shift=own.truncate is True,
        constraint=own.constraint,
        constraint_param=_constraint_param(body, own.constraint),
        logit_bias=_logit_bias(body.logit_bias or {}),
    )


def _constraint_param(body: api.TextRequest, constraint: Constraint | None) -> str:
    if constraint is None:
        return "tools"
    names = [f"options.{name}" for name in CONSTRAINTS if (body.options or {}).get(name) is not None]
    return names[0] if names else "response_format" if isinstance(body, api.ChatRequest) else "text.format"


def seeds(seed: int, count: int) -> list[int]:
    """A seed for each of several answers to one prompt: the first has the request's own, the others follow from it.
    Where it is any seed, that of each is."""
    if seed == RANDOM_SEED:
        return [RANDOM_SEED] * count
    return [seed, *(_derived_seed(seed, index) for index in range(1, count))]


def _derived_seed(seed: int, index: int) -> int:
    """Far from the seeds that people choose, so that an answer is not that of the next request's seed."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{index}".encode(), digest_size=7).digest(), "big")


def read_count(n: int | None) -> int:
    """How many answers."""
    return check_integer("n", n, 1, MAX_CHOICES, 1)


def check_integer(name: str, value: int | None, low: int, high: int | None, default: int) -> int:
    """A whole number of a request within its bounds.

    Raises:
        BadRequest: it is not.
    """
    if value is None:
        return default
    if value < low or (high is not None and value > high):
        bounds = f"at least {low}" if high is None else f"from {low} to {high}"
        shown = str(value) if value.bit_length() <= 256 else "far too large"
        raise BadRequest(f"{name} is {shown}, but it must be {bounds}", name)
    return value


def read_think(effort: str | None, param: str) -> Think | None:
    """Whether and how hard to think; None where the request does not say.

    Raises:
        BadRequest: there is no such effort.
    """
    if effort is None:
        return None
    if effort not in EFFORTS:
        raise BadRequest(f'{param} is "{effort[:MAX_SHOWN]}", but it must be one of {", ".join(EFFORTS)}', param)
    return EFFORTS[effort]


def read_format(kind: str, schema: Mapping[str, Any] | bool | None, param: str) -> Constraint | None:
    """The constraint of `response_format` or `text.format`.

    Raises:
        BadRequest: it is of no kind that there is, or has no schema.
    """
    if kind == "text":
        return None
    if kind == "json_object":
        return Constraint(kind="json")
    if kind != "json_schema":
        raise BadRequest(
            f'{param}.type is "{kind[:MAX_SHOWN]}", but it must be text, json_object or json_schema', f"{param}.type"
        )
    if schema is None:
        raise BadRequest(f"{param} has no schema", param)
    return Constraint(kind="json_schema", value=msgspec.json.encode(schema).decode())


def read_chat_format(given: api.ResponseFormat | None) -> Constraint | None:
    """The constraint of a chat's `response_format`.

    Raises:
        BadRequest: as read_format.
    """
    if given is None:
        return None
    schema = given.json_schema.schema if given.json_schema is not None else None
    return read_format(given.type, schema, "response_format")


def refuse_unavailable(body: api.ChatRequest) -> None:
    """Refuse what would otherwise be silently ignored.

    Raises:
        BadRequest: the request has it.
    """
    for name, successor in (("functions", "tools"), ("function_call", "tool_choice")):
        if getattr(body, name) is not None:
            raise BadRequest(f"{name} is not taken any more; write {successor}", name)
    if body.audio is not None or set(body.modalities or ()) - {"text"}:
        param = "audio" if body.audio is not None else "modalities"
        raise BadRequest(f'"{body.model}" does not support audio', param)


def check_logprobs(name: str, count: int | None) -> int | None:
    """How many of the likeliest tokens to name; None for no log-probabilities."""
    return None if count is None else check_integer(name, count, 0, MAX_TOP_LOGPROBS, 0)


def _logit_bias(given: Mapping[str, float]) -> dict[int, float]:
    if len(given) > MAX_LOGIT_BIAS:
        raise BadRequest(f"logit_bias has {len(given)} entries, but at most {MAX_LOGIT_BIAS} are taken", "logit_bias")
    biases = {}
    for key, bias in given.items():
        if not (key.isascii() and key.isdigit() and len(key) <= 9):
            raise BadRequest(f'logit_bias has the key "{key[:MAX_SHOWN]}", which is no token id', "logit_bias")
        if not -MAX_BIAS <= bias <= MAX_BIAS:
            raise BadRequest(f"logit_bias of token {key} is {bias:g}, but it must be from -100 to 100", "logit_bias")
        biases[int(key)] = bias
    return biases
