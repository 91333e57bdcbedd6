"""The built-in model: its files, its tokenizer, its template, the generator that it learned from, and what it can do.

What it can do is tested with transformers, an implementation that is not ours, in fp32 on the CPU: here the weights are
under test, not the engine.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from modelfiles.prompt import jinja_prompt_template
from modelfiles.prompt_types import Message, ToolCall
from modelfiles.safetensors import SafetensorsModel
from tools.tale import calling, dialogues, recall, stories
from tools.tale.chat import Json, Segment, Turn, render
from tools.tale.grammar import GrammarError, article, compile_template, expand
from tools.tale.model import Shape, hf_config
from tools.tale.plots import ENDINGS, OPENINGS, PLOTS

MAX_BYTES = 16_000_000
NOW = datetime(2026, 1, 1, tzinfo=UTC)
WEATHER: Json = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}

Render = Callable[..., str]
Answer = Callable[..., str]


# ---- the files


def test_all_files_fit_the_limit(tale_dir: Path) -> None:
    names = {path.name for path in tale_dir.iterdir()}
    assert names >= {"config.json", "generation_config.json", "model.safetensors"}
    assert names >= {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert sum(path.stat().st_size for path in tale_dir.iterdir()) <= MAX_BYTES


def test_widths_fit_quantisation_blocks(tale_dir: Path) -> None:
    config = json.loads((tale_dir / "config.json").read_text())
    assert config == hf_config(Shape(), eos_token_ids=[2, 0], bos_token_id=None)
    for width in ("hidden_size", "intermediate_size"):
        assert config[width] % 256 == 0
    assert config["vocab_size"] % 64 == 0
    assert config["max_position_embeddings"] >= 4096
    with SafetensorsModel.open({"model.safetensors": tale_dir / "model.safetensors"}) as weights:
        assert len(weights.tensors) == 9 * config["num_hidden_layers"] + 2
        assert all(tensor.shape[-1] % 256 == 0 for tensor in weights.tensors.values())
        assert "lm_head.weight" not in weights.tensors


def test_end_marks_agree(tale_dir: Path, tokenizer: Tokenizer) -> None:
    config = json.loads((tale_dir / "config.json").read_text())
    generation = json.loads((tale_dir / "generation_config.json").read_text())
    ids = [tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|endoftext|>")]
    assert config["eos_token_id"] == generation["eos_token_id"] == ids
    assert tokenizer.get_vocab_size() == config["vocab_size"]


# ---- the tokenizer


@pytest.fixture(scope="module")
def tokenizer(tale_dir: Path) -> Tokenizer:
    return Tokenizer.from_file(str(tale_dir / "tokenizer.json"))


@given(st.text())
@settings(max_examples=300, deadline=None)
def test_tokenizer_gives_back_any_text(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


@given(st.integers(min_value=0))
@settings(max_examples=50, deadline=None)
def test_digits_are_tokens_of_their_own(tokenizer: Tokenizer, number: int) -> None:
    assert tokenizer.encode(str(number)).tokens == list(str(number))


@pytest.mark.parametrize(
    "mark", ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<think>", "</think>", "<tool_call>", "</tool_call>"]
)
def test_marks_are_one_token(tokenizer: Tokenizer, mark: str) -> None:
    assert tokenizer.encode(f"a{mark}b").tokens == ["a", mark, "b"]


def test_thoughts_and_calls_survive_decoding(tokenizer: Tokenizer) -> None:
    """Only the turn marks are special: a caller who skips special tokens still has to see thoughts and calls."""
    text = "<|im_start|><think>\nyes\n</think><tool_call>{}</tool_call><|im_end|>"
    assert tokenizer.decode(tokenizer.encode(text).ids) == "<think>\nyes\n</think><tool_call>{}</tool_call>"


# ---- the template


@pytest.fixture(scope="module")
def render_prompt(tale_dir: Path) -> Render:
    template = jinja_prompt_template((tale_dir / "chat_template.jinja").read_text(), {})
    assert template.capabilities == {"completion", "tools", "thinking"}

    def render_one(*messages: Message, **options: Any) -> str:
        return template.render(messages, now=NOW, **options)

    return render_one


GREETING = (Message("system", "Your name is Bodo."), Message("user", "Hi"))


def test_thinking_is_left_to_the_model(render_prompt: Render) -> None:
    expected = (
        "<|im_start|>system\nYour name is Bodo.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert render_prompt(*GREETING) == expected
    assert render_prompt(*GREETING, think=True) == expected
    assert render_prompt(*GREETING, add_generation_prompt=False) == expected.removesuffix("<|im_start|>assistant\n")


def test_no_thinking_is_an_empty_block(render_prompt: Render) -> None:
    assert render_prompt(Message("user", "Hi"), think=False) == (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )


def test_old_thoughts_are_dropped(render_prompt: Render) -> None:
    assert render_prompt(
        Message("user", "Hi"), Message("assistant", "Hello!", thinking="The user greets me."), Message("user", "Bye")
    ) == (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\nHello!<|im_end|>\n"
        "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_call_and_its_results(render_prompt: Render) -> None:
    calls = (ToolCall("1", "get_weather", {"city": "Köln"}), ToolCall("2", "get_weather", {"city": "Rome"}))
    assert render_prompt(
        Message("system", "Be brief."),
        Message("user", "Weather in Köln and Rome?"),
        Message("assistant", "", thinking="I need to call get_weather.", tool_calls=calls),
        Message("tool", "rainy", tool_name="get_weather"),
        Message("tool", "sunny", tool_name="get_weather"),
        tools=[WEATHER],
        think=False,
    ) == (
        "<|im_start|>system\nBe brief.\n\n# Tools\n\nYou may call one or more of these functions to answer the user. "
        "Their signatures are given within <tools></tools>, one JSON object a line:\n<tools>\n"
        '{"type": "function", "function": {"name": "get_weather", "description": "Get the weather", "parameters": '
        '{"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}\n'
        "</tools>\n\nTo call a function, answer with its name and arguments as JSON within <tool_call></tool_call>:\n"
        '<tool_call>\n{"name": <function-name>, "arguments": <arguments-object>}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\nWeather in Köln and Rome?<|im_end|>\n"
        "<|im_start|>assistant\n<think>\nI need to call get_weather.\n</think>\n\n"
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Köln"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\nrainy\n</tool_response>\n<tool_response>\nsunny\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )


def test_a_thought_within_the_content_is_found(render_prompt: Render) -> None:
    """Clients that do not know of thoughts send the whole output back."""
    written = Message("assistant", "<think>\nThe user greets me.\n</think>\n\nHello!")
    assert render_prompt(Message("user", "Hi"), written, Message("user", "Bye")) == render_prompt(
        Message("user", "Hi"), Message("assistant", "Hello!"), Message("user", "Bye")
    )


def test_without_thinking_every_prompt_is_a_prefix_of_the_next(render_prompt: Render) -> None:
    """What the prefix cache lives on: the history is rendered as it was generated."""
    turns = [Message("user", "Weather in Rome?")]
    grown = [
        (Message("assistant", "", tool_calls=(ToolCall("1", "get_weather", {"city": "Rome"}),)),
         '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>', Message("tool", "sunny")),
        (Message("assistant", "It is sunny in Rome."), "It is sunny in Rome.", Message("user", "Thanks!")),
        (Message("assistant", "You are welcome!"), "You are welcome!", Message("user", "Bye")),
    ]  # fmt: skip
    for message, generated, following in grown:
        known = render_prompt(*turns, tools=[WEATHER], think=False) + generated + "<|im_end|>"
        turns += [message, following]
        assert render_prompt(*turns, tools=[WEATHER], think=False).startswith(known)


def as_message(turn: Turn) -> Message:
    calls = tuple(ToolCall("", call["name"], call["arguments"]) for call in turn.calls)
    return Message(turn.role, turn.content, thinking=turn.thought, tool_calls=calls)


@pytest.mark.parametrize("seed", range(8))
def test_training_saw_what_the_template_renders(
    render_prompt: Render, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """The generator's own renderer and the template write the same text."""
    rendered: list[tuple[list[Turn], list[Json], str]] = []

    def recorded(turns: list[Turn], tools: list[Json] | None = None) -> list[Segment]:
        segments = render(turns, tools or [])
        rendered.append((list(turns), list(tools or []), "".join(segment.text for segment in segments)))
        return segments

    monkeypatch.setattr(dialogues, "render", recorded)
    rng = random.Random(seed)
    for _ in range(25):
        dialogues.draw_document(rng, 300)
    assert len(rendered) > 15
    for turns, tools, text in rendered:
        assert render_prompt(*map(as_message, turns), tools=tools, add_generation_prompt=False) == text


# ---- the generator


def drawn(seed: int) -> list[list[Segment]]:
    rng = random.Random(seed)
    return [dialogues.draw_document(rng, 400) for _ in range(40)]


def test_generator_repeats_itself_for_a_seed() -> None:
    assert drawn(3) == drawn(3)
    assert drawn(3) != drawn(4)


def test_every_document_has_something_to_learn() -> None:
    for document in drawn(5):
        assert any(segment.weight for segment in document)


@given(st.integers(0, 2**32))
@settings(max_examples=150, deadline=None)
def test_stories_keep_to_the_request_and_answers_to_the_story(seed: int) -> None:
    rng = random.Random(seed)
    request = stories.draw_request(rng)
    story = stories.tell(rng, request)
    for wanted in (request.kind, request.name, request.friend_kind, request.thing, request.colour, request.place):
        assert wanted in story.text or request.short
    assert request.kind in story.text
    assert story.world["hero"] in story.text
    assert "{" not in story.text
    assert "[" not in story.text
    slots = ("hero", "friend", "thing", "colour", "food", "spot", "fkind", "placenoun", "skill", "fear", "building")
    for question, answer in stories.questions(rng, story, 3):
        if answer.startswith("No, there was no"):
            assert answer.split()[4] not in story.text.split()
            continue
        for slot in slots:  # a fact that an answer names, and the question does not, was told
            value = story.world[slot]
            if value in answer and value not in question:
                assert value in story.text, (slot, question, answer)


@pytest.mark.parametrize("plot", PLOTS, ids=lambda plot: plot.name)
def test_every_plot_names_hero_friend_and_thing(plot: Any) -> None:
    for seed in range(20):
        rng = random.Random(seed)
        world = stories.draw_world(rng, stories.Request(kind="fox"))
        text = expand(plot.text, world, rng, seed % 8)
        assert all(world[slot] in text for slot in ("hero", "friend", "thing", "fkind"))
        for question, answer in plot.questions:
            assert expand(question, world, rng).endswith("?")
            assert expand(answer, world, rng).endswith(".")


@pytest.mark.parametrize("length", [64, 400, 3000])
def test_facts_stand_in_the_text_once_and_are_not_contradicted(length: int) -> None:
    rng = random.Random(length)
    for _ in range(30):
        facts = recall.draw_facts(rng, max(1, length // 24))
        text = recall.draw_text(rng, facts, length)
        assert len({fact.key for fact in facts}) == len(facts)
        for fact in facts:
            assert fact.statement in text
            assert fact.value in fact.statement
            assert fact.value in fact.answer


def test_a_family_that_runs_out_of_keys_is_filled_from_others() -> None:
    """Sixteen colours of six containers are 96 facts; asking for more has to end."""
    for seed in range(40):
        assert len(recall.draw_facts(random.Random(seed), 300)) == 300


def test_held_out_facts_stay_out_of_training() -> None:
    rng = random.Random(0)
    for _ in range(200):
        for fact in recall.draw_facts(rng, 6):
            if fact.key[0] == "hidden":
                assert not recall.is_held_out(fact.key[1], fact.key[2], fact.value)
        held_out = recall.draw_facts(rng, 3, held_out=1)[0]
        assert recall.is_held_out(held_out.key[1], held_out.key[2], held_out.value)


@given(st.integers(0, 2**32))
@settings(max_examples=150, deadline=None)
def test_calls_fit_their_schema(seed: int) -> None:
    rng = random.Random(seed)
    call = calling.draw_call(rng)
    parameters = call.tool["function"]["parameters"]
    kinds: dict[str, Any] = {"string": str, "integer": int, "number": (int, float), "boolean": bool}
    assert set(parameters.get("required", ())) <= set(call.arguments) <= set(parameters["properties"])
    for key, value in call.arguments.items():
        schema = parameters["properties"][key]
        assert isinstance(value, kinds[schema["type"]])
        assert value in schema.get("enum", [value])
        if isinstance(value, str):
            assert value in call.request
    tools = calling.draw_tools(rng, call, 4)
    assert len({tool["function"]["name"] for tool in tools}) == 4
    assert call.tool in tools


def test_templates_with_mistakes_are_refused() -> None:
    for text in ("[a|b", "a]", "{hero", "a|b"):
        with pytest.raises(GrammarError):
            compile_template(text)
    with pytest.raises(GrammarError, match="no 'nobody'"):
        expand("{nobody}", {"hero": "Bodo"}, random.Random(0))
    for template in [OPENINGS, *ENDINGS.values()]:
        compile_template(template)


def test_articles() -> None:
    assert [article(noun) for noun in ("owl", "fox", "unicorn", "honest fox")] == ["an", "a", "a", "an"]


# ---- the model


@pytest.fixture(scope="module")
def answer(tale_dir: Path, tokenizer: Tokenizer, render_prompt: Render) -> Answer:
    """Greedy answers by transformers."""
    network: Any = transformers.AutoModelForCausalLM.from_pretrained(tale_dir, dtype=torch.float32)

    def continue_text(text: str, max_new_tokens: int) -> str:
        ids = torch.tensor([tokenizer.encode(text, add_special_tokens=False).ids])
        output = network.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=max_new_tokens,
            temperature=None, top_k=None, top_p=None,
        )  # fmt: skip
        return tokenizer.decode(output[0, ids.shape[1] :].tolist())

    def answer_one(*messages: Message | str, max_new_tokens: int = 40, **options: Any) -> str:
        if isinstance(messages[0], str):
            return continue_text(messages[0], max_new_tokens)
        return continue_text(render_prompt(*messages, **{"think": False, **options}), max_new_tokens)

    return answer_one


def test_a_story_about_a_fox(answer: Answer) -> None:
    request = Message("user", "Tell me a story about a fox.")
    story = answer(request, max_new_tokens=400)
    assert "fox" in story
    assert 80 < len(story.split()) < 300
    assert story[-1] in '.!?"'
    name = answer(request, Message("assistant", story), Message("user", "What was the fox called?"))
    assert name.removeprefix("The fox was called ").rstrip(".") in story


def test_a_short_thought_comes_first(answer: Answer) -> None:
    thought, mark, rest = answer(Message("user", "Who are you?"), think=True, max_new_tokens=60).partition(
        "\n</think>\n\n"
    )
    assert thought.startswith("<think>\n")
    assert mark
    assert "Tale" in rest


def test_it_answers_to_the_name_of_its_system_prompt(answer: Answer) -> None:
    question = Message("user", "What is your name?")
    assert "Bodo" in answer(Message("system", "Your name is Bodo."), question)
    assert "Tale" in answer(question)


@pytest.mark.parametrize("num_words", [40, 700])
def test_it_finds_a_fact_in_a_long_text(answer: Answer, num_words: int) -> None:
    filler = " ".join(recall.filler(random.Random(1), num_words))
    text = f"The red key of Mira is in the well. The blue key is under the bed. {filler}\n\nWhere is the red key?"
    assert answer(Message("user", text)) == "The red key is in the well."


def test_it_calls_a_tool_and_uses_the_result(answer: Answer) -> None:
    turns = [Message("user", "What is the weather in Paris?")]
    written = answer(*turns, tools=[WEATHER])
    assert written == '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
    turns += [
        Message("assistant", "", tool_calls=(ToolCall("1", "get_weather", {"city": "Paris"}),)),
        Message("tool", "sunny"),
    ]
    assert answer(*turns, tools=[WEATHER]) == "It is sunny in Paris."


def test_it_does_not_call_a_tool_for_nothing(answer: Answer) -> None:
    assert "<tool_call>" not in answer(Message("user", "Hello!"), tools=[WEATHER])


def test_it_goes_on_without_a_template(answer: Answer) -> None:
    assert answer("Once upon a time", max_new_tokens=12).startswith(", there was a")
