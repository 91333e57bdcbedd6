"""ConstraintState: how far one request's text is in its grammar, and which tokens may come next.

Four phases. A model that may think but has not begun (OPENING) opens a thought or begins its answer; within a thought
(THINKING) anything may come but an end; behind it (GAP) some white space may come before the answer; the answer
(ANSWER) is the grammar's. The state belongs to the sequence and knows tokens only, so batching, preemption and context
shifts do not concern it.
"""

from __future__ import annotations

from enum import Enum, auto

from llguidance import LLMatcher

from engine.grammar.thought import continues_opening, longest_match
from engine.grammar.vocabulary import GrammarVocabulary, Words

MAX_WHITE_BYTES = 8
"""White space before an answer, after which a model that writes nothing else must begin."""


class _Phase(Enum):
    OPENING = auto()
    THINKING = auto()
    GAP = auto()
    ANSWER = auto()


class ConstraintState:
    """See scheduling.sequence.TokenConstraint, which it is.

    Args:
        matcher: at the grammar's beginning, and this state's own from now on.
        open_tag, close_tag: as in Constraint.
    """

    def __init__(self, matcher: LLMatcher, vocabulary: GrammarVocabulary, open_tag: str, close_tag: str) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary
        self._open_tag, self._close_tag = open_tag.encode(), close_tag.encode()
        self._held = b""
        """The beginning of the tag that may be coming."""
        self._num_white_bytes = 0
        self._fits_grammar = True
        """Whether what was written in OPENING may be the answer, too."""
        self._phase = _Phase.ANSWER
        if close_tag:
            self._phase = _Phase.OPENING if open_tag else _Phase.THINKING
        self.end_token_id = vocabulary.end_ids[0]
        self.is_over = False
        self.error: str | None = None

    # ---- tokens

    def accept(self, token_id: int) -> None:
        """Takes the next token of the text. Sets `is_over` where nothing but an end can follow, or `error`."""
        if self._matcher.is_error():
            self._fail()
            return
        if self._phase is _Phase.ANSWER:
            self._answer(token_id)
            return
        data = self._vocabulary.token_bytes[token_id]
        if self._phase is _Phase.THINKING:
            self._think(data)
        elif self._skips_white_space and data.isspace():
            self._num_white_bytes += len(data)
        elif self._phase is _Phase.GAP or data.isspace() or not continues_opening(self._open_tag, self._held, data):
            self._phase = _Phase.ANSWER
            self._answer(token_id)
        else:
            self._open(token_id, data)

    def _open(self, token_id: int, data: bytes) -> None:
        self._held = (self._held + data).lstrip()
        if self._held.startswith(self._open_tag):
            rest, self._held = self._held[len(self._open_tag) :], b""
            self._phase = _Phase.THINKING
            self._matcher.reset()
            self._fits_grammar = True
            self._think(rest)
        elif self._fits_grammar:
            self._fits_grammar = self._matcher.try_consume_tokens([token_id]) == 1

    def _think(self, data: bytes) -> None:
        before, tag, _ = (self._held + data).partition(self._close_tag)
        if tag:
            self._phase, self._held, self._num_white_bytes = _Phase.GAP, b"", 0
        else:
            self._held = longest_match(self._close_tag, before)

    def _answer(self, token_id: int) -> None:
        if not self._fits_grammar or not self._matcher.consume_token(token_id):
            self._fail()
        elif self._matcher.is_stopped():
            self.is_over = True

    def _fail(self) -> None:
        reason = " ".join(self._matcher.get_error().split("<state>")[0].split())[:200]
        self.error = (
            "the constraint on the answer could not be kept up: "
            f"{reason or 'no token fits'}; simplify the schema, expression or grammar"
        )

    @property
    def _skips_white_space(self) -> bool:
        """Whether white space that comes now is none of the answer's."""
        return not self._held and self._num_white_bytes < MAX_WHITE_BYTES

    # ---- masks

    @property
    def matcher(self) -> LLMatcher | None:
        """Whose mask comes first; None where the grammar has no say."""
        needs_grammar = self._phase in (_Phase.ANSWER, _Phase.GAP) or (
            self._phase is _Phase.OPENING and self._fits_grammar
        )
        return self._matcher if needs_grammar else None

    def finish_mask(self, words: Words) -> None:
        """Completes the mask of the next token in place.

        Args:
            words: what the grammar allows if there is a `matcher`, or else anything.
        """
        if self._phase is _Phase.ANSWER:
            return
        if self._phase is _Phase.THINKING:
            words[:] = self._vocabulary.thinking_words(self._close_tag, self._held)
            return
        white = self._vocabulary.white_words()
        others = white if self._skips_white_space else white & 0
        if self._phase is _Phase.OPENING:
            others = others | (self._vocabulary.opening_words(self._open_tag, self._held) & ~white)
        if self.matcher is None:
            words[:] = others
        else:
            words |= others
