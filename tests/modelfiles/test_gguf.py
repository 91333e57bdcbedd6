"""GGUF: what is written is read again, real files are read as the reference reads them, and no lie gets through."""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import gguf as reference
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelfiles.gguf import (
    BLOCK_LAYOUT,
    GGMLType,
    GGUFError,
    GGUFFile,
    GGUFType,
    GGUFValue,
    NewTensor,
    open_shards,
    tensor_num_bytes,
    write_gguf,
)

U32, U64 = GGUFType.UINT32, GGUFType.UINT64


def string(text: bytes | str) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def entry(key: bytes | str, type: int, value: bytes) -> bytes:
    return string(key) + struct.pack("<I", type) + value


def tensor(name: bytes | str, shape: tuple[int, ...], type: int = 0, offset: int = 0) -> bytes:
    return string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, type, offset)


def build(
    entries: list[bytes], tensors: list[bytes], data: bytes = b"", version: int = 3, alignment: int = 32
) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(entries)) + b"".join(entries + tensors)
    return head + bytes(-len(head) % alignment) + data


def read(tmp_path: Path, content: bytes) -> GGUFFile:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    return GGUFFile.open(path)


def refuse(tmp_path: Path, content: bytes) -> str:
    with pytest.raises(GGUFError) as caught:
        read(tmp_path, content)
    message = str(caught.value)
    assert message.startswith("m.gguf")
    assert len(message) < 400
    return message


# ---- writing and reading

f32 = st.floats(width=32, allow_nan=False)
values: st.SearchStrategy[GGUFValue] = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    f32,
    st.text(),
    st.lists(st.booleans(), min_size=1),
    st.lists(st.integers(0, 2**64 - 1)),
    st.lists(st.integers(-(2**63), 2**63 - 1)),
    st.lists(f32),
    st.lists(st.text()),
)
keys = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=20).filter(
    str.isprintable
)


@given(
    metadata=st.dictionaries(keys, values, max_size=8),
    names=st.lists(keys, unique=True, max_size=5),
    alignment=st.sampled_from([8, 32, 64, 4096]),
    types=st.lists(st.sampled_from(sorted(BLOCK_LAYOUT)), min_size=5, max_size=5),
)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_written_is_read_again(
    tmp_path: Path, metadata: dict[str, GGUFValue], names: list[str], alignment: int, types: list[GGMLType]
) -> None:
    metadata["general.alignment"] = alignment
    tensors = []
    for number, (name, type) in enumerate(zip(names, types, strict=False)):
        shape = (number + 1, BLOCK_LAYOUT[type][0] * 3)
        tensors.append(NewTensor(name, shape, type, bytes([number + 1]) * tensor_num_bytes(shape, type)))
    path = tmp_path / "m.gguf"
    write_gguf(path, metadata, tensors)
    with GGUFFile.open(path) as file:
        assert file.metadata == metadata
        assert list(file.tensors) == names[:5]
        for new in tensors:
            found = file.tensors[new.name]
            assert (found.shape, found.type) == (new.shape, new.type)
            assert found.offset % alignment == 0
            assert bytes(file.data(new.name)) == new.data
        again = tmp_path / "again.gguf"
        write_gguf(again, file.metadata, tensors, types=file.types)
        assert again.read_bytes() == path.read_bytes()


def test_data_is_asked_for_when_its_turn_comes(tmp_path: Path) -> None:
    turns = []

    def data() -> bytes:
        turns.append((tmp_path / "m.gguf").stat().st_size)
        return bytes(8)

    write_gguf(tmp_path / "m.gguf", {}, [NewTensor(name, (2,), GGMLType.F32, data) for name in "ab"])
    assert len(turns) == 2


@pytest.mark.parametrize(
    ("metadata", "tensors", "sentence"),
    [
        ({"a": 2**64}, [], 'the value of "a" cannot be written as a type: it does not fit 64 bits'),
        ({"a": [1, "b"]}, [], 'the value of "a" cannot be written as a type: it mixes types'),
        ({"a": 1e39}, [], 'the value of "a" cannot be written as float32: float too large to pack with f format'),
        ({"general.alignment": 3}, [], "general.alignment is 3; it must be a power of two from 8"),
        ({}, [NewTensor("t", (2,), GGMLType.F32, bytes(7))], 'the tensor "t" has 7 bytes, but its shape takes 8'),
        ({}, [NewTensor("t", (), GGMLType.F32, bytes(4))], 'the tensor "t" has the shape [], which GGUF cannot hold'),
        (
            {},
            [NewTensor("t", (31,), GGMLType.Q8_0, b"")],
            'the tensor "t" has rows of 31 elements, but Q8_0 packs 32 into a block',
        ),
    ],
)
def test_what_cannot_be_written(
    tmp_path: Path, metadata: dict[str, GGUFValue], tensors: list[NewTensor], sentence: str
) -> None:
    with pytest.raises(GGUFError) as caught:
        write_gguf(tmp_path / "m.gguf", metadata, tensors)
    assert str(caught.value) == sentence


def test_a_string_where_the_type_says_number(tmp_path: Path) -> None:
    with pytest.raises(GGUFError, match='the value of "a" cannot be written as uint32'):
        write_gguf(tmp_path / "m.gguf", {"a": "b"}, [], types={"a": U32})
    with pytest.raises(GGUFError, match='the value of "a" cannot be written as string: it is no string'):
        write_gguf(tmp_path / "m.gguf", {"a": 1}, [], types={"a": GGUFType.STRING})


def test_the_reference_reads_what_is_written(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(
        path,
        {"general.architecture": "llama", "n": 3, "f": 0.5, "tokens": ["a", "é"], "b": True},
        [NewTensor("t", (2, 32), GGMLType.Q8_0, bytes(68)), NewTensor("u", (3,), GGMLType.F32, bytes(12))],
    )
    other = reference.GGUFReader(path)
    assert other.fields["tokens"].contents() == ["a", "é"]
    assert other.fields["n"].contents() == 3
    assert [(t.name, t.tensor_type.name, [int(n) for n in t.shape]) for t in other.tensors] == [
        ("t", "Q8_0", [32, 2]),
        ("u", "F32", [3]),
    ]


# ---- real files


def test_real_files_as_the_reference_reads_them(data_dir: Path) -> None:
    paths = [data_dir / "vocab/llama.cpp/ggml-vocab-llama-spm.gguf", *data_dir.glob("models/*/gguf/*.gguf")]
    assert len(paths) > 10
    for path in paths:
        other = reference.GGUFReader(path)
        with GGUFFile.open(path) as file:
            expected = {name: f.contents() for name, f in other.fields.items() if not name.startswith("GGUF.")}
            assert file.metadata == expected
            assert len(file.tensors) == len(other.tensors)
            for theirs in other.tensors:
                ours = file.tensors[theirs.name]
                assert ours.type.name == theirs.tensor_type.name
                assert ours.shape == tuple(int(n) for n in theirs.shape[::-1])
                assert bytes(file.data(theirs.name)) == theirs.data.tobytes()


def test_block_layout_is_the_references() -> None:
    theirs = {type.value: sizes for type, sizes in reference.GGML_QUANT_SIZES.items()}
    for type, layout in BLOCK_LAYOUT.items():
        if type is not GGMLType.Q8_1:  # the package counts two f32 in it; ggml has two f16
            assert theirs[type.value] == layout


# ---- lies

GOOD_ENTRIES = [
    entry("general.architecture", GGUFType.STRING, string("llama")),
    entry("n", U32, struct.pack("<I", 7)),
    entry("flags", GGUFType.ARRAY, struct.pack("<IQ", GGUFType.BOOL, 2) + b"\1\0"),
    entry("tokens", GGUFType.ARRAY, struct.pack("<IQ", GGUFType.STRING, 2) + string("a") + string("bc")),
    entry("scores", GGUFType.ARRAY, struct.pack("<IQ2f", GGUFType.FLOAT32, 2, 0.5, 1.5)),
]
GOOD_TENSORS = [tensor("a.weight", (32, 2), GGMLType.Q8_0), tensor("b", (4,), GGMLType.F32, 96)]
GOOD = build(GOOD_ENTRIES, GOOD_TENSORS, bytes(96 + 16))


def test_the_good_file_is_good(tmp_path: Path) -> None:
    with read(tmp_path, GOOD) as file:
        assert file.metadata["flags"] == [True, False]
        assert file.tensors["a.weight"].shape == (2, 32)
    assert read(tmp_path, GOOD[:4] + b"\2" + GOOD[5:]).version == 2


def test_every_cut_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    for length in range(len(GOOD)):
        path.write_bytes(GOOD[:length])
        with pytest.raises(GGUFError):
            GGUFFile.open(path)


def mutations(good: bytes, end: int) -> Iterator[bytes]:
    """Every byte of a header in turn, with the values that flip signs, zero counts and blow up lengths."""
    for position in range(end):
        for byte in {0, 1, 0x7F, 0x80, 0xFF, good[position] ^ 1, (good[position] + 1) % 256}:
            yield good[:position] + bytes([byte]) + good[position + 1 :]


def test_every_byte_of_the_header_may_lie(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    for content in mutations(GOOD, len(GOOD) - 112):
        path.write_bytes(content)
        with contextlib.suppress(GGUFError), GGUFFile.open(path) as file:
            for name, found in file.tensors.items():
                assert len(file.data(name)) == found.num_bytes


@given(st.binary(max_size=300), st.integers(0, len(GOOD)))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_after_a_good_start(tmp_path: Path, noise: bytes, length: int) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(GOOD[:length] + noise)
    with contextlib.suppress(GGUFError):
        GGUFFile.open(path).close()


HUGE = [2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 8, 2**64 - 1]


@pytest.mark.parametrize("number", HUGE)
@pytest.mark.parametrize("at", [8, 16])
def test_huge_counts(tmp_path: Path, number: int, at: int) -> None:
    message = refuse(tmp_path, GOOD[:at] + struct.pack("<Q", number) + GOOD[at + 8 :])
    assert f"promises {number}" in message


@pytest.mark.parametrize("number", HUGE)
def test_huge_lengths(tmp_path: Path, number: int) -> None:
    long = struct.pack("<Q", number)
    for content in (
        build([long + bytes(20)], []),
        build([entry("s", GGUFType.STRING, long)], []),
        build([entry("s", GGUFType.ARRAY, struct.pack("<I", GGUFType.STRING) + long)], []),
        build([entry("s", GGUFType.ARRAY, struct.pack("<IQ", GGUFType.STRING, 1) + long)], []),
        build([entry("s", GGUFType.ARRAY, struct.pack("<I", U64) + long)], []),
        build([], [long + bytes(40)]),
    ):
        assert str(number) in refuse(tmp_path, content)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"GGUF", "the version needs 4 bytes at byte 4, but the file ends after 0"),
        (b"GGML" + bytes(30), "not a GGUF file: it begins with b'GGML' instead of b'GGUF'"),
        (b"PK\3\4" + bytes(30), "which can run code when it is loaded"),
        (b"version https://git-lfs.github.com/spec/v1\n", "it is a Git LFS pointer, not the weights"),
        (build([], [], version=1), "GGUF version 1 is not supported; versions 2 and 3 are"),
        (build([], [], version=0), "GGUF version 0 is not supported"),
        (build([], [], version=4), "GGUF version 4 is not supported"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "the file is big-endian; convert it to little-endian first"),
        (build([entry("a", 13, b"")], []), 'the value of "a" is of type 13; GGUF has the types 0 to 12'),
        (build([entry("a", GGUFType.BOOL, b"\2")], []), 'the value of "a" is a boolean of 2; only 0 and 1 are allowed'),
        (
            build([entry("a", GGUFType.ARRAY, struct.pack("<IQ", GGUFType.ARRAY, 0))], []),
            'the value of "a" is an array of arrays, which no model has',
        ),
        (build([entry("", U32, bytes(4))], []), "the key of metadata entry 0 is empty"),
        (
            build([entry("a\0b", U32, bytes(4))], []),
            "the key of metadata entry 0 has unprintable characters: 'a\\x00b'",
        ),
        (build([entry(b"\xff", U32, bytes(4))], []), "the key of metadata entry 0 is not UTF-8 (byte 32 of the file)"),
        (build([entry("k" * 65_536, U32, bytes(4))], []), "has 65536 bytes; at most 65535 are allowed"),
        (build([entry("a", U32, bytes(4))] * 2, []), 'the metadata key "a" comes twice'),
        (build([entry("s", GGUFType.STRING, string(b"a\xff"))], []), 'the value of "s" is not UTF-8'),
        (
            build([entry("s", GGUFType.ARRAY, struct.pack("<IQ", 8, 2) + string("a") + string(b"\xff"))], []),
            'element 1 of the value of "s" is not UTF-8',
        ),
        (
            build([entry("s", GGUFType.ARRAY, struct.pack("<IQ", 8, 1) + string("a" * 65_537))], []),
            'element 0 of the value of "s" has 65537 bytes; at most 65536 are allowed',
        ),
        (build([], [tensor("t", ())]), 'the tensor "t" has 0 dimensions; 1 to 4 are allowed'),
        (build([], [tensor("t", (1,) * 5)]), 'the tensor "t" has 5 dimensions; 1 to 4 are allowed'),
        (build([], [tensor("t", (0,))]), 'the tensor "t" has the impossible shape [0]'),
        (build([], [tensor("t", (2**32, 2**32))]), "has the impossible shape [4294967296, 4294967296]"),
        (build([], [tensor("t", (2**62 + 1, 4))]), "has the impossible shape"),
        (build([], [tensor("t", (2**61,))], bytes(64)), 'the tensor "t" ends at byte'),
        (build([], [tensor("t", (8,))], bytes(31)), "but the file ends at byte 95; it may be cut short"),
        (build([], [tensor("t", (8,), offset=8)], bytes(64)), "starts at offset 8, which is not a multiple of 32"),
        (build([], [tensor("t", (1,), offset=2**64 - 32)], bytes(64)), 'the tensor "t" ends at byte'),
        (build([], [tensor("t", (8,)), tensor("t", (8,), offset=32)], bytes(64)), 'the tensor "t" comes twice'),
        (build([], [tensor("t", (9,)), tensor("u", (8,), offset=32)], bytes(64)), 'the tensors "t" and "u" overlap'),
        (build([], [tensor("t", (8,)), tensor("u", (8,))], bytes(64)), 'the tensors "t" and "u" overlap'),
        (build([], [tensor("", (8,))], bytes(64)), "the name of tensor 0 is empty"),
        (build([], [tensor("t\0", (8,))], bytes(64)), "the name of tensor 0 has unprintable characters"),
        (
            build([], [tensor("t" * 256, (8,))], bytes(64)),
            "the name of tensor 0 has 256 bytes; at most 255 are allowed",
        ),
        (build([], [tensor("t", (33,), GGMLType.Q4_0)], bytes(64)), "has rows of 33 elements, but Q4_0 packs 32"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_lies(tmp_path: Path, content: bytes, part: str) -> None:
    assert part in refuse(tmp_path, content)


@pytest.mark.parametrize("number", [*(n for n in range(300) if n not in list(GGMLType)), 2**32 - 1])
def test_unknown_tensor_types(tmp_path: Path, number: int) -> None:
    assert f"is of type {number}, which is unknown" in refuse(
        tmp_path, build([], [tensor("t", (256,), number)], bytes(64))
    )


@pytest.mark.parametrize(
    "value",
    [
        *(struct.pack("<II", U32, number) for number in (0, 1, 3, 4, 48, 2**17, 2**31, 2**32 - 1)),
        struct.pack("<IQ", U64, 32),
        struct.pack("<Ii", GGUFType.INT32, -32),
        struct.pack("<If", GGUFType.FLOAT32, 32.0),
        struct.pack("<I", GGUFType.STRING) + string("32"),
        struct.pack("<IIQI", GGUFType.ARRAY, U32, 1, 32),
    ],
)
def test_wrong_alignments(tmp_path: Path, value: bytes) -> None:
    message = refuse(tmp_path, build([string("general.alignment") + value], [tensor("t", (1,))], bytes(64)))
    assert "it must be a uint32 and a power of two from 8 to 65536" in message


def test_three_tensors_whose_sizes_sum_past_64_bits(tmp_path: Path) -> None:
    infos = [tensor(name, (2**60,), offset=index * 2**62) for index, name in enumerate("abc")]
    assert 'the tensor "a" ends at byte' in refuse(tmp_path, build([], infos, bytes(64)))


def test_things_that_are_no_plain_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m.gguf")
    (tmp_path / "empty.gguf").touch()
    for path, part in (
        (tmp_path / "m.gguf", "is not a plain file"),
        (tmp_path / "empty.gguf", "is empty"),
        (tmp_path, "is not a plain file"),
        (Path("/dev/zero"), "is not a plain file"),
        (tmp_path / "none.gguf", "cannot be opened: No such file or directory"),
    ):
        with pytest.raises(GGUFError, match=part):
            GGUFFile.open(path)


def test_a_view_outlives_the_file(tmp_path: Path) -> None:
    with read(tmp_path, GOOD) as file:
        view = file.data("b")
    assert bytes(view) == bytes(16)
    assert view.readonly


# ---- shards


def shard(path: Path, number: int, count: int, names: str, total: int | None = None) -> Path:
    metadata: dict[str, GGUFValue] = {"split.no": number, "split.count": count}
    if total is not None:
        metadata["split.tensors.count"] = total
    write_gguf(path, metadata, [NewTensor(name, (1,), GGMLType.F32, name.encode() * 4) for name in names])
    return path


def test_shards_are_one_model(tmp_path: Path) -> None:
    paths = [shard(tmp_path / "b", 1, 2, "cd"), shard(tmp_path / "a", 0, 2, "ab", 4)]
    with open_shards(paths) as model:
        assert list(model.tensors) == ["a", "b", "c", "d"]
        assert bytes(model.data("c")) == b"cccc"
        assert model.metadata["split.no"] == 0
        assert "split.count" in model.types


def test_one_file_is_a_model(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", {"a": 1}, [])
    with open_shards([tmp_path / "m.gguf"]) as model:
        assert model.metadata == {"a": 1}


def test_wrong_shards(tmp_path: Path) -> None:
    first, second = shard(tmp_path / "a", 0, 2, "ab", 4), shard(tmp_path / "b", 1, 2, "cd")
    same = shard(tmp_path / "c", 1, 2, "bd")
    few = shard(tmp_path / "d", 1, 2, "c")
    third = shard(tmp_path / "e", 2, 2, "cd")
    write_gguf(tmp_path / "f", {}, [])
    for paths, part in (
        ([], "no GGUF file was given"),
        ([first], "a is one of 2 shards, but 1 files were given"),
        ([first, first], "it comes twice"),
        ([first, third], "e says it is shard 2"),
        ([first, same], 'the tensor "b" is both in a and in c'),
        ([first, few], "a promises 4 tensors in all shards, which hold 3"),
        ([first, tmp_path / "f"], "f is no shard: it has no split.count and split.no"),
    ):
        with pytest.raises(GGUFError, match=part):
            open_shards(paths)
    open_shards([first, second]).close()
