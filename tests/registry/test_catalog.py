"""The catalog: that its data are sound, what names mean, the search, and pulling by a short name."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path

import msgspec
import pytest
from huggingface_hub.utils import validate_repo_id

from registry.catalog import Catalog, CatalogFile, CatalogSource
from registry.errors import RemoteNotFound
from registry.hub import HubSource
from registry.hub_files import quantization_of
from registry.name import ModelName
from registry.store import Store
from tests.registry.hub_models import pull
from tests.registry.hub_server import HubServer
from tests.registry.weights import gguf_bytes

PARAMETERS = re.compile(r"(\d+(?:\.\d+)?)([mb])(?:-|$)")


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return Catalog.load()


def name(text: str) -> ModelName:
    return ModelName.parse(text)


# ---- the data


def test_the_schema_is_that_of_the_code(root: Path) -> None:
    written = json.loads((root / "registry" / "catalog.schema.json").read_text("utf-8"))
    schema = json.loads(msgspec.json.encode(msgspec.json.schema(CatalogFile)))
    assert written == schema, "run: python tools/check_catalog.py --write-schema"


def test_every_name_and_every_tag_means_one_thing(catalog: Catalog) -> None:
    names = [model.name for model in catalog.models]
    assert names == sorted(set(names))
    for model in catalog.models:
        tags = [tag for variant in model.variants for tag in (variant.tag, *variant.aliases)]
        tags += [f"{variant.tag}-{suffix}" for variant in model.variants for suffix in model.suffixes]
        # A tag of its own may look like another one with a suffix, as qwen3's 4b-instruct would.
        assert len(tags) == len(set(tags)), model.name
        assert model.default in [variant.tag for variant in model.variants]
        assert not set(model.suffixes) & set(tags)


def test_every_name_and_every_tag_can_be_asked_for(catalog: Catalog) -> None:
    for model in catalog.models:
        assert model.name == model.name.lower()
        for variant in model.variants:
            for tag in (variant.tag, *variant.aliases):
                assert tag == tag.lower()
                entry = catalog.resolve(name(f"{model.name}:{tag}"))
                assert entry is not None
                assert entry.variant is variant
            assert entry is not None
            assert f"{entry.hub_name.namespace}/{entry.hub_name.model}" == variant.repository
            validate_repo_id(variant.repository)
            assert quantization_of(f"m-{variant.quantization}.gguf") == variant.quantization


def test_sizes_are_those_of_so_many_parameters_in_so_many_bits(catalog: Catalog) -> None:
    for model in catalog.models:
        for variant in model.variants:
            found = PARAMETERS.match(variant.tag)
            assert found, f"{model.name}:{variant.tag} does not begin with its number of parameters"
            num_parameters = float(found[1]) * (1e9 if found[2] == "b" else 1e6)
            bits = variant.size_mb * 8e6 / num_parameters
            expected = {"Q8_0": 8.5, "Q4": 4.9, "Q4_K_M": 4.9}[variant.quantization]
            # Small models keep much of their size in embeddings, and names round.
            assert 0.9 * expected < bits < 1.75 * expected, (
                f"{model.name}:{variant.tag} has {bits:.2f} bits a parameter"
            )


def test_descriptions_are_lines_and_capabilities_known(catalog: Catalog) -> None:
    for model in catalog.models:
        assert 10 < len(model.description) < 100
        assert model.description.endswith(".")
        assert "\n" not in model.description
        assert set(model.capabilities) <= {"completion", "embedding", "tools", "thinking"}
        assert model.maker


def test_the_models_that_people_ask_for_first_are_there(catalog: Catalog) -> None:
    wanted = (
        "qwen:7b qwen2.5:7b qwen2.5-coder:32b qwen3:8b llama3.1:8b llama3.2:1b llama3.3 mistral:7b mistral-nemo "
        "gemma2:9b gemma3:1b phi3 phi4:14b deepseek-r1:7b smollm2:135m tinyllama "
        "nomic-embed-text nomic-embed-text:v1.5 mxbai-embed-large all-minilm bge-m3 qwen3-embedding:0.6b"
    )
    assert not [text for text in wanted.split() if catalog.resolve(name(text)) is None]


def test_a_file_of_another_form_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "catalog.json"
    path.write_text('{"models": [{"name": "m", "unknown": 1}]}')
    with pytest.raises(msgspec.ValidationError):
        Catalog.load(path)


def test_the_check_against_a_hub(catalog: Catalog, hub: HubServer, hub_source: HubSource, root: Path) -> None:
    check = runpy.run_path(str(root / "tools" / "check_catalog.py"))["check"]
    entry = catalog.resolve(name("tinyllama"))
    assert entry is not None
    assert "has no repository TheBloke/TinyLlama" in check(hub_source, entry)
    hub.add(entry.variant.repository, {"t.Q8_0.gguf": b""})
    assert "has no Q4_K_M; it has Q8_0" in check(hub_source, entry)
    hub.add(entry.variant.repository, {"t.Q4_K_M.gguf": b""})
    assert "has 0 MB where the catalog says 669" in check(hub_source, entry)
    sibling = {"rfilename": "t.Q4_K_M.gguf", "size": 668_788_096}
    hub.tamper = lambda description: {**description, "siblings": [sibling]}
    assert check(hub_source, entry) == ""


# ---- names


@pytest.mark.parametrize(
    ("text", "hub_name"),
    [
        ("qwen2.5", "hf.co/Qwen/Qwen2.5-7B-Instruct-GGUF:Q4_K_M"),
        ("Qwen2.5:7B", "hf.co/Qwen/Qwen2.5-7B-Instruct-GGUF:Q4_K_M"),
        ("registry.ollama.ai/library/qwen2.5:latest", "hf.co/Qwen/Qwen2.5-7B-Instruct-GGUF:Q4_K_M"),
        ("qwen2.5:7b-instruct", "hf.co/Qwen/Qwen2.5-7B-Instruct-GGUF:Q4_K_M"),
        ("qwen2.5:instruct", "hf.co/Qwen/Qwen2.5-7B-Instruct-GGUF:Q4_K_M"),
        ("qwen2.5:7b-instruct-q4_K_M", "hf.co/Qwen/Qwen2.5-7B-Instruct-GGUF:Q4_K_M"),
        ("qwen2.5:0.5b-instruct-q8_0", "hf.co/Qwen/Qwen2.5-0.5B-Instruct-GGUF:Q8_0"),
        ("qwen2.5:q8_0", "hf.co/Qwen/Qwen2.5-7B-Instruct-GGUF:Q8_0"),
        ("qwen2.5:3b-instruct-fp16", "hf.co/Qwen/Qwen2.5-3B-Instruct-GGUF:FP16"),
        ("qwen:1.8b-chat-v1.5-q4_0", "hf.co/Qwen/Qwen1.5-1.8B-Chat-GGUF:Q4_0"),
        ("gemma2:9b-it", "hf.co/bartowski/gemma-2-9b-it-GGUF:Q4_K_M"),
        ("phi3:mini", "hf.co/microsoft/Phi-3-mini-4k-instruct-gguf:Q4"),
        ("qwen3:4b-instruct", "hf.co/unsloth/Qwen3-4B-Instruct-2507-GGUF:Q4_K_M"),
        ("qwen3:4b-instruct-2507-q8_0", "hf.co/unsloth/Qwen3-4B-Instruct-2507-GGUF:Q8_0"),
    ],
)
def test_what_a_name_means(catalog: Catalog, text: str, hub_name: str) -> None:
    entry = catalog.resolve(name(text))
    assert entry is not None
    assert entry.hub_name.short == hub_name


@pytest.mark.parametrize(
    "text",
    [
        "starcoder2",
        "qwen2.5:8b",
        "qwen2.5:7b-base",
        "qwen2.5:7b-q4_K_M-old",
        "gemma3:4b-it-qat",
        "somebody/qwen2.5:7b",
        "hf.co/library/qwen2.5:7b",
        "example.com/library/qwen2.5",
    ],
)
def test_what_is_not_the_catalogs(catalog: Catalog, text: str) -> None:
    assert catalog.resolve(name(text)) is None


def test_the_size_is_that_of_the_quantisation_that_is_pulled(catalog: Catalog) -> None:
    sizes = {}
    for text in ("llama3.2:1b", "llama3.2:1b-instruct-q4_K_M", "llama3.2:1b-instruct-q8_0"):
        entry = catalog.resolve(name(text))
        assert entry is not None
        sizes[text] = entry.size
    assert list(sizes.values()) == [808_000_000, 808_000_000, None]


# ---- search


def found(catalog: Catalog, words: str) -> list[str]:
    return [model.name for model in catalog.search(words)]


def test_search(catalog: Catalog) -> None:
    assert found(catalog, "qwen")[:5] == ["qwen", "qwen2", "qwen2.5", "qwen2.5-coder", "qwen3"]
    assert found(catalog, "QWEN2.5:7b")[0] == "qwen2.5"
    assert set(found(catalog, "code")) >= {"codestral", "qwen2.5-coder"}
    assert found(catalog, "thinking tools") == ["qwen3", "qwq"]
    assert "phi4" in found(catalog, "microsoft reasoning")
    assert found(catalog, "270m") == ["gemma3"]
    assert found(catalog, "deepsek-r1") == ["deepseek-r1"]
    assert found(catalog, "mistrel")[0] == "mistral"
    assert found(catalog, "xyzzy") == []
    assert len(found(catalog, "")) == len(catalog.models)


# ---- as a source


def test_a_pull_by_a_short_name(
    catalog: Catalog, hub: HubServer, hub_source: HubSource, store: Store, tmp_path: Path
) -> None:
    hub.add("Qwen/Qwen3-0.6B-GGUF", {"Qwen3-0.6B-Q8_0.gguf": gguf_bytes(tmp_path)})
    names = CatalogSource(catalog, hub_source)
    model = pull(store, names.find(name("qwen3:0.6b")))
    assert model.name.short == "qwen3:0.6b"
    assert [stored.name.short for stored in store.list()] == ["qwen3:0.6b"]
    with pytest.raises(RemoteNotFound, match=r"Qwen/Qwen3-0\.6B-GGUF has no Q4_0; it has Q8_0"):
        names.find(name("qwen3:0.6b-q4_0"))
    with pytest.raises(RemoteNotFound):
        names.find(name("qwen3:1.7b"))
    assert len(hub.paths("storage")) == 1


def test_what_the_catalog_lacks_is_asked_of_nobody(catalog: Catalog, hub: HubServer, hub_source: HubSource) -> None:
    names = CatalogSource(catalog, hub_source)
    with pytest.raises(RemoteNotFound, match="the catalog has no starcoder2:latest"):
        names.find(name("starcoder2"))
    with pytest.raises(RemoteNotFound, match="the catalog has no starcoder2"):
        names.tags(name("starcoder2"))
    assert not hub.requests


def test_tags_of_a_short_name(catalog: Catalog, hub_source: HubSource) -> None:
    tags = CatalogSource(catalog, hub_source).tags(name("llama3.2:anything"))
    assert [(tag.tag, tag.size) for tag in tags] == [("1b", 808_000_000), ("3b", 2_019_000_000)]
