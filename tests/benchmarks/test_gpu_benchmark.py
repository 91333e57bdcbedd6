"""The GPU benchmark on the CPU: its random model is a model like any other, and a run survives what it measures.

What the figures are is nobody's business here.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from engine.llm import LLM
from engine.sampling_params import SamplingParams

TIMEOUT_S = 300
FIGURE = '{\\"case\\": \\"b1\\", \\"value\\": 3.5, \\"unit\\": \\"tok/s\\", \\"command\\": \\"theirs\\"}'


@pytest.fixture(scope="module")
def benchmarks(root: Path) -> Iterator[Path]:
    """The folder, from which its modules can be imported inside a test."""
    folder = root / "benchmarks"
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


@pytest.fixture(scope="module")
def random_model(benchmarks: Path) -> ModuleType:
    return importlib.import_module("random_model")


@pytest.fixture(scope="module")
def gpu_plan(benchmarks: Path) -> ModuleType:
    return importlib.import_module("gpu_plan")


@pytest.fixture(scope="module")
def folder(random_model: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny random model."""
    folder: Path = tmp_path_factory.mktemp("models") / "tiny"
    assert random_model.ensure_model(folder, random_model.SHAPES["tiny"])
    assert not random_model.ensure_model(folder, random_model.SHAPES["tiny"]), "it was written a second time"
    return folder


# ---- the random model


def test_greedy_text_of_the_random_model_varies_and_does_not_end(folder: Path) -> None:
    llm = LLM(folder, device="cpu", dtype="bfloat16", num_blocks=64)
    (output,) = llm.generate([[300, 301, 302]], SamplingParams(temperature=0.0, max_tokens=64))
    assert output.finish_reason == "length", "it ended although nobody says so"
    assert len(set(output.token_ids)) > 16, output.token_ids


@pytest.mark.parametrize(("form", "level"), [("fp8", "FP8"), ("awq", "AWQ-INT4")])
def test_a_random_quantised_model_is_a_model_too(form: str, level: str, benchmarks: Path, tmp_path: Path) -> None:
    random_quantized = importlib.import_module("random_quantized")
    shape = random_quantized.SHAPES["tiny"]
    assert random_quantized.ensure_quantized(tmp_path / "m", shape, form)
    assert not random_quantized.ensure_quantized(tmp_path / "m", shape, form), "it was written a second time"
    llm = LLM(tmp_path / "m", device="cpu", dtype="float32", num_blocks=64)
    assert llm.config.quantization == level
    (output,) = llm.generate([[300, 301, 302]], SamplingParams(temperature=0.0, max_tokens=32))
    assert output.finish_reason == "length", "it ended although nobody says so"
    assert len(set(output.token_ids)) > 2, output.token_ids


def test_bytes_of_a_model_of_either_format(benchmarks: Path, folder: Path, tmp_path: Path) -> None:
    gpu_quant, random_gguf = (importlib.import_module(name) for name in ("gpu_quant", "random_gguf"))
    total, embedding = gpu_quant.tensor_bytes(folder)
    assert embedding == 1024 * 64 * 2
    assert total > 2 * embedding, "the head is as large"
    random_gguf.write_model(tmp_path / "m.gguf", random_gguf.SHAPES["small"], "q8_0")
    assert gpu_quant.tensor_bytes(tmp_path / "m.gguf")[1] == 1024 * 256 * 34 // 32


def test_words_of_the_random_model_encode_to_themselves(folder: Path, random_model: ModuleType) -> None:
    llm = LLM(folder, device="cpu", dtype="bfloat16", num_blocks=64)
    vocab_size = llm.config.vocab_size
    assert llm.tokenizer.vocab_size == vocab_size
    ids = random.Random(0).choices(range(random_model.FIRST_WORD, vocab_size - 3), k=400)
    assert llm.tokenizer.encode(llm.tokenizer.decode(ids)) == ids
    assert llm.tokenizer.eos_ids == {vocab_size - 1, vocab_size - 3}
    prompt = llm.chat([{"role": "user", "content": "hi"}], SamplingParams(max_tokens=1)).prompt_ids
    assert prompt[0] == vocab_size - 2, "a chat begins with <|im_start|>"


def test_a_folder_with_another_model_is_left_alone(folder: Path, random_model: ModuleType) -> None:
    before = (folder / "config.json").read_bytes()
    with pytest.raises(FileExistsError, match="holds another model"):
        random_model.ensure_model(folder, random_model.SHAPES["qwen2.5-7b"])
    assert (folder / "config.json").read_bytes() == before


def test_the_large_shape_is_that_of_qwen(random_model: ModuleType) -> None:
    shape = random_model.SHAPES["qwen2.5-7b"]
    num_parameters = 0
    for tensors in shape.shards():
        for sizes in tensors.values():
            count = 1
            for size in sizes:
                count *= size
            num_parameters += count
    assert num_parameters == 7_615_616_512  # as the model's card on the Hugging Face hub has it


@pytest.mark.e2e
def test_hob_creates_and_runs_the_random_model(folder: Path, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HOB_", "OLLAMA_"))}
    environ = {**inherited, "HOB_HOST": f"127.0.0.1:{port}", "HOB_HOME": str(tmp_path / "home"), "LANG": "C.UTF-8"}

    def hob(*arguments: str) -> str:
        words = [sys.executable, "-c", "from cli.main import main; main()", *arguments]
        done = subprocess.run(
            words,
            env=environ,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=TIMEOUT_S,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    (tmp_path / "Modelfile").write_text(f"FROM {folder}\nPARAMETER num_predict 24\nPARAMETER temperature 0\n")
    try:
        hob("create", "random", "-f", "Modelfile")
        assert hob("run", "random", "hello").strip()
    finally:
        hob("shutdown")


# ---- the plan


def test_lengths_have_exactly_the_sum_that_was_asked_for(gpu_plan: ModuleType) -> None:
    for sizes in gpu_plan.SIZES.values():
        rng = random.Random(0)
        for total in (sizes.mixed_input_tokens, sizes.mixed_output_tokens):
            found = gpu_plan.lengths(sizes.mixed_requests, total, sizes.mixed_longest, rng)
            assert len(found) == sizes.mixed_requests
            assert sum(found) == total
            assert min(found) >= 4
            assert max(found) <= sizes.mixed_longest
    with pytest.raises(ValueError, match="cannot have the sum 1000"):
        gpu_plan.lengths(4, 1000, 100, random.Random(0))


def test_cases_bring_what_they_need(gpu_plan: ModuleType) -> None:
    def names(*only: str) -> list[str]:
        return [case.name for case in gpu_plan.select(only)]

    assert names("http/bf16/b1") == ["ceiling/copy", "ceiling/matmul", "decode/bf16/b1", "http/bf16/b1/share"]
    assert "decode/bf16/b16" not in names("decode/bf16/b1")
    assert "decode/bf16/b64/no_graphs" not in names("decode", "")
    assert "decode/bf16/b64/no_graphs" in names("decode/bf16/b64/no_graphs")
    assert names() == [case.name for case in gpu_plan.CASES if case.is_default]
    with pytest.raises(ValueError, match='no case is named "decod"'):
        names("decod")


# ---- a run


def run(benchmarks: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(benchmarks / "gpu.py"), "--shape", "tiny", "--device", "cpu", *words]
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=TIMEOUT_S)


def is_figure(line: str) -> bool:
    return line.startswith("{")


def test_a_run_measures_its_cases_and_writes_them_down(benchmarks: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "results" / "gpu.jsonl"
    only = "decode/bf16/b4,step/host_ms/b256,ttft/bf16/128,prefill,turns,itl,kv"
    done = run(benchmarks, "--model-dir", str(folder), "--out", str(out), "--only", only)
    assert done.returncode == 0, done.stderr
    lines = {line["case"]: line for line in map(json.loads, out.read_text("utf-8").splitlines())}
    wanted = {
        "ceiling/copy", "ceiling/matmul", "decode/bf16/b4", "step/host_ms/b256", "ttft/bf16/128", "prefill/bf16",
        "turns/ttft_ratio_10_to_2", "itl/bf16/p99_ms", "mixed/bf16", "kv/waste_share", "kv/used_share_under_load",
    }  # fmt: skip
    assert lines.keys() == wanted
    assert all(line["value"] > 0 and line["shape"] == "tiny" and line["machine"] for line in lines.values())
    assert lines["decode/bf16/b4"]["command"].startswith("python benchmarks/gpu.py --shape tiny")
    assert 0 < lines["kv/waste_share"]["value"] < 1
    assert 0 < lines["kv/used_share_under_load"]["value"] <= 1
    shown = [line.split("  ")[0] for line in done.stdout.splitlines()]
    assert wanted <= set(shown), "the table lacks a case"


def test_cases_go_on_after_those_that_fail_hang_or_kill_their_process(benchmarks: Path, folder: Path) -> None:
    peers = {
        "silent": "echo nothing",
        "deadly": "kill -9 $PPID",
        "hanging": "sleep 600",
        "sound": f'test -d "$MODEL" && echo "{FIGURE}"',
    }
    words = [word for name, command in peers.items() for word in ("--peer", f"{name}={command}")]
    done = run(benchmarks, "--model-dir", str(folder), "--only", "ceiling", "--case-limit", "4", *words)
    assert done.returncode == 1
    assert "peer/silent failed: sh -c echo nothing printed no JSON object" in done.stdout
    assert "peer/deadly failed: its process was ended by signal 9" in done.stdout
    assert "peer/hanging failed: its process was still busy after 4 s, and was ended" in done.stdout
    figures = [json.loads(line) for line in done.stdout.splitlines() if is_figure(line)]
    (sound,) = [line for line in figures if line["case"].startswith("peer/")]
    assert (sound["case"], sound["value"], sound["peer_command"]) == ("peer/sound/b1", 3.5, "theirs")


@pytest.mark.e2e
def test_a_run_starts_processes_and_a_daemon(benchmarks: Path, folder: Path) -> None:
    done = run(benchmarks, "--model-dir", str(folder), "--only", "start/bf16/cold_s,fits,http/bf16/b1")
    assert done.returncode == 0, done.stderr
    lines = {line["case"]: line for line in map(json.loads, filter(is_figure, done.stdout.splitlines()))}
    assert {"start/bf16/cold_s", "fits/24gib/bf16", "http/bf16/b1/share"} < lines.keys()
    assert lines["fits/24gib/bf16"]["answered"] == 100
    assert not list(folder.parent.glob("hob-bench-*")), "the daemon's home was left behind"


def test_without_its_model_nothing_is_measured(benchmarks: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run(benchmarks, "--model-dir", str(tmp_path / "file" / "model"), "--only", "ceiling")
    assert done.returncode == 1
    assert "model failed: the model could not be written" in done.stdout
    assert not any(map(is_figure, done.stdout.splitlines()))
