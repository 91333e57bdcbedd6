"""The models that come with Hob, as package data in `registry/builtin/<name>/`.

The daemon installs them into the store at its start, so that they are listed, shown, copied and removed like any other.
A folder holds a model's files as a maker publishes them; beside them it may have `template`, `system`, `params` (JSON)
and `LICENSE`.

A note in the store remembers what was installed, from which files (size and time, so that an unchanged model costs a
few stats) and as which manifest. So the note also tells that somebody removed the model (noted, and not there) or made
one of their own under its name (there, and not the noted one): neither is touched until `restore`, which is what
`pull tale` does.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec

from registry import model_files
from registry.create import CreateRequest, create_model
from registry.errors import BrokenModel, ModelNotFound
from registry.name import ModelName
from registry.store import Store

CHUNK_BYTES = 1024 * 1024

SIDE_TEXTS = ("template", "system", "params", "LICENSE")


class Note(msgspec.Struct):
    """What is remembered of one built-in model."""

    files: dict[str, tuple[int, int]]
    """Name -> size in bytes and time of the last change in ns. Empty while installing: no real folder is."""
    manifest: str = ""
    """The installed manifest's sha256."""


def package_folder() -> Path:
    """Where the built-in models lie. Hob is installed as files, never run from an archive."""
    return Path(str(resources.files("registry.builtin")))


def builtin_names(folder: Path) -> tuple[ModelName, ...]:
    """The models in the folder: its folders that hold weights."""
    return tuple(
        ModelName(entry.name)
        for entry in sorted(folder.iterdir())
        if entry.is_dir() and any(any(entry.glob(pattern)) for pattern in ("*.gguf", "*.safetensors"))
    )


def install(store: Store, folder: Path | None = None) -> list[ModelName]:
    """Put the built-in models into the store, or bring them up to date.

    Returns:
        Those that were written; none on most starts.

    Raises:
        OutOfSpace, StoreError: the disk refused; the next start tries again.
    """
    folder = folder or package_folder()
    written = [name for name in builtin_names(folder) if _is_wanted(store, name, folder / name.model)]
    for name in written:
        _install(store, name, folder / name.model)
    return written


def restore(store: Store, name: ModelName, folder: Path | None = None) -> None:
    """Put one built-in model into the store, whatever is there under its name.

    Raises:
        ModelNotFound: no such model comes with Hob.
    """
    folder = folder or package_folder()
    for builtin in builtin_names(folder):
        if builtin == name:
            return _install(store, builtin, folder / builtin.model)
    raise ModelNotFound(name.short)


def _is_wanted(store: Store, name: ModelName, folder: Path) -> bool:
    note = _read_note(store, name)
    try:
        current = store.get(name).digest.hex
    except ModelNotFound:
        return note is None or not note.files
    except BrokenModel:
        return note is not None
    if note is None or not note.files:
        return note is not None
    return current == note.manifest and note.files != _stamps(folder)


def _install(store: Store, name: ModelName, folder: Path) -> None:
    store.write_note(_note_key(name), msgspec.json.encode(Note({})))
    stamps = _stamps(folder)
    names = model_files.select(file for file in stamps if file not in SIDE_TEXTS)
    files = {file: str(store.write_blob(_chunks(folder / file))) for file in names}
    texts = {file: (folder / file).read_text("utf-8") for file in SIDE_TEXTS if file in stamps}
    params: dict[str, Any] | None = msgspec.json.decode(texts["params"]) if "params" in texts else None
    request = CreateRequest(
        name,
        files=files,
        template=texts.get("template"),
        system=texts.get("system"),
        parameters=params,
        licenses=[texts["LICENSE"]] if "LICENSE" in texts else [],
    )
    for _ in create_model(store, request):
        pass
    note = Note(stamps, store.get(name).digest.hex)
    store.write_note(_note_key(name), msgspec.json.encode(note))


def _note_key(name: ModelName) -> str:
    return f"builtin-{name.model}.json"


def _read_note(store: Store, name: ModelName) -> Note | None:
    try:
        return msgspec.json.decode(store.read_note(_note_key(name)), type=Note)
    except msgspec.MsgspecError:
        return None  # nothing noted yet, or somebody else's bytes: then what is in the store is not ours to change


def _stamps(folder: Path) -> dict[str, tuple[int, int]]:
    files = [path for path in sorted(folder.iterdir()) if path.is_file()]
    return {path.name: (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk
