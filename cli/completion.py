"""`hob completion`: the script that lets a shell complete `hob`, and what the scripts ask for.

A script hands the line up to the cursor to the hidden command `hob complete` and gets candidates, one a line, each with
a tab and its help. No candidate means that the shell offers files. Whatever goes wrong ends in no candidates: a key
that completes must neither wait, nor start a daemon, nor say anything.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Annotated, Any

import typer

from cli.connection import load_settings
from cli.errors import CliError, UsageError
from cli.run import THINK_LEVELS
from cli.upkeep import SOURCES
from modelfiles.settings import Settings

TIMEOUT_S = 0.5
"""For the daemon's answer; it takes a few milliseconds."""

BASH = """\
_hob() {
    local line="${COMP_LINE:0:COMP_POINT}" found
    local word="${line##*[[:space:]]}"
    # bash takes the colon in the name of a model for the end of a word, and wants what comes behind it only.
    local before=""
    [[ $COMP_WORDBREAKS == *:* && $word == *:* ]] && before="${word%"${word##*:}"}"
    COMPREPLY=()
    while IFS=$'\\t' read -r found _; do
        [[ -n $found ]] && COMPREPLY+=("${found#"$before"}")
    done < <("$1" complete -- "$line" 2>/dev/null)
}
complete -o default -F _hob hob
"""

ZSH = """\
#compdef hob
_hob() {
    local -a found
    local line help
    for line in "${(@f)$(${words[1]} complete -- "${(j: :)words[1,CURRENT]}" 2>/dev/null)}"; do
        help="${line#*$'\\t'}"
        [[ -n $line ]] && found+=("${${line%%$'\\t'*}//:/\\\\:}${help:+:$help}")
    done
    if (( $#found )); then _describe hob found; else _files; fi
}
if [[ $funcstack[1] == _hob ]]; then _hob "$@"; else compdef _hob hob; fi
"""

FISH = """\
function __hob_found
    hob complete -- (commandline -cp | string collect) 2>/dev/null
end
complete -c hob -n 'count (__hob_found) >/dev/null' -f -a '(__hob_found)'
"""

WHERE = """\b
Where the script goes; the next shell uses it:
  bash  hob completion bash > ~/.local/share/bash-completion/completions/hob
  zsh   hob completion zsh > ~/.zfunc/_hob   (~/.zshrc: `fpath+=~/.zfunc` before `compinit`)
  fish  hob completion fish > ~/.config/fish/completions/hob.fish
"""

SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}


def completion(
    shell: Annotated[str, typer.Argument(metavar="SHELL", help="bash, zsh or fish.")],
) -> None:
    """Print the completion script of a shell. With it, Tab completes commands, options and names of models."""
    if shell not in SCRIPTS:
        raise UsageError(f'there is no completion for "{shell}"; there is one for {", ".join(SCRIPTS)}')
    sys.stdout.write(SCRIPTS[shell])


def complete(
    context: typer.Context,
    line: Annotated[str, typer.Argument(metavar="LINE", help="The line up to the cursor.")],
) -> None:
    """Print what the last word of a command line could become. For the scripts of `hob completion`."""
    root = context.find_root().command
    words = line.split(" ")
    found = candidates(root, [word for word in words[1:-1] if word], words[-1])
    sys.stdout.write("".join(f"{word}\t{help_}\n" for word, help_ in found if word.startswith(words[-1])))


def candidates(root: Any, words: Sequence[str], begun: str) -> Iterable[tuple[str, str]]:
    """Words and their help, more than begin as the one that is being typed.

    Args:
        root: the group of all commands; its type is private to typer.
        words: of the line, between `hob` and the word that is being typed.
        begun: what there is of that.
    """
    if not words:
        return options(root) if begun.startswith("-") else commands(root)
    command = root.commands.get(words[0])
    if command is None:
        return ()
    if words[-1] in VALUES:
        return ((value, "") for value in VALUES[words[-1]])
    if begun.startswith("-"):
        return options(command)
    if takes_value(command, words[-1]):
        return ()
    num_arguments = sum(not word.startswith("-") for word in words[1:])
    most, names = ARGUMENTS.get(command.callback.__name__, (0, None))
    return ((name, "") for name in names(begun)) if names and num_arguments < most else ()


def commands(root: Any) -> Iterator[tuple[str, str]]:
    for name, command in root.commands.items():
        if not command.hidden:
            yield name, command.get_short_help_str(limit=100)


def options(command: Any) -> Iterator[tuple[str, str]]:
    for option in command.params:
        if option.param_type_name == "option" and not option.hidden:
            for name in (*option.opts, *option.secondary_opts):
                yield name, option.help or ""
    yield "--help", "Show this message and exit."


def takes_value(command: Any, word: str) -> bool:
    """Whether the word that follows is an option's value."""
    return any(
        word in option.opts and not option.is_flag for option in command.params if option.param_type_name == "option"
    )


# ---- names of models


def stored(begun: str) -> list[str]:
    return _names("GET", "/api/tags", begun)


def running(begun: str) -> list[str]:
    return _names("GET", "/api/ps", begun)


def in_catalog(begun: str) -> list[str]:
    """Models that can be pulled by a short name; with a colon, their variants."""
    models = _ask(_settings(), "POST", "/api/search")
    names = [model["name"] for model in models]
    if ":" in begun:
        names = [f"{model['name']}:{tag['tag']}" for model in models for tag in model.get("tags", ())]
    return names


def model_names(settings: Settings, begun: str) -> list[str]:
    """The names of the stored models; the tag "latest" only where one has typed a colon."""
    return _named(_ask(settings, "GET", "/api/tags"), begun)


def _names(method: str, path: str, begun: str) -> list[str]:
    return _named(_ask(_settings(), method, path), begun)


def _named(models: Sequence[Any], begun: str) -> list[str]:
    names = [model["name"] for model in models]
    return names if ":" in begun else [name.removesuffix(":latest") for name in names]


def _settings() -> Settings | None:
    try:
        return load_settings()
    except CliError:
        return None


def _ask(settings: Settings | None, method: str, path: str) -> list[Any]:
    """The models in the daemon's answer; none where there is no daemon, or it does not answer at once."""
    # Not the Client: httpx takes 60 to 100 ms to import, http.client 10 to 20.
    from http.client import HTTPConnection, HTTPException, HTTPSConnection

    if settings is None:
        return []
    kind = HTTPSConnection if settings.address.scheme == "https" else HTTPConnection
    connection = kind(settings.address.dial_host, settings.port, timeout=TIMEOUT_S)
    headers = {"Authorization": f"Bearer {settings.api_key}"} if settings.api_key else {}
    try:
        connection.request(method, settings.address.path + path, "{}" if method == "POST" else None, headers)
        return list(json.loads(connection.getresponse().read())["models"])
    except (OSError, HTTPException, ValueError, KeyError, TypeError):
        return []
    finally:
        connection.close()


VALUES: dict[str, Sequence[str]] = {
    "--think": ("true", "false", *THINK_LEVELS),
    "--format": ("json",),
}
"""Options of which the values are known."""

ARGUMENTS: dict[str, tuple[float, Callable[[str], Iterable[str]]]] = {
    "run": (1, stored),
    "list_models": (1, stored),
    "ps": (1, running),
    "show": (1, stored),
    "create": (1, stored),
    "pull": (1, in_catalog),
    "push": (1, stored),
    "cp": (1, stored),
    "rm": (float("inf"), stored),
    "stop": (1, running),
    "import_": (1, lambda _: SOURCES),
    "completion": (1, lambda _: SCRIPTS),
}
"""By a command's function: how many of its arguments are completed, and with what."""
