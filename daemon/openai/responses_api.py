"""Types of /v1/responses: requests, the object of a response with its items, and the events of a stream.

Source: the types of OpenAI's own Python client (openai.types.responses), which are the contract.
"""

from __future__ import annotations

from typing import Any, Literal

from msgspec import UNSET, UnsetType

from daemon.openai.api import ContentPart, Reasoning, Reply, Request, TextRequest, TokenLogprob

# ---- requests


class InputItem(Request):
    """Something of the conversation so far; which fields count, the type says. Without one it is a message."""

    type: str | None = None
    id: str | None = None
    role: str | None = None
    content: str | list[ContentPart] | None = None
    """Of a message, and of reasoning."""
    summary: list[ContentPart] | None = None
    """Of reasoning."""
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[ContentPart] | None = None


class TextFormat(Request):
    """What the text must look like: "text", "json_object" or "json_schema"."""

    type: str
    name: str | None = None
    description: str | None = None
    schema: dict[str, Any] | bool | None = None
    strict: bool | None = None


class TextConfig(Request):
    """How the text shall be."""

    format: TextFormat | None = None
    verbosity: str | None = None


class ToolChoice(Request):
    """A tool that must be called, or some of which one may or must be."""

    type: str
    name: str | None = None
    mode: str | None = None
    tools: list[dict[str, Any]] | None = None


class ResponsesRequest(TextRequest):
    """POST /v1/responses."""

    input: str | list[InputItem] | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    reasoning: Reasoning | None = None
    truncation: str | None = None
    include: list[str] | None = None
    top_logprobs: int | None = None
    metadata: dict[str, str] | None = None
    previous_response_id: str | None = None
    """Refused, as the next three are: nothing is kept between requests."""
    conversation: Any = None
    prompt: Any = None
    background: bool | None = None


# ---- items of a response


class OutputText(Reply, kw_only=True):
    """The text of a message."""

    type: Literal["output_text"] = "output_text"
    text: str
    annotations: list[str]
    logprobs: list[TokenLogprob]


class SummaryText(Reply, kw_only=True):
    """A thought."""

    type: Literal["summary_text"] = "summary_text"
    text: str


class MessageItem(Reply, kw_only=True, tag_field="type", tag="message"):
    """What the model says."""

    id: str
    role: Literal["assistant"] = "assistant"
    status: str
    """"in_progress", "completed" or "incomplete", as that of all items."""
    content: list[OutputText]


class ReasoningItem(Reply, kw_only=True, tag_field="type", tag="reasoning"):
    """What the model thinks."""

    id: str
    status: str
    summary: list[SummaryText]


class FunctionCallItem(Reply, kw_only=True, tag_field="type", tag="function_call"):
    """A function that the model wants called; `arguments` is JSON."""

    id: str
    status: str
    call_id: str
    name: str
    namespace: str | UnsetType = UNSET
    arguments: str


OutputItem = MessageItem | ReasoningItem | FunctionCallItem


# ---- the response


class InputTokensDetails(Reply):
    """Of a prompt's tokens: how many the prefix cache held. None is billed for being written to it."""

    cached_tokens: int
    cache_write_tokens: int = 0


class OutputTokensDetails(Reply):
    """Of an answer's tokens: how many were thought."""

    reasoning_tokens: int


class ResponseUsage(Reply):
    """Tokens of a request."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class ResponseError(Reply):
    """Why a response failed after it began."""

    code: str
    message: str


class IncompleteDetails(Reply):
    """Why a response is not whole."""

    reason: str


class ResponseReasoning(Reply):
    """How hard was thought."""

    effort: str | None = None
    summary: str | None = None


class Response(Reply, kw_only=True):
    """The reply of /v1/responses. What the request says is said back, and what was taken where it says nothing."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: str
    """"in_progress", "completed", "incomplete" or "failed"."""
    background: bool = False
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None
    max_output_tokens: int | None
    model: str
    output: list[OutputItem]
    parallel_tool_calls: bool
    previous_response_id: None = None
    reasoning: ResponseReasoning
    store: bool = False
    temperature: float
    text: TextConfig
    tool_choice: str | ToolChoice
    tools: list[dict[str, Any]]
    top_p: float
    truncation: str
    usage: ResponseUsage | None = None
    metadata: dict[str, str]
    truncated: bool | UnsetType = UNSET
    """Hob's own: true where something was dropped from the prompt."""


class InputTokens(Reply, kw_only=True):
    """POST /v1/responses/input_tokens, whose request is that of a response: how many tokens the prompt would have."""

    object: Literal["response.input_tokens"] = "response.input_tokens"
    input_tokens: int


# ---- events of a stream


class StreamEvent(Reply):
    """Base of events; its type is also the event's name."""

    type: str
    sequence_number: int


class ResponseEvent(StreamEvent):
    """response.created, .in_progress, .completed, .incomplete and .failed."""

    response: Response


class ItemEvent(StreamEvent):
    """response.output_item.added and .done."""

    output_index: int
    item: OutputItem


class PartEvent(StreamEvent):
    """response.content_part.added and .done."""

    item_id: str
    output_index: int
    content_index: int
    part: OutputText


class TextDelta(StreamEvent):
    """response.output_text.delta."""

    item_id: str
    output_index: int
    content_index: int
    delta: str
    logprobs: list[TokenLogprob]


class TextDone(StreamEvent):
    """response.output_text.done."""

    item_id: str
    output_index: int
    content_index: int
    text: str
    logprobs: list[TokenLogprob]


class SummaryPartEvent(StreamEvent):
    """response.reasoning_summary_part.added and .done."""

    item_id: str
    output_index: int
    summary_index: int
    part: SummaryText


class SummaryDelta(StreamEvent):
    """response.reasoning_summary_text.delta."""

    item_id: str
    output_index: int
    summary_index: int
    delta: str


class SummaryDone(StreamEvent):
    """response.reasoning_summary_text.done."""

    item_id: str
    output_index: int
    summary_index: int
    text: str


class ArgumentsDelta(StreamEvent):
    """response.function_call_arguments.delta: all of them at once."""

    item_id: str
    output_index: int
    delta: str


class ArgumentsDone(StreamEvent):
    """response.function_call_arguments.done."""

    item_id: str
    output_index: int
    name: str
    arguments: str
