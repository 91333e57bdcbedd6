"""safetensors: files of the reference library are read as it reads them, and no lie gets through."""

from __future__ import annotations

import contextlib
import json
import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from modelfiles.safetensors import SafetensorsError, SafetensorsFile, SafetensorsModel


def build(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def info(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def refuse(tmp_path: Path, content: bytes) -> str:
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    with pytest.raises(SafetensorsError) as caught:
        SafetensorsFile.open(path)
    message = str(caught.value)
    assert "m.safetensors" in message
    assert len(message) < 400
    return message


# ---- reading


def test_what_the_reference_wrote(tmp_path: Path) -> None:
    arrays = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.arange(4, dtype=np.int64),
        "scalar": np.array(1.5, dtype=np.float16),
        "empty": np.zeros((0, 3), dtype=np.uint8),
    }
    path = tmp_path / "model.safetensors"
    save_file(arrays, path, {"format": "np"})
    with SafetensorsModel.open({"model.safetensors": path}) as model:
        assert model.files["model.safetensors"].metadata == {"format": "np"}
        assert model.tensors["a"].dtype == "F32"
        for name, array in arrays.items():
            assert model.tensors[name].shape == array.shape
            assert bytes(model.data(name)) == array.tobytes()


def test_real_files_as_the_reference_reads_them(data_dir: Path) -> None:
    paths = sorted(data_dir.glob("models/*/hf/model.safetensors"))
    assert len(paths) >= 2
    for path in paths:
        expected = load_file(path)
        with SafetensorsModel.open({"model.safetensors": path}) as model:
            assert set(model.tensors) == set(expected)
            for name, array in expected.items():
                assert model.tensors[name].shape == array.shape
                assert bytes(model.data(name)) == array.tobytes()


def test_a_view_outlives_the_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(build({"t": info()}, b"12345678"))
    with SafetensorsModel.open({"model.safetensors": path}) as model:
        view = model.data("t")
    assert bytes(view) == b"12345678"
    assert view.readonly


# ---- lies

GOOD = build({"__metadata__": {"format": "pt"}, "a": info(), "b": info("I8", [2, 2], [8, 12])}, bytes(12))


def test_every_cut_is_refused(tmp_path: Path) -> None:
    for length in range(len(GOOD)):
        refuse(tmp_path, GOOD[:length])


def test_every_byte_of_the_header_may_lie(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    for position in range(len(GOOD) - 12):
        for byte in {0, 1, 0x22, 0x2D, 0x39, 0x5B, 0x7B, 0x80, 0xFF, GOOD[position] ^ 1}:
            path.write_bytes(GOOD[:position] + bytes([byte]) + GOOD[position + 1 :])
            with contextlib.suppress(SafetensorsError):
                file = SafetensorsFile.open(path)
                for name, tensor in file.tensors.items():
                    assert len(file.data(name)) == tensor.num_bytes
                file.close()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
almost = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16"]) | json_values,
        "shape": st.lists(st.integers(-1, 4), max_size=3) | json_values,
        "data_offsets": st.lists(st.integers(-1, 12), min_size=2, max_size=2) | json_values,
    }
)


@given(st.dictionaries(st.text(max_size=5), almost, max_size=3) | json_values)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_json_is_read_or_refused(tmp_path: Path, header: object) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(build(header, bytes(12)))
    with contextlib.suppress(SafetensorsError):
        SafetensorsFile.open(path).close()


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"1234567", "it has 7 bytes, and the header length alone takes 8"),
        (struct.pack("<Q", 2**63) + b"{}", "promises a header of 9223372036854775808 bytes; it has 2"),
        (struct.pack("<Q", 3) + b"{}", "promises a header of 3 bytes; it has 2"),
        (build(b"[]"), "is not a JSON object"),
        (build(b"{"), "the header of m.safetensors is not JSON"),
        (build(b"\xff"), "the header of m.safetensors is not JSON"),
        (build(b"[" * 100_000), "is nested too deeply"),
        (build(b'{"a":' * 100_000), "is nested too deeply"),
        (build(b"[" * 300_000), "more parts than any model; 131072 tensors are allowed"),
        (build(b'{"a":' + b"9" * 5000 + b"}"), "is not JSON"),
        (build(b'{"a":{},"a":{}}'), "has the key 'a' twice"),
        (build(b'{"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}'), "has the key 'dtype' twice"),
        (build({"__metadata__": {"a": 1}}), "__metadata__ in m.safetensors is not an object of strings"),
        (build({"__metadata__": []}), "__metadata__ in m.safetensors is not an object of strings"),
        (build({"": info()}, bytes(8)), "has a name that is empty, unprintable or longer than 1024"),
        (build({"a\n": info()}, bytes(8)), "has a name that is empty, unprintable or longer than 1024"),
        (build({"a": 1}), "the tensor 'a' in m.safetensors does not have exactly dtype, shape and data_offsets"),
        (build({"a": {**info(), "x": 1}}, bytes(8)), "does not have exactly dtype, shape and data_offsets"),
        (build({"a": info("F33")}, bytes(8)), "has the dtype 'F33'; known are F64, F32"),
        (build({"a": info(1)}, bytes(8)), "has the dtype '1'"),
        (build({"a": info([])}, bytes(8)), "has the dtype '[]'"),
        (build({"a": info(shape=[-2])}, bytes(8)), "has a shape that is no list of at most 16 counts"),
        (build({"a": info(shape=[2.0])}, bytes(8)), "has a shape that is no list of at most 16 counts"),
        (build({"a": info(shape=[True])}, bytes(8)), "has a shape that is no list of at most 16 counts"),
        (build({"a": info(shape=[1] * 17)}, bytes(8)), "has a shape that is no list of at most 16 counts"),
        (build({"a": info(shape=2)}, bytes(8)), "has a shape that is no list of at most 16 counts"),
        (build({"a": info(offsets=[0])}, bytes(8)), "has data_offsets that are no [begin, end]"),
        (build({"a": info(offsets=[8, 0])}, bytes(8)), "has data_offsets that are no [begin, end]"),
        (build({"a": info(offsets=[-8, 0])}, bytes(8)), "has data_offsets that are no [begin, end]"),
        (build({"a": info(offsets=[2**64, 2**64 + 8])}, bytes(8)), "has data_offsets that are no [begin, end]"),
        (build({"a": info(shape=[3])}, bytes(8)), "has 8 bytes, but F32 of shape [3] takes 12"),
        (build({"a": info(shape=[2**62, 4])}, bytes(8)), "takes 73786976294838206464"),
        (build({"a": info(), "b": info(offsets=[4, 12])}, bytes(12)), '"b" in m.safetensors overlaps the one'),
        (build({"a": info(), "b": info()}, bytes(8)), "overlaps the one before it"),
        (build({"a": info(), "b": info(offsets=[12, 20])}, bytes(20)), "leaves a gap before it"),
        (build({"a": info(offsets=[8, 16])}, bytes(16)), "leaves a gap before it"),
        (build({"a": info()}, bytes(9)), "the rest belongs to no tensor"),
        (build({"a": info()}, bytes(7)), "it is cut short"),
        (build({"a": info(offsets=[2**62, 2**62 + 8])}, bytes(8)), "leaves a gap before it"),
        (pickle.dumps({"a": list(range(100))}), "it is a Python pickle, which can run code when it is loaded"),
        (b"GGUF" + bytes(30), "it is a GGUF file; give it the ending .gguf"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "it is a Git LFS pointer"),
        (b"", "is empty, so it cannot be a safetensors file"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_lies(tmp_path: Path, content: bytes, part: str) -> None:
    assert part in refuse(tmp_path, content)


def test_a_torch_checkpoint_under_a_false_name(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "z", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))
    assert "it is a PyTorch checkpoint" in refuse(tmp_path, (tmp_path / "z").read_bytes())


def test_a_header_of_640_bytes_is_no_pickle(tmp_path: Path) -> None:
    # Its length word begins with the bytes of a pickle of protocol 2.
    text = json.dumps({"a": info()}).encode().ljust(640)
    (tmp_path / "m.safetensors").write_bytes(build(text, bytes(8)))
    SafetensorsFile.open(tmp_path / "m.safetensors").close()


def test_many_duplicates_are_found_fast(tmp_path: Path) -> None:
    names = b",".join(b'"%d":1' % number for number in range(130_000))
    assert "has the key '7' twice" in refuse(tmp_path, build(b"{" + names + b',"7":1}'))


# ---- which file


def write(tmp_path: Path, files: Mapping[str, list[str]], index: object = None) -> dict[str, Path]:
    """Files of tensors "t" with the bytes of their name, and an index."""
    paths = {}
    for name, tensors in files.items():
        header = {tensor: info("U8", [1], [at, at + 1]) for at, tensor in enumerate(tensors)}
        (tmp_path / name).write_bytes(build(header, "".join(tensors).encode()))
        paths[name] = tmp_path / name
    if index is not None:
        text = index if isinstance(index, str) else json.dumps({"metadata": {}, "weight_map": index})
        (tmp_path / "model.safetensors.index.json").write_text(text)
        paths["model.safetensors.index.json"] = tmp_path / "model.safetensors.index.json"
    return paths


ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def test_shards(tmp_path: Path) -> None:
    files = write(
        tmp_path, {ONE: ["a", "b"], TWO: ["c", "x"], "other.safetensors": ["a"]}, {"a": ONE, "b": ONE, "c": TWO}
    )
    with SafetensorsModel.open(files) as model:
        assert set(model.tensors) == {"a", "b", "c", "x"}
        assert bytes(model.data("c")) == b"c"


def test_the_whole_file_comes_before_others(tmp_path: Path) -> None:
    files = write(tmp_path, {"model.safetensors": ["a"], "consolidated.safetensors": ["b"]})
    with SafetensorsModel.open(files) as model:
        assert set(model.tensors) == {"a"}


@pytest.mark.parametrize(
    ("files", "index", "part"),
    [
        ({ONE: ["a"]}, {"a": ONE, "b": TWO}, f"names the shard {TWO}, which is missing"),
        ({ONE: ["a"], TWO: ["b"]}, {"a": ONE, "b": ONE}, f"puts the tensor 'b' into {ONE}, but no shard has it"),
        ({ONE: ["a"], TWO: ["b"]}, {"a": TWO, "b": ONE}, f"the tensor 'a' into {TWO}, but it is in {ONE}"),
        ({ONE: ["a"], TWO: ["a"]}, {"a": ONE, "b": TWO}, f"the tensor 'a' is both in {ONE} and in {TWO}"),
        ({ONE: ["a"]}, {"a": "../m.safetensors"}, "into '../m.safetensors', which is no plain file name"),
        ({ONE: ["a"]}, {"a": "/etc/passwd"}, "into '/etc/passwd', which is no plain file name"),
        ({ONE: ["a"]}, {"a": "b/m.safetensors"}, "which is no plain file name"),
        ({ONE: ["a"]}, {"a": "b\\m.safetensors"}, "which is no plain file name"),
        ({ONE: ["a"]}, {"a": "m.bin"}, "into 'm.bin', which is no plain file name"),
        ({ONE: ["a"]}, {"a": ONE + "\n"}, "which is no plain file name"),
        ({ONE: ["a"]}, {"a": 1}, "which is no plain file name"),
        ({ONE: ["a"]}, {}, "has no weight_map of tensor names to files"),
        ({ONE: ["a"]}, [], "has no weight_map of tensor names to files"),
        ({ONE: ["a"]}, "[", "model.safetensors.index.json is not JSON"),
        ({ONE: ["a"]}, "[" * 200_000, "more parts than any model"),
        ({ONE: ["a"], TWO: ["b"]}, None, "there are 2 safetensors files and no model.safetensors.index.json"),
        ({}, None, "there is no .safetensors file"),
    ],
)  # fmt: skip
def test_wrong_sets_of_files(tmp_path: Path, files: dict[str, list[str]], index: object, part: str) -> None:
    with pytest.raises(SafetensorsError) as caught:
        SafetensorsModel.open(write(tmp_path, files, index))
    assert part in str(caught.value)


def test_two_indexes(tmp_path: Path) -> None:
    files = write(tmp_path, {ONE: ["a"]}, {"a": ONE})
    files["other.safetensors.index.json"] = files["model.safetensors.index.json"]
    SafetensorsModel.open(files).close()
    files["another.safetensors.index.json"] = files.pop("model.safetensors.index.json")
    with pytest.raises(SafetensorsError, match="there are several indexes"):
        SafetensorsModel.open(files)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.pth", "x.ckpt"])
def test_pickles_are_refused_by_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(GOOD)
    with pytest.raises(SafetensorsError, match="is a pickle, which can run code"):
        SafetensorsModel.open({name: tmp_path / name})
    with pytest.raises(SafetensorsError, match="is a pickle, which can run code"):
        SafetensorsFile.open(tmp_path / name)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(SafetensorsError, match=r"model.safetensors cannot be opened: No such file"):
        SafetensorsModel.open({"model.safetensors": tmp_path / "none"})
