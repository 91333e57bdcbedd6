"""Push to Debian's docker-registry, and to servers that misbehave."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from registry.create import CreateStatus
from registry.errors import BrokenModel, ModelNotFound, RemoteDenied, RemoteError, StoreError
from registry.manifest import Digest, Manifest
from registry.name import ModelName
from registry.oci import OCI_MANIFEST, OCISource
from registry.push import push_model
from registry.registry_client import Access
from registry.remote import RemoteTag
from registry.reports import Abandoned, Report, reported
from registry.store import Store
from tests.registry.docker_registry import LOGIN, PROGRAM, DockerRegistry
from tests.registry.local_server import DEADLINE_S, LocalServer, Request, Response
from tests.registry.pulling import pull
from tests.registry.relay import Relay
from tests.registry.small_models import contents, put_model

WEIGHTS = bytes(range(256)) * 4096  # 1 MiB


def push(store: Store, access: Access, name: str, chunk_bytes: int = 300_000) -> list[CreateStatus]:
    return list(push_model(store, access, ModelName.parse(name), insecure=True, chunk_bytes=chunk_bytes))


# ---- a real registry


@pytest.mark.parametrize("chunk_bytes", [10**9, 300_000])
def test_push_delete_pull(docker_registry: DockerRegistry, access: Access, store: Store, chunk_bytes: int) -> None:
    """In one piece, and in several."""
    name = f"http://{docker_registry.host}/me/tiny:v1"
    put_model(store, name, WEIGHTS, system="Be brief.", params={"stop": ["x"]})
    before, digest = contents(store), store.get(ModelName.parse(name)).digest
    push(store, access, name, chunk_bytes)
    store.delete(ModelName.parse(name))
    assert contents(store) == {}
    pull(OCISource(access), name, store)
    assert contents(store) == before
    assert store.get(ModelName.parse(name)).digest == digest
    assert store.check() == []


def test_the_statuses_of_a_push(docker_registry: DockerRegistry, access: Access, store: Store) -> None:
    name = f"{docker_registry.host}/me/tiny"
    model = put_model(store, name, WEIGHTS)
    statuses = push(store, access, name)
    words = list(dict.fromkeys(status.status for status in statuses))
    weights, config = model.manifest.layers[0].digest, model.manifest.config.digest
    assert words == [
        "retrieving manifest",
        f"pushing {weights.hex[:12]}",
        f"pushing {config.hex[:12]}",
        "pushing manifest",
        "success",
    ]
    sizes = [status.completed for status in statuses if status.digest == str(weights)]
    assert sizes[0] == 0
    assert sizes == sorted(sizes)
    assert sizes[-1] == len(WEIGHTS)
    assert {status.total for status in statuses if status.digest == str(weights)} == {len(WEIGHTS)}


def test_what_is_there_is_not_sent_again(docker_registry: DockerRegistry, access: Access, store: Store) -> None:
    """A second tag of the model, and another model that has the first one's weights."""
    put_model(store, f"{docker_registry.host}/me/tiny", WEIGHTS)
    push(store, access, f"{docker_registry.host}/me/tiny")
    store.copy(ModelName.parse(f"{docker_registry.host}/me/tiny"), ModelName.parse(f"{docker_registry.host}/me/tiny:b"))
    statuses = push(store, access, f"{docker_registry.host}/me/tiny:b")
    assert [status.completed for status in statuses if status.status.startswith("pushing ") and status.digest].count(
        0
    ) == 2  # the first line of each of two blobs
    tags = OCISource(access).tags(ModelName.parse(f"{docker_registry.host}/me/tiny"), insecure=True)
    assert tags == [RemoteTag("b", None), RemoteTag("latest", None)]


def test_a_blob_of_another_model_is_mounted(docker_registry: DockerRegistry, access: Access, store: Store) -> None:
    host = docker_registry.host
    model = put_model(store, f"{host}/me/tiny", WEIGHTS)
    push(store, access, f"{host}/me/tiny")
    layers = tuple(replace(layer, origin=f"{host}/me/tiny:latest") for layer in model.manifest.layers)
    store.write_manifest(ModelName.parse(f"{host}/me/child"), Manifest(model.manifest.config, layers))
    blob = docker_registry.folder / "docker/registry/v2/blobs/sha256" / layers[0].digest.hex[:2] / layers[0].digest.hex
    written = (blob / "data").stat().st_mtime_ns
    statuses = push(store, access, f"{host}/me/child")
    assert statuses[-1].status == "success"
    assert (blob / "data").stat().st_mtime_ns == written
    sizes = [status.completed for status in statuses if status.digest == str(layers[0].digest)]
    assert sizes == [0, len(WEIGHTS)]  # nothing in between: nothing was sent


def test_an_oci_manifest_keeps_its_bytes(docker_registry: DockerRegistry, access: Access, store: Store) -> None:
    name = ModelName.parse(f"{docker_registry.host}/me/tiny")
    raw = msgspec.json.decode(put_model(store, name.full, WEIGHTS).manifest.encode())
    data = msgspec.json.encode(raw | {"mediaType": OCI_MANIFEST, "annotations": {"a": "b"}})
    store.write_manifest(name, data)
    push(store, access, name.full)
    store.delete(name)
    pull(OCISource(access), name.full, store)
    assert store.get(name).digest == Digest.of(data)


def test_an_empty_blob(docker_registry: DockerRegistry, access: Access, store: Store) -> None:
    name = f"{docker_registry.host}/me/empty"
    put_model(store, name, b"")
    push(store, access, name)
    store.delete(ModelName.parse(name))
    pull(OCISource(access), name, store)
    assert store.check() == []


def test_connections_that_break_during_an_upload(docker_registry: DockerRegistry, access: Access, store: Store) -> None:
    """A real registry keeps what it got or begins anew; what it has in the end is right."""
    with Relay(docker_registry.host, [None, 700_000, 100_000]) as relay:  # uploads have connections of their own
        name = f"http://{relay.host}/me/tiny"
        put_model(store, name, WEIGHTS)
        push(store, access, name, chunk_bytes=200_000)
        store.delete(ModelName.parse(name))
        pull(OCISource(access), name, store)
        access.transport.close()
    assert relay.num_cut == 2
    assert store.check() == []


def test_a_login(tmp_path: Path, access: Access, store: Store) -> None:
    if not PROGRAM.exists():
        pytest.skip("docker-registry is not installed; on Debian: apt-get install docker-registry")
    folder = tmp_path / "docker"
    folder.mkdir()
    with DockerRegistry(folder, has_login=True) as registry:
        name = f"{registry.host}/me/tiny"
        put_model(store, name, WEIGHTS)
        with pytest.raises(RemoteDenied, match=r"wants a login; .*\.netrc: machine 127\.0\.0\.1"):
            push(store, access, name)
        wrong = replace(access, credentials=lambda _: ("somebody", "wrong"))
        with pytest.raises(RemoteDenied, match="denies access") as caught:
            push(store, wrong, name)
        assert "wrong" not in str(caught.value)
        right = replace(access, credentials={"127.0.0.1": LOGIN}.get)
        push(store, right, name)
        store.delete(ModelName.parse(name))
        pull(OCISource(right), name, store)
    assert store.check() == []


# ---- what is not pushed


def test_a_missing_model(access: Access, store: Store) -> None:
    with pytest.raises(ModelNotFound):
        push(store, access, "127.0.0.1:1/me/tiny")


def test_a_model_in_nobodys_namespace(access: Access, store: Store) -> None:
    put_model(store, "tiny")
    with pytest.raises(RemoteDenied, match="not authorized to push to this namespace, create the model under a namesp"):
        push(store, access, "tiny")


def test_a_model_that_misses_a_blob(access: Access, store: Store) -> None:
    with LocalServer(lambda _: Response(200)) as server:
        model = put_model(store, f"127.0.0.1:{server.port}/me/tiny")
        store.blob_path(model.manifest.layers[0].digest).unlink()
        with pytest.raises(BrokenModel, match="is missing"):
            push(store, access, model.name.full)
    assert "PUT" not in {request.method for request in server.requests}


# ---- registries that misbehave


class FlakyRegistry:
    """Takes uploads; `fault` is asked first and may answer in its place."""

    def __init__(self) -> None:
        self.uploads: dict[str, bytes] = {}
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, bytes] = {}
        self.faults: dict[str, list[Response]] = {}
        """By method and the path's last word but one: what is answered instead, one each."""
        self.keeps_uploads = True
        self.where = "/upload/"

    def __call__(self, request: Request) -> Response:
        path, _, query = request.path.partition("?")
        kind = path.split("/")[-2]
        if faults := self.faults.get(f"{request.method} {kind}"):
            if kind == "upload" and self.keeps_uploads and request.method == "PATCH":
                self.uploads[path] += request.body[: len(request.body) // 2]
            return faults.pop(0)
        if request.method == "HEAD":
            return Response(200 if path.split("/")[-1] in self.blobs else 404)
        if request.method == "POST":
            place = f"{self.where}{len(self.uploads)}"
            self.uploads[place] = b""
            return Response(202, headers={"Location": place + "?state=a%2Fb"})
        if kind == "manifests":
            self.manifests[path] = request.body
            return Response(201)
        assert query.startswith("state=a%2Fb")
        if path not in self.uploads or (request.method == "GET" and not self.keeps_uploads):
            return Response(404)
        if request.method == "GET":
            return Response(204, headers={"Range": f"0-{max(0, len(self.uploads[path]) - 1)}"})
        if given := request.headers.get("Content-Range"):
            assert int(given.split("-")[0]) == len(self.uploads[path])
        self.uploads[path] += request.body
        if request.method == "PATCH":
            return Response(202, headers={"Range": f"0-{len(self.uploads[path]) - 1}"})
        digest = re.fullmatch("state=a%2Fb&digest=sha256%3A([0-9a-f]{64})", query)
        assert digest is not None
        if Digest.of(self.uploads[path]).hex != digest[1]:
            return Response(400, b'{"errors":[{"code":"DIGEST_INVALID","message":"digest invalid"}]}')
        self.blobs[f"sha256:{digest[1]}"] = self.uploads[path]
        return Response(201)


@pytest.fixture
def flaky() -> FlakyRegistry:
    return FlakyRegistry()


@pytest.fixture
def server(flaky: FlakyRegistry) -> Iterator[LocalServer]:
    with LocalServer(flaky) as made:
        yield made


@pytest.fixture
def name(server: LocalServer, store: Store) -> str:
    put_model(store, f"127.0.0.1:{server.port}/me/tiny", WEIGHTS)
    return f"http://127.0.0.1:{server.port}/me/tiny"


def sent_bytes(server: LocalServer) -> int:
    return sum(len(request.body) for request in server.requests if request.method in ("PATCH", "PUT"))


def test_an_upload_goes_on_where_it_ended(
    flaky: FlakyRegistry, server: LocalServer, access: Access, store: Store, name: str
) -> None:
    flaky.faults = {"PATCH upload": [Response(503), Response(500)], "POST uploads": [Response(502)]}
    push(store, access, name)
    assert flaky.blobs[str(Digest.of(WEIGHTS))] == WEIGHTS
    assert sent_bytes(server) < len(WEIGHTS) + 2 * 300_000
    assert len(flaky.manifests) == 1


def test_an_upload_that_the_registry_forgot_begins_anew(
    flaky: FlakyRegistry, access: Access, store: Store, name: str
) -> None:
    flaky.keeps_uploads = False
    flaky.faults = {"PATCH upload": [Response(503)]}
    push(store, access, name)
    assert flaky.blobs[str(Digest.of(WEIGHTS))] == WEIGHTS


def test_faults_that_do_not_pass_end_the_push(
    flaky: FlakyRegistry, server: LocalServer, access: Access, store: Store, name: str
) -> None:
    flaky.faults = {"PUT upload": [Response(503)] * 100}
    with pytest.raises(RemoteError, match="HTTP 503") as caught:
        push(store, access, name)
    assert caught.value.is_temporary
    assert flaky.manifests == {}
    # Chunks that arrive count as progress; the last one, which never does, is tried three times.
    assert [request.method for request in server.requests].count("PUT") == 3


def test_wrong_bytes_are_refused_by_the_registry(flaky: FlakyRegistry, access: Access, store: Store, name: str) -> None:
    path = store.blob_path(Digest.of(WEIGHTS))
    path.write_bytes(bytes(len(WEIGHTS)))
    with pytest.raises(RemoteError, match=r"HTTP 400\): digest invalid"):
        push(store, access, name)
    assert flaky.manifests == {}


def test_a_blob_that_shrank_ends_the_push(flaky: FlakyRegistry, access: Access, store: Store, name: str) -> None:
    manifest = store.get(ModelName.parse(name)).manifest
    pushing = push_model(store, access, ModelName.parse(name), insecure=True)
    next(pushing)
    store.blob_path(manifest.layers[0].digest).write_bytes(b"short")
    with pytest.raises(StoreError, match="shorter than its manifest says"):
        list(pushing)
    assert flaky.manifests == {}


def test_blobs_are_leased_while_they_are_pushed(access: Access, store: Store, name: str) -> None:
    pushing = push_model(store, access, ModelName.parse(name), insecure=True)
    next(pushing)
    next(pushing)
    store.delete(ModelName.parse(name))
    assert list(pushing)[-1].status == "success"
    assert not store.has_blob(Digest.of(WEIGHTS))


def test_a_client_that_leaves_ends_the_push(
    flaky: FlakyRegistry, server: LocalServer, access: Access, store: Store, name: str
) -> None:
    """The upload has a thousand requests to go when it is left."""
    pushing = push_model(store, access, ModelName.parse(name), insecure=True, chunk_bytes=1000)
    while not flaky.uploads:
        next(pushing)
    pushing.close()
    assert flaky.manifests == {}
    assert str(Digest.of(WEIGHTS)) not in flaky.blobs


def test_an_upload_may_not_lead_nearer(flaky: FlakyRegistry, access: Access, store: Store, name: str) -> None:
    with LocalServer(lambda _: Response(202), host="127.0.0.2") as inside:
        flaky.where = f"{inside.url}/upload/"
        with pytest.raises(RemoteError, match="closer to this machine"):
            push(store, access, name)
    assert inside.requests == []


# ---- reports


def test_work_that_notices_nothing_holds_nobody_up() -> None:
    is_left = threading.Event()
    ends: list[bool] = []

    def work(report: Report) -> None:
        report(0)
        ends.append(is_left.wait(DEADLINE_S))

    numbers = reported(work, grace_s=0)
    next(numbers)
    numbers.close()  # type: ignore[attr-defined]
    assert ends == []
    is_left.set()
    for thread in threading.enumerate():
        if thread.name == "hob-transfer":
            thread.join(DEADLINE_S)
    assert ends == [True]


def test_reports_come_in_steps() -> None:
    def work(report: Report) -> None:
        for number in range(100):
            report(number)
        report(5)

    assert list(reported(work, step=30)) == [0, 30, 60, 90, 5]


def test_an_error_of_the_work_comes_last() -> None:
    def work(report: Report) -> None:
        report(1)
        raise ValueError("no")

    numbers = reported(work)
    assert next(numbers) == 1
    with pytest.raises(ValueError, match="no"):
        next(numbers)


def test_work_ends_when_nobody_listens() -> None:
    ends: list[type[BaseException]] = []

    def work(report: Report) -> None:
        try:
            while True:
                report(0)
        except BaseException as error:
            ends.append(type(error))
            raise

    numbers = reported(work, grace_s=DEADLINE_S)
    next(numbers)
    numbers.close()  # type: ignore[attr-defined]
    assert ends == [Abandoned]
