"""The events of a response, in OpenAI's order; the whole response is what its last event holds. Pure.

created, in_progress
  output_item.added
    reasoning:      reasoning_summary_part.added, reasoning_summary_text.delta..., .done, reasoning_summary_part.done
    message:        content_part.added, output_text.delta..., .done, content_part.done
    function_call:  function_call_arguments.delta, .done
  output_item.done
completed, incomplete or failed

Each name begins with "response.".
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing

from msgspec import UNSET
from msgspec.structs import replace

from daemon.api import ToolCall
from daemon.errors import describe
from daemon.generation import Summary
from daemon.openai import responses_api as api
from daemon.openai.chat import function_of
from daemon.openai.replies import token_logprobs
from daemon.output import Chunk

Events = Iterator[api.StreamEvent]


class ResponseWriter:
    """Turns chunks into events: an item ends where something else than its kind begins.

    Args:
        response: what is known of it before it begins; it is written on.
        key: what the ids of its items are made of.
        namespaces: of functions that are in one, by their names.
    """

    def __init__(self, response: api.Response, key: str, namespaces: Mapping[str, str]) -> None:
        self.response = response
        self._key = key
        self._namespaces = namespaces
        self._item: api.MessageItem | api.ReasoningItem | None = None
        """The one that is open."""
        self._pieces: list[str] = []
        """Its text so far."""
        self._count = 0

    def start(self) -> Events:
        """The first two events."""
        yield self._response_event("response.created")
        yield self._response_event("response.in_progress")

    def push(self, chunk: Chunk) -> Events:
        """A chunk's thought, text and calls, in this order."""
        if chunk.thinking:
            yield from self._think(chunk.thinking)
        if chunk.text or (chunk.logprobs and isinstance(self._item, api.MessageItem)):
            yield from self._say(chunk)
        for call in chunk.tool_calls:
            yield from self._call(call)

    def finish(self, summary: Summary) -> Events:
        """The text has ended."""
        is_whole = summary.done_reason != "length"
        if not self.response.output and self._item is None:
            yield from self._open_message()  # an answer has a message, though the model said nothing
        yield from self._close("completed" if is_whole else "incomplete")
        response = self.response
        response.usage = _usage(summary)
        response.status = "completed" if is_whole else "incomplete"
        if not is_whole:
            response.incomplete_details = api.IncompleteDetails(reason="max_output_tokens")
        if summary.is_truncated:
            response.truncated = True
        yield self._response_event(f"response.{response.status}")

    def fail(self, error: Exception) -> Events:
        """It has failed after it began."""
        yield from self._close("incomplete")
        self.response.status = "failed"
        self.response.error = api.ResponseError(code="server_error", message=describe(error)[1])
        yield self._response_event("response.failed")

    # ---- items

    def _think(self, text: str) -> Events:
        item = self._item
        if not isinstance(item, api.ReasoningItem):
            yield from self._close()
            item = self._item = api.ReasoningItem(id=self._id("rs"), status="in_progress", summary=[])
            yield self._item_event("response.output_item.added", item)
            item.summary.append(api.SummaryText(text=""))
            yield self._summary_part("response.reasoning_summary_part.added", item)
        self._pieces.append(text)
        yield api.SummaryDelta("response.reasoning_summary_text.delta", self._next(), item.id, self._index, 0, text)

    def _say(self, chunk: Chunk) -> Events:
        item = self._item
        if not isinstance(item, api.MessageItem):
            yield from self._open_message()
            item = self._item
        assert isinstance(item, api.MessageItem)
        logprobs = token_logprobs(chunk.logprobs)
        self._pieces.append(chunk.text)
        item.content[0].logprobs += logprobs
        yield api.TextDelta("response.output_text.delta", self._next(), item.id, self._index, 0, chunk.text, logprobs)

    def _open_message(self) -> Events:
        yield from self._close()
        item = self._item = api.MessageItem(id=self._id("msg"), status="in_progress", content=[])
        yield self._item_event("response.output_item.added", item)
        item.content.append(api.OutputText(text="", annotations=[], logprobs=[]))
        yield self._part("response.content_part.added", item)

    def _call(self, call: ToolCall) -> Events:
        yield from self._close()
        function = function_of(call)
        item = api.FunctionCallItem(
            id=self._id("fc"), status="in_progress", call_id=call.id, name=function.name, arguments=""
        )
        item.namespace = self._namespaces.get(function.name, UNSET)
        yield self._item_event("response.output_item.added", item)
        item.arguments, item.status = function.arguments, "completed"
        place = item.id, self._index
        yield api.ArgumentsDelta("response.function_call_arguments.delta", self._next(), *place, item.arguments)
        yield api.ArgumentsDone(
            "response.function_call_arguments.done", self._next(), *place, item.name, item.arguments
        )
        yield self._item_event("response.output_item.done", item)
        self.response.output.append(item)

    def _close(self, status: str = "completed") -> Events:
        """End the item that is open."""
        item = self._item
        if item is None:
            return
        place = item.id, self._index, 0
        if isinstance(item, api.ReasoningItem):
            text = item.summary[0].text = "".join(self._pieces)
            yield api.SummaryDone("response.reasoning_summary_text.done", self._next(), *place, text)
            yield self._summary_part("response.reasoning_summary_part.done", item)
        else:
            part = item.content[0]
            part.text = "".join(self._pieces)
            yield api.TextDone("response.output_text.done", self._next(), *place, part.text, part.logprobs)
            yield self._part("response.content_part.done", item)
        item.status = status
        yield self._item_event("response.output_item.done", item)
        self.response.output.append(item)
        self._item, self._pieces = None, []

    # ---- events: what they hold is written on, so each gets a copy of it

    @property
    def _index(self) -> int:
        return len(self.response.output)

    def _id(self, prefix: str) -> str:
        return f"{prefix}_{self._key}{self._index:04x}"

    def _next(self) -> int:
        self._count += 1
        return self._count - 1

    def _response_event(self, kind: str) -> api.StreamEvent:
        response = replace(self.response, output=list(self.response.output))
        return api.ResponseEvent(kind, self._next(), response)

    def _item_event(self, kind: str, item: api.OutputItem) -> api.StreamEvent:
        item = replace(item)
        if isinstance(item, api.MessageItem):
            item.content = list(item.content)
        elif isinstance(item, api.ReasoningItem):
            item.summary = list(item.summary)
        return api.ItemEvent(kind, self._next(), self._index, item)

    def _part(self, kind: str, item: api.MessageItem) -> api.StreamEvent:
        part = replace(item.content[0], logprobs=list(item.content[0].logprobs))
        return api.PartEvent(kind, self._next(), item.id, self._index, 0, part)

    def _summary_part(self, kind: str, item: api.ReasoningItem) -> api.StreamEvent:
        return api.SummaryPartEvent(kind, self._next(), item.id, self._index, 0, replace(item.summary[0]))


async def stream_response(
    generated: AsyncGenerator[Chunk | Summary], writer: ResponseWriter
) -> AsyncGenerator[api.StreamEvent]:
    """The events of a stream. An error before the first one is raised, a later one is the last event."""
    has_begun = False
    async with aclosing(generated):
        try:
            async for item in generated:
                if not has_begun:
                    has_begun = True
                    for event in writer.start():
                        yield event
                for event in writer.finish(item) if isinstance(item, Summary) else writer.push(item):
                    yield event
        except Exception as error:
            if not has_begun:
                raise
            for event in writer.fail(error):
                yield event


async def whole_response(generated: AsyncGenerator[Chunk | Summary], writer: ResponseWriter) -> api.Response:
    """All of it as one object."""
    async with aclosing(generated):
        async for item in generated:
            for _ in writer.finish(item) if isinstance(item, Summary) else writer.push(item):
                pass
    return writer.response


def _usage(summary: Summary) -> api.ResponseUsage:
    return api.ResponseUsage(
        input_tokens=summary.num_prompt_tokens,
        input_tokens_details=api.InputTokensDetails(summary.num_cached_tokens),
        output_tokens=summary.num_tokens,
        output_tokens_details=api.OutputTokensDetails(summary.num_thinking_tokens),
        total_tokens=summary.num_prompt_tokens + summary.num_tokens,
    )
