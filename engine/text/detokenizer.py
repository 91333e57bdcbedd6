"""Detokenizer: a stream of token ids -> a stream of text, for one answer.

It holds back what is not certain yet: bytes that are the start of a character, and text that may turn out to be the
start of a stop string. Everything it lets out is a prefix of the answer's full text, which is what Tokenizer.decode
gives for all ids together, cut at the first stop string. Work is constant for each token, whatever the answer's length.

A pure state machine: the daemon pushes the ids of each step and sends on what comes out.
"""

from __future__ import annotations

import codecs
from collections.abc import Collection, Sequence

from engine.text.stop_strings import StopMatcher
from engine.text.tokenizer import Tokenizer


class Detokenizer:
    """Ids of one answer -> its text."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop: Sequence[str] = (),
        prompt_ids: Sequence[int] = (),
        shown_ids: Collection[int] = (),
    ) -> None:
        """
        Args:
            stop: strings that end the answer; empty ones count for nothing.
            prompt_ids: what the answer continues. A SentencePiece vocabulary drops the space of a text's first word;
                after a prompt that has text, an answer's first word is not the text's first.
            shown_ids: special tokens that are printed by their names, for a parser that reads them.
        """
        self.stopped: str | None = None
        """The stop string that ended the answer; what is pushed afterwards is dropped."""
        self._tokenizer = tokenizer
        self._matcher = StopMatcher(stop)
        self._shown_ids = shown_ids
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        continues_text = any(token_id not in tokenizer.special_ids for token_id in prompt_ids)
        self._drops_space = tokenizer.strips_leading_space and not continues_text

    def push(self, ids: Sequence[int]) -> str:
        """Text that has become certain with these ids; often "".

        Raises:
            TokenizerError: an id lies outside the vocabulary.
        """
        text = []
        for token_id in ids:
            if self.stopped is not None:
                break
            text.append(
                self._push_special(token_id) if token_id in self._tokenizer.special_ids else self._push(token_id)
            )
        return "".join(text)

    def flush(self) -> str:
        """The rest, at the end of an answer: held text was no stop string, cut characters become U+FFFD."""
        if self.stopped is not None:
            return ""
        text = self._feed(self._decoder.decode(b"", final=True))
        return text if self.stopped is not None else text + self._matcher.flush()

    def _push(self, token_id: int) -> str:
        data = self._tokenizer.token_bytes(token_id)
        if self._drops_space and data:
            self._drops_space = False
            data = data.removeprefix(b" ")
        return self._feed(self._decoder.decode(data))

    def _push_special(self, token_id: int) -> str:
        """A special token is no text, but its name may be a stop string: "<|user|>" in a Modelfile means the token."""
        name = self._tokenizer.token_text(token_id)
        if name not in self._matcher.strings:
            return self._feed(self._decoder.decode(name.encode())) if token_id in self._shown_ids else ""
        text = self.flush()
        self.stopped = self.stopped or name
        return text

    def _feed(self, text: str) -> str:
        text, self.stopped = self._matcher.feed(text)
        return text
