"""What benchmarks/gpu.py measures: the cases by name, the sizes of their work, and whom they are compared with.

No torch here, so that the process that supervises the others starts at once. A case is run in a section, which is one
process: what a broken kernel takes down is a section, and it is started again with the cases that are left.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass

PEERS_NOTE = (
    "peer: vLLM 0.26 where no other is named; one H200, the same shape in bfloat16, 128 tokens in and 256 out, "
    "measured on another day and not by this run"
)


@dataclass(frozen=True)
class Case:
    """One figure of the table."""

    name: str
    section: str
    unit: str
    peer: float | None = None
    """What vLLM reached; see PEERS_NOTE."""
    other_peers: str = ""
    """Others' figures, as text."""
    target: float | None = None
    smaller_is_better: bool = False
    needs: tuple[str, ...] = ()
    """Cases that must be measured before in the same run."""
    is_default: bool = True
    """Whether it runs where `--only` is not given."""

    def reaches(self, value: float) -> bool | None:
        """Whether a value is at least as good as the target; None where there is none."""
        if self.target is None:
            return None
        return value <= self.target if self.smaller_is_better else value >= self.target


def _decode(batch: int, peer: float | None = None, others: str = "", target: float | None = None) -> Case:
    return Case(f"decode/bf16/b{batch}", "engine", "tok/s", peer, others, target)


def _time(
    name: str, section: str, unit: str, target: float | None = None, peer: float | None = None, others: str = ""
) -> Case:
    return Case(name, section, unit, peer, others, target, smaller_is_better=True)


CASES: tuple[Case, ...] = (
    Case("ceiling/copy", "engine", "TB/s"),
    Case("ceiling/matmul", "engine", "TFLOP/s"),
    _time("ceiling/products", "engine", "ms"),
    _decode(1, 209, "llama.cpp F16 198, Transformers 9", 275),
    Case("decode/bf16/b1/ctx4096", "engine", "tok/s", target=255),
    Case("decode/bf16/b1/sampled", "engine", "tok/s"),
    _decode(2),
    _decode(4),
    _decode(8, 1616, "Transformers 82", 1850),
    _decode(16),
    _decode(32, 6376, "Transformers 536", 6750),
    _decode(64, 12104, "Transformers 1010", 12900),
    Case("decode/bf16/b64/sampled", "engine", "tok/s"),
    _decode(128, 20934, "", 22300),
    _decode(256, 28004, "", 30500),
    _time("step/host_ms", "engine", "ms", 0.3),
    _time("step/host_ms/b256", "engine", "ms", 0.3),
    _time("ttft/bf16/128", "engine", "ms", 7),
    _time("ttft/bf16/512", "engine", "ms", 13, 15.6),
    _time("ttft/bf16/2048", "engine", "ms", 40, 47.5, "Transformers 55.8"),
    _time("ttft/bf16/8192", "engine", "ms"),
    Case("prefill/bf16", "engine", "tok/s", 45104, "llama.cpp F16 25278", 50000),
    _time("turns/ttft_ratio_10_to_2", "engine", "ratio", 1.3),
    _time("itl/bf16/p99_ms", "engine", "ms"),
    Case("mixed/bf16", "engine", "tok/s", 9622, "", 10800),
    Case("kv/waste_share", "engine", "share", target=0.04, smaller_is_better=True, needs=("mixed/bf16",)),
    Case("kv/used_share_under_load", "engine", "share"),
    Case("decode/bf16/b1/no_pdl", "variants", "tok/s", target=250),
    Case("decode/bf16/b64/no_graphs", "variants", "tok/s", is_default=False),
    Case("decode/bf16/b1/ctx4096/kv_int8", "variants", "tok/s", is_default=False),
    Case("decode/bf16/b1/ctx4096/kv_fp8", "variants", "tok/s", is_default=False),
    Case("decode/bf16/b64/kv_int8", "variants", "tok/s", is_default=False),
    Case("decode/bf16/b64/kv_fp8", "variants", "tok/s", is_default=False),
    _time("start/bf16/warm_s", "processes", "s", 10, 75),
    _time("start/bf16/cold_s", "processes", "s", 30),
    # Before the daemon: its worker takes all the memory there is and keeps it.
    Case("fits/24gib/bf16", "processes", "tokens"),
    Case("http/bf16/b1/share", "processes", "share", target=0.97, needs=("decode/bf16/b1",)),
    Case("http/bf16/b32", "processes", "tok/s", needs=("decode/bf16/b32",)),
    Case("transformers/bf16/b1", "peers", "tok/s"),
    Case("transformers/bf16/b8", "peers", "tok/s"),
    Case("transformers/bf16/b32", "peers", "tok/s"),
)
BY_NAME = {case.name: case for case in CASES}
SECTIONS = tuple(dict.fromkeys(case.section for case in CASES))
CEILINGS = ("ceiling/copy", "ceiling/matmul")


def select(only: Iterable[str] = ()) -> list[Case]:
    """The cases to run, in order; those that they need and the ceilings come with them.

    Args:
        only: names or leading parts of names ("decode", "ttft/bf16", "decode/bf16/b1"); none is all default cases.

    Raises:
        ValueError: a word selects nothing.
    """
    words = [word.strip("/ ") for word in only if word.strip("/ ")]
    if not words:
        return [case for case in CASES if case.is_default]
    chosen: set[str] = set(CEILINGS)
    for word in words:
        found = [case for case in CASES if case.name == word or case.name.startswith(word + "/")]
        if not found:
            roots = ", ".join(dict.fromkeys(case.name.split("/")[0] for case in CASES))
            raise ValueError(f'no case is named "{word}"; names begin with {roots}')
        for case in found:
            # A group brings its default cases; what is no default must be named whole.
            if case.is_default or case.name == word:
                chosen |= {case.name, *case.needs}
    return [case for case in CASES if case.name in chosen]


@dataclass(frozen=True)
class Sizes:
    """How much work the cases do."""

    copy_bytes: int
    matmul_size: int
    warm_up_s: float
    prompt_tokens: int
    new_tokens: int
    long_context: int
    middle_context: int
    repeats: int
    ttft_repeats: int
    ttft_scale: int
    """What the prompt lengths of the ttft cases are divided by."""
    prefill_prompts: int
    prefill_tokens: int
    num_chats: int
    turn_tokens: int
    answer_tokens: int
    itl_sequences: int
    itl_tokens: int
    itl_prompts: int
    itl_prompt_tokens: int
    itl_gap_s: float
    mixed_requests: int
    mixed_input_tokens: int
    mixed_output_tokens: int
    mixed_longest: int
    pool_share: int
    """The small pool holds one in so many of the tokens that all requests of its run have."""
    peer_new_tokens: int
    http_prompt_tokens: int


SIZES = {
    "qwen2.5-7b": Sizes(
        copy_bytes=1 << 30, matmul_size=8192, warm_up_s=1.0, prompt_tokens=128, new_tokens=256, long_context=4096,
        middle_context=512, repeats=3, ttft_repeats=11, ttft_scale=1, prefill_prompts=16,
        prefill_tokens=2048, num_chats=5, turn_tokens=200, answer_tokens=100, itl_sequences=32, itl_tokens=512,
        itl_prompts=16, itl_prompt_tokens=2048, itl_gap_s=0.15, mixed_requests=512, mixed_input_tokens=104_897,
        mixed_output_tokens=94_429, mixed_longest=1024, pool_share=4, peer_new_tokens=48, http_prompt_tokens=400,
    ),
    "tiny": Sizes(
        copy_bytes=1 << 22, matmul_size=256, warm_up_s=0.05, prompt_tokens=8, new_tokens=24, long_context=64,
        middle_context=32, repeats=1, ttft_repeats=3, ttft_scale=32, prefill_prompts=2,
        prefill_tokens=32, num_chats=1, turn_tokens=10, answer_tokens=4, itl_sequences=2, itl_tokens=24,
        itl_prompts=2, itl_prompt_tokens=32, itl_gap_s=0.01, mixed_requests=12, mixed_input_tokens=240,
        mixed_output_tokens=180, mixed_longest=64, pool_share=4, peer_new_tokens=4, http_prompt_tokens=16,
    ),
}  # fmt: skip


SIGMA = 0.8
"""Of the lengths' logarithm. How the lengths of vLLM's figure were drawn is not known; with this, and lengths of up to
1,024 tokens, its step times by batch size add up to that figure."""


def lengths(count: int, total: int, longest: int, rng: random.Random, shortest: int = 4) -> list[int]:
    """`count` log-normal lengths between `shortest` and `longest` whose sum is exactly `total`."""
    drawn = [rng.lognormvariate(0.0, SIGMA) for _ in range(count)]

    def scaled(factor: float) -> list[int]:
        return [min(max(round(factor * value), shortest), longest) for value in drawn]

    low, high = 0.0, float(total)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(scaled(middle)) < total else (low, middle)
    found = scaled(low)
    missing = total - sum(found)
    for index in range(count):
        change = max(min(missing, longest - found[index], 1), -1, shortest - found[index])
        found[index] += change
        missing -= change
    if missing:
        raise ValueError(f"{count} lengths of {shortest} to {longest} cannot have the sum {total}")
    return found
