"""How much fits: sizes by calculation, limits of containers, and sentences where it does not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine.config import ModelConfig
from engine.execution import device
from engine.execution.errors import ModelTooLarge, mebibytes
from engine.execution.kv_cache import KVCache, block_bytes
from engine.rope import Rope

CPU = torch.device("cpu")
CONFIG = ModelConfig(
    architecture="llama",
    vocab_size=100,
    hidden_size=32,
    intermediate_size=64,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    max_position_embeddings=1000,
    rms_norm_eps=1e-5,
    rope=Rope(10000.0, 8),
)
BLOCK = 2 * 3 * 2 * 16 * 8 * 4


def test_a_block_is_counted_over_all_layers() -> None:
    assert block_bytes(CONFIG, 16, torch.float32) == BLOCK
    assert block_bytes(CONFIG, 16, torch.bfloat16) == BLOCK // 2
    for narrow in (torch.int8, torch.float8_e4m3fn):  # a scale of four bytes for each head of eight
        assert block_bytes(CONFIG, 16, narrow) == BLOCK // 4 + BLOCK // 8
        cache = KVCache.allocate(CONFIG, 9, 16, narrow, CPU)
        assert cache.num_bytes == 10 * block_bytes(CONFIG, 16, narrow)
        assert cache.layers[0][0].dtype == narrow
        assert cache.scales[2][1] is not None
        assert cache.scales[2][1].shape == (10, 2, 16)
    cache = KVCache.allocate(CONFIG, 9, 16, torch.float32, CPU)
    assert cache.scales == ((None, None),) * 3
    assert cache.num_bytes == 10 * BLOCK
    assert len(cache.layers) == 3
    assert cache.layers[0][0].shape == (10, 2, 16, 8)


def test_a_cache_beyond_the_memory_is_refused_before_it_is_touched() -> None:
    with pytest.raises(ModelTooLarge, match="a KV cache of 1000000000 blocks needs") as error:
        KVCache.allocate(CONFIG, 10**9, 16, torch.float32, CPU)
    assert error.value.needs_bytes == (10**9 + 1) * BLOCK
    assert error.value.kind == "memory"


@pytest.mark.parametrize(
    ("limit", "expected"),
    [("1000000", 1_000_000 - 700_000 + 300_000), ("500000", 100_000), ("max", None), (None, None)],
)
def test_a_containers_limit_counts(
    limit: str | None, expected: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if limit is not None:
        (tmp_path / "memory.max").write_text(limit + "\n")
        (tmp_path / "memory.current").write_text("700000\n")
        (tmp_path / "memory.stat").write_text("anon 400000\ninactive_file 300000\n")
    monkeypatch.setattr(device, "CGROUP", tmp_path)
    available = device.available_bytes(CPU)
    assert available == expected if expected is not None else available > 1_000_000


def test_types_are_chosen_by_size_and_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for has_fast in (True, False):
        monkeypatch.setattr(device, "has_fast_bfloat16", lambda has_fast=has_fast: has_fast)
        assert device.choose_dtype("auto", CPU, 10_000_000) == torch.float32
        large = torch.bfloat16 if has_fast else torch.float32
        assert device.choose_dtype("auto", CPU, 7_000_000_000) == large
        assert device.choose_dtype("bfloat16", CPU, 1) == torch.bfloat16
        assert device.choose_dtype("auto", CPU, 30_000_000, is_packed=True) == torch.bfloat16, "packed, it is faster"
        assert device.choose_dtype("auto", CPU, 3_000_000, is_packed=True) == torch.float32
        assert device.choose_dtype("float32", CPU, 30_000_000, is_packed=True) == torch.float32
    assert device.choose_dtype("auto", torch.device("cuda"), 1) == torch.bfloat16
    assert device.choose_kv_dtype("auto", torch.float16) == torch.float16
    assert device.choose_kv_dtype("bf16", torch.float32) == torch.bfloat16


def test_sizes_read_well() -> None:
    assert [mebibytes(n) for n in (1 << 20, 40 << 20, 12 << 30)] == ["1.0 MiB", "40 MiB", "12.0 GiB"]
