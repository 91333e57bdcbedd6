"""Options of a request: defaults, then the model's parameters, then the request's; and what they mean to the engine.

Names, types and defaults are Ollama's, read from the table in modelfiles.parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from daemon.api import KeepAlive
from daemon.errors import BadRequest
from engine.sampling_params import MAX_TOP_LOGPROBS, SamplingParams
from modelfiles.durations import DurationError, parse_keep_alive
from modelfiles.parameters import PARAMETERS, check_options

MIN_CONTEXT = 4
UNBOUNDED_CONTEXTS = 10
"""A request without a limit ends after this many contexts' worth of tokens, as in Ollama."""
MAX_INT = 2**31 - 1
RANDOM_SEED = -1


@dataclass(frozen=True)
class Options:
    """One request's options, checked and complete."""

    values: Mapping[str, Any]

    @classmethod
    def merge(cls, params: Mapping[str, Any], options: Mapping[str, Any]) -> Options:
        """The model's parameters under the request's options; null leaves an option as it was.

        Raises:
            ParameterError: an option has the wrong type or is out of range. A model's parameters are looked at, too: a
                store that another program wrote may hold anything.
        """
        defaults = {name: parameter.default for name, parameter in PARAMETERS.items()}
        return cls({**defaults, **check_options(params), **check_options(options)})

    @property
    def stop(self) -> tuple[str, ...]:
        """Strings that end the text; the request's replace the model's."""
        return tuple(text for text in self.values["stop"] if text)

    def num_keep(self, *, adds_bos: bool) -> int:
        """Tokens in front that no shift drops, the beginning-of-text token besides; -1 is the whole prompt."""
        num_keep = _integer(self.values["num_keep"], -1)
        return num_keep + adds_bos if 0 <= num_keep < MAX_INT else num_keep

    def num_ctx(self, default: int, limit: int) -> int:
        """Tokens of context of this request.

        Args:
            default: where nobody says.
            limit: what model and cache can hold.
        """
        wanted = _integer(self.values["num_ctx"] or 0, 0)
        return min(max(wanted or default, MIN_CONTEXT), limit)

    def sampling_params(
        self,
        num_ctx: int,
        *,
        num_keep: int,
        shift: bool,
        logprobs: int | None,
        logit_bias: Mapping[int, float],
        stop_token_ids: tuple[int, ...],
        random_seed: int,
    ) -> SamplingParams:
        """What the engine is told.

        Args:
            num_ctx: this request's context.
            num_keep: as `num_keep` gives it.
            random_seed: taken where the request wants any seed.

        Raises:
            SamplingError: an option is out of range.
        """
        value = self.values
        num_predict = _integer(value["num_predict"], -1)
        bound = min(UNBOUNDED_CONTEXTS * num_ctx, MAX_INT)
        seed = int(value["seed"])
        return SamplingParams(
            temperature=value["temperature"],
            top_k=_integer(value["top_k"], 0),
            top_p=value["top_p"],
            min_p=value["min_p"],
            typical_p=value["typical_p"],
            repeat_penalty=value["repeat_penalty"],
            repeat_last_n=_integer(value["repeat_last_n"], -1),
            presence_penalty=value["presence_penalty"],
            frequency_penalty=value["frequency_penalty"],
            # Other negative seeds are as good as any: they are read as the 32-bit numbers that they would be in C.
            seed=random_seed if seed == RANDOM_SEED else seed % 2**32 if seed < 0 else seed,
            max_tokens=bound if num_predict < 0 else min(num_predict, bound),
            max_context=num_ctx,
            num_keep=num_keep,
            shift=shift,
            stop_token_ids=stop_token_ids,
            logprobs=logprobs,
            logit_bias=dict(logit_bias),
        )


def check_top_logprobs(logprobs: bool | None, top_logprobs: int | None) -> int | None:
    """The engine's `logprobs` for a request: None, or how many of the likeliest to name beside the chosen token.

    Raises:
        BadRequest: more were asked for than there can be.
    """
    if not 0 <= (top_logprobs or 0) <= MAX_TOP_LOGPROBS:
        raise BadRequest(f"top_logprobs must be between 0 and {MAX_TOP_LOGPROBS}")
    return (top_logprobs or 0) if logprobs or top_logprobs else None


def read_keep_alive(keep_alive: KeepAlive | None) -> float | None:
    """Seconds for which a model stays loaded; None where the request does not say.

    Raises:
        BadRequest: it is no duration.
    """
    if keep_alive is None:
        return None
    try:
        return parse_keep_alive(keep_alive)
    except DurationError as error:
        remedy = 'give a number of seconds, or a duration such as "5m"'
        raise BadRequest(f"keep_alive cannot be read: {error}; {remedy}", "keep_alive") from error


def _integer(value: float, low: int) -> int:
    return min(max(int(value), low), MAX_INT)
