"""Memory by calculation: cards of all sizes, budgets, layers in the host's memory, and sentences where nothing fits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from engine.config import ModelConfig
from engine.execution import device
from engine.execution.device import DeviceMemory
from engine.execution.errors import ModelTooLarge
from engine.execution.memory import MemoryPlan, MemoryRequest, plan_memory, replan_memory
from engine.execution.weight_table import WeightSizes
from engine.rope import Rope
from tests.engine.execution.sizes import plain_sizes

GIB = 1 << 30
QWEN_7B = ModelConfig(
    architecture="qwen2",
    vocab_size=152064,
    hidden_size=3584,
    intermediate_size=18944,
    num_layers=28,
    num_heads=28,
    num_kv_heads=4,
    head_dim=128,
    max_position_embeddings=32768,
    rms_norm_eps=1e-6,
    rope=Rope(1e6, 128),
    qkv_bias=True,
)
TINY = replace(
    QWEN_7B, vocab_size=512, hidden_size=64, intermediate_size=128, num_layers=2, num_heads=2, num_kv_heads=1,
    head_dim=32, max_position_embeddings=256, rope=Rope(1e4, 32), attention_scale=0.0, windows=(), num_parameters=0,
)  # fmt: skip
REQUEST = MemoryRequest(dtype=torch.bfloat16, kv_dtype=torch.bfloat16)
LAYER = plain_sizes(QWEN_7B).layer_bytes[0]


def gpu(total: float, free: float | None = None, host: float = 64) -> DeviceMemory:
    return DeviceMemory(True, int((total - 0.5 if free is None else free) * GIB), int(total * GIB), int(host * GIB))


def plan(
    memory: DeviceMemory, config: ModelConfig = QWEN_7B, weights: WeightSizes | None = None, **options: Any
) -> MemoryPlan:
    request = replace(REQUEST, **options)
    planned = plan_memory(config, request, memory, weights or plain_sizes(config, request.dtype))
    taken = planned.weights_bytes + planned.activation_bytes + planned.graph_bytes + planned.kv_bytes
    assert taken <= memory.free_bytes
    if options.get("budget_bytes"):
        assert taken <= options["budget_bytes"]
    elif memory.is_gpu:
        assert memory.free_bytes - taken >= max(GIB, int(0.08 * memory.total_bytes)), "a desktop needs some"
    assert planned.kv_bytes % (planned.num_blocks + 1) == 0
    return planned


@pytest.mark.parametrize(
    ("card", "num_offloaded", "num_tokens"),
    [(140, 0, 256 * 4096), (80, 0, 256 * 4096), (24, 0, 116_608), (16, 6, 11_312), (12, 14, 6_688), (6, 28, 8_128)],
)
def test_seven_billion_parameters_on_a_card_of(card: float, num_offloaded: int, num_tokens: int) -> None:
    planned = plan(gpu(card))
    assert (planned.num_offloaded_layers, planned.num_blocks * 16) == (num_offloaded, num_tokens)
    assert planned.host_bytes == num_offloaded * LAYER
    if num_offloaded:
        assert planned.notes[0].startswith(f"{num_offloaded} of 28 layers stay in the host's memory; each step copies")
    else:
        assert planned.notes == ()


def test_one_layer_fewer_in_the_host_would_not_fit() -> None:
    planned = plan(gpu(12))
    with pytest.raises(ModelTooLarge):
        plan(gpu(12), num_gpu_layers=28 - planned.num_offloaded_layers + 1)
    assert plan(gpu(12), num_gpu_layers=28 - planned.num_offloaded_layers) == planned


@pytest.mark.parametrize("num_gpu_layers", [0, 5, 28, 99])
def test_layers_are_placed_as_asked(num_gpu_layers: int) -> None:
    planned = plan(gpu(48), num_gpu_layers=num_gpu_layers)
    assert planned.num_offloaded_layers == 28 - min(28, num_gpu_layers)
    whole = plan(gpu(48)).weights_bytes
    assert planned.weights_bytes == whole - max(0, planned.num_offloaded_layers - 2) * LAYER, "two slots remain"


def test_a_tiny_model_leaves_nearly_everything() -> None:
    planned = plan(gpu(24), TINY)
    assert planned.num_blocks * 16 == 256 * 4096
    assert planned.kv_bytes + planned.weights_bytes < GIB
    assert plan(gpu(24), TINY, max_num_seqs=4).num_blocks * 16 == 4 * 4096
    long = replace(TINY, max_position_embeddings=1 << 17)
    assert plan(gpu(24), long, max_num_seqs=4).num_blocks * 16 == 2 << 17, "two sequences of full context"


def test_a_budget_is_used_up() -> None:
    planned = plan(gpu(24), budget_bytes=20 * GIB)
    rest = planned.weights_bytes + planned.activation_bytes + planned.graph_bytes
    one = planned.kv_bytes // (planned.num_blocks + 1)
    assert 20 * GIB - rest - planned.kv_bytes < one
    assert plan(gpu(24, free=18), budget_bytes=20 * GIB).kv_bytes < planned.kv_bytes, "no more than is free"


def test_memory_to_leave_free_is_left() -> None:
    more, less = plan(gpu(24)), plan(gpu(24), overhead_bytes=2 * GIB)
    one = more.kv_bytes // (more.num_blocks + 1)
    assert 2 * GIB - one <= more.kv_bytes - less.kv_bytes <= 2 * GIB + one


def test_a_kv_cache_of_8_bits_holds_nearly_twice_as_much() -> None:
    wide, narrow = plan(gpu(24)), plan(gpu(24), kv_dtype=torch.int8)
    assert 1.9 < narrow.num_blocks / wide.num_blocks < 2.0


def test_a_number_of_blocks_is_kept_to() -> None:
    assert plan(gpu(24), num_blocks=100).num_blocks == 100
    with pytest.raises(ModelTooLarge, match=r"with a context of 1600000000 tokens"):
        plan(gpu(24), num_blocks=100_000_000)


def test_a_cpu_gives_a_quarter_of_what_is_left() -> None:
    host = DeviceMemory(False, 64 * GIB, 64 * GIB, 0)
    planned = plan(host)
    assert (planned.num_offloaded_layers, planned.graph_bytes) == (0, 0)
    assert planned.num_blocks * 16 == 16 * 4096
    few = plan(replace(host, free_bytes=20 * GIB))
    left = 20 * GIB - few.weights_bytes - few.activation_bytes
    assert few.kv_bytes <= left / 4 < few.kv_bytes * 1.01
    with pytest.raises(ModelTooLarge, match=r"stop other models, take a quantisation .*, or choose a smaller one"):
        plan(replace(host, free_bytes=14 * GIB))


def sentence(memory: DeviceMemory, config: ModelConfig = QWEN_7B, **options: Any) -> str:
    with pytest.raises(ModelTooLarge) as error:
        plan(memory, config, **options)
    assert error.value.kind == "memory"
    assert error.value.needs_bytes > error.value.has_bytes
    return str(error.value)


def test_too_large_says_what_would_fit() -> None:
    text = sentence(gpu(4))
    assert text.startswith("the model (14.2 GiB of weights in bfloat16) with a context of 4096 tokens (225 MiB) needs ")
    assert "but 2560 MiB are free; stop other models, or choose a smaller one (about 0.6 billion" in text
    assert text.endswith("1024 MiB more are free and left to other programs, model_memory takes them")
    assert "put 14 layers on the device (num_gpu)" in sentence(gpu(12), num_gpu_layers=28)
    wide = sentence(gpu(24), dtype=torch.float32, num_gpu_layers=28)
    assert "choose dtype bfloat16 (at most 14.2 GiB of weights)" in wide
    assert "a context of 2400 tokens (num_blocks 150)" in sentence(gpu(24, free=17.4), num_gpu_layers=28)


def quantised(share: float = 0.3) -> WeightSizes:
    """As Q4_K_M is: every other layer has some matrices with more bits."""
    plain = plain_sizes(QWEN_7B)
    layers = tuple(int(LAYER * (share + 0.05 * (number % 2))) for number in range(28))
    return WeightSizes(int((plain.total_bytes - sum(plain.layer_bytes)) * share) + sum(layers), layers)


def test_quantised_weights_count_as_they_are_kept() -> None:
    weights = quantised()
    planned = plan(gpu(8), weights=weights)
    assert (planned.weights_bytes, planned.num_offloaded_layers) == (weights.total_bytes, 0)
    small = plan(gpu(6), weights=weights)
    assert small.num_offloaded_layers >= 3
    assert small.host_bytes < small.num_offloaded_layers * max(weights.layer_bytes)
    slots = small.weights_bytes - (weights.total_bytes - small.host_bytes)
    assert 0 < slots <= 2 * max(weights.layer_bytes)


def test_matrices_that_steps_of_many_tokens_expand() -> None:
    """On a GPU, beside activations; the head where more sequences than the product takes run at once."""
    weights = quantised()
    packed = replace(weights, expanded_bytes=200 << 20, expanded_head_bytes=900 << 20)

    def more(memory: DeviceMemory, **options: object) -> tuple[int, int]:
        one, other = plan(memory, weights=packed, **options), plan(memory, weights=weights, **options)
        return (one.activation_bytes - other.activation_bytes) >> 20, (one.graph_bytes - other.graph_bytes) >> 20

    assert more(gpu(24), max_num_seqs=256) == (200, 0)
    assert more(gpu(80), max_num_seqs=512) == (900, 900)
    assert more(gpu(24), max_num_seqs=8, max_num_batched_tokens=256) == (0, 0)
    assert more(replace(gpu(80), is_gpu=False), max_num_seqs=256) == (0, 0)


def test_a_quantisation_is_offered_for_what_has_none() -> None:
    plain = sentence(gpu(12), num_gpu_layers=28)
    assert "take a quantisation of it, such as q4_K_M (about 4403 MiB of weights)" in plain
    named = replace(QWEN_7B, quantization="Q4_K_M")
    text = sentence(gpu(4), named, weights=quantised(), num_gpu_layers=28)
    assert text.startswith("the model (4669 MiB of weights in Q4_K_M) with")
    assert "take a quantisation" not in text


def test_a_host_without_room_is_told() -> None:
    text = sentence(gpu(12, host=8))
    assert text.startswith("14 of 28 layers do not fit on the device; to keep them in the host's memory needs 6223 MiB")


@pytest.mark.parametrize("card", [24, 12])
def test_another_cache_beside_the_same_weights(card: float) -> None:
    memory, weights = gpu(card), plain_sizes(QWEN_7B)
    first = plan(memory)
    loaded = replace(
        memory,
        free_bytes=memory.free_bytes - first.weights_bytes,
        host_bytes=memory.host_bytes - first.host_bytes,
    )
    assert replan_memory(QWEN_7B, REQUEST, loaded, weights, first) == first
    small = replan_memory(QWEN_7B, replace(REQUEST, num_blocks=100), loaded, weights, first)
    assert (small.num_blocks, small.num_offloaded_layers) == (100, first.num_offloaded_layers)


@pytest.mark.parametrize(
    ("fraction", "reserved", "allocated", "expected"),
    [(1.0, 0, 0, 70), (0.25, 0, 0, 20), (0.25, 15, 15, 5), (0.25, 15, 10, 10), (0.25, 20, 20, 0)],
)
def test_a_limit_of_the_process_counts(
    fraction: float, reserved: int, allocated: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stands in for the driver, which is not there: 80 GiB, of which 70 are free."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (70 * GIB, 80 * GIB))
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda index: fraction)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: reserved * GIB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: allocated * GIB)
    memory = device.device_memory(torch.device("cuda"))
    assert memory.is_gpu
    assert memory.free_bytes == expected * GIB
    assert memory.total_bytes == int(fraction * 80) * GIB
    assert memory.host_bytes > 0
