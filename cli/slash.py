"""The slash commands of the prompt loop: a table from the first word to a function over the Conversation.

A command that succeeds answers on stdout; help and what the person got wrong go to stderr. None of them ends the loop
but /bye: errors of the daemon are caught by the loop and shown there.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from cli.conversation import Conversation
from cli.errors import NotFound, ServerError, UsageError
from cli.models import list_table
from cli.render import Answer
from cli.run import THINK_LEVELS, answer_format
from cli.show import PARTS, part_text, sections
from cli.slash_help import HELP, PARAMETER_USAGE, SET_USAGE, SHOW_USAGE, USAGE
from cli.table import table
from daemon import api
from modelfiles.parameters import PARAMETERS, ParameterError, parse_parameter

COMMAND = re.compile(r"/(\?|[a-z]+)?(?:\s|$)", re.IGNORECASE)


class Bye(Exception):
    """The person wants to leave the loop."""


def run_command(talk: Conversation, line: str) -> None:
    """Do what a line that begins with a slash says.

    Raises:
        Bye: the loop is to end.
        ServerError, DaemonUnreachable: the daemon could not do it.
    """
    word, *rest = line.split(maxsplit=1)
    command = COMMANDS.get(word)
    if command is None:
        say(f"Unknown command '{word}'. Type /? for help")
    else:
        command(talk, rest[0].strip() if rest else "")


def is_command(line: str) -> bool:
    """Whether a line that was typed is for this module. A path or a comment that begins with a slash is a message."""
    return COMMAND.match(line) is not None


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
    values = stop_strings(text) if name == "stop" else text.split()
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


def stop_strings(text: str) -> list[str]:
    """Words, or what stands in quotes; an apostrophe that nothing closes is one."""
    try:
        return shlex.split(text)
    except ValueError:
        return text.split()


def set_system(talk: Conversation, text: str) -> None:
    if not text:
        explain(SET_USAGE)
        return
    talk.set_system(text)
    say("Set system message.")


def set_format(talk: Conversation, text: str) -> None:
    try:
        wanted = answer_format(text)
    except UsageError:
        wanted = None
    if wanted is None:
        say("Invalid or missing format. For 'json' mode use '/set format json'; a JSON schema is a format, too.")
        return
    talk.format = wanted
    say("Set format to 'json' mode." if wanted == "json" else "Set format to a JSON schema.")


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


def set_history(talk: Conversation, _: str) -> None:
    talk.history = True


def set_nohistory(talk: Conversation, _: str) -> None:
    talk.history = False


def switch(attribute: str, value: bool, spoken: str) -> Callable[[Conversation, str], None]:
    """A setter of one boolean of the Display."""

    def set_it(talk: Conversation, _: str) -> None:
        setattr(talk.display, attribute, value)
        say(f"Set '{spoken}' mode.")

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
    print_messages(talk)


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
    if canonical(name) == canonical(talk.model):
        # It has brought the conversation along since: what was said is among the messages that the daemon adds.
        talk.change_model(name, talk.client.show(name))


def canonical(name: str) -> str:
    """One spelling of the names that mean one model."""
    return name.lower().removesuffix(":latest")


def clear(talk: Conversation, _: str) -> None:
    talk.clear()
    say("Cleared session context")


def list_models(talk: Conversation, prefix: str) -> None:
    sys.stdout.write(list_table(talk.client.list_models(), prefix, datetime.now(UTC)))


def help_(_: Conversation, topic: str) -> None:
    explain(HELP.get(topic.lstrip("/"), USAGE))


def bye(_: Conversation, __: str) -> None:
    raise Bye


def print_messages(talk: Conversation) -> None:
    """The conversation that a model brings along, the way it looked."""
    for message in talk.shown.messages:
        if message.role == "user":
            say(">>> " + message.content.replace("\n", "\n... "))
        elif message.role == "assistant":
            answer = Answer(sys.stdout, talk.display)
            answer.content(message.content)
            answer.end()


SETTERS: dict[str, Callable[[Conversation, str], None]] = {
    "parameter": set_parameter,
    "system": set_system,
    "format": set_format,
    "noformat": set_noformat,
    "think": set_think,
    "nothink": set_nothink,
    "history": set_history,
    "nohistory": set_nohistory,
    "wordwrap": switch("wordwrap", True, "wordwrap"),
    "nowordwrap": switch("wordwrap", False, "nowordwrap"),
    "markdown": switch("markdown", True, "markdown"),
    "nomarkdown": switch("markdown", False, "nomarkdown"),
    "verbose": switch("verbose", True, "verbose"),
    "quiet": switch("verbose", False, "quiet"),
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


def word_choices(before: Sequence[str], models: Callable[[], Iterable[str]]) -> Iterable[str]:
    """What may follow some words of a command.

    Args:
        models: gives the names of the stored models, where they are asked for.
    """
    match before:
        case []:
            return COMMANDS
        case ["/set"]:
            return SETTERS
        case ["/set", "parameter"]:
            return PARAMETERS
        case ["/set", "think"]:
            return THINK_LEVELS
        case ["/set", "format"]:
            return ("json",)
        case ["/show"]:
            return ("info", *PARTS)
        case ["/help" | "/?"]:
            return HELP
        case ["/load" | "/save" | "/list"]:
            return models()
    return ()
