"""LoRA at run time gives what the same update merged into the weights by hand gives, whatever it is batched with."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.embedding_queue import TextJob
from engine.execution.errors import ModelTooLarge
from engine.execution.model_runner import ModelRunner
from engine.llm import LLM
from engine.models.peft_config import AdapterError
from engine.sampling_params import SamplingParams
from tests.engine.execution.driver import Driver, load_runner
from tests.engine.lora_files import (
    ATTENTION,
    EVERYTHING,
    MLP,
    adapter_files,
    merge,
    random_updates,
    write_gguf_adapter,
    write_peft,
)

PROMPTS = [[1, *random.Random(number).choices(range(3, 500), k=6 + number)] for number in range(6)]
HEADS = {"self_attn.q_proj": 8, "self_attn.k_proj": 4}


@pytest.fixture(scope="module")
def base(data_dir: Path) -> Path:
    return data_dir / "models" / "stories260K" / "hf"


@pytest.fixture(scope="module")
def gguf_base(data_dir: Path) -> Path:
    return data_dir / "models" / "stories260K" / "gguf" / "stories260K-F32.gguf"


def with_adapter(path: Path, *adapters: Path, **options: Any) -> ModelRunner:
    """A runner with each adapter under a number of its own, from 1 on."""
    runner = load_runner(path, **options)
    for number, adapter in enumerate(adapters, 1):
        runner.add_adapter(number, adapter_files(adapter))
    return runner


def logits(runner: ModelRunner, adapter: int = 0) -> torch.Tensor:
    """After each of the prompts, in one batch."""
    driver = Driver(runner)
    for row, prompt in enumerate(PROMPTS):
        driver.admit(row, prompt, adapter=adapter)
    return driver.logits({row: len(prompt) for row, prompt in enumerate(PROMPTS)})


def assert_same(ours: torch.Tensor, merged: torch.Tensor, plain: torch.Tensor, tolerance: float = 1e-3) -> None:
    """Within `tolerance` of the difference that the update makes."""
    difference = (merged - plain).abs().max()
    assert difference > 0.5, "an update that changes nothing proves nothing"
    torch.testing.assert_close(ours, merged, atol=float(difference) * tolerance, rtol=0)


@pytest.mark.parametrize("targets", [ATTENTION, MLP, EVERYTHING, ("self_attn.v_proj", "mlp.up_proj")])
def test_an_adapter_is_what_merging_it_gives(base: Path, tmp_path: Path, targets: tuple[str, ...]) -> None:
    updates = random_updates(base, targets)
    adapter = write_peft(tmp_path / "lora", updates, alpha=6)
    merged = load_runner(merge(base, tmp_path / "merged", (updates, 6 / 4)))
    runner = with_adapter(base, adapter)
    assert_same(logits(runner, 1), logits(merged), logits(runner))
    expected, _ = Driver(merged).generate(PROMPTS, 12)
    assert Driver(runner).generate(PROMPTS, 12, adapters=[1] * 6)[0] == expected
    assert runner.prompt_logprobs(PROMPTS[3], 1) == pytest.approx(merged.prompt_logprobs(PROMPTS[3]), abs=1e-3)


@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        ({"use_rslora": True}, 6 / 2),
        ({"alpha_pattern": {"layers.1.self_attn.q_proj": 2}}, None),
        ({"rank_pattern": {"q_proj": 4}, "r": 9}, 6 / 4),
    ],
)
def test_the_factor_of_an_update(base: Path, tmp_path: Path, settings: dict[str, Any], scale: float | None) -> None:
    updates = random_updates(base, ["self_attn.q_proj"], size=2.0)
    adapter = write_peft(tmp_path / "lora", updates, alpha=6, **settings)
    changes = [(updates, scale or 6 / 4)]
    if scale is None:  # one module has another alpha
        other = "model.layers.1.self_attn.q_proj"
        changes = [({module: pair for module, pair in updates.items() if module != other}, 6 / 4)]
        changes.append(({other: updates[other]}, 2 / 4))
    merged = load_runner(merge(base, tmp_path / "merged", *changes))
    runner = with_adapter(base, adapter)
    assert_same(logits(runner, 1), logits(merged), logits(runner))


def test_both_forms_of_files_fit_both_forms_of_bases(base: Path, gguf_base: Path, tmp_path: Path) -> None:
    updates = random_updates(base)
    forms = [
        write_peft(tmp_path / "lora", updates, alpha=4),
        write_gguf_adapter(tmp_path / "lora.gguf", updates, alpha=4, heads=HEADS),
    ]
    expected = logits(load_runner(merge(base, tmp_path / "merged", (updates, 1.0))))
    for path in (base, gguf_base):
        runner = with_adapter(path, *forms)
        for number in (1, 2):
            assert_same(logits(runner, number), expected, logits(runner))


@pytest.mark.parametrize(
    ("name", "targets"),
    [
        ("synthetic-phi3", ("self_attn.qkv_proj", "mlp.gate_up_proj", "mlp.down_proj", "self_attn.o_proj")),
        ("synthetic-gemma2-swa16", EVERYTHING),
        ("synthetic-qwen2", EVERYTHING),
    ],
)
def test_other_architectures(data_dir: Path, tmp_path: Path, name: str, targets: tuple[str, ...]) -> None:
    """Fused projections, norms behind the products, biases."""
    path = data_dir / "models" / name / "hf"
    updates = random_updates(path, targets, size=1.0)
    merged = load_runner(merge(path, tmp_path / "merged", (updates, 0.5)))
    runner = with_adapter(path, write_peft(tmp_path / "lora", updates, alpha=2))
    assert_same(logits(runner, 1), logits(merged), logits(runner))


def test_several_adapters_of_one_number_add_up(base: Path, tmp_path: Path) -> None:
    one, two = random_updates(base, ATTENTION, seed=1), random_updates(base, rank=2, seed=2)
    files = adapter_files(
        write_peft(tmp_path / "one", one, alpha=4),
        write_gguf_adapter(tmp_path / "two.gguf", two, alpha=0, heads=HEADS),  # llama.cpp's 0 is a factor of 1
    )
    merged = load_runner(merge(base, tmp_path / "merged", (one, 1.0), (two, 1.0)))
    runner = load_runner(base)
    runner.add_adapter(7, files)
    assert_same(logits(runner, 7), logits(merged), logits(runner))


@torch.inference_mode()
def test_a_quantised_base_stays_quantised(data_dir: Path, tmp_path: Path) -> None:
    """In bfloat16 the base's products are those of packed 4-bit weights, and the update stands beside them."""
    path = data_dir / "models" / "stories3M-pad256" / "gguf" / "stories3M-pad256-Q4_K_M.gguf"
    exact = load_runner(path)
    hidden, intermediate = exact.config.hidden_size, exact.config.intermediate_size
    generator = torch.Generator().manual_seed(5)
    updates = {
        f"model.layers.{layer}.mlp.up_proj": (
            torch.randn(4, hidden, generator=generator) / hidden**0.5,
            torch.randn(intermediate, 4, generator=generator) * 0.1,
        )
        for layer in range(exact.config.num_layers)
    }
    adapter = write_peft(tmp_path / "lora", updates, alpha=4)
    packed = with_adapter(path, adapter, dtype="bfloat16")
    plain = logits(exact)
    for layer, weights in enumerate(exact.decoder.weights.layers):  # float32: expanded, so it can be merged in place
        a, b = updates[f"model.layers.{layer}.mlp.up_proj"]
        weights.gate_up.segments[-1].weight[-intermediate:] += b @ a  # type: ignore[attr-defined]
    assert packed.ready.weights_bytes < 0.7 * exact.ready.weights_bytes
    assert_same(logits(packed, 1), logits(exact), plain, tolerance=0.2)


# ---- in one batch with others


@pytest.fixture(scope="module")
def two_adapters(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return (
        write_peft(folder / "one", random_updates(base, seed=1), alpha=4),
        write_peft(folder / "two", random_updates(base, ATTENTION, rank=3, seed=2, size=0.6), alpha=3),
    )


@pytest.fixture(scope="module")
def shared(base: Path, two_adapters: tuple[Path, Path]) -> ModelRunner:
    return with_adapter(base, *two_adapters)


MIXTURE = [0, 1, 2, 1, 0, 2]


@pytest.fixture(scope="module")
def alone(shared: ModelRunner) -> list[list[int]]:
    return [
        Driver(shared).generate([prompt], 15, adapters=[adapter])[0][0]
        for prompt, adapter in zip(PROMPTS, MIXTURE, strict=True)
    ]


def test_rows_of_two_adapters_and_of_none_side_by_side(shared: ModelRunner, alone: list[list[int]]) -> None:
    assert Driver(shared, seed=1).generate(PROMPTS, 15, adapters=MIXTURE)[0] == alone
    same_prompt = [Driver(shared).generate([PROMPTS[2]], 15, adapters=[number])[0][0] for number in range(3)]
    assert len({tuple(tokens) for tokens in same_prompt}) == 3, "the adapters say different things"


def test_prompts_in_chunks_beside_rows_of_other_adapters(shared: ModelRunner, alone: list[list[int]]) -> None:
    choose, driver = random.Random(5), Driver(shared, seed=2)
    for row, prompt in enumerate(PROMPTS):
        driver.admit(row, prompt, adapter=MIXTURE[row])
    tokens: list[list[int]] = [[] for _ in PROMPTS]
    while waiting := [row for row, got in enumerate(tokens) if len(got) < 15]:
        chosen = choose.sample(waiting, choose.randint(1, len(waiting)))
        batch = driver.batch({row: choose.randint(1, driver.known[row] - driver.computed[row]) for row in chosen})
        sampling = [step.row for step in batch.steps if step.samples]
        for row, token in zip(sampling, shared.launch(batch).result().token_ids, strict=True):
            tokens[row].append(token)
    assert tokens == alone


def test_an_adapter_that_came_later_and_one_that_went(base: Path, two_adapters: tuple[Path, Path]) -> None:
    runner = load_runner(base)
    before = logits(runner)
    runner.add_adapter(3, adapter_files(two_adapters[0]))
    runner.add_adapter(4, adapter_files(two_adapters[1]))
    assert not torch.equal(logits(runner, 3), before)
    held = runner.ready.weights_bytes
    runner.remove_adapter(4)
    assert runner.has_adapter(3)
    assert not runner.has_adapter(4)
    assert runner.ready.weights_bytes < held
    runner.remove_adapter(3)
    assert torch.equal(logits(runner), before)


def test_memory_for_an_adapter(base: Path, two_adapters: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    files = adapter_files(two_adapters[0])
    runner = load_runner(base, num_blocks=0, budget_bytes=40 << 20)
    blocks = runner.num_blocks
    assert not runner.has_room_for(files), "the KV cache takes all of a budget"
    runner.free_kv()
    runner.add_adapter(1, files)
    runner.allocate_kv(budget_bytes=40 << 20)
    assert runner.num_blocks < blocks
    assert runner.ready.weights_bytes + runner.ready.kv_cache_bytes < 40 << 20
    full = runner.adapters.num_bytes
    assert runner.ready.weights_bytes == load_runner(base).ready.weights_bytes + full
    monkeypatch.setattr("engine.execution.device.available_bytes", lambda device: 1000)
    with pytest.raises(ModelTooLarge, match=r"the adapter needs .* but 0\.0 MiB are free; stop other models"):
        runner.add_adapter(2, files)


def test_an_adapter_of_another_model(data_dir: Path, two_adapters: tuple[Path, Path]) -> None:
    runner = load_runner(data_dir / "models" / "synthetic-qwen2" / "hf")
    with pytest.raises(AdapterError, match="the adapter is of another model"):
        runner.add_adapter(1, adapter_files(two_adapters[0]))
    assert not runner.adapters


def test_texts_are_embedded_with_their_adapters(base: Path, shared: ModelRunner, tmp_path: Path) -> None:
    """Side by side, and one that takes several passes."""
    merged = load_runner(merge(base, tmp_path / "merged", (random_updates(base, seed=1), 1.0)))
    plain = load_runner(base)

    def vectors(runner: ModelRunner, adapters: list[int], max_tokens: int = 999) -> list[list[float]]:
        jobs = [
            TextJob(1, index, prompt, 0, False, 0, adapter)
            for index, (prompt, adapter) in enumerate(zip(PROMPTS, adapters, strict=False))
        ]
        found = [vectors for vectors in runner.embed(jobs, max_tokens) if vectors is not None]
        return [torch.frombuffer(bytearray(vector), dtype=torch.float32).tolist() for vector in found[0] if vector]

    together = vectors(shared, [0, 1, 0, 1])
    expected = [vectors((plain, merged)[n % 2], [0] * 4)[n] for n in range(4)]
    torch.testing.assert_close(torch.tensor(together), torch.tensor(expected), atol=2e-3, rtol=0)
    in_pieces = vectors(shared, [1], max_tokens=4)
    torch.testing.assert_close(torch.tensor(in_pieces), torch.tensor(vectors(merged, [0])), atol=2e-3, rtol=0)
    assert (torch.tensor(in_pieces) - torch.tensor(vectors(plain, [0]))).abs().max() > 0.1


# ---- through the scheduler


GREEDY = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)


@pytest.fixture(scope="module")
def llm(base: Path, two_adapters: tuple[Path, Path]) -> LLM:
    llm = LLM(base, num_blocks=512, num_threads=1)
    assert [llm.add_adapter(path) for path in two_adapters] == [1, 2]
    return llm


def test_cached_prefixes_belong_to_one_adapter(llm: LLM) -> None:
    long = [1, *random.Random(9).choices(range(3, 500), k=60)]
    first = [llm.generate([long], GREEDY, adapter=number)[0] for number in (0, 1, 2)]
    again = [llm.generate([long], GREEDY, adapter=number)[0] for number in (0, 1, 2)]
    assert [output.num_cached_tokens for output in first] == [0, 0, 0]
    assert all(output.num_cached_tokens >= 48 for output in again)
    assert [output.token_ids for output in again] == [output.token_ids for output in first]
    assert len({tuple(output.token_ids) for output in first}) == 3


def test_a_cache_so_small_that_it_preempts(base: Path, two_adapters: tuple[Path, Path], llm: LLM) -> None:
    small = LLM(base, num_blocks=8, block_size=8, num_threads=1)
    for path in two_adapters:
        small.add_adapter(path)
    expected = [llm.generate([prompt], GREEDY, adapter=n)[0] for prompt, n in zip(PROMPTS, MIXTURE, strict=True)]
    outputs = small.generate(PROMPTS, GREEDY, adapter=MIXTURE)
    assert [output.token_ids for output in outputs] == [output.token_ids for output in expected]
    assert small.stats().num_preemptions > 0
