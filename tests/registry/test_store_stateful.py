"""Random use of the store against a dict, with every invariant looked at after each step."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from registry.errors import ModelNotFound
from registry.manifest import Digest
from registry.name import ModelName
from registry.store import Store
from tests.registry.small_models import blob_names, contents, live_blob_names, names_in, put_model

NAMES = st.sampled_from(["a", "A", "a:1", "b", "ns/a", "example.com/ns/a:1", "NS/A"])
WEIGHTS = st.sampled_from([b"one", b"two", b"three"])
SYSTEMS = st.sampled_from(["", "be brief", "be kind", "one"])  # "one" is a system text with the digest of a weight


class StoreMachine(RuleBasedStateMachine):
    """The model is a dict from name, which is equal in any case, to weights and system text."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.store = Store(self.root)
        self.models: dict[ModelName, tuple[bytes, str]] = {}
        self.uploads: set[bytes] = set()

    @rule(name=NAMES, weights=WEIGHTS, system=SYSTEMS)
    def put(self, name: str, weights: bytes, system: str) -> None:
        put_model(self.store, name, weights, system=system)
        self.models[ModelName.parse(name)] = (weights, system)
        self.uploads -= {weights, system.encode()}

    @rule(source=NAMES, destination=NAMES)
    def copy(self, source: str, destination: str) -> None:
        if ModelName.parse(source) in self.models:
            self.store.copy(ModelName.parse(source), ModelName.parse(destination))
            self.models[ModelName.parse(destination)] = self.models[ModelName.parse(source)]
            self.uploads -= {self.models[ModelName.parse(source)][0], self.models[ModelName.parse(source)][1].encode()}
        else:
            with pytest.raises(ModelNotFound):
                self.store.copy(ModelName.parse(source), ModelName.parse(destination))

    @rule(name=NAMES)
    def delete(self, name: str) -> None:
        if ModelName.parse(name) in self.models:
            self.store.delete(ModelName.parse(name))
            del self.models[ModelName.parse(name)]
        else:
            with pytest.raises(ModelNotFound):
                self.store.delete(ModelName.parse(name))

    @rule(name=NAMES, weights=WEIGHTS)
    def delete_under_a_lease(self, name: str, weights: bytes) -> None:
        digest = Digest.of(weights)
        with self.store.lease([digest]):
            had_blob = self.store.has_blob(digest)
            self.delete(name)
            assert self.store.has_blob(digest) == had_blob

    @rule(weights=WEIGHTS)
    def upload(self, weights: bytes) -> None:
        self.store.write_blob([weights], Digest.of(weights))
        self.uploads.add(weights)

    @rule(weights=WEIGHTS)
    def discard(self, weights: bytes) -> None:
        self.store.discard([Digest.of(weights)])
        self.uploads.discard(weights)

    @rule()
    def restart(self) -> None:
        self.store = Store(self.root)
        self.store.collect_garbage()
        self.uploads.clear()

    @invariant()
    def holds_what_the_dict_holds(self) -> None:
        stored = {ModelName.parse(name): parts[1:] for name, parts in contents(self.store).items()}
        assert stored == self.models

    @invariant()
    def is_sound(self) -> None:
        assert self.store.check() == []

    @invariant()
    def keeps_no_more_than_it_must(self) -> None:
        uploads = {Digest.of(data).file_name for data in self.uploads}
        assert blob_names(self.store) == live_blob_names(self.store) | uploads
        assert names_in(self.store.private / "tmp") == set()
        assert names_in(self.store.private / "collectable") == blob_names(self.store)

    def teardown(self) -> None:
        shutil.rmtree(self.root)


TestStore = StoreMachine.TestCase
TestStore.settings = settings(
    max_examples=25, stateful_step_count=20, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
