"""Texts embedded a second by the worker: one request of many, many of one, one after the other; beside Transformers.

    python benchmarks/embeddings.py [--out FILE]

The model has the shape of all-MiniLM-L6-v2 and random weights; texts have 8 to 128 tokens, 64 on average. Transformers
pads batches of 32 in the order of the texts, which is what sentence-transformers does without sorting.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers
from report import Report

from engine.client import EngineClient
from engine.messages import Load
from modelfiles.source import ModelSource

NUM_TEXTS = 128
NUM_CLIENTS = 32
BATCH = 32
SHAPE = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}

Texts = list[list[int]]


def make_model(folder: Path) -> Any:
    torch.manual_seed(0)
    model = transformers.BertModel(transformers.BertConfig(**SHAPE)).eval()
    model.save_pretrained(folder)
    return model


async def one_request(client: EngineClient, texts: Texts) -> None:
    await client.embed(texts)


async def many_requests(client: EngineClient, texts: Texts) -> None:
    places = asyncio.Semaphore(NUM_CLIENTS)

    async def one(text: list[int]) -> None:
        async with places:
            await client.embed([text])

    await asyncio.gather(*(one(text) for text in texts))


async def one_after_the_other(client: EngineClient, texts: Texts) -> None:
    for text in texts:
        await client.embed([text])


async def seconds(folder: Path, texts: Texts, repeats: int) -> dict[str, list[float]]:
    client = await EngineClient.start()
    files = ModelSource.from_path(folder).files
    await client.load(Load(files={name: str(path) for name, path in files.items()}, device="cpu"))
    ways: dict[str, Callable[[EngineClient, Texts], Awaitable[None]]] = {
        f"1 request of {NUM_TEXTS} texts": one_request,
        f"{NUM_CLIENTS} clients, a text a request": many_requests,
        "1 client, a text a request": one_after_the_other,
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            await way(client, texts)
            if repeat:
                taken[name].append(time.perf_counter() - start)
    await client.close()
    return taken


def transformers_seconds(model: Any, texts: Texts) -> float:
    start = time.perf_counter()
    with torch.inference_mode():
        for first in range(0, len(texts), BATCH):
            batch = [torch.tensor(text) for text in texts[first : first + BATCH]]
            ids = torch.nn.utils.rnn.pad_sequence(batch, batch_first=True)
            mask = (ids > 0).long()
            states = model(ids, attention_mask=mask).last_hidden_state
            torch.nn.functional.normalize((states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    report = Report(args.out)
    choose = random.Random(0)
    texts = [choose.choices(range(1000, 30000), k=int(choose.triangular(8, 128, 56))) for _ in range(NUM_TEXTS)]
    with tempfile.TemporaryDirectory() as folder:
        model = make_model(Path(folder))
        taken = asyncio.run(seconds(Path(folder), texts, args.repeats))
        taken["Transformers, batches of 32"] = [transformers_seconds(model, texts) for _ in range(args.repeats)]
    for name, times in taken.items():
        rates = [NUM_TEXTS / one for one in times]
        spread = round((max(rates) - min(rates)) / median(rates), 3)
        report.case(
            f"embedding, MiniLM's shape on a CPU, {name}", median(rates), "texts/s", repeats=args.repeats, spread=spread
        )


if __name__ == "__main__":
    main()
