"""From checkpoints to packed matrices: every scheme's numbers, in pieces and joined, and what is made on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch

from engine.execution.staging import Staging
from engine.kernels import reference_packed
from engine.quantization import packed, quantized_tensor, selection
from engine.quantization.base import Dense
from engine.quantization.checkpoint import CheckpointTensor, Destination
from engine.quantization.packed import Packed
from engine.quantization.quantized_tensor import CheckpointMatrix, QuantizedTensorError
from engine.quantization.row_types import quantize_rows
from engine.quantization.scheme import WeightScheme
from modelfiles.gguf import GGMLType
from tests.engine.quantization import packers
from tests.engine.quantization.packers import opened

CPU, GPU = torch.device("cpu"), torch.device("cuda")
KERNELS = GPU if torch.cuda.is_available() else CPU
"""Where kernels run."""
AWQ = WeightScheme("awq", 4, 1, 16, has_zeros=True)
GPTQ = WeightScheme("gptq", 4, 1, 16, has_zeros=True, zero_offset=1)
ACT_ORDER = replace(GPTQ, has_group_index=True)
FP8 = WeightScheme("fp8", 8, None, None)
CASES: dict[str, tuple[WeightScheme, Callable[[np.random.Generator, int, int], packers.Packed]]] = {
    "awq": (AWQ, lambda g, n, k: packers.awq(g, n, k, 16)),
    "gptq": (GPTQ, lambda g, n, k: packers.gptq(g, n, k, 16)),
    "gptq-symmetric": (GPTQ, lambda g, n, k: packers.gptq(g, n, k, 16, is_symmetric=True)),
    "gptq-act-order": (ACT_ORDER, lambda g, n, k: packers.gptq(g, n, k, 16, is_shuffled=True)),
    "gptq-8-bits-act-order": (
        replace(ACT_ORDER, bits=8), lambda g, n, k: packers.gptq(g, n, k, 16, bits=8, is_shuffled=True),
    ),
    "packed": (WeightScheme("packed", 4, 1, 16), lambda g, n, k: packers.pack_quantized(g, n, k, 16)),
    "packed-act-order": (
        WeightScheme("packed", 4, 1, 16, has_zeros=True, has_group_index=True),
        lambda g, n, k: packers.pack_quantized(g, n, k, 16, is_symmetric=False, is_shuffled=True),
    ),
    "packed-8-bits-channel": (
        WeightScheme("packed", 8, 1, None), lambda g, n, k: packers.pack_quantized(g, n, k, k, bits=8),
    ),
    "int8-channel": (WeightScheme("int8", 8, 1, None), lambda g, n, k: packers.int8(g, n, k, (n, 1))),
    "int8-groups-asymmetric": (
        WeightScheme("int8", 8, 1, 32, has_zeros=True),
        lambda g, n, k: packers.int8(g, n, k, (n, k // 32), is_symmetric=False),
    ),
    "fp8-tensor": (FP8, lambda g, n, k: packers.fp8(g, n, k, (n, k), scale_shape=())),
    "fp8-channel": (replace(FP8, scale_rows=1), lambda g, n, k: packers.fp8(g, n, k, (1, k))),
    "fp8-blocks": (
        replace(FP8, scale_rows=32, scale_columns=32),
        lambda g, n, k: packers.fp8(g, n, k, (32, 32), suffix="weight_scale_inv", dtype=torch.bfloat16),
    ),
}  # fmt: skip


@contextmanager
def place(is_staged: bool) -> Iterator[Destination]:
    if not is_staged:
        yield Destination(CPU, torch.bfloat16)
        return
    with Staging(CPU, buffer_bytes=1 << 14, num_buffers=2, num_threads=2) as staging:
        yield Destination(CPU, torch.bfloat16, staging)


def values(matrix: Packed) -> torch.Tensor:
    """float32 [num_rows, num_columns], columns as the checkpoint has them."""
    found = reference_packed.packed_rows(matrix.weight, torch.float32)
    order = matrix.weight.column_order
    return found if order is None else torch.empty_like(found).index_copy_(1, order, found)


def assert_planned(matrix: Packed, tensors: Sequence[CheckpointMatrix], destination: Destination) -> None:
    num_rows = sum(tensor.num_rows for tensor in tensors)
    assert (matrix.num_rows, matrix.num_columns) == (num_rows, tensors[0].num_columns)
    assert matrix.num_bytes == Packed.stored_bytes(tensors[0].type, num_rows, matrix.num_columns, destination)


@pytest.mark.parametrize("is_staged", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_every_scheme_keeps_its_numbers(name: str, is_staged: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "STAGED_ELEMENTS", 16 * 128)
    monkeypatch.setattr(quantized_tensor, "STAGED_ELEMENTS", 500)
    scheme, pack = CASES[name]
    generator = np.random.default_rng(5)
    made = [pack(generator, rows, 128) for rows in (48, 16)]
    if "act-order" in name:
        made = made[:1]
    tensors = [opened(one, scheme) for one in made]
    with place(is_staged) as destination:
        matrix = Packed.from_checkpoint(tensors, destination)
    assert torch.equal(values(matrix), torch.cat([one.values for one in made]))
    assert_planned(matrix, tensors, destination)


def test_matrices_of_one_order_are_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "method_of", lambda matrix, destination: Packed)
    one, other, plain = (
        opened(packers.gptq(np.random.default_rng(seed), 16, 64, 16, is_shuffled=is_shuffled), ACT_ORDER)
        for seed, is_shuffled in ((1, True), (2, True), (3, False))
    )
    destination = Destination(CPU, torch.bfloat16)
    for tensors, rows in (
        ([one, one], [32]),
        ([one, other], [16, 16]),
        ([one, one, other], [32, 16]),
        ([one, plain, plain], [16, 32]),
    ):
        segments = selection.segments_from_checkpoint(tensors, destination)
        assert [segment.num_rows for segment in segments] == rows


@pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning")
def test_rows_and_products_of_reordered_columns() -> None:
    made = packers.gptq(np.random.default_rng(0), 32, 64, 16, is_shuffled=True)
    with Staging(KERNELS, buffer_bytes=1 << 14, num_buffers=2, num_threads=2) as staging:
        matrix = Packed.from_checkpoint([opened(made, ACT_ORDER)], Destination(KERNELS, torch.float32, staging))
    rows = torch.tensor([31, 0, 5])
    torch.testing.assert_close(matrix.embed(rows.to(KERNELS)).cpu(), made.values[rows])
    x = torch.randn(2, 3, 64, generator=torch.Generator().manual_seed(0))
    y = matrix.linear(x.to(KERNELS), None).cpu()
    torch.testing.assert_close(y, x @ made.values.T, rtol=1e-4, atol=1e-4)
    moved = matrix.map_tensors(torch.clone)
    torch.testing.assert_close(moved.embed(rows.to(KERNELS)).cpu(), made.values[rows])


# ---- quantised here


def plain(rows: int, columns: int, dtype: torch.dtype, order: tuple[int, ...] | None = None) -> CheckpointTensor:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows)).to(dtype)
    type = {torch.float32: GGMLType.F32, torch.float16: GGMLType.F16, torch.bfloat16: GGMLType.BF16}[dtype]
    return CheckpointTensor("model.q_proj.weight", (rows, columns), type, packers.as_bytes(weight), order)


def exact(tensor: CheckpointTensor) -> torch.Tensor:
    return torch.cat([rows for _, _, rows in tensor.pieces()])


@pytest.mark.parametrize("weight_dtype", [torch.float8_e4m3fn, torch.int8], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_unquantised_matrices_get_8_bits(
    dtype: torch.dtype, weight_dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed, "STAGED_ELEMENTS", 16 * 64)
    tensors = [plain(32, 64, dtype), plain(16, 64, dtype, tuple(reversed(range(16))))]
    for is_staged in (False, True):
        with place(is_staged) as destination:
            destination = replace(destination, weight_dtype=weight_dtype)
            matrix = Packed.from_checkpoint(tensors, destination)
        codes, scales = quantize_rows(torch.cat([exact(tensor) for tensor in tensors]), weight_dtype)
        assert torch.equal(values(matrix), codes.float() * scales)
        assert_planned(matrix, tensors, destination)
        assert matrix.num_bytes == 48 * 64 + 48 * 4


def test_a_weight_that_is_no_number_is_refused() -> None:
    weight = torch.ones(16, 64)
    weight[3, 4] = torch.nan
    tensor = CheckpointTensor("model.q_proj.weight", (16, 64), GGMLType.F32, packers.as_bytes(weight))
    with pytest.raises(QuantizedTensorError, match=r'NaN or infinite .* tensor "model\.q_proj\.weight"'):
        Packed.from_checkpoint([tensor], Destination(CPU, torch.bfloat16, weight_dtype=torch.int8))


# ---- what is chosen


@pytest.mark.parametrize(
    ("type", "rows", "columns", "weight_dtype", "expected"),
    [
        (AWQ, 64, 128, None, Packed),
        (AWQ, 72, 128, None, Dense),
        (AWQ, 64, 176, None, Dense),
        (FP8, 64, 128, torch.int8, Packed),
        (GGMLType.BF16, 64, 128, None, Dense),
        (GGMLType.BF16, 64, 128, torch.int8, Packed),
        (GGMLType.F32, 64, 120, torch.int8, Dense),
        (GGMLType.Q4_K, 64, 256, torch.int8, Packed),
        (GGMLType.IQ2_XS, 64, 256, torch.int8, Dense),
    ],
)
def test_which_method_keeps_what_on_a_gpu(
    type: GGMLType | WeightScheme, rows: int, columns: int, weight_dtype: torch.dtype | None, expected: object
) -> None:
    destination = Destination(GPU, torch.bfloat16, weight_dtype=weight_dtype)
    assert selection.method_of(selection.Matrix(type, rows, columns), destination) is expected
