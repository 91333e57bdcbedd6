"""Collector: which blobs may go, and their going.

A blob goes when somebody said it may be unused, and
(1) no manifest names it, (2) no lease protects it, (3) it is marked collectable: Hob wrote it, or somebody asked Hob to
delete the last model made of it; and (4) every manifest parses, since one that does not may name anything; one that
`fsck` put into quarantine counts until another has its name.

Marks are empty files, since they must outlive the process. Leases need not: `Store.collect_garbage` runs once, at the
start of the one daemon, before it serves. Only Store calls this.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

from registry.errors import BrokenModel, InvalidDigest, InvalidName, ManifestError, ModelNotFound, StoreError
from registry.linked_blobs import LinkedBlobs
from registry.manifest import Digest, Manifest
from registry.manifest_tree import ManifestTree, name_of
from registry.name import ModelName
from registry.store_folder import StoreFolder, entries

LOG = logging.getLogger(__name__)


class Collector:
    """Leases, marks, and the deletion of what has neither lease nor name."""

    def __init__(self, folder: StoreFolder, tree: ManifestTree, links: LinkedBlobs) -> None:
        self._folder = folder
        self._tree = tree
        self._links = links
        # All three are guarded by folder.lock.
        self._leases: Counter[Digest] = Counter()
        self._postponed: set[Digest] = set()  # to collect when their leases end
        self._unnamed: set[Digest] = set()  # written here, in no manifest yet

    @contextmanager
    def lease(self, digests: Iterable[Digest]) -> Iterator[None]:
        """Protect blobs inside the block; what was to be deleted meanwhile and is not named goes at its end."""
        held = Counter(digests)
        with self._folder.lock:
            self._leases.update(held)
        try:
            yield
        finally:
            with self._folder.lock:
                self._leases.subtract(held)
                self._leases += Counter()  # drops what is down to zero
                due = frozenset(self._postponed - self._leases.keys())
                self._postponed -= due
                if due:
                    self.collect_quietly(due)

    def expect_name(self, digest: Digest) -> None:
        """Spare a blob that was just written until a manifest names it, it is given up, or the process ends."""
        with self._folder.lock:
            self._unnamed.add(digest)

    def give_up(self, digests: Iterable[Digest]) -> None:
        """End what `expect_name` began."""
        with self._folder.lock:
            self._unnamed.difference_update(digests)

    def mark(self, digest: Digest) -> bool:
        """Note on the disk that Hob may delete the blob once nothing refers to it; False if that was noted before."""
        self._folder.make_directories(self._folder.collectable)
        try:
            os.close(self._folder.disk.create(self._folder.collectable / digest.file_name))
        except FileExistsError:
            return False
        return True

    def marked(self) -> frozenset[Digest]:
        """Blobs that Hob may delete; a file of another name among the marks is nobody's mark."""
        marked = set()
        for path in entries(self._folder.collectable):
            with suppress(InvalidDigest):
                marked.add(Digest.parse(path.name))
        return frozenset(marked)

    def collect_quietly(self, digests: frozenset[Digest], new_marks: frozenset[Digest] = frozenset()) -> None:
        """Collect after a change that has already succeeded: a refusal of the disk is for the log only."""
        try:
            with self._folder.exclusive():
                self.collect(digests, new_marks)
        except (OSError, StoreError) as error:
            LOG.warning("some unused blobs stay until the next start: %s", error)

    def collect(self, digests: frozenset[Digest], new_marks: frozenset[Digest] = frozenset()) -> None:
        """Delete those of the blobs that may go. The caller holds the folder's lock.

        Args:
            new_marks: made for this collection only; who wrote those blobs decides once another model needs them.
        """
        if not digests:
            return
        named = self._named()
        if named is None:
            return
        for digest in sorted(new_marks & named):
            self._folder.disk.unlink(self._folder.collectable / digest.file_name)
        self._postponed |= digests & self._leases.keys()
        for digest in sorted(digests - named - self._unnamed - self._leases.keys()):
            mark = self._folder.collectable / digest.file_name
            if not mark.exists():
                continue
            with suppress(FileNotFoundError):
                self._folder.disk.unlink(self._folder.blobs / digest.file_name)
            self._links.forget(digest)
            self._folder.disk.unlink(mark)

    def _named(self) -> set[Digest] | None:
        """Every blob that a manifest names; None where that is not known, for the reason in the log."""
        named: set[Digest] = set()
        for parts in self._tree.walk():
            try:
                name = name_of(parts)
                named |= Manifest.parse(self._tree.read(name)[0]).digests()
            except ModelNotFound:
                continue  # deleted by an Ollama beside us
            except InvalidName:
                if self._tree.is_unreadable_directory(parts):
                    LOG.warning("unused blobs stay, because manifests in %s cannot be read", "/".join(parts))
                    return None
                continue  # nothing that Hob or Ollama would have written
            except (BrokenModel, ManifestError):
                LOG.warning("unused blobs stay, because %s is damaged and may need them", name)
                return None
        if missed := self._quarantined():
            LOG.warning(
                "unused blobs stay, because the damaged manifest of %s may need them; pull or create it again, or "
                "delete the folder .hob/quarantine",
                missed,
            )
            return None
        return named

    def _quarantined(self) -> ModelName | None:
        """A model whose damaged manifest lies in quarantine, while it has no other."""
        for run in entries(self._folder.quarantine):
            for parts in ManifestTree(run / "manifests").walk():
                try:
                    self._tree.resolve(name_of(parts))
                except InvalidName:
                    continue
                except ModelNotFound:
                    return name_of(parts)
        return None
