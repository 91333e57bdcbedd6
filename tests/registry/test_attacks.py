"""Attacks through registries: each does no harm and gets its sentence. No harm is: no file that should not be there, no
request that should not be made.

The numbers are those of the list of published flaws that the tests of the whole project go by:

    S01  digests that are paths (CVE-2024-37032)            here; uploads: tests/daemon, test_manifest.py
    S02  digests that are paths, and wrong bytes            here
    S03  every other way from a digest to a path            here: indexes, pushing; create: test_create.py
    S04  names of pushed models that are paths              here; test_name.py
    S05  create tells whether a file exists                 takes digests only: test_create.py
    S06  create from a device                               test_gguf.py, tests/cli/test_create.py
    S07  archives                                           none are taken
    S08  files of a few bytes                               test_gguf.py, test_model_files.py
    S09  truncated files                                    test_gguf.py, test_model_files.py
    S10  missing keys, wrong types                          test_gguf.py, tests/engine/test_config.py
    S11  huge declared sizes                                test_gguf.py, test_safetensors.py
    S12  alignment 0                                        test_gguf.py
    S13  counts of 0                                        tests/engine/test_config.py
    S14  string lengths, old versions                       test_gguf.py
    S15  negative and huge counts                           test_gguf.py
    S16  tensors beyond the end of the file                 test_gguf.py, test_safetensors.py
    S17  lists of indexes out of range                      no such metadata is used
    S18  malformed images                                   none are taken
    S19  malformed manifests                                here; test_manifest.py
    S20  bodies without an end, compressed bodies           here
    S21  tokens from another host's realm                   here
    S22  links into the local network                       here; test_transport.py
    S23  DNS rebinding                                      tests/daemon/test_security.py
    S24  a port that is open to all                         tests/daemon/test_main.py: only on purpose
    S25  names out of headers                               here
    S26  debugging pages                                    there are none
    S27  names that reach a shell                           here
    S28  files and addresses as sources                     here; tests/daemon
    S29  indexes of shards that are paths                   test_model_files.py, test_safetensors.py
    S30  uploads with a file name                           there are none
    S31  artifacts of another version                       here; the hub's: tests of registry/hub.py
"""

from __future__ import annotations

import ast
import gzip
import ssl
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from registry.errors import BrokenModel, DigestMismatch, InvalidName, RegistryError, RemoteError
from registry.manifest import Digest
from registry.name import ModelName
from registry.oci import INDEXES, OCISource
from registry.push import push_model
from registry.registry_client import Access
from registry.store import Store
from registry.transport import Transport
from tests.registry.local_server import PRIVATE, LocalServer, Request, Response
from tests.registry.ollama_registry import BlobServer, OllamaRegistry
from tests.registry.pulling import pull
from tests.registry.small_models import contents, layers_of, put_model

MODEL = "library/tiny"
PATH = "/v2/library/tiny/manifests/latest"
HEX = "0123456789abcdef" * 4

DIGESTS = [
    "",
    "sha256:",
    HEX,
    "sha256:../../../../etc/passwd",
    "sha256-../../x",
    "../../../../etc/passwd",
    "/etc/passwd",
    f"sha256:{HEX[:-1]}",
    f"sha256:{HEX}0",
    f"sha256:{HEX.upper()}",
    f"sha256:{HEX}\n",
    f" sha256:{HEX}",
    f"sha256:{HEX[:-1]}\x00",
    f"sha256:{HEX[:-1]}/",
    f"sha256:{HEX[:-3]}/..",
    f"sha256:{HEX[:-1]}\u0661",
    f"sha512:{HEX}",
    f"SHA256:{HEX}",
    f"sha256:sha256:{HEX}",
    f"sha256:{HEX[:-3]}%2e",
    f"sha256\\{HEX}",
]


@pytest.fixture
def registry() -> OllamaRegistry:
    made = OllamaRegistry()
    made.add("library/tiny:latest", layers_of(b"weights"))
    return made


@pytest.fixture
def server(registry: OllamaRegistry) -> Iterator[LocalServer]:
    with LocalServer(registry) as made:
        yield made


@pytest.fixture
def source(access: Access) -> OCISource:
    return OCISource(access)


@pytest.fixture(autouse=True)
def _nothing_outside_the_store_changes(tmp_path: Path) -> Iterator[None]:
    """Files beside the store, which a path out of it would reach."""
    canaries = [tmp_path / "canary", tmp_path / "models" / "canary"]
    for path in canaries:
        path.parent.mkdir(exist_ok=True)
        path.write_text("sings")
    yield
    assert {path.name for path in tmp_path.iterdir()} == {"canary", "models"}
    assert [path.read_text() for path in canaries] == ["sings", "sings"]


def named(server: LocalServer, model: str = MODEL) -> str:
    return f"http://127.0.0.1:{server.port}/{model}"


def refused(source: OCISource, server: LocalServer, store: Store) -> str:
    """The sentence with which a pull of the server's model ends, having stored nothing."""
    with pytest.raises(RegistryError) as caught:
        pull(source, named(server), store)
    assert contents(store) == {}
    assert not store.blobs.exists() or not list(store.blobs.iterdir())
    return str(caught.value)


def manifest_with(registry: OllamaRegistry, **changes: Any) -> bytes:
    return msgspec.json.encode(msgspec.json.decode(registry.manifests["library/tiny/latest"]) | changes)


def layer(digest: object, **changes: Any) -> dict[str, Any]:
    return {"mediaType": "application/vnd.ollama.image.model", "digest": digest, "size": 7} | changes


@pytest.mark.parametrize("digest", DIGESTS)
@pytest.mark.parametrize("place", ["layers", "config"])
def test_s01_digests_that_are_paths(
    source: OCISource, registry: OllamaRegistry, server: LocalServer, store: Store, digest: str, place: str
) -> None:
    given: Any = [layer(digest)] if place == "layers" else layer(digest)
    registry.manifests["library/tiny/latest"] = manifest_with(registry, **{place: given})
    assert "invalid digest" in refused(source, server, store)
    assert server.paths == [f"GET {PATH}"]


@pytest.mark.parametrize("body", [b"", b"weightz", b"weights and more", b"weight"])
def test_s02_wrong_bytes(
    source: OCISource, registry: OllamaRegistry, server: LocalServer, store: Store, body: bytes
) -> None:
    registry.blobs[str(Digest.of(b"weights"))] = body
    with pytest.raises(DigestMismatch):
        pull(source, named(server), store)
    assert not store.has_blob(Digest.of(b"weights"))
    assert contents(store) == {}
    assert store.check() == []


@pytest.mark.parametrize("digest", DIGESTS)
def test_s03_digests_of_an_index(
    source: OCISource, registry: OllamaRegistry, server: LocalServer, store: Store, digest: str
) -> None:
    index = {"schemaVersion": 2, "mediaType": INDEXES[0], "manifests": [{"digest": digest, "size": 1}]}
    registry.manifests["library/tiny/latest"] = msgspec.json.encode(index)
    assert "invalid digest" in refused(source, server, store)
    assert len(server.requests) == 1


@pytest.mark.parametrize("digest", DIGESTS)
def test_s03_digests_of_a_model_that_is_pushed(
    access: Access, registry: OllamaRegistry, server: LocalServer, store: Store, digest: str
) -> None:
    """Somebody has written into the store's folder."""
    name = put_model(store, named(server)).name
    store.manifests.joinpath(*name.path_parts).write_bytes(manifest_with(registry, layers=[layer(digest)]))
    with pytest.raises(BrokenModel, match="invalid digest"):
        list(push_model(store, access, name, insecure=True))
    assert server.requests == []


@pytest.mark.parametrize(
    "text",
    ["../../etc/{}", "/etc/{}", "a/../../{}", "%2e%2e/{}", "..%2f{}", "a/b/..", "host/../{}", "~/{}", "\\\\host\\{}"],
)
def test_s04_names_that_are_paths(text: str) -> None:
    """They end alike whether the file is there, and without its name."""
    said = set()
    for file in ("passwd", "missing"):
        with pytest.raises(InvalidName) as caught:
            ModelName.parse(text.format(file))
        said.add(str(caught.value))
    assert len(said) == 1
    assert "etc" not in said.pop()


MANIFESTS: dict[str, Any] = {
    "nothing": b"",
    "spaces": b"  \n",
    "null": b"null",
    "a list": b"[]",
    "a page": b"<html></html>",
    "a word": b"{}",
    "half": b'{"schemaVersion": 2, "config": {"med',
    "no text": b"\xff\xfe{\x00",
    "deep": b"[" * 100_000,
    "deep inside": b'{"schemaVersion": 2, "x": ' + b'{"a":' * 100_000,
    "version 1": {"schemaVersion": 1},
    "a version that is text": {"schemaVersion": "2"},
    "no layers": {"layers": None},
    "empty layers": {"layers": []},
    "layers that are none": {"layers": {"a": 1}},
    "layers of null": {"layers": [None]},
    "layers of lists": {"layers": [[]]},
    "no config": {"config": None},
    "a list for a config": {"config": []},
    "a negative size": {"layers": [layer(f"sha256:{HEX}", size=-1)]},
    "a fraction": {"layers": [layer(f"sha256:{HEX}", size=1.5)]},
    "a size that is text": {"layers": [layer(f"sha256:{HEX}", size="7")]},
    "a size of 64 bits": {"layers": [layer(f"sha256:{HEX}", size=2**63)]},
    "a size of 2000 bits": {"layers": [layer(f"sha256:{HEX}", size=2**2000)]},
    "two sizes": {"layers": [layer(f"sha256:{HEX}"), layer(f"sha256:{HEX}", size=8)]},
    "no type": {"layers": [layer(f"sha256:{HEX}", mediaType=None)]},
    "a digest that is a number": {"layers": [layer(7)]},
    "a name that is a path": {"layers": [layer(f"sha256:{HEX}", name="../../x")]},
    "many layers": {"layers": [layer(f"sha256:{HEX}")] * 10_001},
    "a size of 20000 bits": b'{"schemaVersion": 2, "layers": [], "config": {"size": 1%s}}' % (b"0" * 6000),
    "an index beside layers": {"mediaType": INDEXES[0], "manifests": [{"digest": f"sha256:{HEX}"}]},
    "the name of an index beside layers": {"mediaType": INDEXES[0]},
    "a list of manifests beside layers": {"manifests": [{"digest": f"sha256:{HEX}"}]},
    "an empty index": msgspec.json.encode({"schemaVersion": 2, "mediaType": INDEXES[0], "manifests": []}),
    "an index of nulls": b'{"schemaVersion": 2, "manifests": [null]}',
    "an index of text": b'{"schemaVersion": 2, "manifests": "x"}',
}


@pytest.mark.parametrize("kind", MANIFESTS)
def test_s19_malformed_manifests(
    source: OCISource, registry: OllamaRegistry, server: LocalServer, store: Store, kind: str
) -> None:
    given = MANIFESTS[kind]
    data = given if isinstance(given, bytes) else manifest_with(registry, **given)
    registry.manifests["library/tiny/latest"] = data
    sentence = refused(source, server, store)
    assert "127.0.0.1" in sentence
    assert len(sentence) < 500
    assert server.paths == [f"GET {PATH}"]


def test_s19_an_index_of_an_index(
    source: OCISource, registry: OllamaRegistry, server: LocalServer, store: Store
) -> None:
    inner = msgspec.json.encode({"schemaVersion": 2, "mediaType": INDEXES[0], "manifests": []})
    entry = {"digest": str(Digest.of(inner)), "size": len(inner)}
    outer = {"schemaVersion": 2, "mediaType": INDEXES[0], "manifests": [entry]}
    registry.manifests |= {
        "library/tiny/latest": msgspec.json.encode(outer),
        f"library/tiny/{Digest.of(inner)}": inner,
    }
    assert "in a way that Hob cannot use" in refused(source, server, store)
    assert len(server.requests) == 2


class Endless:
    """A body that goes on until nobody reads; `num_bytes` is what was written of it."""

    def __init__(self, server: LocalServer) -> None:
        self.server = server
        self.num_bytes = 0

    def __iter__(self) -> Iterator[bytes]:
        while not self.server.stopping.is_set():
            yield b" " * 65536
            self.num_bytes += 65536


@pytest.mark.parametrize(
    ("where", "limit"),
    [("a manifest", 4 * 2**20), ("a token", 2**16), ("an error", 2**13), ("a redirect", 2**13), ("a list", 4 * 2**20)],
)
def test_s20_bodies_without_an_end(
    source: OCISource, registry: OllamaRegistry, server: LocalServer, store: Store, where: str, limit: int
) -> None:
    body = Endless(server)
    kinds = {
        "a manifest": Response(body=body, has_length=False),
        "a list": Response(body=body, has_length=False),
        "an error": Response(400, body, has_length=False),
        "a redirect": Response(302, body, {"Location": "/elsewhere"}, has_length=False),
    }
    if where == "a token":
        registry.token, registry.realm = "t0ken", f"{server.url}/token"
        endless = Response(body=body, has_length=False)
        server.respond = lambda request: endless if "/token" in request.path else registry(request)
    else:
        server.respond = lambda request: Response(404) if request.path == "/elsewhere" else kinds[where]
    if where == "a list":
        with pytest.raises(RemoteError, match="more than 4194304 bytes"):
            source.tags(ModelName.parse(named(server)), insecure=True)
    else:
        refused(source, server, store)
    server.stopping.set()
    assert body.num_bytes < limit + 16 * 2**20  # what lies in the buffers of two sockets


@pytest.mark.parametrize("where", ["a manifest", "a token", "a blob", "an error"])
def test_s20_compressed_bodies(
    source: OCISource, registry: OllamaRegistry, server: LocalServer, store: Store, where: str
) -> None:
    bomb = Response(body=gzip.compress(bytes(10 * 2**20)), headers={"Content-Encoding": "gzip"})
    word = {"a manifest": "manifests", "an error": "manifests", "a token": "/token", "a blob": "blobs"}[where]
    if where == "a token":
        registry.token, registry.realm = "t0ken", f"{server.url}/token"
    if where == "an error":
        bomb = replace(bomb, status=400)
    server.respond = lambda request: bomb if word in request.path else registry(request)
    assert ("HTTP 400" if where == "an error" else "plain bytes") in refused(source, server, store)


REALMS = [
    "http://{evil}/token",
    "http://user:word@{evil}/token",
    "http://{registry}@{evil}/token",
    "//{evil}/token",
    "http://{registry}.evil.example/token",
    "http://reg\u0456stry.example/token",
    "file:///etc/passwd",
    "gopher://{evil}/",
    "",
]


@pytest.mark.parametrize("realm", REALMS)
def test_s21_realms_of_other_hosts(
    access: Access, registry: OllamaRegistry, server: LocalServer, store: Store, realm: str
) -> None:
    """No request goes there, with or without what the user has for the registry."""
    registry.token = "t0ken"
    with LocalServer(lambda _: Response(body=b'{"token": "t0ken"}'), host=PRIVATE) as evil:
        host = f"127.0.0.1:{server.port}"
        text = realm.format(evil=f"{PRIVATE}:{evil.port}", registry=host).encode().decode("latin-1")
        registry.challenge = f'Bearer realm="{text}",service="x"'
        source = OCISource(replace(access, credentials=lambda _: ("user", "word")))
        assert f"{host} sends for a token to" in refused(source, server, store)
    assert evil.requests == []
    assert server.paths == [f"GET {PATH}"]


def test_s21_both_hosts_are_named(
    source: OCISource, registry: OllamaRegistry, server: LocalServer, store: Store
) -> None:
    registry.token, registry.realm = "t0ken", "https://evil.example/token"
    sentence = refused(source, server, store)
    assert f"127.0.0.1:{server.port}" in sentence
    assert "evil.example" in sentence


def test_s21_a_realm_on_another_port_gets_no_password(
    access: Access, registry: OllamaRegistry, server: LocalServer, store: Store
) -> None:
    with LocalServer(lambda _: Response(body=b'{"token": "t0ken"}')) as other:
        registry.token, registry.realm = "t0ken", f"{other.url}/token"
        source = OCISource(replace(access, credentials={"127.0.0.1": ("user", "word")}.get))
        pull(source, named(server), store)
    (request,) = other.requests
    assert "Authorization" not in request.headers


def test_s21_a_realm_of_the_registry_gets_the_password(
    access: Access, registry: OllamaRegistry, server: LocalServer, store: Store
) -> None:
    registry.token, registry.realm = "t0ken", f"{server.url}/token"
    pull(OCISource(replace(access, credentials={"127.0.0.1": ("user", "word")}.get)), named(server), store)
    lines = [request.headers.get("Authorization") for request in server.requests if "/token" in request.path]
    assert lines == ["Basic dXNlcjp3b3Jk"]


def test_s21_a_realm_that_redirects(
    access: Access, registry: OllamaRegistry, server: LocalServer, store: Store
) -> None:
    registry.token, registry.realm = "t0ken", f"{server.url}/token"
    with LocalServer(lambda _: Response(body=b'{"token": "t0ken"}')) as evil:
        away = Response(302, headers={"Location": evil.url})
        server.respond = lambda request: away if "/token" in request.path else registry(request)
        source = OCISource(replace(access, credentials={"127.0.0.1": ("user", "word")}.get))
        assert "HTTP 302" in refused(source, server, store)
    assert evil.requests == []


def test_s21_a_challenge_from_where_the_blobs_are(
    access: Access, registry: OllamaRegistry, server: LocalServer, store: Store
) -> None:
    """Another host's 401 is no question that the registry asks: nobody is logged in for it."""
    challenge = {"WWW-Authenticate": f'Bearer realm="{server.url}/token",service="x"'}
    with LocalServer(lambda _: Response(401, headers=challenge)) as other:
        registry.blob_server = other.url
        source = OCISource(replace(access, credentials=lambda _: ("user", "word")))
        assert f"127.0.0.1:{other.port} denies access" in refused(source, server, store)
    assert len(other.requests) == 1
    assert not [path for path in server.paths if "/token" in path]


def test_s21_a_realm_without_tls(access: Access, registry: OllamaRegistry, tls: ssl.SSLContext, trusted: None) -> None:
    with Transport() as transport, LocalServer(registry, tls=tls) as server, LocalServer(registry) as plain:
        registry.token, registry.realm = "t0ken", f"{plain.url}/token"
        with pytest.raises(RemoteError, match="without TLS"):
            OCISource(replace(access, transport=transport)).find(ModelName.parse(f"127.0.0.1:{server.port}/{MODEL}"))
    assert plain.requests == []


TARGETS = [
    "http://169.254.169.254/latest",
    "http://{inside}/x",
    "http://localhost/",
    "file:///etc/passwd",
    "gopher://a",
]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("what", ["manifests", "blobs"])
def test_s22_links_into_the_local_network(
    source: OCISource, registry: OllamaRegistry, server: LocalServer, store: Store, target: str, what: str
) -> None:
    with LocalServer(BlobServer(registry.blobs), host=PRIVATE) as inside:
        location = target.format(inside=f"{PRIVATE}:{inside.port}")
        away = Response(307, headers={"Location": location})
        server.respond = lambda request: away if what in request.path else registry(request)
        sentence = refused(source, server, store)
    assert "closer to this machine" in sentence or "a link of 127.0.0.1" in sentence
    assert "passwd" not in sentence
    assert inside.requests == []


def test_s22_a_loop_of_redirects(source: OCISource, server: LocalServer, store: Store) -> None:
    server.respond = lambda request: Response(302, headers={"Location": request.path})
    assert "redirects more than 5 times" in refused(source, server, store)
    assert len(server.requests) == 6


def test_s25_names_out_of_headers(
    source: OCISource, registry: OllamaRegistry, server: LocalServer, store: Store
) -> None:
    hostile = {
        "ETag": '"../../../canary"',
        "Content-Disposition": 'attachment; filename="../../canary"',
        "Docker-Content-Digest": "sha256:../../canary",
        "X-Linked-Etag": '"/etc/passwd"',
        "X-Repo-Commit": "../../canary",
    }

    def respond(request: Request) -> Response:
        response = registry(request)
        return replace(response, headers={**response.headers, **hostile})

    server.respond = respond
    model = pull(source, named(server), store)
    assert {path.name for path in store.blobs.iterdir()} == {f"sha256-{blob.key[7:]}" for blob in model.blobs}
    assert {path.name for path in store.root.iterdir()} == {"blobs", "manifests", ".hob", "canary"}


@pytest.mark.parametrize(
    "text", ["$(touch x)", "a;touch x", "`touch x`", "a\nb", "-rf", "a|b", "a&b", "a>b", "a b", "'a'"]
)
def test_s27_names_for_a_shell(text: str) -> None:
    for name in (text, f"a/{text}", f"h/n/{text}", f"a:{text}", f"{text}/b/c"):
        with pytest.raises(InvalidName):
            ModelName.parse(name)


def test_s27_nothing_reaches_a_shell(root: Path) -> None:
    found = []
    for folder in ("cli", "daemon", "engine", "modelfiles", "registry"):
        for path in (root / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                has_shell = isinstance(node, ast.keyword) and node.arg == "shell"
                if has_shell or (isinstance(node, ast.Attribute) and node.attr in ("system", "popen", "getoutput")):
                    text = ast.unparse(node)
                    if has_shell or text.split(".")[0] in ("os", "subprocess"):
                        found.append(f"{path.relative_to(root)}: {text}")
    assert found == []


@pytest.mark.parametrize("text", ["file:///etc/passwd", "ftp://a/b/c", "\\\\host\\share\\model", "data:,x", "jar:a!b"])
def test_s28_addresses_that_are_no_names(text: str) -> None:
    with pytest.raises(InvalidName):
        ModelName.parse(text)


def test_s31_a_tag_that_moves_during_a_pull(
    source: OCISource, registry: OllamaRegistry, server: LocalServer, store: Store
) -> None:
    """What follows the manifest is asked for by digest: one version, or an error."""
    old = registry.manifests["library/tiny/latest"]
    answered = []

    def respond(request: Request) -> Response:
        response = registry(request)
        if not answered:
            answered.append(request)
            registry.add("library/tiny:latest", layers_of(b"newer weights"))
        return response

    server.respond = respond
    model = pull(source, named(server), store)
    assert store.get(model.name).digest == Digest.of(old)
    assert store.get(model.name).files["model.gguf"].read_bytes() == b"weights"
    assert all("/blobs/sha256:" in path for path in server.paths[1:])
