"""Entry point of `hob`: the commands, and the one place where an error becomes a sentence and an exit status.

Exit statuses: 0 done, 1 an error (`Error: sentence` on stderr), 2 a command line that makes no sense, 130 stopped by
Ctrl-C. A pipe whose reader went away ends a command quietly with 1. No traceback reaches a person, unless HOB_DEBUG
asks for one.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from cli import completion, create, models, run, serve, show, upkeep
from cli.connection import connected, load_settings
from cli.environment import epilog
from cli.errors import CliError, DaemonUnreachable, sentence_of
from cli.suggestions import Command
from cli.version import VERSION

SPELLINGS = {
    "--think": "--think=true",
    "--truncate=true": "--truncate",
    "--truncate=false": "--no-truncate",
    "--verbose=true": "--verbose",
}
"""Spellings of Ollama's flags, whose values are optional, in terms of ours. A level of thinking needs the "=" there
too.
"""

# Plain help: it opens twice as fast as the boxes that rich draws, and a screen reader reads words, not frames.
app = typer.Typer(
    name="hob",
    help="Run language models on this machine.",
    rich_markup_mode=None,
    invoke_without_command=True,
    add_completion=False,  # typer's script for bash breaks the names of models at their colon: cli/completion.py
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog=epilog("HOB_HOST", "HOB_MODELS", "HOB_HOME", "HOB_DEBUG"),
)

CONNECTING = ("HOB_HOST",)
SERVING = (
    "HOB_HOST", "HOB_MODELS", "HOB_KEEP_ALIVE", "HOB_CONTEXT_LENGTH", "HOB_MAX_QUEUE", "HOB_MAX_LOADED_MODELS",
    "HOB_LOAD_TIMEOUT", "HOB_ORIGINS", "HOB_ALLOW_REMOTE", "HOB_DEVICE", "HOB_DTYPE", "HOB_WEIGHT_TYPE",
    "HOB_KV_CACHE_TYPE", "HOB_NUM_THREADS", "HOB_GPU_OVERHEAD", "HOB_SPARE_WORKER", "HOB_DRAIN", "HOB_DEBUG",
)  # fmt: skip

app.command("serve", cls=Command, epilog=epilog(*SERVING))(serve.serve)
app.command("start", cls=Command, hidden=True)(serve.serve)
app.command("run", cls=Command, epilog=epilog(*CONNECTING, "HOB_MARKDOWN", "HOB_NOHISTORY", "HOB_EDITOR"))(run.run)
app.command("list", cls=Command, epilog=epilog(*CONNECTING))(models.list_models)
app.command("ls", cls=Command, hidden=True)(models.list_models)
app.command("ps", cls=Command, epilog=epilog(*CONNECTING))(models.ps)
app.command("show", cls=Command, epilog=epilog(*CONNECTING))(show.show)
app.command("create", cls=Command, epilog=epilog(*CONNECTING))(create.create)
app.command("pull", cls=Command, epilog=epilog(*CONNECTING))(models.pull)
app.command("push", cls=Command, epilog=epilog(*CONNECTING))(models.push)
app.command("search", cls=Command, epilog=epilog(*CONNECTING))(models.search)
app.command("cp", cls=Command, epilog=epilog(*CONNECTING))(models.cp)
app.command("rm", cls=Command, epilog=epilog(*CONNECTING))(models.rm)
app.command("import", cls=Command, epilog=epilog(*CONNECTING))(upkeep.import_)
app.command("fsck", cls=Command, epilog=epilog(*CONNECTING))(upkeep.fsck)
app.command("stop", cls=Command, epilog=epilog(*CONNECTING))(models.stop)
app.command("shutdown", cls=Command, epilog=epilog(*CONNECTING))(serve.shutdown)
app.command("completion", cls=Command, epilog=completion.WHERE)(completion.completion)
app.command("complete", cls=Command, hidden=True)(completion.complete)


def print_version(asked: bool) -> None:
    """The daemon's version, and ours where they differ."""
    if not asked:
        return
    try:
        with connected(load_settings(), start=False) as client:
            running = client.version().hob_version
        sys.stdout.write(f"hob version is {running}\n")
        if running != VERSION:
            sys.stdout.write(f"Warning: client version is {VERSION}\n")
    except DaemonUnreachable:
        sys.stdout.write("Warning: could not connect to a running hob daemon\n")
        sys.stdout.write(f"Warning: client version is {VERSION}\n")
    raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", "-v", help="Show the version and exit.", callback=print_version, is_eager=True)
    ] = False,
) -> None:
    """Run language models on this machine."""
    if context.invoked_subcommand is None:
        sys.stdout.write(context.get_help() + "\n")


def main() -> None:
    """The console script."""
    open_missing_streams()
    sys.exit(run_app(sys.argv[1:]))


def open_missing_streams() -> None:
    """Let a standard stream that the shell closed (`<&-`, `>&-`), for which Python has None, be /dev/null."""
    # In the order of their descriptors: each open takes the lowest that is free, so that no other file gets it.
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            stream = Path(os.devnull).open(mode)  # noqa: SIM115 - closed by the end of the process
            os.set_inheritable(stream.fileno(), True)  # `hob serve` becomes the daemon, which needs them as well
            setattr(sys, name, stream)


def run_app(arguments: Sequence[str]) -> int:
    """Run one command line; the exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A character that the terminal's encoding lacks is shown as "?", instead of ending an answer half-way.
            stream.reconfigure(errors="replace")
    try:
        app(args=spelled(arguments), prog_name="hob")
    except SystemExit as end:  # typer ends this way, also after --help, usage errors and Ctrl-C
        return flushed(end.code if isinstance(end.code, int) else 0)
    except Exception as error:
        return fail(sentence_of(error), error.exit_status if isinstance(error, CliError) else 1)
    return flushed(0)


def flushed(status: int) -> int:
    """The status, once stdout is written: a reader that went away is noticed here, and not by Python's last flush."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return status or 1
    return status


def fail(sentence: str, status: int) -> int:
    sys.stderr.write(f"Error: {sentence}\n")
    return status


def spelled(arguments: Sequence[str]) -> list[str]:
    """The arguments in our spelling; what stands after "--" is text and stays."""
    end = list(arguments).index("--") if "--" in arguments else len(arguments)
    return [*(SPELLINGS.get(argument, argument) for argument in arguments[:end]), *arguments[end:]]
