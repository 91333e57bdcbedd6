"""Encoder: the forward pass of BERT and its kin, in plain torch, on a CPU and on a GPU. One file, as for decoders.

    x = norm(word + type + position)
    for each layer:  x = norm(x + attention(x));  x = norm(x + mlp(x))

Texts of a pass lie behind each other without padding, which is most of the work; only attention, which must not look
from one text into another, spreads them out over rows of the longest one's length. There is no KV cache, because no
text is ever continued. Built by `execution.encoder_weights`, called by `execution.encoder_runner`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from engine.encoder_config import EncoderConfig
from engine.kernels.reference import rotate
from engine.models.layers import Linear, Rotary

Tensor = torch.Tensor
MAX_DISTANCE = 128
"""From here on all distances are one."""


@dataclass(frozen=True)
class LayerNorm:
    """A norm with a bias."""

    weight: Tensor
    bias: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


@dataclass(frozen=True, kw_only=True)
class EncoderLayer:
    """Weights of one block."""

    qkv: Linear
    """Rows of Q, then K, then V."""
    attention_output: Linear
    attention_norm: LayerNorm
    gate: Linear | None
    up: Linear
    down: Linear
    output_norm: LayerNorm


@dataclass(frozen=True, kw_only=True)
class EncoderWeights:
    """All tensors of a model, on one device."""

    word_embedding: Linear
    """One segment."""
    type_embedding: Tensor | None
    """[type_vocab_size, hidden_size]"""
    position_embedding: Tensor | None
    """[num_positions, hidden_size]"""
    relative_bias: Tensor | None
    """[num_relative_buckets, num_heads]"""
    embedding_norm: LayerNorm
    layers: tuple[EncoderLayer, ...]
    head_dense: Linear | None
    head_output: Linear | None
    num_bytes: int


@dataclass(frozen=True)
class EncoderBatch:
    """The texts of one pass."""

    token_ids: Tensor
    """int64 [num_tokens]"""
    type_ids: Tensor
    """int64 [num_tokens]: 0 for a text, 1 for the second of a pair."""
    positions: Tensor
    """int64 [num_tokens], within each text."""
    counts: tuple[int, ...]
    """Tokens of each text."""
    slots: Tensor
    """int64 [num_tokens]: place in rows of the longest text's length."""

    @classmethod
    def of(cls, texts: Sequence[Sequence[int]], second_starts: Sequence[int], device: torch.device) -> EncoderBatch:
        """
        Args:
            second_starts: position of each pair's second text; 0 for a text alone.
        """
        counts = tuple(len(text) for text in texts)
        lengths = torch.tensor(counts)
        positions = torch.cat([torch.arange(count) for count in counts])
        text_of_token = torch.arange(len(counts)).repeat_interleave(lengths)
        starts = torch.tensor([start or len(text) for start, text in zip(second_starts, texts, strict=True)])
        return cls(
            token_ids=torch.tensor([token_id for text in texts for token_id in text]).to(device),
            type_ids=(positions >= starts[text_of_token]).long().to(device),
            positions=positions.to(device),
            counts=counts,
            slots=(text_of_token * max(counts) + positions).to(device),
        )

    def mask(self) -> Tensor | None:
        """Which keys are there: bool [num_texts, 1, 1, longest]; None where all are."""
        longest = max(self.counts)
        if min(self.counts) == longest:
            return None
        device = self.slots.device
        return (torch.arange(longest, device=device) < torch.tensor(self.counts, device=device)[:, None])[:, None, None]


class Encoder:
    """A transformer that reads texts in both directions."""

    def __init__(self, config: EncoderConfig, weights: EncoderWeights, device: torch.device) -> None:
        self.config = config
        self.weights = weights
        rope = config.rope
        self.rotary = None if rope is None else Rotary(rope, config.max_position_embeddings, device)

    def forward(self, batch: EncoderBatch) -> Tensor:
        """Hidden states: [num_tokens, hidden_size]."""
        x = self._embed(batch)
        mask = batch.mask()
        bias = self._bias(max(batch.counts), mask)
        angles = None if self.rotary is None else self.rotary.angles(batch.positions)
        for layer in self.weights.layers:
            x = layer.attention_norm(x + layer.attention_output(self._attend(layer.qkv(x), batch, bias, angles)))
            up = layer.up(x)
            inner = self._activate(up) if layer.gate is None else self._activate(layer.gate(x)).mul_(up)
            x = layer.output_norm(x + layer.down(inner))
        return x

    def scores(self, first: Tensor) -> Tensor:
        """Hidden states of first tokens [n, hidden_size] -> what a cross-encoder says: float32 [n, num_labels]."""
        head, output = self.weights.head_dense, self.weights.head_output
        assert output is not None, "a model without a head gives no scores"
        if head is not None:
            dense = head(first)
            first = F.relu(dense) if self.config.row.head_activation == "relu" else torch.tanh(dense)
        return output(first).float()

    def _embed(self, batch: EncoderBatch) -> Tensor:
        weights = self.weights
        x = weights.word_embedding.segments[0].embed(batch.token_ids)
        if weights.type_embedding is not None:
            # Models with one row were trained on pairs of one type.
            x = x + weights.type_embedding[batch.type_ids.clamp(max=self.config.type_vocab_size - 1)]
        if weights.position_embedding is not None:
            x = x + weights.position_embedding[batch.positions + self.config.position_offset]
        return weights.embedding_norm(x)

    def _bias(self, longest: int, mask: Tensor | None) -> Tensor | None:
        """What attention adds to its scores, for the longest text of the pass; the mask where that is all."""
        table = self.weights.relative_bias
        if table is None:
            return mask
        positions = torch.arange(longest, device=table.device)
        buckets = relative_buckets(positions - positions[:, None], self.config.num_relative_buckets)
        bias = table[buckets].permute(2, 0, 1)[None]  # [1, num_heads, queries, keys]
        return bias if mask is None else bias.masked_fill(~mask, -torch.inf)

    def _attend(
        self, qkv: Tensor, batch: EncoderBatch, bias: Tensor | None, angles: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        """[num_tokens, 3 * hidden_size] -> [num_tokens, hidden_size]"""
        num_texts, longest, hidden = len(batch.counts), max(batch.counts), self.config.hidden_size
        heads = qkv.view(-1, 3, self.config.num_heads, self.config.head_dim)
        if angles is not None:
            turned = [rotate(heads[:, which], *angles) for which in (0, 1)]
            heads = torch.stack([*turned, heads[:, 2]], dim=1)
        grid = heads.reshape(-1, 3 * hidden)
        has_gaps = min(batch.counts) < longest
        if has_gaps:
            # Zeros, not what memory holds: a mask keeps a NaN's weight at 0, and 0 * NaN is NaN.
            spread = grid.new_zeros(num_texts * longest, 3 * hidden)
            spread[batch.slots] = grid
            grid = spread
        q, k, v = grid.view(num_texts, longest, 3, self.config.num_heads, -1).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        rows = attended.transpose(1, 2).reshape(num_texts * longest, hidden)
        return rows[batch.slots] if has_gaps else rows

    def _activate(self, x: Tensor) -> Tensor:
        match self.config.activation:
            case "gelu":
                return F.gelu(x)
            case "gelu_tanh":
                return F.gelu(x, approximate="tanh")
            case "relu":
                return F.relu(x)
            case "silu":
                return F.silu(x)


def relative_buckets(distances: Tensor, num_buckets: int) -> Tensor:
    """T5's buckets: half for keys before the query, half for those behind it; of each, half for one distance alone, the
    rest for ranges that grow with it, up to MAX_DISTANCE.

    Args:
        distances: int64, key's position less the query's.
        num_buckets: a multiple of 4.

    Source: "Exploring the Limits of Transfer Learning" (arXiv 1910.10683), section 2.1, and its code.
    """
    half, exact = num_buckets // 2, num_buckets // 4
    far = distances.abs()
    share = (far.clamp(min=1).float() / exact).log() / math.log(MAX_DISTANCE / exact)
    ranged = (exact + (share * (half - exact)).long()).clamp(max=half - 1)
    return torch.where(far < exact, far, ranged) + half * (distances > 0)


def encoder_activation_bytes(config: EncoderConfig, num_tokens: int, itemsize: int) -> int:
    """What a pass of `num_tokens` holds at its widest, by calculation.

    Attention holds Q, K and V three times, once rotated and once spread out, and its result; spreading may double a
    pass that holds texts of several lengths. The MLP holds the gate and what it is multiplied with.
    """
    attention = 2 * 11 * config.hidden_size
    mlp = (3 if config.row.is_gated else 2) * config.intermediate_size
    if config.row.has_relative_bias:  # a number for each pair of tokens and each head
        attention += 2 * config.num_heads * config.max_position_embeddings
    return num_tokens * (4 * config.hidden_size + max(attention, mlp)) * itemsize
