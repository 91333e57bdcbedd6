"""DeviceRows: the state of all rows on a GPU, in one arena of integers, and the differences that change it.

    arena = sampling integers | sampling floats | logit biases | tokens of every row | block tables, one a KV group

A step's kernels find everything by row: tokens, blocks, parameters. The host keeps no copy; it sends (offset, value)
pairs of what changed, through pinned memory and one launch, in the order of the steps. So nothing waits for the device,
and a step in which nothing changed sends nothing. Masks of constrained rows lie in a tensor of their own: they are sent
whole, before each step that samples from them. Entries past what a row's sequence has written are garbage of earlier
owners: no kernel reads them. Owned by `gpu_steps`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from engine.execution.errors import ExecutionError, Unsupported
from engine.execution.pinned import PinnedRing
from engine.kernels.patch import apply_patch
from engine.kernels.sampling_state import MAX_BIAS, NUM_FLOATS, NUM_INTS, SamplingState, num_mask_words
from engine.sampling_params import MAX_LOGIT_BIAS
from engine.scheduling.batch import Admission, BlockAppend

Tensor = torch.Tensor

PATCH_LENGTH = 16384
"""Pairs that one launch takes; a longer prompt takes several."""


class DeviceRows:
    """State of `max_rows` rows of at most `max_tokens` tokens."""

    def __init__(
        self,
        max_rows: int,
        max_tokens: int,
        num_groups: int,
        block_size: int,
        device: torch.device,
        vocab_size: int = 1,
    ) -> None:
        """
        Args:
            vocab_size: tokens that masks are about.
        """
        max_blocks = -(-max_tokens // block_size)
        # 64-bit seeds come first, where the arena is aligned for them. One more token: the one sampled at the last
        # position is written, though never computed.
        shapes = [(max_rows, 2 * NUM_INTS.value), (max_rows, NUM_FLOATS.value)]
        shapes += [(max_rows, MAX_LOGIT_BIAS)] * 2
        shapes += [(max_rows, max_tokens + 1)] + [(max_rows, max_blocks)] * num_groups
        starts: list[int] = [0, *np.cumsum([rows * columns for rows, columns in shapes]).tolist()]
        if starts[-1] >= 1 << 31:  # offsets are sent as int32
            raise Unsupported(
                f"the state of {max_rows} rows of {max_tokens} tokens has {starts[-1]} entries, but at most "
                f"{(1 << 31) - 1} can be addressed; load the model with a smaller max_num_seqs"
            )
        self._arena = torch.zeros(starts[-1], dtype=torch.int32, device=device)
        views = [
            self._arena[start : start + rows * columns].view(rows, columns)
            for start, (rows, columns) in zip(starts, shapes, strict=False)
        ]
        self.sampling = SamplingState.over(
            floats=views[1].view(torch.float32),
            ints=views[0].view(torch.int64),
            bias_ids=views[2],
            bias_values=views[3].view(torch.float32),
            masks=torch.zeros(max_rows, num_mask_words(vocab_size), dtype=torch.int32, device=device),
        )
        self.tokens = views[4]
        self.block_tables = views[5:]
        self._starts: list[int] = starts
        self._widths = [columns for _, columns in shapes]
        self._ring = PinnedRing(2 * PATCH_LENGTH, device)
        self._staged = torch.empty(2, PATCH_LENGTH, dtype=torch.int32, device=device)
        self._mask_ring: PinnedRing | None = None  # page-locked memory takes a while, and many workers never need this

    def apply(self, admitted: Sequence[Admission], appended: Sequence[BlockAppend]) -> None:
        """Takes the differences of a step, admissions first, on the current stream."""
        if not admitted and not appended:
            return
        offsets: list[int] = []
        values: list[int] = []
        for admission in admitted:
            self._admit(admission, offsets, values)
        for append in appended:
            start = self._offset(5 + append.group, append.row) + append.start
            offsets += range(start, start + len(append.block_ids))
            values += append.block_ids
        for first in range(0, len(offsets), PATCH_LENGTH):
            self._send(offsets[first : first + PATCH_LENGTH], values[first : first + PATCH_LENGTH])

    def write_masks(self, rows: Sequence[int], words: npt.NDArray[np.int32]) -> None:
        """Sends the masks of some rows, on the current stream.

        Args:
            words: [len(rows), num_mask_words(vocab_size)].
        """
        masks = self.sampling.masks
        num_rows, num_words = words.shape
        if self._mask_ring is None:
            self._mask_ring = PinnedRing(masks.shape[0] * (num_words + 1), masks.device)
        with self._mask_ring.slot() as host:
            packed = host[: num_rows * (num_words + 1)].view(num_rows, num_words + 1)  # a row, and its mask behind it
            packed.numpy()[:, 0] = rows
            packed.numpy()[:, 1:] = words
            staged = packed.to(masks.device, non_blocking=True)
        masks.index_copy_(0, staged[:, 0].long(), staged[:, 1:])

    def _admit(self, admission: Admission, offsets: list[int], values: list[int]) -> None:
        row, params = admission.row, admission.params
        floats, ints = SamplingState.encode(params, admission.origin, has_mask=admission.is_constrained)
        changes: list[Sequence[int]] = [
            np.array(ints, dtype=np.int64).view(np.int32).tolist(),
            np.array(floats, dtype=np.float32).view(np.int32).tolist(),
        ]
        if params.logit_bias:
            biases = np.array(list(params.logit_bias.values()), dtype=np.float64).clip(-MAX_BIAS, MAX_BIAS)
            changes += [list(params.logit_bias), biases.astype(np.float32).view(np.int32).tolist()]
        else:
            changes += [(), ()]
        changes.append(admission.token_ids)
        for part, change in enumerate(changes):
            if len(change) > self._widths[part]:  # it would go into the next row
                raise ExecutionError(
                    f"row {row} was given {len(change)} entries, but has room for {self._widths[part]}"
                )
            start = self._offset(part, row)
            offsets += range(start, start + len(change))
            values += change

    def _offset(self, part: int, row: int) -> int:
        return int(self._starts[part] + row * self._widths[part])

    def _send(self, offsets: list[int], values: list[int]) -> None:
        num_pairs = len(offsets)
        with self._ring.slot() as host:
            # Each half begins at a fixed place: Triton compiles a kernel anew for addresses that are less aligned.
            halves = host.view(2, PATCH_LENGTH)
            halves.numpy()[:, :num_pairs] = offsets, values
            for staged, half in zip(self._staged, halves, strict=True):
                staged[:num_pairs].copy_(half[:num_pairs], non_blocking=True)
        apply_patch(self._arena, self._staged[0, :num_pairs], self._staged[1, :num_pairs])
