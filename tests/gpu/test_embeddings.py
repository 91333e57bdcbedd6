"""Vectors on a GPU point where the CPU's do: encoders in float16, decoders in bfloat16, alone and together."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from engine.embedding_queue import TextJob
from engine.encoder_config import EncoderConfig
from engine.execution.encoder_runner import EncoderRunner
from engine.execution.model_runner import ModelRunner
from engine.messages import Load
from engine.models.encoder_plan import EncoderNames, encoder_plan
from modelfiles.source import ModelSource
from tests.gpu.engines import DEVICE

pytestmark = pytest.mark.gpu
SIZES = {
    "vocab_size": 259, "hidden_size": 192, "intermediate_size": 320, "num_hidden_layers": 3, "num_attention_heads": 6,
    "max_position_embeddings": 200,
}  # fmt: skip
LENGTHS = (1, 3, 150, 17, 16, 64, 90, 3)


def write_encoder(folder: Path, class_name: str) -> None:
    """Random weights, without transformers, which a GPU machine may lack."""
    folder.mkdir()
    config = SIZES | {"architectures": [class_name], "model_type": "bert"}
    (folder / "config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(0)
    names = EncoderNames(EncoderConfig.from_hf(config), is_gguf=False, prefix="", present=())
    tensors = {
        planned.name: torch.randn(planned.shape, generator=generator) * (0.1 if len(planned.shape) > 1 else 0.3)
        for planned in encoder_plan(names)
    }
    save_file(tensors, folder / "model.safetensors")


def vectors(runner: EncoderRunner | ModelRunner, texts: list[list[int]]) -> torch.Tensor:
    jobs = [TextJob(1, index, text, 0, normalize=True, dimensions=0) for index, text in enumerate(texts)]
    *_, found = runner.embed(jobs, 64)
    assert found is not None
    return torch.stack([torch.frombuffer(bytearray(vector or b""), dtype=torch.float32) for vector in found])


def load(kind: type[EncoderRunner] | type[ModelRunner], folder: Path, **options: object) -> EncoderRunner | ModelRunner:
    files = {name: str(path) for name, path in ModelSource.from_path(folder).files.items()}
    return kind.load(Load(files=files, num_blocks=64, **options))  # type: ignore[arg-type]


def check(kind: type[EncoderRunner] | type[ModelRunner], folder: Path, least: float) -> None:
    choose = random.Random(3)
    texts = [choose.choices(range(3, 250), k=length) for length in LENGTHS]
    expected = vectors(load(kind, folder, device="cpu", dtype="float32"), texts)
    runner = load(kind, folder, device=DEVICE)
    together = vectors(runner, texts)
    alone = torch.cat([vectors(runner, [text]) for text in texts])
    assert (expected * together).sum(1).min() > least
    assert (alone * together).sum(1).min() > least


@pytest.mark.parametrize("class_name", ["BertModel", "NomicBertModel"])
def test_encoders(class_name: str, tmp_path: Path) -> None:
    write_encoder(tmp_path / "model", class_name)
    check(EncoderRunner, tmp_path / "model", 0.9999)


@pytest.mark.parametrize("name", ["qwen3-qk-norm", "gemma3"])
def test_decoders(name: str, tiny: Callable[[str], Path]) -> None:
    check(ModelRunner, tiny(name), 0.99)
