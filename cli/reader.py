"""Reader: messages from the keyboard, with the keys of a shell, history and completion.

A message is a line, what was pasted, or all lines between triple quotes. prompt_toolkit does the editing; here is what
makes a message, and the keys that differ from a shell's.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable

from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.filters import Condition, is_searching
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.input.typeahead import get_typeahead, store_typeahead
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.key_binding.bindings.named_commands import get_by_name
from prompt_toolkit.shortcuts import CompleteStyle

from cli.completion import model_names
from cli.history import LineHistory
from cli.slash import word_choices
from cli.terminal import keys_waiting
from modelfiles.settings import Settings

PROMPT, CONTINUATION = ">>> ", "... "
PLACEHOLDER, SHORT_PLACEHOLDER = "Send a message (/? for help)", "Send a message"
QUOTES = '"""'
OPENING = re.compile(r'(/set\s+system\s+)?"""')


class Reader:
    """Reads messages from the terminal."""

    def __init__(self, history: LineHistory, editor: str, settings: Settings) -> None:
        self._history = history
        # prompt_toolkit looks for the editor in the environment and takes no argument for it.
        os.environ["VISUAL"] = editor
        self._session: PromptSession[str] = PromptSession(
            history=history,
            key_bindings=key_bindings(),
            prompt_continuation=CONTINUATION,
            completer=CommandCompleter(settings),
            enable_open_in_editor=True,
            enable_suspend=True,
            complete_while_typing=False,
            complete_style=CompleteStyle.READLINE_LIKE,
        )

    def read(self, default: str = "", *, remember: bool) -> str:
        """The next message.

        Args:
            default: what stands there to be sent again or changed, unless something was typed ahead.

        Raises:
            KeyboardInterrupt: Ctrl-C on an empty line.
            EOFError: Ctrl-D on an empty line.
        """
        self._history.enabled = remember
        text = self._session.prompt(PROMPT, placeholder=placeholder, default="" if self._typed_ahead() else default)
        return message(text)

    def _typed_ahead(self) -> bool:
        keys = get_typeahead(self._session.input)
        store_typeahead(self._session.input, keys)
        return bool(keys) or keys_waiting(sys.stdin)


def placeholder() -> FormattedText:
    """What stands on an empty line, as far as the terminal is wide enough."""
    fits = get_app().output.get_size().columns > len(PROMPT + PLACEHOLDER)
    return FormattedText([("ansibrightblack", PLACEHOLDER if fits else SHORT_PLACEHOLDER)])


def is_open(text: str) -> bool:
    """Whether a message that began with triple quotes lacks those that end it."""
    found = OPENING.match(text)
    return found is not None and not text[found.end() :].rstrip().endswith(QUOTES)


def message(text: str) -> str:
    """What was typed, without the triple quotes around it. They count at the start of a message, and at that of the
    system message behind `/set system`.
    """
    found = OPENING.match(text)
    if found is None:
        return text.rstrip("\n")
    return (found.group(1) or "") + text[found.end() :].rstrip().removesuffix(QUOTES).strip("\n")


def key_bindings() -> KeyBindings:
    """The keys that differ from readline's: Enter within quotes and Ctrl-J begin a line, Ctrl-G opens the editor, and
    Ctrl-C clears the message.
    """
    keys = KeyBindings()

    @keys.add("enter", filter=Condition(lambda: is_open(get_app().current_buffer.text)))
    @keys.add("c-j")
    def _new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("c-g", filter=~is_searching)
    def _editor(event: KeyPressEvent) -> None:
        event.current_buffer.open_in_editor()

    @keys.add("c-c", filter=~is_searching)
    def _interrupt(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.text:
            # Not reset(), after which Ctrl-R finds nothing until the history is loaded anew.
            get_by_name("end-of-history").call(event)
            buffer.text = ""
        else:
            event.app.exit(exception=KeyboardInterrupt)

    return keys


class CommandCompleter(Completer):
    """Tab: the commands, what may follow them, and the names of models."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        """The words that the one before the cursor could become."""
        before = document.text_before_cursor
        *words, begun = before.split(" ")
        if not before.startswith("/") or "\n" in before:
            return
        choices = word_choices([word for word in words if word], lambda: model_names(self._settings, begun))
        found = [word for word in choices if word.startswith(begun)]
        for word in found:
            yield Completion(word + " " * (len(found) == 1), start_position=-len(begun))
