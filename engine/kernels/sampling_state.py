"""SamplingState: every row's sampling parameters on the device, where kernels find them by row.

A row is set when a request takes it, and not again: what changes from token to token (position, history) is read from
the row's tokens. So a captured graph serves whatever requests come. The tensors may be anybody's: a runner that keeps
all state in one arena lays a SamplingState over parts of it, and sends there what `encode` gives.
"""

from __future__ import annotations

import math

import torch
import triton.language as tl

from engine.sampling_params import MAX_LOGIT_BIAS, SamplingParams

Tensor = torch.Tensor

MAX_BIAS = 1e30
"""Logit biases are cut to this, so that a float32 sum stays finite."""
LEAST_TEMPERATURE = 2.0**-126
"""The least normal float32; what is asked below it can no longer be told from it."""

# Columns of SamplingState.floats
TEMPERATURE = tl.constexpr(0)  # 0 is greedy
TYPICAL_P = tl.constexpr(1)
TOP_P = tl.constexpr(2)
LOG_MIN_P = tl.constexpr(3)  # -inf is off
REPEAT_PENALTY = tl.constexpr(4)
PRESENCE_PENALTY = tl.constexpr(5)
FREQUENCY_PENALTY = tl.constexpr(6)
NUM_FLOATS = tl.constexpr(8)

# Columns of SamplingState.ints
TOP_K = tl.constexpr(0)  # 0 is off
LAST_N = tl.constexpr(1)  # tokens that penalties look back on; 0 is none
SEED = tl.constexpr(2)
ORIGIN = tl.constexpr(3)  # the token at position p is generation number p - ORIGIN
NUM_BIAS = tl.constexpr(4)
HAS_MASK = tl.constexpr(6)  # 1: the row may sample only what its mask allows
NUM_TOP = tl.constexpr(5)  # log-probabilities of so many of the likeliest are asked; -1: not even the chosen one's
NUM_INTS = tl.constexpr(8)

ALL_TOKENS = 2**31 - 1


def num_mask_words(vocab_size: int) -> int:
    """Words of a packed mask."""
    return -(-vocab_size // 32)


class SamplingState:
    """Parameters of `max_rows` rows."""

    def __init__(
        self, max_rows: int, device: torch.device, max_bias: int = MAX_LOGIT_BIAS, vocab_size: int = 1
    ) -> None:
        """
        Args:
            max_bias: entries that a request's logit_bias may have.
            vocab_size: tokens that masks are about.
        """
        self.max_bias = max_bias
        self.floats = torch.zeros(max_rows, NUM_FLOATS.value, dtype=torch.float32, device=device)
        self.ints = torch.zeros(max_rows, NUM_INTS.value, dtype=torch.int64, device=device)
        self.bias_ids = torch.zeros(max_rows, max_bias, dtype=torch.int32, device=device)
        self.bias_values = torch.zeros(max_rows, max_bias, dtype=torch.float32, device=device)
        self.masks = torch.zeros(max_rows, num_mask_words(vocab_size), dtype=torch.int32, device=device)

    @classmethod
    def over(cls, floats: Tensor, ints: Tensor, bias_ids: Tensor, bias_values: Tensor, masks: Tensor) -> SamplingState:
        """The state that lies in tensors of another owner.

        Args:
            floats: float32 [max_rows, NUM_FLOATS], contiguous as all of them.
            ints: int64 [max_rows, NUM_INTS].
            bias_ids: int32 [max_rows, max_bias].
            bias_values: float32 [max_rows, max_bias].
            masks: int32 [max_rows, num_mask_words(vocab_size)]: bit t % 32 of word t // 32 is set where token t may be
                sampled. Read for rows that have a mask, and written anew before each of their steps.

        Raises:
            ValueError: shapes or types that do not fit.
        """
        state = cls.__new__(cls)
        state.max_bias = bias_ids.shape[1]
        state.floats, state.ints, state.bias_ids, state.bias_values = floats, ints, bias_ids, bias_values
        state.masks = masks
        max_rows = floats.shape[0]
        for name, dtype, columns in (
            ("floats", torch.float32, NUM_FLOATS.value),
            ("ints", torch.int64, NUM_INTS.value),
            ("bias_ids", torch.int32, state.max_bias),
            ("bias_values", torch.float32, state.max_bias),
            ("masks", torch.int32, masks.shape[1]),
        ):
            tensor = getattr(state, name)
            if tensor.shape != (max_rows, columns) or tensor.dtype != dtype or not tensor.is_contiguous():
                raise ValueError(
                    f"SamplingState: {name} is {tensor.dtype} {tuple(tensor.shape)}; it must be {dtype} "
                    f"{(max_rows, columns)} and contiguous"
                )
        return state

    @staticmethod
    def encode(params: SamplingParams, origin: int, *, has_mask: bool = False) -> tuple[list[float], list[int]]:
        """A row of `floats` and a row of `ints`; biases lie beside them.

        Args:
            origin: the token at position p of the row is generation number p - origin.
            has_mask: whether the row is constrained.
        """
        # The logarithm is taken here, with the twin's function: a token exactly at the limit is kept by both.
        log_min_p = torch.tensor(params.min_p, dtype=torch.float32).log().item() if params.min_p > 0 else -math.inf
        floats = [0.0] * NUM_FLOATS.value
        floats[TEMPERATURE.value] = 0.0 if params.is_greedy else max(params.temperature, LEAST_TEMPERATURE)
        floats[TYPICAL_P.value] = params.typical_p
        floats[TOP_P.value] = params.top_p
        floats[LOG_MIN_P.value] = log_min_p
        floats[REPEAT_PENALTY.value] = params.repeat_penalty
        floats[PRESENCE_PENALTY.value] = params.presence_penalty
        floats[FREQUENCY_PENALTY.value] = params.frequency_penalty
        last_n = params.repeat_last_n if params.needs_history else 0
        ints = [0] * NUM_INTS.value
        ints[TOP_K.value] = params.top_k
        ints[LAST_N.value] = ALL_TOKENS if last_n < 0 else last_n
        ints[SEED.value] = params.seed
        ints[ORIGIN.value] = origin
        ints[NUM_BIAS.value] = len(params.logit_bias)
        ints[NUM_TOP.value] = -1 if params.logprobs is None else params.logprobs
        ints[HAS_MASK.value] = int(has_mask)
        return floats, ints

    def set(self, row: int, params: SamplingParams, origin: int, *, has_mask: bool = False) -> None:
        """A request takes `row`.

        Args:
            origin, has_mask: as for `encode`.

        Raises:
            ValueError: more logit biases than the table holds.
        """
        if len(params.logit_bias) > self.max_bias:
            raise ValueError(f"logit_bias has {len(params.logit_bias)} entries, but at most {self.max_bias} are taken")
        floats, ints = self.encode(params, origin, has_mask=has_mask)
        self.floats[row] = torch.tensor(floats, dtype=torch.float32)
        self.ints[row] = torch.tensor(ints, dtype=torch.int64)
        if params.logit_bias:
            values = [max(-MAX_BIAS, min(MAX_BIAS, value)) for value in params.logit_bias.values()]
            self.bias_ids[row, : len(values)] = torch.tensor(list(params.logit_bias), dtype=torch.int32)
            self.bias_values[row, : len(values)] = torch.tensor(values, dtype=torch.float32)
