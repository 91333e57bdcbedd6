"""EngineClient and the worker's loop, across a real process boundary, with a fake model behind it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import struct
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import uvloop

from engine.client import EngineClient, TokenOutput, TokenStream
from engine.errors import EngineDied, LoadFailed, RequestFailed
from engine.messages import Load, Quantize, Quantized
from engine.sampling_params import SamplingParams
from tests.engine.fake_runner import expected_output

LOAD = Load(files={}, max_num_seqs=8, max_num_batched_tokens=32)
FOREVER = SamplingParams(max_context=40, shift=True)
SCRIPT = Path(__file__).with_name("fake_worker.py")

Test = Callable[[EngineClient], Awaitable[None]]


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest, root: Path) -> Callable[..., None]:
    """Runs a test coroutine with a started client, under both event loops; afterwards nothing may be left."""

    def run(test: Test, *, load: Load | None = LOAD, max_pending_tokens: int = 1_000_000, **knobs: Any) -> None:
        async def main() -> None:
            env = {**os.environ, "PYTHONPATH": str(root)}
            command = [sys.executable, "-P", str(SCRIPT), json.dumps(knobs)]
            engine = await EngineClient.start(env=env, command=command, max_pending_tokens=max_pending_tokens)
            try:
                if load is not None:
                    await engine.load(load)
                await test(engine)
            finally:
                await engine.close()
            assert not engine.alive
            assert engine.exited.done()
            assert asyncio.all_tasks() == {asyncio.current_task()}, "a task was left behind"

        factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(asyncio.sleep(0))  # libuv opens a pipe for signals once and keeps it
        num_fds = len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(main())
        if sys.platform == "linux":
            assert len(os.listdir("/proc/self/fd")) == num_fds, "a file descriptor was left behind"

    return run


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"HOB_HOME": "/srv/hob"}, "/srv/hob/cache/triton"),
        ({"HOB_HOME": "/srv/hob", "TRITON_CACHE_DIR": "/mine"}, "/mine"),
    ],
    ids=["ours", "the user's"],
)
def test_a_worker_keeps_compiled_kernels_on_disk(given: dict[str, str], expected: str, tmp_path: Path) -> None:
    script = "import os, sys; open(sys.argv[1], 'w').write(os.environ['TRITON_CACHE_DIR'])"

    async def main() -> None:
        command = [sys.executable, "-c", script, str(tmp_path / "told")]
        engine = await EngineClient.start(env={"PATH": os.environ["PATH"], **given}, command=command)
        await engine.exited
        await engine.close()

    asyncio.run(main())
    assert (tmp_path / "told").read_text() == expected


async def collect(stream: TokenStream) -> tuple[list[int], str | None]:
    token_ids: list[int] = []
    async for output in stream:
        token_ids += output.token_ids
        if output.finish_reason is not None:
            return token_ids, output.finish_reason
    return token_ids, None


async def wait_until_idle(engine: EngineClient) -> None:
    """Each answer comes after a step, so what is in flight is soon in."""
    for _ in range(10):
        stats = await engine.stats()
        if stats.num_free_blocks == stats.num_blocks:
            break
    assert (stats.num_running, stats.num_waiting) == (0, 0)
    assert stats.num_free_blocks == stats.num_blocks, "blocks leaked"


def test_a_prompt_yields_what_it_yields_alone(run: Callable[..., None]) -> None:
    async def test(engine: EngineClient) -> None:
        params = SamplingParams(max_tokens=20, seed=3, logprobs=0)
        stream = engine.submit([1, 2, 3], params)
        outputs = [output async for output in stream]
        token_ids = [token_id for output in outputs for token_id in output.token_ids]
        assert token_ids == expected_output([1, 2, 3], params)[0]
        assert [output.finish_reason for output in outputs[:-1]] == [None] * (len(outputs) - 1)
        assert outputs[-1].finish_reason == "length"
        assert outputs[-1].num_prompt_tokens == 3
        assert all(len(output.logprobs) == len(output.token_ids) for output in outputs)
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
        assert engine.num_streams == 0

    run(test)


def test_load_answers_with_what_the_model_has(run: Callable[..., None]) -> None:
    async def test(engine: EngineClient) -> None:
        progress: list[tuple[int, int]] = []
        ready = await engine.load(LOAD, lambda done, total: progress.append((done, total)))
        assert progress == [(1, 2), (2, 2)]
        assert (ready.num_blocks, ready.block_size, ready.device) == (31, 4, "fake")
        with pytest.raises(LoadFailed, match="has loaded a model already"):
            await engine.load(LOAD)

    run(test, load=None, num_blocks=31)


def test_a_failed_load_says_why_and_the_worker_lives(run: Callable[..., None]) -> None:
    async def test(engine: EngineClient) -> None:
        with pytest.raises(LoadFailed, match=r"config\.json is not there"):
            await engine.load(Load(files={"config.json": "missing"}))
        stream = engine.submit([1], SamplingParams(max_tokens=1))
        with pytest.raises(RequestFailed, match="has no model; send Load first"):
            await anext(stream)
        assert (await engine.load(LOAD)).device == "fake"
        assert await collect(engine.submit([1], SamplingParams(max_tokens=1))) == expected_output(
            [1], SamplingParams(max_tokens=1)
        )

    run(test, load=None)


def test_no_memory_to_load_is_told_apart(run: Callable[..., None]) -> None:
    async def test(engine: EngineClient) -> None:
        with pytest.raises(LoadFailed, match="needs 9 GB") as caught:
            await engine.load(LOAD)
        assert caught.value.kind == "memory"

    run(test, load=None, fail_load="the model needs 9 GB, 3 GB are free; unload another")


def test_quantizing_reports_progress_and_what_was_written(run: Callable[..., None]) -> None:
    async def test(engine: EngineClient) -> None:
        seen: list[tuple[int, int]] = []
        order = Quantize(files={}, folder="/there", file_type="Q4_0")
        answer = await engine.quantize(order, lambda done, total: seen.append((done, total)))
        assert answer == Quantized(files={"model.gguf": "/there"}, notes=["a note"])
        assert seen == [(1, 2)]
        with pytest.raises(LoadFailed, match="no memory to quantize with") as caught:
            await engine.quantize(Quantize(files={}, folder="", file_type="fail"))
        assert caught.value.kind == "memory"

    run(test, load=None)


def test_a_worker_that_quantizes_is_ended_at_once(run: Callable[..., None]) -> None:
    async def test(engine: EngineClient) -> None:
        has_begun = asyncio.Event()
        order = Quantize(files={}, folder="", file_type="hang")
        job = asyncio.create_task(engine.quantize(order, lambda done, total: has_begun.set()))
        await has_begun.wait()
        await engine.close(0.0)
        with pytest.raises(EngineDied):
            await job

    run(test, load=None)


@pytest.mark.parametrize(
    ("prompt_ids", "params", "message"),
    [
        ([], SamplingParams(), "the prompt is empty"),
        ([1, 50], SamplingParams(), "the prompt holds token id 50, but the model's ids are 0 to 49"),
        ([1, -1], SamplingParams(), "the prompt holds token id -1"),
        ([1], SamplingParams(logit_bias={99: 1.0}), "logit_bias holds token id 99"),
        ([1], SamplingParams(stop_token_ids=(77,)), "stop_token_ids holds token id 77"),
        ([1] * 300, SamplingParams(), "the prompt has 300 tokens, which leaves no room in a context of 256 tokens"),
        ([1] * 10, SamplingParams(max_context=10), "raise num_ctx"),
    ],
)
def test_an_impossible_request_is_refused_with_a_sentence(
    run: Callable[..., None], prompt_ids: list[int], params: SamplingParams, message: str
) -> None:
    async def test(engine: EngineClient) -> None:
        stream = engine.submit(prompt_ids, params)
        with pytest.raises(RequestFailed, match=message) as caught:
            await anext(stream)
        assert caught.value.kind == "invalid"
        assert (await collect(engine.submit([1], SamplingParams(max_tokens=2))))[1] == "length"

    run(test)


def test_parameters_that_do_not_decode_fail_their_request_only(run: Callable[..., None]) -> None:
    async def test(engine: EngineClient) -> None:
        params = SamplingParams()
        msgspec.structs.force_setattr(params, "temperature", -1.0)  # no caller can do this by accident
        with pytest.raises(RequestFailed, match=r"temperature is -1\.0 but must be"):
            await anext(engine.submit([1], params))
        assert (await collect(engine.submit([1], SamplingParams(max_tokens=2))))[1] == "length"

    run(test)


def test_closing_a_stream_aborts_and_frees_its_blocks(run: Callable[..., None]) -> None:
    async def test(engine: EngineClient) -> None:
        async with contextlib.aclosing(engine.submit([1, 2, 3], FOREVER)) as stream:
            assert (await anext(stream)).finish_reason is None
            stats = await engine.stats()
            assert stats.num_running + stats.num_waiting == 1, "whose context is just being shifted waits"
        assert engine.num_streams == 0
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
        await stream.aclose()
        await wait_until_idle(engine)

    run(test)


def test_abort_ends_the_stream_of_a_reader_who_stays(run: Callable[..., None]) -> None:
    async def test(engine: EngineClient) -> None:
        stream = engine.submit([1, 2, 3], FOREVER)
        await anext(stream)
        engine.abort([stream.seq_id, 12345])
        assert (await collect(stream))[1] == "abort"
        await wait_until_idle(engine)

    run(test)


def test_a_cancelled_reader_can_close_its_stream(run: Callable[..., None]) -> None:
    async def test(engine: EngineClient) -> None:
        started = asyncio.Event()

        async def read() -> None:
            async with contextlib.aclosing(engine.submit([4], FOREVER)) as stream:
                async for _ in stream:
                    started.set()

        task = asyncio.create_task(read())
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await wait_until_idle(engine)

    run(test)


def test_a_slow_reader_gets_many_steps_at_once(run: Callable[..., None]) -> None:
    async def test(engine: EngineClient) -> None:
        params = SamplingParams(max_tokens=50)
        slow = engine.submit([1, 2], params)
        await collect(engine.submit([3], SamplingParams(max_tokens=60)))  # in the same steps, and ten more
        outputs = [output async for output in slow]
        assert len(outputs) == 1
        assert (outputs[0].token_ids, outputs[0].finish_reason) == expected_output([1, 2], params)

    run(test)


def test_a_reader_who_never_comes_is_aborted(run: Callable[..., None]) -> None:
    async def test(engine: EngineClient) -> None:
        absent = engine.submit([1, 2], FOREVER)
        await collect(engine.submit([3], SamplingParams(max_tokens=31, max_context=100)))
        await wait_until_idle(engine)
        output = await anext(absent)
        assert output.finish_reason is None
        assert len(output.token_ids) == 31
        with pytest.raises(RequestFailed, match="left 31 tokens unread"):
            await anext(absent)

    run(test, max_pending_tokens=30)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_killed_worker_ends_every_stream(run: Callable[..., None], number: signal.Signals) -> None:
    async def test(engine: EngineClient) -> None:
        streams = [engine.submit([n], FOREVER) for n in range(5)]
        for stream in streams:
            await anext(stream)
        os.kill(engine.pid, number)
        for stream in streams:
            with pytest.raises(EngineDied, match=f"killed by signal {number.value}"):
                await collect(stream)
        assert "the next request loads the model again" in await engine.exited
        assert not engine.alive
        with pytest.raises(EngineDied, match="killed by signal"):
            engine.submit([1], FOREVER)
        with pytest.raises(EngineDied, match="killed by signal"):
            await engine.stats()

    run(test)


def test_a_worker_that_exits_by_itself_tells_its_status(run: Callable[..., None]) -> None:
    async def test(engine: EngineClient) -> None:
        stats = asyncio.create_task(collect(engine.submit([1], FOREVER)))
        with pytest.raises(EngineDied, match="ended with exit status 7"):
            await stats

    run(test, die_at=5)


def test_closing_ends_open_streams_and_pending_calls(run: Callable[..., None]) -> None:
    async def test(engine: EngineClient) -> None:
        stream = engine.submit([1], FOREVER)
        await anext(stream)
        await engine.close()
        with pytest.raises(EngineDied, match="was closed"):
            await collect(stream)
        with pytest.raises(EngineDied, match="was closed"):
            await engine.load(LOAD)
        await engine.close()

    run(test)


def test_closing_kills_a_worker_that_hangs(run: Callable[..., None]) -> None:
    async def test(engine: EngineClient) -> None:
        await anext(engine.submit([1], FOREVER))
        os.kill(engine.pid, signal.SIGSTOP)
        await engine.close(grace=0)
        assert "signal 9" in await engine.exited

    run(test)


def test_a_failed_step_ends_who_ran_and_the_worker_lives(run: Callable[..., None]) -> None:
    async def test(engine: EngineClient) -> None:
        streams = [engine.submit([n, n, n], FOREVER) for n in range(3)]
        for stream in streams:  # the step in which all three run fails
            with pytest.raises(RequestFailed, match="the model failed while it computed: the device is on fire"):
                await collect(stream)
        params = SamplingParams(max_tokens=30)
        assert await collect(engine.submit([1, 1, 1], params)) == expected_output([1, 1, 1], params)
        await wait_until_idle(engine)

    run(test, fail_at_rows=3)


def test_a_fatal_fault_ends_the_worker_with_its_reason(run: Callable[..., None]) -> None:
    async def test(engine: EngineClient) -> None:
        stream = engine.submit([1], FOREVER)
        with pytest.raises(RequestFailed, match="on fire"):
            await collect(stream)
        assert "exit status 1: the device is on fire" in await engine.exited

    run(test, fail_at_rows=1, fatal=True)


def test_a_row_that_is_not_finite_fails_alone(run: Callable[..., None]) -> None:
    async def test(engine: EngineClient) -> None:
        bad = engine.submit([5, 6, 49], SamplingParams(max_tokens=10))
        good = engine.submit([5, 6, 48], SamplingParams(max_tokens=1))
        with pytest.raises(RequestFailed, match="not finite"):
            await collect(bad)
        assert await collect(good) == expected_output([5, 6, 48], SamplingParams(max_tokens=1))

    run(test, bad_tokens=[49])


async def read_more(stream: TokenStream, num_tokens: int) -> list[int]:
    token_ids: list[int] = []
    while len(token_ids) < num_tokens:
        token_ids += (await anext(stream)).token_ids
    return token_ids


def forever_alone(prompt_ids: list[int], num_tokens: int) -> list[int]:
    params = msgspec.structs.replace(FOREVER, max_tokens=num_tokens)
    return expected_output(prompt_ids, params)[0]


def test_sleep_keeps_the_sequences_and_wake_goes_on(run: Callable[..., None]) -> None:
    async def test(engine: EngineClient) -> None:
        streams = [engine.submit([n], FOREVER) for n in range(3)]
        before = [await read_more(stream, 1) for stream in streams]
        stats = await engine.sleep()
        assert stats.is_sleeping
        assert (stats.num_running, stats.num_waiting) == (0, 3)
        assert stats.num_free_blocks == stats.num_blocks
        streams.append(engine.submit([3], FOREVER))
        before.append([])
        assert (await engine.sleep()).num_waiting == 4
        assert (await engine.wake()).num_blocks == 200
        for n, stream in enumerate(streams):
            token_ids = before[n] + await read_more(stream, 100)
            assert token_ids == forever_alone([n], len(token_ids))
        assert not (await engine.stats()).is_sleeping
        assert (await engine.wake()).num_blocks == 200

    run(test, num_blocks=200)


def test_resize_moves_the_sequences_to_a_cache_of_another_size(run: Callable[..., None]) -> None:
    async def test(engine: EngineClient) -> None:
        streams = [engine.submit([n], FOREVER) for n in range(3)]
        too_long = engine.submit([7] * 150, SamplingParams(max_context=200, shift=True))
        before = [await read_more(stream, 1) for stream in streams]
        await anext(too_long)
        assert (await engine.resize(num_blocks=25)).num_blocks == 25
        for n, stream in enumerate(streams):
            token_ids = before[n] + await read_more(stream, 100)
            assert token_ids == forever_alone([n], len(token_ids))
        with pytest.raises(RequestFailed, match="was made smaller and holds 100 tokens now"):
            await collect(too_long)
        stats = await engine.stats()
        assert stats.num_blocks == 25

    run(test, num_blocks=200)


def test_sleep_needs_a_model(run: Callable[..., None]) -> None:
    async def test(engine: EngineClient) -> None:
        with pytest.raises(LoadFailed, match="Sleep needs a loaded model"):
            await engine.sleep()
        assert (await engine.stats()).num_blocks == 0

    run(test, load=None)


@pytest.mark.parametrize("windows", [[None], [None, 7]])
@pytest.mark.parametrize("run_ahead", [0, 1])
def test_64_streams_with_aborts_and_preemptions_equal_those_alone(
    run: Callable[..., None], run_ahead: int, windows: list[int | None], tmp_path: Path
) -> None:
    # However slow this process is, the worker's first step ends when the first 32 have been submitted, and 16 at once
    # need more blocks than there are. The others come while it runs.
    gate = tmp_path / "gate"
    os.mkfifo(gate)

    async def test(engine: EngineClient) -> None:
        random_ = random.Random(0)
        num_submitted = 0

        async def one(n: int) -> None:
            nonlocal num_submitted
            prompt_ids = [random_.randrange(2) for _ in range(random_.randrange(1, 40))]
            params = SamplingParams(max_tokens=random_.randrange(1, 40), seed=n % 3, stop_token_ids=(n % 50,))
            leave_after = random_.randrange(1, 20) if n % 4 == 0 else 1000
            for _ in range(random_.randrange(100) if n >= 32 else 0):
                await asyncio.sleep(0)
            outputs: list[TokenOutput] = []
            async with contextlib.aclosing(engine.submit(prompt_ids, params, priority=n % 2)) as stream:
                num_submitted += 1
                if num_submitted == 32:
                    await asyncio.to_thread(gate.write_bytes, b"")  # waits for the worker to come to its first result
                async for output in stream:
                    outputs.append(output)
                    if len(outputs) == leave_after:
                        break
            token_ids = [token_id for output in outputs for token_id in output.token_ids]
            expected, reason = expected_output(prompt_ids, params)
            if outputs[-1].finish_reason is None:
                assert token_ids == expected[: len(token_ids)]
            else:
                assert (token_ids, outputs[-1].finish_reason) == (expected, reason)

        async with asyncio.TaskGroup() as group:
            for n in range(64):
                group.create_task(one(n))
        await wait_until_idle(engine)
        stats = await engine.stats()
        assert stats.num_preemptions > 0
        assert stats.num_cached_tokens > 0

    load = Load(files={}, max_num_seqs=16, max_num_batched_tokens=48, run_ahead=run_ahead)
    run(test, load=load, num_blocks=40, windows=windows, gate=str(gate))


# ---- embedding


def test_vectors_of_many_calls_come_together(run: Callable[..., None]) -> None:
    async def test(engine: EngineClient) -> None:
        calls = [engine.embed([[1] * length, [2]]) for length in (3, 1, 9)]
        for length, vectors in zip((3, 1, 9), await asyncio.gather(*calls), strict=True):
            assert [struct.unpack("<2f", vector)[0] for vector in vectors] == [length, 1]
        assert await engine.embed([]) == []

    run(test)


def test_what_the_worker_refuses_is_the_call_s_error(run: Callable[..., None]) -> None:
    async def test(engine: EngineClient) -> None:
        with pytest.raises(RequestFailed, match="input 1 holds token id 50") as error:
            await engine.embed([[1], [50]])
        assert error.value.kind == "invalid"
        with pytest.raises(RequestFailed, match="this model gives vectors and has no head"):
            await engine.score([[1, 2]], [1])
        assert len(await engine.embed([[1]])) == 1

    run(test)


def test_a_cancelled_call_is_forgotten(run: Callable[..., None]) -> None:
    async def test(engine: EngineClient) -> None:
        call = asyncio.create_task(engine.embed([[1] * 1000] * 20))
        await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert await engine.embed([[1]]) == [struct.pack("<2f", 1, 1)]
        assert not engine._vectors

    run(test)


def test_a_worker_that_dies_ends_the_call(run: Callable[..., None]) -> None:
    async def test(engine: EngineClient) -> None:
        call = asyncio.create_task(engine.embed([[7]]))
        await asyncio.sleep(0)
        os.kill(engine.pid, signal.SIGKILL)
        with pytest.raises(EngineDied, match="was killed by signal 9"):
            await call

    run(test, hang_at_text=[7])


# ---- adapters


def test_adapters_come_and_go_while_others_generate(run: Callable[..., None]) -> None:
    async def test(engine: EngineClient) -> None:
        params = SamplingParams(max_tokens=30, seed=1)
        streams = [engine.submit([1, 2, 3], params)]
        assert (await engine.add_adapter(1, {"adapter.gguf": "a"})).num_blocks == 64
        await engine.add_adapter(2, {"adapter.gguf": "b"})
        streams += [engine.submit([1, 2, 3], params, adapter=adapter) for adapter in (1, 2, 0)]
        outputs = await asyncio.gather(*map(collect, streams))
        expected = [expected_output([1, 2, 3], params, adapter=adapter) for adapter in (0, 1, 2, 0)]
        assert outputs == expected
        assert len({tuple(token_ids) for token_ids, _ in outputs}) == 3
        with pytest.raises(RequestFailed, match="there is no adapter 3; AddAdapter must come before a request"):
            await collect(engine.submit([1], params, adapter=3))
        with pytest.raises(RequestFailed, match="there is no adapter 3"):
            await engine.embed([[1]], adapter=3)
        assert len(await engine.embed([[1]], adapter=2)) == 1
        with pytest.raises(LoadFailed, match="the adapter is of another model"):
            await engine.add_adapter(3, {"broken": "c"})
        endless = engine.submit([4], FOREVER, adapter=2)
        await anext(endless)
        await engine.remove_adapter(2)
        assert (await collect(endless))[1] == "abort"
        assert await collect(engine.submit([1, 2, 3], params, adapter=1)) == expected[1]
        await wait_until_idle(engine)

    run(test)


@pytest.mark.parametrize("files", [["a", "b", "c"], ["a", "b", "broken"]], ids=["fits", "is broken"])
def test_room_for_an_adapter_is_made_of_the_cache(run: Callable[..., None], files: list[str]) -> None:
    """Sequences that run meanwhile start over in a new cache, and nobody sees it."""

    async def test(engine: EngineClient) -> None:
        stream = engine.submit([5, 6], FOREVER)
        got = (await anext(stream)).token_ids
        adding = engine.add_adapter(1, dict.fromkeys(files, ""))
        if "broken" in files:
            with pytest.raises(LoadFailed, match="of another model"):
                await adding
        else:
            await adding
            short = SamplingParams(max_tokens=5)
            output = await collect(engine.submit([5, 6], short, adapter=1))
            assert output == expected_output([5, 6], short, adapter=1)
        assert (await engine.stats()).num_preemptions > 0
        known = len(got)
        while len(got) <= known + 10:  # some come from before
            got += (await anext(stream)).token_ids
        await stream.aclose()
        params = msgspec.structs.replace(FOREVER, max_tokens=len(got))
        assert got == expected_output([5, 6], params)[0]

    run(test)
