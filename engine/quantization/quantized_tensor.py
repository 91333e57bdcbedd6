"""QuantizedTensor: a matrix of a quantised safetensors checkpoint, read a piece at a time.

It stands beside CheckpointTensor and is read in the same ways: expanded on the CPU (`expand_into`) or on the device
(`stage_into`). For packed products there is, of some rows or of all, the common form of every scheme (`affine_rows`,
`stage_affine`). The table of the file was checked against the scheme before (`models.tensor_plan`); `check` looks at
the small tensors' values.

AWQ and GPTQ keep a matrix by columns. So the host reads rows of it in strides, and what goes to a device, whole ranges
of columns, which is how its bytes lie in the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import torch

from engine.quantization import unpack
from engine.quantization.affine import Affine, order_of
from engine.quantization.checkpoint import PIECE_ELEMENTS, STAGED_ELEMENTS, CheckpointTensor, Stager
from engine.quantization.row_types import NotFiniteError, quantize_rows
from engine.quantization.scheme import Packing, WeightScheme
from modelfiles.gguf import GGMLType

Tensor = torch.Tensor

DTYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I8": torch.int8,
    "I32": torch.int32,
    "I64": torch.int64,
}
INTEGERS = {1: np.uint8, 2: np.int16, 4: np.int32, 8: np.int64}
"""numpy knows neither bfloat16 nor FP8: elements are sliced as integers of their size."""

ROWS_BY_COLUMNS = 128
"""Least rows of a piece where a row's codes lie strided in the file: less would read the same pages again and again."""


class QuantizedTensorError(ValueError):
    """Values that no quantised matrix has. The message names the tensor."""


@dataclass(frozen=True)
class FilePart:
    """One of the tensors that a matrix consists of, in the mapped file."""

    name: str
    type: str
    """A safetensors dtype, of DTYPES."""
    shape: tuple[int, ...]
    data: memoryview

    def elements(self) -> npt.NDArray[np.generic]:
        """A view of its shape, as integers of the elements' size."""
        size = DTYPES[self.type].itemsize
        return np.frombuffer(self.data, dtype=INTEGERS[size]).reshape(self.shape)

    def tensor(self, *index: slice) -> Tensor:
        """A copy of a range."""
        return torch.from_numpy(np.array(self.elements()[index])).view(DTYPES[self.type])


@dataclass(frozen=True)
class Layout:
    """Where a packing keeps codes and zero points."""

    codes: str
    """Suffix of the tensor that holds them."""
    unpack: Callable[[Tensor, int], Tensor]
    """Elements of the file -> codes [rows, columns]."""
    zeros: str
    unpack_zeros: Callable[[Tensor, int], Tensor]
    """Elements of the file -> zero points [rows, groups]."""
    group_index: str = ""
    is_by_columns: bool = False
    """The file's first dimension is the matrix's columns; scales and zero points are by groups then, too."""
    word_rows: bool = False
    """An element of the file holds codes of several rows."""
    word_columns: bool = False


LAYOUTS: Mapping[Packing, Layout] = MappingProxyType(
    {
        "awq": Layout("qweight", unpack.awq, "qzeros", unpack.awq, is_by_columns=True, word_rows=True),
        "gptq": Layout(
            "qweight", unpack.gptq, "qzeros", unpack.gptq_zeros, "g_idx", is_by_columns=True, word_columns=True
        ),
        "packed": Layout(
            "weight_packed", unpack.along_second, "weight_zero_point", unpack.along_first, "weight_g_idx",
            word_columns=True,
        ),
        "int8": Layout("weight", unpack.plain, "weight_zero_point", unpack.plain),
        "fp8": Layout("weight", unpack.plain, "", unpack.plain),
    }
)  # fmt: skip
SCALES = ("scales", "weight_scale", "weight_scale_inv")


@dataclass(frozen=True)
class QuantizedTensor:
    """A matrix [num_rows, num_columns]."""

    name: str
    """Of its module: "model.layers.0.mlp.down_proj"."""
    scheme: WeightScheme
    num_rows: int
    num_columns: int
    parts: Mapping[str, FilePart]
    """By the last part of their names."""

    @property
    def type(self) -> WeightScheme:
        """What `selection` chooses by."""
        return self.scheme

    # ---- the whole, as CheckpointTensor has it

    def pieces(self) -> Iterator[tuple[int, int, Tensor]]:
        """(start, stop, float32 [stop - start, num_columns]) for consecutive rows, a bounded number at a time."""
        for start, stop in self._row_ranges():
            yield start, stop, self.affine_rows(start, stop).values()

    def expand_into(self, out: Tensor) -> None:
        """Writes the values into `out` [num_rows, num_columns], converting to its type and device."""
        for start, stop, values in self.pieces():
            out[start:stop].copy_(values)

    def stage_into(self, out: Tensor, stager: Stager) -> None:
        """Queues what writes the values into `out`; they are there when the stager has finished.

        Args:
            out: [num_rows, num_columns] without gaps, on the stager's device or in memory of the host that it made.
        """
        is_elsewhere = out.device.type != stager.device.type
        # Columns cannot be written straight to the host's memory: they lie strided there.
        target = torch.empty_like(out, device=stager.device) if is_elsewhere and self._layout.is_by_columns else out

        def take(rows: slice, columns: slice, part: Affine) -> None:
            target[rows, columns].copy_(part.values(), non_blocking=True)
            if target is not out and columns.stop == self.num_columns:
                out.copy_(target, non_blocking=True)

        self._stage(stager, self.parameters(0, self.num_rows, stager.device), take)

    # ---- codes and scales

    def affine_rows(self, start: int, stop: int) -> Affine:
        """Rows [start, stop) on the CPU."""
        layout = self._layout
        step = self.scheme.codes_a_word if layout.word_rows else 1
        first = start // step
        words = slice(first, -(-stop // step))
        index = (slice(None), words) if layout.is_by_columns else (words,)
        codes = layout.unpack(self.parts[layout.codes].tensor(*index), self.scheme.bits)
        codes = codes[start - first * step :][: stop - start, : self.num_columns].contiguous()
        return replace(self.parameters(start, stop), codes=codes)

    def stage_affine(self, stager: Stager, take: Callable[[Affine], None]) -> None:
        """Queues what gives `take` the whole matrix, on the stager's device; all that reads it must be queued there
        before `take` returns."""
        codes = torch.empty(self.num_rows, self.num_columns, dtype=self.code_dtype, device=stager.device)
        parameters = self.parameters(0, self.num_rows, stager.device)

        def gather(rows: slice, columns: slice, part: Affine) -> None:
            codes[rows, columns].copy_(part.codes)
            if (rows.stop, columns.stop) == (self.num_rows, self.num_columns):
                take(replace(parameters, codes=codes))

        self._stage(stager, parameters, gather)

    def parameters(self, start: int, stop: int, device: torch.device | None = None) -> Affine:
        """Scales, zero points and groups of rows [start, stop), without codes (their tensor has no columns)."""
        scheme, columns = self.scheme, self.num_columns
        group_index = self.group_of_column()
        return Affine(
            codes=torch.empty(stop - start, 0, dtype=self.code_dtype, device=device),
            scales=self._scales(start, stop).to(device),
            zeros=None if (zeros := self._zeros(start, stop)) is None else zeros.to(device),
            group_size=scheme.group_size(columns),
            group_of_column=None if group_index is None else group_index.to(device),
        )

    def group_of_column(self) -> Tensor | None:
        """int64 [num_columns]; None where columns are in order, whatever a file stores of that."""
        part = self._part(self._layout.group_index)
        if part is None:
            return None
        index = part.tensor().long()
        ordered = torch.arange(self.num_columns) // self.scheme.group_size(self.num_columns)
        return None if torch.equal(index, ordered) else index

    def column_order(self) -> Tensor | None:
        """As Affine.column_order."""
        index = self.group_of_column()
        return None if index is None else order_of(index)

    @property
    def code_dtype(self) -> torch.dtype:
        return {"int8": torch.int8, "fp8": torch.float8_e4m3fn}.get(self.scheme.packing, torch.uint8)

    # ---- what the plan of tensors cannot tell

    def check(self) -> None:
        """
        Raises:
            QuantizedTensorError: a scale is NaN or infinite, a column belongs to no group, or `weight_shape` lies.
        """
        part = self._scale_part()
        is_finite = torch.isfinite(part.tensor().float())
        if not bool(is_finite.all()):
            bad = is_finite.numel() - int(is_finite.sum())
            raise QuantizedTensorError(
                f'{bad} of the {is_finite.numel()} scales in the tensor "{part.name}" are NaN or infinite; the file is '
                "damaged, or quantising it failed: get it again"
            )
        if (index := self._part(self._layout.group_index)) is not None:
            self._check_group_index(index)
        shape = self._part("weight_shape")
        if shape is not None and shape.tensor().tolist() != [self.num_rows, self.num_columns]:
            raise QuantizedTensorError(
                f'the tensor "{shape.name}" says {shape.tensor().tolist()}; the configuration asks for '
                f"{[self.num_rows, self.num_columns]}"
            )

    def _check_group_index(self, part: FilePart) -> None:
        groups, size = self.scheme.num_groups(self.num_columns), self.scheme.group_size(self.num_columns)
        index = part.tensor().long()
        low, high = int(index.min()), int(index.max())
        if low < 0 or high >= groups:
            raise QuantizedTensorError(
                f'the tensor "{part.name}" puts columns into the groups {low} to {high}; there are {groups}, from 0'
            )
        counts = torch.bincount(index, minlength=groups)
        if bool((counts != size).any()):
            group = int((counts != size).nonzero()[0])
            raise QuantizedTensorError(
                f'the tensor "{part.name}" puts {int(counts[group])} columns into the group {group}; a group has {size}'
            )

    # ---- parts

    @property
    def _layout(self) -> Layout:
        return LAYOUTS[self.scheme.packing]

    def _part(self, suffix: str) -> FilePart | None:
        return self.parts.get(suffix)

    def _scale_part(self) -> FilePart:
        return next(self.parts[suffix] for suffix in SCALES if suffix in self.parts)

    def _scales(self, start: int, stop: int) -> Tensor:
        """float32 [stop - start, num_groups]"""
        part = self._scale_part()
        if self._layout.is_by_columns:
            return part.tensor(slice(None), slice(start, stop)).t().float().contiguous()
        return self._rows_of_grid(part, start, stop).float()

    def _zeros(self, start: int, stop: int) -> Tensor | None:
        """float32 [stop - start, num_groups]"""
        scheme, layout = self.scheme, self._layout
        part = self._part(layout.zeros)
        if part is None:
            if scheme.packing != "packed":
                return None
            middle = float(1 << (scheme.bits - 1))
            return torch.full((stop - start, scheme.num_groups(self.num_columns)), middle)
        if scheme.packing == "int8":
            return self._rows_of_grid(part, start, stop).float()
        first = start // scheme.codes_a_word
        words = slice(first, -(-stop // scheme.codes_a_word))  # along the rows in all of them
        raw = part.tensor(slice(None), words) if layout.is_by_columns else part.tensor(words)
        zeros = layout.unpack_zeros(raw, scheme.bits)[start - first * scheme.codes_a_word :][: stop - start]
        # GPTQ's first format: the sum wraps around within its bits, as in AutoGPTQ's own kernels.
        return ((zeros.int() + scheme.zero_offset) & ((1 << scheme.bits) - 1)).float().contiguous()

    def _rows_of_grid(self, part: FilePart, start: int, stop: int) -> Tensor:
        """A tensor of scales for all, for rows or for blocks -> [stop - start, num_groups]."""
        grid = replace(part, shape=(-1, self.scheme.num_groups(self.num_columns)))
        is_by_row = len(grid.elements()) == self.num_rows
        height = 1 if is_by_row else self.scheme.scale_rows or self.num_rows
        first = start // height
        needed = grid.tensor(slice(first, -(-stop // height)))
        return needed if is_by_row else needed[torch.arange(start, stop) // height - first]

    def _row_ranges(self) -> Iterator[tuple[int, int]]:
        rows = max(ROWS_BY_COLUMNS if self._layout.is_by_columns else 1, PIECE_ELEMENTS // self.num_columns)
        for start in range(0, self.num_rows, rows):
            yield start, min(start + rows, self.num_rows)

    def _stage(self, stager: Stager, parameters: Affine, take: Callable[[slice, slice, Affine], None]) -> None:
        """Queues the codes range by range of the file's first dimension; `take` gets each as (rows, columns, part).

        Args:
            parameters: of all rows, on the stager's device.
        """
        layout, bits = self._layout, self.scheme.bits
        part = self.parts[layout.codes]
        elements = part.elements()
        groups = parameters.group_of_column
        if groups is None and layout.is_by_columns:
            groups = torch.arange(self.num_columns, device=stager.device) // parameters.group_size
        step = self.scheme.codes_a_word if layout.is_by_columns and layout.word_columns else 1
        across = self.num_rows if layout.is_by_columns else self.num_columns
        length = max(1, STAGED_ELEMENTS // (across * step))
        for start in range(0, len(elements), length):
            piece = elements[start : start + length]

            def give(raw: Tensor, start: int = start, shape: tuple[int, ...] = piece.shape) -> None:
                codes = layout.unpack(raw.view(DTYPES[part.type]).view(shape), bits)
                if layout.is_by_columns:
                    columns = slice(start * step, start * step + codes.shape[1])
                    of_part = replace(parameters, codes=codes, group_of_column=groups[columns])  # type: ignore[index]
                    take(slice(0, self.num_rows), columns, of_part)
                    return
                rows = slice(start, start + len(codes))
                zeros = parameters.zeros
                of_part = replace(
                    parameters,
                    codes=codes[:, : self.num_columns],
                    scales=parameters.scales[rows],
                    zeros=None if zeros is None else zeros[rows],
                )
                take(rows, slice(0, self.num_columns), of_part)

            stager.expand(piece.view(np.uint8).reshape(-1), give)


CheckpointMatrix = CheckpointTensor | QuantizedTensor
"""A matrix of any checkpoint."""
StoredType = GGMLType | WeightScheme
"""What its codes are: a type of GGUF's, or a scheme of a quantised safetensors checkpoint."""


def quantized_rows(tensor: CheckpointTensor, values: Tensor, dtype: torch.dtype) -> Affine:
    """Rows of an unquantised tensor in 8 bits, with a scale each.

    Args:
        values: [num_rows, num_columns], or as many, in floating point.
        dtype: as for `quantize_rows`.

    Raises:
        QuantizedTensorError: one is NaN or infinite.
    """
    try:
        codes, scales = quantize_rows(values.reshape(-1, tensor.num_columns), dtype)
    except NotFiniteError as error:
        raise QuantizedTensorError(
            f'{error}: the tensor "{tensor.name}" has some; the file is damaged, or training failed: get it again'
        ) from error
    return Affine(codes, scales, None, tensor.num_columns)
