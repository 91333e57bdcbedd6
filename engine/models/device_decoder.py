"""DeviceDecoder: the decoder's forward pass in Triton kernels, for steps whose inputs and state lie on a GPU.

    step_begin                        token ids -> embeddings, first norm, angles
    each layer  product  QKV          | attention, with the rotation and the KV write of rows that decode
                product  output       | residual and norm
                product  gate and up  | activation
                product  down         | residual and norm
    product  head                     logits of the positions that sample

There are two forms of it. With up to FUSED_TOKENS tokens, one a row, every product is a GEMV that takes the norm before
it and the residual or the activation after it along: five launches a layer, and one more for each further type among
the rows of a quantised QKV. All else, prompts and rows with a LoRA adapter included, has its norms in launches of their
own, and products that `kernels.products` chooses by size. `decoder.Decoder` says the same in plain torch; nothing here
looks at a value of the device, so that a CUDA graph can hold all of it. Called by `execution.gpu_steps`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from engine.kernels.decode_attention import Workspace, decode_attention
from engine.kernels.gated import gated
from engine.kernels.gemv import DeferredNorm, gemv, gemv_argmax, gemv_gated, gemv_residual
from engine.kernels.launch import INTERPRETED
from engine.kernels.packed_gemv import (
    is_multipliable,
    packed_gemv,
    packed_gemv_argmax,
    packed_gemv_gated,
    packed_gemv_residual,
)
from engine.kernels.packed_rows import packed_token_rows
from engine.kernels.prefill_attention import prefill_attention
from engine.kernels.product_tiles import MAX_FUSED_TOKENS
from engine.kernels.products import linear, linear_gated, packed_linear
from engine.kernels.rms_norm import add_rms_norm, rms_norm
from engine.kernels.rope_decode_attention import is_fusable, rope_decode_attention
from engine.kernels.rope_store import rope_store
from engine.kernels.step_begin import step_begin
from engine.models.decoder import Decoder, DecoderLayer
from engine.models.layers import Linear
from engine.models.lora import AdapterTokens
from engine.quantization.base import Dense, QuantMethod
from engine.quantization.packed import Packed

Tensor = torch.Tensor
Angles = tuple[Tensor, Tensor]

FUSED_TOKENS = 2
"""Tokens up to which a product is a GEMV that takes its neighbours along; with more, tensor cores and the library are
faster although the norms cost launches of their own (H200, 2026-11-22)."""

MULTIPLIES_PACKED = not INTERPRETED
"""Whether quantised matrices are multiplied with so few tokens by `packed_gemv`. The interpreter would take minutes."""


@dataclass(frozen=True)
class PrefillRows:
    """The rows of a step that bring any number of tokens each, behind those that bring one."""

    rows: Tensor
    """int32 [num_rows], negative: padding, which has no tokens."""
    cu_seqlens: Tensor
    """int32 [num_rows + 1], where each row's tokens begin among those of these rows."""
    starts: Tensor
    """int32 [num_rows], position of each row's first token."""


@dataclass(frozen=True)
class DeviceStep:
    """Inputs of a forward pass."""

    rows: Tensor
    """int32 [num_tokens], each token's row of the state; negative: padding."""
    positions: Tensor
    """int32 [num_tokens]"""
    num_decodes: int
    """Tokens in front that are their row's only one."""
    prefill: PrefillRows | None = None
    """Of the tokens behind them."""
    selection: Tensor | None = None
    """int32 [num_samples], tokens whose logits are wanted; None: all."""
    has_long_row: bool = False
    """A row that decodes is much longer than most; see kernels.tiles."""
    adapters: AdapterTokens | None = None
    """Which tokens have a LoRA adapter; None: none has."""
    selected_adapters: AdapterTokens | None = None
    """The same of the tokens of `selection`."""


@dataclass(frozen=True)
class DeviceState:
    """What a forward pass reads and writes beside the weights."""

    tokens: Tensor
    """int32 [max_rows, max_tokens]"""
    block_tables: Sequence[Tensor]
    """int32 [max_rows, max_blocks], one a KV group."""
    kv_cache: Sequence[tuple[Tensor, Tensor]]
    """K and V of each layer: [num_blocks, num_kv_heads, block_size, head_dim]."""
    kv_scales: Sequence[tuple[Tensor | None, Tensor | None]]
    """Their scales where they are of 8 bits: float32 [num_blocks, num_kv_heads, block_size]."""
    workspace: Workspace


class DeviceDecoder:
    """A decoder and the state that it works on."""

    def __init__(self, decoder: Decoder, state: DeviceState, *, pdl: bool) -> None:
        """
        Args:
            pdl: whether kernels may overlap with their predecessors.
        """
        self.decoder = decoder
        self.config = decoder.config
        self._state = state
        self._pdl = pdl
        weights, config = decoder.weights, decoder.config
        self._embedding = weights.embedding.segments[0]
        self._dtype: torch.dtype = self._embedding.dtype
        matrices = [weights.head] + [
            matrix for layer in weights.layers for matrix in (layer.attention_output, layer.gate_up, layer.down)
        ]
        self._can_fuse = (
            all(self._is_fusable(matrix) and len(matrix.segments) == 1 for matrix in matrices)
            and all(self._is_fusable(layer.qkv) for layer in weights.layers)
            and not config.post_norms
            # The stream is multiplied by a norm's weight before it is divided: float16 could overflow.
            and self._dtype != torch.float16
        )
        ropes = [rope for rope in (config.rope, config.local_rope) if rope is not None]
        self._attends_at_once = all(is_fusable(config.head_dim, rope.rotary_dim, False) for rope in ropes)
        layers_of_group = config.kv_groups
        self._windows = [layers_of_group[group].window for group in decoder.group_of_layer]
        # Gemma rounds the factor to the computing type; in bfloat16 that changes it by up to 0.4 %.
        self._embedding_scale = float(torch.tensor(config.embedding_scale, dtype=self._dtype))
        # Sums of squares that make a norm a factor of 1: the first layer needs no kernel of its own then.
        self._unit_squares = torch.full((FUSED_TOKENS, 1), float(config.hidden_size), device=weights.final_norm.device)
        self._following_norms = [layer.attention_norm for layer in weights.layers[1:]] + [weights.final_norm]

    def finds_candidates(self, num_decodes: int, num_others: int) -> bool:
        """Whether a step of so many tokens can do without logits, if all its rows are greedy."""
        head = self.decoder.weights.head
        most = MAX_FUSED_TOKENS if _dense(head) is not None else FUSED_TOKENS
        return self._is_fusable(head) and len(head.segments) == 1 and num_others == 0 and num_decodes <= most

    def candidates(self, step: DeviceStep) -> tuple[Tensor, Tensor]:
        """The likeliest tokens of a step: values and ids, one for each program of the head's product."""
        hidden, norm = self._hidden(step)
        head, vocab_size = self.decoder.weights.head, self.config.vocab_size
        segment = head.segments[0]
        if isinstance(segment, Packed):
            return packed_gemv_argmax(hidden, segment.weight, vocab_size, head.bias, norm=norm, pdl=self._pdl)
        return gemv_argmax(hidden, _matrix(head)[:vocab_size], head.bias, norm=norm, pdl=self._pdl)

    def logits(self, step: DeviceStep) -> Tensor:
        """[num_samples, vocab_size]; of the computing type, float32 where it costs nothing or the model caps them."""
        head = self.decoder.weights.head
        hidden, norm = self._hidden(step)
        logits = self._product(hidden, head) if norm is None else self._fused_product(hidden, head, norm)
        logits = logits[:, : self.config.vocab_size]
        if self.config.final_softcap is not None:
            # In place but for the type: a large vocabulary makes this the widest moment of a step.
            logits = logits.float().div_(self.config.final_softcap).tanh_().mul_(self.config.final_softcap)
        return logits

    def _hidden(self, step: DeviceStep) -> tuple[Tensor, DeferredNorm | None]:
        """What the head reads, and what completes its norm where that is not done."""
        is_short = step.prefill is None and step.num_decodes <= FUSED_TOKENS
        if self._can_fuse and is_short and step.adapters is None:
            return self._fused(step)
        return self._general(step), None

    def _begin(self, step: DeviceStep) -> tuple[Tensor, Tensor, list[Angles]]:
        """The residual stream, the first layer's normed input, and the angles of each kind of layer."""
        config, weights = self.config, self.decoder.weights
        residual = torch.empty(len(step.rows), config.hidden_size, dtype=torch.float32, device=step.rows.device)
        embedding, is_gathered = self._embedding, False
        if isinstance(embedding, Packed):
            tokens = self._state.tokens
            table = packed_token_rows(embedding.weight, self._dtype, step.rows, step.positions, tokens, pdl=self._pdl)
            is_gathered = True
        else:
            assert isinstance(embedding, Dense)
            table = embedding.weight
        hidden, angles = step_begin(
            step.rows, step.positions, self._state.tokens, table, weights.layers[0].attention_norm,
            config.rms_norm_eps, self.decoder.rotaries, residual,
            embedding_scale=self._embedding_scale, is_gathered=is_gathered, pdl=self._pdl,
        )  # fmt: skip
        return residual, hidden, angles

    def _fused(self, step: DeviceStep) -> tuple[Tensor, DeferredNorm]:
        """The last layer's output times the final norm's weight, and what completes that norm."""
        config = self.config
        residual, hidden, angles = self._begin(step)
        norm: DeferredNorm | None = None
        for number, layer in enumerate(self.decoder.layers):
            qkv = self._fused_product(hidden, layer.qkv, norm)
            attended = self._attend(number, layer, qkv, step, angles)
            hidden, squares = self._fused_residual(attended, layer.attention_output, residual, layer.mlp_norm)
            hidden = self._fused_gated(hidden, layer.gate_up, DeferredNorm(squares, config.rms_norm_eps))
            hidden, squares = self._fused_residual(hidden, layer.down, residual, self._following_norms[number])
            norm = DeferredNorm(squares, config.rms_norm_eps)
        assert norm is not None, "a model has layers"
        return hidden, norm

    def _fused_product(self, x: Tensor, matrix: Linear, norm: DeferredNorm | None) -> Tensor:
        """float32, which spares a rounding."""
        if isinstance(matrix.segments[0], Dense):
            return gemv(x, _matrix(matrix), matrix.bias, norm=norm, out_dtype=torch.float32, pdl=self._pdl)
        num_rows = sum(segment.num_rows for segment in matrix.segments)
        y = torch.empty(len(x), num_rows, dtype=torch.float32, device=x.device)
        for segment, bias, out in _parts(matrix, y):
            assert isinstance(segment, Packed)
            completed = norm or DeferredNorm(self._unit_squares[: len(x)], 0.0)
            packed_gemv(x, segment.weight, bias, norm=completed, out=out, pdl=self._pdl)
        return y

    def _fused_residual(self, x: Tensor, matrix: Linear, residual: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
        segment = matrix.segments[0]
        if isinstance(segment, Packed):
            return packed_gemv_residual(x, segment.weight, residual, gamma, matrix.bias, pdl=self._pdl)
        return gemv_residual(x, _matrix(matrix), residual, gamma, matrix.bias, pdl=self._pdl)

    def _fused_gated(self, x: Tensor, matrix: Linear, norm: DeferredNorm) -> Tensor:
        segment, activation = matrix.segments[0], self.config.activation
        if isinstance(segment, Packed):
            return packed_gemv_gated(x, segment.weight, activation, matrix.bias, norm=norm, pdl=self._pdl)
        return gemv_gated(x, _matrix(matrix), activation, matrix.bias, norm=norm, pdl=self._pdl)

    def _is_fusable(self, matrix: Linear) -> bool:
        """Whether its products with few tokens are GEMVs: it is dense and in one piece, or quantised throughout."""
        return _dense(matrix) is not None or all(self._is_multipliable(segment) for segment in matrix.segments)

    def _is_multipliable(self, segment: QuantMethod, num_tokens: int = FUSED_TOKENS) -> bool:
        """Whether `packed_gemv` takes it with so many tokens."""
        return (
            MULTIPLIES_PACKED
            and isinstance(segment, Packed)
            and is_multipliable(segment.weight, self._dtype, num_tokens)
        )

    def _general(self, step: DeviceStep) -> Tensor:
        """The normed outputs of the last layer at the positions that are wanted."""
        eps, pdl = self.config.rms_norm_eps, self._pdl
        residual, hidden, angles = self._begin(step)
        adapters = step.adapters
        last = self.config.num_layers - 1
        for number, layer in enumerate(self.decoder.layers):
            qkv = self._adapted(hidden, layer.qkv, adapters, number, "qkv")
            attended = self._attend(number, layer, qkv, step, angles)
            if number == last and step.selection is not None:
                # Nobody reads what the last layer makes of the other tokens; their keys and values are stored.
                attended = attended.index_select(0, step.selection)
                residual = residual.index_select(0, step.selection)
                adapters = step.selected_adapters
            x = self._adapted(attended, layer.attention_output, adapters, number, "attention_output")
            if layer.post_attention_norm is not None:
                x = rms_norm(x, layer.post_attention_norm, eps, pdl=pdl)
            hidden, _ = add_rms_norm(x, residual, layer.mlp_norm, eps, pdl=pdl)
            gated_up = self._gated(hidden, layer.gate_up, adapters, number)
            x = self._adapted(gated_up, layer.down, adapters, number, "down")
            if layer.post_mlp_norm is not None:
                x = rms_norm(x, layer.post_mlp_norm, eps, pdl=pdl)
            hidden, _ = add_rms_norm(x, residual, self._following_norms[number], eps, pdl=pdl)
        return hidden

    def _attend(
        self, number: int, layer: DecoderLayer, qkv: Tensor, step: DeviceStep, angles: Sequence[Angles]
    ) -> Tensor:
        """[num_tokens, (num_heads + 2 * num_kv_heads) * head_dim] -> [num_tokens, num_heads * head_dim]"""
        config, state = self.config, self._state
        cos, sin = angles[self.decoder.rotary_of_layer[number]]
        (k_cache, v_cache), (k_scales, v_scales) = state.kv_cache[number], state.kv_scales[number]
        table = state.block_tables[self.decoder.group_of_layer[number]]
        scale, window, softcap = config.attention_scale, self._windows[number], config.attention_softcap
        dtype = self._dtype
        if step.prefill is None and self._attends_at_once:
            return rope_decode_attention(
                qkv, cos, sin, k_cache, v_cache, table, step.rows, step.positions, config.num_heads, scale,
                k_scales=k_scales, v_scales=v_scales, q_norm=layer.q_norm, k_norm=layer.k_norm,
                eps=config.rms_norm_eps, window=window, softcap=softcap, workspace=state.workspace,
                has_long_row=step.has_long_row, out_dtype=dtype, pdl=self._pdl,
            )  # fmt: skip
        q = rope_store(
            qkv, cos, sin, k_cache, v_cache, table, step.rows, step.positions, config.num_heads, layer.q_norm,
            layer.k_norm, config.rms_norm_eps, k_scales=k_scales, v_scales=v_scales, out_dtype=dtype, pdl=self._pdl,
        )  # fmt: skip
        decodes = step.num_decodes
        attended = torch.empty(len(q), config.q_size, dtype=dtype, device=q.device)
        if decodes > 0:
            decode_attention(
                q[:decodes], k_cache, v_cache, table, step.rows[:decodes], step.positions[:decodes], scale,
                k_scales=k_scales, v_scales=v_scales, window=window, softcap=softcap, workspace=state.workspace,
                has_long_row=step.has_long_row, out=attended[:decodes], pdl=self._pdl,
            )  # fmt: skip
        if step.prefill is not None:
            prefill = step.prefill
            prefill_attention(
                q[decodes:], k_cache, v_cache, table, prefill.rows, prefill.cu_seqlens, prefill.starts, scale,
                k_scales=k_scales, v_scales=v_scales, window=window, softcap=softcap, out=attended[decodes:],
            )  # fmt: skip
        return attended

    def _adapted(self, x: Tensor, matrix: Linear, adapters: AdapterTokens | None, layer: int, name: str) -> Tensor:
        """A product of a layer, with what the tokens' adapters add to it."""
        y = self._product(x, matrix)
        return y if adapters is None else adapters.add(y, x, layer, name)

    def _product(self, x: Tensor, matrix: Linear) -> Tensor:
        if len(matrix.segments) == 1:
            return self._segment_product(x, matrix.segments[0], matrix.bias, None)
        y = torch.empty(len(x), sum(segment.num_rows for segment in matrix.segments), dtype=x.dtype, device=x.device)
        for segment, bias, out in _parts(matrix, y):
            self._segment_product(x, segment, bias, out)
        return y

    def _segment_product(self, x: Tensor, segment: QuantMethod, bias: Tensor | None, out: Tensor | None) -> Tensor:
        """Writes into `out` where it is given."""
        if isinstance(segment, Packed):
            if self._is_multipliable(segment, len(x)):
                return packed_gemv(x, segment.weight, bias, out=out, pdl=self._pdl)
            return packed_linear(x, segment.weight, bias, out=out, pdl=self._pdl)
        assert isinstance(segment, Dense)
        y = linear(x, segment.weight, bias, pdl=self._pdl)
        return y if out is None else out.copy_(y)

    def _gated(self, x: Tensor, matrix: Linear, adapters: AdapterTokens | None, layer: int) -> Tensor:
        weight = _dense(matrix)
        if weight is None or adapters is not None:
            y = self._adapted(x, matrix, adapters, layer, "gate_up")
            return gated(y, self.config.activation, pdl=self._pdl)
        return linear_gated(x, weight, self.config.activation, matrix.bias, pdl=self._pdl)


def _parts(matrix: Linear, y: Tensor) -> Iterator[tuple[QuantMethod, Tensor | None, Tensor]]:
    """The segments of a matrix, with their part of its bias and of its product `y`."""
    start = 0
    for segment in matrix.segments:
        part = slice(start, start + segment.num_rows)
        yield segment, None if matrix.bias is None else matrix.bias[part], y[:, part]
        start += segment.num_rows


def _dense(matrix: Linear) -> Tensor | None:
    """The weight of a matrix that is kept as it is, in one piece; else None."""
    first = matrix.segments[0]
    return first.weight if len(matrix.segments) == 1 and isinstance(first, Dense) else None


def _matrix(matrix: Linear) -> Tensor:
    weight = _dense(matrix)
    assert weight is not None, "only dense matrices are fused"
    return weight
