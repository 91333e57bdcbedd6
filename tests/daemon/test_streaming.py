"""Clients that leave, that do not read, that are many; workers that die: sequences must end with their clients."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.daemon.conftest import RawClient, World
from tests.daemon.fake_engine import Answer

pytestmark = pytest.mark.anyio

TIMEOUT_S = 10.0


def body(path: str = "/api/generate", **more: object) -> bytes:
    words = {"prompt": "Hi"} if path == "/api/generate" else {"messages": [{"role": "user", "content": "Hi"}]}
    return json.dumps({"model": "tiny", **words, **more}).encode()


@pytest.mark.parametrize("path", ["/api/generate", "/api/chat"])
@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_aborts_its_sequence(world: World, path: str, stream: bool) -> None:
    world.answers = [Answer("a very long story", pause_after=3)]
    client = RawClient(world.app, "POST", path, body(path, stream=stream))
    while not world.engines:
        await asyncio.sleep(0)
    async with asyncio.timeout(TIMEOUT_S):
        await world.engine.paused.wait()
        client.leave()
        await world.engine.aborted.wait()
        await client.task
    assert world.engine.num_aborted == 1
    assert world.manager.num_waiting == 0
    assert (await world.http.get("/api/ps")).json()["models"][0]["name"] == "tiny:latest"
    assert (await world.whole("/api/generate", model="tiny", prompt="Hi"))["done"]


async def test_a_client_that_leaves_while_the_model_loads_submits_nothing(world: World) -> None:
    world.prepare = lambda engine: engine.load_gate.clear()
    leaver = RawClient(world.app, "POST", "/api/generate", body())
    stayer = RawClient(world.app, "POST", "/api/generate", body())
    async with asyncio.timeout(TIMEOUT_S):
        while not world.engines or not world.engine.loads:
            await asyncio.sleep(0)
        leaver.leave()
        await leaver.task
        assert leaver.sent.empty()
        world.engine.load_gate.set()
        await stayer.task
    assert len(world.engines) == 1
    assert len(world.engine.loads) == 1
    assert len(world.engine.prompts) == 1


async def test_a_client_that_does_not_read_holds_up_nobody(world: World) -> None:
    world.answers = [Answer("slow " * 50), Answer("quick")]
    slow = RawClient(world.app, "POST", "/api/generate", body())
    slow.reads.clear()
    reply = await world.whole("/api/generate", model="tiny", prompt="Hi")
    assert reply["response"] in ("quick", "slow " * 50)
    async with asyncio.timeout(TIMEOUT_S):
        while len(world.engines) < 1 or len(world.engine.prompts) < 2:
            await asyncio.sleep(0)
        assert slow.sent.empty()
        slow.leave()
        await slow.task


async def test_many_streams_at_once_share_one_load(world: World) -> None:
    world.answers = [Answer(f"story number {number}") for number in range(50)]
    replies = await asyncio.gather(
        *(world.lines("/api/generate", model="tiny", prompt=f"Prompt {number}") for number in range(50))
    )
    texts = {"".join(line["response"] for line in lines) for lines in replies}
    assert texts == {f"story number {number}" for number in range(50)}
    assert len(world.engines) == 1
    assert len(world.engine.loads) == 1
    assert len(world.engine.prompts) == 50


async def test_a_worker_that_dies_ends_streams_and_begins_anew_what_has_sent_nothing(world: World) -> None:
    world.answers = [Answer("a long story", pause_after=2), Answer("another", pause_after=0), Answer("again")]
    first = RawClient(world.app, "POST", "/api/generate", body())
    async with asyncio.timeout(TIMEOUT_S):
        assert (await first.next_line())["response"] == "a"
        second = RawClient(world.app, "POST", "/api/chat", body("/api/chat"))
        while len(world.engine.prompts) < 2:
            await asyncio.sleep(0)
        world.engine.die()
        assert (await first.next_line())["response"] == " "
        assert "killed by signal 9" in (await first.next_line())["error"]
        assert (await second.next_line())["message"]["content"] == "a"
        await asyncio.gather(first.task, second.task)
    assert (await world.whole("/api/generate", model="tiny", prompt="Hi"))["done"]
    assert len(world.engines) == 2


async def test_a_request_that_two_workers_die_of_gets_an_error(world: World) -> None:
    world.answers = [Answer("never", pause_after=0), Answer("never", pause_after=0)]
    client = RawClient(world.app, "POST", "/api/generate", body())
    async with asyncio.timeout(TIMEOUT_S):
        for number in (1, 2):
            while len(world.engines) < number or not world.engine.paused.is_set():
                await asyncio.sleep(0)
            world.engine.die()
        start = await client.sent.get()
        assert start["status"] == 500
        await client.task
    assert len(world.engines) == 2
    assert (await world.whole("/api/generate", model="tiny", prompt="Hi"))["done"]


async def test_what_a_stream_says_is_what_the_whole_says(world: World) -> None:
    text = "Grüße, 世界! 🦊 e\u0301 <tool_call> no call"
    for size in (1, 2, 3, 7, 100):
        world.answers = [Answer(text, tokens_per_step=size), Answer(text, tokens_per_step=size)]
        lines = await world.lines("/api/generate", model="tiny", prompt="Hi")
        whole = await world.whole("/api/generate", model="tiny", prompt="Hi")
        assert "".join(line["response"] for line in lines) == whole["response"] == text
        assert not any("\ufffd" in line["response"] for line in lines)
