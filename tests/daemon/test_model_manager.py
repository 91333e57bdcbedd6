"""Which models are loaded: one load for all, keep-alive, room, the queue, the spare worker, the end."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

import pytest

from daemon.errors import ServerBusy, ShuttingDown
from daemon.model_manager import ManagerConfig
from engine.errors import EngineDied, LoadFailed
from registry.manifest import ADAPTER, Layer, Manifest
from registry.name import ModelName
from registry.stored_model import StoredModel
from tests.daemon.conftest import World
from tests.daemon.fake_engine import Answer

pytestmark = pytest.mark.anyio

TIMEOUT_S = 10.0


async def stored(world: World, name: str) -> StoredModel:
    return await world.services.library.find(name)


def loaded(world: World) -> list[str]:
    return [row.stored.name.model for row in world.manager.running()]


async def use(world: World, name: str, keep_alive_s: float | None = None) -> None:
    async with world.manager.acquire(await stored(world, name), keep_alive_s):
        pass


async def test_callers_share_one_load(world: World) -> None:
    world.prepare = lambda engine: engine.load_gate.clear()
    tiny = await stored(world, "tiny")

    async def hold() -> object:
        async with world.manager.acquire(tiny) as model:
            return model.engine

    tasks = [asyncio.create_task(hold()) for _ in range(8)]
    async with asyncio.timeout(TIMEOUT_S):
        while not world.engines or not world.engine.loads:
            await asyncio.sleep(0)
        world.engine.load_gate.set()
        assert set(await asyncio.gather(*tasks)) == {world.engine}
    assert len(world.engines) == 1


async def test_one_model_loading_does_not_hold_up_another(world: World) -> None:
    await use(world, "tiny")
    world.prepare = lambda engine: engine.load_gate.clear()
    loading = asyncio.create_task(use(world, "thinker"))
    async with asyncio.timeout(TIMEOUT_S):
        await use(world, "tiny")
        assert not loading.done()
        while len(world.engines) < 2:
            await asyncio.sleep(0)
        world.engine.load_gate.set()
        await loading
    assert sorted(loaded(world)) == ["thinker", "tiny"]


async def test_keep_alive_ends_a_session(world: World) -> None:
    await use(world, "tiny", 0.01)
    assert loaded(world) == ["tiny"]
    async with asyncio.timeout(TIMEOUT_S):
        await world.engine.closed.wait()
    assert loaded(world) == []


async def test_keep_alive_waits_for_the_last_user(world: World) -> None:
    tiny = await stored(world, "tiny")
    async with world.manager.acquire(tiny, 0.0):
        async with world.manager.acquire(tiny, 0.0):
            pass
        assert world.engine.alive
        assert world.manager.running()[0].remaining_s == 0.0
    async with asyncio.timeout(TIMEOUT_S):
        await world.engine.closed.wait()


async def test_keep_alive_of_a_request_stays_until_the_next_says_otherwise(world: World) -> None:
    await use(world, "tiny", math.inf)
    assert world.manager.running()[0].remaining_s == math.inf
    await use(world, "tiny")
    assert world.manager.running()[0].remaining_s == math.inf
    await use(world, "tiny", 60.0)
    assert 59 < world.manager.running()[0].remaining_s <= 60


async def test_zero_unloads_and_the_next_request_loads_anew(world: World) -> None:
    await use(world, "tiny", 0.0)
    await use(world, "tiny", 0.0)
    assert len(world.engines) == 2
    await world.manager.unload(ModelName.parse("nothing"))


async def test_unload_while_in_use_waits_for_the_user(world: World) -> None:
    tiny = await stored(world, "tiny")
    async with world.manager.acquire(tiny):
        await world.manager.unload(tiny.name)
        assert world.engine.alive
    async with asyncio.timeout(TIMEOUT_S):
        await world.engine.closed.wait()


async def test_a_name_created_anew_over_other_weights_leaves_its_old_worker(world: World) -> None:
    await world.post("/api/copy", source="tiny", destination="mine")
    await use(world, "mine")
    await world.post("/api/copy", source="thinker", destination="mine")
    await use(world, "mine")
    async with asyncio.timeout(TIMEOUT_S):
        await world.engines[0].closed.wait()
    assert len(world.engines) == 2
    assert loaded(world) == ["mine"]


async def test_a_name_created_anew_over_the_same_weights_keeps_its_worker(world: World) -> None:
    await use(world, "tiny")
    await world.lines("/api/create", model="tiny", **{"from": "tiny"}, template="{{ .Prompt }}!")
    assert (await world.whole("/api/generate", model="tiny", prompt="Hi", _debug_render_only=True))["_debug_info"] == {
        "rendered_template": "Hi!"
    }
    assert len(world.engines) == 1


async def test_a_dead_worker_is_replaced(world: World) -> None:
    await use(world, "tiny")
    world.engine.die()
    assert loaded(world) == []
    await use(world, "tiny")
    assert len(world.engines) == 2
    assert world.engine.alive


async def test_a_load_that_fails_is_told_to_all_and_tried_again(world: World) -> None:
    world.prepare = lambda engine: setattr(engine, "load_error", EngineDied("the engine worker was killed"))
    tasks = [asyncio.create_task(use(world, "tiny")) for _ in range(3)]
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [str(result) for result in results] == ["the engine worker was killed"] * 3
    world.prepare = lambda engine: None
    await use(world, "tiny")
    assert loaded(world) == ["tiny"]


async def test_files_that_cannot_be_loaded(world: World) -> None:
    tiny = await stored(world, "tiny")
    path = tiny.files["tokenizer.json"]
    path.write_text("{}" + " " * (path.stat().st_size - 2))
    with pytest.raises(LoadFailed):
        await use(world, "tiny")


class TestRoomForOne:
    @pytest.fixture
    def manager_config(self) -> ManagerConfig:
        return ManagerConfig(max_loaded=1)

    async def test_the_idle_one_makes_room(self, world: World) -> None:
        await use(world, "tiny")
        await use(world, "thinker")
        assert world.engines[0].closed.is_set()
        assert loaded(world) == ["thinker"]

    async def test_a_busy_one_is_waited_for(self, world: World) -> None:
        async with world.manager.acquire(await stored(world, "tiny")):
            waiting = asyncio.create_task(use(world, "thinker"))
            for _ in range(10):
                await asyncio.sleep(0)
            assert not waiting.done()
            await use(world, "tiny")  # the loaded one is still served
        async with asyncio.timeout(TIMEOUT_S):
            await waiting
        assert loaded(world) == ["thinker"]

    async def test_a_storm_of_swaps(self, world: World) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            await asyncio.gather(*(use(world, name) for name in ["tiny", "thinker"] * 20))
        assert len(loaded(world)) == 1


class TestQueueOfTwo:
    @pytest.fixture
    def manager_config(self) -> ManagerConfig:
        return ManagerConfig(max_queue=2)

    async def test_places_are_given_back(self, world: World) -> None:
        with world.manager.queue() as first, world.manager.queue():
            with pytest.raises(ServerBusy):
                world.manager.queue()
            first.served()
            first.served()
            with world.manager.queue():
                pass
        assert world.manager.num_waiting == 0

    async def test_who_is_too_many_gets_503(self, world: World) -> None:
        world.prepare = lambda engine: engine.load_gate.clear()
        tasks = [asyncio.create_task(world.post("/api/generate", model="tiny", prompt="Hi")) for _ in range(5)]
        async with asyncio.timeout(TIMEOUT_S):
            done, waiting = set[asyncio.Task[object]](), set(tasks)
            while len(done) < 3:
                more, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                done |= more
            while not world.engines:
                await asyncio.sleep(0)
            world.engine.load_gate.set()
            replies = await asyncio.gather(*tasks)
        assert sorted(reply.status_code for reply in replies) == [200, 200, 503, 503, 503]
        busy = next(reply for reply in replies if reply.status_code == 503)
        assert busy.json() == {"error": "server busy, please try again.  maximum pending requests exceeded"}
        assert int(busy.headers["retry-after"]) >= 1

    async def test_running_streams_are_not_in_the_queue(self, world: World) -> None:
        world.answers = [Answer("long", pause_after=1, go_on=asyncio.Event()) for _ in range(4)]
        gates = [answer.go_on for answer in world.answers]
        tasks = []
        async with asyncio.timeout(TIMEOUT_S):
            for number in range(4):
                tasks.append(asyncio.create_task(world.post("/api/generate", model="tiny", prompt="Hi")))
                while not world.engines or len(world.engine.prompts) <= number or world.manager.num_waiting:
                    await asyncio.sleep(0)
            for gate in gates:
                gate.set()
            assert [reply.status_code for reply in await asyncio.gather(*tasks)] == [200] * 4


class TestSpareWorker:
    @pytest.fixture
    def manager_config(self) -> ManagerConfig:
        return ManagerConfig(spare_worker=True)

    async def test_the_spare_is_used_and_replaced_when_nobody_is_served(self, world: World) -> None:
        world.manager.start_spare()
        world.manager.start_spare()
        async with world.manager.acquire(await stored(world, "tiny")) as model:
            assert len(world.engines) == 1
            assert model.engine is world.engines[0]
        await asyncio.sleep(0)
        assert len(world.engines) == 2
        await use(world, "thinker")
        assert world.engines[1].loads

    async def test_a_dead_spare_is_not_used(self, world: World) -> None:
        world.manager.start_spare()
        await asyncio.sleep(0)
        world.engine.die()
        await use(world, "tiny")
        assert not world.engines[0].loads
        assert world.engines[1].loads


class TestMemory:
    @pytest.fixture
    def manager_config(self) -> ManagerConfig:
        return ManagerConfig(model_memory_bytes=8 << 30, gpu_overhead_bytes=1 << 30)

    async def test_the_worker_is_told_how_much_it_may_take(self, world: World) -> None:
        await use(world, "tiny")
        (load,) = world.engine.loads
        assert (load.budget_bytes, load.overhead_bytes, load.num_gpu_layers) == (8 << 30, 1 << 30, -1)


async def test_close_ends_loads_and_refuses_more(world: World) -> None:
    world.prepare = lambda engine: engine.load_gate.clear()
    loading = asyncio.create_task(use(world, "tiny"))
    while not world.engines or not world.engine.loads:
        await asyncio.sleep(0)
    await world.manager.close()
    with pytest.raises(ShuttingDown):
        await loading
    with pytest.raises(ShuttingDown):
        await use(world, "tiny")
    with pytest.raises(ShuttingDown):
        world.manager.queue()


# ---- adapters


async def create_adapted(world: World, name: str, adapter: str, base: str = "tiny") -> StoredModel:
    """A model over `base` with an adapter of its own; the fake engine does not look into it."""
    parent = await stored(world, base)
    digest = world.store.write_blob([adapter.encode()])
    layer = Layer(ADAPTER, digest, len(adapter.encode()))
    world.store.write_manifest(
        ModelName.parse(name), Manifest(parent.manifest.config, (*parent.manifest.layers, layer))
    )
    return await stored(world, name)


async def test_adapters_share_the_worker_of_their_base(world: World) -> None:
    one, two = await create_adapted(world, "one", "a"), await create_adapted(world, "two", "b")
    same = await create_adapted(world, "same", "a")
    numbers = {}
    for model in (await stored(world, "tiny"), one, two, same):
        async with world.manager.acquire(model) as held:
            numbers[model.name.model] = held.adapter
    assert numbers == {"tiny": 0, "one": 1, "two": 2, "same": 1}
    assert len(world.engines) == 1
    paths = {number: [*files.values()] for number, files in world.engine.adapters.items()}
    assert paths == {n: [str(m.adapter_files["adapter.gguf"])] for n, m in ((1, one), (2, two))}
    assert {row.size_bytes for row in world.manager.running()} == {1000 + 200 + 24}


async def test_an_adapter_goes_with_the_last_name_that_has_it(world: World) -> None:
    await use(world, "tiny")
    models = [await create_adapted(world, name, text) for name, text in (("one", "a"), ("same", "a"), ("two", "b"))]
    for model in models:
        async with world.manager.acquire(model):
            pass
    await world.manager.unload(models[0].name)
    assert set(world.engine.adapters) == {1, 2}
    async with world.manager.acquire(models[1]):
        await world.manager.unload(models[1].name)
        assert set(world.engine.adapters) == {1, 2}, "somebody still uses it"
    await until(lambda: set(world.engine.adapters) == {2})
    assert world.manager.running()[0].size_bytes == 1000 + 100 + 24
    async with world.manager.acquire(models[0]) as held:
        assert held.adapter == 3, "a number is never given twice"


async def test_a_name_created_anew_with_another_adapter(world: World) -> None:
    async with world.manager.acquire(await create_adapted(world, "mine", "a")) as old:
        async with world.manager.acquire(await create_adapted(world, "mine", "b")) as new:
            assert (old.adapter, new.adapter) == (1, 2)
        assert set(world.engine.adapters) == {1, 2}
    await until(lambda: set(world.engine.adapters) == {2})
    assert len(world.engines) == 1


async def test_a_name_created_anew_while_its_base_is_loaded(world: World) -> None:
    """Who came first gets the adapter that the name had then."""
    world.prepare = lambda engine: engine.load_gate.clear()
    paths = []

    async def hold(model: StoredModel) -> None:
        async with world.manager.acquire(model) as held:
            paths.append([*world.engine.adapters[held.adapter].values()] == [str(model.adapter_files["adapter.gguf"])])

    tasks = [asyncio.create_task(hold(await create_adapted(world, "mine", text))) for text in ("a", "b")]
    await until(lambda: bool(world.engines) and bool(world.engine.loads))
    world.engine.load_gate.set()
    await asyncio.gather(*tasks)
    assert paths == [True, True]


async def test_callers_share_one_load_of_an_adapter(world: World) -> None:
    world.prepare = lambda engine: engine.adapter_gate.clear()
    model = await create_adapted(world, "mine", "a")

    async def hold() -> int:
        async with world.manager.acquire(model) as held:
            return held.adapter

    tasks = [asyncio.create_task(hold()) for _ in range(5)]
    await until(lambda: bool(world.engines) and world.engine.num_adapter_loads == 1)
    tasks[0].cancel()  # who leaves does not end what others wait for
    world.engine.adapter_gate.set()
    assert [await task for task in tasks[1:]] == [1, 1, 1, 1]
    assert world.engine.num_adapter_loads == 1


async def test_an_adapter_that_cannot_be_loaded_leaves_the_base_alone(world: World) -> None:
    await use(world, "tiny")
    world.engine.adapter_error = LoadFailed("the adapter is of another model", "invalid")
    model = await create_adapted(world, "mine", "a")
    with pytest.raises(LoadFailed, match="of another model"):
        async with world.manager.acquire(model):
            pass
    assert loaded(world) == ["tiny"]
    world.engine.adapter_error = None
    async with world.manager.acquire(model) as held:
        assert held.adapter == 2
    assert len(world.engines) == 1


async def test_requests_name_their_models_adapter(world: World) -> None:
    await create_adapted(world, "mine", "a")
    for name in ("tiny", "mine"):
        await world.post("/api/generate", model=name, prompt="Hello", stream=False)
    await world.post("/api/embed", model="mine", input="Hello")
    assert world.engine.used_adapters == [0, 1, 1]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while not condition():
            await asyncio.sleep(0)
