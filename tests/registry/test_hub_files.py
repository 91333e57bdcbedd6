"""Which files of a repository a tag means. Names are those of repositories of the hub."""

from __future__ import annotations

import pytest

from registry.errors import RemoteError, RemoteNotFound
from registry.hub_files import HubFile, RepositoryFiles, quantization_of, sort_files, total_size


def repository(*paths: str, size: int = 10) -> RepositoryFiles:
    return sort_files(HubFile(path, size, None, "") for path in paths)


def chosen(files: RepositoryFiles, tag: str = "latest") -> list[str]:
    return [file.path for file in files.choose("o/r", tag)]


def tags(files: RepositoryFiles) -> list[str]:
    return [variant.tag for variant in files.variants]


@pytest.mark.parametrize(
    ("path", "quantization"),
    [
        ("qwen2.5-7b-instruct-q4_k_m-00001-of-00002.gguf", "Q4_K_M"),
        ("Meta-Llama-3.1-8B-Instruct-Q4_K_M.gguf", "Q4_K_M"),
        ("tinyllama-1.1b-chat-v1.0.Q4_K_M.gguf", "Q4_K_M"),
        ("Qwen3-8B-UD-Q4_K_XL.gguf", "UD-Q4_K_XL"),
        ("Phi-3-mini-4k-instruct-q4.gguf", "Q4"),
        ("Phi-3-mini-4k-instruct-fp16.gguf", "F16"),
        ("model.FP32.gguf", "F32"),
        ("gemma-2-9b-it-f32.gguf", "F32"),
        ("M-IQ3_XXS.gguf", "IQ3_XXS"),
        ("M-IQ4_NL.gguf", "IQ4_NL"),
        ("M-Q4_0_4_8.gguf", "Q4_0_4_8"),
        ("M-Q6_K_L.gguf", "Q6_K_L"),
        ("M-TQ1_0.gguf", "TQ1_0"),
        ("gpt-oss-20b-MXFP4.gguf", "MXFP4"),
        ("BF16/Big-BF16-00001-of-00003.gguf", "BF16"),
        ("Q8_0/model-00001-of-00003.gguf", "Q8_0"),
        ("Q8_0.gguf", "Q8_0"),
        ("F16-model-Q5_K_S.gguf", "Q5_K_S"),
        ("ggml-model.gguf", ""),
        ("Qwen2-7B.gguf", ""),
        ("sq8_0.gguf", ""),
    ],
)
def test_the_quantisation_in_a_name(path: str, quantization: str) -> None:
    assert quantization_of(path) == quantization


def test_a_tag_in_any_case_and_spelling() -> None:
    files = repository("m-q4_k_m.gguf", "m-Q8_0.gguf", "m-fp16.gguf", "m-UD-Q2_K_XL.gguf", "d/m-odd.gguf")
    for tag in ("Q4_K_M", "q4_K_m", "m-q4_k_m", "M-Q4_K_M.GGUF"):
        assert chosen(files, tag) == ["m-q4_k_m.gguf"]
    assert chosen(files, "f16") == chosen(files, "FP16") == ["m-fp16.gguf"]
    assert chosen(files, "Q2_K_XL") == chosen(files, "ud-q2_k_xl") == ["m-UD-Q2_K_XL.gguf"]
    assert chosen(files, "m-odd") == chosen(files, "m-odd.gguf") == ["d/m-odd.gguf"]


def test_a_tag_that_is_not_there_lists_those_that_are() -> None:
    files = repository("m-Q4_K_M.gguf", "m-Q8_0.gguf", "model.safetensors", "config.json")
    with pytest.raises(RemoteNotFound, match=r"^o/r has no Q5_K_M; it has Q4_K_M, Q8_0, safetensors$"):
        chosen(files, "Q5_K_M")
    many = repository(*(f"m{number:03}.gguf" for number in range(40)))
    with pytest.raises(RemoteNotFound, match="m029 and 10 more"):
        chosen(many, "Q5_K_M")


@pytest.mark.parametrize(
    ("there", "default"),
    [
        ("Q8_0 Q4_K_M Q4_0 F16", "Q4_K_M"),
        ("Q8_0 Q4_0 Q4_K_S F16", "Q4_0"),
        ("Q8_0 UD-Q4_K_XL Q6_K", "UD-Q4_K_XL"),
        ("Q8_0 F16", "Q8_0"),
        ("BF16 F16", "BF16"),
        ("IQ1_S", "IQ1_S"),
        ("IQ1_S Q2_K Q3_K_S", "Q3_K_S"),
    ],
)
def test_the_default(there: str, default: str) -> None:
    assert chosen(repository(*(f"m-{tag}.gguf" for tag in there.split()))) == [f"m-{default}.gguf"]


def test_no_default_among_several_models() -> None:
    files = repository("a-Q4_K_M.gguf", "b-Q4_K_M.gguf")
    assert tags(files) == ["a-Q4_K_M", "b-Q4_K_M"]
    with pytest.raises(RemoteNotFound, match="several models; name one of them as the tag: a-Q4_K_M, b-Q4_K_M"):
        chosen(files)
    assert chosen(files, "b-q4_k_m") == ["b-Q4_K_M.gguf"]
    assert chosen(repository("only.gguf")) == ["only.gguf"]


def test_shards_come_together_and_in_order() -> None:
    shards = [f"m-q4_k_m-{number:05}-of-00003.gguf" for number in (1, 2, 3)]
    files = repository(*reversed(shards), "m-q8_0.gguf")
    assert chosen(files) == shards
    assert chosen(files, "m-q4_k_m-00001-of-00003.gguf") == shards
    assert [total_size(files.files_of(variant)) for variant in files.variants] == [30, 10]


@pytest.mark.parametrize(
    "numbers", [("00001", "00003"), ("00002", "00003"), ("00000", "00001", "00002"), ("00001", "00002", "00004")]
)
def test_a_shard_that_is_missing(numbers: tuple[str, ...]) -> None:
    files = repository(*(f"m-Q4_K_M-{number}-of-00003.gguf" for number in numbers), "m-Q8_0.gguf")
    assert chosen(files) == ["m-Q8_0.gguf"]
    with pytest.raises(RemoteError, match="o/r has Q4_K_M without 1 of its shards; take another"):
        chosen(files, "Q4_K_M")


def test_a_number_of_shards_that_cannot_be() -> None:
    files = repository("m-Q4_K_M-00001-of-99999.gguf", "m-Q8_0-00001-of-00002.gguf", "m-Q8_0-00001-of-00003.gguf")
    with pytest.raises(RemoteError, match="Q4_K_M without 99999 of its shards"):
        chosen(files, "Q4_K_M")
    with pytest.raises(RemoteError, match="Q8_0 without 3 of its shards"):
        chosen(files, "Q8_0")


def test_the_size_is_unknown_where_one_is() -> None:
    files = sort_files([HubFile("m-Q8_0.gguf", None, None, "")])
    assert total_size(files.choose("o/r", "latest")) is None


def test_safetensors_with_what_describes_them() -> None:
    listed = [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "chat_template.jinja",
        "merges.txt",
    ]
    others = ["README.md", "original/params.json", "openvino/config.json", "eval.csv", "model.onnx", "LICENSE"]
    files = repository(*listed, *others)
    assert tags(files) == ["safetensors"]
    assert sorted(chosen(files)) == sorted([*listed, "LICENSE"])


def test_safetensors_in_folders_count_where_there_are_no_others() -> None:
    inside = ["weights/model-00001-of-00001.safetensors", "weights/model.safetensors.index.json"]
    assert sorted(chosen(repository("config.json", "x/config.json", *inside))) == ["config.json", *inside]
    beside = repository("config.json", "model.safetensors", *inside)
    assert sorted(chosen(beside)) == ["config.json", "model.safetensors"]


def test_safetensors_without_a_configuration_are_no_model() -> None:
    with pytest.raises(RemoteError, match=r"no model that Hob reads: there are no \.gguf files, and no model"):
        chosen(repository("model.safetensors", "unet/config.json"))


def test_a_side_file_that_is_too_long_to_be_one_is_left_out() -> None:
    huge = HubFile("vocab.json", 300 * 1024 * 1024, None, "")
    files = sort_files([huge, *(HubFile(path, 1, None, "") for path in ("model.safetensors", "config.json"))])
    assert chosen(files) == ["model.safetensors", "config.json"]


def test_words_that_are_too_long_to_be_some_are_left_out() -> None:
    long = [HubFile(path, 2 * 1024 * 1024, None, "") for path in ("template", "LICENSE")]
    files = sort_files([*long, HubFile("m-Q8_0.gguf", 1, None, ""), HubFile("LICENSE.txt", 1, None, "")])
    assert chosen(files) == ["m-Q8_0.gguf", "LICENSE.txt"]


def test_how_a_model_pools_comes_with_it_and_other_forms_do_not() -> None:
    files = repository(
        "config.json", "model.safetensors", "modules.json", "sentence_bert_config.json", "tokenizer.json", "vocab.txt",
        "1_Pooling/config.json", "2_Dense/model.safetensors", "2_Dense/config.json", "onnx/model.onnx",
        "openvino/config.json", "pytorch_model.bin",
    )  # fmt: skip
    assert sorted(chosen(files)) == [
        "1_Pooling/config.json", "config.json", "model.safetensors", "modules.json", "sentence_bert_config.json",
        "tokenizer.json", "vocab.txt",
    ]  # fmt: skip
