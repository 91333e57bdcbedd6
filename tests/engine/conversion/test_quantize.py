"""Models written anew: same words, same numbers, as good as llama.cpp's files; and nothing left where it fails."""

from __future__ import annotations

import json
import lzma
import math
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.padded_stories import write_padded_stories
from engine.config import ModelConfig
from engine.conversion.errors import ConversionError
from engine.conversion.gguf_metadata import describe
from engine.conversion.gguf_vocabulary import vocabulary_metadata
from engine.conversion.quantize import quantize_model
from engine.conversion.source_tensors import neighbour_order
from engine.execution.weights import half_split_order
from engine.llm import LLM
from engine.messages import Quantize
from engine.sampling_params import SamplingParams
from engine.text.tokenizer import Tokenizer
from modelfiles.gguf import GGMLType, GGUFFile, NewTensor, write_gguf
from modelfiles.source import ModelSource
from tests.engine.conversion.nll import perplexity
from tools.tale.dialogues import story_chat

Change = Callable[[dict[str, Any]], object]


def quantize(source: Path, folder: Path, file_type: str) -> dict[str, Path]:
    folder.mkdir(exist_ok=True)
    files = {name: str(path) for name, path in ModelSource.from_path(source).files.items()}
    written = quantize_model(Quantize(files=files, folder=str(folder), file_type=file_type), lambda done, total: None)
    assert sorted(map(str, folder.iterdir())) == sorted(written.files.values())
    return {name: Path(path) for name, path in written.files.items()}


def greedy(model: Path, prompt: str = "Once upon a time") -> list[int]:
    llm = LLM(model, device="cpu", dtype="float32", num_blocks=32)
    return llm.generate(prompt, SamplingParams(max_tokens=16, temperature=0.0))[0].token_ids


@pytest.fixture(scope="module")
def stories(data_dir: Path) -> list[str]:
    texts: list[str] = json.loads((data_dir / "prompts/tinystories_1000.json").read_text())
    return texts[:6]


@pytest.fixture(scope="module")
def padded(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """stories3M with rows that are whole blocks, of which llama.cpp's files were made."""
    return write_padded_stories(data_dir / "models/stories3M/hf", tmp_path_factory.mktemp("padded") / "hf")


@pytest.mark.parametrize("file_type", ["Q4_K_M", "Q5_K_M", "Q6_K"])
def test_perplexity_is_that_of_llama_cpp_s_file(
    data_dir: Path, padded: Path, stories: list[str], tmp_path: Path, file_type: str
) -> None:
    theirs = data_dir / f"models/stories3M-pad256/gguf/stories3M-pad256-{file_type}.gguf"
    golden = json.loads((data_dir / f"golden/{theirs.stem}-gguf-dequant-fp32.json").read_text())["tinystories_nll"]
    ours = quantize(padded, tmp_path / "q", file_type)["model.gguf"]
    tokenizer = Tokenizer.from_source(ModelSource.from_path(ours))
    num_tokens = sum(len(tokenizer.encode(story)) - 1 for story in stories)
    expected = math.exp(sum(golden["nll_per_sequence"][: len(stories)]) / num_tokens)
    assert perplexity(ours, stories) / expected == pytest.approx(1, abs=0.01)
    with GGUFFile.open(ours) as our_file, GGUFFile.open(theirs) as their_file:
        assert {name: (t.shape, t.type) for name, t in our_file.tensors.items()} == {
            name: (t.shape, t.type) for name, t in their_file.tensors.items()
        }
        for key in (
            "general.architecture",
            "general.file_type",
            "general.quantization_version",
            "llama.rope.freq_base",
        ):
            assert our_file.metadata[key] == their_file.metadata[key]


@pytest.fixture(scope="module")
def tale_chats() -> list[str]:
    """What tale was trained on, and has not seen."""
    return ["".join(segment.text for segment in story_chat(random.Random(seed), 200)) for seed in range(900, 904)]


@pytest.mark.parametrize(("file_type", "tolerance"), [("Q8_0", 0.01), ("Q6_K", 0.01), ("Q4_K_M", 0.05)])
def test_tale_keeps_its_perplexity(
    tale_dir: Path, tale_chats: list[str], tmp_path: Path, file_type: str, tolerance: float
) -> None:
    written = quantize(tale_dir, tmp_path / "q", file_type)["model.gguf"]
    ratio = perplexity(written, tale_chats) / perplexity(tale_dir, tale_chats)
    assert ratio == pytest.approx(1, abs=tolerance)


@pytest.mark.parametrize("file_type", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K_M"])
def test_bytes_are_those_of_llama_cpp(data_dir: Path, tmp_path: Path, file_type: str) -> None:
    """All that is not searched for is the same to the last bit."""
    written = quantize(data_dir / "models/stories3M/hf", tmp_path / "q", file_type)["model.gguf"]
    theirs = data_dir / f"models/stories3M/gguf/stories3M-{file_type}.gguf"
    with GGUFFile.open(written) as new, GGUFFile.open(theirs) as golden:
        assert {name: t.type for name, t in new.tensors.items()} == {name: t.type for name, t in golden.tensors.items()}
        simple = [tensor.name for tensor in golden.tensors.values() if not tensor.type.name.endswith("_K")]
        assert len(simple) > len(golden.tensors) / 2
        for name in simple:
            assert bytes(new.data(name)) == bytes(golden.data(name)), name


@pytest.mark.parametrize("name", ["gemma", "gemma2-swa16", "qwen2", "phi3", "mistral-swa16"])
def test_every_architecture_says_the_same_as_gguf(data_dir: Path, tmp_path: Path, name: str) -> None:
    source = data_dir / f"models/synthetic-{name}/hf"
    written = quantize(source, tmp_path / "q", "F32")["model.gguf"]
    prompt = "a b" if name == "mistral-swa16" else "Once upon a time"  # its file ends with the window, see below
    expected = greedy(source, prompt)
    found = greedy(written, prompt)
    assert found == expected[: len(found)]
    assert len(found) >= 12


def test_a_window_that_gguf_lacks_ends_the_context(data_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "q").mkdir()
    source = ModelSource.from_path(data_dir / "models/synthetic-mistral-swa16/hf")
    files = {name: str(path) for name, path in source.files.items()}
    message = Quantize(files=files, folder=str(tmp_path / "q"), file_type="q8_0", num_threads=1)
    quantized = quantize_model(message, lambda done, total: None)
    assert quantized.notes == [
        "GGUF files of this family have no attention window; the context ends at the window, 16 tokens instead of 512"
    ]
    config = ModelConfig.from_source(ModelSource.from_path(Path(quantized.files["model.gguf"])))
    assert (config.max_position_embeddings, config.quantization) == (16, "Q8_0")


def test_a_gguf_source_keeps_its_metadata(data_dir: Path, tmp_path: Path) -> None:
    source = data_dir / "models/stories3M/gguf/stories3M-F16.gguf"
    written = quantize(source, tmp_path / "q", "q4_K_M")["model.gguf"]
    theirs = data_dir / "models/stories3M/gguf/stories3M-Q4_K_M.gguf"
    with GGUFFile.open(written) as new, GGUFFile.open(source) as old, GGUFFile.open(theirs) as golden:
        assert new.metadata == {**old.metadata, "general.file_type": 15, "general.quantization_version": 2}
        assert new.metadata == golden.metadata
        assert new.types == golden.types


@pytest.mark.parametrize(("file_type", "dtype"), [("fp8", torch.float8_e4m3fn), ("int8", torch.int8)])
def test_eight_bits_and_a_scale_for_each_row(
    data_dir: Path, tmp_path: Path, file_type: str, dtype: torch.dtype
) -> None:
    source = data_dir / "models/stories3M/hf"
    written = quantize(source, tmp_path / "q", file_type)
    assert sorted(written) == ["config.json", "model.safetensors"]
    old, new = load_file(source / "model.safetensors"), load_file(written["model.safetensors"])
    matrices = {name for name in old if name.endswith("proj.weight")}
    assert set(new) == set(old) | {f"{name}_scale" for name in matrices}
    for name in matrices:
        assert new[name].dtype == dtype
        scale = new[f"{name}_scale"]
        assert scale.shape == (len(old[name]), 1)
        error = (new[name].float() * scale - old[name]).abs()
        step = 2**-4 * old[name].abs() + scale * 2**-9 if file_type == "fp8" else scale / 2
        assert (error <= step * 1.001).all()
    for name in set(old) - matrices:
        assert torch.equal(new[name], old[name])
    config = json.loads(written["config.json"].read_text())
    before = json.loads((source / "config.json").read_text())
    method = config.pop("quantization_config")["quant_method"]
    assert (config, method) == (before, "fp8" if file_type == "fp8" else "compressed-tensors")


def test_sources_that_cannot_be_quantised(data_dir: Path, tmp_path: Path) -> None:
    quantised = data_dir / "models/stories3M/gguf/stories3M-Q4_0.gguf"
    with pytest.raises(ConversionError, match=r'only supported for F16, BF16 and F32 models; the tensor "token_embd'):
        quantize(quantised, tmp_path / "a", "q8_0")
    with pytest.raises(ConversionError, match="FP8 is made of safetensors, and the source is GGUF; take Q8_0"):
        quantize(data_dir / "models/stories3M/gguf/stories3M-F16.gguf", tmp_path / "b", "fp8")


@pytest.mark.parametrize("file_type", ["q4_0", "q8_0", "fp8", "int8"])
def test_damaged_weights_leave_nothing_behind(data_dir: Path, tmp_path: Path, file_type: str) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(data_dir / "models/synthetic-qwen2/hf", damaged)
    tensors = load_file(damaged / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = float("nan")
    save_file(tensors, damaged / "model.safetensors")
    with pytest.raises(
        ConversionError, match=r'the tensor ".*up.*weight" has a value that is no finite number, in row 3'
    ):
        quantize(damaged, tmp_path / "q", file_type)
    assert list((tmp_path / "q").iterdir()) == []


def test_permuting_rows_and_back_changes_nothing() -> None:
    there, back = neighbour_order(2, 8, 6), half_split_order(2, 8, 6)
    assert [there[row] for row in back] == list(range(16))
    assert there[:8] == (0, 3, 1, 4, 2, 5, 6, 7)


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
ROPES: dict[str, dict[str, Any]] = {
    "llama3": {**LLAMA3, "original_max_position_embeddings": 128},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
    "linear": {"rope_type": "linear", "factor": 2.0},
}


@pytest.mark.parametrize("scaling", ROPES)
def test_rope_scalings_survive(data_dir: Path, tmp_path: Path, scaling: str) -> None:
    changed = tmp_path / "changed"
    shutil.copytree(data_dir / "models/stories260K/hf", changed)
    config = json.loads((changed / "config.json").read_text())
    for key in ("rope_parameters", "rope_scaling", "rope_theta"):
        config.pop(key, None)
    (changed / "config.json").write_text(json.dumps({**config, "rope_theta": 10000.0, "rope_scaling": ROPES[scaling]}))
    assert greedy(quantize(changed, tmp_path / "q", "f32")["model.gguf"]) == greedy(changed)


def test_what_gguf_has_no_key_for_is_refused(data_dir: Path, tmp_path: Path) -> None:
    changed = tmp_path / "changed"
    shutil.copytree(data_dir / "models/stories260K/hf", changed)
    config = json.loads((changed / "config.json").read_text())
    rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "truncate": False}
    (changed / "config.json").write_text(json.dumps({**config, "rope_parameters": {**rope, "rope_theta": 1e4}}))
    with pytest.raises(ConversionError, match="has no key for rope scaling of the type yarn"):
        quantize(changed, tmp_path / "q", "q8_0")


def test_gemma_3_and_its_two_rotations() -> None:
    config = ModelConfig.from_hf(
        {
            "architectures": ["Gemma3ForCausalLM"], "num_hidden_layers": 6, "hidden_size": 64, "intermediate_size": 96,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "query_pre_attn_scalar": 32,
            "vocab_size": 100, "rope_local_base_freq": 5000.0, "sliding_window": 16, "max_position_embeddings": 64,
        }
    )  # fmt: skip
    metadata = describe(config, "g").metadata
    assert metadata["gemma3.rope.freq_base"] == 1_000_000.0
    assert metadata["gemma3.rope.freq_base_swa"] == 5000.0
    assert metadata["gemma3.attention.sliding_window"] == 16
    read = ModelConfig.from_gguf(metadata, {})
    assert (read.windows, read.local_rope, read.rope) == (config.windows, config.local_rope, config.rope)


@pytest.mark.parametrize(
    ("name", "model", "pre"),
    [
        ("Qwen2.5-0.5B-Instruct", "gpt2", "qwen2"),
        ("Mistral-7B-Instruct-v0.2", "llama", "default"),
        ("Phi-3-mini", "llama", "default"),
    ],
)
def test_vocabularies_of_real_models(data_dir: Path, tmp_path: Path, name: str, model: str, pre: str) -> None:
    for path in (data_dir / "vocab/hf" / name).iterdir():
        if path.suffix == ".xz":
            (tmp_path / "tokenizer.json").write_bytes(lzma.decompress(path.read_bytes()))
        elif not path.name.endswith(".index.json"):
            shutil.copy(path, tmp_path)
    (tmp_path / "model.safetensors").touch()
    source = ModelSource.from_path(tmp_path)
    old = Tokenizer.from_source(source)
    metadata = vocabulary_metadata(source, old.vocab_size + 5, [])
    assert (metadata["tokenizer.ggml.model"], metadata["tokenizer.ggml.pre"]) == (model, pre)
    new = Tokenizer.from_gguf(metadata)
    assert new.vocab_size == old.vocab_size + 5
    assert (new.bos_id, new.add_bos, new.chat_template) == (old.bos_id, old.add_bos, old.chat_template)
    for sample in json.loads((data_dir / "golden/tokenizer_texts.json").read_text())[:12]:
        assert new.encode(sample, parse_special=False) == old.encode(sample, parse_special=False)


def test_a_tensor_in_pieces_must_have_the_announced_size(tmp_path: Path) -> None:
    def pieces() -> list[bytes]:
        return [bytes(64), bytes(60)]

    tensor = NewTensor("t", (32,), GGMLType.F32, pieces)
    with pytest.raises(ValueError, match='the tensor "t" has 124 bytes, but its shape takes 128'):
        write_gguf(tmp_path / "x.gguf", {"general.architecture": "llama"}, [tensor])
