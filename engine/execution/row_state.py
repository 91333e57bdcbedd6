"""RowState: what the runner keeps of each row for a request's whole life. Admissions and appended blocks change it.

Tokens and block tables live on the device, because a step reads there what the step before wrote; the rest is plain
Python. A row's entries past what its sequence has written are garbage of earlier owners, and nothing may read them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from engine.sampling_params import SamplingParams
from engine.scheduling.batch import DUMMY_BLOCK, Admission, BlockAppend

Tensor = torch.Tensor


class RowState:
    """State of `max_rows` rows of at most `max_tokens` tokens."""

    def __init__(self, max_rows: int, max_tokens: int, num_groups: int, block_size: int, device: torch.device) -> None:
        self.max_tokens = max_tokens
        # One more column: the token sampled at the last position is written, though never computed.
        self.tokens = torch.empty(max_rows, max_tokens + 1, dtype=torch.int32, device=device)
        max_blocks = -(-max_tokens // block_size)
        self.block_tables = [
            torch.empty(max_rows, max_blocks, dtype=torch.int64, device=device) for _ in range(num_groups)
        ]
        self.params: list[SamplingParams] = [SamplingParams()] * max_rows
        self.origins = [0] * max_rows
        self.adapters = [0] * max_rows

    def apply(self, admitted: Sequence[Admission], appended: Sequence[BlockAppend]) -> None:
        """Takes the differences of a step, admissions first."""
        for admission in admitted:
            row, num_tokens = admission.row, len(admission.token_ids)
            self.tokens[row, :num_tokens] = torch.tensor(admission.token_ids, dtype=torch.int32)
            for table in self.block_tables:
                table[row] = DUMMY_BLOCK
            self.params[row] = admission.params
            self.origins[row] = admission.origin
            self.adapters[row] = admission.adapter
        for append in appended:
            table = self.block_tables[append.group][append.row]
            if len(append.block_ids) == 1:
                table[append.start] = append.block_ids[0]
            elif append.block_ids:
                table[append.start : append.start + len(append.block_ids)] = torch.tensor(append.block_ids)
            if append.dead:
                table[: append.dead] = DUMMY_BLOCK

    def write(self, rows: Tensor, positions: Tensor, token_ids: Tensor) -> None:
        """Puts sampled tokens where the next step reads them. All int64 [n]."""
        self.tokens[rows, positions] = token_ids.to(torch.int32)

    def history(self, row: int, position: int, window: int) -> Tensor:
        """The last `window` tokens before `position` (-1: all): int64 [at most window]."""
        start = 0 if window < 0 else max(0, position - window)
        return self.tokens[row, start:position].long()
