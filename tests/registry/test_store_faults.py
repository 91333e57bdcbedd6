"""Every operation of the store, stopped at every single change it makes to the disk.

For k = 0, 1, 2, ... until the operation gets through: the k-th change fails, or the process dies there, or the machine
loses power. Afterwards the store must hold the models of before or those of after, whole; nothing under a digest's name
may be something else; and the next start must bring the disk back to what the models need.
"""

from __future__ import annotations

import errno
import itertools
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from registry.errors import OutOfSpace, StoreError
from registry.manifest import Digest
from registry.name import ModelName
from registry.store import Store
from tests.registry.faulty_disk import FaultyDisk, Killed
from tests.registry.small_models import blob_names, contents, live_blob_names, names_in, put_model

Operation = Callable[[Store], object]


def name(text: str) -> ModelName:
    return ModelName.parse(text)


OPERATIONS: dict[str, Operation] = {
    "create": lambda store: put_model(store, "ns/new", b"new weights", system="new"),
    "replace": lambda store: put_model(store, "a", b"new weights"),
    "copy": lambda store: store.copy(name("a"), name("ns/twin:1")),
    "copy over": lambda store: store.copy(name("a"), name("b")),
    "delete": lambda store: store.delete(name("b")),
    "delete shared": lambda store: store.delete(name("a")),
    "upload": lambda store: store.write_blob([b"uploaded ", b"bytes"], Digest.of(b"uploaded bytes")),
    "collect garbage": lambda store: store.collect_garbage(),
}


@pytest.fixture
def template(tmp_path: Path) -> Path:
    """A store of three models, two of which share weights, with an orphan blob and a dead process's file."""
    store = Store(tmp_path / "template", disk=FaultyDisk())
    put_model(store, "a", b"shared", system="of a", params={"seed": 1})
    put_model(store, "b", b"weights of b", system="of b")
    put_model(store, "c", b"shared")
    store.write_blob([b"orphan"])
    (store.private / "tmp" / "1-dead").write_bytes(b"half")
    return store.root


def fresh_copy(template: Path) -> Path:
    root = template.parent / "models"
    shutil.rmtree(root, ignore_errors=True)
    return Path(shutil.copytree(template, root))


def assert_sound(root: Path, before: object, after: object) -> None:
    """I1 to I4 of a store that a new process has just opened."""
    store = Store(root, disk=FaultyDisk())
    assert store.check() == []
    assert contents(store) in (before, after)
    store.collect_garbage()
    assert store.check() == []
    assert contents(store) in (before, after)
    assert blob_names(store) == live_blob_names(store)
    assert names_in(store.private / "tmp") == set()


@pytest.mark.parametrize("loses_power", [False, True], ids=["killed", "power lost"])
@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS.keys())
def test_death_at_every_change(template: Path, operation: Operation, loses_power: bool) -> None:
    before = contents(Store(template))
    root = fresh_copy(template)
    operation(Store(root, disk=FaultyDisk()))
    after = contents(Store(root))

    for k in itertools.count():
        root = fresh_copy(template)
        disk = FaultyDisk(fault_at=k)
        with suppress(Killed):
            operation(Store(root, disk=disk))
        if not disk.has_struck:
            break
        if loses_power:
            disk.lose_power()
        assert_sound(root, before, after)
        if contents(Store(root)) == before:
            operation(Store(root, disk=FaultyDisk()))
        assert contents(Store(root)) == after
    assert k >= 3, "the operation changed next to nothing: the sweep did not sweep"


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EACCES])
@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS.keys())
def test_an_error_at_every_change(template: Path, operation: Operation, error: int) -> None:
    before = contents(Store(template))
    root = fresh_copy(template)
    operation(Store(root, disk=FaultyDisk()))
    after = contents(Store(root))

    for k in itertools.count():
        root = fresh_copy(template)
        (root / ".hob" / "tmp" / "1-dead").unlink()
        disk = FaultyDisk(fault_at=k, error=error)
        store = Store(root, disk=disk)
        refusal: StoreError | None = None
        try:
            operation(store)
        except StoreError as raised:
            refusal = raised
        if refusal is None:
            assert contents(store) == after
        else:
            assert isinstance(refusal, OutOfSpace) == (error == errno.ENOSPC)
            assert str(root) not in str(refusal)
        if not disk.has_struck:
            break
        assert names_in(store.private / "tmp") == set()
        assert_sound(root, before, after)
        if contents(store) == before:
            operation(store)  # the same process goes on once the disk is well
            assert contents(store) == after


def test_a_power_loss_after_success_loses_nothing(template: Path) -> None:
    for text in ("create", "replace", "copy", "copy over", "delete"):
        root = fresh_copy(template)
        disk = FaultyDisk()
        OPERATIONS[text](Store(root, disk=disk))
        after = contents(Store(root))
        disk.lose_power()
        assert_sound(root, after, after)


def test_a_read_only_folder_can_be_read(template: Path) -> None:
    disk = FaultyDisk(fault_at=0, error=errno.EROFS)
    store = Store(template, disk=disk)
    assert len(store.list()) == 3
    assert disk.num_changes == 0
    with pytest.raises(StoreError, match="the models folder is not writable for this user"):
        store.write_blob([b"x"])


def test_the_messages_say_what_and_the_remedy(template: Path) -> None:
    store = Store(template, disk=FaultyDisk(fault_at=0, error=errno.ENOSPC))
    with pytest.raises(OutOfSpace, match=r"insufficient storage: cannot write .*: no space left; free some, or keep"):
        store.write_blob([b"x"])
    store = Store(template, disk=FaultyDisk(fault_at=0, error=errno.EIO))
    with pytest.raises(StoreError, match="cannot write into the models folder: Input/output error"):
        store.write_blob([b"x"])


def test_blobs_that_cannot_be_removed_stay_for_the_next_start(template: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Stubborn(FaultyDisk):
        def unlink(self, path: Path) -> None:
            if path.parent.name == "blobs":
                raise PermissionError(errno.EACCES, "no")
            super().unlink(path)

    store = Store(template, disk=Stubborn())
    store.delete(name("b"))
    assert "b:latest" not in contents(store)
    assert "some unused blobs stay" in caplog.text
    assert store.has_blob(Digest.of(b"weights of b"))
    Store(template, disk=FaultyDisk()).collect_garbage()
    assert not store.has_blob(Digest.of(b"weights of b"))
