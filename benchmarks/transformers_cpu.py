"""Hob's engine beside Transformers' `generate`, on the CPU, on the same weights, threads and type, in one run.

    python benchmarks/transformers_cpu.py [--model FOLDER] [--dtype float32] [--out FILE]

Greedy, every prompt its own, no stop: each request makes exactly `--new-tokens`. Reported are single-stream
decode, 16 requests at once against 16 one after another, and Transformers' static padded batch of the same 16. The
ceiling of the single stream is the copy bandwidth over the bytes of weights that one token reads; small models
live in the cache and may pass it.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from statistics import median

# As the daemon sets it for its workers (engine/client.py); read when torch is imported. The peer gets it, too.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from report import Report, copy_bandwidth
from transformers import AutoModelForCausalLM

from engine.llm import LLM
from engine.sampling_params import SamplingParams

TALE = Path(__file__).resolve().parent.parent / "registry" / "builtin" / "tale"
NUM_REQUESTS = 16


def prompts(vocab_size: int, length: int, seed: int) -> list[list[int]]:
    """NUM_REQUESTS prompts of random token ids; another seed each time, so that no prefix is cached."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(10, vocab_size - 10, (NUM_REQUESTS, length), generator=generator).tolist()


def hob_seconds(llm: LLM, requests: list[list[int]], params: SamplingParams) -> float:
    start = time.perf_counter()
    outputs = llm.generate(requests, params)
    elapsed = time.perf_counter() - start
    assert all(len(output.token_ids) == params.max_tokens for output in outputs)
    return elapsed


def transformers_seconds(model: torch.nn.Module, requests: list[list[int]], new_tokens: int) -> float:
    ids = torch.tensor(requests)
    start = time.perf_counter()
    with torch.inference_mode():
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            pad_token_id=0,
        )
    elapsed = time.perf_counter() - start
    assert output.shape[1] == ids.shape[1] + new_tokens
    return elapsed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=TALE, help="a folder with config.json and safetensors")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    report = Report(args.out)
    peer = AutoModelForCausalLM.from_pretrained(args.model, dtype=getattr(torch, args.dtype)).eval()
    peer.generation_config.eos_token_id = None
    llm = LLM(args.model, dtype=args.dtype)
    params = SamplingParams(temperature=0.0, max_tokens=args.new_tokens, ignore_eos=True)
    shape = (
        f"{args.model.name} {args.dtype}, {args.prompt_tokens} tokens in, {args.new_tokens} out, {args.threads} threads"
    )

    num_bytes = sum(p.numel() * p.element_size() for p in peer.parameters())
    ceiling = copy_bandwidth() / num_bytes
    warm_up = prompts(peer.config.vocab_size, args.prompt_tokens, seed=0)
    hob_seconds(llm, warm_up, params)
    transformers_seconds(peer, warm_up[:1], 8)

    # Interleaved, so that both see the same weather on a shared machine.
    times: dict[str, list[float]] = {
        "hob 1": [],
        "peer 1": [],
        "hob 16": [],
        "peer 16 in turn": [],
        "peer 16 padded": [],
    }
    for repeat in range(args.repeats):
        requests = prompts(peer.config.vocab_size, args.prompt_tokens, seed=2 * repeat + 1)
        times["hob 1"].append(hob_seconds(llm, requests[:1], params))
        times["peer 1"].append(transformers_seconds(peer, requests[:1], args.new_tokens))
        others = prompts(peer.config.vocab_size, args.prompt_tokens, seed=2 * repeat + 2)
        times["hob 16"].append(hob_seconds(llm, others, params))
        times["peer 16 in turn"].append(sum(transformers_seconds(peer, [r], args.new_tokens) for r in requests))
        times["peer 16 padded"].append(transformers_seconds(peer, requests, args.new_tokens))
    middle = {name: median(values) for name, values in times.items()}

    def rate(case: str, name: str, num_requests: int, against: str | None = None, limit: float | None = None) -> None:
        ratio = {} if against is None else {"ratio": round(middle[against] / middle[name], 3), "against": against}
        spread = round((max(times[name]) - min(times[name])) / middle[name], 3)
        value = num_requests * args.new_tokens / middle[name]
        report.case(f"{case}; {shape}", value, "tokens/s", ceiling=limit, repeats=args.repeats, spread=spread, **ratio)

    rate("Transformers generate, 1 request", "peer 1", 1, limit=ceiling)
    rate("Hob, 1 request", "hob 1", 1, against="peer 1", limit=ceiling)
    rate("Transformers generate, 16 requests one after another", "peer 16 in turn", NUM_REQUESTS)
    rate("Transformers generate, 16 requests as one padded batch", "peer 16 padded", NUM_REQUESTS)
    rate("Hob, 16 requests at once", "hob 16", NUM_REQUESTS, against="peer 16 in turn")


if __name__ == "__main__":
    main()
