"""Quality and speed of our quantisers: perplexity over llama.cpp's files of the same type, and parameters a second.

    python benchmarks/quantize_quality.py [--data FOLDER] [--out benchmarks/results/quantize.jsonl]

On a machine that does other work, set OMP_WAIT_POLICY=passive, as workers have it.

Perplexity is that of stories3M, padded to rows of whole K-quant blocks, over 20 stories, computed in float32 from the
expanded weights: a ratio below 1 is better than llama.cpp. Its file of Q8_0 is of the model without the padding, which
is the same function. Needs the test data; without it, the ratios are left out. Speed is measured on random weights.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch
from padded_stories import write_padded_stories
from report import Report, seconds

from engine.conversion.quantize import quantize_model
from engine.execution.model_runner import ModelRunner
from engine.messages import Load, Quantize
from engine.quantization.gguf_encoders import quantize
from engine.text.tokenizer import Tokenizer
from modelfiles.gguf import GGMLType
from modelfiles.source import ModelSource

ROOT = Path(__file__).resolve().parent.parent
NUM_STORIES = 20
FILE_TYPES = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_K_S", "Q3_K_M", "Q2_K")
THEIRS = {"Q8_0": "stories3M/gguf/stories3M-Q8_0.gguf"}
TENSOR_TYPES = ("Q8_0", "Q4_0", "Q6_K", "Q5_K", "Q4_K", "Q3_K", "Q2_K")
SPEED_SHAPE = (2048, 4096)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = os.environ.get("HOB_TEST_DATA", str(ROOT.parent / "shared" / "data"))
    parser.add_argument("--data", type=Path, default=Path(default), help="folder with test models")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    report = Report(args.out)
    if (args.data / "models").is_dir():
        with tempfile.TemporaryDirectory() as folder:
            report_quality(report, args.data, Path(folder))
    else:
        sys.stderr.write(f"no test data at {args.data}: the perplexities are left out\n")
    report_speed(report)


def report_quality(report: Report, data: Path, folder: Path) -> None:
    """One case a file type."""
    texts = json.loads((data / "prompts" / "tinystories_1000.json").read_text())[:NUM_STORIES]
    padded = write_padded_stories(data / "models" / "stories3M" / "hf", folder / "padded")
    original = perplexity(padded, texts)
    files = {name: str(path) for name, path in ModelSource.from_path(padded).files.items()}
    for file_type in FILE_TYPES:
        order = Quantize(files=files, folder=str(folder), file_type=file_type)
        ours = perplexity(Path(quantize_model(order, lambda done, total: None).files["model.gguf"]), texts)
        name = THEIRS.get(file_type, f"stories3M-pad256/gguf/stories3M-pad256-{file_type}.gguf")
        theirs = perplexity(data / "models" / name, texts)
        report.case(
            f"quality/{file_type.lower()}/ppl_ratio",
            ours / theirs,
            "ratio",
            ours=round(ours, 4),
            llama_cpp=round(theirs, 4),
            unquantized=round(original, 4),
        )


def perplexity(model: Path, texts: Sequence[str]) -> float:
    """Over all tokens of the texts but each one's first."""
    source = ModelSource.from_path(model)
    files = {name: str(path) for name, path in source.files.items()}
    runner = ModelRunner.load(Load(files=files, device="cpu", dtype="float32", num_blocks=8))
    tokenizer = Tokenizer.from_source(source)
    logprobs = [value for text in texts for value in runner.prompt_logprobs(tokenizer.encode(text))]
    return math.exp(-sum(logprobs) / len(logprobs))


def report_speed(report: Report) -> None:
    """One case a tensor type, in pieces as large as a conversion takes them."""
    weights = torch.randn(SPEED_SHAPE, generator=torch.Generator().manual_seed(0)) * 0.02
    pieces = weights.split((1 << 20) // SPEED_SHAPE[1])
    for name in TENSOR_TYPES:

        def run(type: GGMLType = GGMLType[name]) -> None:
            for piece in pieces:
                quantize(type, piece)

        run()
        times = seconds(run, 3)
        report.case(
            f"quantize/{name.lower()}/speed",
            weights.numel() / median(times) / 1e6,
            "Mparam/s",
            threads=torch.get_num_threads(),
        )


if __name__ == "__main__":
    main()
