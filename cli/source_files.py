"""Which files a FROM or ADAPTER of a Modelfile means: a file, or what makes up a model in a folder.

A FROM's value is a path first and a name second, so a file beside the Modelfile hides the model of that name. In a
folder the first kind of weights that is there counts; the daemon checks every file again before it makes a model.
Source: ollama/ollama docs/modelfile.md and its order of choice in a folder, less the formats that can run code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cli.errors import CliError
from modelfiles.adapter_files import CONFIG_NAME, WEIGHTS_NAME
from modelfiles.source import POOLING_FILES

WEIGHTS = ("model*.safetensors", "consolidated*.safetensors", "*.safetensors", "*.gguf")
"""In this order; the first pattern that matches any file gives the weights."""
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter*.safetensors", "*.gguf", "*.safetensors")
SIDE_FILES = ("*.json", "*.jinja", "tokenizer.model", "merges.txt", "vocab.txt")
GGUF_MAGIC = b"GGUF"
LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class SourceFiles:
    """Files by the names under which the daemon is to know them: relative, with forward slashes."""

    paths: dict[str, Path]

    @classmethod
    def merge(cls, parts: Sequence[SourceFiles]) -> SourceFiles:
        """All files of several FROM lines.

        Raises:
            CliError: two of them have one name.
        """
        merged: dict[str, Path] = {}
        for part in parts:
            for name, path in part.paths.items():
                if merged.get(name, path) != path:
                    raise CliError(f"{merged[name]} and {path} have one name; a model can hold only one {name}")
                merged[name] = path
        return cls(merged)


def local_files(value: str, folder: Path) -> SourceFiles | None:
    """The files that a value means, or None where it is no path here and so must be a model's name.

    Args:
        folder: where relative paths start, the Modelfile's own.

    Raises:
        CliError: it is written like a path and nothing is there, or the folder holds no weights.
    """
    path = _existing(value, folder)
    if path is None:
        return None
    if path.is_dir():
        return _in_folder(path)
    # What `show` prints is a blob, whose name says nothing.
    is_nameless = _begin(path) == GGUF_MAGIC and path.suffix.lower() != ".gguf"
    return SourceFiles({f"{path.name}.gguf" if is_nameless else path.name: path})


def adapter_files(values: Sequence[str], folder: Path) -> SourceFiles:
    """The files of all ADAPTER lines, each adapter in a folder of its own if there are several.

    A value is a GGUF file, a safetensors file with its adapter_config.json beside it, or a folder with either. It may
    also be the configuration itself, for the safetensors file of the line after it: that is how `show` prints the two.

    Raises:
        CliError: a file is missing, or no adapter.
    """
    adapters: list[dict[str, Path]] = []
    config: Path | None = None
    for value in values:
        path = _existing(value, folder)
        if path is None:
            raise CliError(f'ADAPTER "{value}" is not there; it must be a file or a folder')
        path = _adapter_in(path) if path.is_dir() else path
        begin, is_named = _begin(path), path.suffix.lower() == ".gguf"
        if is_named or begin == GGUF_MAGIC:
            adapters.append({path.name if is_named else "adapter.gguf": path})
        elif begin[:1] == b"{":
            config = path
            continue
        else:
            config = config or path.parent / CONFIG_NAME
            if not config.is_file():
                raise CliError(f"there is no {CONFIG_NAME} beside {path}, which says how it is to be applied")
            adapters.append({WEIGHTS_NAME: path, CONFIG_NAME: config})
        config = None
    if config is not None:
        raise CliError(f"ADAPTER {config} is followed by no ADAPTER line with the weights that it is for")
    several = len(adapters) > 1
    named = ((f"{number}/" if several else "", adapter) for number, adapter in enumerate(adapters, 1))
    return SourceFiles({prefix + name: path for prefix, adapter in named for name, path in adapter.items()})


def _existing(value: str, folder: Path) -> Path | None:
    """What is at a path; None where the value may be a name.

    Raises:
        CliError: it is written like a path and nothing is there.
    """
    try:
        path = folder / Path(value).expanduser()
        exists = path.exists()
    except (OSError, RuntimeError, ValueError) as error:  # a name too long, an unknown "~user", a NUL character
        raise CliError(f'"{value[:80]}" is neither a path nor a name: {error}') from error
    if not exists:
        if value.startswith(("/", "./", "../", "~")) or value.endswith((".gguf", ".safetensors")):
            raise CliError(f"nothing is at {path}, which the Modelfile names")
        return None
    return path


def _adapter_in(folder: Path) -> Path:
    for pattern in ADAPTER_WEIGHTS:
        if weights := sorted(folder.glob(pattern)):
            break
    else:
        raise CliError(f"no adapter is in {folder}: it holds neither adapter_model.safetensors nor a .gguf file")
    if len(weights) > 1:
        names = ", ".join(path.name for path in weights[:3])
        raise CliError(f"{folder} holds {len(weights)} adapters ({names}); name the file in the ADAPTER line")
    return weights[0]


def _in_folder(folder: Path) -> SourceFiles:
    for pattern in WEIGHTS:
        if weights := sorted(folder.glob(pattern)):
            break
    else:
        raise CliError(
            f"no model is in {folder}: it holds neither .safetensors nor .gguf files "
            "(formats that can run code, such as .bin and .pth, must be converted to safetensors)"
        )
    sides = sorted({path for pattern in SIDE_FILES for path in folder.glob(pattern)})
    for path in weights:
        _begin(path)
    sides += sorted(folder.glob(POOLING_FILES))
    return SourceFiles({path.relative_to(folder).as_posix(): path for path in [*weights, *sides] if path.is_file()})


def _begin(path: Path) -> bytes:
    """A file's first bytes, as many as a GGUF file's magic number has.

    Raises:
        CliError: it cannot be read, or is a pointer: a repository that was cloned without git-lfs has small texts in
            the place of its weights. Nor is a pipe or a device waited for.
    """
    if not path.is_file():
        raise CliError(f"{path} is no regular file; a model comes from a file or a folder")
    try:
        with path.open("rb") as file:
            begin = file.read(len(LFS_POINTER))
    except OSError as error:
        raise CliError(f"{path} cannot be read: {error.strerror}") from error
    if begin == LFS_POINTER:
        raise CliError(f"{path} is a pointer of git-lfs, not the file itself; run `git lfs pull` beside it")
    return begin[: len(GGUF_MAGIC)]
