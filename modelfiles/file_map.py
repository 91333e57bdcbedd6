"""A file of weights as a read-only memory map, and nothing that is not a plain file.

Used by the GGUF and safetensors readers. A path may come from a person, so a pipe, a device or a folder must be refused
without waiting on it. The map sees the file as it is: whoever truncates a mapped file makes readers of it fault, which
is why blobs in the store are never written again.
"""

from __future__ import annotations

import mmap
import os
import stat
from pathlib import Path

FOREIGN_MAGIC = {
    b"version https://git-lfs": "a Git LFS pointer, not the weights themselves; fetch them with `git lfs pull`",
    b"GGUF": "a GGUF file; give it the ending .gguf",
    b"PK\x03\x04": "a PyTorch checkpoint, which can run code when it is loaded; convert it to safetensors",
    b"\x80": "a Python pickle, which can run code when it is loaded; convert it to safetensors",
    b"\x93NUMPY": "a NumPy array; convert it to safetensors",
    b"ggml": "a GGML file from before GGUF; convert it to GGUF",
    b"lmgg": "a GGML file from before GGUF; convert it to GGUF",
    b"tjgg": "a GGML file from before GGUF; convert it to GGUF",
    b"<!DOCTYPE": "a web page, perhaps the answer to a download that needed a login",
    b"<html": "a web page, perhaps the answer to a download that needed a login",
}


def map_file(path: Path) -> mmap.mmap:
    """Map a file.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is no plain file, or empty; the message is a sentence without the name.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("is not a plain file")
        if status.st_size == 0:
            raise ValueError("is empty")
        return mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
    finally:
        os.close(descriptor)


def close_map(mapped: mmap.mmap) -> None:
    """Unmap, unless somebody still holds a view of it; then the map goes with the last view."""
    try:
        mapped.close()
    except BufferError:
        return


def foreign_format(data: mmap.mmap) -> str | None:
    """What a file really is when it has been given the wrong name, as the end of a sentence that begins "it is"."""
    begin = data[:32]
    for magic, what in FOREIGN_MAGIC.items():
        if begin.startswith(magic):
            return what
    return None
