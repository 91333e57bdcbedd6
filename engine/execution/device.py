"""What this machine can do: which device, which type to compute in, how much memory is free."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from engine.execution.errors import Unsupported
from engine.quantization.int4_op import has_fast_bfloat16

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
KV_DTYPES = {
    "f32": torch.float32,
    "bf16": torch.bfloat16,
    "f16": torch.float16,
    "fp8": torch.float8_e4m3fn,
    "int8": torch.int8,
    "q8_0": torch.int8,
}
"""Names of a KV cache's types; "q8_0" is Ollama's for 8 bits."""
WEIGHT_DTYPES = {"auto": None, "fp8": torch.float8_e4m3fn, "int8": torch.int8}
"""What unquantised weights become while they are loaded; by itself, nothing."""
SMALL_WEIGHTS_BYTES = 2 << 30
"""On a CPU, models of up to this size in float32 are computed in float32."""
MAX_NUM_SEQS, LARGE_MAX_NUM_SEQS = 256, 512
LARGE_BYTES = 40 << 30
"""Memory from which a GPU runs the latter at once."""
SMALL_PACKED_BYTES = 32 << 20
"""As much of quantised ones: up to there they are as fast expanded; at three times that, 1.7 times slower."""
CGROUP = Path("/sys/fs/cgroup")
NO_LIMIT = 1 << 62


def choose_device(name: str) -> torch.device:
    """
    Args:
        name: "auto", or what torch.device takes.

    Raises:
        Unsupported: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise Unsupported(f'device "{name}" is unknown; use "auto", "cpu" or "cuda"') from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise Unsupported('device "cuda" was asked for, but no CUDA device is usable here; use "auto" or "cpu"')
    return device


def choose_dtype(name: str, device: torch.device, num_parameters: int, *, is_packed: bool = False) -> torch.dtype:
    """
    Args:
        name: "auto" or a key of DTYPES.
        is_packed: most weights stay quantised where they meet bfloat16.

    Raises:
        Unsupported: no such type.
    """
    if name != "auto":
        return _named(name, DTYPES, "dtype")
    if device.type == "cuda":
        return torch.bfloat16
    if not is_packed and not has_fast_bfloat16():
        return torch.float32
    small = SMALL_PACKED_BYTES if is_packed else SMALL_WEIGHTS_BYTES
    return torch.float32 if num_parameters * 4 <= small else torch.bfloat16


def choose_weight_dtype(name: str) -> torch.dtype | None:
    """
    Args:
        name: a key of WEIGHT_DTYPES.

    Raises:
        Unsupported: no such type.
    """
    if name not in WEIGHT_DTYPES:
        raise Unsupported(f'weight type "{name}" is unknown; use {", ".join(WEIGHT_DTYPES)}')
    return WEIGHT_DTYPES[name]


def choose_kv_dtype(name: str, dtype: torch.dtype) -> torch.dtype:
    """
    Args:
        name: "auto", which is the computing type, or a key of KV_DTYPES.

    Raises:
        Unsupported: no such type.
    """
    if name == "q4_0":
        raise Unsupported('KV cache type "q4_0" is not supported: 8 bits are the fewest; use "int8" or "fp8"')
    return dtype if name == "auto" else _named(name, KV_DTYPES, "KV cache type")


def choose_max_num_seqs(wanted: int, memory: DeviceMemory) -> int:
    """How many sequences run at once.

    A step of 512 takes less than twice as long as one of 256, so many requests together end sooner; but what steps hold
    for each row is a good part of a small GPU.

    Args:
        wanted: 0 leaves it to the memory.
    """
    return wanted or (LARGE_MAX_NUM_SEQS if memory.is_gpu and memory.total_bytes >= LARGE_BYTES else MAX_NUM_SEQS)


@dataclass(frozen=True)
class DeviceMemory:
    """What a model may be put into."""

    is_gpu: bool
    free_bytes: int
    total_bytes: int
    host_bytes: int
    """Free memory of the host that a GPU's layers may be kept in; 0 where the device is the host."""


def device_memory(device: torch.device) -> DeviceMemory:
    """The memory of a device, as it is now."""
    if device.type == "cuda":
        total = min(int(torch.cuda.mem_get_info(device)[1]), _cap(device))
        return DeviceMemory(True, available_bytes(device), total, available_bytes(torch.device("cpu")))
    return DeviceMemory(False, available_bytes(device), int(psutil.virtual_memory().total), 0)


def available_bytes(device: torch.device) -> int:
    """Memory that can still be allocated: a container's limit is counted, and on a GPU a limit set for this process
    (torch.cuda.set_per_process_memory_fraction) and what torch holds in reserve."""
    if device.type == "cuda":
        reserved = torch.cuda.memory_reserved(device)
        left = min(int(torch.cuda.mem_get_info(device)[0]), _cap(device) - reserved)
        return max(0, left) + reserved - torch.cuda.memory_allocated(device)
    return min(int(psutil.virtual_memory().available), _left_in_container(CGROUP))


def _cap(device: torch.device) -> int:
    """The most that this process may take of a GPU."""
    index = torch.cuda.current_device() if device.index is None else device.index
    total = torch.cuda.mem_get_info(device)[1]
    return int(torch.cuda.get_per_process_memory_fraction(index) * total)


def _left_in_container(cgroup: Path) -> int:
    """What a control group (version 2) still allows; far more than there is where no limit is set.

    Pages of files that nobody has touched lately count as used, but give way: a model that was just copied or mapped
    would otherwise seem to fill a container.
    """
    try:
        limit = (cgroup / "memory.max").read_text("ascii").strip()
        used = int((cgroup / "memory.current").read_text("ascii"))
        statistics = dict(line.split() for line in (cgroup / "memory.stat").read_text("ascii").splitlines())
    except (OSError, ValueError):  # no such group here
        return NO_LIMIT
    if limit == "max":
        return NO_LIMIT
    return max(0, int(limit) - used + int(statistics.get("inactive_file", 0)))


def _named(name: str, table: dict[str, torch.dtype], what: str) -> torch.dtype:
    if name not in table:
        raise Unsupported(f'{what} "{name}" is not supported; use "auto", {", ".join(table)}')
    return table[name]
