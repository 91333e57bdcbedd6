"""talk(): the prompt loop of `hob run MODEL`.

Reads a line or a message in triple quotes, hands it to a slash command or to the conversation, and stays: an error is
printed and the loop goes on. A daemon that has ended meanwhile is started again, and the conversation goes on: it is
kept here. Ctrl-C stops an answer and returns to the prompt; Ctrl-D or /bye ends the loop.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from prompt_toolkit import PromptSession
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

from cli.connection import ensure_hob
from cli.conversation import Conversation
from cli.errors import CliError
from cli.history import LineHistory
from cli.render import waiting
from cli.slash import ASK_DAEMON, Bye, print_messages, run_command
from cli.terminal import keys_kept
from daemon import api
from modelfiles.settings import Settings

if TYPE_CHECKING:
    from cli.client import Client

PROMPT, CONTINUATION = ">>> ", "... "
PLACEHOLDER = FormattedText([("ansibrightblack", "Send a message (/? for help)")])
QUOTES = '"""'


def talk(
    client: Client,
    settings: Settings,
    request: api.ChatRequest,
    shown: api.ShowResponse,
    *,
    verbose: bool,
    wordwrap: bool,
    hide_thinking: bool,
) -> None:
    """Talk until the person leaves. `request` carries what the command line said: model, keep_alive, format and
    think.
    """
    conversation = Conversation(
        client,
        request.model or "",
        shown,
        keep_alive=request.keep_alive,
        format=request.format,
        think=request.think,
        verbose=verbose,
        wordwrap=wordwrap,
        hide_thinking=hide_thinking,
        history=settings.history,
    )
    with keys_kept(sys.stdin):
        with waiting():
            client.load(conversation.model, conversation.keep_alive)
        print_messages(shown)
        loop(conversation, settings, Reader(LineHistory(settings.history_file), settings.editor))


def loop(conversation: Conversation, settings: Settings, reader: Reader) -> None:
    """Read and answer until the person leaves."""
    client = conversation.client
    while True:
        try:
            text = reader.read(remember=conversation.history)
            if text.startswith("/"):
                if text.split(maxsplit=1)[0] in ASK_DAEMON:
                    ensure_hob(settings, client)
                run_command(conversation, text)
            elif text.strip():
                ensure_hob(settings, client)
                conversation.turn(text)
        except KeyboardInterrupt:
            sys.stdout.write("\n" if reader.busy else "Use Ctrl + d or /bye to exit.\n")
        except CliError as error:
            sys.stderr.write(f"Error: {error}\n")
        except (EOFError, Bye):
            return


class Reader:
    """Reads messages from the terminal."""

    def __init__(self, history: LineHistory, editor: str) -> None:
        self.busy = False
        """Whether what was read last is still being worked on."""
        self._history = history
        # prompt_toolkit looks for the editor in the environment and takes no argument for it.
        os.environ["VISUAL"] = editor
        self._session: PromptSession[str] = PromptSession(
            history=history,
            key_bindings=key_bindings(),
            prompt_continuation=CONTINUATION,
            enable_open_in_editor=True,
            complete_while_typing=False,
        )

    def read(self, *, remember: bool) -> str:
        """The next message: one line, or all lines between triple quotes.

        Raises:
            KeyboardInterrupt: Ctrl-C on an empty line.
            EOFError: Ctrl-D on an empty line.
        """
        self.busy = False
        self._history.enabled = remember
        text = self._session.prompt(PROMPT, placeholder=PLACEHOLDER)
        before, quotes, rest = opening(text)
        if quotes:
            lines = [rest]
            while not lines[-1].rstrip().endswith(QUOTES):
                lines.append(self._session.prompt(CONTINUATION))
            text = before + "\n".join(lines).rstrip().removesuffix(QUOTES).strip("\n")
        self.busy = True
        return text.rstrip("\n")


def opening(text: str) -> tuple[str, str, str]:
    """What stands before opening triple quotes, the quotes or nothing, and what follows.

    They open a message at the start of a line, and the system message after `/set system`.
    """
    for before in ("/set system ", ""):
        if text.startswith(before + QUOTES):
            return before, QUOTES, text[len(before) + len(QUOTES) :]
    return text, "", ""


def key_bindings() -> KeyBindings:
    """The keys that differ from readline's: Ctrl-J begins a line, Ctrl-G opens the editor, Ctrl-C clears the line."""
    keys = KeyBindings()

    @keys.add("c-j")
    def _new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("c-g")
    def _editor(event: KeyPressEvent) -> None:
        event.current_buffer.open_in_editor()

    @keys.add("c-c")
    def _interrupt(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt)

    return keys
