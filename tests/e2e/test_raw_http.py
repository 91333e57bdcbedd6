"""A real daemon with real workers, by raw HTTP: what Ollama's own tests assert of a server without looking inside."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.e2e.conftest import Daemon, create_tiny

pytestmark = pytest.mark.e2e

QUESTION = [{"role": "user", "content": "Tell me a story about a fox."}]
GREEDY: dict[str, Any] = {"temperature": 0, "num_predict": 12}


@pytest.fixture
def http(daemon: Daemon) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=daemon.base_url, timeout=60, trust_env=False) as client:
        yield client


@pytest.fixture(scope="session")
def tiny(daemon: Daemon, tiny_folder: Path) -> str:
    create_tiny(daemon.client(), tiny_folder)
    return "tiny"


def lines(http: httpx.Client, path: str, **body: Any) -> list[dict[str, Any]]:
    with http.stream("POST", path, json=body) as response:
        assert response.status_code == 200
        assert response.headers["content-type"] == "application/x-ndjson"
        assert response.headers["transfer-encoding"] == "chunked"
        return [json.loads(line) for line in response.iter_lines()]


def whole(http: httpx.Client, path: str, **body: Any) -> dict[str, Any]:
    response = http.post(path, json={"stream": False, **body})
    assert response.status_code == 200, response.text
    reply: dict[str, Any] = response.json()
    return reply


def test_no_option_starts_a_worker(daemon: Daemon, http: httpx.Client, tale: str) -> None:
    def workers() -> set[int]:
        return {child.pid for child in psutil.Process(daemon.process.pid).children()}

    http.post("/api/generate", json={"model": tale})
    before = workers()
    for num_ctx in (64, 512, 128, 8192):
        whole(http, "/api/chat", model=tale, messages=QUESTION, options={**GREEDY, "num_ctx": num_ctx})
    assert workers() <= before


def test_what_the_prefix_cache_holds_is_counted(http: httpx.Client, tale: str) -> None:
    question = [{"role": "user", "content": f"{'Who am I? ' * 40}Tell me."}]
    first = whole(http, "/api/chat", model=tale, messages=question, options=GREEDY)
    again = whole(http, "/api/chat", model=tale, messages=question, options=GREEDY)
    talk = [*question, first["message"], *QUESTION]
    further = whole(http, "/api/chat", model=tale, messages=talk, options=GREEDY)
    assert again["message"] == first["message"]
    assert again["prompt_eval_count"] == first["prompt_eval_count"]
    assert again["prompt_cached_count"] >= again["prompt_eval_count"] // 2
    assert further["prompt_cached_count"] >= first["prompt_eval_count"] // 2


def test_an_answer_goes_on_past_its_context_and_says_so(http: httpx.Client, tiny: str) -> None:
    body = {"model": tiny, "prompt": "🦊", "raw": True, "options": {"temperature": 0, "num_ctx": 64, "num_predict": 99}}
    last = lines(http, "/api/generate", **body)[-1]
    assert (last["eval_count"], last["done_reason"], last["truncated"]) == (99, "length", True)
    ends = whole(http, "/api/generate", **body, shift=False)
    assert ends["eval_count"] + ends["prompt_eval_count"] in (64, 65)  # the last token need not be read again
    assert ends["done_reason"] == "length"
    assert "truncated" not in ends


def test_a_long_prompt_is_answered_or_refused(http: httpx.Client, tale: str) -> None:
    body = {"model": tale, "prompt": "The fox ran. " * 200, "options": {**GREEDY, "num_ctx": 128}}
    reply = whole(http, "/api/generate", **body)
    assert reply["truncated"] is True
    assert reply["prompt_eval_count"] < 128
    response = http.post("/api/generate", json={**body, "truncate": False})
    assert response.status_code == 400
    assert "exceed the context length of 128" in response.json()["error"]


def test_the_number_of_tokens(http: httpx.Client, tale: str) -> None:
    body = {"model": tale, "prompt": "Once upon a time", "raw": True, "logprobs": True, "top_logprobs": 5}
    reply = whole(http, "/api/generate", **body, options={**GREEDY, "num_predict": 10})
    assert len(reply["logprobs"]) == reply["eval_count"] == 10
    assert reply["done_reason"] == "length"
    for entry in reply["logprobs"]:
        assert entry["token"]
        assert entry["logprob"] <= 0
        assert bytes(entry["bytes"]).decode("utf-8", "replace") == entry["token"]
        tops = [top["logprob"] for top in entry["top_logprobs"]]
        assert len(tops) == 5
        assert tops == sorted(tops, reverse=True)
        assert entry["logprob"] == tops[0]
    nothing = whole(http, "/api/generate", **body, options={**GREEDY, "num_predict": 0})
    assert (nothing["response"], nothing["done"], nothing["done_reason"]) == ("", True, "length")
    assert nothing["prompt_eval_count"] == reply["prompt_eval_count"]
    assert "eval_count" not in nothing


def test_the_context_of_a_reply_goes_on(http: httpx.Client, tale: str) -> None:
    body = {"model": tale, "options": {**GREEDY, "num_predict": 8}}
    first = whole(http, "/api/generate", **body, prompt="Tell me a story about a fox.")
    second = whole(http, "/api/generate", **body, prompt="And then?", context=first["context"])
    assert second["context"][: len(first["context"])] == first["context"]
    assert second["prompt_eval_count"] > len(first["context"])


def test_talks_at_once_are_answered_each_for_itself(http: httpx.Client, tale: str) -> None:
    def story(animal: str) -> str:
        messages = [{"role": "user", "content": f"Tell me a story about a {animal}."}]
        reply = whole(http, "/api/chat", model=tale, messages=messages, options={"temperature": 0, "num_predict": 40})
        content: str = reply["message"]["content"]
        return content

    animals = ("fox", "bear", "owl", "mouse")
    with ThreadPoolExecutor(len(animals)) as pool:
        stories = list(pool.map(story, animals))
    for animal, text in zip(animals, stories, strict=True):
        assert animal in text.lower()


def test_characters_of_many_bytes_are_never_split(http: httpx.Client, tiny: str) -> None:
    """The tiny model says bytes at random, so nearly all it says is broken UTF-8; what is whole stays whole."""
    body = {"model": tiny, "prompt": "日本の🦊", "raw": True, "options": {"seed": 5, "num_predict": 50}}
    streamed = "".join(reply["response"] for reply in lines(http, "/api/generate", **body))
    assert streamed == whole(http, "/api/generate", **body)["response"]


def test_a_connection_is_used_again_after_replies_of_all_kinds(daemon: Daemon, tiny: str) -> None:
    with httpx.Client(base_url=daemon.base_url, timeout=60, trust_env=False) as http:
        opened = set()
        for method, path, body in (
            ("GET", "/", b""),
            ("HEAD", "/api/tags", b""),
            ("POST", "/api/generate", json.dumps({"model": tiny, "prompt": "x", "options": GREEDY}).encode()),
            ("POST", "/api/generate", b'{"model":'),
            ("POST", "/api/chat", b'{"model": "no-such"}'),
            ("GET", "/nothing", b""),
            ("GET", "/api/chat", b""),
            ("GET", "/api/version", b""),
        ):
            response = http.request(method, path, content=body)
            opened.add(response.extensions["network_stream"].get_extra_info("client_addr"))
        assert len(opened) == 1
