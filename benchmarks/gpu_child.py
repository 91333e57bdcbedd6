"""What benchmarks/gpu.py measures in a process of its own: a start, a small memory, and Transformers.

    python benchmarks/gpu_child.py start MODEL --device cuda
    python benchmarks/gpu_child.py fits MODEL --device cuda --gib 24
    python benchmarks/gpu_child.py transformers MODEL --device cuda --batch 1 8 32 --prompt-tokens 128 --new-tokens 48

Each prints one JSON object a line; gpu_processes.py reads them.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

START = time.perf_counter()

GIB = 1 << 30
OUTSIDE_BYTES = GIB
"""Of a small card, beside the engine's budget: the CUDA context, captured graphs and libraries' workspaces."""


def say(**line: Any) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def start(args: argparse.Namespace) -> None:
    """Everything from `import torch` to one token."""
    from engine.llm import LLM
    from engine.sampling_params import SamplingParams

    imported_s = time.perf_counter() - START
    llm = LLM(args.model, device=args.device, dtype="bfloat16")
    loaded_s = time.perf_counter() - START
    (output,) = llm.generate([[300, 301, 302, 303]], SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True))
    if len(output.token_ids) != 1:
        raise RuntimeError("no token came")
    say(import_s=imported_s, load_s=loaded_s - imported_s, token_s=time.perf_counter() - START - loaded_s)


def fits(args: argparse.Namespace) -> None:
    """A load into a share of the device's memory that the framework does not exceed, and an answer."""
    import torch

    from engine.llm import LLM
    from engine.sampling_params import SamplingParams

    total = args.gib * GIB
    peak = None
    if args.device.startswith("cuda"):
        has = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, total / has))
    budget = total - OUTSIDE_BYTES
    llm = LLM(args.model, device=args.device, dtype="bfloat16", budget_bytes=budget)
    params = SamplingParams(temperature=0.0, max_tokens=100, ignore_eos=True)
    (output,) = llm.generate([random.Random(0).choices(range(256, llm.config.vocab_size - 3), k=64)], params)
    if args.device.startswith("cuda"):
        peak = torch.cuda.max_memory_reserved()
    say(
        value=llm.ready.num_blocks * llm.ready.block_size,
        max_context=llm.ready.max_context,
        answered=len(output.token_ids),
        budget_bytes=budget,
        weights_bytes=llm.ready.weights_bytes,
        kv_cache_bytes=llm.ready.kv_cache_bytes,
        peak_reserved_bytes=peak,
    )


def transformers(args: argparse.Namespace) -> None:
    """Tokens a second of `generate` over a static batch: those of all sequences after the first one of each."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.bfloat16).eval().to(args.device)
    model.generation_config.eos_token_id = None
    rng = random.Random(0)

    def seconds(batch: int, new_tokens: int) -> float:
        prompts = [rng.choices(range(256, model.config.vocab_size - 3), k=args.prompt_tokens) for _ in range(batch)]
        ids = torch.tensor(prompts, device=args.device)
        begin = time.perf_counter()
        with torch.inference_mode():
            output = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=new_tokens,
                min_new_tokens=new_tokens,
                pad_token_id=0,
            )
        if args.device.startswith("cuda"):
            torch.cuda.synchronize()
        assert output.shape[1] == args.prompt_tokens + new_tokens
        return time.perf_counter() - begin

    for batch in args.batch:
        seconds(batch, 2)
        first = median(seconds(batch, 1) for _ in range(3))
        whole = seconds(batch, args.new_tokens)
        say(
            batch=batch,
            value=batch * (args.new_tokens - 1) / (whole - first),
            first_ms=round(1e3 * first, 2),
            with_prefill=round(batch * args.new_tokens / whole, 2),
            prompt_tokens=args.prompt_tokens,
            new_tokens=args.new_tokens,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["start", "fits", "transformers"])
    parser.add_argument("model", type=Path)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--gib", type=int, default=24)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=48)
    args = parser.parse_args()
    {"start": start, "fits": fits, "transformers": transformers}[args.what](args)


if __name__ == "__main__":
    main()
