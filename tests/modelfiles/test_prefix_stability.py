"""What a chat has said stays where it is: each prompt of a chat begins with the one before, so the prefix cache hits.

Up to the generation prompt that holds for every template. Most also write an answer as the model wrote it, so that its
tokens are found, too; those that do not are listed with the reason.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from engine.text.tokenizer import Tokenizer
from modelfiles.prompt import Message, PromptTemplate, go_prompt_template, jinja_prompt_template
from modelfiles.source import ModelSource

NOW = datetime(2024, 7, 26, 12)
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
CHAT = [
    Message("user", "Hi, who are you?"),
    Message("assistant", "A machine that writes."),
    Message("user", "What time is it?"),
    Message("assistant", "It is five."),
    Message("user", "Thanks."),
    Message("assistant", "You are welcome."),
    Message("user", "Bye."),
]
TOOL = {
    "type": "function",
    "function": {
        "name": "get_time",
        "description": "The time.",
        "parameters": {"type": "object", "properties": {"zone": {"type": "string", "description": "Where."}}},
    },
}

THOUGHT = "the generation prompt opens or closes a thought that earlier turns do not show"
CHANNEL = "earlier answers have a header that the model writes itself"
BLANK = "earlier answers have a blank or line in front that the model writes itself"
UNSTABLE_ANSWERS = {
    "Bielik-11B-v3.0-Instruct": THOUGHT,
    "Cohere2MoE": THOUGHT,
    "CohereForAI-c4ai-command-r7b-12-2024-tool_use": THOUGHT,
    "GLM-4.7-Flash": THOUGHT,
    "Kimi-K3": THOUGHT,
    "MiniMax-M2": THOUGHT,
    "NVIDIA-Nemotron-Nano-v2": THOUGHT,
    "Spark2.5": THOUGHT,
    "deepseek-ai-DeepSeek-R1-Distill-Llama-8B": THOUGHT,
    "deepseek-ai-DeepSeek-V3.1": THOUGHT,
    "deepseek-ai-DeepSeek-V4-Flash-0731": THOUGHT,
    "google-gemma-4-31B-it-interleaved": THOUGHT,
    "llama-cpp-deepseek-r1": THOUGHT,
    "poolside-Laguna-S-2.1": THOUGHT,
    "poolside-Laguna-XS.2": THOUGHT,
    "tale": THOUGHT,
    "openai-gpt-oss-120b": CHANNEL,
    "upstage-Solar-Open-100B": CHANNEL,
    "chatqa": BLANK,
    "codellama-70b-instruct": BLANK,
    "llama2-chat": BLANK,
    "mistral-instruct": BLANK,
    "vicuna": BLANK,
}
NEEDS_TOOLS = "NousResearch-Hermes-3-Llama-3.1-8B-tool_use"
BROKEN = "fireworks-ai-llama-3-firefunction-v2"
"""Renders nothing without a variable of its maker's, in Transformers as here."""
FAILS_WITH_TOOLS = ("llama-cpp-deepseek-r1",)
"""In Transformers as here."""
MOVES_TOOLS = {"Mistral-Small-3.2-24B-Instruct-2506": "tools stand before the newest question"}


def templates(data_dir: Path, root: Path) -> Iterator[tuple[str, PromptTemplate]]:
    for path in sorted((data_dir / "templates/jinja").glob("*.jinja")):
        yield path.stem, jinja_prompt_template(path.read_text(), TOKENS)
    for path in sorted((data_dir / "templates/go").glob("*.gotmpl")):
        yield path.stem, go_prompt_template(path.read_text())
    for path in sorted((data_dir / "vocab/hf").glob("*/tokenizer_config.json")):
        yield path.parent.name, jinja_prompt_template(json.loads(path.read_text())["chat_template"], TOKENS)
    yield "tale", jinja_prompt_template((root / "registry/builtin/tale/chat_template.jinja").read_text(), TOKENS)


def prompts(template: PromptTemplate, **options: Any) -> list[str]:
    """Of each question of the chat."""
    return [template.render(CHAT[: index + 1], now=NOW, **options) for index in range(0, len(CHAT), 2)]


def said(prompt: str, turn: int) -> str:
    """A prompt to the end of its question; behind it stands what makes the model answer."""
    question = CHAT[2 * turn].content
    return prompt[: prompt.rindex(question) + len(question)]


def assert_tokens_stay(before: str, following: str, tokenizer: Tokenizer) -> None:
    ids, all_ids = tokenizer.encode(before), tokenizer.encode(following)
    assert all_ids[: len(ids) - 1] == ids[:-1]  # the last one may grow: "Bye" and "Bye."


@pytest.fixture(scope="module")
def tokenizer(tale_dir: Path) -> Tokenizer:
    return Tokenizer.from_source(ModelSource.from_path(tale_dir))


@pytest.mark.parametrize("think", [None, True, False])
def test_each_prompt_begins_with_the_one_before(
    think: bool | None, data_dir: Path, root: Path, tokenizer: Tokenizer
) -> None:
    for name, template in templates(data_dir, root):
        if name == BROKEN:
            continue
        whole = prompts(template, think=think, tools=[TOOL] if name == NEEDS_TOOLS else ())
        for turn, (prompt, following) in enumerate(itertools.pairwise(whole)):
            assert following.startswith(said(prompt, turn)), f"{name}, turn {turn}"
            assert_tokens_stay(said(prompt, turn), following, tokenizer)
            if name not in UNSTABLE_ANSWERS:
                assert following.startswith(prompt + CHAT[2 * turn + 1].content), f"{name}, turn {turn}"


def test_the_list_of_unstable_answers_is_true(data_dir: Path, root: Path) -> None:
    found = set()
    for name, template in templates(data_dir, root):
        for think in (None, True, False) if name in UNSTABLE_ANSWERS else ():
            first, second, *_ = prompts(template, think=think)
            if not second.startswith(first + CHAT[1].content):
                found.add(name)
    assert found == UNSTABLE_ANSWERS.keys()


def test_tools_stay_where_they_are(data_dir: Path, root: Path) -> None:
    moving = set()
    for name, template in templates(data_dir, root):
        if "tools" in template.capabilities and name not in FAILS_WITH_TOOLS:
            whole = prompts(template, tools=[TOOL])
            if not all(new.startswith(said(old, turn)) for turn, (old, new) in enumerate(itertools.pairwise(whole))):
                moving.add(name)
    assert moving == MOVES_TOOLS.keys()
