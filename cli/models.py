"""The commands over the models in the store, in memory and elsewhere: list, ps, cp, rm, stop, pull, push, search."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from cli.connection import connected, load_settings
from cli.errors import CliError, NotFound
from cli.human import human_bytes, modified, processor, until
from cli.table import table
from daemon.api import CatalogModel, ListedModel, RemoteTag, RunningModel

if TYPE_CHECKING:
    from cli.client import Client

INSECURE = "Allow plain HTTP, and certificates that cannot be verified."

ID_DIGITS = 12
"""Digits of a model's digest that are shown: enough to tell any two models of a store apart."""


def list_models(
    prefix: Annotated[str, typer.Argument(metavar="PREFIX", help="List only the models whose name begins so.")] = "",
) -> None:
    """List the models in the store."""
    with connected(load_settings()) as client:
        sys.stdout.write(list_table(client.list_models(), prefix, datetime.now(UTC)))


def ps(
    prefix: Annotated[str, typer.Argument(metavar="PREFIX", help="List only the models whose name begins so.")] = "",
) -> None:
    """List the models that are loaded."""
    with connected(load_settings()) as client:
        sys.stdout.write(running_table(client.running(), prefix, datetime.now(UTC)))


def cp(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="Name of the model.")],
    destination: Annotated[str, typer.Argument(metavar="DESTINATION", help="Name of the copy.")],
) -> None:
    """Copy a model under a second name. Takes no space."""
    with connected(load_settings()) as client:
        client.copy(source, destination)
    sys.stdout.write(f"copied '{source}' to '{destination}'\n")


def rm(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL", help="Names of the models. NAME* stands for all whose name begins so."),
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Remove what NAME* stands for without asking.")] = False,
) -> None:
    """Remove models. One that is loaded is unloaded first; what other models share stays."""
    with connected(load_settings()) as client:
        for model in wanted(client, models, ask=not yes):
            with suppress(NotFound):  # removing it says so, in the sentence that belongs to removing
                client.load(model, keep_alive=0)
            client.delete(model)
            sys.stdout.write(f"deleted '{model}'\n")


def wanted(client: Client, names: Sequence[str], *, ask: bool) -> list[str]:
    """The names, with those that a name with a "*" at its end stands for in its place, after a question about them.

    Raises:
        CliError: none is meant, there is nobody to ask, or the answer is no.
    """
    if not any(name.endswith("*") for name in names):
        return list(names)
    stored = [model.name for model in client.list_models()]
    found: list[str] = []
    for name in names:
        prefix = name.removesuffix("*").lower()
        meant = [name] if prefix == name.lower() else [model for model in stored if model.lower().startswith(prefix)]
        if not meant:
            raise CliError(f'no model\'s name begins with "{name[:-1]}"; `hob list` shows those that are there')
        found += [model for model in meant if model not in found]
    if ask:
        confirm(found)
    return found


def confirm(models: Sequence[str]) -> None:
    """Ask before several models go.

    Raises:
        CliError: nobody is at the keyboard, or the answer is no.
    """
    listed = "".join(f"    {model}\n" for model in models)
    if not sys.stdin.isatty():
        raise CliError(f"this would remove {len(models)} models; --yes does it without asking:\n{listed}".rstrip())
    sys.stderr.write(f"{listed}Remove {'it' if len(models) == 1 else f'these {len(models)} models'}? [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise CliError("nothing was removed")


def stop(model: Annotated[str, typer.Argument(metavar="MODEL", help="Name of the model.")]) -> None:
    """Unload a model now. By itself it leaves when nobody has used it for a while."""
    with connected(load_settings()) as client:
        try:
            client.load(model, keep_alive=0)
        except NotFound as error:
            raise CliError(f'couldn\'t find model "{model}" to stop') from error


def pull(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Name of the model.")],
    insecure: Annotated[bool, typer.Option("--insecure", help=INSECURE)] = False,
    list_tags: Annotated[
        bool, typer.Option("--list-tags", help="List the variants of the model, and pull none.")
    ] = False,
) -> None:
    """Download a model. Its name is one of the catalog (see `hob search`), of the Ollama registry or another
    (HOST/NAME/MODEL), or of the Hugging Face hub (hf.co/NAME/REPOSITORY).
    """
    with connected(load_settings()) as client:
        if list_tags:
            sys.stdout.write(tags_table(model, client.remote_tags(model, insecure=insecure)))
        else:
            pull_model(client, model, insecure=insecure)


def push(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Name of the model, with its registry's host.")],
    insecure: Annotated[bool, typer.Option("--insecure", help=INSECURE)] = False,
) -> None:
    """Upload a model to the registry that its name begins with."""
    # Imported here because rich's progress display costs 40 to 60 ms.
    from cli.progress import show_progress

    with connected(load_settings()) as client:
        show_progress(client.push(model, insecure=insecure))


def search(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="WORD", help="Words that names or descriptions hold; none: all.")
    ] = None,
) -> None:
    """Look through the catalog of models. Those in it can be pulled by a short name."""
    with connected(load_settings()) as client:
        found = client.search(" ".join(words or ()))
    if not found:
        raise CliError(
            f'the catalog has nothing for "{" ".join(words or ())}"; other models can be pulled by '
            "hf.co/NAME/REPOSITORY or by their name in the Ollama registry"
        )
    sys.stdout.write(search_table(found))


def pull_model(client: Client, model: str, *, insecure: bool = False) -> None:
    """Download a model with its progress on stderr."""
    # Imported here because rich's progress display costs 40 to 60 ms.
    from cli.progress import show_progress

    show_progress(client.pull(model, insecure=insecure))


def list_table(models: Iterable[ListedModel], prefix: str, now: datetime) -> str:
    """The table of `list`, in the daemon's order; the prefix is compared without regard to case."""
    rows = [
        [model.name, model.digest[:ID_DIGITS], human_bytes(model.size), modified(model.modified_at, now)]
        for model in models
        if model.name.lower().startswith(prefix.lower())
    ]
    return table([["NAME", "ID", "SIZE", "MODIFIED"], *rows])


def running_table(models: Iterable[RunningModel], prefix: str, now: datetime) -> str:
    """The table of `ps`."""
    rows = [
        [
            model.name,
            model.digest[:ID_DIGITS],
            human_bytes(model.size),
            processor(model.size, model.size_vram),
            str(model.context_length),
            until(model.expires_at, now),
        ]
        for model in models
        if model.name.startswith(prefix)
    ]
    return table([["NAME", "ID", "SIZE", "PROCESSOR", "CONTEXT", "UNTIL"], *rows])


def tags_table(model: str, tags: Iterable[RemoteTag]) -> str:
    """The table of `pull --list-tags`: names that `pull` takes."""
    name, separator, _ = model.rpartition(":")
    base = name if separator and "/" not in model.rpartition(":")[2] else model
    rows = [[f"{base}:{tag.tag}", human_bytes(tag.size) if tag.size else "-"] for tag in tags]
    return table([["NAME", "SIZE"], *rows])


def search_table(models: Iterable[CatalogModel]) -> str:
    """The table of `search`: a row a model, its variants with their sizes."""
    rows = [
        [
            model.name,
            ", ".join(f"{tag.tag} ({human_bytes(tag.size)})" if tag.size else tag.tag for tag in model.tags),
            model.description,
        ]
        for model in models
    ]
    return table([["NAME", "VARIANTS", "DESCRIPTION"], *rows])
