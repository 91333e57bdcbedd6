"""What crosses the channel between the daemon and an engine worker: msgpack frames, one struct each.

A frame is a little-endian uint32 length and that many bytes, over an inherited socket pair. A worker starts
empty and is told what to do; each step answers with one StepOutput for all sequences, never one message per request.
"""

from __future__ import annotations

import struct

import msgspec

from engine.constraint import Constraint
from engine.sampling_params import SamplingParams
from engine.scheduling.batch import TokenLogprobs

MAX_FRAME_BYTES = 256 * 1024 * 1024
LENGTH = struct.Struct("<I")


class Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag=True):
    """Base of all messages; the tag on the wire is the class name."""


# ---- daemon to worker


class Load(Message, frozen=True):
    """Load a model. Answered by Ready or by Failed without `seq_id`."""

    files: dict[str, str]
    """Name -> path, as in modelfiles.source.ModelSource."""
    device: str = "auto"
    dtype: str = "auto"
    weight_type: str = "auto"
    """"fp8" or "int8": unquantised weights of layers become that while they are loaded."""
    kv_cache_type: str = "auto"
    budget_bytes: int = 0
    """Memory for weights, KV and activations together; 0 lets the worker decide."""
    overhead_bytes: int = 0
    """Memory of a GPU to leave free, beside what the worker leaves by itself."""
    num_gpu_layers: int = -1
    """Layers on a GPU, the others stay in the host's memory; -1: all, or as many as fit. More than there are: all."""
    max_num_seqs: int = 0
    """Sequences that run at once; 0: as many as suit the device's memory."""
    max_num_batched_tokens: int = 2048
    block_size: int = 16
    num_blocks: int = 0
    """KV blocks of each group; 0 computes them from the budget."""
    run_ahead: int = 1
    num_threads: int = 0
    """CPU threads for torch; 0 is its own choice."""
    use_graphs: bool = True
    """Replay steps as CUDA graphs; off, each kernel is launched by itself. Without a GPU it means nothing."""
    use_pdl: bool = True
    """Let kernels overlap with their predecessors (programmatic dependent launch) where the device can."""


class Submit(Message, frozen=True):
    """Generate from a prompt. Answered by rows of StepOutput until one has a finish_reason."""

    seq_id: int
    prompt_ids: list[int]
    params: SamplingParams
    cache_salt: str = ""
    """Requests share cached prefixes only with requests of the same salt."""
    adapter: int = 0
    """Number of an AddAdapter; 0: the base alone."""
    priority: int = 0
    """Lower runs first."""
    constraint: Constraint | None = None
    """What the text must look like. It is compiled first, beside the steps of others."""


class Embed(Message, frozen=True):
    """Make a vector of each text; of each pair of texts a score, where the model is a cross-encoder. Answered by
    Embedded or by Failed with `request_id`."""

    request_id: int
    prompts: list[list[int]]
    """Token ids, those around a text included."""
    is_pairs: bool = False
    """Whether scores of pairs are wanted."""
    second_starts: list[int] = []
    """Position at which the second text of each pair starts; empty: there are no pairs."""
    normalize: bool = True
    """Whether vectors get the length 1; a model may do so by itself."""
    dimensions: int = 0
    """Elements to keep of each vector, before it gets its length; 0 is all."""
    adapter: int = 0
    """Number of an AddAdapter; 0: the base alone."""


class Abort(Message, frozen=True):
    """Forget sequences, whose rows end with finish_reason "abort"; and Embeds, which are never answered."""

    seq_ids: list[int] = []
    request_ids: list[int] = []


class AddAdapter(Message, frozen=True):
    """Put LoRA adapters beside the base's weights; those of one message add up. Answered by Ready or Failed.

    Where memory is short, the KV cache is made smaller, which drops the prefix cache.
    """

    adapter: int
    """What requests call it: from 1 on, and never given before, because cached prefixes belong to a number."""
    files: dict[str, str]
    """Name -> path, as modelfiles.adapter_files has them."""


class RemoveAdapter(Message, frozen=True):
    """Forget an adapter, and end what still runs with it. Answered by Ready."""

    adapter: int


class Resize(Message, frozen=True):
    """Drain, drop the prefix cache, allocate the KV cache anew. Answered by Ready."""

    budget_bytes: int = 0
    num_blocks: int = 0


class Sleep(Message, frozen=True):
    """Give the device's memory back, keep the process. Answered by Stats."""


class Wake(Message, frozen=True):
    """Undo Sleep. Answered by Ready."""


class GetStats(Message, frozen=True):
    """Answered by Stats."""


class Quantize(Message, frozen=True):
    """Write a model anew, of another file type. Answered by Progress and Quantized or Failed."""

    files: dict[str, str]
    """Name -> path, as in modelfiles.source.ModelSource."""
    folder: str
    """Where the new files go; it must be there."""
    file_type: str
    """A name of engine.conversion.file_types, in whatever case."""
    num_threads: int = 0
    """CPU threads for torch; 0 is its own choice."""


class Shutdown(Message, frozen=True):
    """Leave with exit status 0."""


# ---- worker to daemon


class Ready(Message, frozen=True):
    """A model is loaded, or an adapter beside it."""

    num_blocks: int
    """KV blocks of each group, the dummy block not counted."""
    block_size: int
    weights_bytes: int
    """Those of adapters included."""
    kv_cache_bytes: int
    max_context: int
    """Longest sequence in tokens that fits both the model and the cache."""
    device: str
    dtype: str
    load_s: float
    max_num_seqs: int = 0
    """Sequences that run at once, where Load left it to the worker."""
    notes: list[str] = []
    """Sentences for the log: what limits the speed."""


class TokenRow(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """One sequence's share of a step."""

    seq_id: int
    token_ids: list[int]
    logprobs: list[TokenLogprobs] = []
    finish_reason: str | None = None
    """One of "stop" (a stop token id, which is the last of `token_ids`), "length", "abort" or "error"."""
    num_cached_tokens: int = 0
    """Prompt tokens found in the prefix cache; sent with the first row."""
    truncated: bool = False
    """Whether the context was cut or shifted."""
    error: str | None = None


class StepOutput(Message, frozen=True):
    """All sequences that got tokens or ended in one step."""

    rows: list[TokenRow]


class Embedded(Message, frozen=True):
    """Answer to Embed."""

    request_id: int
    vectors: list[bytes]
    """One a text, little-endian float32; a score is a vector of one element."""


class Stats(Message, frozen=True):
    """Counters of a worker; all monotonic but the first five."""

    num_running: int = 0
    num_waiting: int = 0
    num_blocks: int = 0
    num_free_blocks: int = 0
    """Free or only held by the prefix cache."""
    is_sleeping: bool = False
    num_steps: int = 0
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_computed_tokens: int = 0
    num_generated_tokens: int = 0
    num_preemptions: int = 0
    num_shifts: int = 0


class Progress(Message, frozen=True):
    """How far a Load or Quantize has come."""

    done_bytes: int
    total_bytes: int


class Quantized(Message, frozen=True):
    """A model has been written anew, and lies on the disk."""

    files: dict[str, str]
    """Name -> path of what was written. A GGUF file is the whole model; beside safetensors the source's other files
    still count."""
    notes: list[str] = []
    """Sentences for the user: what the new files have otherwise than the source, beside their type."""


class Failed(Message, frozen=True):
    """A message that could not be done; the worker lives on unless `fatal`."""

    error: str
    """A sentence: what, the value, the limit, the remedy."""
    kind: str = "internal"
    """One of "invalid" (the request's fault), "memory", "unsupported" or "internal"."""
    seq_id: int | None = None
    request_id: int | None = None
    fatal: bool = False


ToWorker = (
    Load | Submit | Embed | Abort | AddAdapter | RemoveAdapter | Resize | Sleep | Wake | GetStats | Quantize | Shutdown
)
ToDaemon = Ready | StepOutput | Embedded | Stats | Progress | Quantized | Failed
