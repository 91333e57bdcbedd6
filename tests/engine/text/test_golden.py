"""Token ids equal those of llama.cpp for GGUF vocabularies, and those of `tokenizers` for tokenizer.json: exactly."""

from __future__ import annotations

import json
import lzma
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import sentencepiece
import transformers
from tokenizers import Tokenizer as RustTokenizer

from engine.text.tokenizer import Tokenizer
from modelfiles.source import ModelSource

GGUF_NAMES = (
    "bert-bge", "deepseek-coder", "deepseek-llm", "falcon", "gpt-2", "llama-bpe", "llama-spm", "qwen2", "refact",
)  # fmt: skip
HF_FILES = {
    "Qwen2.5-0.5B-Instruct": "tokenizer.assembled.json",
    "Mistral-7B-Instruct-v0.2": "tokenizer.json",
    "Phi-3-mini": "tokenizer.json",
}
SEPARATOR = "\n__ggml_vocab_test__\n"

Unpack = Callable[[Path], Path]
Load = Callable[[str], Tokenizer]


@pytest.fixture(scope="session")
def texts(data_dir: Path) -> list[str]:
    return json.loads((data_dir / "golden" / "tokenizer_texts.json").read_text("utf-8"))


@pytest.fixture(scope="session")
def unpack(tmp_path_factory: pytest.TempPathFactory) -> Unpack:
    """The path of a file, unpacked first if it has only its .xz."""

    def unpacked(path: Path) -> Path:
        if path.exists():
            return path
        target = tmp_path_factory.mktemp("unpacked") / path.name
        target.write_bytes(lzma.decompress(path.with_name(path.name + ".xz").read_bytes()))
        return target

    return unpacked


@pytest.fixture(scope="module")
def from_gguf(data_dir: Path, unpack: Unpack) -> Load:
    """Loads a vocabulary of llama.cpp's by name, once for all tests of this file."""
    folder = data_dir / "vocab" / "llama.cpp"
    return cache(lambda name: Tokenizer.from_source(ModelSource.from_path(unpack(folder / f"ggml-vocab-{name}.gguf"))))


@pytest.mark.parametrize("name", GGUF_NAMES)
def test_llama_cpp_pairs(name: str, from_gguf: Load, data_dir: Path) -> None:
    path = data_dir / "vocab" / "llama.cpp" / f"ggml-vocab-{name}.gguf"
    inputs = path.with_suffix(".gguf.inp").read_bytes().decode().split(SEPARATOR)
    outputs = path.with_suffix(".gguf.out").read_text("utf-8").split("\n")
    assert len(inputs) == len(outputs) > 40
    for text, ids in zip(inputs, outputs, strict=True):
        assert from_gguf(name).encode(text, add_special=False) == [int(number) for number in ids.split()], repr(text)


@pytest.mark.parametrize("name", GGUF_NAMES)
def test_llama_cpp_texts(name: str, from_gguf: Load, data_dir: Path, texts: list[str]) -> None:
    golden = json.loads((data_dir / "golden" / "tokenizer_llamacpp.json").read_text("utf-8"))["ids"]
    for text, ids in zip(texts, golden[f"ggml-vocab-{name}.gguf"], strict=True):
        assert from_gguf(name).encode(text, add_special=False, parse_special=False) == ids, text[:60]


@pytest.mark.parametrize("name", [name for name in GGUF_NAMES if "bert" not in name])
def test_gguf_round_trip(name: str, from_gguf: Load, texts: list[str]) -> None:
    for text in [*texts, "", " ", "  two", "a\u0300\U0001f999\0", " \n\t "]:
        assert from_gguf(name).decode(from_gguf(name).encode(text)) == text


def test_vocab_txt_is_read_as_transformers_reads_it(from_gguf: Load, texts: list[str], tmp_path: Path) -> None:
    of_gguf = from_gguf("bert-bge")
    spelled = [of_gguf._encoder.token_text(token_id) or "" for token_id in range(of_gguf.vocab_size)]
    is_whole = re.compile(r"▁|\[.+\]$")
    lines = [token.removeprefix("▁") if is_whole.match(token) else f"##{token}" for token in spelled]
    (tmp_path / "vocab.txt").write_text("\n".join(lines) + "\n", "utf-8")
    reference = transformers.BertTokenizer.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").touch()
    of_hub = Tokenizer.from_source(ModelSource.from_path(tmp_path))
    for text in texts:
        expected = reference(text)["input_ids"]
        assert of_hub.encode(text) == expected, text[:60]
        assert of_gguf.encode(text) == expected, text[:60]
    pair = reference("the cat", "a fox")["input_ids"]
    for tokenizer in (of_hub, of_gguf):
        (first,), (last,) = tokenizer.affixes
        one, other = (tokenizer.encode(text, add_special=False) for text in ("the cat", "a fox"))
        assert [first, *one, *tokenizer.between_ids, *other, last] == pair


def test_bert_puts_its_tokens_around_a_text(from_gguf: Load) -> None:
    tokenizer = from_gguf("bert-bge")
    ids = tokenizer.encode("Hello, WÖRLD")
    assert (ids[0], ids[-1]) == (101, 102)
    assert tokenizer.decode(ids) == "hello , world"


def test_special_tokens_in_text(from_gguf: Load) -> None:
    tokenizer = from_gguf("qwen2")
    text = "<|im_start|>user\n</s><|im_end|>"
    ids = tokenizer.encode(text)
    assert ids[0] == 151644
    assert ids[-1] == 151645
    assert tokenizer.token_id("</s>") not in tokenizer.eos_ids, "in Qwen's vocabulary it is plain text"
    plain = tokenizer.encode(text, parse_special=False)
    assert not {151644, 151645} & set(plain)
    assert tokenizer.decode(plain) == text
    assert tokenizer.decode(ids) == "user\n</s>"
    assert tokenizer.decode(ids, skip_special=False) == text


@pytest.fixture(scope="module")
def from_hf(data_dir: Path, unpack: Unpack) -> Load:
    """Loads a folder with tokenizer.json by name, once for all tests of this file."""

    def load(name: str) -> Tokenizer:
        folder = data_dir / "vocab" / "hf" / name
        files = {path.name: path for path in folder.iterdir()} | {"model.safetensors": folder}
        files["tokenizer.json"] = unpack(folder / HF_FILES[name])
        return Tokenizer.from_source(ModelSource(files))

    return cache(load)


@pytest.mark.parametrize("name", HF_FILES)
def test_hf_texts(name: str, from_hf: Load, data_dir: Path, texts: list[str]) -> None:
    golden = json.loads((data_dir / "golden" / "tokenizer_hf.json").read_text("utf-8"))["ids"]
    for text, ids in zip(texts, golden[f"{name}/{HF_FILES[name]}"], strict=True):
        assert from_hf(name).encode(text, add_special=False) == ids, text[:60]
        assert from_hf(name).decode(from_hf(name).encode(text)) == text


@pytest.mark.parametrize(
    ("name", "adds_bos", "ends", "template_start"),
    [
        ("Qwen2.5-0.5B-Instruct", False, {151643, 151645}, "{%- if tools %}"),
        ("Mistral-7B-Instruct-v0.2", True, {2}, "{{ bos_token }}"),
        ("Phi-3-mini", False, {32000, 32001, 32007}, "{% for message"),
    ],
)
def test_hf_side_files(name: str, adds_bos: bool, ends: set[int], template_start: str, from_hf: Load) -> None:
    tokenizer = from_hf(name)
    assert tokenizer.add_bos is adds_bos
    assert tokenizer.eos_ids == ends
    assert (tokenizer.chat_template or "").startswith(template_start)
    added = len(tokenizer.encode("Hello")) - len(tokenizer.encode("Hello", add_special=False))
    assert added == adds_bos


@pytest.mark.parametrize("name", HF_FILES)
def test_every_token_spells_what_its_decoder_says(name: str, from_hf: Load, data_dir: Path, unpack: Unpack) -> None:
    """token_bytes against the decoder of the `tokenizers` package, for all tokens that are whole characters."""
    oracle = RustTokenizer.from_file(str(unpack(data_dir / "vocab" / "hf" / name / HF_FILES[name])))
    tokenizer = from_hf(name)
    ids = [token_id for token_id in range(tokenizer.vocab_size) if oracle.id_to_token(token_id) is not None]
    decoded = oracle.decode_batch([[token_id] for token_id in ids], skip_special_tokens=False)
    for token_id, text in zip(ids, decoded, strict=True):
        if "\ufffd" not in text:
            assert tokenizer.decode([token_id], skip_special=False) == text


@pytest.mark.parametrize("model", ["stories260K", "stories3M", "synthetic-gemma"])
def test_sentencepiece_model(model: str, data_dir: Path, texts: list[str]) -> None:
    """tokenizer.model, tokenizer.json and sentencepiece itself agree, repeated characters included."""
    folder = data_dir / "models" / model / "hf"
    oracle = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    files = {path.name: path for path in folder.iterdir()}
    from_json = Tokenizer.from_source(ModelSource(files))
    del files["tokenizer.json"]
    from_model = Tokenizer.from_source(ModelSource(files))
    for text in [*texts, "  a b", " a", "a  \n  b", "", "a" * 9, "=" * 7, "-- --- ----"]:
        ids = oracle.encode(text)
        assert from_model.encode(text, add_special=False) == ids
        assert from_json.encode(text, add_special=False) == ids
        assert from_model.decode(ids) == from_json.decode(ids) == oracle.decode(ids)
    assert from_model.eos_ids == from_json.eos_ids
    assert from_model.special_tokens == from_json.special_tokens
    assert from_model.encode("x")[0] == from_model.bos_id == 1


def test_gemma_gguf_has_no_prefix_space(data_dir: Path) -> None:
    path = data_dir / "models" / "synthetic-gemma" / "gguf" / "synthetic-gemma-F32.gguf"
    tokenizer = Tokenizer.from_source(ModelSource.from_path(path))
    assert not tokenizer.strips_leading_space
    assert tokenizer.decode(tokenizer.encode(" once")) == " once"
    assert tokenizer.encode("once", add_special=False) != tokenizer.encode(" once", add_special=False)


def test_the_story_models_end_with_their_first_token_too(data_dir: Path) -> None:
    """generation_config.json and tokenizer.ggml.eot_token_id both say so, each in its file."""
    folder = data_dir / "models" / "stories3M"
    for path in (folder / "hf", folder / "gguf" / "stories3M-Q4_K_M.gguf"):
        assert Tokenizer.from_source(ModelSource.from_path(path)).eos_ids == {1, 2}
