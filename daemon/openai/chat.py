"""Replies of /v1/chat/completions: the chunks of a stream, or one object. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
from msgspec import UNSET

from daemon.api import ToolCall
from daemon.generation import Summary
from daemon.openai import api
from daemon.openai.replies import Header, Totals, choice_logprobs
from daemon.output import Chunk, join_chunks


@dataclass(kw_only=True)
class ChatReplies:
    """Words of one chat.

    Args:
        wants_logprobs: whether log-probabilities were asked for.
        wants_usage: whether a stream ends with the usage.
    """

    header: Header
    wants_logprobs: bool
    wants_usage: bool
    totals: Totals
    _seen: dict[int, bool] = field(default_factory=dict)
    """Choices that have begun, and whether they call tools."""

    def chunk(self, index: int, chunk: Chunk) -> api.ChatCompletionChunk:
        """What is new in a choice."""
        delta = api.Delta(content=chunk.text or (None if chunk.tool_calls else ""))
        if index not in self._seen:
            delta.role = "assistant"
        if chunk.thinking:
            delta.reasoning = delta.reasoning_content = chunk.thinking
        if chunk.tool_calls:
            delta.tool_calls = [_call_delta(call) for call in chunk.tool_calls]
        self._seen[index] = self._seen.get(index, False) or bool(chunk.tool_calls)
        logprobs = choice_logprobs(chunk.logprobs, wanted=self.wants_logprobs)
        return self._chunk([api.ChunkChoice(index=index, delta=delta, logprobs=logprobs)])

    def end(self, index: int, summary: Summary) -> api.ChatCompletionChunk:
        """The last one of a choice."""
        delta = api.Delta() if index in self._seen else api.Delta(role="assistant", content="")
        reason = finish_reason(summary, has_calls=self._seen.get(index, False))
        chunk = self._chunk([api.ChunkChoice(index=index, delta=delta, finish_reason=reason)])
        if summary.is_truncated:
            chunk.truncated = True
        return chunk

    def usage(self) -> api.ChatCompletionChunk:
        """The last one of the stream."""
        chunk = self._chunk([])
        chunk.usage = self.totals.usage()
        return chunk

    def whole(self, chunks: dict[int, list[Chunk]]) -> api.ChatCompletion:
        """All choices, which have ended, as one object."""
        header, summaries = self.header, self.totals.summaries
        return api.ChatCompletion(
            id=header.id,
            created=header.created,
            model=header.model,
            system_fingerprint=header.fingerprint,
            choices=[self._choice(index, join_chunks(chunks.get(index, []))) for index in sorted(summaries)],
            usage=self.totals.usage(),
            truncated=self.totals.truncated,
        )

    def _choice(self, index: int, chunk: Chunk) -> api.Choice:
        message = api.ResponseMessage(content=chunk.text or (None if chunk.tool_calls else ""))
        if chunk.thinking:
            message.reasoning = message.reasoning_content = chunk.thinking
        if chunk.tool_calls:
            message.tool_calls = [api.ToolCall(id=call.id, function=function_of(call)) for call in chunk.tool_calls]
        return api.Choice(
            index=index,
            message=message,
            logprobs=choice_logprobs(chunk.logprobs, wanted=self.wants_logprobs),
            finish_reason=finish_reason(self.totals.summaries[index], has_calls=bool(chunk.tool_calls)),
        )

    def _chunk(self, choices: list[api.ChunkChoice]) -> api.ChatCompletionChunk:
        header = self.header
        return api.ChatCompletionChunk(
            id=header.id,
            created=header.created,
            model=header.model,
            system_fingerprint=header.fingerprint,
            choices=choices,
            usage=None if self.wants_usage else UNSET,
        )


def finish_reason(summary: Summary, *, has_calls: bool) -> str:
    """Why a choice ended. One that was cut off says so, whatever it calls: it may be another call that was cut."""
    return "tool_calls" if has_calls and summary.done_reason != "length" else summary.done_reason


def function_of(call: ToolCall) -> api.Function:
    """A call's function with its arguments as JSON."""
    return api.Function(name=call.function.name, arguments=msgspec.json.encode(call.function.arguments).decode())


def _call_delta(call: ToolCall) -> api.ToolCallDelta:
    return api.ToolCallDelta(index=call.function.index, id=call.id, function=function_of(call))
