"""Decoder: the forward pass of every architecture in the table. One file, because they differ in data only.

    x = embed(ids)
    for each layer:  a = attention(norm(x));  x = x + [norm](a);  m = mlp(norm(x));  x = x + [norm](m)
    logits = head(norm(x))

The norms in brackets are Gemma 2's and 3's. Additions are fused into the norm that follows them, so between layers
there are two tensors: `hidden`, which is still to be added, and `residual`. Built by `execution.weights`, called by
the runner; all state comes in through ForwardContext. Mixed batches take this one path: nothing here asks what is
prefill.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from engine.config import ModelConfig
from engine.kernels import reference as kernels
from engine.models.forward_context import ForwardContext
from engine.models.layers import Linear, Rotary

Tensor = torch.Tensor


@dataclass(frozen=True, kw_only=True)
class DecoderLayer:
    """Weights of one block."""

    attention_norm: Tensor
    """[hidden_size], as all norms but the two below."""
    qkv: Linear
    """Rows of Q, then K, then V."""
    q_norm: Tensor | None
    """[head_dim]"""
    k_norm: Tensor | None
    attention_output: Linear
    post_attention_norm: Tensor | None
    mlp_norm: Tensor
    gate_up: Linear
    """Rows of gate, then up."""
    down: Linear
    post_mlp_norm: Tensor | None


@dataclass(frozen=True, kw_only=True)
class DecoderWeights:
    """All tensors of a model, on one device."""

    embedding: Linear
    """One segment; also the head where the two are tied."""
    layers: tuple[DecoderLayer, ...]
    final_norm: Tensor
    head: Linear
    num_bytes: int


class Decoder:
    """A decoder-only transformer."""

    def __init__(
        self,
        config: ModelConfig,
        weights: DecoderWeights,
        device: torch.device,
        layers: Iterable[DecoderLayer] | None = None,
    ) -> None:
        """
        Args:
            layers: those of `weights`, in order, with their matrices on the device when they are reached; where some
                of them do not fit there.
        """
        self.config = config
        self.weights = weights
        self.layers = weights.layers if layers is None else layers
        # Scalings that depend on the context's length take the model's own, not what memory allows today: the same
        # prompt must not mean something else after a Resize.
        ropes = [config.rope] if config.local_rope is None else [config.rope, config.local_rope]
        self.rotaries = [Rotary(rope, config.max_position_embeddings, device) for rope in ropes]
        self.rotary_of_layer = [int(config.rope_of(layer) is not config.rope) for layer in range(config.num_layers)]
        self.group_of_layer = [0] * config.num_layers
        for number, group in enumerate(config.kv_groups):
            for layer in group.layers:
                self.group_of_layer[layer] = number

    def forward(self, context: ForwardContext) -> Tensor:
        """Hidden states before the final norm: [num_tokens, hidden_size]."""
        config = self.config
        eps = config.rms_norm_eps
        residual = self._embed(context.token_ids)
        angles = [rotary.angles(context.positions) for rotary in self.rotaries]
        hidden = kernels.rms_norm(residual, self.weights.layers[0].attention_norm, eps)
        last = config.num_layers - 1
        for number, layer in enumerate(self.layers):
            cos, sin = angles[self.rotary_of_layer[number]]
            plan = context.plans[self.group_of_layer[number]]
            (k_cache, v_cache), scales = context.kv_cache[number], context.kv_scales[number]
            qkv = _product(context, number, "qkv", layer.qkv, hidden)
            q = kernels.rope_store(
                qkv, cos, sin, k_cache, v_cache, plan, config.num_heads, layer.q_norm, layer.k_norm, eps, *scales
            )
            attended = kernels.paged_attention(
                q, k_cache, v_cache, plan, config.attention_scale, config.attention_softcap, *scales
            )
            hidden = _product(context, number, "attention_output", layer.attention_output, attended)
            if layer.post_attention_norm is not None:
                hidden = kernels.rms_norm(hidden, layer.post_attention_norm, eps)
            hidden, residual = kernels.add_rms_norm(hidden, residual, layer.mlp_norm, eps)
            gate_up = _product(context, number, "gate_up", layer.gate_up, hidden)
            hidden = _product(context, number, "down", layer.down, kernels.gated(gate_up, config.activation))
            if layer.post_mlp_norm is not None:
                hidden = kernels.rms_norm(hidden, layer.post_mlp_norm, eps)
            if number < last:
                following = self.weights.layers[number + 1].attention_norm
                hidden, residual = kernels.add_rms_norm(hidden, residual, following, eps)
        return residual + hidden

    def normed(self, hidden: Tensor) -> Tensor:
        """The final norm: [n, hidden_size] -> the same. What embeddings are pooled from."""
        return kernels.rms_norm(hidden, self.weights.final_norm, self.config.rms_norm_eps)

    def logits(self, hidden: Tensor) -> Tensor:
        """[n, hidden_size] of `forward` -> float32 [n, vocab_size]."""
        logits = self.weights.head(self.normed(hidden)).float()[:, : self.config.vocab_size]
        if self.config.final_softcap is not None:
            logits = torch.tanh(logits / self.config.final_softcap) * self.config.final_softcap
        return logits

    def _embed(self, token_ids: Tensor) -> Tensor:
        embedded = self.weights.embedding.segments[0].embed(token_ids)
        if self.config.embedding_scale != 1.0:
            # Gemma rounds the factor to the computing type; in bfloat16 that changes it by up to 0.4 %.
            embedded = embedded * torch.tensor(self.config.embedding_scale, dtype=embedded.dtype)
        return embedded


def _product(context: ForwardContext, layer: int, name: str, matrix: Linear, x: Tensor) -> Tensor:
    """A product of a layer, with what the tokens' adapters add to it."""
    y = matrix(x)
    return y if context.adapters is None else context.adapters.add(y, x, layer, name)


def activation_bytes(config: ModelConfig, num_tokens: int, num_logit_rows: int, itemsize: int) -> int:
    """What a forward pass of `num_tokens` holds at its widest, by calculation: no profiling run.

    The widest moments are the MLP (gate and up, their product, hidden, residual and a float32 copy of a norm) and the
    head, whose logits are float32 and of which sampling keeps up to three copies.
    """
    attention = (config.q_size * 3 + config.kv_size * 4) * itemsize
    mlp = 3 * config.intermediate_size * itemsize
    stream = config.hidden_size * (3 * itemsize + 4)
    return num_tokens * (stream + max(attention, mlp)) + math.ceil(num_logit_rows * config.vocab_size * 4 * 3)
