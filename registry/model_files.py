"""Which of the files that somebody offers make up a model, and whether each is what its name says.

The rules of choice are Ollama's for `FROM <folder>`, less the pickles: a file that runs code when it is loaded (.bin,
.pt, .pth, ...) is refused by its name and by its first bytes. Weights are opened with the strict readers, which check
everything that a file says about itself, so a file that passes here can be mapped by the engine without surprise.

`create` calls this for uploaded blobs. Messages name files as their sender did, never as they are called on the disk.
"""

from __future__ import annotations

import fnmatch
import posixpath
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from modelfiles.file_map import close_map, foreign_format, map_file
from modelfiles.gguf import GGUFError, GGUFFile, GGUFValue, open_shards
from modelfiles.safetensors import SafetensorsError, SafetensorsFile, SafetensorsModel
from registry.errors import CreateError
from registry.manifest import is_clean_path

PICKLES = ".bin .pt .pth .pkl .pickle .ckpt .joblib .npy .npz .h5 .hdf5 .keras"
PROGRAMS = ".py .pyc .so .dll .dylib .exe .sh .zip .tar .gz"
UNSAFE_ENDINGS = frozenset(f"{PICKLES} {PROGRAMS}".split())

WEIGHTS = (
    ("model*.safetensors", "*/model*.safetensors"),
    ("consolidated*.safetensors",),
    ("*.gguf",),
)
"""Patterns of weights, in order: the first row that matches any file is the model's."""

ALWAYS_TAKEN = ("*.json", "*.jinja", "merges.txt", "vocab.txt")
SENTENCEPIECE = "tokenizer.model"

MAX_SIDE_FILE_BYTES = 256 * 1024 * 1024
"""Longest JSON or text file beside the weights; the largest tokenizers have some 40 MB."""

MAX_LISTED = 3


@dataclass(frozen=True)
class GGUFFiles:
    """The roles of some GGUF files."""

    weights: tuple[str, ...]
    """In the order of their shards."""
    projectors: tuple[str, ...]
    adapters: tuple[str, ...]


def check_name(name: str) -> None:
    """Refuse a file name that is no clean relative path, or that is a program's or a pickle's.

    Raises:
        CreateError: it is one of those.
    """
    if name.startswith(("/", "~")) or "\\" in name or name[1:2] == ":":
        raise CreateError("file path must be relative: it must name a file of the model with forward slashes")
    if not is_clean_path(name):
        raise CreateError('a file path must be clean: no empty part, ".", ".." or control characters, 255 bytes a part')
    ending = posixpath.splitext(name)[1].lower()
    if ending in UNSAFE_ENDINGS:
        raise CreateError(f"{name} is refused: {ending} files can run code; convert the weights to safetensors or GGUF")


def select(names: Iterable[str]) -> tuple[str, ...]:
    """The files that make up one model: one kind of weights, and what describes them.

    Raises:
        CreateError: there are no weights among them.
    """
    names = sorted(names)
    for patterns in WEIGHTS:
        chosen = [name for name in names if any(_matches(name, pattern) for pattern in patterns)]
        if chosen:
            break
    else:
        offered = f": {_listed(names)}" if names else ""
        raise CreateError(f"unknown type: there are no .gguf files and no model*.safetensors among the files{offered}")
    if chosen[0].lower().endswith(".gguf"):
        return tuple(chosen)
    beside = [name for name in names if any(_matches(posixpath.basename(name), pattern) for pattern in ALWAYS_TAKEN)]
    sentencepiece = [name for name in names if posixpath.basename(name) == SENTENCEPIECE]
    return (*chosen, *beside, *sorted(sentencepiece, key=lambda name: (name.count("/"), name))[:1])


def sort_gguf(files: Mapping[str, Path]) -> GGUFFiles:
    """Open every GGUF file and say which are the weights, which project images, which are LoRA adapters.

    Raises:
        CreateError: one is no sound GGUF file, or the weights are no complete set of shards.
    """
    weights: list[tuple[int, str]] = []
    projectors, adapters = [], []
    for name, path in sorted(files.items()):
        metadata = gguf_metadata(name, path)
        if metadata.get("general.type") == "adapter":
            adapters.append(name)
        elif metadata.get("general.type") == "mmproj" or metadata.get("general.architecture") == "clip":
            projectors.append(name)
        else:
            number = metadata.get("split.no", 0)
            weights.append((number if isinstance(number, int) else 0, name))
    ordered = tuple(name for _, name in sorted(weights))
    if ordered:
        try:
            open_shards([files[name] for name in ordered]).close()
        except GGUFError as error:
            raise CreateError(_with_names(error, files)) from error
    return GGUFFiles(ordered, tuple(projectors), tuple(adapters))


def gguf_metadata(name: str, path: Path) -> Mapping[str, GGUFValue]:
    """A GGUF file's metadata, after checking the whole file.

    Raises:
        CreateError: it is no sound GGUF file.
    """
    try:
        with GGUFFile.open(path) as file:
            return file.metadata
    except GGUFError as error:
        raise CreateError(_with_names(error, {name: path})) from error


def check_safetensors(files: Mapping[str, Path]) -> None:
    """Check every file of a safetensors model or adapter.

    Raises:
        CreateError: weights, index, or a file beside them is not what its name says.
    """
    try:
        with SafetensorsModel.open(files) as model:
            opened = set(model.files)
        for name in files:
            if name.endswith(".safetensors") and name not in opened:
                SafetensorsFile.open(files[name], name).close()
    except SafetensorsError as error:
        raise CreateError(_with_names(error, files)) from error
    for name, path in files.items():
        if not name.endswith(".safetensors"):
            _check_side_file(name, path)


def _check_side_file(name: str, path: Path) -> None:
    try:
        mapped = map_file(path)
    except (OSError, ValueError) as error:
        raise CreateError(f"{name} {getattr(error, 'strerror', None) or error}") from error
    try:
        if len(mapped) > MAX_SIDE_FILE_BYTES:
            raise CreateError(f"{name} has {len(mapped)} bytes; the limit is {MAX_SIDE_FILE_BYTES}")
        if what := foreign_format(mapped):
            raise CreateError(f"{name} is {what}")
        if posixpath.basename(name) == SENTENCEPIECE:
            return  # binary; the tokenizer reads it with bounds of its own
        data = mapped[:]
    finally:
        close_map(mapped)
    try:
        data.decode()
        if name.endswith(".json"):
            msgspec.json.decode(data)
    except (UnicodeDecodeError, msgspec.MsgspecError, RecursionError) as error:
        raise CreateError(f"{name} cannot be read: {error}") from error


def _listed(names: Sequence[str]) -> str:
    """Some files for a sentence: all of a few, the first of many."""
    shown = ", ".join(names[:MAX_LISTED])
    return f"{shown} and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else shown


def _matches(name: str, pattern: str) -> bool:
    """As a shell would: "*" does not reach over a slash."""
    return name.count("/") == pattern.count("/") and fnmatch.fnmatchcase(name.lower(), pattern)


def _with_names(error: Exception, files: Mapping[str, Path]) -> str:
    """The error's message with the sender's file names in place of the store's."""
    message = str(error)
    for name, path in files.items():
        message = message.replace(path.name, name)
    return message
