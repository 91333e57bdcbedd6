"""From what was generated to the replies of /api/generate and /api/chat, as a stream or as a whole."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass

from daemon import api
from daemon.generation import Summary
from daemon.output import Chunk, join_chunks

NOTHING = Chunk()

Reply = api.GenerateResponse | api.ChatResponse


@dataclass(frozen=True)
class GenerateReplies:
    """Words of /api/generate."""

    model: str
    now: Callable[[], str]
    with_context: bool = True

    def chunk(self, chunk: Chunk) -> api.GenerateResponse:
        return api.GenerateResponse(
            model=self.model,
            created_at=self.now(),
            response=chunk.text,
            thinking=chunk.thinking,
            done=False,
            logprobs=list(chunk.logprobs),
        )

    def done(self, reason: str, summary: Summary | None = None, chunk: Chunk = NOTHING) -> api.GenerateResponse:
        reply = api.GenerateResponse(
            model=self.model,
            created_at=self.now(),
            response=chunk.text,
            thinking=chunk.thinking,
            done=True,
            done_reason=reason,
            logprobs=list(chunk.logprobs),
        )
        if summary is not None:
            _add_metrics(reply, summary)
            reply.context = summary.context_ids if self.with_context else []
        return reply

    def debug(self, text: str) -> api.GenerateResponse:
        reply = self.done("")
        reply.debug_info = api.DebugInfo(rendered_template=text)
        return reply


@dataclass(frozen=True)
class ChatReplies:
    """Words of /api/chat."""

    model: str
    now: Callable[[], str]

    def chunk(self, chunk: Chunk) -> api.ChatResponse:
        return self._reply(chunk, done=False)

    def done(self, reason: str, summary: Summary | None = None, chunk: Chunk = NOTHING) -> api.ChatResponse:
        reply = self._reply(chunk, done=True)
        reply.done_reason = reason
        if summary is not None:
            _add_metrics(reply, summary)
        return reply

    def debug(self, text: str) -> api.ChatResponse:
        reply = self.done("")
        reply.debug_info = api.DebugInfo(rendered_template=text)
        return reply

    def _reply(self, chunk: Chunk, *, done: bool) -> api.ChatResponse:
        message = api.Message(
            role="assistant", content=chunk.text, thinking=chunk.thinking, tool_calls=list(chunk.tool_calls)
        )
        return api.ChatResponse(
            model=self.model, created_at=self.now(), message=message, done=done, logprobs=list(chunk.logprobs)
        )


Replies = GenerateReplies | ChatReplies


def _add_metrics(reply: Reply, summary: Summary) -> None:
    reply.truncated = summary.is_truncated
    reply.total_duration = summary.total_ns
    reply.load_duration = summary.load_ns
    reply.prompt_eval_count = summary.num_prompt_tokens
    reply.prompt_cached_count = summary.num_cached_tokens
    reply.prompt_eval_duration = summary.prompt_ns
    reply.eval_count = summary.num_tokens
    reply.eval_duration = summary.generation_ns


async def stream(generated: AsyncGenerator[Chunk | Summary], replies: Replies) -> AsyncGenerator[Reply]:
    """One reply a chunk, and one with the metrics and without text: some clients drop the text of the last one."""
    async with aclosing(generated):
        async for item in generated:
            if isinstance(item, Summary):
                yield replies.done(item.done_reason, item)
            elif item or item.logprobs:
                yield replies.chunk(item)


async def whole(generated: AsyncGenerator[Chunk | Summary], replies: Replies) -> Reply:
    """All of it as one reply."""
    chunks: list[Chunk] = []
    async with aclosing(generated):
        async for item in generated:
            if isinstance(item, Summary):
                return replies.done(item.done_reason, item, join_chunks(chunks))
            chunks.append(item)
    raise AssertionError("a generation ends with a Summary or an exception")
