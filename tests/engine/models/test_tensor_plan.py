"""The plan of tensors against Transformers' models, and files whose configuration tells another story than they do."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from engine.config import ModelConfig
from engine.models.tensor_names import TensorNames
from engine.models.tensor_plan import READABLE_TYPES, TensorPlanError, check_table, check_tensors, tensor_plan
from engine.quantization.gguf_blocks import DECODERS
from modelfiles.gguf import GGMLType, NewTensor, write_gguf
from modelfiles.safetensors import SafeTensor
from modelfiles.source import ModelSource
from tests.daemon.tiny_model import write_tiny_model
from tests.engine.models.test_against_transformers import CASES, SIZES

LAYER = "model.layers.0"
METADATA: dict[str, Any] = {
    "general.architecture": "llama",
    "llama.context_length": 64,
    "llama.embedding_length": 8,
    "llama.block_count": 2,
    "llama.feed_forward_length": 16,
    "llama.attention.head_count": 2,
    "llama.attention.head_count_kv": 1,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
}


def table(shapes: dict[str, tuple[int, ...]], dtype: str = "F32") -> dict[str, SafeTensor]:
    return {name: SafeTensor(name, dtype, shape, 4 * math.prod(shape), 0) for name, shape in shapes.items()}


def plan_of(config: ModelConfig, present: dict[str, Any], *, is_gguf: bool = False) -> dict[str, tuple[int, ...]]:
    names = TensorNames.detect(present, is_gguf=is_gguf, has_post_norms=config.post_norms)
    planned = list(tensor_plan(config, names, present))
    shapes = {tensor.name: tensor.shape for tensor in planned}
    assert len(shapes) == len(planned), "a tensor is planned twice"
    return shapes


@pytest.mark.parametrize("name", CASES)
def test_the_plan_is_what_transformers_would_save(name: str) -> None:
    kind, settings, _ = CASES[name]
    hf_config = getattr(transformers, kind)(**(SIZES | settings))
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(hf_config)
    saved = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    config = ModelConfig.from_hf(hf_config.to_dict() | {"architectures": [type(model).__name__]})
    check_table(config, TensorNames(False, config.post_norms), table(saved))
    if config.tie_word_embeddings:
        del saved["lm_head.weight"]
    assert plan_of(config, saved) == saved


def test_exactly_what_can_be_expanded_is_readable() -> None:
    assert set(READABLE_TYPES) == set(DECODERS)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    write_tiny_model(tmp_path / "tiny")
    return tmp_path / "tiny"


def refusal(folder: Path, **settings: Any) -> str:
    """What is said of a model when its config.json is another."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | settings), "utf-8")
    source = ModelSource.from_path(folder)
    with pytest.raises(TensorPlanError) as caught:
        check_tensors(ModelConfig.from_source(source), source)
    return str(caught.value)


def test_a_model_that_is_what_it_says(tiny: Path) -> None:
    source = ModelSource.from_path(tiny)
    check_tensors(ModelConfig.from_source(source), source)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            {"hidden_size": 16},
            '"model.embed_tokens.weight" has the shape [259, 8]; the configuration asks for [259, 16]',
        ),
        (
            {"vocab_size": 260},
            '"model.embed_tokens.weight" has the shape [259, 8]; the configuration asks for [260, 8]',
        ),
        (
            {"intermediate_size": 17},
            f'"{LAYER}.mlp.gate_proj.weight" has the shape [16, 8]; the configuration asks for',
        ),
        ({"num_hidden_layers": 2}, '"model.layers.1.input_layernorm.weight" of shape [8] is missing'),
        ({"num_key_value_heads": 2}, f'"{LAYER}.self_attn.k_proj.weight" has the shape [4, 8]; the configuration asks'),
        ({"attention_bias": True}, f'"{LAYER}.self_attn.q_proj.bias" of shape [8] is missing; the file is incomplete'),
        ({"tie_word_embeddings": False}, '"lm_head.weight" of shape [259, 8] is missing'),
        ({"architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", "head_dim": 4}, "norm.weight"),
        ({"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 4}, "q_norm.weight"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_configuration_of_another_model(settings: dict[str, Any], expected: str, tiny: Path) -> None:
    assert expected in refusal(tiny, **settings)


def test_layers_that_the_configuration_leaves_out(tiny: Path) -> None:
    config = ModelConfig.from_source(ModelSource.from_path(tiny))
    deeper = replace(config, num_layers=2, windows=(None, None))
    shapes = plan_of(deeper, {f"model.layers.{layer}.mlp.gate_proj.weight": None for layer in range(2)})
    with pytest.raises(TensorPlanError, match=r'^9 tensors play no part .*"model\.layers\.1\..* and 4 more'):
        check_table(config, TensorNames(False, False), table(shapes))


@pytest.mark.parametrize("dtype", ["F8_E4M3", "I8", "F64", "U8"])
def test_a_type_that_cannot_be_read(dtype: str, tiny: Path) -> None:
    config = ModelConfig.from_source(ModelSource.from_path(tiny))
    shapes = plan_of(config, {f"{LAYER}.mlp.gate_proj.weight": None})
    with pytest.raises(
        TensorPlanError, match=f'embed_tokens.weight" has the type {dtype}; these can be read: F32, F16'
    ):
        check_table(config, TensorNames(False, False), table(shapes, dtype))


@pytest.mark.parametrize(("rows", "columns", "fits"), [(300, 8, True), (258, 8, False), (300, 9, False)])
def test_only_a_vocabulary_may_be_padded(rows: int, columns: int, fits: bool, tiny: Path) -> None:
    config = ModelConfig.from_source(ModelSource.from_path(tiny))
    tensors = table(plan_of(config, {f"{LAYER}.mlp.gate_proj.weight": None}))
    name = "model.embed_tokens.weight"
    tensors[name] = replace(tensors[name], shape=(rows, columns))
    if fits:
        check_table(config, TensorNames(False, False), tensors)
        return
    with pytest.raises(TensorPlanError, match=rf"has the shape \[{rows}, {columns}\]; .* asks for \[259, 8\]"):
        check_table(config, TensorNames(False, False), tensors)


# ---- GGUF


def gguf_source(path: Path, **changed: int) -> ModelSource:
    """A file of the tensors that METADATA describes, with some of its keys changed."""
    present = {f"blk.{layer}.ffn_gate.weight": None for layer in range(2)}
    config = replace(ModelConfig.from_gguf(METADATA | {"llama.vocab_size": 32}, {}), tie_word_embeddings=True)
    shapes = plan_of(config, present, is_gguf=True)
    tensors = [NewTensor(name, shape, GGMLType.F32, bytes(4 * math.prod(shape))) for name, shape in shapes.items()]
    changes = {f"llama.{key.replace('__', '.')}": value for key, value in changed.items()}
    write_gguf(path, METADATA | changes, tensors)
    return ModelSource.from_path(path)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, ""),
        ({"embedding_length": 16}, r'"token_embd\.weight" has the shape \[32, 8\]; .* asks for \[32, 16\]'),
        ({"feed_forward_length": 24}, r'"blk\.0\.ffn_gate\.weight" has the shape \[16, 8\]; .* asks for \[24, 8\]'),
        ({"block_count": 3}, r'"blk\.2\.attn_norm\.weight" of shape \[8\] is missing'),
        ({"block_count": 1}, r"^9 tensors play no part in the architecture: .*blk\.1"),
        ({"attention__head_count_kv": 2}, r'"blk\.0\.attn_k\.weight" has the shape \[4, 8\]; .* asks for \[8, 8\]'),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_gguf_metadata_of_another_model(changed: dict[str, int], expected: str, tmp_path: Path) -> None:
    source = gguf_source(tmp_path / "m.gguf", **changed)
    config = ModelConfig.from_source(source)
    if not expected:
        check_tensors(config, source)
        return
    with pytest.raises(TensorPlanError, match=expected):
        check_tensors(config, source)
