"""Conversation: what the prompt loop remembers between two lines, and how one turn changes it.

The loop (cli/repl.py) reads lines, the slash commands (cli/slash.py) change settings here, and `turn` asks the daemon.
Nothing in here reads the keyboard.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cli.errors import CliError, Incomplete
from cli.render import Answer, Display, timings, tool_call, waiting
from daemon import api

if TYPE_CHECKING:
    from cli.client import Client


@dataclass
class Conversation:
    """One talk with one model."""

    client: Client
    model: str
    shown: api.ShowResponse
    """What the daemon says about `model`."""
    keep_alive: api.KeepAlive | None = None
    format: Any = None
    think: api.Think | None = None
    display: Display = field(default_factory=Display)
    history: bool = True
    """Whether the lines are remembered for the next run."""
    system: str = ""
    """Set with /set system; empty leaves the model's own."""
    options: dict[str, Any] = field(default_factory=dict)
    """Set with /set parameter."""
    messages: list[api.RequestMessage] = field(default_factory=list)
    """The session's messages. The model's own stored ones are put before them by the daemon."""

    def set_system(self, text: str) -> None:
        """A system message from here on; it replaces one that nothing was said under."""
        self.system = text
        if self.messages and self.messages[-1].role == "system":
            self.messages.pop()
        self.messages.append(api.RequestMessage(role="system", content=text))

    def clear(self) -> None:
        """Forget what was said, but not the system message of the session."""
        self.messages = [api.RequestMessage(role="system", content=self.system)] if self.system else []

    def change_model(self, model: str, shown: api.ShowResponse) -> None:
        """Go on with another model, from the start: with its system message and its messages, which the daemon adds."""
        self.model, self.shown, self.messages, self.system = model, shown, [], ""
        if "thinking" not in shown.capabilities:  # it would refuse every message
            self.think = None

    def turn(self, text: str) -> None:
        """Say something and print the answer. Ctrl-C stops the answer and keeps what there was of it.

        Raises:
            ServerError, DaemonUnreachable: the conversation is then as if nothing had been said.
        """
        asked = api.RequestMessage(role="user", content=text)
        request = api.ChatRequest(
            model=self.model,
            messages=[*self.messages, asked],
            keep_alive=self.keep_alive,
            format=self.format,
            think=self.think,
            options=self.options or None,
        )
        said = self._answer(request)
        self.messages += [asked, said] if said.content or said.thinking else []

    def _answer(self, request: api.ChatRequest) -> api.RequestMessage:
        """Print the answer; the message that it makes, complete or not."""
        out = Answer(sys.stdout, self.display, markdown=self.format is None)
        chunks = self.client.chat(request)
        content: list[str] = []
        thinking: list[str] = []
        last = None
        try:
            with waiting():
                chunk = next(chunks, None)
            while chunk is not None:
                content.append(chunk.message.content)
                thinking.append(chunk.message.thinking)
                out.thinking(chunk.message.thinking)
                out.content(chunk.message.content)
                for call in chunk.message.tool_calls:
                    out.note(tool_call(call.function.name, call.function.arguments))
                last, chunk = chunk, next(chunks, None)
            if last is None or not last.done:
                raise Incomplete
            out.end()
        except KeyboardInterrupt:
            # Closing the stream is what tells the daemon to stop; the generator would otherwise end when it is
            # collected.
            chunks.close()
            out.break_off()
            last = None
        except CliError:
            out.break_off()
            raise
        if self.display.verbose and last is not None:
            sys.stderr.write(timings(last))
        return api.RequestMessage(role="assistant", content="".join(content), thinking="".join(thinking) or None)
