"""The commands over the models in the store and in memory: list, ps, cp, rm, stop, pull."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from cli.connection import connected, load_settings
from cli.errors import CliError, NotFound
from cli.human import human_bytes, modified, processor, until
from cli.table import table
from cli.version import NOT_YET
from daemon.api import ListedModel, RunningModel

if TYPE_CHECKING:
    from cli.client import Client

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


def rm(models: Annotated[list[str], typer.Argument(metavar="MODEL", help="Names of the models.")]) -> None:
    """Remove models. One that is loaded is unloaded first."""
    with connected(load_settings()) as client:
        for model in models:
            with suppress(NotFound):  # removing it says so, in the sentence that belongs to removing
                client.load(model, keep_alive=0)
            client.delete(model)
            sys.stdout.write(f"deleted '{model}'\n")


def stop(model: Annotated[str, typer.Argument(metavar="MODEL", help="Name of the model.")]) -> None:
    """Unload a model now, instead of when its time is over."""
    with connected(load_settings()) as client:
        try:
            client.load(model, keep_alive=0)
        except NotFound as error:
            raise CliError(f'couldn\'t find model "{model}" to stop') from error


def pull(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Name of the model.")],
    insecure: Annotated[bool, typer.Option("--insecure", help=f"Allow a registry without TLS. {NOT_YET}")] = False,
) -> None:
    """Bring back a built-in model. Pulling from registries is not available in this version."""
    with connected(load_settings()) as client:
        pull_model(client, model, insecure=insecure)


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
