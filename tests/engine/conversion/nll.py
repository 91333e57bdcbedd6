"""Perplexity of a model over some stories, on the CPU in float32."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from engine.execution.model_runner import ModelRunner
from engine.messages import Load
from engine.text.tokenizer import Tokenizer
from modelfiles.source import ModelSource


def perplexity(model: Path, texts: Sequence[str]) -> float:
    source = ModelSource.from_path(model)
    files = {name: str(path) for name, path in source.files.items()}
    runner = ModelRunner.load(Load(files=files, device="cpu", dtype="float32", num_blocks=8))
    tokenizer = Tokenizer.from_source(source)
    logprobs = [value for text in texts for value in runner.prompt_logprobs(tokenizer.encode(text))]
    return math.exp(-sum(logprobs) / len(logprobs))
