"""Anthropic's Messages API: one struct for each request, content block, reply and event, and nothing else.

Requests are tolerant as those of daemon.api: an unknown field is ignored (metadata, cache_control and service_tier
among them), and `null` means "not given". Replies send every field: the official clients read them without asking.

Source: the types of Anthropic's own client (github.com/anthropics/anthropic-sdk-python, `anthropic.types`).
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

# ---- content blocks; those that replies have, too, come first


class TextBlock(msgspec.Struct, tag_field="type", tag="text"):
    """What somebody says."""

    text: str


class ThinkingBlock(msgspec.Struct, tag_field="type", tag="thinking"):
    """What the model thought before it answered."""

    thinking: str
    signature: str = ""


class ToolUseBlock(msgspec.Struct, tag_field="type", tag="tool_use"):
    """A call that the model wants made."""

    id: str
    name: str
    input: dict[str, Any]


ReplyBlock = TextBlock | ThinkingBlock | ToolUseBlock


class RedactedThinkingBlock(msgspec.Struct, tag_field="type", tag="redacted_thinking"):
    """A thought that another server encrypted; nobody here can read it."""


class ImageBlock(msgspec.Struct, tag_field="type", tag="image"):
    """A picture."""


class DocumentSource(msgspec.Struct):
    """Where a document's text is: `data` of the type "text", `content` of the type "content"."""

    type: str
    data: str | None = None
    content: str | list[TextBlock | ImageBlock] | None = None


class DocumentBlock(msgspec.Struct, tag_field="type", tag="document"):
    """A document."""

    source: DocumentSource
    title: str | None = None
    context: str | None = None


class SearchResultBlock(msgspec.Struct, tag_field="type", tag="search_result"):
    """Something that a search of the client found."""

    source: str
    title: str
    content: list[TextBlock]


ResultBlock = TextBlock | ImageBlock | DocumentBlock | SearchResultBlock


class ToolResultBlock(msgspec.Struct, tag_field="type", tag="tool_result"):
    """What a call brought."""

    tool_use_id: str
    content: str | list[ResultBlock] | None = None
    is_error: bool | None = None


RequestBlock = (
    TextBlock
    | ThinkingBlock
    | RedactedThinkingBlock
    | ToolUseBlock
    | ToolResultBlock
    | ImageBlock
    | DocumentBlock
    | SearchResultBlock
)


# ---- requests


class MessageParam(msgspec.Struct):
    """A turn of the conversation."""

    role: str
    content: str | list[RequestBlock]


class Tool(msgspec.Struct):
    """A tool of the client. Those that Anthropic's servers run have a `type` and no `input_schema`."""

    name: str
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    type: str | None = None
    strict: bool | None = None
    """Whether the whole schema must hold; what of it cannot be enforced is then an error."""


class ToolChoice(msgspec.Struct):
    """Whether tools are called: as the model likes, at least one, the one of this name, or none."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(msgspec.Struct):
    """Whether the model thinks first."""

    type: Literal["enabled", "adaptive", "between_tools", "disabled"]
    display: str | None = None
    """"omitted": the thought is not sent."""


class OutputFormat(msgspec.Struct):
    """What the text of the answer must look like."""

    type: Literal["json_schema"]
    schema: dict[str, Any]


class OutputConfig(msgspec.Struct):
    """What the answer looks like, and how hard the model tries."""

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: OutputFormat | None = None


class Conversation(msgspec.Struct, kw_only=True):
    """What makes the prompt, and so what POST /v1/messages/count_tokens counts."""

    model: str
    messages: list[MessageParam]
    system: str | list[TextBlock] | None = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None


class MessagesRequest(Conversation, kw_only=True):
    """POST /v1/messages."""

    max_tokens: int
    """0 reads the prompt into the prefix cache and generates nothing."""
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    """False where not given."""
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    options: dict[str, Any] | None = None
    """Hob's own: options of the native API, and what daemon.extensions adds."""


# ---- replies


class OutputTokens(msgspec.Struct):
    """Of the generated tokens, those of the thought."""

    thinking_tokens: int = 0


class Usage(msgspec.Struct, kw_only=True):
    """Tokens. The prompt is the sum of the three counts of input."""

    input_tokens: int = 0
    """Of the prompt, those of the prefix cache not included."""
    cache_creation_input_tokens: int = 0
    """Nobody pays more for a prompt that is kept, so none is counted here."""
    cache_read_input_tokens: int = 0
    """Of the prompt, those that the prefix cache held."""
    output_tokens: int = 0
    """Generated, those of thoughts that are not shown included."""
    output_tokens_details: OutputTokens = msgspec.field(default_factory=OutputTokens)


class MessageReply(msgspec.Struct, tag_field="type", tag="message", kw_only=True):
    """The model's turn. `stop_reason` is null only where a stream begins."""

    id: str
    role: str = "assistant"
    model: str
    content: list[ReplyBlock]
    stop_reason: str | None = None
    stop_sequence: str | None = None
    usage: Usage
    truncated: bool | UnsetType = UNSET
    """Hob's own: true where something was cut, which only `options.truncate` allows; else it is not there."""


class TokensCount(msgspec.Struct):
    """Reply of POST /v1/messages/count_tokens."""

    input_tokens: int


# ---- events of a stream, in the order in which they come


class MessageStart(msgspec.Struct, tag_field="type", tag="message_start"):
    """The reply as it is known when the first token is there: without content."""

    message: MessageReply


class ContentBlockStart(msgspec.Struct, tag_field="type", tag="content_block_start"):
    """An empty block, to which its deltas add."""

    index: int
    content_block: ReplyBlock


class TextDelta(msgspec.Struct, tag_field="type", tag="text_delta"):
    """More text."""

    text: str


class ThinkingDelta(msgspec.Struct, tag_field="type", tag="thinking_delta"):
    """More of a thought."""

    thinking: str


class SignatureDelta(msgspec.Struct, tag_field="type", tag="signature_delta"):
    """The last of a thought."""

    signature: str


class InputJSONDelta(msgspec.Struct, tag_field="type", tag="input_json_delta"):
    """JSON of a call's input."""

    partial_json: str


Delta = TextDelta | ThinkingDelta | SignatureDelta | InputJSONDelta


class ContentBlockDelta(msgspec.Struct, tag_field="type", tag="content_block_delta"):
    """What is added to a block."""

    index: int
    delta: Delta


class ContentBlockStop(msgspec.Struct, tag_field="type", tag="content_block_stop"):
    """A block is whole."""

    index: int


class StopDelta(msgspec.Struct):
    """Why the message ended."""

    stop_reason: str
    stop_sequence: str | None


class MessageDelta(msgspec.Struct, tag_field="type", tag="message_delta"):
    """The end of a message; the counts of `usage` are final."""

    delta: StopDelta
    usage: Usage
    truncated: bool | UnsetType = UNSET
    """As in MessageReply."""


class MessageStop(msgspec.Struct, tag_field="type", tag="message_stop"):
    """Nothing comes after this."""


BlockEvent = ContentBlockStart | ContentBlockDelta | ContentBlockStop
StreamEvent = MessageStart | BlockEvent | MessageDelta | MessageStop
