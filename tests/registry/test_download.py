"""Downloads: right bytes under the right digest, or a clean error; and what is here is not fetched twice."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from registry.blob_download import check_space
from registry.create import CreateStatus
from registry.download import Downloads
from registry.errors import OutOfSpace, RemoteError, RemoteNotFound, StoreLocked
from registry.manifest import Digest
from registry.name import ModelName
from registry.partials import collect_partials, open_partial
from registry.remote import RangeReply, RemoteBlob, RemoteModel
from registry.retries import RetryPolicy
from registry.store import Store
from registry.transfer_limits import TransferLimits
from tests.registry.remote_bytes import SMALL_LIMITS, RemoteBytes, broken, git_hash, random_bytes
from tests.registry.small_models import blob_names, names_in

DATA = random_bytes(300_000)
ONE_STREAM = replace(SMALL_LIMITS, max_streams=1)


@pytest.fixture
def downloads(store: Store) -> Iterator[Downloads]:
    yield from opened(store)


def opened(store: Store, limits: TransferLimits = SMALL_LIMITS) -> Iterator[Downloads]:
    downloads = Downloads(store, limits)
    yield downloads
    downloads.close()


def model_of(*blobs: RemoteBlob) -> RemoteModel:
    return RemoteModel(ModelName.parse("m"), blobs, lambda store, digests: iter(()))


def stored(store: Store, data: bytes) -> bool:
    digest = Digest.of(data)
    return store.has_blob(digest) and store.blob_path(digest).read_bytes() == data


# ---- right bytes


@pytest.mark.parametrize("num_bytes", [0, 1, 15_999, 16_000, 16_001, 300_000])
def test_a_blob_arrives(store: Store, downloads: Downloads, num_bytes: int) -> None:
    source = RemoteBytes(DATA[:num_bytes])
    assert downloads.fetch(source.blob()) == Digest.of(source.data)
    assert stored(store, source.data)
    assert source.num_sent == num_bytes
    assert all(stop is not None and stop - start <= 16_000 for start, stop in source.requests)
    assert len(blob_names(store)) == 1


def test_a_blob_that_is_here_is_not_asked_for(store: Store, downloads: Downloads) -> None:
    store.write_blob([DATA])
    source = RemoteBytes(DATA)
    assert downloads.fetch(source.blob()) == Digest.of(DATA)
    assert source.requests == []


def test_a_blob_that_is_here_stays_until_a_manifest_names_it(store: Store, downloads: Downloads) -> None:
    """Also where another process has left it."""
    Store(store.root).write_blob([DATA])
    downloads.fetch(RemoteBytes(DATA).blob())
    store.collect_garbage()
    assert stored(store, DATA)


def test_a_blob_that_has_another_size_than_it_should_is_fetched_again(store: Store, downloads: Downloads) -> None:
    digest = store.write_blob([DATA])
    store.blob_path(digest).write_bytes(DATA[:100])
    downloads.fetch(RemoteBytes(DATA).blob())
    assert stored(store, DATA)


def test_chunks_come_over_several_connections_at_once(store: Store, downloads: Downloads) -> None:
    """No stream gets on before all three have begun."""
    meeting = threading.Barrier(3, timeout=60)

    def meet(number: int, start: int) -> None:
        if number < 3:
            meeting.wait()

    source = RemoteBytes(DATA, on_request=meet)
    downloads.fetch(source.blob())
    assert stored(store, DATA)


def test_a_source_without_a_size_is_fetched_in_one_stream(store: Store, downloads: Downloads) -> None:
    source = RemoteBytes(DATA, total=None)
    blob = source.blob(size=None, has_digest=False, git_hash=git_hash(DATA))
    assert downloads.fetch(blob) == Digest.of(DATA)
    assert source.requests == [(0, None)]


def test_a_git_hash_is_compared_where_there_is_no_digest(store: Store, downloads: Downloads) -> None:
    good = RemoteBytes(DATA)
    assert downloads.fetch(good.blob(has_digest=False, git_hash=git_hash(DATA), key="good")) == Digest.of(DATA)
    bad = RemoteBytes(DATA)
    with pytest.raises(RemoteError, match=r"sent other bytes than announced: git hash .* instead of"):
        downloads.fetch(bad.blob(has_digest=False, git_hash=git_hash(b"other"), key="bad"))


def test_a_source_without_ranges_sends_it_in_one_stream(store: Store, downloads: Downloads) -> None:
    source = RemoteBytes(DATA, has_ranges=False, piece_bytes=1_700)
    downloads.fetch(source.blob())
    assert stored(store, DATA)
    assert source.requests[-1][1] is None
    assert source.num_sent <= len(DATA) + 3 * (16_000 + 2 * 1_700)  # a chunk and a bit, until it was noticed


# ---- failures


def test_failures_are_got_over_as_long_as_there_is_progress(store: Store, downloads: Downloads) -> None:
    failed: set[int] = set()

    def fail_once_everywhere(position: int) -> None:
        if position % 5_000 == 0 and position not in failed:
            failed.add(position)
            raise broken()

    source = RemoteBytes(DATA, on_piece=fail_once_everywhere)
    downloads.fetch(source.blob())
    assert stored(store, DATA)
    assert len(failed) == 60
    assert source.num_sent == len(DATA)


def test_it_gives_up_where_nothing_comes(store: Store) -> None:
    source = RemoteBytes(DATA, on_request=lambda number, start: (_ for _ in ()).throw(broken("HTTP status 503")))
    for downloads in opened(store, ONE_STREAM):
        with pytest.raises(RemoteError, match="HTTP status 503; gave up after 4 attempts"):
            downloads.fetch(source.blob())
    assert len(source.requests) == 4
    assert blob_names(store) == set()


def test_a_final_refusal_is_not_repeated(store: Store) -> None:
    def refuse(number: int, start: int) -> None:
        raise RemoteNotFound("registry.test has no such blob")

    source = RemoteBytes(DATA, on_request=refuse)
    for downloads in opened(store, ONE_STREAM):
        with pytest.raises(RemoteNotFound, match="no such blob"):
            downloads.fetch(source.blob())
    assert len(source.requests) == 1


def test_a_server_that_takes_one_connection_is_used_over_one(store: Store, downloads: Downloads) -> None:
    only = threading.Lock()
    changed = threading.Condition()

    def tell(position: int = 0) -> None:
        with changed:
            changed.notify_all()

    class OneConnection(RemoteBytes):
        @contextmanager
        def open(self, start: int, stop: int | None) -> Iterator[RangeReply]:
            if not only.acquire(blocking=False):
                before = self.num_sent
                with changed:  # a refusal comes when the others got on, so that it does not count for all
                    changed.wait_for(lambda: self.num_sent != before or not only.locked(), timeout=60)
                raise broken("HTTP status 503")
            try:
                with super().open(start, stop) as reply:
                    yield reply
            finally:
                only.release()
                tell()

    downloads.fetch(OneConnection(DATA, on_piece=tell).blob())
    assert stored(store, DATA)


def test_all_streams_wait_where_the_server_asks_for_it(store: Store) -> None:
    """It may ask for an hour; what is waited is the limit."""
    moments: list[float] = []

    def refuse(number: int, start: int) -> None:
        moments.append(time.monotonic())
        if number == 3:
            raise broken("HTTP status 429", retry_after_s=3600.0)

    limits = replace(ONE_STREAM, retries=RetryPolicy(max_attempts=4, first_pause_s=0.001, max_retry_after_s=0.2))
    for waiting in opened(store, limits):
        waiting.fetch(RemoteBytes(DATA, on_request=refuse).blob())
    assert moments[4] - moments[3] >= 0.2


def test_short_bodies_are_asked_for_again(store: Store, downloads: Downloads) -> None:
    class Short(RemoteBytes):
        def _pieces(self, start: int, stop: int | None) -> Iterator[bytes]:
            yield from super()._pieces(start, min(stop or len(self.data), start + 9_000))

    downloads.fetch(Short(DATA).blob())
    assert stored(store, DATA)


def test_long_bodies_are_cut(store: Store, downloads: Downloads) -> None:
    class Long(RemoteBytes):
        def _pieces(self, start: int, stop: int | None) -> Iterator[bytes]:
            for piece in super()._pieces(start, stop):
                yield piece if len(piece) == self.piece_bytes else piece + b"more"
            yield b"more"

    source = Long(DATA, piece_bytes=1_500)
    downloads.fetch(source.blob())
    assert stored(store, DATA)
    assert source.num_sent == len(DATA)


def test_another_range_than_asked_for_is_not_taken(store: Store, downloads: Downloads) -> None:
    class Shifted(RemoteBytes):
        def open(self, start: int, stop: int | None):  # type: ignore[no-untyped-def]
            return super().open(start + 1, stop)

    with pytest.raises(RemoteError, match=r"asked for bytes from \d+ on, the server sends from \d+ on; gave up"):
        downloads.fetch(Shifted(DATA).blob())
    assert blob_names(store) == set()


def test_another_size_than_announced_is_not_taken(store: Store, downloads: Downloads) -> None:
    with pytest.raises(RemoteError, match="the server has 7 bytes where 300000 were announced"):
        downloads.fetch(RemoteBytes(DATA, total=7).blob())


def test_wrong_bytes_are_thrown_away_and_fetched_anew_once(store: Store, downloads: Downloads) -> None:
    source = RemoteBytes(DATA[:1000] + b"x" + DATA[1001:])
    with pytest.raises(RemoteError, match=r"the server sent other bytes than announced: sha256:.* instead of sha256:"):
        downloads.fetch(source.blob(announced=DATA))
    assert source.num_sent == 2 * len(DATA)
    assert blob_names(store) == set()

    source.num_sent = 0

    def heal(number: int, start: int) -> None:
        if source.num_sent >= len(DATA):
            source.data = DATA

    source.on_request = heal
    downloads.fetch(source.blob(announced=DATA))
    assert stored(store, DATA)


@pytest.mark.parametrize(
    "limits",
    [replace(ONE_STREAM, min_bytes_per_s=1e12), replace(ONE_STREAM, min_bytes_per_s=0, slow_share=2.0)],
    ids=["by itself", "beside the fastest"],
)
def test_a_connection_that_crawls_is_replaced(store: Store, limits: TransferLimits) -> None:
    source = RemoteBytes(DATA)
    for downloads in opened(store, replace(limits, window_s=1e-9)):
        with pytest.raises(RemoteError, match=r"the server sends \d+ bytes a second; gave up after 4 attempts"):
            downloads.fetch(source.blob())
    assert len(source.requests) == 4


def test_an_endless_file_does_not_fill_the_disk_for_good(store: Store, downloads: Downloads) -> None:
    source = RemoteBytes(DATA, total=None)
    fail_at(source, 200_000)
    with pytest.raises(RemoteError, match="gone"):
        downloads.fetch(source.blob(size=None))
    assert list((store.private / "partials").glob("*/data")) == []


def test_progress_is_told(store: Store, downloads: Downloads) -> None:
    told, calls = threading.Event(), []

    def tell(completed: int, total: int) -> None:
        calls.append((completed, total))
        told.set()

    source = RemoteBytes(DATA, on_piece=lambda position: position < 200_000 or told.wait(60))
    downloads.fetch(source.blob(), tell)
    assert all(0 <= completed <= total == len(DATA) for completed, total in calls)


# ---- versions, where no hash tells


def test_a_file_without_a_hash_is_of_one_version(store: Store, downloads: Downloads) -> None:
    source = RemoteBytes(DATA)
    new = random_bytes(300_000, seed=1)

    def move(number: int, start: int) -> None:
        if number == 5:
            source.data, source.validator = new, '"v2"'

    source.on_request = move
    assert downloads.fetch(source.blob(has_digest=False, key="file@tag")) == Digest.of(new)
    assert stored(store, new)


def test_a_file_that_keeps_changing_is_an_error(store: Store) -> None:
    source = RemoteBytes(DATA)

    def move(number: int, start: int) -> None:
        source.validator = f'"{number}"'
        if number % 2 == 0:
            return
        raise broken()

    def cut(position: int) -> None:
        if position >= 100_000:
            raise broken()

    source.on_request, source.on_piece = move, cut
    for downloads in opened(store, ONE_STREAM):
        with pytest.raises(RemoteError, match="the file changes while it is downloaded"):
            downloads.fetch(source.blob(has_digest=False, key="file@tag"))
    assert blob_names(store) == set()


def test_a_file_with_neither_hash_nor_version_comes_in_one_piece(store: Store, downloads: Downloads) -> None:
    source = RemoteBytes(DATA, validator="")
    assert downloads.fetch(source.blob(has_digest=False, key="file")) == Digest.of(DATA)
    assert source.requests[-1] == (0, None)


# ---- resuming


def interrupted(store: Store, blob: RemoteBlob, limits: TransferLimits = SMALL_LIMITS) -> None:
    """Fetch until the source fails for good."""
    for downloads in opened(store, limits):
        with pytest.raises(RemoteError):
            downloads.fetch(blob)


def fail_at(source: RemoteBytes, position: int) -> None:
    def fail(at: int) -> None:
        if at >= position:
            raise RemoteError("registry.test is gone")

    source.on_piece = fail


def test_the_next_download_goes_on(store: Store) -> None:
    source = RemoteBytes(DATA)
    fail_at(source, 200_000)
    interrupted(store, source.blob(), ONE_STREAM)
    assert source.num_sent == 200_000
    assert blob_names(store) == set()

    again = RemoteBytes(DATA)
    fresh = Store(store.root)
    seen: list[CreateStatus] = []
    for downloads in opened(fresh):
        seen += list(downloads.fetch_all(model_of(again.blob())))
    assert again.num_sent == 100_000
    assert stored(fresh, DATA)
    assert all(status.completed >= 200_000 for status in seen)


def test_a_part_that_the_disk_has_lost_is_fetched_again(store: Store) -> None:
    source = RemoteBytes(DATA)
    fail_at(source, 200_000)
    interrupted(store, source.blob(), ONE_STREAM)
    (data,) = (store.private / "partials").glob("*/data")
    with data.open("r+b") as file:
        file.seek(50_000)
        file.write(bytes(10))
    again = RemoteBytes(DATA)
    for downloads in opened(store):
        downloads.fetch(again.blob())
    assert stored(store, DATA)
    assert 100_000 < again.num_sent <= 104_000


def test_a_damaged_journal_costs_the_download_and_nothing_else(store: Store) -> None:
    for damage in (
        lambda text: b"",
        lambda text: text[:7],
        lambda text: bytes(len(text)),
        lambda text: text.replace(b"sha256:", b"sha256-"),  # of another key
        lambda text: text.replace(b"300000", b"300001"),
    ):
        source = RemoteBytes(DATA)
        fail_at(source, 200_000)
        interrupted(store, source.blob(), ONE_STREAM)
        (journal,) = (store.private / "partials").glob("*/journal")
        journal.write_bytes(damage(journal.read_bytes()))
        again = RemoteBytes(DATA)
        for downloads in opened(store):
            downloads.fetch(again.blob())
        assert stored(store, DATA)
        assert again.num_sent == len(DATA)
        store.discard([Digest.of(DATA)])
        assert not stored(store, DATA)


def test_a_resumed_file_that_was_wrong_is_fetched_anew(store: Store) -> None:
    """Its checksums fit, but the hash of the whole does not."""
    wrong = RemoteBytes(random_bytes(300_000, seed=2))
    fail_at(wrong, 200_000)
    interrupted(store, wrong.blob(announced=DATA), ONE_STREAM)
    again = RemoteBytes(DATA)
    for downloads in opened(store):
        downloads.fetch(again.blob())
    assert stored(store, DATA)
    assert again.num_sent == 100_000 + 300_000


# ---- several who wait


def test_those_who_ask_for_the_same_share_one_download(store: Store, downloads: Downloads) -> None:
    everybody_waits = threading.Event()
    source = RemoteBytes(DATA, on_request=lambda number, start: everybody_waits.wait(60))
    results: list[Digest] = []
    threads = [threading.Thread(target=lambda: results.append(downloads.fetch(source.blob()))) for _ in range(5)]
    for thread in threads:
        thread.start()
    everybody_waits.set()
    for thread in threads:
        thread.join()
    assert results == 5 * [Digest.of(DATA)]
    assert source.num_sent == len(DATA)


def test_the_last_one_who_leaves_stops_it_and_the_next_one_goes_on(store: Store) -> None:
    half, go_on = threading.Event(), threading.Event()

    def stop_at_half(position: int) -> None:
        if position == 150_000:
            half.set()
            go_on.wait(60)

    source = RemoteBytes(DATA, on_piece=stop_at_half)
    for downloads in opened(store, ONE_STREAM):
        first = downloads.fetch_all(model_of(source.blob()))
        second = downloads.fetch_all(model_of(source.blob()))
        next(first)
        next(second)
        assert half.wait(60)
        first.close()
        assert next(second).total == len(DATA)
        second.close()
        # The worker still waits for its server; the file is free all the same.
        again = RemoteBytes(DATA)
        assert downloads.fetch(again.blob()) == Digest.of(DATA)
        assert again.num_sent == 150_000
        go_on.set()
    assert stored(store, DATA)


def test_who_leaves_ends_the_wait_for_a_silent_server(store: Store) -> None:
    half, interrupted = threading.Event(), threading.Event()

    def fall_silent(position: int) -> None:
        if position == 150_000:
            half.set()
            assert interrupted.wait(60)
            raise broken("interrupted")

    source = RemoteBytes(DATA, on_piece=fall_silent, on_interrupt=interrupted.set)
    for downloads in opened(store, ONE_STREAM):
        generator = downloads.fetch_all(model_of(source.blob()))
        next(generator)
        assert half.wait(60)
        generator.close()
        assert interrupted.wait(60)


def test_closing_ends_those_who_wait(store: Store) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def hang(number: int, start: int) -> None:
        begun.set()
        go_on.wait(60)

    source = RemoteBytes(DATA, on_request=hang)
    errors: list[BaseException] = []
    downloads = Downloads(store, SMALL_LIMITS)

    def fetch() -> None:
        try:
            downloads.fetch(source.blob())
        except RemoteError as error:
            errors.append(error)

    waiting = threading.Thread(target=fetch)
    waiting.start()
    assert begun.wait(60)
    threading.Timer(0, go_on.set).start()
    downloads.close()
    waiting.join()
    assert "the download was stopped; what came is kept" in str(errors[0])


def test_two_processes_do_not_write_one_file(store: Store, downloads: Downloads) -> None:
    source = RemoteBytes(DATA)
    with (
        open_partial(Store(store.root), source.blob().key),
        pytest.raises(StoreLocked, match="another process is downloading the same file"),
    ):
        downloads.fetch(source.blob())
    downloads.fetch(source.blob())
    assert stored(store, DATA)


def test_what_is_being_written_is_not_collected(store: Store) -> None:
    with open_partial(store, "key") as partial:
        partial.begin(10)
        collect_partials(Store(store.root), max_age_s=-1)
        assert partial.path.exists()
    collect_partials(Store(store.root), max_age_s=-1)
    assert names_in(store.private / "partials") == set()


# ---- a model


def test_the_blobs_of_a_model_arrive_with_progress(store: Store, downloads: Downloads) -> None:
    there = RemoteBytes(b"here already")
    store.write_blob([there.data])
    sources = [RemoteBytes(random_bytes(size, seed=size)) for size in (100_000, 50, 70_000)]
    unhashed = RemoteBytes(b"small file")
    blobs = [there.blob(), *(source.blob() for source in sources), unhashed.blob(has_digest=False, key="file")]
    events: list[CreateStatus] = []
    generator = downloads.fetch_all(model_of(*blobs, blobs[1]))
    while True:
        try:
            events.append(next(generator))
        except StopIteration as end:
            digests = end.value
            break
    assert digests == {
        blob.key: Digest.of(source.data) for blob, source in zip(blobs, [there, *sources, unhashed], strict=True)
    }
    assert events[0] == CreateStatus(f"pulling {there.blob().label}", str(Digest.of(there.data)), 12, 12)
    for blob in blobs:
        (*_, last) = (event for event in events if event.status == f"pulling {blob.label}")
        assert last.completed == last.total == blob.size
    assert there.requests == []
    assert len({event.digest for event in events}) == 5


def test_finished_blobs_of_an_interrupted_pull_survive_a_restart(store: Store) -> None:
    first, second = RemoteBytes(DATA), RemoteBytes(random_bytes(50_000, seed=3))
    fail_at(second, 20_000)
    model = model_of(first.blob(has_digest=False, git_hash=git_hash(DATA), key="first"), second.blob())
    for downloads in opened(store, ONE_STREAM):
        with pytest.raises(RemoteError, match="gone"):
            list(downloads.fetch_all(model))

    restarted = Store(store.root)
    kept = collect_partials(restarted, max_age_s=86400)
    restarted.collect_garbage(kept)
    assert kept == {Digest.of(DATA)}
    first.num_sent = second.num_sent = 0
    second.on_piece = lambda position: None
    for downloads in opened(restarted):
        events = list(downloads.fetch_all(model))
        assert events[0].completed == events[0].total == len(DATA)
        downloads.forget(model)
    assert first.num_sent == 0
    assert second.num_sent == 30_000
    assert names_in(store.private / "partials") == set()


def test_a_disk_that_is_too_small_is_refused_before_anything_is_fetched(store: Store) -> None:
    source = RemoteBytes(DATA)
    downloads = Downloads(store, SMALL_LIMITS, free=lambda path: 250_000)
    sentence = r"insufficient storage: the download needs 0\.3 MB more, 0\.2 MB are free; free some, or keep"
    with pytest.raises(OutOfSpace, match=sentence):
        list(downloads.fetch_all(model_of(source.blob())))
    with pytest.raises(OutOfSpace, match=sentence):
        downloads.fetch(source.blob())
    assert source.requests == []
    downloads.close()


def test_what_is_there_already_needs_no_space(store: Store) -> None:
    source = RemoteBytes(DATA)
    fail_at(source, 200_000)
    interrupted(store, source.blob(), ONE_STREAM)
    check_space(store, [source.blob()], lambda path: 110_000)
    with pytest.raises(OutOfSpace):
        check_space(store, [source.blob()], lambda path: 90_000)
