"""Writing a safetensors file: the header, then tensors one after the other, a piece of one in memory at a time.

Used by quantising at `create` and by tests. Making the write atomic is the caller's business. The reader, with the
layout, is `modelfiles.safetensors`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from modelfiles.safetensors import DTYPE_BYTES, SafetensorsError

HEADER_ALIGNMENT = 8
"""Tensors begin at a multiple of this, as the format asks; spaces fill the header up."""


@dataclass(frozen=True)
class NewSafeTensor:
    """A tensor to be written; `pieces` is called when its turn has come."""

    name: str
    dtype: str
    """One of DTYPE_BYTES."""
    shape: tuple[int, ...]
    pieces: Callable[[], Iterable[bytes | bytearray | memoryview]]


def write_safetensors(path: Path, tensors: Sequence[NewSafeTensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a file, over what is at `path`.

    Raises:
        SafetensorsError: a tensor's bytes are not as many as its shape says.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata or {"format": "pt"})}
    sizes, begin = [], 0
    for tensor in tensors:
        size = math.prod(tensor.shape) * DTYPE_BYTES[tensor.dtype]
        offsets = [begin, begin + size]
        header[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": offsets}
        sizes.append(size)
        begin += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % HEADER_ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor, size in zip(tensors, sizes, strict=True):
            num_written = 0
            for piece in tensor.pieces():
                view = memoryview(piece).cast("B")
                num_written += len(view)
                if num_written <= size:
                    file.write(view)
            if num_written != size:
                raise SafetensorsError(
                    f'the tensor "{tensor.name}" has {num_written} bytes, but its shape takes {size}'
                )
