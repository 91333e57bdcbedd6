"""A model that is only partly on the GPU says what it says when all of it is there."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.messages import Load
from tests.gpu.engines import assert_equal, greedy, load

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif("num_gpu_layers" not in Load.__struct_fields__, reason="Load has no num_gpu_layers"),
]
PROMPTS = ["Once upon a time there was a", "Tell me", "The fox and the lamp were"]


@pytest.mark.parametrize("num_gpu_layers", [0, 2])
def test_layers_beside_the_gpu_change_no_token(tale_dir: Path, num_gpu_layers: int) -> None:
    whole, part = load(tale_dir), load(tale_dir, num_gpu_layers=num_gpu_layers)
    assert part.ready.weights_bytes <= whole.ready.weights_bytes
    assert_equal(part.generate(PROMPTS, greedy(60)), whole.generate(PROMPTS, greedy(60)))
