"""Training data made while training runs: processes write shards of packed rows, the trainer reads them in order.

A row is `ROW` tokens of whole documents, each with a number of its own; attention is kept within a document. Loss weights
are in tenths. Shard `i` is drawn from the seed and `i` alone, so the data does not depend on the number of processes.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from tools.tale.chat import Segment
from tools.tale.dialogues import draw_document

ROW = 8192  # tokens in a row, and the longest document
ROWS_PER_SHARD = 64
PADDING = (
    65535  # document number of the unused end of a row: larger than all others, so that numbers only grow along a row
)
FIRST_SHARDS = 48  # drawn before the trainer knows how many shards it will read; all of them lie in the first lengths
# Curriculum: from this share of the training on, documents of up to so many tokens.
LENGTHS = ((0.0, 400), (0.08, 1000), (0.2, 2200), (0.35, 4700), (0.8, 7400))

Array = npt.NDArray[np.integer]


def longest_at(progress: float) -> int:
    """The longest documents at a point of the training, 0 <= progress < 1."""
    return [length for start, length in LENGTHS if start <= progress][-1]


def encode(tokenizer: Tokenizer, documents: list[list[Segment]]) -> Iterator[tuple[list[int], list[int]]]:
    """Ids and loss weights of each document."""
    texts = [segment.text for document in documents for segment in document]
    encodings = iter(tokenizer.encode_batch_fast(texts, add_special_tokens=False))
    for document in documents:
        ids: list[int] = []
        weights: list[int] = []
        for segment in document:
            piece = next(encodings).ids
            ids += piece
            weights += [segment.weight] * len(piece)
        yield ids, weights


def draw_rows(tokenizer: Tokenizer, rng: random.Random, num_rows: int, longest: int) -> dict[str, Array]:
    """Pack documents into rows.

    Returns:
        `ids` uint16, `weights` uint8 and `documents` uint16, each [num_rows, ROW]; padding has weight 0.
    """
    ids = np.zeros((num_rows, ROW), np.uint16)
    weights = np.zeros((num_rows, ROW), np.uint8)
    numbers = np.full((num_rows, ROW), PADDING, np.uint16)
    filled = [0] * num_rows
    count = [0] * num_rows
    open_rows = list(range(num_rows))
    misses = 0
    while open_rows and misses < 200:
        batch = [draw_document(rng, longest) for _ in range(64)]
        for document_ids, document_weights in encode(tokenizer, batch):
            size = len(document_ids)
            if size > ROW:
                continue
            row = next((r for r in open_rows[:16] if filled[r] + size <= ROW), None)
            if row is None:
                misses += 1
                continue
            start = filled[row]
            ids[row, start : start + size] = document_ids
            weights[row, start : start + size] = document_weights
            count[row] += 1
            numbers[row, start : start + size] = count[row]
            filled[row] += size
            if ROW - filled[row] < 64:
                open_rows.remove(row)
    return {"ids": ids, "weights": weights, "documents": numbers}


def _write_shards(folder: Path, tokenizer_file: Path, seed: int, first: int, step: int, ahead: int) -> None:
    os.nice(5)
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    for index in itertools.count(first, step):
        while index >= FIRST_SHARDS and not (folder / "total").exists():
            time.sleep(0.1)
        total = int((folder / "total").read_text()) if index >= FIRST_SHARDS else FIRST_SHARDS * 1000
        if index >= total:
            return
        while (folder / "reading").exists() and index > int((folder / "reading").read_text()) + ahead:
            time.sleep(0.2)
        rng = random.Random(f"{seed} {index}")
        rows = draw_rows(tokenizer, rng, ROWS_PER_SHARD, longest_at(index / total))
        temporary = folder / f"{index}.tmp.npy"
        np.save(temporary, np.stack([rows["ids"], rows["weights"].astype(np.uint16), rows["documents"]]))
        temporary.rename(folder / f"{index}.npy")


def start_writers(
    folder: Path, tokenizer_file: Path, seed: int, processes: int, ahead: int = 400
) -> list[multiprocessing.Process]:
    """Start the processes that write shards into `folder`, at most `ahead` before the reader.

    They stop for `announce_total` after `FIRST_SHARDS`.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    context = multiprocessing.get_context("spawn")
    workers = [
        context.Process(target=_write_shards, args=(folder, tokenizer_file, seed, i, processes, ahead), daemon=True)
        for i in range(processes)
    ]
    for worker in workers:
        worker.start()
    return workers  # type: ignore[return-value]


def announce_total(folder: Path, total: int) -> None:
    """Tell the writers how many shards will be read: it sets the pace of the curriculum."""
    _replace(folder / "total", str(total))


def _replace(path: Path, text: str) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text)
    temporary.rename(path)


def read_shard(folder: Path, index: int, *, patience_s: float = 120.0) -> Array:
    """Wait for shard `index` and take it out of the folder: [3, ROWS_PER_SHARD, ROW] of ids, weights, documents.

    Raises:
        TimeoutError: no writer delivered it within `patience_s`.
    """
    path = folder / f"{index}.npy"
    end = time.monotonic() + patience_s
    while not path.exists():
        if time.monotonic() > end:
            raise TimeoutError(f"shard {index} did not come within {patience_s:.0f} s; did a writer die?")
        time.sleep(0.02)
    shard: Array = np.load(path)
    path.unlink()
    _replace(folder / "reading", str(index))
    return shard
