"""What a LoRA adapter adds to which matrices of a model: from the tables of its files, without reading a tensor.

    y = W x + scale * B (A x)        A: [rank, columns of W], B: [rows of W, rank]

Names are PEFT's ("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight") or llama.cpp's
("blk.0.attn_q.weight.lora_a"). As with a model's own tensors nothing may be left over, and shapes must be those of the
base: an adapter of another model is refused. So `create` asks `plan_adapter` before a model is stored, and
`execution.adapters` asks the same when it loads. torch is not imported.
Source: huggingface/peft src/peft/utils/save_and_load.py; llama.cpp src/llama-adapter.cpp.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from engine.architectures import BY_GGUF_NAME
from engine.config import ModelConfig
from engine.models.peft_config import AdapterError, PeftConfig, Scales
from engine.models.tensor_names import HF_IGNORED_PARTS, HF_PREFIXES, TensorNames
from engine.models.tensor_plan import READABLE_NAMES, StoredTensor, matrix_shape, type_name
from modelfiles.adapter_files import CONFIG_NAME
from modelfiles.gguf import GGUFFile, GGUFModel
from modelfiles.safetensors import SafetensorsModel
from modelfiles.source import ModelSource

ROLES = ("q", "k", "v", "qkv", "attention_output", "gate", "up", "gate_up", "down")
"""Matrices of a layer that can have an update."""
PEFT_PREFIX = "base_model.model."
PEFT_NAME = re.compile(r"(?P<module>.+)\.lora_(?P<half>[AB])(?:\.[A-Za-z0-9_-]+)?\.weight")
GGUF_NAME = re.compile(r"(?P<module>.+)\.weight\.lora_(?P<half>[ab])")
STRANGE = (
    ("lora_magnitude_vector", "they belong to DoRA, which scales the base's own weights"),
    ("embed", "they change the embedding, which an adapter in Hob cannot"),
    (".bias", "they are biases, which an adapter in Hob cannot change"),
    ("lora_", "Hob does not know what they are for"),
)
"""Part of a tensor's name, and why such tensors are not applied."""
MAX_NAMED = 3


@dataclass(frozen=True)
class Update:
    """What an adapter adds to one matrix."""

    layer: int
    role: str
    a: str
    """Name of the tensor [rank, num_columns]."""
    b: str
    """Name of the tensor [num_rows, rank]."""
    rank: int
    scale: float

    def num_elements(self, config: ModelConfig) -> int:
        return self.rank * sum(matrix_shape(config, self.role))


@dataclass(frozen=True)
class AdapterPlan:
    """All that an adapter adds."""

    updates: tuple[Update, ...]
    is_permuted: bool = False
    """Rows of Q and K are in the order of GGUF files that rotate neighbours."""


def open_adapter(source: ModelSource) -> GGUFModel | SafetensorsModel:
    """An adapter's tensors, as a context manager.

    Raises:
        GGUFError, SafetensorsError: a file is broken.
    """
    if source.format == "gguf":
        return GGUFModel((GGUFFile.open(source.gguf_files[0]),))
    return SafetensorsModel.open(source.files)


def plan_adapter(config: ModelConfig, source: ModelSource) -> AdapterPlan:
    """What the adapter in these files adds to a model.

    Raises:
        AdapterError: it is none that can be applied, or one of another model.
        SourceError: the configuration is no text.
        GGUFError, SafetensorsError: a file is broken.
    """
    with open_adapter(source) as file:
        if isinstance(file, GGUFModel):
            return _plan_gguf(config, file)
        text = source.read_text(CONFIG_NAME)
        if text is None:
            raise AdapterError(f"there is no {CONFIG_NAME} beside the adapter's weights")
        return _plan_peft(config, file, PeftConfig.parse(text))


def _plan_peft(config: ModelConfig, file: SafetensorsModel, peft: PeftConfig) -> AdapterPlan:
    places = {
        names.module(role, layer): (layer, role)
        for names in (TensorNames(False, config.post_norms, prefix) for prefix in HF_PREFIXES)
        for layer in range(config.num_layers)
        for role in ROLES
    }
    # What a multimodal model sees images with plays no part in text.
    text = {n: tensor for n, tensor in file.tensors.items() if not any(part in n for part in HF_IGNORED_PARTS)}
    scales, updates = Scales(peft), []
    for module, (a, b) in _pairs(text, PEFT_NAME, PEFT_PREFIX).items():
        layer, role = _place(places, module, config)
        rank = _rank(config, role, file.tensors[a], file.tensors[b])
        updates.append(Update(layer, role, a, b, rank, scales.scale(module, rank)))
    return AdapterPlan(tuple(updates))


def _plan_gguf(config: ModelConfig, file: GGUFModel) -> AdapterPlan:
    metadata = file.metadata
    kind = metadata.get("adapter.type")
    if metadata.get("general.type") != "adapter" or kind != "lora":
        raise AdapterError(f"the GGUF file is no LoRA adapter: its adapter.type is {kind!r}")
    architecture = metadata.get("general.architecture")
    if architecture != config.family:
        raise AdapterError(
            f"the adapter is for the architecture {str(architecture)[:40]!r}, but the model's is {config.family!r}"
        )
    if "adapter.alora.invocation_tokens" in metadata:
        raise AdapterError("the adapter applies to what follows certain tokens only, which Hob cannot")
    alpha = metadata.get("adapter.lora.alpha", 0.0)
    if not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise AdapterError(f"the adapter.lora.alpha is {alpha!r}; it must be a finite number")
    names = TensorNames(True, config.post_norms)
    places = {names.module(role, layer): (layer, role) for layer in range(config.num_layers) for role in ROLES}
    updates = []
    for module, (a, b) in _pairs(file.tensors, GGUF_NAME, "").items():
        layer, role = _place(places, module, config)
        if role == "gate_up" and file.tensors[b].shape[0] == config.intermediate_size:
            role = "up"  # GGUF calls both fused what it calls up alone
        rank = _rank(config, role, file.tensors[a], file.tensors[b])
        updates.append(Update(layer, role, a, b, rank, alpha / rank if alpha else 1.0))
    return AdapterPlan(tuple(updates), BY_GGUF_NAME[config.family].interleaved_rope_in_gguf)


def _pairs(tensors: Mapping[str, StoredTensor], pattern: re.Pattern[str], prefix: str) -> dict[str, tuple[str, str]]:
    """Module -> names of A and B.

    Raises:
        AdapterError: a tensor is no half of an update, or lacks the other half.
    """
    halves: dict[str, dict[str, str]] = {}
    strange = []
    for name in tensors:
        found = pattern.fullmatch(name)
        if found is None:
            strange.append(name)
            continue
        pair = halves.setdefault(found["module"].removeprefix(prefix), {})
        if (first := pair.setdefault(found["half"].lower(), name)) != name:
            raise AdapterError(f'the tensors "{first[:120]}" and "{name[:120]}" are for the same matrix')
    if strange:
        raise AdapterError(_why_strange(strange))
    if not halves:
        raise AdapterError("the adapter holds no tensor, so it changes nothing")
    for module, pair in halves.items():
        if len(pair) != 2:
            missing = "B" if "a" in pair else "A"
            raise AdapterError(f"the adapter's matrix {missing} for {module} is missing; the file is incomplete")
    return {module: (pair["a"], pair["b"]) for module, pair in halves.items()}


def _why_strange(names: list[str]) -> str:
    shown = ", ".join(f'"{name[:120]}"' for name in names[:MAX_NAMED])
    if len(names) > MAX_NAMED:
        shown += f" and {len(names) - MAX_NAMED} more"
    why = next((why for sign, why in STRANGE if any(sign in name for name in names)), "they are whole weights")
    return (
        f"the adapter holds tensors that Hob does not apply, {shown}: {why}; merge it into the base's weights instead"
    )


def _place(places: Mapping[str, tuple[int, str]], module: str, config: ModelConfig) -> tuple[int, str]:
    found = places.get(module)
    if found is not None:
        return found
    if any(part in module for part in ("embed", "token_embd", "lm_head")) or module == "output":
        raise AdapterError(
            f'the adapter changes "{module[:120]}"; Hob applies updates to the matrices of layers only, so merge it '
            "into the base's weights instead"
        )
    raise AdapterError(
        f'the adapter changes "{module[:120]}", which the model does not have (it is {config.architecture} with '
        f"{config.num_layers} layers); the adapter is of another model"
    )


def _rank(config: ModelConfig, role: str, a: StoredTensor, b: StoredTensor) -> int:
    """The rank of an update whose shapes and types fit."""
    num_rows, num_columns = matrix_shape(config, role)
    rank = a.shape[0] if len(a.shape) == 2 else 0
    for tensor, wanted in ((a, (rank, num_columns)), (b, (num_rows, rank))):
        if rank < 1 or tuple(tensor.shape) != wanted:
            raise AdapterError(
                f'the tensor "{tensor.name}" has the shape {list(tensor.shape)}; beside the model\'s matrix of '
                f"{num_rows} x {num_columns} it must be {_form(tensor is a, num_rows, num_columns)}, so the adapter is "
                "of another model"
            )
        if type_name(tensor) not in READABLE_NAMES:
            raise AdapterError(
                f'the tensor "{tensor.name}" has the type {type_name(tensor)}; these can be read: '
                f"{', '.join(READABLE_NAMES)}"
            )
    return rank


def _form(is_a: bool, num_rows: int, num_columns: int) -> str:
    return f"[rank, {num_columns}]" if is_a else f"[{num_rows}, rank]"


def fused_rows(config: ModelConfig, role: str) -> tuple[str, slice]:
    """The Linear that holds a role's matrix, by the name of DecoderLayer's field, and the matrix's rows there."""
    q, kv, intermediate = config.q_size, config.kv_size, config.intermediate_size
    return {
        "q": ("qkv", slice(0, q)),
        "k": ("qkv", slice(q, q + kv)),
        "v": ("qkv", slice(q + kv, q + 2 * kv)),
        "qkv": ("qkv", slice(0, q + 2 * kv)),
        "attention_output": ("attention_output", slice(0, config.hidden_size)),
        "gate": ("gate_up", slice(0, intermediate)),
        "up": ("gate_up", slice(intermediate, 2 * intermediate)),
        "gate_up": ("gate_up", slice(0, 2 * intermediate)),
        "down": ("down", slice(0, config.hidden_size)),
    }[role]


def num_elements(config: ModelConfig, plan: AdapterPlan) -> int:
    """Numbers that an adapter holds, for the memory plan."""
    return sum(update.num_elements(config) for update in plan.updates)


def permuted_roles(config: ModelConfig, plan: AdapterPlan) -> Iterator[tuple[str, int]]:
    """(role, number of heads) of the matrices whose rows must be put into the order that the engine rotates."""
    if plan.is_permuted:
        yield from (("q", config.num_heads), ("k", config.num_kv_heads))
