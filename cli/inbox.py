"""A file for the daemon without a second copy: a hard link in its inbox, under a random name.

Only the name goes over HTTP, and only whoever can write into the daemon's models folder can put a file there; so no
request can make the daemon read a path. Where that folder is another daemon's, on another disk or closed to this user,
there is no link, and `cli.create` sends the bytes.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def linked(path: Path, inbox: Path) -> Iterator[str | None]:
    """The name that a file has in the inbox inside the block; None where it cannot have one.

    Args:
        inbox: a folder that the daemon has made, or whose parent it has made.
    """
    name = secrets.token_hex(16)
    try:
        inbox.mkdir(exist_ok=True)
        os.link(path.resolve(strict=True), inbox / name, follow_symlinks=False)
    except OSError:
        yield None
        return
    try:
        yield name
    finally:
        with suppress(OSError):  # taken by the daemon
            (inbox / name).unlink()
