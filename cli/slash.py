"""The slash commands of the prompt loop: a table from the first word to a function over the Conversation.

A command that succeeds answers on stdout; help and what the person got wrong go to stderr. None of them ends the loop
but /bye: errors of the daemon are caught by the loop and shown there.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from cli.conversation import Conversation
from cli.errors import NotFound, ServerError
from cli.models import list_table
from cli.run import THINK_LEVELS
from cli.show import PARTS, part_text, sections
from cli.table import table
from daemon import api
from modelfiles.parameters import PARAMETERS, ParameterError, parse_parameter


class Bye(Exception):
    """The person wants to leave the loop."""


def run_command(talk: Conversation, line: str) -> None:
    """Do what a line that begins with a slash says.

    Raises:
        Bye: the loop is to end.
        ServerError, DaemonUnreachable: the daemon could not do it.
    """
    word, _, rest = line.partition(" ")
    command = COMMANDS.get(word)
    if command is None:
        say(f"Unknown command '{word}'. Type /? for help")
    else:
        command(talk, rest.strip())


def say(text: str) -> None:
    sys.stdout.write(text + "\n")


def explain(text: str) -> None:
    sys.stderr.write(text + "\n")


# ---- /set


def set_(talk: Conversation, rest: str) -> None:
    name, _, value = rest.partition(" ")
    setter = SETTERS.get(name)
    if setter is None:
        if name:
            say(f"Unknown command '/set {name}'. Type /? for help")
        else:
            explain(SET_USAGE)
    else:
        setter(talk, value.strip())


def set_parameter(talk: Conversation, rest: str) -> None:
    name, _, text = rest.partition(" ")
    values = text.split()
    if not values:
        explain(PARAMETER_USAGE)
        return
    try:
        # `stop` is a list, and the only parameter that takes several values.
        parsed = [parse_parameter(name, value) for value in (values if name == "stop" else [" ".join(values)])]
    except ParameterError as error:
        say(f"Couldn't set parameter: {error}")
        return
    talk.options[name] = [item for value in parsed for item in (value if isinstance(value, list) else [value])]
    if name != "stop":
        talk.options[name] = talk.options[name][0]
    say(f"Set parameter '{name}' to '{', '.join(values)}'")


def set_system(talk: Conversation, text: str) -> None:
    if not text:
        explain(SET_USAGE)
        return
    talk.set_system(text)
    say("Set system message.")


def set_format(_: Conversation, __: str) -> None:
    # The daemon's sentence: it would come with every message otherwise.
    say("constrained output (format) is not available in this version of Hob")


def set_noformat(talk: Conversation, _: str) -> None:
    talk.format = None
    say("Disabled format.")


def set_think(talk: Conversation, level: str) -> None:
    if level not in ("", *THINK_LEVELS):
        say(f"Invalid level '{level}'. Use '/set think' or one of {', '.join(THINK_LEVELS)}")
        return
    if "thinking" not in talk.shown.capabilities:
        explain(f"warning: model '{talk.model}' does not support thinking")
    talk.think = level or True
    say(f"Set 'think' mode to '{level}'." if level else "Set 'think' mode.")


def set_nothink(talk: Conversation, _: str) -> None:
    # A model that cannot think refuses to be told not to only in its own words; nothing set is the same for it.
    talk.think = False if "thinking" in talk.shown.capabilities else None
    say("Set 'nothink' mode.")


def switch(attribute: str, value: bool, spoken: str) -> Callable[[Conversation, str], None]:
    """A setter of one boolean of the Conversation."""

    def set_it(talk: Conversation, _: str) -> None:
        setattr(talk, attribute, value)
        if spoken:
            say(spoken)

    return set_it


# ---- the other commands


def show(talk: Conversation, part: str) -> None:
    shown = talk.shown
    if part == "info":
        sys.stdout.write(sections(shown))
    elif part == "parameters":
        show_parameters(talk)
    elif part == "system" and talk.system:
        say(talk.system)
    elif part in PARTS:
        text = part_text(shown, part).rstrip("\n")
        say(text or f"No {part if part != 'system' else 'system message'} was specified for this model.")
    else:
        explain(SHOW_USAGE)


def show_parameters(talk: Conversation) -> None:
    if not talk.shown.parameters and not talk.options:
        say("No parameters were specified for this model.")
    if talk.shown.parameters:
        rows = [["", *line.split(maxsplit=1)] for line in talk.shown.parameters.splitlines() if line.strip()]
        say("Model defined parameters:")
        say(table(rows))
    if talk.options:
        say("User defined parameters:")
        say(table([["", *row] for row in parameter_rows(talk.options)]))


def parameter_rows(options: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Name and value as in a Modelfile: a line for each text of a list, which is in quotes."""
    for name, value in sorted(options.items()):
        for item in value if isinstance(value, list) else [value]:
            yield name, f'"{item}"' if isinstance(item, str) else str(item)


def load(talk: Conversation, model: str) -> None:
    if not model:
        explain("Usage:\n  /load <modelname>")
        return
    say(f"Loading model '{model}'")
    try:
        shown = talk.client.show(model)
        talk.client.load(model, talk.keep_alive)
    except NotFound:
        say(f"Couldn't find model '{model}'")
        return
    talk.change_model(model, shown)
    print_messages(shown)


def save(talk: Conversation, name: str) -> None:
    if not name:
        explain("Usage:\n  /save <modelname>")
        return
    stored = [api.RequestMessage(role=old.role, content=old.content) for old in talk.shown.messages]
    # A system message that was set is a field of its own in the new model, not a part of its example conversation.
    said = [message for message in talk.messages if message.role != "system"]
    request = api.CreateRequest(
        model=name,
        from_=talk.model,
        system=talk.system or None,
        parameters=talk.options or None,
        messages=[*stored, *said] or None,
    )
    try:
        for _ in talk.client.create(request):
            pass
    except ServerError as error:
        if error.status != 400 or "name" not in str(error):
            raise
        say(f"error: The model name '{name}' is invalid")
        return
    say(f"Created new model '{name}'")


def clear(talk: Conversation, _: str) -> None:
    talk.clear()
    say("Cleared session context")


def list_models(talk: Conversation, prefix: str) -> None:
    sys.stdout.write(list_table(talk.client.list_models(), prefix, datetime.now(UTC)))


def help_(_: Conversation, topic: str) -> None:
    explain({"set": SET_USAGE, "show": SHOW_USAGE, "shortcuts": SHORTCUTS}.get(topic.lstrip("/"), USAGE))


def bye(_: Conversation, __: str) -> None:
    raise Bye


def print_messages(shown: api.ShowResponse) -> None:
    """The conversation that a model brings along, the way it would have looked."""
    for message in shown.messages:
        if message.role == "user":
            say(f">>> {message.content}")
        elif message.role == "assistant":
            say(f"{message.content}\n")


USAGE = """\
Available Commands:
  /set            Set session variables
  /show           Show model information
  /load <model>   Load a session or model
  /save <model>   Save your current session
  /clear          Clear session context
  /list [prefix]  List models
  /bye            Exit
  /?, /help       Help for a command
  /? shortcuts    Help for keyboard shortcuts

Use \"\"\" to begin a multi-line message."""

SET_USAGE = """\
Available Commands:
  /set parameter ...     Set a parameter
  /set system <string>   Set system message
  /set history           Enable history
  /set nohistory         Disable history
  /set wordwrap          Enable wordwrap
  /set nowordwrap        Disable wordwrap
  /set format json       Not available in this version
  /set noformat          Disable formatting
  /set verbose           Show LLM stats
  /set quiet             Disable LLM stats
  /set think [level]     Enable thinking
  /set nothink           Disable thinking"""

SHOW_USAGE = """\
Available Commands:
  /show info         Show details for this model
  /show license      Show model license
  /show modelfile    Show Modelfile for this model
  /show parameters   Show parameters for this model
  /show system       Show system message
  /show template     Show prompt template"""

SHORTCUTS = """\
Available keyboard shortcuts:
  Ctrl + a            Move to the beginning of the line (Home)
  Ctrl + e            Move to the end of the line (End)
   Alt + b            Move back (left) one word
   Alt + f            Move forward (right) one word
  Ctrl + k            Delete the sentence after the cursor
  Ctrl + u            Delete the sentence before the cursor
  Ctrl + w            Delete the word before the cursor
  Ctrl + j            Begin a new line
  Ctrl + g            Edit the message in an editor
  Ctrl + l            Clear the screen
  Ctrl + c            Stop the model from responding
  Ctrl + d            Exit (/bye)"""

PARAMETER_USAGE = "Available Parameters:\n" + "".join(
    f"  /set parameter {name} <{'string> <string> ...' if name == 'stop' else 'value>'}\n" for name in PARAMETERS
)

SETTERS: dict[str, Callable[[Conversation, str], None]] = {
    "parameter": set_parameter,
    "system": set_system,
    "format": set_format,
    "noformat": set_noformat,
    "think": set_think,
    "nothink": set_nothink,
    "history": switch("history", True, ""),
    "nohistory": switch("history", False, ""),
    "wordwrap": switch("wordwrap", True, "Set 'wordwrap' mode."),
    "nowordwrap": switch("wordwrap", False, "Set 'nowordwrap' mode."),
    "verbose": switch("verbose", True, "Set 'verbose' mode."),
    "quiet": switch("verbose", False, "Set 'quiet' mode."),
}

COMMANDS: dict[str, Callable[[Conversation, str], None]] = {
    "/set": set_,
    "/show": show,
    "/load": load,
    "/save": save,
    "/clear": clear,
    "/list": list_models,
    "/help": help_,
    "/?": help_,
    "/bye": bye,
    "/exit": bye,
}

ASK_DAEMON = frozenset({"/load", "/save", "/list"})
"""The commands that need a daemon."""
