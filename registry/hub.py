"""HubSource: the Hugging Face hub as a source of models.

    hf.co/maker/repository                 the variant that Ollama would take: Q4_K_M, or the next best
    hf.co/maker/repository:Q8_0            that quantisation; a file's name will do, too
    hf.co/maker/repository:safetensors     the safetensors of a repository that has GGUF files beside them
    hf.co/maker/repository:Q8_0@v1         at a branch, a tag or a commit

One answer of the hub decides everything: it names a commit, and every file is asked for at that commit and must have
the sha256 (or git's hash, of small files) of that answer, so that a branch which moves meanwhile cannot mix versions.
The token goes to the hub only, not to where the hub redirects for large files. What is taken is weights, a tokenizer
and texts; what could run code is never asked for (`registry.hub_files`).

`registry.pull` calls it, for names of hosts in `registry.name.HUB_HOSTS`, and `registry.catalog` for short names.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from registry.create import NEW_BLOB, OLD_BLOB, CheckSource, CreateRequest, CreateStatus, create_model
from registry.disk import read_regular
from registry.errors import CreateError, RemoteDenied, RemoteError
from registry.hub_api import HubAPI, Repository
from registry.hub_files import LICENSES, MAX_WORDS_BYTES, SAFETENSORS, WORDS, HubFile, sort_files, total_size
from registry.manifest import Digest
from registry.name import DEFAULT_TAG, ModelName
from registry.range_request import open_range
from registry.remote import RangeReply, RemoteBlob, RemoteModel, RemoteTag
from registry.retries import RetryPolicy, with_retries
from registry.store import Store
from registry.transport import Transport

CheckArchitecture = Callable[[str], object]

PROJECTOR_ARCHITECTURE = "clip"
"""What the hub says of a repository whose projector it happened to look into: nothing about the model."""

UNTOLD = (NEW_BLOB.partition("{")[0], OLD_BLOB.partition("{")[0], "success")
"""Beginnings of statuses of `create` that say nothing new of files which have just been seen to arrive."""


class HubSource:
    """Finds models on a hub. See HubAPI about how many of them to make.

    Args:
        check_source: raises ValueError for weights that cannot be run; whoever knows the engine passes it.
        check_architecture: the same for what config.json or GGUF metadata call an architecture. It is asked before
            anything is fetched, where the hub has looked into the files; `check_source` has the last word.
        endpoint, token: as in HubAPI.
    """

    def __init__(
        self,
        transport: Transport,
        check_source: CheckSource | None = None,
        check_architecture: CheckArchitecture | None = None,
        *,
        endpoint: str = "",
        token: str | None = None,
        policy: RetryPolicy | None = None,
    ) -> None:
        self._transport = transport
        self._check_source = check_source
        self._check_architecture = check_architecture
        self._api = HubAPI(transport, endpoint=endpoint, token=token)
        self._policy = policy or RetryPolicy()

    def find(self, name: ModelName, *, insecure: bool = False, stored_as: ModelName | None = None) -> RemoteModel:
        """As Source.find.

        Args:
            stored_as: the name under which the model is stored, where it is another one.
        """
        token = self._api.token()
        repository = self._repository(name, token, insecure)
        if repository.is_gated and not token:
            raise RemoteDenied(f"{repository.name} is gated: {self._api.conditions(repository.name)}")
        files = sort_files(repository.files).choose(repository.name, name.variant)
        self._check(repository, files)
        download = _Download(self._transport, self._api, repository, token, insecure)
        blobs = {file.path: download.blob(file) for file in files}
        publisher = Publisher(stored_as or name, {path: blob.key for path, blob in blobs.items()}, self._check_source)
        distinct = {blob.key: blob for blob in blobs.values()}  # two files may have the same bytes
        return RemoteModel(stored_as or name, tuple(distinct.values()), publisher.publish)

    def tags(self, name: ModelName, *, insecure: bool = False) -> list[RemoteTag]:
        """As Source.tags; the name's revision counts."""
        repository = self._repository(name, self._api.token(), insecure)
        files = sort_files(repository.files)
        is_only = len(files.variants) == 1
        return [
            RemoteTag(
                DEFAULT_TAG if is_only and variant.tag == SAFETENSORS else variant.tag,
                total_size(files.files_of(variant)),
            )
            for variant in files.variants
            if not variant.num_missing
        ]

    def _check(self, repository: Repository, files: tuple[HubFile, ...]) -> None:
        is_gguf = any(file.path.lower().endswith(".gguf") for file in files)
        architecture = repository.gguf_architecture if is_gguf else repository.hf_architecture
        if not self._check_architecture or architecture in ("", PROJECTOR_ARCHITECTURE):
            return
        try:
            self._check_architecture(architecture)
        except ValueError as error:
            raise RemoteError(f"{repository.name} was not pulled: {error}") from error

    def _repository(self, name: ModelName, token: str, insecure: bool) -> Repository:
        repository = f"{name.namespace}/{name.model}"
        return with_retries(
            lambda: self._api.repository(repository, name.revision, token=token, insecure=insecure), self._policy
        )


@dataclass(frozen=True)
class _Download:
    """How the files of one repository are fetched."""

    transport: Transport
    api: HubAPI
    repository: Repository
    token: str
    insecure: bool

    def blob(self, file: HubFile) -> RemoteBlob:
        @contextmanager
        def open_file(start: int, stop: int | None) -> Iterator[RangeReply]:
            with open_range(
                self.transport,
                url,
                start,
                stop,
                what=f"{file.path} of {self.repository.name}",
                authorization=f"Bearer {self.token}" if self.token else "",
                insecure=self.insecure,
                remedy=self.api.conditions(self.repository.name),
            ) as reply:
                # The hub's hash is what pins the bytes; ETags may differ between two machines of its storage.
                yield replace(reply, validator="") if file.digest or file.git_hash else reply

        url = self.api.url(self.repository, file.path)
        key = str(file.digest) if file.digest else f"git:{file.git_hash}" if file.git_hash else url
        return RemoteBlob(key, file.path, file.size, file.digest, file.git_hash, open_file)


@dataclass(frozen=True)
class Publisher:
    """Makes a model of fetched files."""

    name: ModelName
    keys: Mapping[str, str]
    """File name -> key of its blob."""
    check_source: CheckSource | None

    def publish(self, store: Store, digests: Mapping[str, Digest]) -> Iterator[CreateStatus]:
        """As RemoteModel.publish.

        Raises:
            CreateError: the files are no model that can be run; they are given up.
        """
        # What `create` looks for lies in one folder; where a repository keeps its quantisations says nothing.
        files = {_file_name(path): digests[key] for path, key in self.keys.items()}
        words = {path: files.pop(path) for path in (*WORDS, *LICENSES) if path in files}
        try:
            texts = {path: _read_text(store, path, digest) for path, digest in words.items()}
            request = CreateRequest(
                self.name,
                files={path: str(digest) for path, digest in files.items()},
                template=texts.get("template"),
                system=texts.get("system"),
                parameters=_parameters(texts["params"]) if "params" in texts else None,
                licenses=[texts[path] for path in LICENSES if path in texts],
            )
            for status in create_model(store, request, self.check_source):
                if not status.status.startswith(UNTOLD):
                    yield status
        except CreateError:
            store.discard(digests.values())
            raise
        store.discard(words.values())  # their words are in layers now, and as these bytes or as others


def _file_name(path: str) -> str:
    return posixpath.basename(path) if path.lower().endswith(".gguf") else path


def _read_text(store: Store, path: str, digest: Digest) -> str:
    try:
        data, _ = read_regular(store.blob_path(digest), MAX_WORDS_BYTES)
        return data.decode()
    except (OSError, ValueError) as error:
        raise CreateError(f"{path} of the repository is no text of at most {MAX_WORDS_BYTES} bytes") from error


def _parameters(text: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError) as error:
        raise CreateError(f"params of the repository is no JSON object: {error}") from error
