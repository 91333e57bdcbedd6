"""A registry as Ollama's is laid out, over `LocalServer`: manifests, blobs by range, tokens, blobs on another host.

registry = OllamaRegistry()
registry.add("library/tiny:latest", layers_of(b"weights"))
with LocalServer(registry) as server: ...
"""

from __future__ import annotations

import re
from urllib.parse import parse_qs, urlsplit

from registry.manifest import CONFIG_MEDIA_TYPE, MANIFEST_MEDIA_TYPE, Digest, Layer, Manifest
from tests.registry.local_server import Request, Response


class OllamaRegistry:
    """What it holds and how it behaves may be changed at any time."""

    def __init__(self) -> None:
        self.manifests: dict[str, bytes] = {}
        """By "namespace/model/reference"."""
        self.blobs: dict[str, bytes] = {}
        """By "sha256:...", whatever they hold."""
        self.media_type = MANIFEST_MEDIA_TYPE
        self.blob_server = ""
        """Where blobs are redirected to; "" serves them here."""
        self.token = ""
        """What must be sent as a bearer token; "" lets everybody in."""
        self.realm = ""
        self.challenge = ""
        """The WWW-Authenticate header, where it is not the one that goes with `realm`."""

    def add(self, name: str, layers: list[tuple[str, bytes]]) -> bytes:
        """Publish a model "namespace/model:tag"; the first layer is the config. Gives the manifest."""
        digests = [(kind, Digest.of(data), len(data)) for kind, data in layers]
        config, *rest = (Layer(kind, digest, size) for kind, digest, size in digests)
        assert config.media_type == CONFIG_MEDIA_TYPE
        data = Manifest(config, tuple(rest)).encode()
        self.blobs |= {str(Digest.of(body)): body for _, body in layers}
        self.manifests[name.replace(":", "/")] = data
        return data

    def __call__(self, request: Request) -> Response:
        path = urlsplit(request.path).path
        if path == "/token":
            return Response(body=b'{"token": "%s"}' % self.token.encode())
        if self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
            challenge = self.challenge or f'Bearer realm="{self.realm}",service="test",scope="repository:x:pull"'
            return Response(401, b'{"errors": []}', {"WWW-Authenticate": challenge})
        if match := re.fullmatch("/v2/(.+)/manifests/(.+)", path):
            data = self.manifests.get(f"{match[1]}/{match[2]}")
            if data is None:
                return Response(404, b'{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}')
            return Response(200, data, {"Content-Type": self.media_type})
        if match := re.fullmatch("/v2/(.+)/blobs/(.+)", path):
            if self.blob_server:
                return Response(307, headers={"Location": f"{self.blob_server}/{match[2]}?signature=a%2Fb"})
            return serve_blob(self.blobs, match[2], request)
        return Response(404)


class BlobServer:
    """The other host, which has the blobs alone and takes signed requests only."""

    def __init__(self, blobs: dict[str, bytes]) -> None:
        self.blobs = blobs

    def __call__(self, request: Request) -> Response:
        url = urlsplit(request.path)
        if parse_qs(url.query).get("signature") != ["a/b"]:
            return Response(403)
        return serve_blob(self.blobs, url.path[1:], request)


def serve_blob(blobs: dict[str, bytes], digest: str, request: Request) -> Response:
    data = blobs.get(digest)
    if data is None:
        return Response(404)
    match = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
    if not match:
        return Response(200, data)
    first, last = int(match[1]), min(int(match[2] or len(data)), len(data) - 1)
    if first > last:
        return Response(416, headers={"Content-Range": f"bytes */{len(data)}"})
    return Response(206, data[first : last + 1], {"Content-Range": f"bytes {first}-{last}/{len(data)}"})
