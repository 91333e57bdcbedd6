"""SamplingParams: how one request's tokens are chosen and when it ends. Validated once, immutable, plain values.

Defaults are the engine's neutral ones (no filter); Ollama's and OpenAI's defaults are the daemon's business.
"""

from __future__ import annotations

import math

import msgspec

MAX_TOP_LOGPROBS = 20
MAX_LOGIT_BIAS = 1024
"""Entries of a request's logit_bias; what a row of the device's state has room for."""
MAX_BIAS = 1e30
"""Logit biases are cut to this, so that a float32 sum stays finite."""
MAX_SEED = 2**63 - 1


class SamplingError(ValueError):
    """A sampling option outside its range."""


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Options of one request.

    Order of application: logit bias, penalties, the mask of a constraint, temperature, top-k, typical-p, top-p, min-p,
    noise.
    """

    temperature: float = 1.0
    """0 is greedy."""
    top_k: int = 0
    """Keep the k likeliest tokens; 0 is off."""
    top_p: float = 1.0
    min_p: float = 0.0
    """Keep tokens at least this fraction as likely as the likeliest."""
    typical_p: float = 1.0
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    """Tokens that the three penalties look back on, prompt included; 0 is off, -1 the whole context."""
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = {}
    seed: int = 0
    """Noise is a function of (seed, number of tokens generated) only. Who wants "random" draws a seed before."""
    max_tokens: int | None = None
    """Tokens to generate; None is up to the context's end; 0 evaluates the prompt only."""
    max_context: int | None = None
    """`num_ctx`: the limit on prompt plus generated tokens of this request; None is the model's own."""
    num_keep: int = 4
    """Prompt tokens kept in front when the context shifts."""
    shift: bool = False
    """When the context is full: drop the older half after `num_keep` and go on, or else finish with "length"."""
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    """Do not stop at the stop token ids (benchmarks)."""
    logprobs: int | None = None
    """None: no log-probabilities; n: the chosen token's and the n likeliest's."""

    def __post_init__(self) -> None:
        for name in ("temperature", "top_p", "min_p", "typical_p", "repeat_penalty"):
            _require(name, getattr(self, name), 0.0, math.inf)
        for name in ("top_p", "min_p", "typical_p"):
            _require(name, getattr(self, name), 0.0, 1.0)
        if self.repeat_penalty == 0.0:
            raise SamplingError("repeat_penalty is 0 but must be greater than 0; 1 switches it off")
        for name in ("presence_penalty", "frequency_penalty"):
            _require(name, getattr(self, name), -math.inf, math.inf)
        _require("top_k", self.top_k, 0, 2**31 - 1)
        _require("repeat_last_n", self.repeat_last_n, -1, 2**31 - 1)
        _require("seed", self.seed, 0, MAX_SEED)
        _require("num_keep", self.num_keep, -1, 2**31 - 1)
        if self.max_tokens is not None:
            _require("max_tokens", self.max_tokens, 0, 2**31 - 1)
        if self.max_context is not None:
            _require("max_context", self.max_context, 1, 2**31 - 1)
        if self.logprobs is not None:
            _require("logprobs", self.logprobs, 0, MAX_TOP_LOGPROBS)
        if len(self.logit_bias) > MAX_LOGIT_BIAS:
            raise SamplingError(f"logit_bias has {len(self.logit_bias)} entries but may have at most {MAX_LOGIT_BIAS}")
        for token_id, bias in self.logit_bias.items():
            _require("logit_bias token id", token_id, 0, 2**31 - 1)
            _require(f"logit_bias of token {token_id}", bias, -math.inf, math.inf)

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def needs_history(self) -> bool:
        """Whether choosing a token needs the tokens before it."""
        return self.repeat_last_n != 0 and (
            self.repeat_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0
        )


def _require(name: str, value: float, low: float, high: float) -> None:
    if math.isfinite(value) and low <= value <= high:
        return
    bound = f"at least {low}" if math.isinf(high) else f"between {low} and {high}"
    if math.isinf(low):
        bound = "a finite number"
    raise SamplingError(f"{name} is {value} but must be {bound}")
