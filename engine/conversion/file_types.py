"""What models can be quantised to, and which type each tensor of a GGUF file gets then.

A file type is a mixture: most matrices are of its own type, those whose errors cost most get more bits. `rules` says
which; the first rule that fits a tensor counts. Rows that are no whole number of blocks take the next type that fits.
The daemon asks `parse_file_type` before it starts a worker, so there is no torch here.

Source: llama_tensor_get_type and llama_model_quantize_impl of src/llama-quant.cpp (llama.cpp); numbers are those of
enum llama_ftype in llama.h.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from modelfiles.gguf import BLOCK_LAYOUT, GGMLType


class FileTypeError(ValueError):
    """A type that models cannot be quantised to. The message lists those that they can."""


@dataclass(frozen=True)
class Place:
    """Where in a model a matrix stands."""

    layer: int
    num_layers: int
    heads_per_kv_head: int


Condition = Callable[[Place], bool]


def always(place: Place) -> bool:
    return True


def first_layers(count: int) -> Condition:
    return lambda place: place.layer < count


def first_share(divisor: int) -> Condition:
    """The first num_layers / divisor layers, rounded down."""
    return lambda place: place.layer < place.num_layers // divisor


def more_bits(place: Place) -> bool:
    """The first and the last eighth of the layers, and every third between them."""
    layer, eighth = place.layer, place.num_layers // 8
    return layer < eighth or layer >= 7 * place.num_layers // 8 or (layer - eighth) % 3 == 2


def shared_by_four(place: Place) -> bool:
    """V is small then, and every head that shares it suffers from its errors."""
    return place.heads_per_kv_head >= 4


@dataclass(frozen=True)
class FileType:
    """A row: its name, what general.file_type says, the type of most matrices, and what differs."""

    name: str
    number: int
    base: GGMLType
    rules: tuple[tuple[str, Condition, GGMLType], ...] = ()
    """Tensor's name without "blk.N." and ".weight", condition, type."""

    @property
    def is_plain(self) -> bool:
        """Whether it keeps numbers as they are, each for itself."""
        return self.base in PLAIN_TYPES


Q2_K, Q3_K, Q4_K, Q5_K, Q6_K = GGMLType.Q2_K, GGMLType.Q3_K, GGMLType.Q4_K, GGMLType.Q5_K, GGMLType.Q6_K
PLAIN_TYPES = (GGMLType.F32, GGMLType.F16, GGMLType.BF16)

GGUF_FILE_TYPES: Mapping[str, FileType] = MappingProxyType(
    {
        row.name.lower(): row
        for row in (
            FileType("F32", 0, GGMLType.F32),
            FileType("F16", 1, GGMLType.F16),
            FileType("BF16", 32, GGMLType.BF16),
            FileType("Q8_0", 7, GGMLType.Q8_0),
            FileType("Q6_K", 18, Q6_K),
            FileType(
                "Q5_K_M",
                17,
                Q5_K,
                (("attn_v", more_bits, Q6_K), ("ffn_down", more_bits, Q6_K), ("attn_qkv", always, Q6_K)),
            ),
            FileType("Q5_K_S", 16, Q5_K),
            FileType("Q5_1", 9, GGMLType.Q5_1),
            FileType("Q5_0", 8, GGMLType.Q5_0),
            FileType(
                "Q4_K_M",
                15,
                Q4_K,
                (("attn_v", more_bits, Q6_K), ("ffn_down", more_bits, Q6_K), ("attn_qkv", always, Q5_K)),
            ),
            FileType("Q4_K_S", 14, Q4_K, (("attn_v", first_layers(4), Q5_K), ("ffn_down", first_share(8), Q5_K))),
            FileType("Q4_1", 3, GGMLType.Q4_1),
            FileType("Q4_0", 2, GGMLType.Q4_0),
            FileType(
                "Q3_K_L",
                13,
                Q3_K,
                (
                    ("attn_v", always, Q5_K),
                    ("ffn_down", always, Q5_K),
                    ("attn_output", always, Q5_K),
                    ("attn_qkv", always, Q4_K),
                ),
            ),
            FileType(
                "Q3_K_M",
                12,
                Q3_K,
                (
                    ("attn_v", first_layers(2), Q5_K),
                    ("attn_v", always, Q4_K),
                    ("ffn_down", first_share(16), Q5_K),
                    ("ffn_down", always, Q4_K),
                    ("attn_output", always, Q4_K),
                    ("attn_qkv", always, Q4_K),
                ),
            ),
            FileType("Q3_K_S", 11, Q3_K),
            FileType(
                "Q2_K",
                10,
                Q2_K,
                (
                    ("attn_v", shared_by_four, Q4_K),
                    ("attn_v", always, Q3_K),
                    ("ffn_down", always, Q3_K),
                    ("attn_output", always, Q3_K),
                ),
            ),
        )
    }
)

SAFETENSORS_FILE_TYPES = ("FP8", "INT8")
"""Made of safetensors and kept in them; each output row has a scale of its own."""

ALIASES = {"q3_k": "q3_k_m", "q4_k": "q4_k_m", "q5_k": "q5_k_m"}

NEXT_TYPE = {
    GGMLType.Q2_K: GGMLType.IQ4_NL,
    GGMLType.Q3_K: GGMLType.IQ4_NL,
    GGMLType.Q4_K: GGMLType.Q5_0,
    GGMLType.Q5_K: GGMLType.Q5_1,
    GGMLType.Q6_K: GGMLType.Q8_0,
}
"""What a matrix becomes whose rows are no multiple of 256; F16 where they are no multiple of 32 either."""

LAYER_TENSOR = re.compile(r"blk\.(\d+)\.(.+)\.weight")


def parse_file_type(text: str) -> str:
    """A type's name as it is shown, from what a person wrote: "q4_k_m" -> "Q4_K_M", "fp8" -> "FP8".

    Raises:
        FileTypeError: there is none of this name.
    """
    key = text.lower()
    key = ALIASES.get(key, key)
    if key in GGUF_FILE_TYPES:
        return GGUF_FILE_TYPES[key].name
    if key.upper() in SAFETENSORS_FILE_TYPES:
        return key.upper()
    known = ", ".join([*(row.name for row in GGUF_FILE_TYPES.values()), *SAFETENSORS_FILE_TYPES])
    raise FileTypeError(f"unsupported quantization type {text[:40]} - supported types are {known}")


def is_quantizable(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor of a GGUF file is a matrix that products are taken with; norms and biases stay as they are."""
    return len(shape) >= 2 and name.endswith(".weight") and not name.endswith("_norm.weight")


def tensor_type(
    file_type: FileType, name: str, num_columns: int, *, num_layers: int, heads_per_kv_head: int, has_output: bool
) -> GGMLType:
    """The type of one matrix.

    Args:
        name: as GGUF has it.
        has_output: whether the model has an output.weight; where not, the embedding is the head, too.
    """
    if file_type.is_plain:
        return file_type.base
    if name == "output.weight" or (name == "token_embd.weight" and not has_output):
        # The head's errors reach every token's logits: at least six bits.
        fits = num_columns % BLOCK_LAYOUT[file_type.base][0] == 0
        type = Q6_K if fits and file_type.base != GGMLType.Q8_0 else GGMLType.Q8_0
    else:
        type = _layer_type(file_type, name, num_layers, heads_per_kv_head)
    if num_columns % BLOCK_LAYOUT[type][0]:
        type = NEXT_TYPE.get(type, GGMLType.F16)
    return type if num_columns % BLOCK_LAYOUT[type][0] == 0 else GGMLType.F16


def _layer_type(file_type: FileType, name: str, num_layers: int, heads_per_kv_head: int) -> GGMLType:
    match = LAYER_TENSOR.fullmatch(name)
    if match is None:
        return file_type.base
    place, role = Place(int(match[1]), num_layers, heads_per_kv_head), match[2]
    type = next((type for wanted, holds, type in file_type.rules if wanted == role and holds(place)), file_type.base)
    if role == "attn_v" and num_layers == 80 and heads_per_kv_head == 8 and type in (Q3_K, Q4_K):
        return Q5_K  # models of 70 billion: eight heads share V, so it is small and matters
    return type
