"""LayerStream: a model's layers in order, those that the device does not hold copied to it just before they are used.

    copy stream:   slot 0 <- layer 4        slot 1 <- layer 9                  slot 0 <- layer 14
    main stream:   0 1 2 3  | 4 (slot 0)  5 6 7 8 | 9 (slot 1) ...
                            waits: is filled             waits: layer 4 is done, before slot 0 is filled again

Matrices of a layer that is not resident lie in locked memory of the host and move through one of two slots; norms and
biases are always on the device. Such layers are spread evenly, so that there is something to compute while the next one
comes. Everything is ordered by events between two streams and nothing waits on the host, so a pass over the layers can
be captured in a CUDA graph. Without a GPU the copies are plain ones. Made by the runner, iterated by the decoders.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from engine.models.decoder import DecoderLayer
from engine.models.layers import Linear

Tensor = torch.Tensor

NUM_SLOTS = 2
ALIGNMENT = 256
"""Bytes; where a tensor in a slot may begin, as in memory of its own."""


def offloaded_layers(num_layers: int, num_resident: int) -> frozenset[int]:
    """Numbers of the layers that stay in the host's memory, spread evenly; the first comes as late as it can."""
    num_offloaded = num_layers - max(0, min(num_resident, num_layers))
    return frozenset((number + 1) * num_layers // num_offloaded - 1 for number in range(num_offloaded))


@dataclass(frozen=True)
class _Copies:
    """A layer of the host, as it will be in its slot."""

    layer: DecoderLayer
    slot: int
    pairs: tuple[tuple[Tensor, Tensor], ...]
    """Each tensor in the host's memory and its place in the slot."""


class LayerStream:
    """Iterating yields each layer with all its tensors on the device; a layer may be used until the next one is taken.

    Args:
        layers: as `execution.weights.load_weights(offloaded=...)` made them.
        num_resident: how many of them are on the device; the rest is `offloaded_layers`.
    """

    def __init__(self, layers: Sequence[DecoderLayer], num_resident: int, device: torch.device) -> None:
        self._device = device
        self._layers = tuple(layers)
        offloaded = sorted(offloaded_layers(len(self._layers), num_resident))
        sizes = [_slot_bytes(self._layers[number]) for number in offloaded]
        num_slots = min(NUM_SLOTS, len(offloaded))
        self._slots = [torch.empty(max(sizes), dtype=torch.uint8, device=device) for _ in range(num_slots)]
        self._copies = {
            number: self._placed(self._layers[number], index % NUM_SLOTS) for index, number in enumerate(offloaded)
        }
        self._stream = torch.cuda.Stream(device) if offloaded and device.type == "cuda" else None
        num_events = 0 if self._stream is None else num_slots
        self._is_filled = [torch.cuda.Event() for _ in range(num_events)]
        self._is_free = [torch.cuda.Event() for _ in range(num_events)]
        self.offloaded_bytes = sum(host.nbytes for copies in self._copies.values() for host, _ in copies.pairs)
        """In the host's memory; a pass over all layers copies them once."""
        self.slot_bytes = sum(slot.nbytes for slot in self._slots)

    def __len__(self) -> int:
        return len(self._layers)

    def __iter__(self) -> Iterator[DecoderLayer]:
        if self._stream is None:
            yield from self._iterate_plain()
        else:
            yield from self._iterate_streamed(self._stream)

    def _iterate_plain(self) -> Iterator[DecoderLayer]:
        for number, layer in enumerate(self._layers):
            copies = self._copies.get(number)
            if copies is None:
                yield layer
            else:
                _copy(copies)
                yield copies.layer

    def _iterate_streamed(self, stream: torch.cuda.Stream) -> Iterator[DecoderLayer]:
        main = torch.cuda.current_stream(self._device)
        stream.wait_stream(main)  # for the pass before this one; and a capture takes the stream in
        coming = iter(self._copies.values())
        try:
            for _ in self._slots:
                self._start(next(coming), stream)
            for number, layer in enumerate(self._layers):
                copies = self._copies.get(number)
                if copies is None:
                    yield layer
                    continue
                main.wait_event(self._is_filled[copies.slot])
                yield copies.layer
                following = next(coming, None)
                if following is not None:
                    main.record_event(self._is_free[copies.slot])
                    stream.wait_event(self._is_free[copies.slot])
                    self._start(following, stream)
        finally:
            main.wait_stream(stream)  # a reader that left early may have left copies behind

    def _start(self, copies: _Copies, stream: torch.cuda.Stream) -> None:
        with torch.cuda.stream(stream):
            _copy(copies)
        stream.record_event(self._is_filled[copies.slot])

    def _placed(self, layer: DecoderLayer, slot: int) -> _Copies:
        """A layer whose matrices are views of a slot."""
        memory, pairs, offset = self._slots[slot], list[tuple[Tensor, Tensor]](), 0

        def place(host: Tensor) -> Tensor:
            nonlocal offset
            there = memory[offset : offset + host.nbytes].view(host.dtype)
            # A matrix that lies column by column does so in the slot, too.
            there = there.view(host.shape) if host.is_contiguous() else there.view(host.t().shape).t()
            offset += _aligned(host.nbytes)
            pairs.append((host, there))
            return there

        placed = replace(
            layer,
            qkv=_moved(layer.qkv, place),
            attention_output=_moved(layer.attention_output, place),
            gate_up=_moved(layer.gate_up, place),
            down=_moved(layer.down, place),
        )
        return _Copies(placed, slot, tuple(pairs))


def _moved(matrix: Linear, place: Callable[[Tensor], Tensor]) -> Linear:
    return Linear(tuple(segment.map_tensors(place) for segment in matrix.segments), matrix.bias)


def _copy(copies: _Copies) -> None:
    for host, there in copies.pairs:
        there.copy_(host, non_blocking=True)


def _slot_bytes(layer: DecoderLayer) -> int:
    sizes: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        sizes.append(_aligned(tensor.nbytes))
        return tensor

    for matrix in (layer.qkv, layer.attention_output, layer.gate_up, layer.down):
        _moved(matrix, note)
    return sum(sizes)


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT
