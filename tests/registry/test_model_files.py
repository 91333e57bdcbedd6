"""Which files are a model's, and which are refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from registry import model_files
from registry.errors import CreateError
from registry.model_files import check_name, check_safetensors, select, sort_gguf
from tests.registry.weights import LLAMA, LORA, PROJECTOR, gguf_bytes, safetensors_bytes, write_files


@pytest.mark.parametrize("name", ["model.gguf", "sub/model.safetensors", "chat_template.jinja", "Modelfile"])
def test_clean_names_pass(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize("name", ["/etc/passwd", "~/model.gguf", "C:\\model.gguf", "a\\b.gguf", "\\\\host\\share"])
def test_absolute_names_are_refused(name: str) -> None:
    with pytest.raises(CreateError, match="file path must be relative"):
        check_name(name)


@pytest.mark.parametrize("name", ["", "../model.gguf", "a/../../b", "./a", "a//b", "a\x00", "a\nb", "x" * 256])
def test_unclean_names_are_refused(name: str) -> None:
    with pytest.raises(CreateError, match="a file path must be clean"):
        check_name(name)


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "consolidated.00.pth", "m.PT", "a/modeling_x.py", "x.pkl", "x.npz"]
)
def test_files_that_can_run_code_are_refused(name: str) -> None:
    with pytest.raises(CreateError, match="can run code; convert the weights to safetensors or GGUF"):
        check_name(name)


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["model.gguf"], ["model.gguf"]),
        (
            ["b-00002-of-00002.gguf", "b-00001-of-00002.gguf", "config.json"],
            ["b-00001-of-00002.gguf", "b-00002-of-00002.gguf"],
        ),
        (
            ["model.safetensors", "consolidated.safetensors", "x.gguf", "config.json", "README.md", "tokenizer.model"],
            ["model.safetensors", "config.json", "tokenizer.model"],
        ),
        (
            ["a/model-1.safetensors", "model-2.safetensors", "a/b/model-3.safetensors", "a/x.json"],
            ["a/model-1.safetensors", "model-2.safetensors", "a/x.json"],
        ),
        (["consolidated.00.safetensors", "params.json"], ["consolidated.00.safetensors", "params.json"]),
        (
            ["model.safetensors", "chat_template.jinja", "merges.txt", "vocab.txt", "notes.txt"],
            ["model.safetensors", "chat_template.jinja", "merges.txt", "vocab.txt"],
        ),
        (["model.safetensors", "x/tokenizer.model", "a/y/tokenizer.model"], ["model.safetensors", "x/tokenizer.model"]),
        (["model.safetensors", "a/tokenizer.model", "tokenizer.model"], ["model.safetensors", "tokenizer.model"]),
    ],
)
def test_one_kind_of_weights_and_what_describes_them(names: list[str], chosen: list[str]) -> None:
    assert list(select(names)) == chosen
    assert list(select(reversed(names))) == chosen


@pytest.mark.parametrize(
    "names",
    [[], ["README.md"], ["config.json", "weights.safetensors"], ["adapter_model.safetensors", "adapter_config.json"]],
)
def test_no_weights_is_an_unknown_type(names: list[str]) -> None:
    with pytest.raises(CreateError, match=r"unknown type: there are no .gguf files"):
        select(names)


@pytest.mark.parametrize(
    ("names", "end"),
    [
        ([], "among the files"),
        (["notes.txt"], "among the files: notes.txt"),
        (["a", "b", "c"], "among the files: a, b, c"),
        (["e", "d", "c", "b", "a"], "among the files: a, b, c and 2 more"),
    ],
)
def test_files_that_are_no_weights_are_named(names: list[str], end: str) -> None:
    with pytest.raises(CreateError) as caught:
        select(names)
    assert str(caught.value).endswith(end)


# ---- GGUF


def test_gguf_files_are_told_apart_by_what_they_say(tmp_path: Path) -> None:
    files = write_files(
        tmp_path,
        {
            "a.gguf": gguf_bytes(tmp_path, LORA),
            "b.gguf": gguf_bytes(tmp_path, PROJECTOR),
            "c.gguf": gguf_bytes(tmp_path),
            "d.gguf": gguf_bytes(tmp_path, {**LLAMA, "general.type": "mmproj"}),
        },
    )
    assert sort_gguf(files) == model_files.GGUFFiles(("c.gguf",), ("b.gguf", "d.gguf"), ("a.gguf",))
    assert sort_gguf({}) == model_files.GGUFFiles((), (), ())


def test_shards_come_in_their_order_and_all(tmp_path: Path) -> None:
    def shard(number: int, count: int = 2) -> bytes:
        split = {"split.no": number, "split.count": count, "split.tensors.count": 2}
        return gguf_bytes(tmp_path, {**LLAMA, **split}, name=f"w{number}")

    files = write_files(tmp_path, {"a.gguf": shard(1), "b.gguf": shard(0)})
    assert sort_gguf(files).weights == ("b.gguf", "a.gguf")
    with pytest.raises(CreateError, match=r"a.gguf is one of 2 shards"):
        sort_gguf({"a.gguf": files["a.gguf"]})
    odd = write_files(tmp_path, {"a.gguf": gguf_bytes(tmp_path, {**LLAMA, "split.no": "one"})})
    assert sort_gguf(odd).weights == ("a.gguf",)


def test_every_cut_of_a_gguf_file_is_refused_under_its_senders_name(tmp_path: Path) -> None:
    whole = gguf_bytes(tmp_path)
    for length in range(len(whole)):
        files = write_files(tmp_path, {"mine.gguf": whole[:length]})
        with pytest.raises(CreateError, match=r"mine\.gguf") as caught:
            sort_gguf(files)
        assert "blob-" not in str(caught.value)


# ---- safetensors


def test_a_sound_folder_passes(tmp_path: Path) -> None:
    files = {
        "model.safetensors": safetensors_bytes(),
        "config.json": b"{}",
        "chat_template.jinja": "{{ ä }}".encode(),
        "tokenizer.model": b"\n\x0e\xff",
    }
    check_safetensors(write_files(tmp_path, files))


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("model.safetensors", safetensors_bytes()[:-1], "model.safetensors"),
        ("model.safetensors", b"", "model.safetensors is empty"),
        ("model.safetensors", b"\x80\x04" + bytes(20), "model.safetensors"),
        ("model.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        ("model-extra.safetensors", b"junk", "model-extra.safetensors is cut short"),
        ("config.json", b"{", "config.json cannot be read"),
        ("config.json", b"", "config.json is empty"),
        ("config.json", b"\xff\xfe{}", "config.json cannot be read"),
        ("config.json", b"[" * 100_000, "config.json cannot be read"),
        ("config.json", b"version https://git-lfs.github.com/spec/v1\n", "config.json is a Git LFS pointer"),
        ("tokenizer.model", b"version https://git-lfs.github.com/spec/v1\n", "tokenizer.model is a Git LFS pointer"),
        ("tokenizer.model", b"\x80\x04pickle", "tokenizer.model is a Python pickle"),
        ("merges.txt", b"PK\x03\x04", "merges.txt is a PyTorch checkpoint"),
        ("tokenizer.json", b"<!DOCTYPE html>", "tokenizer.json is a web page"),
        ("chat_template.jinja", b"\xff", "chat_template.jinja cannot be read"),
    ],
)
def test_a_file_that_is_not_what_its_name_says(tmp_path: Path, name: str, data: bytes, reason: str) -> None:
    files = {"model.safetensors": safetensors_bytes(), "config.json": b"{}", name: data}
    with pytest.raises(CreateError, match=reason) as caught:
        check_safetensors(write_files(tmp_path, files))
    assert "blob-" not in str(caught.value)


@pytest.mark.parametrize("shard", ["../../etc/passwd", "/etc/passwd", "gone.safetensors", "", 7])
def test_an_index_cannot_point_elsewhere(tmp_path: Path, shard: object) -> None:
    index = json.dumps({"weight_map": {"w": shard}}).encode()
    files = {"model-1.safetensors": safetensors_bytes(), "model.safetensors.index.json": index}
    with pytest.raises(CreateError, match=r"model.safetensors.index.json"):
        check_safetensors(write_files(tmp_path, files))


def test_a_side_file_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_files, "MAX_SIDE_FILE_BYTES", 100)
    files = {"model.safetensors": safetensors_bytes(), "config.json": b" " * 101}
    with pytest.raises(CreateError, match=r"config.json has 101 bytes; the limit is 100"):
        check_safetensors(write_files(tmp_path, files))


def test_a_side_file_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    files = write_files(tmp_path, {"model.safetensors": safetensors_bytes()})
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CreateError, match=r"config.json is not a plain file"):
        check_safetensors({**files, "config.json": tmp_path / "pipe"})
    with pytest.raises(CreateError, match=r"config.json No such file"):
        check_safetensors({**files, "config.json": tmp_path / "nothing"})
