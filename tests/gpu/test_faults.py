"""NaN that must not spread, contexts that shift, cached prefixes, and a worker that gives its memory away and back."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.client import EngineClient
from engine.llm import LLM
from engine.messages import Load
from engine.sampling_params import SamplingParams
from tests.gpu.engines import DEVICE, assert_equal, first_difference, greedy, load, load_on_cpu
from tests.gpu.requests import Crowd, Request, run_alone
from tests.gpu.tiny_models import write_tiny

pytestmark = pytest.mark.gpu
BROKEN = 7


def some_prompts(count: int, *, seed: int = 0) -> list[list[int]]:
    choose = random.Random(seed)
    return [choose.choices(range(10, 250), k=choose.randrange(3, 60)) for _ in range(count)]


@pytest.mark.parametrize("use_graphs", [True, False])
def test_a_damaged_embedding_ends_the_rows_that_use_it_and_no_other(tmp_path: Path, use_graphs: bool) -> None:
    folder = tmp_path / "broken"
    write_tiny(folder, "llama", broken_token=BROKEN)
    llm = load(folder, num_blocks=200, use_graphs=use_graphs)
    # The head could choose the broken token later; a bias keeps it out.
    params = SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True, logit_bias={BROKEN: -100.0})
    healthy: list[Request] = [(prompt, params) for prompt in some_prompts(12)]
    broken: list[Request] = [([*prompt, BROKEN, 11], params) for prompt in some_prompts(4, seed=1)]
    alone = run_alone(llm, healthy)
    for _ in range(2):  # the second time over blocks that have held NaN
        crowd = Crowd(llm, [*healthy[:6], *broken, *healthy[6:]], leaves=False)
        assert sorted(crowd.errors) == [6, 7, 8, 9]
        for number, sentence in crowd.errors.items():
            last = len(broken[number - 6][0]) - 1
            assert f"not finite numbers at position {last};" in sentence
            assert crowd.outputs[number].token_ids == []
        for output, reference in zip(crowd.outputs[:6] + crowd.outputs[10:], alone, strict=True):
            assert output.token_ids == reference.token_ids
        assert llm.stats().num_free_blocks == 200


@pytest.fixture(scope="module")
def story(tale_dir: Path) -> LLM:
    return load(tale_dir)


def test_a_context_that_shifts_goes_on_as_on_the_cpu(tale_dir: Path, story: LLM) -> None:
    params = SamplingParams(
        temperature=0.0, max_tokens=120, max_context=64, shift=True, num_keep=6, ignore_eos=True, logprobs=2
    )
    prompts = ["Once upon a time there was a", "The fox and the lamp"]
    outputs = story.generate(prompts, params)
    assert_equal(outputs, load_on_cpu(tale_dir).generate(prompts, params))
    assert all(output.truncated and len(output.token_ids) == 120 for output in outputs)


def test_a_cached_prefix_changes_no_token(story: LLM) -> None:
    first = story.generate(["One day, a very small dragon"], greedy(100))[0]
    longer = [*first.prompt_ids, *first.token_ids[:70]]
    again = story.generate([longer], greedy(30))[0]
    assert again.num_cached_tokens >= len(longer) - 2 * story.ready.block_size
    n = first_difference(again.token_ids, first.token_ids[70:])
    assert n is None or first.logprobs[70 + n].top[0][1] - first.logprobs[70 + n].top[1][1] < 1e-3


def test_the_worker_sleeps_wakes_and_changes_its_size(
    root: Path, tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a process of its own, as the daemon starts it; the tree need not be installed."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")]))
    folder = tiny("llama")
    prompts = some_prompts(10)
    alone = run_alone(load(folder), [(prompt, greedy(20)) for prompt in prompts])

    async def check(client: EngineClient) -> None:
        async def tokens(prompt: list[int]) -> list[int]:
            stream = client.submit(prompt, greedy(20, logprobs=None))
            return [token async for output in stream for token in output.token_ids]

        everything = await asyncio.gather(*map(tokens, prompts))
        assert [list(one) for one in everything] == [output.token_ids for output in alone]

    async def main() -> None:
        client = await EngineClient.start()
        try:
            files = {path.name: str(path) for path in folder.iterdir()}
            load_message = Load(files=files, device=DEVICE, dtype="float32", num_blocks=40, max_num_seqs=8)
            ready = await client.load(load_message)
            assert (ready.num_blocks, ready.device.split(":")[0], ready.dtype) == (40, DEVICE, "float32")
            await check(client)
            assert (await client.sleep()).is_sleeping
            assert (await client.wake()).num_blocks == 40
            await check(client)
            assert (await client.resize(num_blocks=24)).num_blocks == 24
            await check(client)
            # Waiting for it while requests are under way must not lose them.
            under_way = asyncio.create_task(check(client))
            await asyncio.sleep(0)
            assert (await client.resize(num_blocks=60)).num_blocks == 60
            await under_way
            stats = await client.stats()
            assert (stats.num_running, stats.num_free_blocks) == (0, 60)
        finally:
            await client.close()

    asyncio.run(main())
