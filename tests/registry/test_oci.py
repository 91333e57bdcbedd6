"""OCISource against a registry laid out as Ollama's."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from dataclasses import replace

import msgspec
import pytest

from registry.errors import RemoteDenied, RemoteError, RemoteNotFound, RemoteUnreachable
from registry.manifest import CONFIG_MEDIA_TYPE, MODEL, Digest, Layer, Manifest
from registry.name import ModelName
from registry.oci import INDEXES, OCI_MANIFEST, OCISource
from registry.registry_client import Access
from registry.remote import RemoteTag
from registry.store import Store
from registry.transport import Transport
from tests.registry.local_server import LocalServer, Request, Response
from tests.registry.ollama_registry import BlobServer, OllamaRegistry
from tests.registry.pulling import pull
from tests.registry.small_models import contents, layers_of

WEIGHTS = bytes(range(256)) * 40


@pytest.fixture
def registry() -> OllamaRegistry:
    made = OllamaRegistry()
    made.add("library/tiny:latest", layers_of(WEIGHTS, system="Be brief."))
    return made


@pytest.fixture
def server(registry: OllamaRegistry) -> Iterator[LocalServer]:
    with LocalServer(registry) as made:
        yield made


@pytest.fixture
def source(access: Access) -> OCISource:
    return OCISource(access)


def named(server: LocalServer, model: str = "library/tiny") -> str:
    return f"http://127.0.0.1:{server.port}/{model}"


def find(source: OCISource, server: LocalServer, model: str = "library/tiny") -> None:
    source.find(ModelName.parse(named(server, model)), insecure=True)


# ---- pulling


def test_a_model_is_pulled(source: OCISource, registry: OllamaRegistry, server: LocalServer, store: Store) -> None:
    model = pull(source, named(server), store)
    (name,) = contents(store)
    assert name == f"127.0.0.1:{server.port}/library/tiny:latest"
    stored = store.get(model.name)
    assert stored.digest == Digest.of(registry.manifests["library/tiny/latest"])
    assert stored.files["model.gguf"].read_bytes() == WEIGHTS
    assert stored.system == "Be brief."
    assert store.check() == []


def test_what_is_found(source: OCISource, server: LocalServer) -> None:
    model = source.find(ModelName.parse(named(server)), insecure=True)
    weights, system, config = model.blobs
    assert weights.digest == Digest.of(WEIGHTS)
    assert (weights.key, weights.label) == (f"sha256:{weights.digest.hex}", weights.digest.hex[:12])
    assert (weights.size, system.size) == (len(WEIGHTS), len("Be brief."))
    assert config.size is not None
    request = server.requests[0]
    assert request.path == "/v2/library/tiny/manifests/latest"
    assert "vnd.docker.distribution.manifest.v2+json" in request.headers["Accept"]
    assert OCI_MANIFEST in request.headers["Accept"]


def test_publishing_says_what_ollama_says(source: OCISource, server: LocalServer, store: Store) -> None:
    model = pull(source, named(server), store)
    statuses = [status.status for status in model.publish(store, {})]
    assert statuses == ["verifying sha256 digest", "writing manifest"]


def test_ranges_of_blobs(source: OCISource, server: LocalServer) -> None:
    model = source.find(ModelName.parse(named(server)), insecure=True)
    with model.blobs[0].open(100, 200) as reply:
        assert (reply.start, reply.total) == (100, len(WEIGHTS))
        assert b"".join(reply.chunks) == WEIGHTS[100:200]


def test_blobs_on_another_host(source: OCISource, registry: OllamaRegistry, server: LocalServer, store: Store) -> None:
    """As Ollama's registry does it; authorisation stays behind, the signature in the address is kept."""
    registry.token, registry.realm = "t0ken-of-the-registry", f"{server.url}/token"
    with LocalServer(BlobServer(registry.blobs)) as blobs:
        registry.blob_server = blobs.url
        pull(source, named(server), store)
    assert len(blobs.requests) == 3
    assert not [request for request in blobs.requests if "Authorization" in request.headers]
    assert store.check() == []


def test_a_link_that_expired_is_asked_for_again(
    source: OCISource, registry: OllamaRegistry, server: LocalServer
) -> None:
    model = source.find(ModelName.parse(named(server)), insecure=True)
    with LocalServer(BlobServer(registry.blobs)) as blobs:
        registry.blob_server = blobs.url
        for start in (0, 100):  # every range begins at the registry, which signs anew
            with model.blobs[0].open(start, start + 10) as reply:
                assert b"".join(reply.chunks) == WEIGHTS[start : start + 10]
    assert server.paths.count(f"GET /v2/library/tiny/blobs/{model.blobs[0].key}") == 2


def test_a_missing_model(source: OCISource, server: LocalServer) -> None:
    with pytest.raises(RemoteNotFound, match=r'has no model "127.*library/other:latest": manifest unknown') as caught:
        find(source, server, "library/other")
    assert not caught.value.is_temporary
    assert len(server.requests) == 1


def test_faults_that_pass(source: OCISource, registry: OllamaRegistry, server: LocalServer) -> None:
    answers = iter([Response(503), Response(429, headers={"Retry-After": "1"})])
    server.respond = lambda request: next(answers, None) or registry(request)
    find(source, server)
    assert len(server.requests) == 3


def test_faults_that_do_not_pass(source: OCISource, server: LocalServer) -> None:
    server.respond = lambda _: Response(503)
    with pytest.raises(RemoteError, match="HTTP 503"):
        find(source, server)
    assert len(server.requests) == 3


# ---- insecure


def test_plain_http_must_be_allowed(source: OCISource, server: LocalServer) -> None:
    with pytest.raises(RemoteError, match="insecure protocol http"):
        source.find(ModelName.parse(named(server)))
    assert server.requests == []


def test_a_registry_without_tls(source: OCISource, server: LocalServer) -> None:
    name = ModelName.parse(f"127.0.0.1:{server.port}/library/tiny")
    with pytest.raises(RemoteError, match="--insecure"):
        source.find(name)
    assert server.requests == []
    assert len(source.find(name, insecure=True).blobs) == 3


def test_a_registry_with_tls(access: Access, registry: OllamaRegistry, tls: ssl.SSLContext, trusted: None) -> None:
    with Transport() as transport, LocalServer(registry, tls=tls) as server:
        name = ModelName.parse(f"127.0.0.1:{server.port}/library/tiny")
        with pytest.raises(RemoteUnreachable, match=r"cannot be trusted .* --insecure"):
            OCISource(access).find(name)
        assert server.requests == []
        assert len(OCISource(replace(access, transport=transport)).find(name).blobs) == 3
        assert len(OCISource(access).find(name, insecure=True).blobs) == 3


# ---- manifests


def test_a_plain_oci_manifest(source: OCISource, registry: OllamaRegistry, server: LocalServer, store: Store) -> None:
    registry.media_type = OCI_MANIFEST
    raw = msgspec.json.decode(registry.manifests["library/tiny/latest"])
    del raw["mediaType"]
    raw["annotations"] = {"org.opencontainers.image.title": "tiny"}
    data = registry.manifests["library/tiny/latest"] = msgspec.json.encode(raw)
    assert store.get(pull(source, named(server), store).name).digest == Digest.of(data)


def test_an_index_of_one_manifest(
    source: OCISource, registry: OllamaRegistry, server: LocalServer, store: Store
) -> None:
    data = registry.manifests["library/tiny/latest"]
    registry.manifests[f"library/tiny/{Digest.of(data)}"] = data
    entry = {"mediaType": OCI_MANIFEST, "digest": str(Digest.of(data)), "size": len(data)}
    index = {"schemaVersion": 2, "mediaType": INDEXES[0], "manifests": [entry]}
    registry.manifests["library/tiny/latest"] = msgspec.json.encode(index)
    assert store.get(pull(source, named(server), store).name).digest == Digest.of(data)
    registry.manifests[f"library/tiny/{Digest.of(data)}"] = data + b" "
    with pytest.raises(RemoteError, match="sent another manifest"):
        find(source, server)
    registry.manifests["library/tiny/latest"] = msgspec.json.encode(index | {"manifests": [entry, entry]})
    with pytest.raises(RemoteError, match=r"has 2 variants of .*library/tiny"):
        find(source, server)


@pytest.mark.parametrize(
    ("kinds", "sentence"),
    [
        (["application/vnd.docker.image.rootfs.diff.tar.gzip"], "is no model: it consists of layers of the type appl"),
        (["application/vnd.ollama.image.tensor"], "each tensor in a layer of its own"),
        ([], "has no layers"),
    ],
)
def test_what_is_no_model(
    source: OCISource, registry: OllamaRegistry, server: LocalServer, kinds: list[str], sentence: str
) -> None:
    layers = tuple(Layer(kind, Digest.of(b""), 0) for kind in kinds)
    manifest = Manifest(Layer(CONFIG_MEDIA_TYPE, Digest.of(b"{}"), 2), layers)
    registry.manifests["library/tiny/latest"] = manifest.encode()
    with pytest.raises(RemoteError, match=sentence):
        find(source, server)


def test_one_blob_for_two_layers_is_fetched_once(
    source: OCISource, registry: OllamaRegistry, server: LocalServer
) -> None:
    manifest = Manifest.parse(registry.manifests["library/tiny/latest"])
    twice = replace(manifest, layers=(*manifest.layers, manifest.layers[0]))
    registry.manifests["library/tiny/latest"] = twice.encode()
    assert len(source.find(ModelName.parse(named(server)), insecure=True).blobs) == 3
    assert [layer.media_type for layer in twice.layers].count(MODEL) == 2


# ---- tokens


def test_a_token_is_got_once_and_used(
    source: OCISource, registry: OllamaRegistry, server: LocalServer, store: Store
) -> None:
    registry.token, registry.realm = "t0ken", f"{server.url}/token?kind=a"
    pull(source, named(server), store)
    asked = [path for path in server.paths if "/token" in path]
    assert asked == ["GET /token?kind=a&scope=repository%3Ax%3Apull&service=test"]


def test_a_token_that_ran_out_is_replaced(source: OCISource, registry: OllamaRegistry, server: LocalServer) -> None:
    registry.token, registry.realm = "first", f"{server.url}/token"
    model = source.find(ModelName.parse(named(server)), insecure=True)
    registry.token = "second"
    with model.blobs[0].open(0, 10) as reply:
        assert b"".join(reply.chunks) == WEIGHTS[:10]


def test_a_token_that_does_not_help(source: OCISource, registry: OllamaRegistry, server: LocalServer) -> None:
    registry.token, registry.realm = "t0ken", f"{server.url}/token"

    def respond(request: Request) -> Response:
        return Response(body=b'{"access_token": "other"}') if "/token" in request.path else registry(request)

    server.respond = respond
    with pytest.raises(RemoteDenied, match=r"denies access to .* \.netrc|~/\.netrc"):
        find(source, server)
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"[]", b'{"token": 1}', b'{"token": "a\\r\\nX: y"}', b"\xff", b"[" * 9999]
)
def test_what_is_no_token(source: OCISource, registry: OllamaRegistry, server: LocalServer, body: bytes) -> None:
    registry.token, registry.realm = "t0ken", f"{server.url}/token"
    server.respond = lambda request: Response(body=body) if "/token" in request.path else registry(request)
    with pytest.raises(RemoteError, match="token"):
        find(source, server)


# ---- tags


def test_tags_over_several_pages(source: OCISource, server: LocalServer) -> None:
    pages = {
        "/v2/library/tiny/tags/list": (
            ["latest", "7b", "bad tag", "../x", ""],
            "/v2/library/tiny/tags/list?last=7b&n=2",
        ),
        "/v2/library/tiny/tags/list?last=7b&n=2": (["7b", "7b-q4_K_M"], ""),
    }

    def respond(request: Request) -> Response:
        tags, following = pages[request.path]
        headers = {"Link": f'<{following}>; rel="next"'} if following else {}
        return Response(body=msgspec.json.encode({"name": "library/tiny", "tags": tags}), headers=headers)

    server.respond = respond
    tags = source.tags(ModelName.parse(named(server)), insecure=True)
    assert tags == [RemoteTag("latest", None), RemoteTag("7b", None), RemoteTag("7b-q4_K_M", None)]


@pytest.mark.parametrize(
    "link", ["http://127.0.0.2/v2/library/tiny/tags/list?n=1", "/v2/library/other/tags/list?n=1", "/x"]
)
def test_tags_that_go_on_elsewhere(source: OCISource, server: LocalServer, link: str) -> None:
    server.respond = lambda _: Response(body=b'{"tags": ["a"]}', headers={"Link": f'<{link}>; rel="next"'})
    with pytest.raises(RemoteError, match="at another place"):
        source.tags(ModelName.parse(named(server)), insecure=True)
    assert len(server.requests) == 1


def test_tags_without_an_end(source: OCISource, server: LocalServer) -> None:
    link = {"Link": '</v2/library/tiny/tags/list?n=1>; rel="next"'}
    server.respond = lambda _: Response(body=b'{"tags": null}', headers=link)
    assert source.tags(ModelName.parse(named(server)), insecure=True) == []
    assert len(server.requests) == 100


def test_tags_of_a_missing_model(source: OCISource, server: LocalServer) -> None:
    server.respond = lambda _: Response(404)
    with pytest.raises(RemoteNotFound, match='has no list of tags of "library/tiny"'):
        source.tags(ModelName.parse(named(server)), insecure=True)
