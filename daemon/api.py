"""The REST contract: one struct for each request and reply of the native API, and nothing else.

The daemon decodes requests into these and encodes replies from them; the CLI does the reverse. Requests are tolerant:
an unknown field is ignored, and `null` means "not given", so every optional field is `T | None`. Replies omit what is
empty or zero, except the fields without a default here: those are always sent. Durations are integer nanoseconds, times
are RFC 3339 in UTC.

Source: the API that Ollama documents (docs/api.md), whose clients must not notice a difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

API_VERSION = "0.32.15"
"""The level of Ollama's API that this contract follows; editors refuse servers below 0.6.4."""

INBOX_HEADER = "Hob-Inbox"
"""Of POST /api/blobs/{digest}: the name of a file in the daemon's inbox that holds the bytes; the body is empty."""

MAX_TOP_LOGPROBS = 20

KeepAlive = int | float | str
"""Seconds as a number (negative: for ever), or a Go duration such as "5m"; 0 unloads as soon as the model is idle."""

Think = bool | str
"""Whether to think; "low", "medium", "high" and "max" say how hard."""


class Request(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Base of requests. Encoding one leaves out what was not given."""


class Reply(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Base of replies."""


class ErrorReply(Reply):
    """Body of every failed request, and the last line of a stream that failed after it began."""

    error: str


# ---- messages and tools


class FunctionCall(Reply):
    """A function that the model wants called; `arguments` is an object, never a string."""

    index: int
    name: str
    arguments: dict[str, Any]


class ToolCall(Reply, kw_only=True):
    """One call in an assistant's message."""

    id: str = ""
    function: FunctionCall


class Message(Reply):
    """A message of a reply."""

    role: str
    content: str
    thinking: str = ""
    tool_calls: list[ToolCall] = []
    tool_name: str = ""
    tool_call_id: str = ""


class RequestFunctionCall(Request, kw_only=True):
    """As FunctionCall, with everything but the name optional."""

    index: int | None = None
    name: str
    arguments: dict[str, Any] | None = None


class RequestToolCall(Request, kw_only=True):
    """As ToolCall."""

    id: str | None = None
    function: RequestFunctionCall


class RequestMessage(Request):
    """A message of a request. The role is read without regard to case."""

    role: str
    content: str | None = None
    thinking: str | None = None
    images: list[str] | None = None
    """Base64."""
    tool_calls: list[RequestToolCall] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class TopLogprob(Reply):
    """A token that could have been chosen; `bytes` are its own, also where they are a part of a character only."""

    token: str
    logprob: float
    bytes: list[int]


class Logprob(Reply):
    """A token that was chosen, with the likeliest ones in descending order where they were asked for."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob] = []


# ---- generate and chat


class GenerateRequest(Request):
    """POST /api/generate. An empty prompt loads the model; with keep_alive 0 it unloads it."""

    model: str | None = None
    prompt: str | None = None
    suffix: str | None = None
    system: str | None = None
    template: str | None = None
    """A Go template for this call."""
    context: list[int] | None = None
    """Token ids of an earlier reply, to go on from. Deprecated."""
    stream: bool | None = None
    """True where not given."""
    raw: bool | None = None
    """The prompt is the model's input as it stands, without a template."""
    format: Any = None
    keep_alive: KeepAlive | None = None
    images: list[str] | None = None
    options: dict[str, Any] | None = None
    think: Think | None = None
    truncate: bool | None = None
    shift: bool | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    debug_render_only: bool | None = msgspec.field(default=None, name="_debug_render_only")


class ChatRequest(Request):
    """POST /api/chat. No messages load the model; with keep_alive 0 they unload it."""

    model: str | None = None
    messages: list[RequestMessage] | None = None
    tools: list[dict[str, Any]] | None = None
    stream: bool | None = None
    format: Any = None
    keep_alive: KeepAlive | None = None
    options: dict[str, Any] | None = None
    think: Think | None = None
    truncate: bool | None = None
    shift: bool | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    debug_render_only: bool | None = msgspec.field(default=None, name="_debug_render_only")


class DebugInfo(Reply):
    """What `_debug_render_only` asks for."""

    rendered_template: str
    image_count: int = 0


class GenerateResponse(Reply, kw_only=True):
    """A chunk of /api/generate, or its whole reply. Metrics come with `done`."""

    model: str
    created_at: str
    response: str
    thinking: str = ""
    done: bool
    done_reason: str = ""
    """One of "stop", "length", "load", "unload"."""
    context: list[int] = []
    truncated: bool = False
    """Whether something was dropped from the prompt, or from the context while generating."""
    total_duration: int = 0
    load_duration: int = 0
    prompt_eval_count: int = 0
    """Tokens of the prompt, those found in the prefix cache included."""
    prompt_cached_count: int = 0
    """Tokens of the prompt that the prefix cache held."""
    prompt_eval_duration: int = 0
    eval_count: int = 0
    eval_duration: int = 0
    logprobs: list[Logprob] = []
    debug_info: DebugInfo | None = msgspec.field(default=None, name="_debug_info")


class ChatResponse(Reply):
    """A chunk of /api/chat, or its whole reply. Fields as in GenerateResponse."""

    model: str
    created_at: str
    message: Message
    done: bool
    done_reason: str = ""
    truncated: bool = False
    total_duration: int = 0
    load_duration: int = 0
    prompt_eval_count: int = 0
    prompt_cached_count: int = 0
    prompt_eval_duration: int = 0
    eval_count: int = 0
    eval_duration: int = 0
    logprobs: list[Logprob] = []
    debug_info: DebugInfo | None = msgspec.field(default=None, name="_debug_info")


# ---- tokens


class TokenizeRequest(Request):
    """POST /api/tokenize, with the fields of llama.cpp's server."""

    model: str | None = None
    content: str | None = None
    text: str | None = None
    """Another name of `content`."""
    add_special: bool | None = None
    """Put the tokens around the text that the model expects around a prompt. False where not given."""
    parse_special: bool | None = None
    """Read "<|im_start|>" and the like as the tokens of that name. True where not given."""
    with_pieces: bool | None = None
    """Name each token's text, too."""


class TokenPiece(Reply, kw_only=True):
    """A token, and the text that it is or, where that is a part of a character, its bytes."""

    id: int
    piece: str | list[int]


class TokenizeResponse(Reply, kw_only=True):
    """POST /api/tokenize."""

    model: str
    tokens: Sequence[int | TokenPiece]


class DetokenizeRequest(Request):
    """POST /api/detokenize."""

    model: str | None = None
    tokens: list[int] | None = None


class DetokenizeResponse(Reply, kw_only=True):
    """POST /api/detokenize. Bytes that are no character come as U+FFFD."""

    model: str
    content: str


# ---- models


class ModelDetails(Reply):
    """What a model is, in short."""

    parent_model: str
    format: str
    family: str
    families: list[str]
    parameter_size: str
    quantization_level: str
    context_length: int = 0
    embedding_length: int = 0


class ListedModel(Reply, kw_only=True):
    """One row of /api/tags."""

    name: str
    model: str
    remote_model: str = ""
    """Of a stub that another Ollama serves, which Hob lists and does not run; with `remote_host`."""
    remote_host: str = ""
    modified_at: str
    size: int
    """Bytes of all layers and the configuration."""
    digest: str
    """SHA-256 of the manifest: 64 hex digits, without a prefix."""
    details: ModelDetails
    capabilities: list[str]


class ListResponse(Reply):
    """GET /api/tags: newest first."""

    models: list[ListedModel]


class RunningModel(Reply):
    """One row of /api/ps."""

    name: str
    model: str
    size: int
    """Bytes of memory in use, weights and KV cache."""
    digest: str
    details: ModelDetails
    expires_at: str
    size_vram: int
    """Bytes of `size` on a GPU."""
    context_length: int


class ProcessResponse(Reply):
    """GET /api/ps: the one with the longest time left first."""

    models: list[RunningModel]


class ShowRequest(Request):
    """POST /api/show."""

    model: str | None = None
    name: str | None = None
    """The old name of `model`."""
    system: str | None = None
    verbose: bool | None = None
    """Long arrays of `model_info` too."""
    options: dict[str, Any] | None = None


class Tensor(Reply):
    """A tensor's name, type as the file calls it, and shape in the file's order."""

    name: str
    type: str
    shape: list[int]


class ShowResponse(Reply, kw_only=True):
    """POST /api/show."""

    license: str = ""
    modelfile: str
    parameters: str = ""
    """One a line: the key padded to 30 columns, and its value."""
    template: str = ""
    system: str = ""
    renderer: str = ""
    parser: str = ""
    details: ModelDetails
    messages: list[Message] = []
    remote_model: str = ""
    remote_host: str = ""
    model_info: dict[str, Any]
    """GGUF keys, such as "general.architecture" and "llama.context_length"."""
    projector_info: dict[str, Any] = {}
    """As `model_info`, of the file that makes images into embeddings."""
    tensors: list[Tensor] = []
    capabilities: list[str]
    modified_at: str
    requires: str = ""


class CreateRequest(Request):
    """POST /api/create."""

    model: str | None = None
    name: str | None = None
    """The old name of `model`."""
    from_: str | None = msgspec.field(default=None, name="from")
    files: dict[str, str] | None = None
    """Relative file name -> digest of a blob that was sent before."""
    adapters: dict[str, str] | None = None
    draft_files: dict[str, str] | None = None
    template: str | None = None
    license: str | list[str] | None = None
    system: str | None = None
    parameters: dict[str, Any] | None = None
    messages: list[RequestMessage] | None = None
    quantize: str | None = None
    quantization: str | None = None
    """The old name of `quantize`."""
    renderer: str | None = None
    parser: str | None = None
    requires: str | None = None
    info: dict[str, Any] | None = None
    """What weights and template do not show of the model, such as "capabilities"."""
    remote_host: str | None = None
    """Refused: Hob serves no other machine's models."""
    stream: bool | None = None


class PullRequest(Request):
    """POST /api/pull, and /api/push."""

    model: str | None = None
    name: str | None = None
    insecure: bool | None = None
    stream: bool | None = None


class ProgressResponse(Reply):
    """One status line of create, pull or push; the last one is "success"."""

    status: str
    digest: str = ""
    total: int = 0
    completed: int = 0


class RemoteTag(Reply):
    """A variant of a model that can be pulled."""

    tag: str
    size: int = 0
    """Bytes of all its files; 0 where the source does not say."""


class RemoteTagsResponse(Reply):
    """POST /api/remote-tags, whose request is that of a pull: what `hob pull --list-tags` shows."""

    tags: list[RemoteTag]


class SearchRequest(Request):
    """POST /api/search."""

    query: str = ""


class CatalogModel(Reply):
    """A model of the catalog."""

    name: str
    description: str
    tags: list[RemoteTag]
    capabilities: list[str] = []


class SearchResponse(Reply):
    """POST /api/search: the best match first."""

    models: list[CatalogModel]


class FsckRequest(Request):
    """POST /api/fsck."""

    rehash: bool | None = None
    """False: read only what has a suspicious size."""


class FsckResponse(Reply):
    """POST /api/fsck: progress, damage, and "success" at the end, whatever was found."""

    status: str
    digest: str = ""
    """With `total` and `completed`: the reading of the store, as one bar."""
    total: int = 0
    completed: int = 0
    subject: str = ""
    """What is broken: a blob's file name, a model's name or a path under manifests/."""
    reason: str = ""
    models: list[str] = []
    """Those that cannot be used because of it."""
    quarantined: bool = False


class ImportRequest(Request):
    """POST /api/import, and /api/importable, which needs no model."""

    source: str
    """"ollama" or "huggingface"."""
    model: str | None = None
    stream: bool | None = None


class ImportableModel(Reply):
    """A model that another program on the daemon's machine has."""

    name: str
    size: int
    stored: bool
    """Whether a model of this name is in the store."""


class ImportableResponse(Reply):
    """POST /api/importable."""

    models: list[ImportableModel]


class CopyRequest(Request):
    """POST /api/copy."""

    source: str | None = None
    destination: str | None = None


class DeleteRequest(Request):
    """DELETE /api/delete."""

    model: str | None = None
    name: str | None = None
    """The old name of `model`."""


class VersionResponse(Reply):
    """GET /api/version. `hob_version` is how the CLI knows that it is Hob that answers."""

    version: str
    hob_version: str = ""


class CloudStatus(Reply):
    """Whether models run elsewhere."""

    disabled: bool
    source: str
    """Who decided so: "none", "env", "config" or "both"."""


class StatusResponse(Reply):
    """GET /api/status."""

    cloud: CloudStatus


class HealthResponse(Reply):
    """GET /healthz."""

    status: str


# ---- vectors and scores


class EmbedRequest(Request):
    """POST /api/embed. No input loads the model."""

    model: str | None = None
    input: Any = None
    """A text or a list of texts."""
    truncate: bool | None = None
    """Cut texts that are too long. True where not given."""
    dimensions: int | None = None
    """Elements to keep of each vector, which then gets the length 1 anew; 0, or more than there are, is all."""
    options: dict[str, Any] | None = None
    keep_alive: KeepAlive | None = None


class EmbedResponse(Reply):
    """POST /api/embed: one vector of length 1 for each text."""

    model: str
    embeddings: list[list[float]]
    total_duration: int = 0
    load_duration: int = 0
    prompt_eval_count: int = 0
    truncated: bool = False
    """Whether any text was cut."""


class EmbeddingsRequest(Request):
    """POST /api/embeddings, which /api/embed has replaced."""

    model: str | None = None
    prompt: str | None = None
    options: dict[str, Any] | None = None
    keep_alive: KeepAlive | None = None


class EmbeddingsResponse(Reply):
    """POST /api/embeddings: one vector, of the length that the model gives it."""

    embedding: list[float]


class TokenUsage(Reply, kw_only=True):
    """What a request cost; nothing is generated."""

    prompt_tokens: int
    total_tokens: int


class Document(Request):
    """A document as some clients send it."""

    text: str


class RerankRequest(Request):
    """POST /api/rerank and /v1/rerank, with the fields of Jina's and Cohere's APIs."""

    model: str | None = None
    query: str | None = None
    documents: list[str | Document] | None = None
    top_n: int | None = None
    """How many results, the best first; all where not given."""
    return_documents: bool | None = None
    """Whether results carry their documents. False where not given."""
    truncate: bool | None = None
    """Cut what is too long. True where not given."""
    options: dict[str, Any] | None = None
    keep_alive: KeepAlive | None = None


class RankedDocument(Reply, kw_only=True):
    """A document's text."""

    text: str


class RerankResult(Reply, kw_only=True):
    """One document's score."""

    index: int
    """Its place in the request."""
    relevance_score: float
    document: RankedDocument | None = None


class RerankResponse(Reply, kw_only=True):
    """POST /api/rerank and /v1/rerank: the best document first."""

    model: str
    results: list[RerankResult]
    usage: TokenUsage
    total_duration: int = 0
    load_duration: int = 0
    truncated: bool = False
