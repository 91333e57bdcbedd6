"""OutputReader: from the engine's token ids to what a reply says: text, thoughts, tool calls, log-probabilities. Pure.

It chains the detokenizer (partial UTF-8, stop strings) and the parser of the model's family (thoughts, tool calls).
Each holds back what is not certain yet; `flush` lets go of it when the stream has ended.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from daemon.api import FunctionCall, Logprob, ToolCall, TopLogprob
from daemon.engines import TokenOutput
from daemon.parsers.reading import OutputParser, Reading
from daemon.parsers.tool_calls import ParsedCall
from engine.scheduling.batch import TokenLogprobs
from engine.text.detokenizer import Detokenizer
from engine.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Chunk:
    """What became certain with some tokens."""

    text: str = ""
    thinking: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    logprobs: tuple[Logprob, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.text or self.thinking or self.tool_calls)


def join_chunks(chunks: Sequence[Chunk]) -> Chunk:
    """What several chunks come to."""
    return Chunk(
        text="".join(chunk.text for chunk in chunks),
        thinking="".join(chunk.thinking for chunk in chunks),
        tool_calls=tuple(call for chunk in chunks for call in chunk.tool_calls),
        logprobs=tuple(entry for chunk in chunks for entry in chunk.logprobs),
    )


class OutputReader:
    """Reads one sequence's output.

    Args:
        prompt_ids: what the text continues.
        stop: strings that end the text and are not part of it.
        parser: takes thoughts and calls of tools out of the text; None leaves the text alone.
        shown_tags: what the parser must see even where the vocabulary has it as a control token.
        show_thinking: whether thoughts are handed out or dropped.
        new_call_id: an id for each call.
        max_calls: the output ends with so many calls, whatever the model would add.
        logprobs: whether log-probabilities were asked for.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_ids: Sequence[int],
        *,
        stop: Sequence[str],
        parser: OutputParser | None,
        shown_tags: Sequence[str] = (),
        show_thinking: bool,
        new_call_id: Callable[[], str],
        max_calls: int | None = None,
        logprobs: bool,
    ) -> None:
        self._tokenizer = tokenizer
        shown_ids = {token_id for tag in shown_tags if (token_id := tokenizer.token_id(tag)) is not None}
        self._detokenizer = Detokenizer(tokenizer, stop, prompt_ids, shown_ids)
        self._parser = parser
        self._show_thinking = show_thinking
        self._new_call_id = new_call_id
        self._max_calls = max_calls
        self._wants_logprobs = logprobs
        self._logprobs: list[Logprob] = []
        self._num_calls = 0
        self.token_ids: list[int] = []
        """All that was generated, the token that ended it included."""
        self.finish_reason: str | None = None
        """"stop" or "length" once the output has ended."""
        self.num_thinking_tokens = 0
        """Up to the step in which the thought ended."""

    @property
    def stop_string(self) -> str | None:
        """The stop string that ended the text, if one did."""
        return self._detokenizer.stopped

    def push(self, output: TokenOutput) -> Chunk:
        """Take the tokens of some steps. A chunk is false while it would say nothing."""
        ids = output.token_ids
        # The engine's "stop" means that the last token is an end-of-text token, which is not part of the text.
        num_visible = len(ids) - (output.finish_reason == "stop")
        text = ""
        for index, token_id in enumerate(ids):
            self.token_ids.append(token_id)
            if index == num_visible:
                break
            if self._wants_logprobs and index < len(output.logprobs):
                self._logprobs.append(self._logprob(token_id, output.logprobs[index]))
            text += self._detokenizer.push([token_id])
            if self._detokenizer.stopped is not None:
                self.finish_reason = "stop"
                break
        self.finish_reason = self.finish_reason or output.finish_reason
        return self._read(text)

    def flush(self) -> Chunk:
        """The output has ended; returns what was held back, with log-probabilities that no chunk carried yet."""
        text = "" if self._detokenizer.stopped is not None else self._detokenizer.flush()
        if self._parser is None:
            return Chunk(text, logprobs=self._take_logprobs())
        first, last = self._parser.push(text), self._parser.flush()
        chunk = self._chunk(Reading(first.thinking + last.thinking, first.text + last.text, first.calls + last.calls))
        return replace(chunk, logprobs=self._take_logprobs())

    def _read(self, text: str) -> Chunk:
        reading = self._parser.push(text) if self._parser is not None else Reading("", text, ())
        if reading.thinking:
            self.num_thinking_tokens = len(self.token_ids)
        chunk = self._chunk(reading)
        return replace(chunk, logprobs=self._take_logprobs()) if chunk else chunk

    def _chunk(self, reading: Reading) -> Chunk:
        thinking = reading.thinking if self._show_thinking else ""
        if self._num_calls == self._max_calls:  # what stands behind the last call is not part of the output
            return Chunk(thinking=thinking)
        calls = self._with_ids(reading.calls)
        if self._num_calls == self._max_calls:
            self.finish_reason = "stop"
        return Chunk(reading.text, thinking, calls)

    def _with_ids(self, parsed: Sequence[ParsedCall]) -> tuple[ToolCall, ...]:
        calls = []
        for call in parsed:
            if self._num_calls == self._max_calls:
                break
            function = FunctionCall(index=self._num_calls, name=call.name, arguments=call.arguments)
            calls.append(ToolCall(id=self._new_call_id(), function=function))
            self._num_calls += 1
        return tuple(calls)

    def _take_logprobs(self) -> tuple[Logprob, ...]:
        taken, self._logprobs = tuple(self._logprobs), []
        return taken

    def _logprob(self, token_id: int, logprobs: TokenLogprobs) -> Logprob:
        token = self._tokenizer.token_bytes(token_id)
        top = []
        for other_id, logprob in logprobs.top:
            other = self._tokenizer.token_bytes(other_id)
            top.append(TopLogprob(token=_text(other), logprob=logprob, bytes=list(other)))
        return Logprob(token=_text(token), logprob=logprobs.logprob, bytes=list(token), top_logprobs=top)


def _text(token: bytes) -> str:
    return token.decode("utf-8", "replace")
