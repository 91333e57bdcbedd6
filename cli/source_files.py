"""Which files a FROM or ADAPTER of a Modelfile means: a file, or what makes up a model in a folder.

A value is a path first and a name second, so a file beside the Modelfile hides the model of that name. In a folder
the first kind of weights that is there counts; the daemon checks every file again before it makes a model of them.
Source: ollama/ollama docs/modelfile.md and its order of choice in a folder, less the formats that can run code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cli.errors import CliError
from modelfiles.source import POOLING_FILES

WEIGHTS = ("model*.safetensors", "adapter*.safetensors", "consolidated*.safetensors", "*.safetensors", "*.gguf")
"""In this order; the first pattern that matches any file gives the weights."""
SIDE_FILES = ("*.json", "*.jinja", "tokenizer.model", "merges.txt", "vocab.txt")
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
    try:
        path = folder / Path(value).expanduser()
        exists = path.exists()
    except (OSError, RuntimeError, ValueError) as error:  # a name too long, an unknown "~user", a NUL character
        raise CliError(f'FROM "{value[:80]}" is neither a path nor a name: {error}') from error
    if not exists:
        if value.startswith(("/", "./", "../", "~")) or value.endswith((".gguf", ".safetensors")):
            raise CliError(f"nothing is at {path}, which the Modelfile names")
        return None
    if path.is_dir():
        return _in_folder(path)
    _refuse_pointer(path)
    return SourceFiles({path.name: path})


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
        _refuse_pointer(path)
    sides += sorted(folder.glob(POOLING_FILES))
    return SourceFiles({path.relative_to(folder).as_posix(): path for path in [*weights, *sides] if path.is_file()})


def _refuse_pointer(path: Path) -> None:
    """A repository that was cloned without git-lfs has small texts in the place of its weights.

    Nor is a pipe or a device waited for.
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
