"""LoRA adapters beside a model's weights, and which tokens of a step use which of them.

    y += scale * B (A x)        for the tokens of a row that has an adapter; the scale lies in B

The base's weights stay as they are, quantised or not, so any number of adapters share them, and rows with different
adapters share a step. Called by both decoders behind a Linear's product; where no row has an adapter there is no
AdapterTokens, and nothing here is called. Plain torch on either device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat

import torch
import torch.nn.functional as F

Tensor = torch.Tensor


@dataclass(frozen=True)
class Part:
    """An update's second half: for some rows of a Linear, from some of the ranks of all its updates."""

    rows: slice
    ranks: slice
    b: Tensor
    """[rows, ranks], times the scale."""


@dataclass(frozen=True)
class LinearUpdate:
    """All updates of one Linear: those of Q, K and V, say, or of several adapters that add up."""

    a: Tensor
    """[ranks of all, num_columns], one below the other: one product with x serves all."""
    parts: tuple[Part, ...]

    @property
    def num_bytes(self) -> int:
        return self.a.nbytes + sum(part.b.nbytes for part in self.parts)


@dataclass(frozen=True)
class Adapter:
    """An adapter on the model's device."""

    layers: tuple[Mapping[str, LinearUpdate], ...]
    """By the names of DecoderLayer's fields; a Linear without an update has none."""

    @property
    def num_bytes(self) -> int:
        return sum(update.num_bytes for layer in self.layers for update in layer.values())


@dataclass(frozen=True)
class AdapterTokens:
    """Which tokens of a step have which adapter."""

    groups: tuple[tuple[Adapter, Tensor | None], ...]
    """Each adapter with its tokens, int64 [n]; None: all of the step."""

    def add(self, y: Tensor, x: Tensor, layer: int, matrix: str) -> Tensor:
        """Adds what the adapters change to a product.

        Args:
            y: [num_tokens, num_rows], changed in place: the product of the base's Linear.
            x: [num_tokens, num_columns], what went into it.
            matrix: the name of the Linear in its layer.

        Returns:
            `y`.
        """
        for adapter, tokens in self.groups:
            update = adapter.layers[layer].get(matrix)
            if update is None:
                continue
            inner = F.linear(x if tokens is None else x[tokens], update.a)  # [n, ranks]
            for part in update.parts:
                target, low = y[:, part.rows], inner[:, part.ranks]
                if tokens is None:
                    target.addmm_(low, part.b.t())
                else:
                    target.index_add_(0, tokens, F.linear(low, part.b))
        return y


class Adapters:
    """The adapters of a worker by their numbers; 0 is no adapter. Shared by the runner and its steps."""

    def __init__(self) -> None:
        self._by_number: dict[int, Adapter] = {}

    def __contains__(self, number: int) -> bool:
        return number == 0 or number in self._by_number

    def __bool__(self) -> bool:
        return bool(self._by_number)

    def put(self, number: int, adapter: Adapter) -> None:
        self._by_number[number] = adapter

    def drop(self, number: int) -> None:
        self._by_number.pop(number, None)

    @property
    def num_bytes(self) -> int:
        return sum(adapter.num_bytes for adapter in self._by_number.values())

    def tokens(
        self, numbers: Sequence[int], counts: Sequence[int] | None, device: torch.device
    ) -> AdapterTokens | None:
        """Which tokens have which adapter; None where none has one.

        Args:
            numbers: the adapter of each row of a step, in order.
            counts: tokens of each row; None: one each.
        """
        present = set(numbers)
        if present == {0}:
            return None
        if len(present) == 1:
            return AdapterTokens(((self._by_number[numbers[0]], None),))
        of_token = [number for number, count in zip(numbers, counts or repeat(1), strict=False) for _ in range(count)]
        groups = []
        for number in sorted(present - {0}):
            places = [place for place, one in enumerate(of_token) if one == number]
            groups.append((self._by_number[number], torch.tensor(places, device=device)))
        return AdapterTokens(tuple(groups))
