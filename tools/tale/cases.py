"""Held-out requests with what counts as a right answer: the questions of the evaluation.

Each function draws its cases from a seed of its own that training never uses; hidden things of the recall cases are
combinations that training never saw (recall.is_held_out).
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable

from tools.tale import calling, dialogues, recall, stories, talk
from tools.tale.chat import NO_THOUGHT, Json, Turn, render

SEED = 90_210
Check = Callable[[str], bool]
Case = tuple[str, Check]  # a prompt, and whether an answer to it is right


def prompt(turns: list[Turn], tools: list[Json] | None = None, *, think: bool = False) -> str:
    """The conversation up to the assistant's next words."""
    text = "".join(segment.text for segment in render(turns, tools or ()))
    return text + "<|im_start|>assistant\n" + ("" if think else NO_THOUGHT)


def says(wanted: str) -> Check:
    """The answer is exactly `wanted`."""
    return lambda answer: answer.strip() == wanted


def contains(wanted: str, unwanted: str = "\0") -> Check:
    """The answer has `wanted` in it and `unwanted` not."""
    return lambda answer: wanted in answer and unwanted not in answer


def calls(wanted: Json) -> Check:
    """The answer is exactly one call."""
    return lambda answer: parsed_calls(answer) == [wanted]


def recall_cases(count: int, length: int, num_tokens: Callable[[str], int]) -> list[Case]:
    """One held-out fact anywhere in a prompt of `length` tokens, among other facts; the answer must name the right spot.

    `num_tokens` counts a text's tokens: the number of words that make up the length depends on the filler's style, so a
    text is drawn again, longer or shorter, until its prompt is within a twentieth of `length`.
    """
    rng = random.Random(SEED + length)
    cases: list[Case] = []
    while len(cases) < count:
        facts = recall.draw_facts(rng, rng.randint(3, 8), held_out=1)
        style = rng.randrange(1 << 30)  # the same filler each time, of another length
        num_words = length * recall.WORDS_PER_TOKEN
        for _ in range(8):
            text = recall.draw_text(random.Random(style), facts, int(num_words), position=len(cases) / count)
            question = prompt([Turn("user", f"{text}\n\n{facts[0].question}")])
            size = num_tokens(question)
            if 0.95 < size / length < 1.05:
                cases.append((question, contains(f"is {facts[0].value}.")))
                break
            num_words *= length / size
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
        expected = {"name": call.name, "arguments": call.arguments}
        cases.append((prompt([Turn("user", call.request)], tools), calls(expected)))
    return cases


def no_tool_cases(count: int) -> list[Case]:
    """A story or small talk while tools are offered: no call."""
    rng = random.Random(SEED + 2)
    cases: list[Case] = []
    while len(cases) < count:
        tools = calling.draw_tools(rng, None, rng.randint(1, 4))
        request = (
            rng.choice((talk.greeting, talk.thanks, talk.about_me))(rng)[0]
            if rng.random() < 0.5
            else stories.ask_for(rng, stories.draw_request(rng))
        )
        cases.append((prompt([Turn("user", request)], tools), contains("", "<tool_call>")))
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
        cases.append((prompt(turns, tools), says(call.answer)))
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
                contains(name, "Tale"),
            )
        )
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
            cases.append((prompt(turns), says(answer)))
    return cases


def talk_cases(count: int) -> list[Case]:
    """Small talk with one right answer."""
    rng = random.Random(SEED + 8)
    cases: list[Case] = []
    for _ in range(count):
        user, _, answer = rng.choice((talk.greeting, talk.about_me, talk.counting, talk.repeating, talk.knowledge))(rng)
        cases.append((prompt([Turn("user", user)]), says(answer)))
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
