"""What `compile_check` compiles: a call of each launcher, in the shapes and with the options that models bring.

Tensors made here have no memory: the check runs these functions where allocating gives a shape, a type and a device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from engine.kernels.decode_attention import Workspace, decode_attention
from engine.kernels.gated import gated
from engine.kernels.gemv import DeferredNorm, gemv, gemv_argmax, gemv_gated, gemv_residual
from engine.kernels.kv_types import is_quantized
from engine.kernels.logprobs import LogprobWorkspace, logprobs
from engine.kernels.packed_gemv import packed_gemv, packed_gemv_argmax, packed_gemv_gated, packed_gemv_residual
from engine.kernels.packed_product import packed_product
from engine.kernels.packed_rows import packed_rows, packed_token_rows
from engine.kernels.patch import apply_patch
from engine.kernels.prefill_attention import prefill_attention
from engine.kernels.product_tiles import DotTile
from engine.kernels.products import linear, linear_gated
from engine.kernels.rms_norm import add_rms_norm, rms_norm
from engine.kernels.rope_decode_attention import rope_decode_attention
from engine.kernels.rope_store import rope_store
from engine.kernels.sampling import SamplingWorkspace, sample_tokens
from engine.kernels.sampling_state import SamplingState
from engine.kernels.step_begin import step_begin
from engine.kernels.step_end import step_end
from engine.quantization.packed_format import FORMATS, Code, PackedFormat, PackedWeight, Scale, empty_planes
from modelfiles.gguf import GGMLType

Tensor = torch.Tensor

ARCHITECTURES = (80, 86, 89, 90, 120)
"""Compute capabilities: A100; RTX 30; RTX 40, L4, L40S; H100, H200; RTX 50."""
MAIN = (89, 90)
"""Where variants beyond a kernel's first are compiled too."""
HIDDEN, INTERMEDIATE, VOCAB, HEADS, KV_HEADS, HEAD_DIM, ROWS = 3584, 18944, 152064, 28, 4, 128, 8


@dataclass(frozen=True)
class Case:
    """One call to compile."""

    name: str
    run: Callable[[], object]
    architectures: tuple[int, ...] = ARCHITECTURES
    max_stack_bytes: int = 0
    """Spills that are known and paid for, bytes a thread."""


def make(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="cuda")


def ints(*shape: int) -> Tensor:
    return make(*shape, dtype=torch.int32)


def floats(*shape: int) -> Tensor:
    return make(*shape, dtype=torch.float32)


def caches(
    num_kv_heads: int, head_dim: int, block_size: int, dtype: torch.dtype = torch.bfloat16
) -> tuple[Tensor, Tensor]:
    shape = 100, num_kv_heads, block_size, head_dim
    return make(*shape, dtype=dtype), make(*shape, dtype=dtype)


def scales(k_cache: Tensor) -> dict[str, Any]:
    """Those of a cache of 8 bits, else none."""
    return {name: floats(*k_cache.shape[:3]) for name in ("k_scales", "v_scales") if is_quantized(k_cache.dtype)}


def prefill(
    heads: int,
    kv_heads: int,
    head_dim: int,
    *,
    window: int | None = None,
    softcap: float | None = None,
    block_size: int = 16,
    dtype: torch.dtype = torch.bfloat16,
    kv_dtype: torch.dtype = torch.bfloat16,
) -> None:
    k_cache, v_cache = caches(kv_heads, head_dim, block_size, kv_dtype)
    prefill_attention(
        make(500, heads, head_dim, dtype=dtype), k_cache, v_cache, ints(256, 64), ints(ROWS), ints(ROWS + 1),
        ints(ROWS), 0.1, **scales(k_cache), window=window, softcap=softcap,
    )  # fmt: skip


def decode(
    heads: int,
    kv_heads: int,
    head_dim: int,
    *,
    window: int | None = None,
    softcap: float | None = None,
    dtype: torch.dtype = torch.bfloat16,
    kv_dtype: torch.dtype = torch.bfloat16,
) -> None:
    k_cache, v_cache = caches(kv_heads, head_dim, 32, kv_dtype)
    workspace = Workspace.allocate(ROWS, heads, kv_heads, head_dim, 32, torch.device("cuda"))
    decode_attention(
        make(ROWS, heads, head_dim, dtype=dtype), k_cache, v_cache, ints(ROWS, 64), ints(ROWS), ints(ROWS), 0.1,
        **scales(k_cache), window=window, softcap=softcap, workspace=workspace, splits=16, pdl=True,
    )  # fmt: skip


def rope_decode(
    heads: int,
    kv_heads: int,
    head_dim: int,
    *,
    num_tokens: int = ROWS,
    block_size: int = 16,
    has_norm: bool = False,
    window: int | None = None,
    softcap: float | None = None,
    kv_dtype: torch.dtype = torch.bfloat16,
) -> None:
    k_cache, v_cache = caches(kv_heads, head_dim, block_size, kv_dtype)
    norm = make(head_dim) if has_norm else None
    rope_decode_attention(
        floats(num_tokens, (heads + 2 * kv_heads) * head_dim), floats(num_tokens, 1, head_dim),
        floats(num_tokens, 1, head_dim), k_cache, v_cache, ints(num_tokens, 64), ints(num_tokens), ints(num_tokens),
        heads, 0.1, **scales(k_cache), q_norm=norm, k_norm=norm, eps=1e-6, window=window, softcap=softcap,
        out_dtype=torch.bfloat16, pdl=True,
    )  # fmt: skip


def gated_product(num_tokens: int) -> None:
    norm = DeferredNorm(floats(num_tokens, 448), 1e-6)
    gemv_gated(make(num_tokens, HIDDEN), make(2 * INTERMEDIATE, HIDDEN), "silu", norm=norm, pdl=True)


def products(num_tokens: int) -> None:
    norm = DeferredNorm(floats(num_tokens, 448), 1e-6)
    x, residual, gamma = make(num_tokens, HIDDEN), floats(num_tokens, HIDDEN), make(HIDDEN)
    qkv = (HEADS + 2 * KV_HEADS) * HEAD_DIM
    gemv(x, make(qkv, HIDDEN), make(qkv), norm=norm, out_dtype=torch.float32, pdl=True)
    gemv_residual(x, make(HIDDEN, HIDDEN), residual, gamma, pdl=True)
    gemv_residual(make(num_tokens, INTERMEDIATE), make(HIDDEN, INTERMEDIATE), residual, gamma, pdl=True)
    gemv_argmax(x, make(VOCAB, HIDDEN), norm=norm, pdl=True)


def unfused_products(num_tokens: int) -> None:
    x = make(num_tokens, HIDDEN)
    linear(x, make((HEADS + 2 * KV_HEADS) * HEAD_DIM, HIDDEN), make((HEADS + 2 * KV_HEADS) * HEAD_DIM), pdl=True)
    linear(make(num_tokens, INTERMEDIATE), make(HIDDEN, INTERMEDIATE), pdl=True)
    linear(x, make(VOCAB, HIDDEN), pdl=True)
    linear_gated(x, make(2 * INTERMEDIATE, HIDDEN), "silu", pdl=True)


def shared_rows() -> None:
    tile = DotTile(16, 64, 4, 3, splits=4)
    gemv(make(20, INTERMEDIATE), make(HIDDEN, INTERMEDIATE), make(HIDDEN), tile=tile, pdl=True)


def rope(kv_dtype: torch.dtype = torch.bfloat16) -> None:
    k_cache, v_cache = caches(KV_HEADS, HEAD_DIM, 32, kv_dtype)
    rope_store(
        make(ROWS, (HEADS + 2 * KV_HEADS) * HEAD_DIM), floats(ROWS, 1, HEAD_DIM), floats(ROWS, 1, HEAD_DIM),
        k_cache, v_cache, ints(ROWS, 64), ints(ROWS), ints(ROWS), HEADS, make(HEAD_DIM), make(HEAD_DIM), 1e-6,
        **scales(k_cache), pdl=True,
    )  # fmt: skip


def attention(kv_dtype: torch.dtype) -> None:
    """All kernels that touch the KV cache."""
    rope(kv_dtype)
    rope_decode(28, 4, 128, kv_dtype=kv_dtype)
    decode(28, 4, 128, kv_dtype=kv_dtype)
    prefill(28, 4, 128, kv_dtype=kv_dtype)


def attention_in_float16(kv_dtype: torch.dtype) -> None:
    decode(28, 4, 128, dtype=torch.float16, kv_dtype=kv_dtype)
    prefill(28, 4, 128, dtype=torch.float16, kv_dtype=kv_dtype)


def norms() -> None:
    rms_norm(make(ROWS, HIDDEN), make(HIDDEN), 1e-6, pdl=True)
    add_rms_norm(make(ROWS, HIDDEN), floats(ROWS, HIDDEN), make(HIDDEN), 1e-6, pdl=True)


@dataclass(frozen=True)
class Angles:
    """What `step_begin` asks of a rotary."""

    inv_freq: Tensor
    cos_factor: Tensor
    sin_factor: Tensor


def begin(num_rotaries: int, dtype: torch.dtype) -> None:
    """The begin of a step; its state goes there by a patch."""
    rotaries = [Angles(*(floats(HEAD_DIM) for _ in range(3))) for _ in range(num_rotaries)]
    apply_patch(ints(1 << 20), ints(100), ints(100), pdl=True)
    step_begin(
        ints(ROWS), ints(ROWS), ints(256, 4097), make(VOCAB, HIDDEN), make(HIDDEN, dtype=dtype), 1e-6, rotaries,
        floats(ROWS, HIDDEN), embedding_scale=1.5, pdl=True,
    )  # fmt: skip


def gated_unit(activation: str, dtype: torch.dtype = torch.bfloat16) -> None:
    gated(make(500, 2 * INTERMEDIATE, dtype=dtype), activation, pdl=True)


def end() -> None:
    step_end(floats(ROWS, 2376), ints(ROWS, 2376), ints(ROWS), ints(ROWS), ints(256, 4097), ints(ROWS), pdl=True)


def sampling(vocab_size: int, dtype: torch.dtype, advance: bool) -> None:
    device = torch.device("cuda")
    sample_tokens(
        make(ROWS, vocab_size, dtype=dtype), ints(ROWS), ints(ROWS), ints(256, 4097),
        SamplingState(256, device, vocab_size=vocab_size), SamplingWorkspace(ROWS, vocab_size, device), ints(ROWS),
        advance=advance,
    )  # fmt: skip


def log_probabilities(dtype: torch.dtype) -> None:
    device = torch.device("cuda")
    logprobs(
        make(ROWS, VOCAB, dtype=dtype), ints(ROWS), SamplingState(256, device), ints(ROWS),
        LogprobWorkspace(ROWS, VOCAB, device), floats(ROWS), floats(ROWS, 20), make(ROWS, 20, dtype=torch.int64),
    )  # fmt: skip


def packed_weight(format: PackedFormat, num_rows: int = HIDDEN, num_columns: int = HIDDEN) -> PackedWeight:
    planes = empty_planes(format, num_rows, num_columns, torch.device("cuda"))
    return PackedWeight(planes, format, num_rows, num_columns)


def packed(format: PackedFormat, num_tokens: int) -> None:
    """Products with a matrix that stays quantised, and its rows."""
    weight = packed_weight(format)
    packed_product(make(num_tokens, HIDDEN), weight, make(HIDDEN), pdl=True)
    if num_tokens == 1:
        packed_rows(weight, torch.bfloat16, pdl=True)
        packed_token_rows(weight, torch.bfloat16, ints(ROWS), ints(ROWS), ints(256, 4097), pdl=True)


def packed_gated(num_tokens: int) -> None:
    norm = DeferredNorm(floats(num_tokens, 896), 1e-6)
    gate_up = packed_weight(FORMATS[GGMLType.Q4_K], 2 * INTERMEDIATE)
    packed_gemv_gated(make(num_tokens, HIDDEN), gate_up, "silu", norm=norm, pdl=True)


def packed_others() -> None:
    """The largest types of Q4_K_M: that of the head, and of long rows."""
    down, head = (packed_weight(FORMATS[GGMLType.Q6_K], *shape) for shape in ((HIDDEN, INTERMEDIATE), (VOCAB, HIDDEN)))
    packed_gemv_residual(make(1, INTERMEDIATE), down, floats(1, HIDDEN), make(HIDDEN), pdl=True)
    packed_gemv_argmax(make(1, HIDDEN), head, VOCAB, norm=DeferredNorm(floats(1, 896), 1e-6), pdl=True)


def packed_plain(format: PackedFormat, num_tokens: int = 1) -> None:
    packed_gemv(make(num_tokens, HIDDEN), packed_weight(format), pdl=True)


SCHEME_FORMATS = {
    "AWQ": PackedFormat(Code.NIBBLE, 0, Scale.FLOAT_ZERO, 128),
    "GPTQ of 8 bits, groups of 32": PackedFormat(Code.BYTE, 0, Scale.FLOAT_ZERO, 32),
    "4 bits": PackedFormat(Code.NIBBLE, 8, Scale.FLOAT, 128),
    "INT8": PackedFormat(Code.BYTE, 128, Scale.ROW, 0),
    "FP8": PackedFormat(Code.FP8, 0, Scale.ROW, 0),
    "FP8, blocks": PackedFormat(Code.FP8, 0, Scale.BLOCK, 128),
}
"""What quantised safetensors become: each way to keep codes, and each way to keep scales."""

PACKED_CASES: tuple[Case, ...] = (
    # One type for each format: Q8_0 and IQ4_NL are the same to a kernel.
    *(
        Case(f"packed, {type.name}", partial(packed, format, 1), MAIN)
        for format, type in {format: type for type, format in FORMATS.items()}.items()
    ),
    *(Case(f"packed, {name}", partial(packed, format, 1), (90,)) for name, format in SCHEME_FORMATS.items()),
    # Q6_K spills some registers with these tiles, and is faster for all that than with smaller ones.
    *(
        Case(f"packed, {type.name}, {count} tokens", partial(packed, FORMATS[type], count), (90,), max_stack_bytes=320)
        for type in (GGMLType.Q4_K, GGMLType.Q6_K)
        for count in (32, 64, 128, 256)
    ),
    Case("packed gemv, Q4_K, gated", lambda: packed_gated(1)),
    Case("packed gemv, Q4_K, gated, 2 tokens", lambda: packed_gated(2), (90,)),
    # The head spills some registers with its tile, which was the fastest for all that.
    Case("packed gemv, Q6_K", packed_others, (90,), max_stack_bytes=64),
    *(
        Case(f"packed gemv, {type.name}", partial(packed_plain, FORMATS[type]), (89,))
        for type in (GGMLType.Q5_1, GGMLType.IQ4_XS)
    ),
    Case("packed gemv, AWQ", partial(packed_plain, SCHEME_FORMATS["AWQ"]), (89,)),
    Case("packed gemv, FP8, blocks", partial(packed_plain, SCHEME_FORMATS["FP8, blocks"]), (80, 89)),
    Case("packed gemv, FP8, 2 tokens", partial(packed_plain, SCHEME_FORMATS["FP8"], 2), (80, 90)),
    Case("packed, AWQ, 64 tokens", partial(packed, SCHEME_FORMATS["AWQ"], 64), (90,)),
    # Those that take most of the shared memory there is.
    *(
        Case(f"packed, {name}, 256 tokens", partial(packed, SCHEME_FORMATS[name], 256), (90,), max_stack_bytes=320)
        for name in ("AWQ", "GPTQ of 8 bits, groups of 32", "FP8, blocks")
    ),
    Case("packed, Q4_K, 32 tokens, elsewhere", partial(packed, FORMATS[GGMLType.Q4_K], 32), (80, 86, 89, 120)),
    Case("packed, AWQ, 16 tokens, elsewhere", partial(packed, SCHEME_FORMATS["AWQ"], 16), (80, 86, 89, 120)),
    Case("packed, FP8, blocks, 16 tokens, elsewhere", partial(packed, SCHEME_FORMATS["FP8, blocks"], 16), (80, 120)),
)

CASES: tuple[Case, ...] = (
    *PACKED_CASES,
    Case("prefill_attention, Qwen2.5-7B", lambda: prefill(28, 4, 128)),
    Case("prefill_attention, Gemma 2 9B, window", lambda: prefill(16, 8, 256, window=4096, softcap=50.0), MAIN),
    Case("prefill_attention, Llama 3.2 1B", lambda: prefill(32, 8, 64, block_size=64), MAIN),
    Case("prefill_attention, Phi-3, window", lambda: prefill(32, 32, 96, window=2047, block_size=32), MAIN),
    Case("decode_attention, Qwen2.5-7B", lambda: decode(28, 4, 128)),
    Case("decode_attention, Gemma 2 9B, window", lambda: decode(16, 8, 256, window=4096, softcap=50.0), MAIN),
    Case("rope_decode_attention, Qwen2.5-7B", lambda: rope_decode(28, 4, 128)),
    # Fewer registers than it would like, and some of them on the stack: more programs at once are faster for all that.
    Case(
        "rope_decode_attention, Qwen2.5-7B, 256 sequences",
        lambda: rope_decode(28, 4, 128, num_tokens=256),
        (90,),
        max_stack_bytes=160,
    ),
    Case("rope_decode_attention, Qwen3 8B", lambda: rope_decode(32, 8, 128, block_size=64, has_norm=True), MAIN),
    Case("rope_decode_attention, Gemma 2 9B", lambda: rope_decode(16, 8, 256, window=4096, softcap=50.0), MAIN),
    Case("rope_decode_attention, Llama 3.2 1B", lambda: rope_decode(32, 8, 64, block_size=32), MAIN),
    Case("attention, Qwen2.5-7B, int8 KV", lambda: attention(torch.int8)),
    Case("attention, Qwen2.5-7B, fp8 KV", lambda: attention(torch.float8_e4m3fn)),
    Case(
        "rope_decode_attention, Qwen2.5-7B, 256 sequences, int8 KV",
        lambda: rope_decode(28, 4, 128, num_tokens=256, kv_dtype=torch.int8),
        (90,),
        max_stack_bytes=160,
    ),
    Case(
        "rope_decode_attention, Gemma 2 9B, fp8 KV",
        lambda: rope_decode(16, 8, 256, window=4096, softcap=50.0, kv_dtype=torch.float8_e4m3fn),
        (89,),
    ),
    Case(
        "prefill_attention, Gemma 2 9B, int8 KV",
        lambda: prefill(16, 8, 256, window=4096, softcap=50.0, kv_dtype=torch.int8),
        (90,),
        max_stack_bytes=96,
    ),
    Case("attention in float16, int8 KV", lambda: attention_in_float16(torch.int8), (90,)),
    Case("attention in float16, fp8 KV", lambda: attention_in_float16(torch.float8_e4m3fn), (89,)),
    Case("gemv, gated, 1 token", lambda: gated_product(1)),
    Case("gemv, gated, 16 tokens", lambda: gated_product(16)),
    Case("gemv, the others, 1 token", lambda: products(1), MAIN),
    Case("gemv, the others, 16 tokens", lambda: products(16), MAIN),
    Case("products, 32 tokens", lambda: unfused_products(32), MAIN),
    Case("products, 64 tokens", lambda: unfused_products(64), MAIN),
    Case("products, 128 tokens", lambda: unfused_products(128), (90,)),
    Case("products, rows that programs share", shared_rows, MAIN),
    Case("rope_store", rope),
    Case("rms_norm", norms),
    # The exact reduction of large angles keeps its digits on the stack.
    Case("step_begin", lambda: begin(1, torch.bfloat16), max_stack_bytes=32),
    Case("step_begin, Gemma 3", lambda: begin(2, torch.float32), MAIN, 32),
    Case("step_end", end),
    Case("gated, SiLU in float16", lambda: gated_unit("silu", torch.float16)),
    Case("gated, GELU", lambda: gated_unit("gelu"), MAIN),
    Case("gated, GELU by tanh", lambda: gated_unit("gelu_tanh"), MAIN),
    Case("sampling, Qwen2.5", lambda: sampling(VOCAB, torch.bfloat16, True)),
    Case("sampling, Qwen2.5, float32", lambda: sampling(VOCAB, torch.float32, False), MAIN),
    Case("logprobs", lambda: log_probabilities(torch.bfloat16)),
    Case("logprobs, float32", lambda: log_probabilities(torch.float32), MAIN),
)
