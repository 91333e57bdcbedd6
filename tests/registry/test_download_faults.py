"""A download, stopped at every single change it makes to the disk.

The process dies there, or the machine loses power, or the disk refuses. Afterwards nothing stands under a digest's name
that is something else, and the same download gets through and fetches again what the journal did not tell of, no more.
"""

from __future__ import annotations

import errno
import itertools
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from registry.download import Downloads
from registry.errors import OutOfSpace, StoreError
from registry.manifest import Digest
from registry.partials import collect_partials
from registry.remote import RemoteBlob
from registry.store import Store
from registry.transfer_limits import TransferLimits
from tests.registry.faulty_disk import FaultyDisk, Killed
from tests.registry.remote_bytes import SMALL_LIMITS, RemoteBytes, random_bytes
from tests.registry.small_models import blob_names, contents, names_in, put_model

DATA = random_bytes(40_000)
LIMITS = replace(SMALL_LIMITS, max_streams=1, segment_bytes=8_000, sync_bytes=20_000)


def fetch(store: Store, blob: RemoteBlob, limits: TransferLimits = LIMITS) -> Digest:
    downloads = Downloads(store, limits)
    try:
        return downloads.fetch(blob)
    finally:
        downloads.close()


@pytest.fixture
def template(tmp_path: Path) -> Path:
    """A store with a model, and a download of which 24,000 bytes are there."""
    store = Store(tmp_path / "template", disk=FaultyDisk())
    put_model(store, "a", b"weights")
    source = RemoteBytes(DATA, piece_bytes=4_000)

    def stop(position: int) -> None:
        if position == 24_000:
            raise StoreError("enough")

    source.on_piece = stop
    with pytest.raises(StoreError, match="enough"):
        fetch(store, source.blob())
    return store.root


def fresh_copy(template: Path, *, is_partly_there: bool) -> Path:
    root = template.parent / "models"
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(template, root)
    if not is_partly_there:
        shutil.rmtree(root / ".hob" / "partials")
    return root


def assert_nothing_is_wrong(root: Path, before: object) -> Store:
    """What the next process finds."""
    store = Store(root, disk=FaultyDisk())
    assert store.check() == []
    assert contents(store) == before
    store.collect_garbage(collect_partials(store, max_age_s=86400))
    assert store.check() == []
    return store


@pytest.mark.parametrize("is_partly_there", [False, True], ids=["from nothing", "resumed"])
@pytest.mark.parametrize("loses_power", [False, True], ids=["killed", "power lost"])
def test_death_at_every_change(template: Path, is_partly_there: bool, loses_power: bool) -> None:
    before = contents(Store(template))
    for k in itertools.count():
        root = fresh_copy(template, is_partly_there=is_partly_there)
        disk = FaultyDisk(fault_at=k)
        source = RemoteBytes(DATA, piece_bytes=4_000)
        with suppress(Killed):
            fetch(Store(root, disk=disk), source.blob())
        if not disk.has_struck:
            break
        if loses_power:
            disk.lose_power()
        store = assert_nothing_is_wrong(root, before)
        again = RemoteBytes(DATA, piece_bytes=4_000)
        assert fetch(store, again.blob()) == Digest.of(DATA)
        assert store.check() == []
        if not loses_power:
            num_here = 24_000 if is_partly_there else 0
            assert source.num_sent + again.num_sent <= len(DATA) - num_here + LIMITS.segment_bytes
    assert k >= 10, "the download changed next to nothing: the sweep did not sweep"


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EROFS])
@pytest.mark.parametrize("is_partly_there", [False, True], ids=["from nothing", "resumed"])
def test_an_error_at_every_change(template: Path, is_partly_there: bool, error: int) -> None:
    before = contents(Store(template))
    for k in itertools.count():
        root = fresh_copy(template, is_partly_there=is_partly_there)
        disk = FaultyDisk(fault_at=k, error=error)
        store = Store(root, disk=disk)
        source = RemoteBytes(DATA, piece_bytes=4_000)
        refusal: StoreError | None = None
        try:
            fetch(store, source.blob())
        except StoreError as raised:
            refusal = raised
        if refusal is not None:
            assert isinstance(refusal, OutOfSpace) == (error == errno.ENOSPC)
            assert str(root) not in str(refusal)
            assert disk.has_struck
            assert fetch(store, source.blob()) == Digest.of(DATA)  # the same process, once the disk is well
        assert store.blob_path(Digest.of(DATA)).read_bytes() == DATA
        if not disk.has_struck:
            break
        assert_nothing_is_wrong(root, before)
    assert k >= 10


def test_a_power_loss_after_success_loses_nothing(template: Path) -> None:
    root = fresh_copy(template, is_partly_there=False)
    disk = FaultyDisk()
    fetch(Store(root, disk=disk), RemoteBytes(DATA).blob(), replace(LIMITS, sync_bytes=len(DATA) + 1))
    disk.lose_power()
    store = assert_nothing_is_wrong(root, contents(Store(template)))
    assert store.has_blob(Digest.of(DATA))


def test_collecting_partials_at_every_change(template: Path) -> None:
    """Of two downloads the old one goes, whenever the process that removes it dies."""
    for k in itertools.count():
        root = fresh_copy(template, is_partly_there=True)
        disk = FaultyDisk(fault_at=k)
        with suppress(Killed):
            collect_partials(Store(root, disk=disk), max_age_s=-1)
        if not disk.has_struck:
            break
        store = Store(root, disk=FaultyDisk())
        assert collect_partials(store, max_age_s=-1) == frozenset()
        assert names_in(store.private / "partials") == set()
    assert k >= 3


def test_young_partials_are_kept(template: Path) -> None:
    root = fresh_copy(template, is_partly_there=True)
    store = Store(root, disk=FaultyDisk())
    assert collect_partials(store, max_age_s=86400) == frozenset()
    source = RemoteBytes(DATA, piece_bytes=4_000)
    fetch(store, source.blob())
    assert source.num_sent == 16_000
    assert len(blob_names(store)) == 3
