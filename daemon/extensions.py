"""What requests of OpenAI's and Anthropic's APIs may say in `options`: those of the native API, and Hob's own. Pure.

keep_alive, truncate      as the native API has them beside its options
regex, grammar, choice    constrain the text, as `response_format` and `output_config` do
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from daemon.api import KeepAlive
from daemon.constraints import OPTIONS, constraint_of
from daemon.errors import BadRequest
from daemon.options import read_keep_alive
from engine.constraint import Constraint
from modelfiles.parameters import ParameterError, check_options


@dataclass(frozen=True, kw_only=True)
class Extensions:
    """What `options` says, taken apart."""

    options: dict[str, Any]
    """Of the native API, checked; those that are null are left out."""
    keep_alive_s: float | None
    truncate: bool | None
    """Whether a prompt may be cut; None where the request does not say."""
    constraint: Constraint | None


def read_extensions(
    options: Mapping[str, Any] | None, keep_alive: KeepAlive | None = None, constraint: Constraint | None = None
) -> Extensions:
    """Take a request's `options` apart.

    Args:
        keep_alive, constraint: what the request says of these beside them.

    Raises:
        BadRequest: one has a wrong value, or two of them exclude each other.
    """
    own = {name: value for name, value in (options or {}).items() if value is not None}
    own_keep_alive = own.pop("keep_alive", None)
    truncate = own.pop("truncate", None)
    if not isinstance(truncate, bool | None):
        raise BadRequest("options.truncate must be true or false", "options.truncate")
    constraints = {name: own.pop(name) for name in OPTIONS if name in own}
    check_named(own, "options.")
    return Extensions(
        options=own,
        keep_alive_s=read_keep_alive(own_keep_alive if keep_alive is None else keep_alive),
        truncate=truncate,
        constraint=_one_constraint(constraint, constraints),
    )


def check_named(options: Mapping[str, Any], prefix: str = "") -> None:
    """Check options one by one, so that a refusal names the field.

    Raises:
        BadRequest: one has a wrong type, or is out of range.
    """
    for name, value in options.items():
        try:
            check_options({name: value})
        except ParameterError as error:
            raise BadRequest(str(error), prefix + name) from error


def _one_constraint(given: Constraint | None, constraints: Mapping[str, Any]) -> Constraint | None:
    if len(constraints) + (given is not None) > 1:
        names = [f"options.{name}" for name in constraints] + ["a format"] * (given is not None)
        raise BadRequest(f"a text can have one constraint only, but there are several: {', '.join(names)}", "options")
    for name, value in constraints.items():
        return constraint_of(name, value)
    return given
