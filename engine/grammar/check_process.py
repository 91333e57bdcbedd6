"""The process in which constraints are tried out: `python -P -m engine.grammar.check_process`. Started by `checker`.

Whatever a schema, an expression or a grammar does to the compiler (an endless loop, all memory, a stack that overflows
in native code), it does it here, where processor time, memory and stack are small, and not in a worker with somebody's
streams. One constraint a line of its input, as JSON; one line of output each: "" where it can be enforced, or the
sentence that says why not, after a first line that says that it is there. It ends when its input does, and dies of a
constraint that takes too much.
"""

from __future__ import annotations

import contextlib
import resource
import sys
import threading

import msgspec
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from engine.constraint import Constraint, ConstraintError
from engine.grammar.limits import CHECK_BYTES, CHECK_CPU_S, CHECK_STACK_BYTES, parser_limits
from engine.grammar.translate import check_grammar, explain, to_grammar

NUM_TRIED_BYTES = 4


class Bytes:
    """The smallest vocabulary: each byte, and an end."""

    eos_token_id = 256
    bos_token_id = None
    tokens = (*(bytes([value]) for value in range(256)), b"\xff<end>")
    special_token_ids = (256,)

    def __call__(self, text: bytes) -> list[int]:
        return list(text)


def main() -> int:
    """Answers constraints until the input ends."""
    with contextlib.suppress(ValueError, OSError):  # some systems have no such limit
        resource.setrlimit(resource.RLIMIT_AS, (CHECK_BYTES, CHECK_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    threading.stack_size(CHECK_STACK_BYTES)
    thread = threading.Thread(target=_serve, name="constraints")
    thread.start()
    thread.join()
    return 0


def _serve() -> None:
    vocabulary = LLTokenizer(TokenizerWrapper(Bytes()))
    _answer("")
    for line in sys.stdin.buffer:
        _allow_time()
        _answer(check(msgspec.json.decode(line, type=Constraint), vocabulary))


def _answer(sentence: str) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(sentence) + b"\n")
    sys.stdout.buffer.flush()


def check(constraint: Constraint, vocabulary: LLTokenizer) -> str:
    """The sentence that says why a constraint cannot be enforced, or ""."""
    try:
        grammar = to_grammar(constraint)
        check_grammar(constraint, grammar)
    except ConstraintError as error:
        return str(error)
    matcher = LLMatcher(vocabulary, grammar, log_level=0, limits=parser_limits())
    _begin_text(matcher)  # the first masks meet limits that compiling does not
    return explain(constraint, matcher.get_error()) if matcher.is_error() else ""


def _begin_text(matcher: LLMatcher) -> None:
    """Writes some bytes that are allowed, the greatest: those are brackets and not white space where it is JSON."""
    for _ in range(NUM_TRIED_BYTES):
        mask = int.from_bytes(matcher.compute_bitmask(), "little") & (1 << Bytes.eos_token_id) - 1
        if not mask or not matcher.consume_token(mask.bit_length() - 1):
            return


def _allow_time() -> None:
    """A signal ends the process when this constraint has taken its time."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    limit = int(usage.ru_utime + usage.ru_stime) + 1 + CHECK_CPU_S
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.getrlimit(resource.RLIMIT_CPU)[1]))


if __name__ == "__main__":
    sys.exit(main())
