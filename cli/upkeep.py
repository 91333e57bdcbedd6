"""The commands over the store as a whole: fsck, and import of what other programs hold."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from cli.connection import connected, load_settings
from cli.errors import CliError, UsageError
from cli.human import human_bytes
from cli.table import table
from daemon import api

if TYPE_CHECKING:
    from cli.client import Client

SOURCES = ("ollama", "huggingface")


def fsck(
    quick: Annotated[
        bool, typer.Option("--quick", help="Look at names and sizes only, instead of reading every byte.")
    ] = False,
) -> None:
    """Check the store for damage. Broken files are moved aside; pulling or creating their models brings them back."""
    # Imported here because rich's progress display costs 40 to 60 ms.
    from cli.progress import progress_display

    damage = []
    with connected(load_settings()) as client, progress_display() as show:
        for event in client.fsck(rehash=not quick):
            if event.reason:
                damage.append(event)
            elif event.total:
                show(
                    api.ProgressResponse(
                        status=event.status, digest=event.digest, total=event.total, completed=event.completed
                    )
                )
    if not damage:
        sys.stdout.write("the store is sound\n")
        return
    sys.stdout.write("".join(_sentence(event) for event in damage))
    raise CliError(f"{len(damage)} {'thing is' if len(damage) == 1 else 'things are'} wrong in the store; see above")


def _sentence(event: api.FsckResponse) -> str:
    line = f"{event.subject}: {event.reason}"
    if event.quarantined:
        line += "; it was moved to .hob/quarantine in the models folder"
    if event.models:
        line += f"; needed by {', '.join(event.models)}"
    return line + "\n"


def import_(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="Whose models: ollama or huggingface.")],
    models: Annotated[
        list[str] | None, typer.Argument(metavar="MODEL", help="Names of the models; none: list what is there.")
    ] = None,
    all_: Annotated[bool, typer.Option("--all", help="Import all that the store does not have.")] = False,
) -> None:
    """Take over models of Ollama or the Hugging Face cache. They are linked, not copied, where the disk is the same."""
    if source not in SOURCES:
        raise UsageError(f'models can be imported from {" and ".join(SOURCES)}, not from "{source}"')
    if models and all_:
        raise UsageError("name models or give --all, not both")
    with connected(load_settings()) as client:
        if not models:
            found = client.importable(source)
            if not all_:
                sys.stdout.write(importable_table(found))
                return
            models = [model.name for model in found if not model.stored]
        for model in models:
            _import_model(client, source, model)


def _import_model(client: Client, source: str, model: str) -> None:
    from cli.progress import show_progress  # as above

    show_progress(client.import_model(source, model))
    sys.stdout.write(f"imported '{model}'\n")


def importable_table(models: Iterable[api.ImportableModel]) -> str:
    """The table of `import` without models."""
    rows = [[model.name, human_bytes(model.size), "yes" if model.stored else "no"] for model in models]
    return table([["NAME", "SIZE", "IN THE STORE"], *rows])
