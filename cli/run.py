"""`hob run`: one prompt from the command line or a pipe, or the prompt loop.

One-shot goes through /api/generate and prints to stdout; the loop (cli/repl.py) goes through /api/chat. Which of the
two is decided here, before anything is sent: a prompt, a pipe on stdin or a stdout that is no terminal means one-shot.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from cli.connection import connected, load_settings
from cli.errors import CliError, Incomplete, NotFound, UsageError
from cli.models import INSECURE, pull_model
from cli.render import Answer, Display, timings, waiting
from daemon import api
from modelfiles.durations import DurationError, parse_duration

if TYPE_CHECKING:
    from cli.client import Client

NOT_UTF8 = "the prompt is not UTF-8 text; convert it first, e.g. with iconv"
THINK_LEVELS = ("low", "medium", "high", "max")


def run(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="Name of the model. One that is not in the store is pulled first."),
    ],
    prompt: Annotated[
        list[str] | None, typer.Argument(metavar="PROMPT", help="The prompt. Text on stdin comes before it.")
    ] = None,
    keepalive: Annotated[
        str, typer.Option(metavar="DURATION", help='How long the model stays loaded, e.g. "5m"; "-1s" for ever.')
    ] = "",
    verbose: Annotated[bool, typer.Option("--verbose", help="Print timings after the answer.")] = False,
    insecure: Annotated[bool, typer.Option("--insecure", help=INSECURE)] = False,
    nowordwrap: Annotated[bool, typer.Option("--nowordwrap", help="Do not break lines between words.")] = False,
    nomarkdown: Annotated[
        bool, typer.Option("--nomarkdown", help="Show Markdown as it was written. NO_COLOR=1 does so, too.")
    ] = False,
    format_: Annotated[
        str, typer.Option("--format", metavar="FORMAT", help='Format of the answer: "json" or a JSON schema.')
    ] = "",
    think: Annotated[
        str, typer.Option(metavar="LEVEL", help="Whether or how hard to think: true, false, low, medium, high or max.")
    ] = "",
    hidethinking: Annotated[bool, typer.Option("--hidethinking", help="Do not show the thoughts.")] = False,
    truncate: Annotated[
        bool | None,
        typer.Option("--truncate/--no-truncate", help="Embedding models: cut a text that is too long, or refuse it."),
    ] = None,
    dimensions: Annotated[
        int | None, typer.Option(metavar="N", help="Embedding models: length of the vector.", min=1)
    ] = None,
) -> None:
    """Run a model: answer one prompt, or talk with it. Without a prompt, /? shows what one can do."""
    options = api.ChatRequest(
        model=model,
        keep_alive=keep_alive(keepalive),
        format=answer_format(format_),
        think=think_value(think),
    )
    piped = "" if sys.stdin.isatty() else read_stdin()
    text = utf8(" ".join(part for part in (piped, *(prompt or ())) if part))
    interactive = not text and sys.stdin.isatty() and sys.stdout.isatty()
    settings = load_settings()
    display = Display(
        wordwrap=not nowordwrap,
        markdown=settings.markdown and not nomarkdown,
        hide_thinking=hidethinking,
        verbose=verbose,
    )
    with connected(settings) as client:
        shown = show_or_pull(client, model, insecure=insecure)
        if "embedding" in shown.capabilities and "completion" not in shown.capabilities:
            embed(client, options, text, truncate=truncate, dimensions=dimensions)
        elif interactive:
            # Imported here because prompt_toolkit costs 110 to 150 ms, which a one-shot prompt should not pay.
            from cli.repl import talk

            talk(client, settings, options, shown, display)
        else:
            answer(client, options, text, display)


def answer(client: Client, options: api.ChatRequest, prompt: str, display: Display) -> None:
    """Print the answer to one prompt."""
    request = api.GenerateRequest(
        model=options.model,
        prompt=prompt,
        keep_alive=options.keep_alive,
        format=options.format,
        think=options.think,
    )
    out = Answer(sys.stdout, display, markdown=options.format is None)
    chunks = client.generate(request)
    try:
        with waiting():
            chunk = next(chunks, None)
        last = None
        while chunk is not None:
            out.thinking(chunk.thinking)
            out.content(chunk.response)
            last, chunk = chunk, next(chunks, None)
        if last is None or not last.done:
            raise Incomplete
    except (KeyboardInterrupt, CliError):
        out.break_off()
        raise
    if prompt:  # without one the model was only loaded
        out.end()
    if display.verbose:
        sys.stderr.write(timings(last))


def embed(
    client: Client, options: api.ChatRequest, text: str, *, truncate: bool | None, dimensions: int | None
) -> None:
    """Print the embedding of a text as one line of JSON."""
    if not text:
        raise CliError(
            "embedding models require input text. "
            f'Usage: hob run {options.model} "your text", or: echo "your text" | hob run {options.model}'
        )
    request = api.EmbedRequest(
        model=options.model,
        input=text,
        truncate=truncate,
        dimensions=dimensions,
        keep_alive=options.keep_alive,
    )
    with waiting():
        reply = client.embed(request)
    sys.stdout.write(json.dumps(reply.embeddings[0]) + "\n")


def show_or_pull(client: Client, model: str, *, insecure: bool = False) -> api.ShowResponse:
    """What the model is; one that is not in the store is pulled first."""
    try:
        return client.show(model)
    except NotFound:
        pull_model(client, model, insecure=insecure)
        return client.show(model)


def read_stdin() -> str:
    """All of stdin.

    Raises:
        CliError: it is not text.
    """
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise CliError(f"{NOT_UTF8} (byte {error.start} of stdin)") from error


def utf8(text: str) -> str:
    """The text, if it can be sent.

    Raises:
        CliError: it holds bytes that Python could not decode. On the command line, and on stdin in the C locale, it
            keeps them as lone surrogates (PEP 383).
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise CliError(f"{NOT_UTF8} (character {error.start + 1})") from error
    return text


def keep_alive(text: str) -> str | None:
    """The value of --keepalive: a Go duration, so that a bare number cannot be taken for minutes.

    Raises:
        UsageError: the text is none.
    """
    try:
        parse_duration(text or "0")
    except DurationError as error:
        raise UsageError(
            f'--keepalive is "{text}", which is no duration ({error}); write e.g. "5m" or "-1s"'
        ) from error
    return text or None


def think_value(text: str) -> api.Think | None:
    """The value of --think; nothing given leaves the choice to the model.

    Raises:
        UsageError: the text is none of the values.
    """
    values: dict[str, api.Think | None] = {"": None, "true": True, "false": False}
    values |= {level: level for level in THINK_LEVELS}
    if text not in values:
        raise UsageError(f'--think is "{text}"; it must be true, false, {", ".join(THINK_LEVELS[:-1])} or max')
    return values[text]


def answer_format(text: str) -> Any:
    """The value of --format: "json", or a JSON schema.

    Raises:
        UsageError: the text is neither.
    """
    if text in ("", "json"):
        return text or None
    try:
        schema = msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise UsageError(f'--format must be "json" or a JSON schema, and this is no JSON: {error}') from error
    if not isinstance(schema, dict):
        raise UsageError('--format must be "json" or a JSON schema, which is an object in braces')
    return schema
