"""talk(): the prompt loop of `hob run MODEL`.

Reads a message, hands it to a slash command or to the conversation, and stays: an error is printed, and the next prompt
holds the message that was not answered. A daemon that has ended meanwhile is started again, and the conversation goes
on: it is kept here. Ctrl-C stops an answer and returns to the prompt; Ctrl-D or /bye ends the loop.
"""

from __future__ import annotations

import shutil
import sys
from textwrap import fill
from typing import TYPE_CHECKING

from cli.connection import ensure_hob
from cli.conversation import Conversation
from cli.errors import sentence_of
from cli.history import LineHistory
from cli.reader import Reader
from cli.render import Display, waiting
from cli.slash import ASK_DAEMON, Bye, is_command, print_messages, run_command
from cli.terminal import keys_kept
from daemon import api
from modelfiles.settings import Settings

if TYPE_CHECKING:
    from cli.client import Client


def talk(
    client: Client, settings: Settings, request: api.ChatRequest, shown: api.ShowResponse, display: Display
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
        display=display,
        history=settings.history,
    )
    with keys_kept(sys.stdin):
        with waiting():
            client.load(conversation.model, conversation.keep_alive)
        print_messages(conversation)
        loop(conversation, settings, Reader(LineHistory(settings.history_file), settings.editor, settings))


def loop(conversation: Conversation, settings: Settings, reader: Reader) -> None:
    """Read and answer until the person leaves."""
    unanswered = ""
    while True:
        try:
            text = reader.read(unanswered, remember=conversation.history)
        except KeyboardInterrupt:
            sys.stdout.write("Use Ctrl + d or /bye to exit.\n")
            continue
        except EOFError:
            return
        finally:
            unanswered = ""
        try:
            take(conversation, settings, text)
        except KeyboardInterrupt:
            sys.stdout.write("\n")
        except Bye:
            return
        except Exception as error:
            sys.stderr.write(wrapped(f"Error: {sentence_of(error)}") + "\n")
            unanswered = "" if is_command(text) else text


def wrapped(sentence: str) -> str:
    """The sentence broken between words. Addresses and paths stay whole, so that they can be copied."""
    return fill(sentence, shutil.get_terminal_size().columns - 1, break_long_words=False, break_on_hyphens=False)


def take(conversation: Conversation, settings: Settings, text: str) -> None:
    """Do what one message says, or have it answered."""
    if is_command(text):
        if text.split(maxsplit=1)[0] in ASK_DAEMON:
            ensure_hob(settings, conversation.client)
        run_command(conversation, text)
    elif text.strip():
        ensure_hob(settings, conversation.client)
        conversation.turn(text)
