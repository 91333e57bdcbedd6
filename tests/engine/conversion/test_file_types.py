"""Which tensor gets which type: as llama.cpp chose, tensor by tensor; and what models cannot be quantised to."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.conversion.file_types import (
    GGUF_FILE_TYPES,
    FileTypeError,
    Place,
    is_quantizable,
    more_bits,
    parse_file_type,
    tensor_type,
)
from modelfiles.gguf import GGMLType, GGUFFile


def chosen(file_type: str, name: str, columns: int = 4096, **facts: int | bool) -> str:
    row = GGUF_FILE_TYPES[file_type.lower()]
    model = {"num_layers": 32, "heads_per_kv_head": 4, "has_output": True, **facts}
    return tensor_type(row, name, columns, **model).name  # type: ignore[arg-type]


def test_every_tensor_of_llama_cpp_s_files_has_the_type_that_we_would_give_it(data_dir: Path) -> None:
    by_number = {row.number: row for row in GGUF_FILE_TYPES.values()}
    seen = set()
    for path in sorted(data_dir.glob("models/stories*/gguf/*.gguf")):
        with GGUFFile.open(path) as file:
            row = by_number.get(int(str(file.metadata["general.file_type"])))
            if row is None:  # IQ types, which we do not make
                continue
            heads, kv_heads, layers = (
                int(str(file.metadata[f"llama.{key}"]))
                for key in ("attention.head_count", "attention.head_count_kv", "block_count")
            )
            for tensor in file.tensors.values():
                if not is_quantizable(tensor.name, tensor.shape):
                    assert tensor.type is GGMLType.F32
                    continue
                ours = tensor_type(
                    row,
                    tensor.name,
                    tensor.shape[-1],
                    num_layers=layers,
                    heads_per_kv_head=heads // kv_heads,
                    has_output="output.weight" in file.tensors,
                )
                assert ours is tensor.type, (path.name, tensor.name)
            seen.add(row.name)
    assert seen >= {"F16", "BF16", "Q8_0", "Q4_0", "Q5_1", "Q2_K", "Q3_K_M", "Q4_K_S", "Q4_K_M", "Q5_K_M", "Q6_K"}


def test_layers_with_more_bits() -> None:
    assert [layer for layer in range(32) if more_bits(Place(layer, 32, 4))] == [
        0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31
    ]  # fmt: skip
    assert [chosen("Q4_K_M", f"blk.{layer}.attn_v.weight") for layer in (3, 4, 6)] == ["Q6_K", "Q4_K", "Q6_K"]
    assert [chosen("Q4_K_S", f"blk.{layer}.ffn_down.weight") for layer in (3, 4)] == ["Q5_K", "Q4_K"]


def test_head_embedding_and_fused_projections() -> None:
    assert chosen("Q4_K_M", "output.weight") == "Q6_K"
    assert chosen("Q4_K_M", "token_embd.weight") == "Q4_K"
    assert chosen("Q4_K_M", "token_embd.weight", has_output=False) == "Q6_K"
    assert chosen("Q8_0", "output.weight") == "Q8_0"
    assert chosen("Q4_K_M", "blk.7.attn_qkv.weight") == "Q5_K"
    assert chosen("F16", "output.weight") == "F16"


def test_seventy_billion_parameters_keep_v_better() -> None:
    big = {"num_layers": 80, "heads_per_kv_head": 8}
    assert chosen("Q4_K_M", "blk.11.attn_v.weight", **big) == "Q5_K"
    assert chosen("Q4_K_M", "blk.0.attn_v.weight", **big) == "Q6_K"


@pytest.mark.parametrize(
    ("file_type", "columns", "type"),
    [
        ("Q4_K_M", 96, "Q5_0"),
        ("Q5_K_M", 96, "Q5_1"),
        ("Q6_K", 96, "Q8_0"),
        ("Q2_K", 96, "IQ4_NL"),
        ("Q4_K_M", 100, "F16"),
        ("Q8_0", 100, "F16"),
    ],
)
def test_rows_that_are_no_whole_blocks(file_type: str, columns: int, type: str) -> None:
    assert chosen(file_type, "blk.10.attn_q.weight", columns) == type


def test_names_of_types() -> None:
    assert parse_file_type("q4_k_m") == parse_file_type("Q4_K") == "Q4_K_M"
    assert (parse_file_type("q8_0"), parse_file_type("fp8"), parse_file_type("Int8")) == ("Q8_0", "FP8", "INT8")
    with pytest.raises(FileTypeError, match="unsupported quantization type q9 - supported types are F32, F16, BF"):
        parse_file_type("q9")
