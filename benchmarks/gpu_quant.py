"""Quantised weights on a GPU: decoding, prompts and memory, beside the machine's copy rate and other engines' figures.

    python benchmarks/gpu_quant.py [--mixes q4_k_m,q8_0,fp8,awq] [--batches 1,2,8,32,128,256] [--out FILE]

The models are drawn by `random_gguf` and `random_quantized` in the shape of Qwen2.5-7B and kept in the folder. The
batches are q4_k_m's; of the others, one sequence and, of fp8 and awq, 32 are measured. Decoding is measured as by
benchmarks/gpu.py: the rate while all sequences decode, 128 tokens in and 256 out; with one, at a mean context of
512, or 4,096 where the case says so. The ceiling is reading weights but the embedding, and the KV cache, at the rate
of a large copy. Peers were measured on another day, on an H200: llama.cpp with the same mix, vLLM 0.26 with AWQ.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from gpu_session import Session, Trace
from gpu_timing import copy_bandwidth, warm_up
from random_gguf import SHAPES, write_model
from random_quantized import FORMS, ensure_quantized
from report import Report

from engine.models.tensor_plan import open_weights
from modelfiles.source import ModelSource

SHAPE = "qwen2.5-7b"
EMBEDDINGS = ("token_embd.weight", "model.embed_tokens.weight")
REPEATS = 2
NEW_TOKENS = 256
PEERS = {
    "decode/q4_k_m/b1": "llama.cpp 284, vLLM AWQ 267",
    "decode/q4_k_m/b8": "llama.cpp 983, vLLM AWQ 2080",
    "decode/q4_k_m/b32": "llama.cpp 3538, vLLM AWQ 7625",
    "decode/q4_k_m/b128": "llama.cpp 5882, vLLM AWQ 21171",
    "decode/q4_k_m/b256": "vLLM AWQ 28658",
    "decode/awq/b1": "vLLM 267",
    "decode/awq/b32": "vLLM 7625",
}


class QuantCases:
    """One model and its cases."""

    def __init__(self, report: Report, mix: str, path: Path, copy_rate: float) -> None:
        self._report = report
        self._mix = mix
        self._file_bytes, embedding_bytes = tensor_bytes(path)
        self._read_bytes = self._file_bytes - embedding_bytes
        self._copy_rate = copy_rate * 1e12
        begin = time.perf_counter()
        self._session = Session(path, "cuda")
        self._case(f"load/{mix}", time.perf_counter() - begin, "s")

    def close(self) -> None:
        self._session.close()

    def _case(self, name: str, value: float, unit: str, **more: object) -> None:
        self._report.case(name, value, unit, shape=SHAPE, **more)

    def memory(self) -> None:
        """What the weights take on the card, over the file's tensors."""
        held = self._session.runner.decoder.weights.num_bytes
        self._case(f"memory/{self._mix}/over_file", held / self._file_bytes, "ratio", bytes=held)

    def decode(self, batch: int, center: int) -> None:
        session = self._session
        prompt_tokens = max(1, center - NEW_TOKENS // 2) if batch == 1 else 128

        def once(new_tokens: int) -> Trace:
            return session.run([session.prompt(prompt_tokens) for _ in range(batch)], new_tokens)

        once(12)
        traces = [once(NEW_TOKENS) for _ in range(REPEATS)]
        context = prompt_tokens + NEW_TOKENS / 2
        config = session.config
        kv_bytes = 4 * config.num_layers * config.num_kv_heads * config.head_dim
        ceiling = batch * self._copy_rate / (self._read_bytes + batch * context * kv_bytes)
        name = f"decode/{self._mix}/b{batch}" + ("/ctx4096" if center > 512 else "")
        rates = [trace.steady_rate() for trace in traces]
        step_ms = round(1e3 * median(trace.steady_step_s() for trace in traces), 4)
        self._report.case(
            name, median(rates), "tok/s", ceiling=ceiling, shape=SHAPE, peers=PEERS.get(name, ""), step_ms=step_ms,
            context=context, lowest=round(min(rates), 1), highest=round(max(rates), 1), repeats=REPEATS,
        )  # fmt: skip

    def prefill(self) -> None:
        """Tokens a second of 16 prompts of 2,048 tokens."""
        session = self._session

        def once() -> float:
            return session.run([session.prompt(2048) for _ in range(16)], 1).total_s

        once()
        self._case(f"prefill/{self._mix}", 16 * 2048 / median(once() for _ in range(REPEATS)), "tok/s")


def tensor_bytes(path: Path) -> tuple[int, int]:
    """Of all tensors of a file or a folder, and of the embedding."""
    with open_weights(ModelSource.from_path(path)) as file:
        sizes = {name: tensor.num_bytes for name, tensor in file.tensors.items()}
    return sum(sizes.values()), sum(sizes.get(name, 0) for name in EMBEDDINGS)


def ensure_model(folder: Path, mix: str) -> Path:
    """Writes a model unless it is there, which takes longer than to measure it."""
    path = folder / f"hob-bench-{SHAPE}-{mix}"
    if mix in FORMS:
        ensure_quantized(path, SHAPES[SHAPE], mix, "cuda")
        return path
    path = path.with_name(f"{path.name}.gguf")
    if not path.exists():
        write_model(path, SHAPES[SHAPE], mix)
    return path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mixes", default="q4_k_m,q8_0,fp8,awq")
    parser.add_argument("--batches", default="1,2,8,32,128,256")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.stdout.write("There is no GPU; nothing was measured.\n")
        return 0
    report = Report(arguments.out)
    warm_up()
    copy_rate = copy_bandwidth()
    report.case("ceiling/copy", copy_rate, "TB/s")
    for mix in arguments.mixes.split(","):
        cases = QuantCases(report, mix, ensure_model(arguments.folder, mix), copy_rate)
        cases.memory()
        others = "1,32" if mix in FORMS else "1"
        for batch in map(int, (arguments.batches if mix == "q4_k_m" else others).split(",")):
            cases.decode(batch, 512)
            if batch == 1:
                cases.decode(1, 4096)
        cases.prefill()
        cases.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
