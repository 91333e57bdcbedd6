"""From what was generated to Anthropic's replies: the events of a stream, or one message. Pure.

A whole message is what its events add up to, so streaming and not streaming say the same.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import AsyncGenerator, Collection, Iterable, Iterator
from contextlib import aclosing
from dataclasses import dataclass

import msgspec
from msgspec import UNSET

from daemon.anthropic import types
from daemon.generation import Summary
from daemon.output import Chunk


@dataclass(kw_only=True)
class Reply:
    """One reply: what is known of it before it begins, and the counts of its prompt as soon as they are known.

    Args:
        stop_sequences: the request's; a model has others, which end its turn and are not told.
    """

    id: str
    model: str
    max_tokens: int
    stop_sequences: Collection[str]
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0

    def started(self, num_prompt_tokens: int, num_cached_tokens: int) -> None:
        """What daemon.generation tells before the first chunk."""
        self.num_prompt_tokens, self.num_cached_tokens = num_prompt_tokens, num_cached_tokens

    def message(self) -> types.MessageReply:
        """The message without content."""
        usage = _usage(self.num_prompt_tokens, self.num_cached_tokens)
        return types.MessageReply(id=self.id, model=self.model, content=[], usage=usage)

    def end(self, summary: Summary, *, has_calls: bool) -> types.MessageDelta:
        """Why it ended, and the final counts."""
        reason, stop_sequence = "tool_use" if has_calls else "end_turn", None
        if summary.done_reason == "length":
            reason = "max_tokens" if summary.num_tokens >= self.max_tokens else "model_context_window_exceeded"
        elif summary.stop_string in self.stop_sequences:
            reason, stop_sequence = "stop_sequence", summary.stop_string
        usage = _usage(summary.num_prompt_tokens, summary.num_cached_tokens)
        usage.output_tokens = summary.num_tokens
        usage.output_tokens_details.thinking_tokens = summary.num_thinking_tokens
        return types.MessageDelta(types.StopDelta(reason, stop_sequence), usage, summary.is_truncated or UNSET)


class BlockWriter:
    """Turns chunks into the events of content blocks: a block ends where something else than its kind begins."""

    def __init__(self) -> None:
        self.has_calls = False
        self._index = 0
        self._open: type[types.ReplyBlock] | None = None
        self._thought = hashlib.sha256()

    def push(self, chunk: Chunk) -> Iterator[types.BlockEvent]:
        """A chunk's thought, text and calls, in this order."""
        if chunk.thinking:
            yield from self._open_block(types.ThinkingBlock(""))
            self._thought.update(chunk.thinking.encode())
            yield types.ContentBlockDelta(self._index, types.ThinkingDelta(chunk.thinking))
        if chunk.text:
            yield from self._open_block(types.TextBlock(""))
            yield types.ContentBlockDelta(self._index, types.TextDelta(chunk.text))
        for call in chunk.tool_calls:
            yield from self.close()
            # The ids of this API begin so; what follows is the same id.
            call_id = f"toolu_{call.id.removeprefix('call_')}"
            yield from self._open_block(types.ToolUseBlock(call_id, call.function.name, {}))
            arguments = msgspec.json.encode(call.function.arguments).decode()
            yield types.ContentBlockDelta(self._index, types.InputJSONDelta(arguments))
            yield from self.close()
            self.has_calls = True

    def close(self) -> Iterator[types.BlockEvent]:
        """The end of the block that is open, if one is."""
        if self._open is None:
            return
        if self._open is types.ThinkingBlock:
            # What clients keep with a thought. It is never looked at: a thought that comes back is text as any other.
            signature = base64.b64encode(self._thought.digest()).decode()
            yield types.ContentBlockDelta(self._index, types.SignatureDelta(signature))
            self._thought = hashlib.sha256()
        yield types.ContentBlockStop(self._index)
        self._open = None
        self._index += 1

    def _open_block(self, empty: types.ReplyBlock) -> Iterator[types.BlockEvent]:
        if self._open is not type(empty):
            yield from self.close()
            self._open = type(empty)
            yield types.ContentBlockStart(self._index, empty)


async def stream(generated: AsyncGenerator[Chunk | Summary], reply: Reply) -> AsyncGenerator[types.StreamEvent]:
    """The events of a reply. Nothing comes before the first token, so that what fails before it has a status."""
    writer = BlockWriter()
    has_begun = False
    async with aclosing(generated):
        async for item in generated:
            if not has_begun:
                has_begun = True
                yield types.MessageStart(reply.message())
            if isinstance(item, Chunk):
                for event in writer.push(item):
                    yield event
            else:
                for event in writer.close():
                    yield event
                yield reply.end(item, has_calls=writer.has_calls)
                yield types.MessageStop()


async def whole(generated: AsyncGenerator[Chunk | Summary], reply: Reply) -> types.MessageReply:
    """All of it as one message."""
    message = reply.message()
    events: list[types.BlockEvent] = []
    async with aclosing(stream(generated, reply)) as stream_events:
        async for event in stream_events:
            if isinstance(event, types.BlockEvent):
                events.append(event)
            elif isinstance(event, types.MessageDelta):
                message.stop_reason, message.stop_sequence = event.delta.stop_reason, event.delta.stop_sequence
                message.usage, message.truncated = event.usage, event.truncated
    message.content = content_of(events)
    return message


def content_of(events: Iterable[types.BlockEvent]) -> list[types.ReplyBlock]:
    """The blocks that events add up to."""
    blocks: list[types.ReplyBlock] = []
    texts: list[list[str]] = []
    for event in events:
        if isinstance(event, types.ContentBlockStart):
            blocks.append(msgspec.structs.replace(event.content_block))
            texts.append([])
        elif isinstance(event, types.ContentBlockDelta):
            _apply(event.delta, blocks[event.index], texts[event.index])
    for block, pieces in zip(blocks, texts, strict=True):
        if isinstance(block, types.TextBlock):
            block.text = "".join(pieces)
        elif isinstance(block, types.ThinkingBlock):
            block.thinking = "".join(pieces)
    return blocks


def _apply(delta: types.Delta, block: types.ReplyBlock, pieces: list[str]) -> None:
    if isinstance(delta, types.TextDelta):
        pieces.append(delta.text)
    elif isinstance(delta, types.ThinkingDelta):
        pieces.append(delta.thinking)
    elif isinstance(delta, types.SignatureDelta) and isinstance(block, types.ThinkingBlock):
        block.signature = delta.signature
    elif isinstance(delta, types.InputJSONDelta) and isinstance(block, types.ToolUseBlock):
        block.input = msgspec.json.decode(delta.partial_json)


def _usage(num_prompt_tokens: int, num_cached_tokens: int) -> types.Usage:
    return types.Usage(input_tokens=num_prompt_tokens - num_cached_tokens, cache_read_input_tokens=num_cached_tokens)
