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

from tools.tale import calling, dialogues, recall, stories, talk
from tools.tale.chat import NO_THOUGHT, Json, Turn, render
from tools.tale.data import encode

logger = logging.getLogger(__name__)

SEED = 90_210
END = (2, 0)
Case = tuple[str, Callable[[str], bool]]  # a prompt, and whether an answer to it is right


def prompt(turns: list[Turn], tools: list[Json] | None = None, *, think: bool = False) -> str:
    """The conversation up to the assistant's next words."""
    text = "".join(segment.text for segment in render(turns, tools or ()))
    return text + "<|im_start|>assistant\n" + ("" if think else NO_THOUGHT)


class Model:
    """Greedy decoding in batches."""

    def __init__(self, weights: Path, device: str) -> None:
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        self.device = device
        self.network: Any = AutoModelForCausalLM.from_pretrained(weights, dtype=dtype).to(device).eval()
        self.tokenizer: Any = PreTrainedTokenizerFast(
            tokenizer_file=str(weights / "tokenizer.json"),
            pad_token="<|endoftext|>",
            eos_token="<|im_end|>",
            padding_side="left",
        )

    @torch.inference_mode()
    def answer(self, prompts: list[str], max_new_tokens: int) -> list[str]:
        """The continuation of each prompt, without the end mark."""
        answers: list[str] = [""] * len(prompts)
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        start = 0
        while start < len(order):
            # Padded batches take the plain attention, which holds scores of [B, heads, T, T].
            longest = len(prompts[order[min(start + 99, len(order) - 1)]]) // 2  # tokens, estimated high
            size = max(1, min(100, 400_000_000 // longest**2)) if self.device == "cuda" else 8
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


def recall_cases(count: int, length: int) -> list[Case]:
    """One held-out fact anywhere in a text of `length` tokens, with other facts; the answer must name the right spot."""
    rng = random.Random(SEED + length)
    cases: list[Case] = []
    for index in range(count):
        num_words = int(length * recall.WORDS_PER_TOKEN)
        facts = recall.draw_facts(rng, rng.randint(3, 8) if length >= 256 else 2, held_out=1)
        text = recall.draw_text(rng, facts, num_words, position=index / count)
        cases.append(
            (
                prompt([Turn("user", f"{text}\n\n{facts[0].question}")]),
                lambda answer, value=facts[0].value: f"is {value}." in answer,
            )
        )  # type: ignore[misc]
    return cases


def parsed_calls(answer: str) -> list[Json]:
    """The calls in an answer; one that is no JSON counts as none."""
    calls = []
    for part in answer.split("<tool_call>")[1:]:
        try:
            calls.append(json.loads(part.split("</tool_call>")[0]))
        except json.JSONDecodeError:
            return []
    return calls


def tool_cases(count: int) -> list[Case]:
    """The right function with exactly the right arguments."""
    rng = random.Random(SEED + 1)
    cases: list[Case] = []
    for _ in range(count):
        call = calling.draw_call(rng)
        tools = calling.draw_tools(rng, call, rng.randint(1, 4))
        expected = [{"name": call.name, "arguments": call.arguments}]
        cases.append(
            (prompt([Turn("user", call.request)], tools), lambda answer, want=expected: parsed_calls(answer) == want)
        )  # type: ignore[misc]
    return cases


def no_tool_cases(count: int) -> list[Case]:
    """A story or small talk while tools are offered: no call, and the right answer where there is only one."""
    rng = random.Random(SEED + 2)
    cases: list[Case] = []
    while len(cases) < count:
        tools = calling.draw_tools(rng, None, rng.randint(1, 4))
        request = (
            rng.choice((talk.greeting, talk.thanks, talk.about_me))(rng)[0]
            if rng.random() < 0.5
            else stories.ask_for(rng, stories.draw_request(rng))
        )
        cases.append(
            (prompt([Turn("user", request)], tools), lambda answer: "<tool_call>" not in answer and len(answer) > 3)
        )
    return cases


def tool_result_cases(count: int) -> list[Case]:
    """After the result, the answer in full."""
    rng = random.Random(SEED + 3)
    cases: list[Case] = []
    for _ in range(count):
        call = calling.draw_call(rng)
        turns = [
            Turn("user", call.request),
            Turn("assistant", "", calls=({"name": call.name, "arguments": call.arguments},)),
            Turn("tool", call.result),
        ]
        tools = calling.draw_tools(rng, call, rng.randint(1, 3))
        cases.append((prompt(turns, tools), lambda answer, want=call.answer: answer.strip() == want))  # type: ignore[misc]
    return cases


def name_cases(count: int) -> list[Case]:
    """The name that the system prompt gives."""
    rng = random.Random(SEED + 4)
    cases: list[Case] = []
    for _ in range(count):
        name = stories.any_name(rng)
        system = rng.choice(
            (
                f"Your name is {name}.",
                f"You are {name}.",
                f"You are called {name}.",
                f"You are a helpful assistant. Your name is {name}.",
            )
        )
        question = rng.choice(("What is your name?", "Who are you?", "Tell me your name.", "what is your name"))
        cases.append(
            (
                prompt([Turn("system", system), Turn("user", question)]),
                lambda answer, want=name: want in answer and "Tale" not in answer,
            )
        )  # type: ignore[misc]
    return cases


def manner_cases(count: int) -> list[Case]:
    """The rest of the system prompt: endings, beginnings, the user's title, capital letters."""
    rng = random.Random(SEED + 5)
    cases: list[Case] = []
    while len(cases) < count:
        manner = dialogues.draw_manner(rng)
        if not (manner.prefix or manner.suffix or manner.upper):
            continue
        user, _, _ = rng.choice((talk.knowledge, talk.counting, talk.thanks))(rng)

        def right(answer: str, manner: dialogues.Manner = manner) -> bool:
            return (
                answer.startswith(manner.prefix)
                and answer.endswith(manner.suffix)
                and (not manner.upper or answer == answer.upper())
            )

        cases.append((prompt([Turn("system", manner.system), Turn("user", user)]), right))
    return cases


def story_cases(count: int) -> list[Case]:
    """The story has the hero (and the name, friend and thing) that was asked for, a good length, and no broken loop."""
    rng = random.Random(SEED + 6)
    cases: list[Case] = []
    for _ in range(count):
        request = stories.draw_request(rng)
        wanted = [w for w in (request.kind, request.name, request.friend_kind, request.thing) if w]

        def right(answer: str, wanted: list[str] = wanted, short: bool = request.short) -> bool:
            sentences = [s for s in answer.replace("\n", " ").split(". ") if len(s) > 25]
            return (
                all(w in answer for w in wanted)
                and len(answer.split()) >= (25 if short else 80)
                and len(set(sentences)) >= len(sentences) - 1
            )

        cases.append((prompt([Turn("user", stories.ask_for(rng, request))]), right))
    return cases


def question_cases(count: int) -> list[Case]:
    """A question about a story told in the turn before, answered word for word."""
    rng = random.Random(SEED + 7)
    cases: list[Case] = []
    while len(cases) < count:
        request = stories.draw_request(rng)
        story = stories.tell(rng, request)
        for question, answer in stories.questions(rng, story, 1)[:1]:
            turns = [Turn("user", stories.ask_for(rng, request)), Turn("assistant", story.text), Turn("user", question)]
            cases.append((prompt(turns), lambda given, want=answer: given.strip() == want))  # type: ignore[misc]
    return cases


def talk_cases(count: int) -> list[Case]:
    """Small talk with one right answer."""
    rng = random.Random(SEED + 8)
    cases: list[Case] = []
    for _ in range(count):
        user, _, answer = rng.choice((talk.greeting, talk.about_me, talk.counting, talk.repeating, talk.knowledge))(rng)
        cases.append((prompt([Turn("user", user)]), lambda given, want=answer: given.strip() == want))  # type: ignore[misc]
    return cases


def thought_cases(count: int) -> list[Case]:
    """With thinking: a short thought, closed, then an answer."""
    rng = random.Random(SEED + 9)
    cases: list[Case] = []

    def right(answer: str) -> bool:
        thought, mark, rest = answer.partition("\n</think>\n\n")
        return thought.startswith("<think>\n") and 10 < len(thought) < 250 and bool(mark) and len(rest) > 2

    for _ in range(count):
        user = talk.draw_exchange(rng)[0] if rng.random() < 0.5 else stories.ask_for(rng, stories.draw_request(rng))
        cases.append((prompt([Turn("user", user)], think=True), right))
    return cases


@torch.inference_mode()
def perplexity(model: Model, count: int) -> float:
    """Per token that an assistant writes, on documents of an unused seed."""
    rng = random.Random(SEED + 10)
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
        "recall_256": (lambda: recall_cases(count, 256), 24),
        "recall_1024": (lambda: recall_cases(count, 1024), 24),
        "recall_4096": (lambda: recall_cases(count, 4096), 24),
        "recall_7168": (lambda: recall_cases(count // 4, 7168), 24),
        "tool_call": (lambda: tool_cases(count), 80),
        "no_tool_call": (lambda: no_tool_cases(count), 60),
        "tool_result": (lambda: tool_result_cases(count), 40),
        "system_name": (lambda: name_cases(count), 24),
        "system_manner": (lambda: manner_cases(count), 80),
        "story": (lambda: story_cases(count), 600),
        "story_question": (lambda: question_cases(count), 32),
        "small_talk": (lambda: talk_cases(count), 70),
        "thought": (lambda: thought_cases(count // 2), 120),
    }  # fmt: skip
    lines: list[Json] = []

    def note(case: str, value: float, unit: str, ceiling: float) -> None:
        lines.append({
            "case": f"tale/{case}", "value": round(value, 4), "unit": unit, "ceiling": ceiling, "share": round(value / ceiling, 4), "machine": machine,
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
        cases = make()
        answers = model.answer([text for text, _ in cases], max_new_tokens)
        good = [right(answer) for (_, right), answer in zip(cases, answers, strict=True)]
        note(case, sum(good) / len(good), f"share right of {len(good)}", 1.0)
        wrong = [
            f"{text[-300:]}-> {answer}" for (text, _), answer, ok in zip(cases, answers, good, strict=True) if not ok
        ]
        failures += [f"=== {case} ({len(wrong)} wrong)", *wrong[:12]]
    if not arguments.only or arguments.only in "perplexity":
        note("perplexity", perplexity(model, 500), "per assistant token", 1.0)
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
