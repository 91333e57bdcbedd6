"""From hidden states to the vectors that are sent: pooling, cutting, length 1, bytes. For decoders and encoders."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from engine.embedding_queue import TextJob
from engine.pooling import PoolingMode

Tensor = torch.Tensor


def pool(hidden: Tensor, counts: Sequence[int], mode: PoolingMode) -> Tensor:
    """
    Args:
        hidden: [num_tokens, hidden_size], the texts behind each other.
        counts: tokens of each text, at least 1.

    Returns:
        float32 [num_texts, hidden_size]
    """
    lengths = torch.tensor(counts, device=hidden.device)
    ends = lengths.cumsum(0)
    if mode == "last":
        return hidden[ends - 1].float()
    if mode == "cls":
        return hidden[ends - lengths].float()
    text_of_token = torch.arange(len(counts), device=hidden.device).repeat_interleave(lengths)
    sums = torch.zeros(len(counts), hidden.shape[1], device=hidden.device)
    return sums.index_add_(0, text_of_token, hidden.float()) / lengths[:, None]


def finished(pooled: Tensor, jobs: Sequence[TextJob], *, normalizes: bool) -> list[bytes | None]:
    """Each text's vector as little-endian float32; None where it is not finite.

    Args:
        pooled: float32 [num_texts, width].
        normalizes: whether the model itself gives vectors of length 1.
    """
    rows = pooled.cpu()
    is_finite = rows.isfinite().all(dim=1).tolist()
    if normalizes:
        rows = F.normalize(rows, dim=-1)
    vectors: list[bytes | None] = []
    for row, job, finite in zip(rows, jobs, is_finite, strict=True):
        if not finite:
            vectors.append(None)
            continue
        vector = row[: job.dimensions] if job.dimensions else row
        if job.normalize:
            vector = F.normalize(vector, dim=0)
        vectors.append(vector.numpy().astype("<f4").tobytes())
    return vectors
