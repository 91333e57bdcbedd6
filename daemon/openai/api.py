"""Types of OpenAI's API as far as it is spoken here: chats, completions, models; responses_api.py has the rest.

Requests are tolerant: an unknown field is ignored, and null means "not given". Replies send null where OpenAI's do, so
a field that may be left out is UNSET. Times are seconds since 1970.

Source: the types of OpenAI's own Python client, which are the contract.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from daemon.api import KeepAlive, TopLogprob


class Request(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Base of requests."""


class Reply(msgspec.Struct, kw_only=True):
    """Base of replies."""


# ---- what several requests have


class ContentPart(Request):
    """A piece of a message's content; which fields count, the type says."""

    type: str
    text: str | None = None
    refusal: str | None = None


class JSONSchema(Request):
    """The schema of `response_format`."""

    name: str | None = None
    schema: dict[str, Any] | bool | None = None
    strict: bool | None = None


class ResponseFormat(Request):
    """What an answer must look like: "text", "json_object" or "json_schema"."""

    type: str
    json_schema: JSONSchema | None = None


class Reasoning(Request):
    """How hard to think."""

    effort: str | None = None
    summary: str | None = None


class StreamOptions(Request):
    """How a stream looks."""

    include_usage: bool | None = None


class TextRequest(Request):
    """Fields of every request for a text."""

    model: str | None = None
    stream: bool | None = None
    """False where not given, as opposed to the native API."""
    temperature: float | None = None
    top_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    """Token id -> what is added to its logit."""
    seed: int | None = None
    stop: str | list[str] | None = None
    options: dict[str, Any] | None = None
    """Hob's own: Ollama's options such as num_ctx, and keep_alive, truncate, regex, grammar, choice."""
    keep_alive: KeepAlive | None = None
    """Hob's own, as in the native API; `options` may hold it as well."""


class CompletionsRequest(TextRequest):
    """Fields that chat and text completions share."""

    stream_options: StreamOptions | None = None
    n: int | None = None
    max_tokens: int | None = None


# ---- chat completions


class RequestFunction(Request):
    """A function that was called; `arguments` is JSON."""

    name: str
    arguments: str | None = None


class RequestToolCall(Request):
    """A call in an assistant's earlier message."""

    id: str | None = None
    type: str | None = None
    function: RequestFunction | None = None


class RequestMessage(Request):
    """A message of the conversation so far."""

    role: str
    content: str | list[ContentPart] | None = None
    name: str | None = None
    """Of the function, for the old role "function"."""
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[RequestToolCall] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None


class FunctionName(Request):
    """Which function."""

    name: str


class AllowedTools(Request):
    """Some of the tools."""

    mode: str
    tools: list[dict[str, Any]]


class ToolChoice(Request):
    """A tool that must be called, or some of which one may or must be."""

    type: str
    function: FunctionName | None = None
    allowed_tools: AllowedTools | None = None


class ChatRequest(CompletionsRequest):
    """POST /v1/chat/completions."""

    messages: list[RequestMessage] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    reasoning_effort: str | None = None
    reasoning: Reasoning | None = None
    max_completion_tokens: int | None = None
    """The newer name of `max_tokens`; it wins."""
    logprobs: bool | None = None
    top_logprobs: int | None = None
    modalities: list[str] | None = None
    audio: Any = None
    functions: Any = None
    """Refused, with the name of what replaced it."""
    function_call: Any = None


class PromptTokensDetails(Reply):
    """Of a prompt's tokens: how many the prefix cache held."""

    cached_tokens: int


class CompletionTokensDetails(Reply):
    """Of an answer's tokens: how many were thought."""

    reasoning_tokens: int


class Usage(Reply):
    """Tokens of a request; a prompt with several answers counts once."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


class TokenLogprob(Reply):
    """A token that was chosen, and the likeliest at its place."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(Reply):
    """Log-probabilities of an answer's tokens."""

    content: list[TokenLogprob]
    refusal: None = None


class Function(Reply):
    """A function that the model wants called; `arguments` is JSON."""

    name: str
    arguments: str


class ToolCall(Reply, kw_only=True):
    """A call in an answer."""

    id: str
    type: Literal["function"] = "function"
    function: Function


class ToolCallDelta(ToolCall, kw_only=True):
    """A call in a stream, complete: it is not sent in pieces."""

    index: int


class ResponseMessage(Reply, kw_only=True):
    """An answer. Thoughts have two names, as clients know one or the other."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    reasoning: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCall] | UnsetType = UNSET


class Choice(Reply, kw_only=True):
    """One of the answers."""

    index: int
    message: ResponseMessage
    logprobs: ChoiceLogprobs | None = None
    finish_reason: str
    """"stop", "length" or "tool_calls"."""


class ChatCompletion(Reply, kw_only=True):
    """The reply of /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str
    """Names the model's files and parameters."""
    choices: list[Choice]
    usage: Usage
    truncated: bool | UnsetType = UNSET
    """Hob's own: true where something was dropped from the prompt."""


class Delta(Reply):
    """What is new in an answer."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType | None = UNSET
    reasoning: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCallDelta] | UnsetType = UNSET


class ChunkChoice(Reply, kw_only=True):
    """What is new in one of the answers."""

    index: int
    delta: Delta
    logprobs: ChoiceLogprobs | None = None
    finish_reason: str | None = None


class ChatCompletionChunk(Reply, kw_only=True):
    """One event of the stream. The last one before the end has the usage and no choices, where it was asked for."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChunkChoice]
    usage: Usage | UnsetType | None = UNSET
    truncated: bool | UnsetType = UNSET


# ---- completions


class CompletionRequest(CompletionsRequest):
    """POST /v1/completions."""

    prompt: str | list[str | int | list[int]] | None = None
    """One text or several, one list of token ids or several."""
    suffix: str | None = None
    echo: bool | None = None
    logprobs: int | None = None
    best_of: int | None = None


class CompletionLogprobs(Reply):
    """Log-probabilities as /v1/completions has them: lists side by side."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]
    """Where each token begins in `text`, in characters."""


class CompletionChoice(Reply, kw_only=True):
    """One of the texts, or what is new in it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None = None


class Completion(Reply, kw_only=True):
    """The reply of /v1/completions, or one event of its stream."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage | UnsetType | None = UNSET
    truncated: bool | UnsetType = UNSET


# ---- models


class Model(Reply, kw_only=True):
    """One model of the list."""

    id: str
    object: Literal["model"] = "model"
    created: int
    """When it was made or pulled."""
    owned_by: str
    """The namespace of its name."""


class ModelList(Reply, kw_only=True):
    """GET /v1/models."""

    object: Literal["list"] = "list"
    data: list[Model]
