"""What a trained tale can do, counted on held-out requests, with transformers as an independent implementation.

Run: `python -m tools.tale.evaluate --weights DIR --out benchmarks/results/tale.jsonl`. Every figure is greedy decoding of
prompts drawn from a seed that training never uses; hidden things of the recall test are combinations kept from training.
Writes one JSON line a figure (case, value, unit, ceiling, share, machine, date, command) and, with `--samples`, outputs to read.
"""

from __future__ import annotations

import argparse
import datetime
import json
import logging
import math
import platform
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from tools.tale import cases, dialogues
from tools.tale.cases import Case, prompt
from tools.tale.chat import Json, Turn
from tools.tale.data import encode

logger = logging.getLogger(__name__)

END = (2, 0)  # <|im_end|> and <|endoftext|>


class Model:
    """Greedy decoding in batches."""

    def __init__(self, weights: Path, device: str) -> None:
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        self.device = device
        network: Any = AutoModelForCausalLM.from_pretrained(weights, dtype=dtype)
        self.network: Any = network.to(device).eval()
        load: Any = PreTrainedTokenizerFast
        self.tokenizer: Any = load(
            tokenizer_file=str(weights / "tokenizer.json"),
            pad_token="<|endoftext|>",
            eos_token="<|im_end|>",
            padding_side="left",
        )

    def num_tokens(self, text: str) -> int:
        """How long a text is."""
        return len(self.tokenizer(text, add_special_tokens=False).input_ids)

    @torch.inference_mode()
    def answer(self, prompts: list[str], max_new_tokens: int) -> list[str]:
        """The continuation of each prompt, without the end mark."""
        answers: list[str] = [""] * len(prompts)
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        start = 0
        while start < len(order):
            # Padded batches take the plain attention, which holds scores of [B, heads, T, T].
            longest = len(prompts[order[min(start + 99, len(order) - 1)]]) // 2  # tokens, estimated high
            most, scores = (100, 400_000_000) if self.device == "cuda" else (8, 60_000_000)
            size = max(1, min(most, scores // longest**2))
            indices = order[start : start + size]
            start += size
            inputs = self.tokenizer(
                [prompts[i] for i in indices], return_tensors="pt", padding=True, add_special_tokens=False
            ).to(self.device)
            outputs = self.network.generate(
                input_ids=inputs.input_ids, attention_mask=inputs.attention_mask, do_sample=False, max_new_tokens=max_new_tokens,
                temperature=None, top_k=None, top_p=None, eos_token_id=list(END), pad_token_id=0,
            )  # fmt: skip
            for index, output in zip(indices, outputs[:, inputs.input_ids.shape[1] :], strict=True):
                ids = output.tolist()
                end = next((i for i, token in enumerate(ids) if token in END), len(ids))
                answers[index] = self.tokenizer.decode(ids[:end])
        return answers


@torch.inference_mode()
def perplexity(model: Model, count: int) -> float:
    """Per token that an assistant writes, on documents of an unused seed."""
    rng = random.Random(cases.SEED + 10)
    total = weight = 0.0
    documents = [dialogues.draw_document(rng, 1024) for _ in range(count)]
    for ids, weights in encode(model.tokenizer.backend_tokenizer, documents):
        tensor = torch.tensor([ids[:8192]], device=model.device)
        logits = model.network(tensor).logits[0, :-1].float()
        losses = torch.nn.functional.cross_entropy(logits, tensor[0, 1:], reduction="none")
        wanted = torch.tensor(weights[1:8192], device=model.device) > 0
        total += float(losses[wanted].sum())
        weight += float(wanted.sum())
    return math.exp(total / weight)


@torch.inference_mode()
def smallest_margin(model: Model, request: str) -> float:
    """The least difference, over a greedy answer, between the best and the second-best logit."""
    ids = model.tokenizer(prompt([Turn("user", request)]), return_tensors="pt", add_special_tokens=False).input_ids
    ids = ids.to(model.device)
    output = model.network.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=400,
        temperature=None, top_k=None, top_p=None, eos_token_id=list(END), pad_token_id=0,
    )  # fmt: skip
    best = model.network(output).logits[0, ids.shape[1] - 1 : -1].float().topk(2).values
    return float((best[:, 0] - best[:, 1]).min())


SAMPLES: tuple[tuple[list[Turn], list[Json], bool], ...] = (
    ([Turn("user", "Tell me a story about a fox.")], [], False),
    ([Turn("user", "Tell me a story about a fox.")], [], True),
    ([Turn("user", "a story about a dragon and a lamp")], [], False),
    ([Turn("user", "Write a very short story about a robot named Zubo.")], [], False),
    ([Turn("user", "Hello")], [], False),
    ([Turn("user", "What is your name?")], [], False),
    ([Turn("system", "Your name is Bodo."), Turn("user", "What is your name?")], [], False),
    ([Turn("system", "End every answer with: Ahoy!"), Turn("user", "What is the capital of France?")], [], False),
    ([Turn("user", "The red key of Mira is in the well. The blue key is under the bed. Where is the red key?")], [], False),
    ([Turn("user", "Count to ten.")], [], False),
    ([Turn("user", "Why is the sky blue?")], [], True),
    ([Turn("user", "What is the weather in Paris?")], [{"type": "function", "function": {"name": "get_current_weather", "description": "Get the current weather for a city", "parameters": {"type": "object", "properties": {"city": {"type": "string", "description": "The name of the city"}}, "required": ["city"]}}}], False),
)  # fmt: skip


def main() -> None:
    """Count everything, write the lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=Path("registry/builtin/tale"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--samples", type=Path)
    parser.add_argument("--failures", type=Path)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    model = Model(arguments.weights, arguments.device)
    machine = torch.cuda.get_device_name() if arguments.device == "cuda" else f"CPU {platform.machine()}"
    count = arguments.count
    suites: dict[str, tuple[Callable[[], list[Case]], int]] = {
        "recall_256": (lambda: cases.recall_cases(count, 256, model.num_tokens), 24),
        "recall_1024": (lambda: cases.recall_cases(count, 1024, model.num_tokens), 24),
        "tool_call": (lambda: cases.tool_cases(count), 80),
        "no_tool_call": (lambda: cases.no_tool_cases(count), 60),
        "tool_result": (lambda: cases.tool_result_cases(count), 40),
        "system_name": (lambda: cases.name_cases(count), 24),
        "system_manner": (lambda: cases.manner_cases(count), 80),
        "story": (lambda: cases.story_cases(count), 600),
        "story_question": (lambda: cases.question_cases(count), 32),
        "small_talk": (lambda: cases.talk_cases(count), 70),
        "thought": (lambda: cases.thought_cases(count // 2), 120),
        "recall_4096": (lambda: cases.recall_cases(count // 2, 4096, model.num_tokens), 24),
        "recall_7680": (lambda: cases.recall_cases(count // 5, 7680, model.num_tokens), 24),
    }  # fmt: skip
    lines: list[Json] = []

    def note(case: str, value: float, unit: str, ceiling: float | None) -> None:
        lines.append({
            "case": f"tale/{case}", "value": round(value, 4), "unit": unit, "ceiling": ceiling, "share": ceiling and round(value / ceiling, 4), "machine": machine,
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(), "command": "python -m tools.tale.evaluate " + " ".join(sys.argv[1:]),
        })  # fmt: skip
        logger.info("%s: %.4f %s", case, value, unit)
        if arguments.out:
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            arguments.out.write_text("".join(json.dumps(line) + "\n" for line in lines))

    failures: list[str] = []
    for case, (make, max_new_tokens) in suites.items():
        if arguments.only not in case:
            continue
        drawn = make()
        answers = model.answer([text for text, _ in drawn], max_new_tokens)
        good = [right(answer) for (_, right), answer in zip(drawn, answers, strict=True)]
        note(case, sum(good) / len(good), f"share right of {len(good)}", 1.0)
        wrong = [
            f"{text[-300:]}-> {answer}" for (text, _), answer, ok in zip(drawn, answers, good, strict=True) if not ok
        ]
        failures += [f"=== {case} ({len(wrong)} wrong)", *wrong[:12]]
    if not arguments.only or arguments.only in "perplexity":
        note("perplexity", perplexity(model, 500), "per assistant token", None)
    if not arguments.only or arguments.only in "smallest_margin":
        note("smallest_margin", smallest_margin(model, "Tell me a story about a fox."), "logits", None)
    if arguments.failures:
        arguments.failures.write_text("\n".join(failures))
    if arguments.samples:
        texts = [prompt(turns, tools, think=think) for turns, tools, think in SAMPLES] + ["Once upon a time"]
        outputs = model.answer(texts, 500)
        arguments.samples.write_text(
            "\n\n".join(f"{text}⟦{output}⟧" for text, output in zip(texts, outputs, strict=True)) + "\n"
        )


if __name__ == "__main__":
    main()
