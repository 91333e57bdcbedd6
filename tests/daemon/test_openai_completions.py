"""POST /v1/completions: prompts of all forms, echo, log-probabilities, several texts; and /v1/models."""

from __future__ import annotations

from typing import Any

import pytest
from openai.types import Completion

from tests.daemon.conftest import World, add_model
from tests.daemon.fake_engine import Answer
from tests.daemon.openai_calls import chunks_of, error_of, whole

pytestmark = pytest.mark.anyio

PATH = "/v1/completions"
INSERTING = "{{ if .Suffix }}<PRE>{{ .Prompt }}<SUF>{{ .Suffix }}<MID>{{ else }}{{ .Prompt }}{{ end }}"


async def complete(world: World, **body: Any) -> dict[str, Any]:
    reply = await whole(world, PATH, **{"prompt": "Hi", **body})
    Completion.model_validate(reply)
    return reply


async def test_a_text_is_continued_as_it_stands(world: World) -> None:
    world.answers = [Answer(" there", num_cached_tokens=1)]
    reply = await complete(world)
    assert world.prompts == ["Hi"]
    assert reply["id"].startswith("cmpl-")
    assert reply["object"] == "text_completion"
    assert reply["choices"] == [{"index": 0, "text": " there", "logprobs": None, "finish_reason": "stop"}]
    assert reply["usage"]["prompt_tokens"] == 2
    assert reply["usage"]["completion_tokens"] == 7
    assert reply["usage"]["prompt_tokens_details"] == {"cached_tokens": 1}


async def test_a_streamed_text(world: World) -> None:
    world.answers = [Answer("one")]
    *chunks, usage = await chunks_of(world, PATH, prompt="Hi", stream_options={"include_usage": True})
    choices = [chunk["choices"][0] for chunk in chunks]
    assert "".join(choice["text"] for choice in choices) == "one"
    assert [choice["finish_reason"] for choice in choices] == [None, None, None, "stop"]
    assert (usage["choices"], usage["usage"]["completion_tokens"]) == ([], 4)


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        (["one", "two"], ["one", "two"]),
        ([72, 105], ["Hi"]),
        ([[72], [105, 33]], ["H", "i!"]),
    ],
)
async def test_prompts_of_all_forms(world: World, prompt: Any, prompts: list[str]) -> None:
    world.answer_to = lambda text: Answer(text.upper())
    reply = await complete(world, prompt=prompt)
    assert sorted(world.prompts) == sorted(prompts)
    assert [choice["text"] for choice in reply["choices"]] == [text.upper() for text in prompts]
    assert [choice["index"] for choice in reply["choices"]] == list(range(len(prompts)))
    assert reply["usage"]["prompt_tokens"] == sum(map(len, prompts))


async def test_several_texts_of_several_prompts(world: World) -> None:
    reply = await complete(world, prompt=["a", "bc"], n=2, best_of=2, seed=3, echo=True)
    assert [choice["text"] for choice in reply["choices"]] == ["aOnce.", "aOnce.", "bcOnce.", "bcOnce."]
    assert reply["usage"]["prompt_tokens"] == 3
    assert reply["usage"]["completion_tokens"] == 4 * 6
    assert sorted(world.prompts) == ["a", "a", "bc", "bc"]
    assert len({params.seed for params in world.engine.params}) == 2


async def test_echo(world: World) -> None:
    assert (await complete(world, prompt=[72, 195, 164], echo=True))["choices"][0]["text"] == "HäOnce."
    chunks = await chunks_of(world, PATH, prompt="Hi", echo=True)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "HiOnce."
    assert chunks[0]["choices"][0]["text"] == "HiO"
    for count in (1, 2):  # nothing is generated, so that no answer ever starts
        reply = await complete(world, echo=True, max_tokens=0, n=count)
        assert [choice["text"] for choice in reply["choices"]] == ["Hi"] * count
        assert reply["choices"][0]["finish_reason"] == "length"


async def test_logprobs(world: World) -> None:
    world.answers = [Answer("aé!"), Answer("aé!"), Answer("a")]
    logprobs = (await complete(world, logprobs=2))["choices"][0]["logprobs"]
    assert logprobs["tokens"] == ["a", "bytes:\\xc3", "bytes:\\xa9", "!"]
    assert logprobs["text_offset"] == [0, 1, 1, 2]
    assert logprobs["token_logprobs"] == [-0.5] * 4
    assert logprobs["top_logprobs"][0] == {"a": -0.5, "\0": -1.5}
    chunks = await chunks_of(world, PATH, prompt="Hi", logprobs=1)
    streamed = [chunk["choices"][0]["logprobs"] for chunk in chunks]
    for name in logprobs:
        assert [value for part in streamed for value in part[name]] == logprobs[name]
    assert (await complete(world, logprobs=0))["choices"][0]["logprobs"]["top_logprobs"] is None


async def test_a_suffix_goes_through_the_template(world: World, model_folders: dict[str, Any]) -> None:
    add_model(world.store, "coder", model_folders["tiny"], template=INSERTING)
    await complete(world, model="coder", prompt="def f(", suffix=")")
    await complete(world, model="coder", prompt="def f(")
    assert world.prompts == ["<PRE>def f(<SUF>)<MID>", "def f("]


REFUSALS: list[tuple[dict[str, Any], str, str]] = [
    ({"prompt": None}, "prompt", "prompt is missing"),
    ({"prompt": []}, "prompt", "prompt is missing"),
    ({"prompt": ["a", 1]}, "prompt", "prompt mixes"),
    ({"prompt": [[]]}, "prompt", "prompt has an empty list"),
    ({"prompt": [1.5]}, "prompt[0]", "invalid request: field prompt[0]: expected"),
    ({"prompt": ["a"] * 17, "n": 128}, "prompt", "17 prompts with 128 texts each are 2176, but at most 2048"),
    ({"prompt": [259]}, "prompt", "prompt holds 259, which is no token: ids go from 0 to 258"),
    ({"prompt": [[1], [-1]]}, "prompt", "prompt holds -1"),
    ({"logit_bias": {"259": 1}}, "logit_bias", "logit_bias holds 259"),
    ({"max_tokens": -1}, "max_tokens", "max_tokens is -1, but it must be at least 0"),
    ({"logprobs": 21}, "logprobs", "logprobs is 21, but it must be from 0 to 20"),
    ({"logprobs": True}, "logprobs", "invalid request: field logprobs: expected int, got bool"),
    ({"best_of": 3}, "best_of", "best_of is 3 and n is 1"),
    ({"best_of": 1, "n": 2}, "best_of", "best_of is 1 and n is 2"),
    ({"echo": True, "logprobs": 1}, "echo", "echo and logprobs exclude each other"),
    ({"suffix": "x", "prompt": [65]}, "suffix", "suffix goes with prompts that are texts"),
]


@pytest.mark.parametrize(("body", "param", "message"), REFUSALS)
async def test_refusals_name_the_field(world: World, body: dict[str, Any], param: str, message: str) -> None:
    error = await error_of(world, 400, PATH, **{"prompt": "Hi", **body})
    assert (error["param"], error["message"][: len(message)]) == (param, message)
    assert error["type"] == "invalid_request_error"
    assert world.engines == []


async def test_a_prompt_that_is_too_long_is_not_cut(world: World) -> None:
    assert (await error_of(world, 400, PATH, prompt="x" * 300))["code"] == "context_length_exceeded"


async def test_a_model_that_cannot_insert(world: World) -> None:
    error = await error_of(world, 400, PATH, prompt="a", suffix="b")
    assert (error["param"], error["message"]) == ("suffix", '"tiny" does not support insert')


async def test_models(world: World, model_folders: dict[str, Any]) -> None:
    add_model(world.store, "hf.co/maker/small:Q8_0", model_folders["tiny"])
    reply = (await world.http.get("/v1/models")).json()
    assert reply["object"] == "list"
    owners = {model["id"]: model["owned_by"] for model in reply["data"]}
    assert owners == {
        "tiny:latest": "library",
        "thinker:latest": "library",
        "plain:latest": "library",
        "hf.co/maker/small:Q8_0": "maker",
    }
    assert all(model["object"] == "model" and model["created"] > 0 for model in reply["data"])
    assert (await world.http.get("/v1/models/TINY")).json()["id"] == "TINY"
    assert (await world.http.get("/v1/models/hf.co/maker/small:Q8_0")).json()["owned_by"] == "maker"
    response = await world.http.get("/v1/models/nope")
    assert response.status_code == 404
    assert response.json()["error"] == {
        "message": "model 'nope' not found",
        "type": "invalid_request_error",
        "param": "model",
        "code": "model_not_found",
    }
    assert (await world.http.delete("/v1/models/tiny")).status_code == 405


async def test_no_models_are_an_empty_list(world: World) -> None:
    for stored in world.store.list():
        world.store.delete(stored.name)
    assert (await world.http.get("/v1/models")).json() == {"object": "list", "data": []}
