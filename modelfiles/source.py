"""ModelSource: the files one model consists of, by the names that their maker gave them.

The registry builds it from a manifest, tests and `FROM ./folder` build it from a path, the daemon reads the tokenizer
and the configuration out of it, and the worker its weights. Blobs are named by digest on disk, so the names live here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

POOLING_FILES = "*_Pooling/config.json"
"""Where sentence-transformers' models say how a text's vector is pooled."""


class SourceError(ValueError):
    """A file or folder that cannot be a model."""


@dataclass(frozen=True)
class ModelSource:
    """One model's files.

    `files` maps the maker's file name ("model.gguf", or "config.json", "tokenizer.json",
    "model-00001-of-00002.safetensors") to the path that holds its bytes.
    """

    files: Mapping[str, Path]

    def __post_init__(self) -> None:
        if not any(name.endswith((".gguf", ".safetensors")) for name in self.files):
            names = ", ".join(sorted(self.files)) or "none"
            raise SourceError(f"no weights among the files ({names}); a model needs a .gguf or .safetensors file")

    @property
    def format(self) -> Literal["gguf", "safetensors"]:
        return "gguf" if self.gguf_files else "safetensors"

    @property
    def gguf_files(self) -> tuple[Path, ...]:
        """Paths of the GGUF files, in the order of their names, which is the order of their shards."""
        return tuple(self.files[name] for name in sorted(self.files) if name.endswith(".gguf"))

    def read_text(self, name: str) -> str | None:
        """Text of a side file such as "chat_template.jinja", or None where the model has none.

        Raises:
            SourceError: the file is not UTF-8.
        """
        path = self.files.get(name)
        if path is None:
            return None
        try:
            return path.read_text("utf-8")
        except UnicodeDecodeError as error:
            raise SourceError(f"{name} is not UTF-8 text (byte {error.start})") from error

    @classmethod
    def from_path(cls, path: Path) -> ModelSource:
        """A GGUF file, or a directory in the layout of the Hugging Face hub.

        Raises:
            SourceError: nothing is there, or it holds no weights.
        """
        if path.is_dir():
            # Models for embedding keep how they pool in a folder of its own.
            found = [*path.iterdir(), *path.glob(POOLING_FILES)]
            return cls({entry.relative_to(path).as_posix(): entry for entry in sorted(found) if entry.is_file()})
        if path.is_file():
            return cls({path.name: path})
        raise SourceError(f"no model at {path}: the path does not exist")
