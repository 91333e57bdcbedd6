"""How much a constraint may cost: compiling it, and each mask. Read by everything that compiles.

llguidance counts what its parser does and gives up where a limit is reached; it bounds neither the time of a
compilation nor, in every corner, its memory. Hence `check_process`, which tries a constraint out in a process that may
be killed.
"""

from __future__ import annotations

from llguidance import LLParserLimits

INITIAL_LEXER_FUEL = 1_000_000
"""For the regular expressions of a grammar; about 50,000 a millisecond."""
STEP_LEXER_FUEL = 200_000
"""For one mask; about 14,000 a millisecond."""
STEP_MAX_ITEMS = 50_000
"""Parser states of one mask; about 20,000 a millisecond."""
MAX_ROW_ITEMS = 4_000
"""Parser states behind one token: four for each property that an object may have and need not. A row of so many takes
about two milliseconds."""
MAX_LEXER_STATES = 50_000
"""Of one request over all its tokens; one or two kilobytes each."""
MAX_GRAMMAR_SIZE = 200_000
"""Symbols."""
MAX_CHOICES = 10_000

CHECK_CPU_S = 1
"""Processor time that a process may take to try one constraint out, rounded up to the next second."""
CHECK_BYTES = 1 << 30
"""Its memory."""
CHECK_STACK_BYTES = 1 << 21
"""Its stack, a quarter of what the worker's thread has: a grammar so deep that it overflows does so there."""


def parser_limits() -> LLParserLimits:
    """The limits, as llguidance takes them."""
    return LLParserLimits(
        initial_lexer_fuel=INITIAL_LEXER_FUEL,
        step_lexer_fuel=STEP_LEXER_FUEL,
        step_max_items=STEP_MAX_ITEMS,
        max_items_in_row=MAX_ROW_ITEMS,
        max_lexer_states=MAX_LEXER_STATES,
        max_grammar_size=MAX_GRAMMAR_SIZE,
        verbose_errors=False,
    )
