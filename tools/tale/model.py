"""tale's network for training: a plain Llama, with attention kept within each document of a packed row.

Shapes: B rows, T tokens, D hidden, H heads, K KV heads, d head_dim. `state_for_hf` names the tensors as transformers'
LlamaForCausalLM does; rotary halves are laid out as there (rotate-half), so no permutation is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention


@dataclass(frozen=True)
class Shape:
    """The sizes; every width is a multiple of 256, so that 256-element quantisation blocks fit."""

    vocab_size: int = 4096
    hidden_size: int = 256
    intermediate_size: int = 768
    num_layers: int = 7
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 64
    rope_theta: float = 100_000.0
    norm_eps: float = 1e-5
    max_position_embeddings: int = 8192


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding; x [B, heads, T, d], cos and sin [T, d / 2]."""
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


def document_blocks(documents: Tensor, block: int = 128) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Which key blocks each query block sees in part and in whole.

    Args:
        documents: [B, T], numbers that never decrease along a row; T is a multiple of `block`.

    Returns:
        Count [B, 1, blocks] and order [B, 1, blocks, blocks] of the partly seen blocks, then of the wholly seen ones.
    """
    length = documents.shape[1]
    first = documents[:, ::block]  # [B, blocks]: the number at each block's start
    last = documents[:, block - 1 :: block]
    index = torch.arange(length // block, device=documents.device)
    before = index[:, None] >= index[None, :]
    touched = before & (last[:, None, :] >= first[:, :, None])  # [B, q blocks, kv blocks]
    whole = (index[:, None] > index[None, :]) & (first[:, None, :] == last[:, :, None])

    def ordered(blocks: Tensor) -> tuple[Tensor, Tensor]:
        count = blocks.sum(-1, dtype=torch.int32)
        order = blocks.to(torch.int32).argsort(dim=-1, descending=True, stable=True).to(torch.int32)
        return count[:, None].contiguous(), order[:, None].contiguous()

    return *ordered(touched & ~whole), *ordered(whole)


def document_mask(documents: Tensor, blocks: tuple[Tensor, Tensor, Tensor, Tensor], block: int = 128) -> BlockMask:
    """Causal attention within each document, from `document_blocks`."""

    def visible(b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
        return (q >= kv) & (documents[b, q] == documents[b, kv])

    return BlockMask.from_kv_blocks(*blocks, BLOCK_SIZE=block, mask_mod=visible)


class Layer(nn.Module):
    """One decoder layer."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        size, kv_size = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
        self.input_layernorm = nn.RMSNorm(shape.hidden_size, eps=shape.norm_eps)
        self.q_proj = nn.Linear(shape.hidden_size, size, bias=False)
        self.k_proj = nn.Linear(shape.hidden_size, kv_size, bias=False)
        self.v_proj = nn.Linear(shape.hidden_size, kv_size, bias=False)
        self.o_proj = nn.Linear(size, shape.hidden_size, bias=False)
        self.post_attention_layernorm = nn.RMSNorm(shape.hidden_size, eps=shape.norm_eps)
        self.gate_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.up_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.down_proj = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: BlockMask | Tensor) -> Tensor:
        """x [B, T, D]; mask: a block mask (flex attention) or a dense boolean [B, 1, T, T]."""
        shape = self.shape
        rows, length, _ = x.shape
        h = self.input_layernorm(x)
        q = self.q_proj(h).view(rows, length, shape.num_heads, shape.head_dim).transpose(1, 2)
        k = self.k_proj(h).view(rows, length, shape.num_kv_heads, shape.head_dim).transpose(1, 2)
        v = self.v_proj(h).view(rows, length, shape.num_kv_heads, shape.head_dim).transpose(1, 2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if isinstance(mask, BlockMask):
            attended = flex_attention(q, k, v, block_mask=mask, enable_gqa=True)
            assert isinstance(attended, Tensor)
        else:
            attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
        x = x + self.o_proj(attended.transpose(1, 2).reshape(rows, length, -1))
        h = self.post_attention_layernorm(x)
        out: Tensor = x + self.down_proj(F.silu(self.gate_proj(h)) * self.up_proj(h))
        return out


class Tale(nn.Module):
    """The language model; the output layer is the embedding."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.num_layers))
        self.norm = nn.RMSNorm(shape.hidden_size, eps=shape.norm_eps)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                scale = 0.02 if "embed" in name else shape.hidden_size**-0.5
                nn.init.normal_(parameter, std=scale)
                if name.endswith(("o_proj.weight", "down_proj.weight")):
                    nn.init.zeros_(parameter)

    def rotary(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Cosines and sines, each [length, head_dim / 2]."""
        half = self.shape.head_dim // 2
        inverse = self.shape.rope_theta ** (-torch.arange(half, dtype=torch.float32, device=device) / half)
        angles = torch.outer(torch.arange(length, dtype=torch.float32, device=device), inverse)
        return angles.cos(), angles.sin()

    def forward(self, ids: Tensor, mask: BlockMask | Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Final hidden states [B, T, D] of ids [B, T]."""
        x = self.embed_tokens(ids)
        if torch.is_autocast_enabled(x.device.type):
            x = x.bfloat16()  # the residual stream is rounded as it will be at inference
        for layer in self.layers:
            x = layer(x, cos, sin, mask)
        normed: Tensor = self.norm(x)
        return normed

    def loss(
        self, ids: Tensor, targets: Tensor, weights: Tensor, mask: BlockMask | Tensor, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Sum of weighted losses and sum of weights; targets and weights [B, T], aligned with ids."""
        hidden = self(ids, mask, cos, sin)
        logits = F.linear(hidden, self.embed_tokens.weight).float()
        losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        flat = weights.flatten()
        return (losses * flat).sum(), flat.sum()

    def state_for_hf(self) -> dict[str, Tensor]:
        """The weights in bf16 under transformers' names."""
        state = {}
        for name, tensor in self.state_dict().items():
            for part in ("q_proj", "k_proj", "v_proj", "o_proj"):
                name = name.replace(f".{part}", f".self_attn.{part}")
            for part in ("gate_proj", "up_proj", "down_proj"):
                name = name.replace(f".{part}", f".mlp.{part}")
            state[f"model.{name}"] = tensor.detach().to(torch.bfloat16).contiguous().cpu()
        return state

    def load_hf(self, state: dict[str, Tensor]) -> None:
        """The inverse of `state_for_hf`, to go on from saved weights."""
        own = {
            name.removeprefix("model.").replace("self_attn.", "").replace("mlp.", ""): t.float()
            for name, t in state.items()
        }
        self.load_state_dict(own)


def hf_config(shape: Shape, *, eos_token_ids: list[int], bos_token_id: int | None) -> dict[str, Any]:
    """config.json for LlamaForCausalLM."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": bos_token_id,
        "eos_token_id": eos_token_ids,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "hidden_size": shape.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": shape.intermediate_size,
        "max_position_embeddings": shape.max_position_embeddings,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": shape.num_heads,
        "num_hidden_layers": shape.num_layers,
        "num_key_value_heads": shape.num_kv_heads,
        "pretraining_tp": 1,
        "rms_norm_eps": shape.norm_eps,
        "rope_scaling": None,
        "rope_theta": shape.rope_theta,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": shape.vocab_size,
    }
