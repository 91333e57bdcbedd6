"""`hob create`: a Modelfile, read on this side of the wire, becomes blobs and one POST /api/create.

Files are hashed here and sent only where the daemon does not have them, so making a second model of the same weights
sends nothing; weights on the daemon's own disk are linked into its inbox. Nothing is sent before the whole Modelfile
has been read and every file in it was found.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from cli.connection import connected, load_settings
from cli.errors import CliError
from cli.inbox import linked
from cli.source_files import SourceFiles, adapter_files, local_files
from daemon import api
from modelfiles.parser import Modelfile, ModelfileError, parse

if TYPE_CHECKING:
    from cli.client import Client

DEFAULT_NAME = "Modelfile"
CHUNK_BYTES = 1 << 20

Show = Callable[[api.ProgressResponse], None]


def create(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Name of the new model.")],
    file: Annotated[
        Path | None,
        typer.Option(
            "--file",
            "-f",
            metavar="FILE",
            help="The Modelfile. Default: Modelfile in this folder, else the weights there.",
        ),
    ] = None,
    quantize: Annotated[
        str,
        typer.Option(
            "--quantize", "-q", metavar="TYPE", help="Quantize the weights to this type, e.g. q4_K_M, q8_0 or fp8."
        ),
    ] = "",
) -> None:
    """Make a model from a Modelfile. Without one, from the weights in this folder."""
    modelfile, folder = read_modelfile(file)
    request, files = build_request(model, modelfile, folder, quantize)
    settings = load_settings()
    with connected(settings) as client:
        # Imported here because rich's progress display costs 40 to 60 ms.
        from cli.progress import progress_display

        with progress_display() as show:
            send(client, request, files, settings.inbox_dir, show)


def read_modelfile(file: Path | None) -> tuple[Modelfile, Path]:
    """The Modelfile and the folder that its paths start from. Without one, the files of the current folder are the
    model.

    Raises:
        CliError: the file that was asked for is not there, it is no Modelfile, or a parameter in it cannot be used.
    """
    path = file or Path(DEFAULT_NAME)
    try:
        text = path.read_bytes()
    except FileNotFoundError as error:
        if file is not None:
            raise CliError(f"there is no Modelfile at {file}") from error
        text = b"FROM .\n"
    except OSError as error:
        raise CliError(f"the Modelfile {path} cannot be read: {error.strerror}") from error
    try:
        modelfile = parse(text)
        modelfile.parameters()  # a wrong value has a place in the file, like all that `parse` refuses
        modelfile.requires()
    except ModelfileError as error:
        raise CliError(f"{path}: {error}") from error
    return modelfile, path.parent


def build_request(
    model: str, modelfile: Modelfile, folder: Path, quantize: str = ""
) -> tuple[api.CreateRequest, dict[str, SourceFiles]]:
    """What to ask for, and the files it needs by the field of the request that will name them.

    Raises:
        CliError: a file is missing, or an instruction cannot be used.
        ModelfileError: a parameter cannot be used; `read_modelfile` has said so before, with the file's path.
    """
    parameters, warnings = modelfile.parameters()
    messages = modelfile.messages
    for warning in warnings:
        sys.stderr.write(f"warning: {warning}\n")
    sources = [(value, local_files(value, folder)) for value in modelfile.values("from")]
    names = [value for value, found in sources if found is None]
    if len(names) > 1 or (names and len(sources) > 1):
        raise CliError(f'FROM "{names[-1]}" is no file here, and only one FROM can name a model')
    request = api.CreateRequest(
        model=model,
        from_=names[0] if names else None,
        template=modelfile.last("template"),
        system=modelfile.last("system"),
        license=list(modelfile.values("license")) or None,
        parameters=parameters or None,
        messages=None if messages is None else [api.RequestMessage(role=role, content=text) for role, text in messages],
        renderer=modelfile.last("renderer"),
        parser=modelfile.last("parser"),
        requires=modelfile.last("requires"),
        quantize=quantize or None,
    )
    weights = [found for _, found in sources if found is not None]
    return request, {
        "files": SourceFiles.merge(weights),
        "adapters": adapter_files(modelfile.values("adapter"), folder),
        "draft_files": _drafts(modelfile, folder),
    }


def _drafts(modelfile: Modelfile, folder: Path) -> SourceFiles:
    found = [(value, local_files(value, folder)) for value in modelfile.values("draft")]
    for value, files in found:
        if files is None:
            raise CliError(f'DRAFT "{value}" is not there; it must be a file or a folder')
    return SourceFiles.merge([files for _, files in found if files is not None])


def send(client: Client, request: api.CreateRequest, files: dict[str, SourceFiles], inbox: Path, show: Show) -> None:
    """Give the daemon the files that it lacks, then create; everything that happens goes to `show`."""
    for field, found in files.items():
        digests: dict[str, str] = {}
        for name, path in found.paths.items():
            hashing = api.ProgressResponse(status=f"hashing {name}", digest=str(path), total=path.stat().st_size)
            sha256 = hashlib.sha256()
            for chunk in chunks_of(path, hashing, show):
                sha256.update(chunk)
            digests[name] = digest = f"sha256:{sha256.hexdigest()}"
            if not client.has_blob(digest):
                send_file(client, path, digest, inbox, show)
        if digests:
            setattr(request, field, digests)
    for event in client.create(request):
        show(event)


def send_file(client: Client, path: Path, digest: str, inbox: Path, show: Show) -> None:
    """Weights by a link, where the daemon is on this disk; else a file's bytes.

    What describes the weights is small and is edited in place, which a link would carry into the store.
    """
    size = path.stat().st_size
    if path.suffix.lower() in (".gguf", ".safetensors"):
        with linked(path, inbox) as name:
            if name:
                linking = api.ProgressResponse(status=f"linking file {digest}", digest=digest, total=size)
                show(linking)
                if client.offer_blob(digest, name):
                    show(msgspec.structs.replace(linking, completed=size))
                    return
    copying = api.ProgressResponse(status=f"copying file {digest}", digest=digest, total=size)
    client.send_blob(digest, chunks_of(path, copying, show))


def chunks_of(path: Path, progress: api.ProgressResponse, show: Show) -> Iterator[bytes]:
    """A file's bytes, with every chunk that was taken shown as progress."""
    show(progress)
    done = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk
            done += len(chunk)
            show(msgspec.structs.replace(progress, completed=done))
