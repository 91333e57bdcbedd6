"""Import from an Ollama's folder and from the Hugging Face cache: no second copy, no trust, nothing half-made."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from modelfiles.source import ModelSource
from registry.disk import Disk
from registry.errors import BlobNotFound, BrokenModel, CreateError, DigestMismatch, ModelNotFound
from registry.hub_cache import HubCache
from registry.import_models import SOURCES, import_source
from registry.manifest import Digest
from registry.name import ModelName
from registry.ollama_models import OllamaModels
from registry.store import Store
from tests.registry.small_models import blob_names, live_blob_names, names_in, put_model
from tests.registry.weights import CONFIG, gguf_bytes, safetensors_bytes

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def name(text: str) -> ModelName:
    return ModelName.parse(text)


def refuse(source: ModelSource) -> None:
    raise ValueError("its architecture is not one that Hob runs")


class Unlinkable(Disk):
    """A disk that the other program's files are not on."""

    def link(self, source: Path, target: Path) -> None:
        raise OSError(18, "Invalid cross-device link")


# ---- Ollama


@pytest.fixture
def theirs(tmp_path: Path) -> Store:
    """An Ollama's folder with one model under two names."""
    store = Store(tmp_path / "ollama")
    put_model(store, "Ana/tiny:Q8", gguf_bytes(tmp_path), system="of theirs", params={"seed": 1})
    store.copy(name("ana/tiny:q8"), name("twin"))
    return store


def weights_of(store: Store, text: str) -> Path:
    return store.get(name(text)).files["model.gguf"]


def test_a_model_of_ollamas_is_listed_and_linked(store: Store, theirs: Store) -> None:
    ollama = OllamaModels((theirs.root,))
    offered = {model.name.short: (model.size, model.is_stored) for model in ollama.models(store)}
    size = theirs.get(name("twin")).size
    assert offered == {"Ana/tiny:Q8": (size, False), "twin:latest": (size, False)}
    statuses = [status.status for status in ollama.adopt(store, name("ANA/tiny:q8"))]
    assert statuses[-2:] == ["writing manifest", "success"]
    mine = store.get(name("Ana/tiny:Q8"))
    assert mine.digest == theirs.get(name("Ana/tiny:Q8")).digest
    assert weights_of(store, "Ana/tiny:Q8").samefile(weights_of(theirs, "twin"))
    small = mine.manifest.config.digest.file_name
    assert not (store.blobs / small).samefile(theirs.blobs / small), "texts are copied"
    assert [model.is_stored for model in ollama.models(store) if model.name.short == "Ana/tiny:Q8"] == [True]
    statuses = [status.status for status in ollama.adopt(store, name("twin"))]
    assert [status.split(" sha256")[0] for status in statuses[:-2]] == ["using existing layer"] * 4
    theirs.delete(name("twin"))
    theirs.delete(name("ana/tiny:q8"))
    assert store.check() == [], "what is imported outlives its origin"


def test_on_another_disk_everything_is_copied(tmp_path: Path, theirs: Store) -> None:
    store = Store(tmp_path / "models", disk=Unlinkable())
    progress = [status for status in OllamaModels((theirs.root,)).adopt(store, name("twin")) if status.total]
    assert max(status.completed for status in progress) == weights_of(theirs, "twin").stat().st_size
    assert not weights_of(store, "twin").samefile(weights_of(theirs, "twin"))
    assert weights_of(store, "twin").read_bytes() == weights_of(theirs, "twin").read_bytes()


def test_what_is_damaged_there_does_not_come_here(store: Store, theirs: Store) -> None:
    path = weights_of(theirs, "twin")
    data = path.read_bytes()
    path.write_bytes(data[:-1] + b"?")
    with pytest.raises(DigestMismatch):
        list(OllamaModels((theirs.root,)).adopt(store, name("twin")))
    path.write_bytes(data[:-1])
    with pytest.raises(BrokenModel):
        list(OllamaModels((theirs.root,)).adopt(store, name("twin")))
    path.unlink()
    path.symlink_to("/etc/passwd")
    with pytest.raises((BrokenModel, BlobNotFound)):
        list(OllamaModels((theirs.root,)).adopt(store, name("twin")))
    assert blob_names(store) == names_in(store.folder.tmp) == set()
    assert not store.manifests.exists()


def test_what_hob_cannot_run_is_refused_before_anything_is_taken(store: Store, theirs: Store) -> None:
    put_model(theirs, "nonsense", b"no GGUF file")
    ollama = OllamaModels((theirs.root,))
    for text, check_source, reason in (
        ("twin", refuse, "twin:latest cannot be imported: its architecture is not one that Hob runs"),
        ("nonsense", None, "GGUF"),
    ):
        with pytest.raises(CreateError, match=reason):
            list(ollama.adopt(store, name(text), check_source))
    with pytest.raises(ModelNotFound):
        list(ollama.adopt(store, name("absent")))
    assert not store.root.exists()


def test_a_client_that_leaves_leaves_nothing(store: Store, theirs: Store) -> None:
    events = OllamaModels((theirs.root,)).adopt(store, name("twin"))
    while next(events).status != "writing manifest":
        pass
    assert blob_names(store)
    events.close()  # type: ignore[attr-defined]
    assert blob_names(store) == set()


def test_a_shared_folder_has_nothing_to_import(theirs: Store) -> None:
    ollama = OllamaModels((theirs.root,))
    assert ollama.models(theirs) == []
    with pytest.raises(ModelNotFound):
        list(ollama.adopt(theirs, name("twin")))


# ---- the Hugging Face cache


class Cache:
    """A cache as huggingface_hub lays it out."""

    def __init__(self, root: Path, repository: str = "maker/model") -> None:
        self.hub = root
        self.folder = root / f"models--{repository.replace('/', '--')}"
        self.blobs = self.folder / "blobs"

    def add(self, files: dict[str, bytes], commit: str = COMMIT, ref: str = "main") -> None:
        self.blobs.mkdir(parents=True, exist_ok=True)
        (self.folder / "refs").mkdir(exist_ok=True)
        (self.folder / "refs" / ref).write_text(commit)
        for path, data in files.items():
            is_large = path.endswith((".gguf", ".safetensors"))
            blob = self.blobs / (hashlib.sha256(data).hexdigest() if is_large else hashlib.sha1(data).hexdigest())
            blob.write_bytes(data)
            self.link(path, blob, commit)

    def link(self, path: str, target: Path, commit: str = COMMIT) -> None:
        link = self.folder / "snapshots" / commit / path
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(os.path.relpath(target, link.parent))


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "hf" / "hub")


def offered(cache: Cache, store: Store) -> list[str]:
    return [model.name.short for model in HubCache(cache.hub).models(store)]


def adopt(cache: Cache, store: Store, text: str) -> list[str]:
    return [status.status for status in HubCache(cache.hub).adopt(store, name(text))]


def test_a_repository_of_safetensors_becomes_a_model(store: Store, cache: Cache) -> None:
    weights = safetensors_bytes()
    cache.add(
        {
            "config.json": json.dumps(CONFIG).encode(),
            "model.safetensors": weights,
            "tokenizer.json": b"{}",
            "pytorch_model.bin": b"\x80pickle",
            "modeling.py": b"import os",
            "README.md": b"read me",
        }
    )
    assert offered(cache, store) == ["hf.co/maker/model:latest"]
    statuses = adopt(cache, store, "hf.co/maker/model")
    assert statuses[-2:] == ["writing manifest", "success"]
    model = store.get(name("hf.co/maker/model"))
    assert sorted(model.files) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert model.files["model.safetensors"].samefile(cache.blobs / hashlib.sha256(weights).hexdigest())
    assert model.files["config.json"].stat().st_nlink == 1, "texts are copied"
    assert blob_names(store) == live_blob_names(store)


def test_each_quantisation_is_a_model_of_its_own(store: Store, cache: Cache, tmp_path: Path) -> None:
    cache.add(
        {
            "model-Q4_K_M.gguf": gguf_bytes(tmp_path),
            "model-Q8_0.gguf": gguf_bytes(tmp_path, name="other.weight"),
            "model-F16-00001-of-00002.gguf": gguf_bytes(tmp_path),  # the other half is not here
            "system": b"You are kind.",
        }
    )
    assert offered(cache, store) == ["hf.co/maker/model:Q4_K_M", "hf.co/maker/model:Q8_0"]
    adopt(cache, store, "hf.co/maker/model:q8_0")
    model = store.get(name("hf.co/maker/model:q8_0"))
    assert model.system == "You are kind."
    assert model.files["model.gguf"].stat().st_nlink == 2
    adopt(cache, store, "hf.co/maker/model")
    assert store.get(name("hf.co/maker/model")).files["model.gguf"].read_bytes() == gguf_bytes(tmp_path)
    with pytest.raises(CreateError, match="without 1 of its shards"):
        adopt(cache, store, "hf.co/maker/model:F16")
    for absent in ("hf.co/maker/model:Q2_K", "hf.co/maker/other"):
        with pytest.raises(ModelNotFound):
            adopt(cache, store, absent)


def test_the_commit_of_main_counts(store: Store, cache: Cache, tmp_path: Path) -> None:
    cache.add({"model-Q8_0.gguf": gguf_bytes(tmp_path)})
    cache.add({"model-Q4_0.gguf": gguf_bytes(tmp_path)}, commit=COMMIT[::-1], ref="dev")
    assert offered(cache, store) == ["hf.co/maker/model:Q8_0"]


def test_a_link_out_of_the_cache_is_not_followed(store: Store, cache: Cache, tmp_path: Path) -> None:
    cache.add({"config.json": json.dumps(CONFIG).encode()})
    outside = tmp_path / "model.safetensors"
    outside.write_bytes(safetensors_bytes())
    cache.link("model.safetensors", outside)
    assert offered(cache, store) == []
    with pytest.raises(CreateError, match="has no model that Hob reads"):
        adopt(cache, store, "hf.co/maker/model")


def test_bytes_that_are_not_what_the_cache_calls_them_are_refused(store: Store, cache: Cache) -> None:
    weights = safetensors_bytes()
    cache.add({"config.json": json.dumps(CONFIG).encode(), "model.safetensors": weights})
    (cache.blobs / hashlib.sha256(weights).hexdigest()).write_bytes(weights[:-1] + b"?")
    with pytest.raises(DigestMismatch):
        adopt(cache, store, "hf.co/maker/model")
    assert blob_names(store) == names_in(store.folder.tmp) == set()


def test_files_that_are_no_model_leave_nothing(store: Store, cache: Cache) -> None:
    cache.add({"config.json": b"{", "model.safetensors": safetensors_bytes()})
    with pytest.raises(CreateError):
        adopt(cache, store, "hf.co/maker/model")
    assert blob_names(store) == set()


def test_no_cache_is_no_models(store: Store, tmp_path: Path) -> None:
    assert HubCache(tmp_path / "none").models(store) == []
    (tmp_path / "file").touch()
    assert HubCache(tmp_path / "file").models(store) == []
    assert OllamaModels((tmp_path / "none",)).models(store) == []


# ---- where they lie


def test_sources_go_by_name_only(tmp_path: Path) -> None:
    assert set(SOURCES) == {"ollama", "huggingface"}
    for wrong in ("", "/etc", "../ollama", "Ollama", str(tmp_path)):
        with pytest.raises(CreateError, match="models can be imported from ollama and huggingface, not from"):
            import_source(wrong, {})


def test_ollamas_folders_are_those_of_its_environment(store: Store, tmp_path: Path) -> None:
    put_model(Store(tmp_path / "home/.ollama/models"), "mine")
    put_model(Store(tmp_path / "else"), "elsewhere")
    for environ, expected in (
        ({"HOME": str(tmp_path / "home")}, ["mine:latest"]),
        ({"HOME": str(tmp_path / "home"), "OLLAMA_MODELS": f'"{tmp_path}/else"'}, ["elsewhere:latest"]),
    ):
        source = import_source("ollama", environ)
        assert [model.name.short for model in source.models(store)] == expected


@pytest.mark.parametrize(
    ("environ", "folder"),
    [
        ({"HOME": "{}"}, ".cache/huggingface/hub"),
        ({"HOME": "{}", "XDG_CACHE_HOME": "{}/xdg"}, "xdg/huggingface/hub"),
        ({"HOME": "{}", "HF_HOME": "{}/hf"}, "hf/hub"),
        ({"HOME": "{}", "HF_HOME": "{}/hf", "HF_HUB_CACHE": "{}/cache"}, "cache"),
    ],
)
def test_the_cache_is_where_its_environment_says(
    store: Store, tmp_path: Path, environ: dict[str, str], folder: str
) -> None:
    Cache(tmp_path / folder).add({"model-Q8_0.gguf": gguf_bytes(tmp_path)})
    source = import_source("huggingface", {key: value.format(tmp_path) for key, value in environ.items()})
    assert [model.name.short for model in source.models(store)] == ["hf.co/maker/model:Q8_0"]


def test_a_changed_origin_is_noticed(store: Store, theirs: Store) -> None:
    list(OllamaModels((theirs.root,)).adopt(store, name("twin")))
    path = weights_of(theirs, "twin")
    digest = Digest.parse(path.name)
    path.write_bytes(b"x" * path.stat().st_size)
    os.utime(path, ns=(1, 1))
    with pytest.raises(BrokenModel, match="was written to"):
        store.get(name("twin"))
    assert not store.has_blob(digest)
