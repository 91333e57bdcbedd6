"""GrammarService: compiles constraints and fills masks, beside the steps. The worker's loop has one for its model.

    compile(constraint, on_done)    in a thread; what was compiled is kept, because programs repeat their schemas
    fill(rows) -> TokenMasks        in another, while the device runs the step whose tokens the masks choose from

llguidance leaves Python's lock alone while it works, and shares its work out among threads of its own.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from engine.constraint import Constraint, ConstraintError
from engine.scheduling.sequence import TokenConstraint
from modelfiles.source import ModelSource

if TYPE_CHECKING:
    from llguidance import LLExecutor, LLMatcher

    from engine.grammar.state import ConstraintState
    from engine.grammar.vocabulary import GrammarVocabulary, Words

NUM_COMPILERS = 2
NUM_COMPILED = 64
"""Grammars that are kept."""
MAX_FILLERS = 8

OnCompiled = Callable[["ConstraintState | ConstraintError"], None]
"""Called in a thread of the service's."""


class TokenMasks:
    """Masks of some rows of a step; see scheduling.batch.TokenMasks."""

    def __init__(self, rows: Seq[int], words: Future[Words]) -> None:
        self.rows = rows
        self._words = words

    def words(self) -> Words:
        """Waits for them: int32 [num_rows, ceil(vocab_size / 32)]."""
        error = self._words.exception()
        if error is not None and not isinstance(error, Exception):  # a panic in native code: the step fails, no more
            raise RuntimeError(f"the masks of a step could not be computed: {error}") from error
        return self._words.result()


class GrammarService:
    """See the module.

    Args:
        files: the model's, as in messages.Load.
        vocab_size: the model's.
    """

    def __init__(self, files: Mapping[str, str], vocab_size: int) -> None:
        self._files = dict(files)
        self._vocab_size = vocab_size
        self._lock = threading.Lock()
        self._vocabulary: GrammarVocabulary | None = None
        self._compiled: OrderedDict[tuple[str, str], LLMatcher] = OrderedDict()
        self._compilers = ThreadPoolExecutor(NUM_COMPILERS, thread_name_prefix="grammar")
        self._filler = ThreadPoolExecutor(1, thread_name_prefix="masks")
        self._executor: LLExecutor | None = None

    def compile(self, constraint: Constraint, on_done: OnCompiled) -> None:
        """Compiles in a thread, and calls `on_done` there."""
        self._compilers.submit(self._compile_for, constraint, on_done)

    def fill(self, rows: Seq[tuple[int, TokenConstraint]]) -> TokenMasks:
        """Starts to fill the masks of (row, state)."""
        states = [cast("ConstraintState", state) for _, state in rows]  # whoever asks has them from here
        return TokenMasks([row for row, _ in rows], self._filler.submit(self._fill, states))

    def close(self) -> None:
        """Ends the threads."""
        self._compilers.shutdown()
        self._filler.shutdown()

    # ---- the compilers' threads

    def _compile_for(self, constraint: Constraint, on_done: OnCompiled) -> None:
        try:
            state = self.state(constraint)
        except ConstraintError as error:
            on_done(error)
        except BaseException as error:  # a panic in native code is no Exception, and the model's files may be broken
            on_done(ConstraintError(f"the constraint could not be compiled: {error}"))
        else:
            on_done(state)

    def state(self, constraint: Constraint) -> ConstraintState:
        """A state at the beginning of its text.

        Raises:
            ConstraintError: it cannot be enforced.
        """
        # Not above: it takes 0.05 s to import, and most workers never need it.
        from engine.grammar.state import ConstraintState

        vocabulary = self._vocabulary_of_model()
        key = constraint.kind, constraint.value
        with self._lock:
            matcher = self._compiled.get(key)
            if matcher is not None:
                self._compiled.move_to_end(key)
        if matcher is None:
            matcher = self._compile(constraint, vocabulary)
            with self._lock:
                self._compiled[key] = matcher
                if len(self._compiled) > NUM_COMPILED:
                    self._compiled.popitem(last=False)
        return ConstraintState(matcher.deep_copy(), vocabulary, constraint.open_tag, constraint.close_tag)

    def _compile(self, constraint: Constraint, vocabulary: GrammarVocabulary) -> LLMatcher:
        from llguidance import LLMatcher  # as above

        from engine.grammar.limits import parser_limits
        from engine.grammar.translate import explain, to_grammar

        matcher = LLMatcher(vocabulary.rust, to_grammar(constraint), log_level=0, limits=parser_limits())
        if matcher.is_error():
            raise ConstraintError(explain(constraint, matcher.get_error()))
        return matcher

    def _vocabulary_of_model(self) -> GrammarVocabulary:
        from engine.grammar.vocabulary import GrammarVocabulary  # as above

        with self._lock:
            if self._vocabulary is None:
                source = ModelSource({name: Path(path) for name, path in self._files.items()})
                self._vocabulary = GrammarVocabulary.from_source(source, self._vocab_size)
            return self._vocabulary

    # ---- the filler's thread

    def _fill(self, states: Seq[ConstraintState]) -> Words:
        from llguidance import LLExecutor  # as above

        if self._executor is None:
            self._executor = LLExecutor(max(1, min(MAX_FILLERS, (os.cpu_count() or 1) // 2)))
        words = np.empty((len(states), -(-self._vocab_size // 32)), dtype=np.int32)
        matchers = [(matcher, row) for row, state in enumerate(states) if (matcher := state.matcher) is not None]
        if matchers:
            self._executor.unsafe_compute_mask_ptr(matchers, words.ctypes.data, words.shape[1] * 4, len(states))
        for row, state in enumerate(states):
            state.finish_mask(words[row])
        return words
