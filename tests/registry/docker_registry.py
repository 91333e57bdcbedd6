"""Debian's docker-registry, a real OCI registry, on a free port with a folder of its own.

with DockerRegistry(folder) as registry:
    ...  # registry.host is "127.0.0.1:PORT"; it speaks plain HTTP
"""

from __future__ import annotations

import re
import subprocess
import threading
from pathlib import Path
from types import TracebackType

PROGRAM = Path("/usr/bin/docker-registry")

CONFIG = """\
version: 0.1
log: {{level: info, accesslog: {{disabled: true}}}}
storage:
  filesystem: {{rootdirectory: "{folder}/data"}}
  delete: {{enabled: true}}
http: {{addr: "127.0.0.1:0", secret: "of these tests"}}
"""

LOGIN = ("somebody", "secret")

AUTH = 'auth: {{htpasswd: {{realm: test, path: "{folder}/htpasswd"}}}}\n'
HTPASSWD = "somebody:$2y$04$abcdefghijklmnopqrstuu2r9OfJnfCsdneAXAGHnS4UpFFP8WIrW\n"


class DockerRegistry:
    """The registry; use it as a context.

    Args:
        folder: an empty one, for its files.
        has_login: whether it wants LOGIN.
    """

    def __init__(self, folder: Path, *, has_login: bool = False) -> None:
        config = CONFIG + (AUTH if has_login else "")
        (folder / "config.yml").write_text(config.format(folder=folder))
        (folder / "htpasswd").write_text(HTPASSWD)
        self._command = [str(PROGRAM), "serve", str(folder / "config.yml")]
        self.folder = folder / "data"
        self.host = ""

    def __enter__(self) -> DockerRegistry:
        self._process = subprocess.Popen(self._command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        assert self._process.stderr is not None
        lines: list[str] = []
        for line in self._process.stderr:
            lines.append(line)
            if match := re.search(r"listening on (127\.0\.0\.1:\d+)", line):
                self.host = match[1]
                break
        # It logs on, and must not wait for a reader.
        self._reader = threading.Thread(target=lines.extend, args=(self._process.stderr,))
        self._reader.start()
        if not self.host:
            self.__exit__(None, None, None)
            raise AssertionError(f"docker-registry ended: {''.join(lines)}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait()
        self._reader.join()
        assert self._process.stderr is not None
        self._process.stderr.close()
