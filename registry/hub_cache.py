"""HubCache: the models in the Hugging Face cache, for `registry.import_models`.

huggingface_hub's own scan says what is there. A repository may be there in several commits and each of them in part:
what counts is the commit of `main`, or the one that came last. Its files are sorted as those of the hub are, so a
repository of GGUF files offers a model for each of its quantisations, under the names that `hob pull` gives them.

Files of the cache are links into its folder of blobs. One that leads anywhere else is not followed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from registry.adoption import Importable, adopt_file, is_stored
from registry.create import CheckSource, CreateStatus
from registry.errors import CreateError, InvalidName, ModelNotFound, RemoteError, RemoteNotFound, unreadable
from registry.hub import Publisher
from registry.hub_files import SAFETENSORS, HubFile, RepositoryFiles, sort_files, total_size
from registry.manifest import Digest
from registry.name import DEFAULT_TAG, HUB_HOSTS, ModelName
from registry.store import Store

if TYPE_CHECKING:
    from huggingface_hub import CachedRepoInfo, CachedRevisionInfo

LINKED = (".gguf", ".safetensors")


@dataclass(frozen=True)
class _Repository:
    """One commit of a repository, as far as it is in the cache."""

    namespace: str
    model: str
    files: RepositoryFiles
    paths: Mapping[str, Path]
    """File name -> where its bytes are."""


class HubCache:
    """What huggingface_hub has fetched for this user.

    Args:
        folder: the cache; it need not be there.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> HubCache:
        """Where huggingface_hub itself would look. Source: huggingface_hub's constants.py."""
        home = Path(environ.get("HOME", "/"))
        cache = Path(environ.get("XDG_CACHE_HOME") or home / ".cache")
        hf_home = Path(environ.get("HF_HOME") or cache / "huggingface")
        named = environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE")
        return cls(Path(named) if named else hf_home / "hub")

    def models(self, store: Store) -> list[Importable]:
        """A model for each variant that is there with all its shards."""
        found = []
        for cached in self._repositories():
            variants = cached.files.variants
            for variant in variants:
                size = total_size(cached.files.files_of(variant))
                if variant.num_missing or size is None:
                    continue
                tag = DEFAULT_TAG if len(variants) == 1 and variant.tag == SAFETENSORS else variant.tag
                try:
                    name = ModelName(cached.model, tag, cached.namespace, HUB_HOSTS[0])
                except InvalidName:
                    continue  # no name of a model can say it
                found.append(Importable(name, size, is_stored(store, name)))
        return found

    def adopt(self, store: Store, name: ModelName, check_source: CheckSource | None = None) -> Iterator[CreateStatus]:
        """As ImportSource.adopt."""
        for cached in self._repositories():
            repository = f"{cached.namespace}/{cached.model}"
            if repository.lower() != f"{name.namespace}/{name.model}".lower():
                continue
            try:
                files = cached.files.choose(repository, name.variant)
            except RemoteNotFound as error:
                raise ModelNotFound(name.short) from error
            except RemoteError as error:
                raise CreateError(str(error)) from error
            yield from _adopt(store, name, {file.path: cached.paths[file.path] for file in files}, check_source)
            return
        raise ModelNotFound(name.short)

    def _repositories(self) -> Iterator[_Repository]:
        # Costs 0.2 s; most daemons never import anything.
        from huggingface_hub import CacheNotFound, scan_cache_dir

        try:
            repositories = sorted(scan_cache_dir(self._folder).repos, key=lambda repository: repository.repo_id)
        except (CacheNotFound, ValueError):  # nothing is there, or a file
            return
        except OSError as error:
            raise unreadable("the Hugging Face cache", error) from error
        for repository in repositories:
            namespace, slash, model = repository.repo_id.partition("/")
            if repository.repo_type != "model" or not slash or not repository.revisions:
                continue
            paths = _paths(repository, _current(repository))
            try:
                files = sort_files(HubFile(name, path.stat().st_size, None, "") for name, path in paths.items())
            except (RemoteError, OSError):
                continue  # nothing that the hub can have given, or cleared away meanwhile
            yield _Repository(namespace, model, files, paths)


def _current(repository: CachedRepoInfo) -> CachedRevisionInfo:
    """The commit of `main`, or else the one that came last."""
    return max(repository.revisions, key=lambda revision: ("main" in revision.refs, revision.last_modified))


def _paths(repository: CachedRepoInfo, revision: CachedRevisionInfo) -> dict[str, Path]:
    """A commit's files; those that lead out of the repository's folder are left out."""
    root = os.path.realpath(repository.repo_path)
    paths = {}
    for file in revision.files:
        path = os.path.realpath(file.file_path)
        if path.startswith(root + os.sep):
            paths[file.file_path.relative_to(revision.snapshot_path).as_posix()] = Path(path)
    return paths


def _adopt(
    store: Store, name: ModelName, paths: Mapping[str, Path], check_source: CheckSource | None
) -> Iterator[CreateStatus]:
    digests: dict[str, Digest] = {}
    new = []
    try:
        for file_name, path in paths.items():
            # The cache calls a large file by its sha256, and a small one by git's hash of it.
            expected = Digest(path.name) if re.fullmatch("[0-9a-f]{64}", path.name) else None
            is_new = expected is None or not store.has_blob(expected)
            digests[file_name] = yield from adopt_file(
                store, path, file_name, may_link=file_name.lower().endswith(LINKED), expected=expected
            )
            if is_new:
                new.append(digests[file_name])
        publisher = Publisher(name, {file_name: file_name for file_name in digests}, check_source)
        yield from publisher.publish(store, digests)
    except BaseException:  # a client that left ends the generator here, too
        store.discard(new)
        raise
    yield CreateStatus("success")
