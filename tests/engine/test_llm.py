"""The whole engine on real weights: LLM in this process, and the worker's process behind EngineClient."""

from __future__ import annotations

import asyncio
import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from engine.client import EngineClient
from engine.errors import EngineError, LoadFailed, RequestFailed, SchedulerError
from engine.llm import LLM
from engine.messages import Load
from engine.sampling_params import SamplingParams
from modelfiles.prompt import Message, jinja_prompt_template

MARGIN = 1e-3
"""Where the reference's two likeliest tokens are closer than this, another order of summation may choose the other."""


@pytest.fixture(scope="module")
def model(data_dir: Path) -> Path:
    return data_dir / "models" / "stories260K" / "hf"


@pytest.fixture(scope="module")
def cases(data_dir: Path) -> list[dict[str, Any]]:
    golden = json.loads((data_dir / "golden" / "stories260K-hf-fp32.json").read_text())
    return list(golden["cases"])


@pytest.fixture(scope="module")
def llm(model: Path) -> LLM:
    return LLM(model, num_blocks=256, num_threads=1)


def assert_equal_up_to_the_margin(token_ids: list[int], case: dict[str, Any]) -> None:
    certain = next((n for n, margin in enumerate(case["margins"]) if margin < MARGIN), len(token_ids))
    assert certain >= 10, "a case that compares nothing"
    assert token_ids[:certain] == case["greedy_ids"][:certain]


def greedy(num_tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True)


def test_greedy_text_equals_the_golden_one_with_all_prompts_in_one_batch(llm: LLM, cases: list[dict[str, Any]]) -> None:
    params = [greedy(len(case["greedy_ids"])) for case in cases]
    outputs = llm.generate([case["prompt_ids"] for case in cases], params)
    for output, case in zip(outputs, cases, strict=True):
        assert_equal_up_to_the_margin(output.token_ids, case)
        assert output.finish_reason == "length"
    assert outputs[0].text.startswith("Once upon a time, there was a little girl named Lily.")


@pytest.mark.parametrize("run_ahead", [0, 1])
def test_a_cache_so_small_that_it_preempts_changes_nothing(
    model: Path, cases: list[dict[str, Any]], run_ahead: int
) -> None:
    llm = LLM(model, num_blocks=60, block_size=8, max_num_batched_tokens=16, max_num_seqs=16, run_ahead=run_ahead)
    params = [greedy(len(case["greedy_ids"])) for case in cases]
    outputs = llm.generate([case["prompt_ids"] for case in cases], params)
    for output, case in zip(outputs, cases, strict=True):
        assert_equal_up_to_the_margin(output.token_ids, case)
    stats = llm.stats()
    assert stats.num_preemptions > 0
    assert stats.num_free_blocks == 60
    llm.engine.scheduler.check()


def test_a_longer_prompt_goes_on_from_the_cache(llm: LLM, cases: list[dict[str, Any]]) -> None:
    case = cases[1]
    half = [*case["prompt_ids"], *case["greedy_ids"][:150]]
    llm.generate([half[:100]], SamplingParams(max_tokens=0))
    output = llm.generate([half], greedy(20))[0]
    assert output.num_cached_tokens >= 96
    assert output.token_ids == case["greedy_ids"][150:170]


def test_seeded_samples_do_not_depend_on_their_neighbours(llm: LLM) -> None:
    params = [SamplingParams(seed=seed, max_tokens=20) for seed in range(4)]
    together = llm.generate(["Once upon a time"] * 4, params)
    alone = [llm.generate("Once upon a time", one)[0] for one in params]
    assert [output.token_ids for output in together] == [output.token_ids for output in alone]
    assert len({tuple(output.token_ids) for output in together}) == 4


def test_a_stop_string_ends_the_text_before_it(llm: LLM) -> None:
    whole = llm.generate("Once upon a time", greedy(60))[0]
    cut = llm.generate("Once upon a time", greedy(60), stop=["named Lily"])[0]
    assert cut.text == whole.text[: whole.text.index("named Lily")]
    assert cut.finish_reason == "stop"
    assert len(cut.token_ids) < len(whole.token_ids)
    assert not llm.engine.has_work


def test_logprobs_are_those_of_the_chosen_tokens(llm: LLM, cases: list[dict[str, Any]]) -> None:
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, logprobs=2)
    output = llm.generate([cases[0]["prompt_ids"]], params)[0]
    for token_id, logprobs, expected in zip(
        output.token_ids, output.logprobs, cases[0]["greedy_logprobs"], strict=False
    ):
        assert logprobs.logprob == pytest.approx(expected, abs=MARGIN)
        assert logprobs.top[0] == (token_id, logprobs.logprob)
        assert len(logprobs.top) == 2


def test_a_context_that_shifts_goes_on(llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=100, max_context=48, shift=True, ignore_eos=True)
    output = llm.generate("Once upon a time", params)[0]
    assert len(output.token_ids) == 100
    assert output.truncated


def test_chat_renders_the_model_s_own_template(data_dir: Path) -> None:
    llm = LLM(data_dir / "models" / "stories3M" / "hf", num_blocks=64, num_threads=1)
    messages = [{"role": "user", "content": "Tell me a story."}]
    output = llm.chat(messages, greedy(8))
    template = jinja_prompt_template(llm.tokenizer.chat_template or "", llm.tokenizer.special_tokens)
    prompt = template.render([Message("user", "Tell me a story.")], now=datetime(2024, 7, 26))
    assert output.prompt_ids == llm.tokenizer.encode(prompt)
    assert "Tell me a story." in llm.tokenizer.decode(output.prompt_ids)
    assert output.text == llm.generate(prompt, greedy(8))[0].text
    assert len(output.token_ids) == 8


def test_chat_needs_a_template(llm: LLM) -> None:
    assert llm.tokenizer.chat_template is None
    with pytest.raises(EngineError, match="has no chat template"):
        llm.chat([Message("user", "Hello")])


def test_nothing_is_left_behind_when_one_prompt_is_impossible(llm: LLM) -> None:
    with pytest.raises(SchedulerError, match="leaves no room in a context of 512 tokens"):
        llm.generate([[1, 2], [5] * 600], greedy(5))
    assert not llm.engine.has_work
    with pytest.raises(EngineError, match="2 sampling parameters were given for 1 prompts"):
        llm.generate("a", [greedy(1), greedy(1)])


def test_the_real_worker_gives_the_golden_text(model: Path, cases: list[dict[str, Any]]) -> None:
    files = {path.name: str(path) for path in model.iterdir()}
    load = Load(files=files, num_blocks=60, block_size=8, max_num_seqs=8, max_num_batched_tokens=64, num_threads=1)

    async def tokens(client: EngineClient, case: dict[str, Any]) -> list[int]:
        stream = client.submit(case["prompt_ids"], greedy(64))
        return [token_id async for output in stream for token_id in output.token_ids]

    async def main() -> None:
        client = await EngineClient.start()
        try:
            with pytest.raises(LoadFailed, match="no weights among the files") as caught:
                await client.load(Load(files={"config.json": files["config.json"]}))
            assert caught.value.kind == "invalid"
            ready = await client.load(load)
            assert (ready.num_blocks, ready.max_context) == (60, 480)
            everything = await asyncio.gather(*(tokens(client, case) for case in cases))
            for token_ids, case in zip(everything, cases, strict=True):
                assert_equal_up_to_the_margin(token_ids[: len(case["greedy_ids"])], case)
            with pytest.raises(RequestFailed, match="the model's ids are 0 to 511"):
                await anext(client.submit([512], greedy(1)))
            # The memory goes and comes back; the next answer is the same.
            assert (await client.sleep()).is_sleeping
            assert (await client.wake()).num_blocks == 60
            assert_equal_up_to_the_margin(await tokens(client, cases[0]), cases[0])
            stats = await client.stats()
            assert (stats.num_running, stats.num_free_blocks) == (0, 60)
        finally:
            await client.close()

    asyncio.run(main())
