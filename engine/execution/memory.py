"""How a device's memory is shared among weights, the KV cache and the rest, by calculation: no profiling run.

    limit = the budget, or what is free less what is left to other programs
    limit >= weights + activations + graphs + KV cache

Where a GPU cannot hold all weights, layers stay in the host's memory (`models.offload`), as few as possible. On a
shared machine the KV cache takes what is useful, not what is there. Where nothing will do, the error says what is
needed, what there is and what would fit. Called by the runner before a model is loaded, and by Resize and Wake; pure
functions, so that every size of card can be tested.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from engine.config import ModelConfig
from engine.execution.device import DeviceMemory
from engine.execution.errors import ModelTooLarge, mebibytes
from engine.execution.kv_cache import block_bytes
from engine.execution.weight_table import WeightSizes
from engine.models.decoder import activation_bytes
from engine.models.offload import offloaded_layers
from engine.quantization.packed_format import MAX_PRODUCT_TOKENS

LEFT_BYTES = 1 << 30
LEFT_SHARE = 0.08
"""Without a budget, this much or this part of a GPU, whichever is more, is left to others, such as a desktop."""
HOST_SHARE = 0.5
"""Part of the host's free memory that layers may take: it is locked, so nothing can be swapped out for others."""
CPU_KV_SHARE = 0.25
"""Without a budget, part of a CPU's free memory that the KV cache may take."""
USEFUL_TOKENS = 4096
"""Tokens of a sequence that a KV cache is made for, where memory is not scarce; and the fewest that a load accepts."""
CPU_SEQUENCES, MAX_SEQUENCES = 16, 256
"""Sequences of USEFUL_TOKENS that a KV cache without a budget holds at most, on a CPU and on a GPU..."""
FULL_SEQUENCES = 2
"""...or this many of full context, whichever is more."""
ENOUGH_SEQUENCES = 4096
"""With a budget: more sequences of full context can never be used."""
QUANTISED_BITS = 4.85
"""A weight of a model in Q4_K_M, scales and the matrices with more bits included."""
NUM_SLOTS = 2
"""Places on the device that layers of the host are copied to in turn."""
SPLITS_A_ROW = 16
"""Splits of decode attention whose results are kept for each row."""
LIBRARY_BYTES = 64 << 20
"""What the library of matrix products and the graphs themselves take."""
STAGED_BYTES = 256 << 20
"""What weights are expanded through while they are loaded, before there is a KV cache."""


@dataclass(frozen=True, kw_only=True)
class MemoryRequest:
    """What a model is loaded for; see messages.Load."""

    dtype: torch.dtype
    kv_dtype: torch.dtype
    block_size: int = 16
    max_num_batched_tokens: int = 2048
    max_num_seqs: int = 256
    budget_bytes: int = 0
    """For all together; 0 leaves memory to others."""
    overhead_bytes: int = 0
    """Memory of a GPU to leave free beside that."""
    num_blocks: int = 0
    """Of the KV cache; 0 computes them."""
    num_gpu_layers: int = -1
    """Layers on the GPU; -1: as many as fit."""


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Who gets how much of the device."""

    weights_bytes: int
    """With the slots of the layers that are not there."""
    activation_bytes: int
    graph_bytes: int
    """State of the rows, workspaces and the memory of captured graphs: an upper estimate."""
    kv_bytes: int
    num_blocks: int
    """Usable ones; `kv_bytes` holds one more."""
    num_offloaded_layers: int
    host_bytes: int
    """Of the layers that are not on the device."""
    notes: tuple[str, ...] = ()
    """Sentences for whoever wonders why it is slower than expected."""


def plan_memory(config: ModelConfig, request: MemoryRequest, memory: DeviceMemory, weights: WeightSizes) -> MemoryPlan:
    """
    Raises:
        ModelTooLarge: it does not fit; the sentence says what would.
    """
    return _Planner(config, request, memory, weights).plan()


def replan_memory(
    config: ModelConfig, request: MemoryRequest, memory: DeviceMemory, weights: WeightSizes, loaded: MemoryPlan
) -> MemoryPlan:
    """A plan for another KV cache beside weights that are on the device already. Raises as `plan_memory`."""
    resident = config.num_layers - loaded.num_offloaded_layers
    return plan_memory(
        config,
        replace(request, num_gpu_layers=resident),
        replace(
            memory,
            free_bytes=memory.free_bytes + loaded.weights_bytes,
            host_bytes=memory.host_bytes + int(loaded.host_bytes / HOST_SHARE),
        ),
        weights,
    )


def fits_beside(
    num_bytes: int, num_adapter_bytes: int, plan: MemoryPlan, request: MemoryRequest, memory: DeviceMemory
) -> bool:
    """Whether so much more fits beside what is loaded, the KV cache included, without taking what is left to others.

    Args:
        num_bytes: of an adapter that is to come.
        num_adapter_bytes: of those that are there.
        plan: of what is loaded.
        memory: as it is now.
    """
    planned = plan.activation_bytes + plan.graph_bytes
    if request.budget_bytes:
        used = plan.weights_bytes + plan.kv_bytes + planned + num_adapter_bytes
        return used + num_bytes <= request.budget_bytes and num_bytes <= memory.free_bytes
    if memory.is_gpu:
        left = max(LEFT_BYTES, int(memory.total_bytes * LEFT_SHARE)) + request.overhead_bytes
        return num_bytes + left <= memory.free_bytes
    # Memory of the host counts as free until it is written to.
    return num_bytes + planned + plan.kv_bytes <= memory.free_bytes


def check_adapter(num_bytes: int, memory: DeviceMemory) -> None:
    """
    Raises:
        ModelTooLarge: an adapter does not fit.
    """
    if num_bytes > memory.free_bytes:
        raise ModelTooLarge(
            "the adapter", num_bytes, memory.free_bytes, "stop other models, or use the model without its adapter"
        )


def graph_bytes(config: ModelConfig, request: MemoryRequest, num_tokens: int) -> int:
    """What steps on a GPU hold beside activations: the rows' tokens, block tables and masks, the results of attention's
    splits, and the activations of the largest graph, since graphs keep theirs."""
    rows, context = request.max_num_seqs, min(config.max_position_embeddings, num_tokens)
    state = rows * (context + len(config.kv_groups) * -(-context // request.block_size)) * 4
    masks = 2 * rows * -(-config.vocab_size // 32) * 4  # and their way to the device
    splits = rows * SPLITS_A_ROW * config.num_heads * (config.head_dim + 2) * 4
    # Logits and the memory of sampling are counted with the activations.
    largest = activation_bytes(config, max(rows, request.max_num_batched_tokens), 0, request.dtype.itemsize)
    return state + masks + splits + largest + LIBRARY_BYTES


def usable_bytes(memory: DeviceMemory, budget_bytes: int, overhead_bytes: int) -> int:
    """What a model may take of a device; see MemoryRequest."""
    free = memory.free_bytes
    if memory.is_gpu:
        left = 0 if budget_bytes else max(LEFT_BYTES, int(memory.total_bytes * LEFT_SHARE))
        free = max(0, free - left - overhead_bytes)
    return min(free, budget_bytes) if budget_bytes else free


class _Planner:
    """One question; all numbers are bytes unless they say otherwise."""

    def __init__(self, config: ModelConfig, request: MemoryRequest, memory: DeviceMemory, weights: WeightSizes) -> None:
        self.config = config
        self.request = request
        self.memory = memory
        self.is_gpu = memory.is_gpu
        self.limit = usable_bytes(memory, request.budget_bytes, request.overhead_bytes)
        self.weights = weights.total_bytes
        self.layers = weights.layer_bytes
        self.activations = activation_bytes(
            config, request.max_num_batched_tokens, request.max_num_seqs, request.dtype.itemsize
        )
        expanded = self._expanded(weights)
        self.activations += expanded
        self.block = block_bytes(config, request.block_size, request.kv_dtype)
        self.least_blocks = request.num_blocks or self._blocks_of(min(USEFUL_TOKENS, config.max_position_embeddings))
        self.graphs = 0
        if self.is_gpu:
            self.graphs = graph_bytes(config, request, self._most_blocks() * request.block_size)
            self.graphs += expanded if request.max_num_seqs > MAX_PRODUCT_TOKENS else 0
        self.rest = self.activations + self.graphs

    def plan(self) -> MemoryPlan:
        num_offloaded = self._num_offloaded()
        weights = self._on_device(num_offloaded)
        num_blocks = self.request.num_blocks or self._num_blocks(self.limit - weights - self.rest)
        return MemoryPlan(
            weights_bytes=weights,
            activation_bytes=self.activations,
            graph_bytes=self.graphs,
            kv_bytes=(num_blocks + 1) * self.block,
            num_blocks=num_blocks,
            num_offloaded_layers=num_offloaded,
            host_bytes=sum(self._offloaded(num_offloaded)),
            notes=self._notes(num_offloaded),
        )

    def _expanded(self, weights: WeightSizes) -> int:
        """What a step of many tokens expands for a product. The head meets one token of each sequence."""
        if not self.is_gpu or max(self.request.max_num_batched_tokens, self.request.max_num_seqs) <= MAX_PRODUCT_TOKENS:
            return 0
        head = weights.expanded_head_bytes if self.request.max_num_seqs > MAX_PRODUCT_TOKENS else 0
        return max(weights.expanded_bytes, head)

    # ---- weights

    def _offloaded(self, num_offloaded: int) -> list[int]:
        """Sizes of the layers that stay in the host's memory."""
        num_layers = self.config.num_layers
        return [self.layers[number] for number in offloaded_layers(num_layers, num_layers - num_offloaded)]

    def _on_device(self, num_offloaded: int) -> int:
        offloaded = self._offloaded(num_offloaded)
        return self.weights - sum(offloaded) + min(num_offloaded, NUM_SLOTS) * max(offloaded, default=0)

    def _needs(self, num_offloaded: int) -> int:
        """The least that must be there; while weights are loaded there is no KV cache yet."""
        beside = self.rest + (self.least_blocks + 1) * self.block
        return self._on_device(num_offloaded) + (max(beside, STAGED_BYTES) if self.is_gpu else beside)

    def _num_offloaded(self) -> int:
        num_layers, wanted = self.config.num_layers, self.request.num_gpu_layers
        if not self.is_gpu:
            choices = [0]
        elif wanted >= 0:
            choices = [num_layers - min(wanted, num_layers)]
        else:
            # With one or two, their slots take what they leave.
            choices = [0, *range(NUM_SLOTS + 1, num_layers + 1)]
        for num_offloaded in choices:
            if self._needs(num_offloaded) <= self.limit:
                self._check_host(num_offloaded)
                return num_offloaded
        raise self._too_large(choices)

    def _check_host(self, num_offloaded: int) -> None:
        needs, has = sum(self._offloaded(num_offloaded)), int(self.memory.host_bytes * HOST_SHARE)
        if needs > has:
            raise ModelTooLarge(
                f"{num_offloaded} of {self.config.num_layers} layers do not fit on the device; to keep them in the "
                "host's memory",
                needs,
                has,
                f"half of what is free there may be locked. {self._remedies()}",
            )

    # ---- the KV cache

    def _blocks_of(self, num_tokens: int) -> int:
        return -(-num_tokens // self.request.block_size)

    def _most_blocks(self) -> int:
        """The most that a KV cache of this load may ever have."""
        context, request = self.config.max_position_embeddings, self.request
        if request.num_blocks:
            return request.num_blocks
        if request.budget_bytes:
            return ENOUGH_SEQUENCES * self._blocks_of(context)
        sequences = min(request.max_num_seqs, MAX_SEQUENCES) if self.is_gpu else CPU_SEQUENCES
        return self._blocks_of(max(FULL_SEQUENCES * context, sequences * USEFUL_TOKENS))

    def _num_blocks(self, left: int) -> int:
        if not self.is_gpu and not self.request.budget_bytes:
            left = max(int(left * CPU_KV_SHARE), (self.least_blocks + 1) * self.block)
        return min(self._most_blocks(), left // self.block - 1)

    # ---- words

    def _notes(self, num_offloaded: int) -> tuple[str, ...]:
        if not num_offloaded:
            return ()
        size = mebibytes(sum(self._offloaded(num_offloaded)))
        return (
            f"{num_offloaded} of {self.config.num_layers} layers stay in the host's memory; each step copies their "
            f"{size} to the device, which limits the speed",
        )

    def _too_large(self, choices: list[int]) -> ModelTooLarge:
        request = self.request
        what = f"the model ({mebibytes(self.weights)} of weights in {self._weights_type()}"
        if choices[-1] > 0 and request.num_gpu_layers >= 0:
            what += f", {self.config.num_layers - choices[-1]} of {self.config.num_layers} layers on the device"
        tokens = self.least_blocks * request.block_size
        what += f") with a context of {tokens} tokens ({mebibytes((self.least_blocks + 1) * self.block)})"
        remedies = self._remedies(can_offload=request.num_gpu_layers >= 0)
        if self.is_gpu and not request.budget_bytes:
            kept = mebibytes(self.memory.free_bytes - self.limit)
            remedies += f"; {kept} more are free and left to other programs, model_memory takes them"
        return ModelTooLarge(what, self._needs(choices[0]), self.limit, remedies)

    def _remedies(self, *, can_offload: bool = False) -> str:
        """What would fit, best first."""
        request, config = self.request, self.config
        remedies = ["stop other models"]
        tokens = ((self.limit - self._on_device(0) - self.rest) // self.block - 1) * request.block_size
        if 0 < tokens < self.least_blocks * request.block_size:
            remedies.append(f"be content with a context of {tokens} tokens (num_blocks {tokens // request.block_size})")
        if can_offload:
            fitting = [k for k in range(NUM_SLOTS + 1, config.num_layers + 1) if self._needs(k) <= self.limit]
            if fitting:
                remedies.append(f"put {config.num_layers - fitting[0]} layers on the device (num_gpu)")
        if request.dtype.itemsize == 4:
            remedies.append(f"choose dtype bfloat16 (at most {mebibytes(self.weights // 2)} of weights)")
        room = self.limit - self.rest - (self.least_blocks + 1) * self.block
        quantised = int(config.num_parameters * QUANTISED_BITS / 8)
        if request.dtype.itemsize == 2 and not self._is_quantised() and quantised <= room:
            remedies.append(f"take a quantisation of it, such as q4_K_M (about {mebibytes(quantised)} of weights)")
        largest = room * config.num_parameters / self.weights
        smaller = "choose a smaller one"
        if 1e8 <= largest < 0.95 * config.num_parameters:
            has = config.num_parameters / 1e9
            smaller += f" (about {largest / 1e9:.1f} billion parameters fit; this one has {has:.1f})"
        remedies.append(smaller)
        return ", ".join(remedies[:-1]) + f", or {remedies[-1]}"

    def _is_quantised(self) -> bool:
        """Whether most weights stay as small as their file has them."""
        return self.weights < 0.9 * self.config.num_parameters * self.request.dtype.itemsize

    def _weights_type(self) -> str:
        quantization = self.config.quantization
        return quantization if quantization and self._is_quantised() else str(self.request.dtype).removeprefix("torch.")
