"""What tests ask of an engine: every sampling option, and 64 streams that come, go and are in each other's way."""

from __future__ import annotations

import random
from typing import Any

import msgspec

from engine.llm import LLM, Output
from engine.sampling_params import MAX_SEED, SamplingParams
from engine.scheduling.sequence import Sequence

Request = tuple[list[int], SamplingParams]

OPTIONS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0, "logprobs": 2},
    {"temperature": 0.3},
    {"temperature": 1.0},
    {"temperature": 1.7},
    {"top_k": 1},
    {"top_k": 5},
    {"top_k": 40, "temperature": 1.4},
    {"top_p": 0.5},
    {"top_p": 0.95, "temperature": 1.3},
    {"min_p": 0.05, "temperature": 1.4},
    {"min_p": 0.4},
    {"typical_p": 0.3},
    {"typical_p": 0.8},
    {"repeat_penalty": 1.3},
    {"repeat_penalty": 1.2, "repeat_last_n": -1},
    {"repeat_penalty": 0.8, "repeat_last_n": 3},
    {"presence_penalty": 0.8},
    {"frequency_penalty": 0.7},
    {"presence_penalty": -0.5, "frequency_penalty": -0.3},
    {"logit_bias": {300: 6.0, 301: -100.0, 400: 4.0}},
    {"temperature": 0.0, "frequency_penalty": 0.7},
    {"temperature": 0.0, "logit_bias": {259: -100.0, 500: 5.0}},
    {"logprobs": 0},
    {"logprobs": 20, "top_k": 12, "top_p": 0.9},
    {"top_k": 30, "typical_p": 0.9, "top_p": 0.9, "min_p": 0.02, "repeat_penalty": 1.1, "temperature": 0.8},
)
"""Each way of choosing a token; the first is the only one whose margin the log-probabilities tell."""


def sampled(num_tokens: int, seeds: range) -> list[Request]:
    """Every option with every seed, on prompts that make no sense: what follows is then anything but certain."""
    choose = random.Random(13)
    prompts = [choose.choices(range(300, 4000), k=choose.randrange(3, 30)) for _ in OPTIONS]
    return [
        (prompt, SamplingParams(**{"seed": MAX_SEED - seed, **options}, max_tokens=num_tokens, ignore_eos=True))
        for prompt, options in zip(prompts, OPTIONS, strict=True)
        for seed in seeds
    ]


def streams(count: int = 64) -> list[Request]:
    """Every second one greedy; lengths at random, beginnings shared, some with a context that shifts."""
    choose = random.Random(11)
    beginning = choose.choices(range(300, 4000), k=40)
    requests = []
    for number in range(count):
        prompt = beginning[: choose.randrange(2, 41)] + choose.choices(range(300, 4000), k=choose.randrange(1, 12))
        options = OPTIONS[0] if number % 2 else OPTIONS[number % len(OPTIONS)]
        params = SamplingParams(
            **{"seed": number, **options},
            max_tokens=choose.randrange(1, 40),
            max_context=len(prompt) + 9 if number % 5 == 0 else None,
            shift=True,
            ignore_eos=True,
        )
        requests.append((prompt, params))
    return requests


def as_greedy(requests: list[Request]) -> list[Request]:
    """The same, the likeliest token each time, with what tells the margin."""
    changes = {"temperature": 0.0, "logprobs": 2, "logit_bias": {}, "frequency_penalty": 0.0, "presence_penalty": 0.0}
    changes |= {"repeat_penalty": 1.0}
    return [(prompt, msgspec.structs.replace(params, **changes)) for prompt, params in requests]


def run_alone(llm: LLM, requests: list[Request]) -> list[Output]:
    """Each without company."""
    return [llm.generate([prompt], params)[0] for prompt, params in requests]


class Crowd:
    """All requests at once, arriving a few a step in random order; every sixth leaves early.

    Attributes:
        outputs: what each request got, in their order.
        left: numbers of those that were aborted.
        errors: number -> sentence, of those that failed.
    """

    def __init__(self, llm: LLM, requests: list[Request], *, leaves: bool = True) -> None:
        self.outputs = [Output(prompt_ids=prompt) for prompt, _ in requests]
        self.left: set[int] = set()
        self.errors: dict[int, str] = {}
        self._llm = llm
        choose = random.Random(12)
        waiting = list(enumerate(requests))
        choose.shuffle(waiting)
        self._leaving = {number: choose.randrange(1, 6) for number in range(0, len(requests) * leaves, 6)}
        while waiting or llm.engine.has_work:
            for _ in range(min(len(waiting), choose.randrange(8))):
                number, (prompt, params) = waiting.pop()
                llm.engine.add(Sequence(number, prompt, params))
            self._step()

    def _step(self) -> None:
        for row in self._llm.engine.step():
            output = self.outputs[row.seq_id]
            output.token_ids += row.token_ids
            output.logprobs += row.logprobs
            output.num_cached_tokens += row.num_cached_tokens
            output.truncated |= row.truncated
            if row.error is not None:
                self.errors[row.seq_id] = row.error
            if row.finish_reason is None and len(output.token_ids) >= self._leaving.get(row.seq_id, 1 << 30):
                self._llm.engine.abort(row.seq_id)
                self.left.add(row.seq_id)
        self._llm.engine.scheduler.check()
