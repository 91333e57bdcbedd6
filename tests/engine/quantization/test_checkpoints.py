"""Whole quantised checkpoints through LLM: what Transformers computes with the weights that they stand for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from daemon.creation import check_source
from engine.config import ModelConfig
from engine.execution.errors import WeightsError
from engine.execution.model_runner import ModelRunner
from engine.llm import LLM
from engine.messages import Load
from engine.models.tensor_plan import TensorPlanError, check_tensors
from engine.sampling_params import SamplingParams
from modelfiles.source import ModelSource
from registry.model_facts import model_facts
from tests.engine.quantization.quantized_models import AWQ, FORMS, GPTQ, level, make

Tensors = dict[str, torch.Tensor]
PROMPT = [72, 101, 108, 108, 111, 44, 32, 119]
NUM_TOKENS = 10
TOLERANCE = 1e-4
MODULE = "model.layers.0.mlp.down_proj"


@pytest.fixture(scope="session")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folders of sound models, each made once."""
    root = tmp_path_factory.mktemp("quantized")

    def original(name: str) -> Path:
        if not (root / name).exists():
            make(FORMS[name], root / name)
        return root / name

    return original


@pytest.fixture
def copy_of(originals: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a sound model, to be damaged."""
    return lambda name: Path(shutil.copytree(originals(name), tmp_path / "m"))


def greedy_by_transformers(model: torch.nn.Module) -> tuple[list[int], list[float], float]:
    """Token ids, their log-probabilities, and the least distance between the two likeliest."""
    ids, logprobs, margin = list(PROMPT), [], torch.inf
    for _ in range(NUM_TOKENS):
        with torch.inference_mode():
            probabilities = model(torch.tensor([ids])).logits[0, -1].float().log_softmax(-1)
        best = probabilities.topk(2)
        ids.append(int(best.indices[0]))
        logprobs.append(float(best.values[0]))
        margin = min(margin, float(best.values[0] - best.values[1]))
    return ids[len(PROMPT) :], logprobs, margin


@pytest.mark.parametrize("name", FORMS)
def test_greedy_text_is_that_of_the_expanded_model(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    model = make(FORMS[name], folder)
    ids, logprobs, margin = greedy_by_transformers(model)
    assert margin > 10 * TOLERANCE, "a choice that rounding may turn proves nothing"
    llm = LLM(folder, dtype="float32", device="cpu", num_blocks=16, num_threads=1)
    params = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True, logprobs=0)
    output = llm.generate([PROMPT], params)[0]
    assert output.token_ids == ids
    assert [found.logprob for found in output.logprobs] == pytest.approx(logprobs, abs=TOLERANCE)
    source = ModelSource.from_path(folder)
    check_source(source)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    assert llm.config.num_parameters == num_parameters
    assert llm.ready.weights_bytes == num_parameters * 4
    assert llm.config.quantization == level(name)
    facts = model_facts(source)
    assert facts.file_type == level(name)
    if "spare-biases" not in name:
        assert facts.num_parameters == num_parameters


def test_progress_ends_at_the_total(originals: Callable[[str], Path]) -> None:
    seen: list[tuple[int, int]] = []
    runner = load(originals("gptq-v2-8-bits-whole-rows-spare-biases"), seen)
    assert runner.ready.weights_bytes == runner.decoder.weights.num_bytes, "spare biases are not planned for"
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1]


# ---- checkpoints that are not what they say


def load(folder: Path, seen: list[tuple[int, int]] | None = None) -> ModelRunner:
    files = {name: str(path) for name, path in ModelSource.from_path(folder).files.items()}
    progress = (lambda done, total: seen.append((done, total))) if seen is not None else None
    return ModelRunner.load(Load(files=files, dtype="float32", device="cpu", num_blocks=4), progress)


def spoil(folder: Path, edit: Callable[[Tensors], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")


def put(suffix: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Tensors], object]:
    """An edit of one of the tensors of MODULE."""

    def edit(tensors: Tensors) -> None:
        tensors[f"{MODULE}.{suffix}"] = change(tensors[f"{MODULE}.{suffix}"])

    return edit


def drop(suffix: str) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.pop(f"{MODULE}.{suffix}")


def add(name: str, tensor: torch.Tensor) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.update({name: tensor})


ACT_ORDER, BLOCKS, INT4 = "gptq-symmetric-act-order-tied", "fp8-blocks", "compressed-int4"
TABLES: list[tuple[str, Callable[[Tensors], object], str]] = [
    ("awq", drop("qweight"), 'down_proj.qweight" of shape [96, 8] is missing'),
    ("awq", drop("qzeros"), 'down_proj.qzeros" of shape [3, 8] is missing'),
    ("awq", drop("scales"), 'down_proj.scales" of shape [3, 64] is missing'),
    ("awq", put("qweight", torch.t), 'down_proj.qweight" has the shape [8, 96]; the configuration asks for [96, 8]'),
    ("awq", put("qzeros", lambda t: t[:2]), 'down_proj.qzeros" has the shape [2, 8]; the configuration asks for [3'),
    ("awq", put("scales", lambda t: t[:0]), 'down_proj.scales" has the shape [0, 64]; the configuration asks for'),
    ("awq", put("scales", lambda t: t.long()), 'down_proj.scales" has the type I64; these can be read: F32, F16, BF16'),
    ("awq", put("qweight", torch.Tensor.float), 'down_proj.qweight" has the type F32; these can be read: I32'),
    ("awq", add("model.layers.0.mlp.act.scales", torch.ones(96)), "1 tensors play no part"),
    ("gptq", put("qweight", lambda t: t[:8]), 'down_proj.qweight" has the shape [8, 64]; the configuration asks for'),
    (ACT_ORDER, drop("g_idx"), 'down_proj.g_idx" of shape [96] is missing'),
    (ACT_ORDER, put("g_idx", lambda t: t[1:]), 'down_proj.g_idx" has the shape [95]; the configuration asks for [96]'),
    (ACT_ORDER, put("g_idx", lambda t: t.long()), 'down_proj.g_idx" has the type I64; these can be read: I32'),
    (BLOCKS, drop("weight_scale_inv"), 'down_proj.weight_scale_inv" of shape [1, 2] is missing'),
    (BLOCKS, put("weight_scale_inv", torch.t), 'weight_scale_inv" has the shape [2, 1]; the configuration asks'),
    (BLOCKS, put("weight", torch.Tensor.char), 'down_proj.weight" has the type I8; these can be read: F8_E4M3'),
    (
        BLOCKS,
        put("weight", lambda t: t.float().to(torch.float8_e5m2)),
        'down_proj.weight" has the type F8_E5M2; these can be read: F8_E4M3',
    ),
    ("fp8-tensor", drop("weight_scale"), 'down_proj.weight_scale" of shape [] is missing'),
    ("fp8-tensor", put("weight_scale", lambda t: t.expand(2)), 'down_proj.weight_scale" has the shape [2]'),
    ("fp8-tensor", add(f"{MODULE}.weight_scale_inv", torch.ones(1)), "1 tensors play no part"),
    (INT4, drop("weight_shape"), 'down_proj.weight_shape" of shape [2] is missing'),
    (INT4, add(f"{MODULE}.weight_zero_point", torch.zeros(1)), "1 tensors play no part"),
    (INT4, put("weight_packed", lambda t: t[:, 1:]), 'down_proj.weight_packed" has the shape [64, 11]'),
    ("compressed-int8", put("weight_scale", lambda t: t[1:]), 'down_proj.weight_scale" has the shape [63, 1]'),
    (
        "awq-with-layers-left-out",
        lambda t: t.update({"model.layers.0.mlp.up_proj.qweight": t.pop("model.layers.0.mlp.up_proj.weight").int()}),
        'up_proj.qweight" is quantised, but quantization_config leaves model.layers.0.mlp.up_proj out',
    ),
    (
        "compressed-int8",
        lambda t: t.update({"lm_head.weight": t["lm_head.weight"].char()}),
        '"lm_head.weight" is quantised, but quantization_config leaves lm_head out',
    ),
    ("awq", lambda t: t.pop("lm_head.weight"), '"lm_head.weight" of shape [259, 64] is missing'),
]  # fmt: skip


@pytest.mark.parametrize(("name", "edit", "expected"), TABLES, ids=[f"{n}-{row[0]}" for n, row in enumerate(TABLES)])
def test_a_table_of_tensors_that_lies(
    name: str, edit: Callable[[Tensors], object], expected: str, copy_of: Callable[[str], Path]
) -> None:
    """Refused by what `create` asks, so before anything is stored or read."""
    folder = copy_of(name)
    spoil(folder, edit)
    source = ModelSource.from_path(folder)
    with pytest.raises(TensorPlanError) as caught:
        check_tensors(ModelConfig.from_source(source), source)
    assert expected in str(caught.value)


VALUES: list[tuple[str, Callable[[Tensors], object], str]] = [
    ("awq", put("scales", lambda t: t * torch.nan), f'192 of the 192 scales in the tensor "{MODULE}.scales" are NaN'),
    (BLOCKS, put("weight_scale_inv", lambda t: t / 0), f'2 of the 2 scales in the tensor "{MODULE}.weight_scale_inv"'),
    (ACT_ORDER, put("g_idx", lambda t: t + 1), f'"{MODULE}.g_idx" puts columns into the groups 1 to 3; there are 3'),
    (INT4, put("weight_shape", lambda t: t.flip(0)), f'"{MODULE}.weight_shape" says [96, 64]; the configuration asks'),
    ("awq", add(f"{MODULE}.bias", torch.ones(64)), f'"{MODULE}.bias" is a bias that is not zero'),
]


@pytest.mark.parametrize(("name", "edit", "expected"), VALUES, ids=[row[0] for row in VALUES])
def test_values_that_cannot_be_are_refused_before_a_weight_is_read(
    name: str, edit: Callable[[Tensors], object], expected: str, copy_of: Callable[[str], Path]
) -> None:
    folder = copy_of(name)
    spoil(folder, edit)
    seen: list[tuple[int, int]] = []
    with pytest.raises(WeightsError) as caught:
        load(folder, seen)
    assert expected in str(caught.value)
    assert seen == []


def described(folder: Path, quantization: dict[str, Any] | None) -> str:
    """What is said of a model with another quantization_config."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"] = quantization
    path.write_text(json.dumps(config))
    source = ModelSource.from_path(folder)
    with pytest.raises(TensorPlanError) as caught:
        check_tensors(ModelConfig.from_source(source), source)
    return str(caught.value)


@pytest.mark.parametrize(
    ("quantization", "expected"),
    [
        (
            None,
            "belongs to quantised weights, but config.json has no quantization_config that says how they are stored",
        ),
        (AWQ | {"group_size": 48}, "model.layers.0.self_attn.q_proj has 64 columns, which groups of 48 do not divide"),
        (AWQ | {"group_size": 16}, 'self_attn.q_proj.qzeros" has the shape [2, 8]; the configuration asks for [4, 8]'),
        (GPTQ, 'self_attn.q_proj.qweight" has the shape [64, 8]; the configuration asks for [8, 64]'),
        (FORMS["fp8-tensor"].quantization, 'self_attn.q_proj.weight" of shape [64, 64] is missing'),
    ],
    ids=["none", "groups", "other-groups", "gptq", "fp8"],
)
def test_a_description_of_other_weights(
    quantization: dict[str, Any] | None, expected: str, copy_of: Callable[[str], Path]
) -> None:
    assert expected in described(copy_of("awq"), quantization)
