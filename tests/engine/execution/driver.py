"""Driver: stands in for the scheduler in tests of ModelRunner. Deals blocks out in shuffled order, a step a call."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from engine.execution.model_runner import ModelRunner
from engine.messages import Load
from engine.sampling_params import SamplingParams
from engine.scheduling.batch import Admission, BlockAppend, RowStep, ScheduledBatch, StepResult, TokenLogprobs
from modelfiles.source import ModelSource

GREEDY = SamplingParams(temperature=0.0)


def load_runner(path: Path, **options: object) -> ModelRunner:
    """A runner in float32 on the CPU, from a GGUF file or a folder."""
    settings: dict[str, object] = {
        "device": "cpu", "dtype": "float32", "num_blocks": 256, "block_size": 16, "max_num_seqs": 32,
    }  # fmt: skip
    files = {name: str(file) for name, file in ModelSource.from_path(path).files.items()}
    return ModelRunner.load(Load(files=files, **(settings | options)))  # type: ignore[arg-type]


class Driver:
    """Rows, blocks and positions of the sequences that a test runs."""

    def __init__(self, runner: ModelRunner, *, seed: int = 0) -> None:
        self.runner = runner
        self.free = list(range(1, runner.num_blocks + 1))
        random.Random(seed).shuffle(self.free)
        self.num_groups = len(runner.config.kv_groups)
        self.block_size = runner.load_options.block_size
        self.known: dict[int, int] = {}
        """Row -> positions whose tokens are known or in flight."""
        self.computed: dict[int, int] = {}
        self.num_blocks: dict[int, int] = {}
        self.owned: dict[int, list[int]] = {}
        self.admitted: list[Admission] = []
        self.step_number = 0

    def admit(
        self,
        row: int,
        token_ids: Sequence[int],
        params: SamplingParams = GREEDY,
        origin: int = -1,
        adapter: int = 0,
        *,
        is_constrained: bool = False,
    ) -> None:
        self.release(row)
        origin = len(token_ids) if origin < 0 else origin
        admission = Admission(row, 100 + row, list(token_ids), origin, params, adapter, is_constrained)
        self.admitted.append(admission)
        self.known[row], self.computed[row], self.num_blocks[row], self.owned[row] = len(token_ids), 0, 0, []

    def release(self, row: int) -> None:
        """Gives a row's blocks back; the next to be dealt out."""
        self.free += self.owned.pop(row, [])

    def batch(self, counts: dict[int, int]) -> ScheduledBatch:
        """`counts`: row -> tokens to compute; a row samples when it has caught up with what is known."""
        appended, steps = [], []
        for row, count in sorted(counts.items(), key=lambda item: item[1] > 1):
            start = self.computed[row]
            stop = start + count
            assert stop <= self.known[row], "a row cannot compute tokens that nobody knows"
            wanted = -(-stop // self.block_size)
            if wanted > self.num_blocks[row]:
                for group in range(self.num_groups):
                    ids = [self.free.pop() for _ in range(wanted - self.num_blocks[row])]
                    self.owned[row] += ids
                    window = self.runner.config.kv_groups[group].window
                    dead = 0 if window is None else max(0, start + 1 - window) // self.block_size
                    appended.append(BlockAppend(row, group, self.num_blocks[row], ids, dead))
                self.num_blocks[row] = wanted
            samples = stop == self.known[row]
            steps.append(RowStep(row, 100 + row, start, count, samples))
            self.computed[row] = stop
            self.known[row] += samples
        batch = ScheduledBatch(self.step_number, self.admitted, appended, steps)
        self.admitted = []
        self.step_number += 1
        return batch

    def step(self, counts: dict[int, int]) -> StepResult:
        return self.runner.launch(self.batch(counts)).result()

    def logits(self, counts: dict[int, int]) -> torch.Tensor:
        return self.runner.steps.compute_logits(self.batch(counts))

    def prompt_logits(self, token_ids: Sequence[int], chunks: Iterator[int], row: int = 0) -> torch.Tensor:
        """Logits after the last token of a prompt that is computed in chunks of the given sizes."""
        self.admit(row, token_ids)
        while True:
            left = self.known[row] - self.computed[row]
            count = min(left, next(chunks))
            logits = self.logits({row: count})
            if count == left:
                return logits[0]

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        num_tokens: int,
        params: Sequence[SamplingParams] | None = None,
        adapters: Sequence[int] | None = None,
    ) -> tuple[list[list[int]], list[list[TokenLogprobs | None]]]:
        """Runs all prompts side by side, each prefilled in one step."""
        for row, prompt in enumerate(prompts):
            adapter = adapters[row] if adapters else 0
            self.admit(row, prompt, params[row] if params else GREEDY, adapter=adapter)
        tokens: list[list[int]] = [[] for _ in prompts]
        logprobs: list[list[TokenLogprobs | None]] = [[] for _ in prompts]
        for _ in range(num_tokens):
            batch = self.batch({row: self.known[row] - self.computed[row] for row in range(len(prompts))})
            result = self.runner.launch(batch).result()
            assert result.errors == [None] * len(prompts)
            sampling = [step.row for step in batch.steps]
            for row, token, logprob in zip(sampling, result.token_ids, result.logprobs, strict=True):
                tokens[row].append(token)
                logprobs[row].append(logprob)
        return tokens, logprobs
