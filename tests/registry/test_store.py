"""The store, one promise at a time. Faults are in test_store_faults, random use is in test_store_stateful."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import filelock
import pytest

from modelfiles.source import SourceError
from registry.errors import (
    BlobNotFound,
    BrokenModel,
    DigestMismatch,
    ModelNotFound,
    StoreError,
    StoreLocked,
)
from registry.manifest import (
    ADAPTER,
    CONFIG_MEDIA_TYPE,
    FILE,
    LICENSE,
    MESSAGES,
    MODEL,
    PARAMS,
    PROJECTOR,
    PROMPT,
    TEMPLATE,
    Digest,
    Layer,
    Manifest,
)
from registry.manifest_tree import ManifestTree
from registry.name import ModelName
from registry.store import Store
from tests.registry.small_models import blob_names, contents, live_blob_names, manifest_of, names_in, put_model
from tests.registry.test_manifest import BAD_MANIFESTS


def name(text: str) -> ModelName:
    return ModelName.parse(text)


# ---- layout and reading


def test_an_empty_store_reads_as_empty_and_creates_nothing(store: Store) -> None:
    assert store.list() == []
    assert store.broken() == []
    assert store.check() == []
    assert not store.root.exists()
    with pytest.raises(ModelNotFound, match='model "tale:latest" not found'):
        store.get(name("tale"))


def test_the_layout_is_ollamas_and_nothing_else_lies_among_the_blobs(store: Store) -> None:
    model = put_model(store, "Ana/Tale:Q4", b"weights")
    manifest = store.root / "manifests/registry.ollama.ai/Ana/Tale/Q4"
    assert Digest.of(manifest.read_bytes()) == model.digest
    assert (store.root / "blobs" / f"sha256-{Digest.of(b'weights').hex}").read_bytes() == b"weights"
    assert blob_names(store) == {digest.file_name for digest in model.manifest.digests()}
    assert names_in(store.root) == {"manifests", "blobs", ".hob"}
    assert names_in(store.private / "tmp") == set()


def test_a_model_says_what_its_layers_say(store: Store) -> None:
    def layer(media_type: str, data: bytes, file_name: str = "") -> Layer:
        return Layer(media_type, store.write_blob([data]), len(data), name=file_name)

    config = layer(
        CONFIG_MEDIA_TYPE,
        b'{"model_family":"llama","capabilities":["tools"],"renderer":null,"rootfs":{"type":"layers"}}',
    )
    layers = (
        layer(MODEL, b"first"),
        layer(MODEL, b"second"),
        layer(PROJECTOR, b"projector"),
        layer(ADAPTER, b"lora"),
        layer(PROMPT, b"{{ .Prompt }}"),
        layer(PARAMS, b'{"stop":["a","b"],"temperature":0.5}'),
        layer(MESSAGES, b'[{"role":"user","content":"hi"}]'),
        layer(LICENSE, b"MIT"),
        layer(LICENSE, b"and more"),
    )
    store.write_manifest(name("m"), Manifest(config, layers))
    model = store.get(name("m"))
    assert model.config == {"model_family": "llama", "capabilities": ["tools"], "rootfs": {"type": "layers"}}
    assert model.capabilities == ("tools",)
    assert sorted(model.source.files) == ["model-00001-of-00002.gguf", "model-00002-of-00002.gguf"]
    assert [path.read_bytes() for path in model.source.gguf_files] == [b"first", b"second"]
    assert model.adapter_files["adapter.gguf"].read_bytes() == b"lora"
    assert [path.read_bytes() for path in model.projectors] == [b"projector"]
    assert model.template == "{{ .Prompt }}"
    assert model.params == {"stop": ["a", "b"], "temperature": 0.5}
    assert model.messages == ({"role": "user", "content": "hi"},)
    assert model.licenses == ("MIT", "and more")
    assert model.system == ""
    assert model.size == sum(layer.size for layer in (config, *layers))
    assert model.modified_at.tzinfo is UTC


def test_a_safetensors_model_keeps_its_makers_file_names(store: Store) -> None:
    config = Layer(CONFIG_MEDIA_TYPE, store.write_blob([b"{}"]), 2)
    files = {"config.json": b"{ }", "model.safetensors": b"tensors"}
    layers = tuple(Layer(FILE, store.write_blob([data]), len(data), name=key) for key, data in files.items())
    source = store.write_manifest(name("m"), Manifest(config, layers)).source
    assert {key: path.read_bytes() for key, path in source.files.items()} == files
    assert source.format == "safetensors"


def test_a_stub_without_weights_is_listed_and_cannot_be_loaded(store: Store) -> None:
    config = Layer(CONFIG_MEDIA_TYPE, store.write_blob([b'{"remote_host":"https://example.com"}']), 37)
    store.write_manifest(name("far:cloud"), Manifest(config, ()))
    [model] = store.list()
    assert not model.adapter_files
    with pytest.raises(SourceError, match="no weights"):
        model.source  # noqa: B018


def test_list_has_the_model_changed_last_first(store: Store) -> None:
    for index, text in enumerate(["a", "b", "c"]):
        put_model(store, text)
        path = store.manifests.joinpath(*name(text).path_parts)
        os.utime(path, (1000 + index % 2, 1000 + index % 2))
    assert [model.name.short for model in store.list()] == ["b:latest", "a:latest", "c:latest"]
    assert store.list()[0].modified_at == datetime.fromtimestamp(1001, UTC)


def test_names_are_found_in_any_case_and_kept_in_theirs(store: Store) -> None:
    put_model(store, "Tale:Big", b"old")
    put_model(store, "tale:BIG", b"new")
    assert list(contents(store)) == ["Tale:Big"]
    assert store.get(name("TALE:big")).files["model.gguf"].read_bytes() == b"new"
    store.copy(name("tale:big"), name("Other"))
    store.copy(name("other"), name("TALE:big"))
    assert sorted(contents(store)) == ["Other:latest", "Tale:Big"]
    store.delete(name("tALE:bIG"))
    assert list(contents(store)) == ["Other:latest"]


def test_an_exact_name_goes_before_one_that_differs_in_case(store: Store) -> None:
    put_model(store, "tale", b"lower")
    exact = store.manifests.joinpath(*name("TALE").path_parts)
    exact.parent.mkdir()
    put_model(store, "other", b"upper")
    exact.write_bytes(store.manifests.joinpath(*name("other").path_parts).read_bytes())
    assert store.get(name("TALE")).files["model.gguf"].read_bytes() == b"upper"
    assert store.get(name("tale")).files["model.gguf"].read_bytes() == b"lower"


# ---- writing


def test_a_blob_is_there_only_when_its_digest_is_right(store: Store) -> None:
    digest = Digest.of(b"some bytes")
    with pytest.raises(BlobNotFound, match=f"blob {digest} not found"):
        store.blob_path(digest)
    with pytest.raises(DigestMismatch, match=f'digest mismatch, expected "{digest}", got "{Digest.of(b"others")}"'):
        store.write_blob([b"oth", b"ers"], digest)
    assert blob_names(store) == names_in(store.private / "tmp") == set()
    assert store.write_blob([b"some ", b"bytes"], digest, size=10) == digest
    assert store.blob_path(digest).read_bytes() == b"some bytes"


@pytest.mark.parametrize(("size", "got"), [(9, "at least 10 bytes"), (11, "10 bytes")])
def test_a_blob_of_another_size_is_refused(store: Store, size: int, got: str) -> None:
    def chunks() -> Iterator[bytes]:
        yield b"some bytes"
        assert size > 10, "the writer asked for more after it had too much"

    with pytest.raises(DigestMismatch, match=f'expected "{size} bytes", got "{got}"'):
        store.write_blob(chunks(), size=size)
    assert blob_names(store) == names_in(store.private / "tmp") == set()


def test_a_writer_that_is_not_committed_leaves_nothing(store: Store) -> None:
    with store.blob_writer() as writer:
        writer.write(b"half")
        assert len(names_in(store.private / "tmp")) == 1
    assert blob_names(store) == names_in(store.private / "tmp") == set()


def test_an_error_of_the_senders_passes_through(store: Store) -> None:
    def chunks() -> Iterator[bytes]:
        yield b"half"
        raise ConnectionResetError("gone")

    with pytest.raises(ConnectionResetError):
        store.write_blob(chunks())
    assert names_in(store.private / "tmp") == set()


def test_writing_a_blob_again_repairs_it(store: Store) -> None:
    digest = store.write_blob([b"good"])
    (store.blobs / digest.file_name).write_bytes(b"rot!")
    store.write_blob([b"good"], digest)
    assert store.blob_path(digest).read_bytes() == b"good"


def test_a_manifest_that_names_a_missing_blob_changes_nothing(store: Store) -> None:
    put_model(store, "tale", b"old")
    before = contents(store)
    manifest = manifest_of(store, b"new")
    (store.blobs / Digest.of(b"new").file_name).unlink()
    with pytest.raises(BrokenModel, match=f"its blob {Digest.of(b'new')} is missing"):
        store.write_manifest(name("tale"), manifest)
    with pytest.raises(BrokenModel, match="the manifest is empty"):
        store.write_manifest(name("tale"), b"")
    assert contents(store) == before


def test_a_pulled_manifest_keeps_its_bytes(store: Store) -> None:
    data = b" " + manifest_of(store, b"weights").encode() + b" \n"
    assert store.write_manifest(name("tale"), data).digest == Digest.of(data)
    assert store.copy(name("tale"), name("twin")).digest == Digest.of(data)


def test_replacing_a_model_deletes_what_only_the_old_one_needed(store: Store) -> None:
    put_model(store, "tale", b"old", system="kept")
    put_model(store, "other", b"shared")
    put_model(store, "tale", b"shared", system="kept")
    assert blob_names(store) == live_blob_names(store)
    assert not store.has_blob(Digest.of(b"old"))


def test_copying_onto_itself_changes_nothing(store: Store) -> None:
    model = put_model(store, "tale")
    assert store.copy(name("tale"), name("TALE")).digest == model.digest
    with pytest.raises(ModelNotFound):
        store.copy(name("none"), name("tale"))


# ---- deleting


def test_delete_keeps_what_another_model_needs(store: Store) -> None:
    put_model(store, "a", b"shared", system="only a")
    put_model(store, "b", b"shared")
    store.delete(name("a"))
    assert blob_names(store) == live_blob_names(store) > set()
    store.delete(name("b"))
    assert blob_names(store) == names_in(store.manifests) == names_in(store.private / "collectable") == set()
    with pytest.raises(ModelNotFound):
        store.delete(name("b"))


def test_a_leased_blob_outlives_its_model(store: Store) -> None:
    digests = put_model(store, "a", b"wanted").manifest.digests()
    with store.lease(digests), store.lease([Digest.of(b"wanted")]):
        store.delete(name("a"))
        assert store.has_blob(Digest.of(b"wanted"))
    assert blob_names(store) == set(), "it was to go, and does so when the lease ends"
    with store.lease(digests):
        put_model(store, "a", b"wanted")
    assert contents(store)


def test_an_upload_waits_for_its_manifest(store: Store) -> None:
    put_model(store, "a", b"uploaded")
    store.write_blob([b"another"])
    store.write_blob([b"uploaded"])
    store.delete(name("a"))
    store.collect_garbage()
    assert blob_names(store) == {Digest.of(b"another").file_name, Digest.of(b"uploaded").file_name}
    store.discard([Digest.of(b"another")])
    assert blob_names(store) == {Digest.of(b"uploaded").file_name}
    Store(store.root).collect_garbage()  # the next daemon
    assert blob_names(store) == set()


def test_discard_spares_what_a_model_names(store: Store) -> None:
    model = put_model(store, "a")
    store.discard(model.manifest.digests())
    store.discard([])
    assert contents(store)


def test_a_blob_that_somebody_else_writes_is_not_collected(store: Store) -> None:
    foreign = store.blobs / Digest.of(b"by Ollama").file_name
    store.blobs.mkdir(parents=True)
    foreign.write_bytes(b"by Ollama")
    store.write_blob([b"by Ollama"])  # the same bytes arrive here too: still not ours alone
    Store(store.root).collect_garbage()
    assert foreign.exists()


def test_a_model_that_somebody_else_wrote_goes_with_its_blobs(store: Store) -> None:
    put_model(store, "a")
    for mark in (store.private / "collectable").iterdir():
        mark.unlink()
    store.delete(name("a"))
    assert blob_names(store) == set()


def test_an_open_file_outlives_its_model(store: Store) -> None:
    with put_model(store, "a", b"weights").files["model.gguf"].open("rb") as file:
        store.delete(name("a"))
        assert file.read() == b"weights"


def test_garbage_at_start_is_collected(store: Store) -> None:
    put_model(store, "a")
    store.write_blob([b"orphan"])
    (store.private / "tmp" / "1-dead").write_bytes(b"half")
    (store.private / "collectable" / Digest.of(b"never came").file_name).touch()
    fresh = Store(store.root)
    fresh.collect_garbage()
    assert blob_names(store) == live_blob_names(store)
    assert names_in(store.private / "tmp") == set()
    assert names_in(store.private / "collectable") == blob_names(store)


# ---- damage


def damage(store: Store, text: str, data: bytes) -> Path:
    path = store.manifests.joinpath(*name(text).path_parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(("data", "reason"), BAD_MANIFESTS.values(), ids=BAD_MANIFESTS.keys())
def test_a_damaged_manifest_harms_nobody_else(store: Store, data: bytes, reason: str) -> None:
    put_model(store, "good", b"good")
    put_model(store, "doomed", b"doomed")
    damage(store, "bad", data)
    assert sorted(contents(store)) == ["doomed:latest", "good:latest"]
    [finding] = store.broken()
    assert finding.subject == "bad:latest"
    with pytest.raises(BrokenModel, match=r'model "bad:latest" is damaged: .*pull or create it again, or remove it'):
        store.get(name("BAD"))

    store.delete(name("doomed"))
    store.collect_garbage()
    assert store.has_blob(Digest.of(b"doomed")), "the damaged manifest may need it"
    put_model(store, "bad", b"repaired")
    store.collect_garbage()
    assert store.broken() == []
    assert blob_names(store) == live_blob_names(store)


def test_a_damaged_manifest_can_be_deleted(store: Store) -> None:
    model = put_model(store, "bad", b"weights")
    damage(store, "bad", model.manifest.encode()[:-9])
    store.delete(name("bad"))
    assert store.broken() == []
    assert blob_names(store) == set(), "what could be made out of the damaged manifest went with it"


@pytest.mark.parametrize(
    ("blob", "data", "reason"),
    [
        (b"weights", None, "is missing"),
        (b"weights", b"weight", "has 6 bytes where the manifest says 7"),
        (b"system", b"sYstem", "does not hold the bytes that its digest names"),
    ],
)
def test_a_damaged_blob_is_named(store: Store, blob: bytes, data: bytes | None, reason: str) -> None:
    put_model(store, "good", b"good")
    put_model(store, "bad", b"weights", system="system")
    path = store.blob_path(Digest.of(blob))
    path.unlink()
    if data is not None:
        path.write_bytes(data)
    assert list(contents(store)) == ["good:latest"]
    with pytest.raises(BrokenModel, match=f"its blob {Digest.of(blob)} {reason}"):
        store.get(name("bad"))


def test_check_finds_what_only_reading_finds(store: Store) -> None:
    put_model(store, "a", b"weights")
    store.blob_path(Digest.of(b"weights")).write_bytes(b"weIghts")
    (store.blobs / "notes.txt").touch()
    (store.blobs / Digest.of(b"folder").file_name).mkdir()
    assert [(finding.subject, finding.reason) for finding in sorted(store.check(), key=lambda f: f.reason)] == [
        (Digest.of(b"weights").file_name, "it does not hold the bytes that its digest names"),
        (Digest.of(b"folder").file_name, "it is no regular file"),
        ("notes.txt", "its name is no digest"),
    ]
    assert len(store.check(rehash=False)) == 2


@pytest.mark.parametrize(
    ("media_type", "data", "reason"),
    [
        (CONFIG_MEDIA_TYPE, b"[]", "Expected `object`"),
        (CONFIG_MEDIA_TYPE, b'{"model_family":7}', "Expected `str | null`"),
        (CONFIG_MEDIA_TYPE, b'{"capabilities":"tools"}', "Expected `array | null`"),
        (PARAMS, b'{"stop"', "is not the JSON it should be"),
        (PARAMS, b"[" * 100_000, "is not the JSON it should be"),
        (MESSAGES, b'[{"role":"user"}]', "without role and content"),
        (MESSAGES, b'{"role":"user"}', "Expected `array`"),
        (TEMPLATE, b"\xff", "is not UTF-8"),
        (LICENSE, b"\xff", "is not UTF-8"),
        (FILE, b"x", "is a file without a name"),
        (TEMPLATE, b"x" * (16 * 1024 * 1024 + 1), "is longer than 16777216 bytes"),
    ],
)
def test_a_blob_that_is_not_what_its_layer_says(store: Store, media_type: str, data: bytes, reason: str) -> None:
    layer = Layer(media_type, store.write_blob([data]), len(data))
    config = layer if media_type == CONFIG_MEDIA_TYPE else Layer(CONFIG_MEDIA_TYPE, store.write_blob([b"{}"]), 2)
    manifest = Manifest(config, (layer,))
    with pytest.raises(BrokenModel, match=reason):
        store.write_manifest(name("m"), manifest)
    assert not store.manifests.exists()


def test_links_pipes_and_folders_are_not_followed(store: Store, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"weights")
    put_model(store, "good", b"good")
    for text in ("linked", "piped"):
        put_model(store, text, text.encode())
    blob = store.blob_path(Digest.of(b"linked"))
    blob.unlink()
    blob.symlink_to(outside)
    pipe = store.blob_path(Digest.of(b"piped"))
    pipe.unlink()
    os.mkfifo(pipe)
    folder = store.manifests / "registry.ollama.ai" / "library"
    (folder / "manifest").mkdir()
    (folder / "manifest" / "link").symlink_to(folder / "good" / "latest")
    (folder / "manifest" / "folder").mkdir()
    os.mkfifo(folder / "manifest" / "pipe")
    (folder / "loop").symlink_to(folder)
    (folder / "stray").write_bytes(b"")
    (folder / ".DS_Store").write_bytes(b"")
    (folder / "good" / "bad name").write_bytes(b"")

    assert list(contents(store)) == ["good:latest"]
    reasons = {finding.subject: finding.reason for finding in store.broken()}
    assert reasons.keys() == {
        "linked:latest",
        "piped:latest",
        "manifest:link",
        "manifest:folder",
        "manifest:pipe",
        "registry.ollama.ai/library/loop",
        "registry.ollama.ai/library/stray",
        "registry.ollama.ai/library/good/bad name",
    }
    assert "no regular file" in reasons["linked:latest"]
    assert "no regular file" in reasons["manifest:pipe"]
    assert {f"sha256-{Digest.of(b'linked').hex}", f"sha256-{Digest.of(b'piped').hex}"} <= {
        finding.subject for finding in store.check()
    }
    for text in ("manifest:pipe", "manifest:link", "linked", "piped"):
        store.delete(name(text))
    assert outside.read_bytes() == b"weights"
    with pytest.raises(ModelNotFound):
        store.get(name("stray"))
    with pytest.raises(StoreError, match="cannot remove manifest:folder"):
        store.delete(name("manifest:folder"))
    with pytest.raises(StoreError, match="cannot"):
        put_model(store, "stray")
    assert list(contents(store)) == ["good:latest"]


# ---- sharing


def test_readers_need_no_lock_and_writers_wait_for_it(store: Store) -> None:
    put_model(store, "tale")
    impatient = Store(store.root, lock_timeout_s=0)
    ready, done = threading.Event(), threading.Event()

    def hold() -> None:
        with filelock.FileLock(store.private / "lock"):
            ready.set()
            done.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    try:
        ready.wait()
        assert impatient.get(name("tale"))
        with pytest.raises(StoreLocked, match="kept the models folder busy"):
            impatient.delete(name("tale"))
    finally:
        done.set()
        holder.join()
    impatient.delete(name("tale"))


def test_one_daemon_serves_from_a_store(store: Store) -> None:
    with store.claim():
        with pytest.raises(StoreLocked, match=rf"process {os.getpid()}\)"), Store(store.root).claim():
            pass
        (store.private / "daemon.pid").unlink()
        with pytest.raises(StoreLocked, match="process unknown"), Store(store.root).claim():
            pass
    with store.claim():
        pass


def test_a_reader_whose_model_is_replaced_under_it_gets_the_new_one(store: Store) -> None:
    put_model(store, "tale", b"old")

    class Racing(ManifestTree):
        """Replaces the model between a reader's look at the manifest and at the blobs, once."""

        has_raced = False

        def read(self, name: ModelName) -> tuple[bytes, os.stat_result]:
            answer = super().read(name)
            if not self.has_raced:
                self.has_raced = True
                put_model(store, "tale", b"new")
            return answer

    racing = Store(store.root)
    racing.tree = Racing(store.manifests)
    assert racing.get(name("tale")).files["model.gguf"].read_bytes() == b"new"


def test_a_model_that_vanishes_while_listing_is_left_out(store: Store) -> None:
    put_model(store, "tale")

    class Vanishing(ManifestTree):
        def read(self, name: ModelName) -> tuple[bytes, os.stat_result]:
            raise ModelNotFound(name.short)

    vanishing = Store(store.root)
    vanishing.tree = vanishing._collector._tree = vanishing._list._tree = Vanishing(store.manifests)
    assert vanishing.list() == []
    assert vanishing.broken() == []
    vanishing.discard([Digest.of(b"weights")])
    assert not store.has_blob(Digest.of(b"weights"))


def test_threads_do_not_disturb_each_other(store: Store) -> None:
    """Writers of the same names and readers at once: no reader ever meets a damaged model."""
    num_rounds = 30
    errors: list[BaseException] = []
    start = threading.Barrier(4)

    def write(worker: int) -> None:
        for turn in range(num_rounds):
            put_model(store, f"m{(worker + turn) % 2}", b"%d" % (turn % 3), system=f"{turn % 2}")
            try:
                if turn % 3 == worker:
                    store.delete(name(f"m{turn % 2}"))
                if turn % 5 == worker:
                    store.copy(name("m0"), name("m1"))
            except ModelNotFound:
                continue

    def read(worker: int) -> None:
        for turn in range(4 * num_rounds):
            try:
                store.get(name(f"m{(turn + worker) % 2}"))
            except ModelNotFound:
                continue

    def run(work: object, worker: int) -> None:
        start.wait()
        try:
            work(worker)  # type: ignore[operator]
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=job) for job in ((write, 0), (write, 1), (read, 0), (read, 1))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert store.check() == []
    store.collect_garbage()
    assert blob_names(store) == live_blob_names(store)


# ---- files that another process writes


def test_a_workspace_s_files_become_blobs(store: Store) -> None:
    with store.workspace() as folder:
        (folder / "model.gguf").write_bytes(b"weights")
        digest = store.adopt(folder / "model.gguf")
    assert digest == Digest.of(b"weights")
    assert store.blob_path(digest).read_bytes() == b"weights"
    assert not folder.exists()
    store.discard([digest])
    assert not store.has_blob(digest)


def test_the_next_start_clears_away_a_workspace(store: Store) -> None:
    with store.workspace() as folder:
        (folder / "model.gguf.partial").write_bytes(b"half")
        left = folder.rename(folder.with_name("left-by-a-crash"))
    store.collect_garbage()
    assert not left.exists()
