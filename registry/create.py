"""Create: from uploaded files or a stored model, and the words of a Modelfile, to a new model.

Everything is checked before anything is written: names, digests, every weight file with the strict readers, template
and parameters. Then the small blobs are written, and the manifest last, so the old model of that name stays whole until
the new one is. `daemon/routes` and the built-in model's installation call it; a parent that is not here is pulled by
the caller, who sees ModelNotFound.

What a child inherits: parameters are merged, the child's win; template, system and messages are the parent's unless the
child brings its own, where an empty one takes the parent's away; adapters are the parent's unless the child brings
any; licences add up.
Source: docs/api.md and docs/modelfile.md of Ollama for wordings and their order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from modelfiles.adapter_files import CONFIG_NAME, group_adapters
from modelfiles.gguf import GGUFError
from modelfiles.gotemplate import GoTemplate, TemplateError
from modelfiles.parameters import ParameterError, check_options
from modelfiles.safetensors import SafetensorsError
from modelfiles.source import ModelSource
from registry import model_files
from registry.errors import BlobNotFound, CreateError, InvalidDigest
from registry.manifest import (
    ADAPTER,
    CONFIG_MEDIA_TYPE,
    DRAFT,
    FILE,
    LICENSE,
    MESSAGES,
    MODEL,
    PARAMS,
    PROJECTOR,
    PROMPT,
    SYSTEM,
    TEMPLATE,
    Digest,
    Layer,
    Manifest,
)
from registry.model_facts import ModelFacts, model_facts
from registry.name import ModelName
from registry.store import Store
from registry.stored_model import OWN_TEMPLATE, StoredModel

ROLES = ("system", "user", "assistant")

INFO_KEYS: dict[str, tuple[str, type]] = {
    "capabilities": ("capabilities", list),
    "model_family": ("model_family", str),
    "base_name": ("base_name", str),
    "quantization_level": ("file_type", str),
    "parameter_size": ("model_type", str),
    "context_length": ("context_length", int),
    "embedding_length": ("embedding_length", int),
}
"""Key of `info` in the request -> (key in the config blob, type). Others are passed over, as Ollama does."""

FLOAT_FILE_TYPES = ("F16", "BF16", "F32")
"""Types of weights that can be quantised; what is quantised already would get the errors of both."""

NEW_BLOB = "creating new layer {}"
OLD_BLOB = "using existing layer {}"

Blobs = list[tuple[str, bytes]]
"""Media type and bytes of small blobs that are not in the store yet."""


@dataclass(frozen=True)
class CreateRequest:
    """What to make. None inherits from the parent; an empty value takes the parent's away."""

    name: ModelName
    from_name: ModelName | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    """Relative file name -> digest of an uploaded blob."""
    adapters: Mapping[str, str] = field(default_factory=dict)
    drafts: Mapping[str, str] = field(default_factory=dict)
    """A smaller model, which another server may guess with; this one keeps it for that server."""
    template: str | None = None
    system: str | None = None
    parameters: Mapping[str, Any] | None = None
    """A null or an empty list takes the parent's parameter away."""
    messages: Sequence[Mapping[str, Any]] | None = None
    licenses: Sequence[str] = ()
    renderer: str | None = None
    parser: str | None = None
    requires: str | None = None
    info: Mapping[str, Any] = field(default_factory=dict)
    quantize: str = ""


@dataclass(frozen=True)
class CreateStatus:
    """One line of progress; work that has a size has a digest, too, by which clients know one bar's lines."""

    status: str
    digest: str = ""
    completed: int = 0
    total: int = 0


@dataclass(frozen=True)
class QuantizeOrder:
    """Weights to be written anew, into a folder that is there."""

    source: ModelSource
    source_type: str
    """As people call it: "F16"."""
    file_type: str
    folder: Path


CheckSource = Callable[[ModelSource], object]
CheckAdapter = Callable[[ModelSource, ModelSource], object]
"""Raises ValueError where the second is no adapter for the first."""
QuantizeModel = Callable[[QuantizeOrder], Iterator[CreateStatus]]
"""Writes the files, yielding progress; they are whole and on the disk when it ends."""


def create_model(
    store: Store,
    request: CreateRequest,
    check_source: CheckSource | None = None,
    quantize: QuantizeModel | None = None,
    check_adapter: CheckAdapter | None = None,
) -> Iterator[CreateStatus]:
    """Make a model, yielding progress; the last status is "success". Nothing happens before the first `next`.

    Args:
        check_source: raises ValueError for weights that cannot be run; whoever knows the engine passes it.
        quantize: whoever knows the engine passes it, too; without it, `request.quantize` is refused.
        check_adapter: raises ValueError for an adapter that cannot be applied to these weights.

    Raises:
        CreateError: the request or one of its files is wrong; nothing was changed.
        ModelNotFound, BrokenModel: the parent is not here, or damaged.
        BlobNotFound: a file was not uploaded.
        OutOfSpace, StoreError: the disk refused; the old model is still there.
    """
    if not request.from_name and not request.files:
        raise CreateError("neither 'from' or 'files' was specified")
    uploads = {**_parse_digests(request.files), **_parse_digests(request.adapters), **_parse_digests(request.drafts)}
    parent = store.get(request.from_name) if request.from_name else None
    inherited = parent.manifest.digests() if parent else frozenset()
    with store.lease(inherited | set(uploads.values())):
        for digest in sorted({*inherited, *uploads.values()}):
            if not store.has_blob(digest):
                raise BlobNotFound(str(digest))
        draft = _Draft(store, request, parent)
        try:
            yield from draft.add_files(check_source)
            yield from draft.add_adapters(check_adapter)
            yield from draft.add_drafts()
            if request.quantize:
                yield from draft.quantize(quantize)
            yield from draft.publish()
        except BaseException:  # a client that left ends the generator here, too
            if draft.written:
                store.discard(draft.written)
            raise


class _Draft:
    """The model as it comes together: layers of blobs that are there, and blobs to write."""

    def __init__(self, store: Store, request: CreateRequest, parent: StoredModel | None) -> None:
        self.store = store
        self.request = request
        self.parent = parent
        self.inherited = list(parent.manifest.layers) if parent else []
        self.uploaded: list[Layer] = []
        self.written: list[Digest] = []
        """Blobs that were made for this model; to be given up with it."""
        self.config: dict[str, Any] = dict(parent.config) if parent else {}
        if parent:
            self.config["parent_model"] = parent.name.short

    # ---- weights

    def add_files(self, check_source: CheckSource | None) -> Iterator[CreateStatus]:
        names = model_files.select(self.request.files) if self.request.files else ()
        files = self._paths(self.request.files, names)
        if files and names[0].lower().endswith(".gguf"):
            yield CreateStatus("parsing GGUF")
            self._add_gguf(files)
        elif files:
            yield CreateStatus("parsing safetensors")
            model_files.check_safetensors(files)
            self._add(FILE, self.request.files, names, is_named=True)
        weights = self._weights()
        if self.parent and weights:
            raise CreateError("the files hold weights and 'from' names a model that has its own; give one of them")
        if weights:
            source = ModelSource(weights)
            facts = _facts(source)
            if check_source:
                _check(lambda: check_source(source))
            self.config.update(facts.config_keys())
        elif not self.parent:
            raise CreateError("unknown type: the files hold a projector or an adapter, but no model's weights")

    def _add_gguf(self, files: Mapping[str, Path]) -> None:
        roles = model_files.sort_gguf(files)
        if roles.adapters:
            raise CreateError(f"{roles.adapters[0]} is a LoRA adapter; give it as an adapter, beside a model")
        self._add(MODEL, self.request.files, roles.weights)
        if roles.projectors:
            self.inherited = [layer for layer in self.inherited if layer.media_type != PROJECTOR]
            self._add(PROJECTOR, self.request.files, roles.projectors)

    def _weights(self) -> dict[str, Path]:
        """The uploaded weights under the names that the store will give them."""
        shards = [layer for layer in self.uploaded if layer.media_type == MODEL]
        files = {f"model-{index:05}.gguf": self._path(layer.digest) for index, layer in enumerate(shards, 1)}
        files |= {layer.name: self._path(layer.digest) for layer in self.uploaded if layer.media_type == FILE}
        return files

    # ---- quantising

    def quantize(self, quantize: QuantizeModel | None) -> Iterator[CreateStatus]:
        """Put quantised weights in the place of the model's."""
        if quantize is None:
            raise CreateError(f"quantizing to {self.request.quantize} needs the engine, which is not here")
        source_type = str(self.config.get("file_type", "of an unknown type"))
        if source_type.upper() not in FLOAT_FILE_TYPES:
            raise CreateError(
                f"quantization is only supported for F16, BF16 and F32 models, and the weights are {source_type}; "
                "leave 'quantize' out, or start from files that are not quantised"
            )
        source = ModelSource(self._weights() or (self.parent.files if self.parent else {}))
        with self.store.workspace() as folder:
            yield from quantize(QuantizeOrder(source, source_type.upper(), self.request.quantize, folder))
            files = {path.name: path for path in sorted(folder.iterdir())}
            facts = _facts(ModelSource({**_beside(source), **files}))
            self._drop_weights(files)
            for name, path in files.items():
                size = path.stat().st_size
                digest = self.store.adopt(path)
                self.written.append(digest)
                is_gguf = name.endswith(".gguf")
                self.uploaded.append(Layer(MODEL if is_gguf else FILE, digest, size, name="" if is_gguf else name))
                yield CreateStatus(NEW_BLOB.format(digest))
        self.config.update(facts.config_keys())

    def _drop_weights(self, new: Mapping[str, Path]) -> None:
        """A GGUF file is a whole model. New safetensors leave the files beside the old ones."""
        is_whole = any(name.endswith(".gguf") for name in new)

        def is_kept(layer: Layer) -> bool:
            if layer.media_type not in (MODEL, FILE):
                return True
            return not is_whole and layer.name not in new and not _is_weights(layer.name)

        self.uploaded = [layer for layer in self.uploaded if is_kept(layer)]
        self.inherited = [layer for layer in self.inherited if is_kept(layer)]

    # ---- adapters

    def add_adapters(self, check_adapter: CheckAdapter | None) -> Iterator[CreateStatus]:
        """Adapters of one request add up, and take the place of the parent's."""
        if not self.request.adapters:
            return
        adapters = group_adapters({name: name for name in self.request.adapters})
        if not adapters:
            raise CreateError(
                "unknown type: there are no .gguf files and no adapter_model.safetensors among the adapter's files"
            )
        self.inherited = [layer for layer in self.inherited if layer.media_type != ADAPTER]
        for names in adapters:
            is_gguf = next(iter(names)).lower().endswith(".gguf")
            yield CreateStatus("parsing GGUF" if is_gguf else "parsing safetensors")
            self._check_adapter(names, check_adapter, is_gguf=is_gguf)
            self._add(ADAPTER, self.request.adapters, tuple(names.values()), is_named=not is_gguf)

    def _check_adapter(self, names: Mapping[str, str], check_adapter: CheckAdapter | None, *, is_gguf: bool) -> None:
        """
        Args:
            names: of one adapter's files, by the names without the folder.
        """
        files = self._paths(self.request.adapters, tuple(names.values()))
        if is_gguf:
            if not model_files.sort_gguf(files).adapters:
                raise CreateError(f"{next(iter(files))} is no LoRA adapter: its general.type is not adapter")
        else:
            if CONFIG_NAME not in names:
                raise CreateError(f"there is no {CONFIG_NAME} beside the adapter's weights")
            if len(names) == 1:
                raise CreateError(f"there are no adapter's weights beside {names[CONFIG_NAME]}")
            model_files.check_safetensors(files)
        if check_adapter is not None:
            base = self._weights() or (self.parent.files if self.parent else {})
            adapter = {short: files[name] for short, name in names.items()}
            _check(lambda: check_adapter(ModelSource(base), ModelSource(adapter)))

    def add_drafts(self) -> Iterator[CreateStatus]:
        if not self.request.drafts:
            return
        names = model_files.select(self.request.drafts)
        files = self._paths(self.request.drafts, names)
        is_gguf = names[0].lower().endswith(".gguf")
        if is_gguf:
            names = model_files.sort_gguf(files).weights
        else:
            model_files.check_safetensors(files)
        if not names or set(files.values()) & set(self._weights().values()):
            raise CreateError("the draft model must be a model, and another one than the model itself")
        facts = _facts(ModelSource({name: files[name] for name in names}))
        self.config["draft"] = {"model_format": "gguf" if is_gguf else "safetensors", "architecture": facts.family}
        self.inherited = [layer for layer in self.inherited if layer.media_type != DRAFT]
        self._add(DRAFT, self.request.drafts, names, is_named=not is_gguf)
        yield CreateStatus("keeping the draft model, which is not used: answers are the same without it")

    # ---- words

    def publish(self) -> Iterator[CreateStatus]:
        """Write the small blobs and the manifest."""
        blobs = self._words()
        self._complete_config()
        existing = [*self.uploaded, *self.inherited]
        kept = sorted(existing, key=lambda layer: _order(layer.media_type))
        layers = kept + [Layer(media_type, Digest.of(data), len(data)) for media_type, data in blobs]
        self.config |= {
            "architecture": "amd64",
            "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": [str(layer.digest) for layer in layers]},
        }
        config = msgspec.json.encode(self.config, order="sorted")
        manifest = Manifest(Layer(CONFIG_MEDIA_TYPE, Digest.of(config), len(config)), tuple(layers))
        new = [*(data for _, data in blobs), config]
        digests = [Digest.of(data) for data in new]
        written = set(self.written)
        self.written += digests
        with self.store.lease(digests):
            yield from (CreateStatus(OLD_BLOB.format(layer.digest)) for layer in kept if layer.digest not in written)
            for data, digest in zip(new, digests, strict=True):
                is_old = self.store.has_blob(digest)
                self.store.write_blob([data])
                yield CreateStatus((OLD_BLOB if is_old else NEW_BLOB).format(digest))
            yield CreateStatus("writing manifest")
            self.store.write_manifest(self.request.name, manifest)
        yield CreateStatus("success")

    def _words(self) -> Blobs:
        """Blobs of template, system, parameters, messages and licences; what they replace is no longer inherited."""
        request = self.request
        blobs: Blobs = []
        if request.template is not None:
            try:
                GoTemplate.parse(request.template)
            except TemplateError as error:
                raise CreateError(f"template error: {error}") from error
            self._replace((TEMPLATE, PROMPT), request.template.encode(), blobs)
            self.config.pop(OWN_TEMPLATE, None)
            if request.template:
                self.config[OWN_TEMPLATE] = True
        if request.system is not None:
            self._replace((SYSTEM,), request.system.encode(), blobs)
        if request.parameters is not None:
            params = self._parameters(request.parameters)
            self._replace((PARAMS,), msgspec.json.encode(params, order="sorted") if params else b"", blobs)
        if request.messages is not None:
            messages = [_message(message) for message in request.messages]
            self._replace((MESSAGES,), msgspec.json.encode(messages) if messages else b"", blobs)
        known = set(self.parent.licenses if self.parent else ())
        for text in dict.fromkeys(request.licenses):
            if text and text not in known:
                blobs.append((LICENSE, text.encode()))
        return blobs

    def _parameters(self, given: Mapping[str, Any]) -> dict[str, Any]:
        taken_away = {key for key, value in given.items() if value is None or value == []}
        try:
            checked = check_options({key: value for key, value in given.items() if key not in taken_away})
        except ParameterError as error:
            raise CreateError(str(error)) from error
        inherited = self.parent.params if self.parent else {}
        return {key: value for key, value in {**inherited, **checked}.items() if key not in taken_away}

    def _complete_config(self) -> None:
        for key, value in (
            ("renderer", self.request.renderer),
            ("parser", self.request.parser),
            ("requires", self.request.requires),
        ):
            if value is not None:
                self.config[key] = value
        for key, value in self.request.info.items():
            if key in INFO_KEYS:
                name, kind = INFO_KEYS[key]
                self.config[name] = _info_value(key, value, kind)

    # ---- layers

    def _replace(self, media_types: tuple[str, ...], data: bytes, blobs: Blobs) -> None:
        self.inherited = [layer for layer in self.inherited if layer.media_type not in media_types]
        if data:
            blobs.append((media_types[0], data))

    def _add(
        self, media_type: str, digests: Mapping[str, str], names: Sequence[str], *, is_named: bool = False
    ) -> None:
        for name in names:
            digest = Digest.parse(digests[name])
            size = self._path(digest).stat().st_size
            self.uploaded.append(Layer(media_type, digest, size, name=name if is_named else ""))

    def _paths(self, digests: Mapping[str, str], names: Sequence[str]) -> dict[str, Path]:
        return {name: self._path(Digest.parse(digests[name])) for name in names}

    def _path(self, digest: Digest) -> Path:
        return self.store.blob_path(digest)


def _parse_digests(files: Mapping[str, str]) -> dict[str, Digest]:
    digests = {}
    for name, text in files.items():
        model_files.check_name(name)
        try:
            digests[name] = Digest.parse(text)
        except InvalidDigest as error:
            raise CreateError(f"{error} (of {name})") from error
    return digests


def _is_weights(name: str) -> bool:
    return name.endswith((".safetensors", ".safetensors.index.json"))


def _beside(source: ModelSource) -> dict[str, Path]:
    """A model's files without its weights."""
    return {name: path for name, path in source.files.items() if not _is_weights(name) and not name.endswith(".gguf")}


def _facts(source: ModelSource) -> ModelFacts:
    try:
        return model_facts(source)
    except (GGUFError, SafetensorsError) as error:  # checked before, so it is the disk that refuses
        raise CreateError(str(error)) from error


def _check(check: Callable[[], object]) -> None:
    try:
        check()
    except ValueError as error:
        raise CreateError(str(error)) from error


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise CreateError(f'message role must be one of "system", "user", or "assistant", not {str(role)[:32]!r}')
    if not isinstance(content, str):
        raise CreateError("the content of a message must be a text")
    return {"role": role, "content": content}


def _info_value(key: str, value: Any, kind: type) -> Any:
    is_right = type(value) is kind
    if kind is list and is_right:
        is_right = all(isinstance(item, str) for item in value)
    if kind is int and is_right:
        is_right = value >= 0
    if not is_right:
        wanted = {list: "a list of texts", str: "a text", int: "a whole number that is not negative"}[kind]
        raise CreateError(f"info {key!r} must be {wanted}")
    return value


def _order(media_type: str) -> int:
    """Weights before what goes with them, words after; equal ones keep their order."""
    order = (MODEL, FILE, PROJECTOR, ADAPTER, DRAFT)
    return order.index(media_type) if media_type in order else len(order)
