"""OllamaModels: the models in an Ollama's folder, for `registry.import_models`.

Ollama's layout is the store's own, so its folder is read as a Store, which creates nothing. Its blobs are never written
again under their names, which is why a hard link to one is safe.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

from modelfiles.source import SourceError
from registry import model_files
from registry.adoption import Importable, adopt_file, is_stored
from registry.create import CheckSource, CreateStatus
from registry.errors import CreateError, ModelNotFound
from registry.name import ModelName
from registry.store import Store
from registry.stored_model import StoredModel, load_model

DEFAULT_FOLDERS = ("~/.ollama/models", "/usr/share/ollama/.ollama/models")
"""Of an Ollama that a person runs, and of one that runs as a service."""


class OllamaModels:
    """What an Ollama on this machine holds.

    Args:
        folders: its models folders, the one that counts first; those that are not there are left out.
    """

    def __init__(self, folders: tuple[Path, ...]) -> None:
        self._stores = [Store(folder) for folder in folders if (folder / "manifests").is_dir()]

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> OllamaModels:
        """Where Ollama itself would look."""
        named = environ.get("OLLAMA_MODELS", "").strip(" \"'")
        home = Path(environ.get("HOME", "/"))
        defaults = tuple(home / text.removeprefix("~/") for text in DEFAULT_FOLDERS)
        return cls((Path(named),) if named else defaults)

    def models(self, store: Store) -> list[Importable]:
        """Every sound model; none where the folder is the store's own."""
        found: dict[ModelName, Importable] = {}
        for theirs in self._others(store):
            for model in theirs.list():
                found.setdefault(model.name, Importable(model.name, model.size, is_stored(store, model.name)))
        return list(found.values())

    def adopt(self, store: Store, name: ModelName, check_source: CheckSource | None = None) -> Iterator[CreateStatus]:
        """As ImportSource.adopt."""
        for theirs in self._others(store):
            try:
                name = theirs.resolve(name)
            except ModelNotFound:
                continue
            data, _ = theirs.tree.read(name)
            model = load_model(name, data, datetime.now(UTC), theirs.blobs)
            yield from _adopt(store, theirs, model, data, check_source)
            return
        raise ModelNotFound(name.short)

    def _others(self, store: Store) -> Iterator[Store]:
        for theirs in self._stores:
            if not (store.root.is_dir() and theirs.root.samefile(store.root)):
                yield theirs


def _adopt(
    store: Store, theirs: Store, model: StoredModel, data: bytes, check_source: CheckSource | None
) -> Iterator[CreateStatus]:
    _check(model, check_source)
    weights = {path.name for path in (*model.files.values(), *model.adapter_files.values(), *model.projectors)}
    digests = tuple(dict.fromkeys(layer.digest for layer in model.manifest.blobs()))
    new = [digest for digest in digests if not store.has_blob(digest)]
    try:
        for digest in digests:
            path = theirs.blob_path(digest)
            yield from adopt_file(store, path, str(digest), may_link=path.name in weights, expected=digest)
        yield CreateStatus("writing manifest")
        store.write_manifest(model.name, data)
    except BaseException:  # a client that left ends the generator here, too
        store.discard(new)
        raise
    yield CreateStatus("success")


def _check(model: StoredModel, check_source: CheckSource | None) -> None:
    """Whether it is a model that Hob can run, before a byte of it is taken."""
    try:
        source = model.source
    except SourceError as error:
        raise CreateError(f"{model.name.short} cannot be imported: {error}") from error
    if source.format == "gguf":
        model_files.sort_gguf(model.files)
    else:
        model_files.check_safetensors(model.files)
    if check_source:
        try:
            check_source(source)
        except ValueError as error:
            raise CreateError(f"{model.name.short} cannot be imported: {error}") from error
