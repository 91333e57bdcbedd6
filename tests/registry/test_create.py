"""Create: what a request becomes, what it inherits, and that a bad one changes nothing."""

from __future__ import annotations

import errno
import itertools
import json
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from modelfiles.adapter_files import group_adapters
from modelfiles.parser import parse
from modelfiles.source import ModelSource
from registry.create import CreateRequest, CreateStatus, QuantizeModel, QuantizeOrder, create_model
from registry.errors import BlobNotFound, CreateError, ModelNotFound, OutOfSpace
from registry.manifest import Digest
from registry.name import ModelName
from registry.show import modelfile_text
from registry.store import Store
from registry.stored_model import StoredModel
from tests.registry.faulty_disk import FaultyDisk
from tests.registry.small_models import blob_names, live_blob_names, names_in
from tests.registry.weights import CONFIG, LLAMA, LORA, PROJECTOR, gguf_bytes, safetensors_bytes


def name(text: str) -> ModelName:
    return ModelName.parse(text)


def upload(store: Store, files: dict[str, bytes]) -> dict[str, str]:
    return {file: str(store.write_blob([data])) for file, data in files.items()}


def make(store: Store, text: str = "m", **request: Any) -> StoredModel:
    assert [status.status for status in create_model(store, CreateRequest(name(text), **request))][-1] == "success"
    return store.get(name(text))


def snapshot(store: Store) -> tuple[object, object]:
    return [(model.name.full, model.digest) for model in store.list()], blob_names(store)


@pytest.fixture
def gguf(store: Store, tmp_path: Path) -> dict[str, str]:
    return upload(store, {"my.gguf": gguf_bytes(tmp_path)})


@pytest.fixture
def parent(store: Store, gguf: dict[str, str]) -> StoredModel:
    return make(
        store,
        "parent",
        files=gguf,
        template="{{ .Prompt }}",
        system="Be brief.",
        parameters={"temperature": 0.5, "seed": 1, "stop": ["a"]},
        messages=[{"role": "user", "content": "hi"}],
        licenses=["MIT"],
    )


# ---- from files


def test_from_a_gguf_file(store: Store, gguf: dict[str, str]) -> None:
    request = CreateRequest(name("m"), files=gguf, system="Be brief.")
    system = Digest.of(b"Be brief.")
    statuses = [status.status for status in create_model(store, request)]
    model = store.get(name("m"))
    assert statuses == [
        "parsing GGUF",
        f"using existing layer {gguf['my.gguf']}",
        f"creating new layer {system}",
        f"creating new layer {model.manifest.config.digest}",
        "writing manifest",
        "success",
    ]
    assert model.source.format == "gguf"
    assert model.system == "Be brief."
    assert model.config == {
        "model_format": "gguf",
        "model_family": "llama",
        "model_families": ["llama"],
        "model_type": "64",
        "file_type": "F16",
        "context_length": 64,
        "embedding_length": 32,
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [gguf["my.gguf"], str(system)]},
    }
    assert f"using existing layer {system}" in [status.status for status in create_model(store, request)]
    assert store.get(name("m")).digest == model.digest, "the same request makes the same model"


def test_from_a_safetensors_folder(store: Store) -> None:
    contents = {"model.safetensors": safetensors_bytes(), "config.json": json.dumps(CONFIG).encode(), "README.md": b"!"}
    files = upload(store, contents)
    statuses = [status.status for status in create_model(store, CreateRequest(name("m"), files=files))]
    assert statuses[0] == "parsing safetensors"
    source = store.get(name("m")).source
    assert sorted(source.files) == ["config.json", "model.safetensors"]
    assert source.read_text("config.json") == json.dumps(CONFIG)


def test_from_shards_and_a_projector(store: Store, tmp_path: Path) -> None:
    def shard(number: int) -> bytes:
        split = {"split.no": number, "split.count": 2, "split.tensors.count": 2}
        return gguf_bytes(tmp_path, {**LLAMA, **split}, name=f"w{number}")

    contents = {"x.gguf": shard(1), "y.gguf": shard(0), "mmproj.gguf": gguf_bytes(tmp_path, PROJECTOR)}
    model = make(store, files=upload(store, contents))
    assert [path.read_bytes() for path in model.source.gguf_files] == [contents["y.gguf"], contents["x.gguf"]]
    assert [path.read_bytes() for path in model.projectors] == [contents["mmproj.gguf"]]
    child = make(
        store, "child", from_name=name("m"), files=upload(store, {"p.gguf": gguf_bytes(tmp_path, PROJECTOR, "v")})
    )
    assert len(child.projectors) == 1
    assert child.projectors != model.projectors
    assert child.source.files == model.source.files


def test_adapters(store: Store, parent: StoredModel, tmp_path: Path) -> None:
    lora = gguf_bytes(tmp_path, LORA)
    model = make(store, from_name=name("parent"), adapters=upload(store, {"lora.gguf": lora}))
    assert model.adapter_files["adapter.gguf"].read_bytes() == lora
    assert model.source.files == parent.source.files
    files = {"adapter_model.safetensors": safetensors_bytes(), "adapter_config.json": b"{}"}
    request = CreateRequest(name("m"), from_name=name("m"), adapters=upload(store, files | {"README.md": b"no"}))
    assert next(create_model(store, request)).status == "parsing safetensors"
    model = make(store, from_name=name("m"), adapters=upload(store, files))
    assert sorted(model.adapter_files) == ["adapter_config.json", "adapter_model.safetensors"]
    child = make(store, "child", from_name=name("m"))
    assert child.adapter_files == model.adapter_files, "a child that brings none keeps its parent's"


def test_several_adapters(store: Store, parent: StoredModel, tmp_path: Path) -> None:
    peft = {"adapter_model.safetensors": safetensors_bytes(), "adapter_config.json": b"{}"}
    files = {f"{n}/{file}": data for n in (1, 2) for file, data in peft.items()}
    files |= {"3/a.gguf": gguf_bytes(tmp_path, LORA), "4/a.gguf": gguf_bytes(tmp_path, LORA, "other")}
    model = make(store, from_name=name("parent"), adapters=upload(store, files))
    assert [[*names] for names in group_adapters(model.adapter_files)] == [
        ["adapter-00001-of-00002.gguf"],
        ["adapter-00002-of-00002.gguf"],
        *[["adapter_config.json", "adapter_model.safetensors"]] * 2,
    ]


def test_an_adapter_is_checked_against_the_weights_it_is_for(store: Store, parent: StoredModel, tmp_path: Path) -> None:
    seen = []

    def check(base: ModelSource, adapter: ModelSource) -> None:
        seen.append((base.files, [*adapter.files]))
        if "adapter_config.json" in adapter.files:
            raise ValueError("it is for another model")

    lora = upload(store, {"1/lora.gguf": gguf_bytes(tmp_path, LORA)})
    peft = upload(store, {"adapter_model.safetensors": safetensors_bytes(), "adapter_config.json": b"{}"})
    before = snapshot(store)
    request = CreateRequest(name("m"), from_name=name("parent"), adapters=lora | peft)
    with pytest.raises(CreateError, match="it is for another model"):
        list(create_model(store, request, check_adapter=check))
    assert snapshot(store) == before
    names = [["lora.gguf"], ["adapter_config.json", "adapter_model.safetensors"]]
    assert seen == [(parent.files, one) for one in names]
    request = CreateRequest(name("m"), files=upload(store, {"x.gguf": gguf_bytes(tmp_path)}), adapters=lora)
    list(create_model(store, request, check_adapter=check))
    assert [*seen[-1][0].values()] == [*store.get(name("m")).files.values()], "weights that came with it"


def test_a_draft_model_is_kept(store: Store, parent: StoredModel, tmp_path: Path) -> None:
    small = gguf_bytes(tmp_path, {**LLAMA, "general.name": "small"}, name="small")
    model = make(store, from_name=name("parent"), drafts=upload(store, {"small.gguf": small}))
    assert model.draft_files["draft.gguf"].read_bytes() == small
    assert model.config["draft"] == {"model_format": "gguf", "architecture": "llama"}
    assert model.source.files == parent.source.files
    assert parse(modelfile_text(model)).values("draft") == (str(model.draft_files["draft.gguf"]),)
    assert make(store, "child", from_name=name("m")).draft_files == model.draft_files


def test_a_draft_model_is_another_one(store: Store, gguf: dict[str, str]) -> None:
    with pytest.raises(CreateError, match="another one than the model itself"):
        make(store, files=gguf, drafts=gguf)


# ---- inheritance


def test_a_child_has_what_its_parent_has(store: Store, parent: StoredModel) -> None:
    child = make(store, "child", from_name=name("PARENT"))
    assert child.manifest.layers == parent.manifest.layers
    assert child.config == {**parent.config, "parent_model": "parent:latest"}


def test_a_childs_words_replace_its_parents(store: Store, parent: StoredModel) -> None:
    child = make(
        store,
        "child",
        from_name=name("parent"),
        template="{{ .System }}",
        system="Be kind.",
        parameters={"temperature": 1.0, "top_k": 3, "stop": ["b"]},
        messages=[{"role": "assistant", "content": "oh"}],
        licenses=["Apache", "MIT", "Apache"],
        renderer="r",
        parser="p",
        requires="0.1.0",
        info={"capabilities": ["tools"], "parameter_size": "7B", "context_length": 99, "unheard_of": 1},
    )
    assert (child.template, child.system) == ("{{ .System }}", "Be kind.")
    assert child.params == {"temperature": 1.0, "seed": 1, "top_k": 3, "stop": ["b"]}
    assert child.messages == ({"role": "assistant", "content": "oh"},)
    assert child.licenses == ("MIT", "Apache")
    changed = {"renderer": "r", "parser": "p", "requires": "0.1.0", "model_type": "7B", "context_length": 99}
    assert changed.items() <= child.config.items()
    assert child.capabilities == ("tools",)
    assert "unheard_of" not in child.config
    grandchild = make(store, "grandchild", from_name=name("child"))
    assert grandchild.params == child.params
    assert grandchild.config["renderer"] == "r"


def test_empty_values_take_away_what_the_parent_has(store: Store, parent: StoredModel) -> None:
    child = make(
        store,
        "child",
        from_name=name("parent"),
        template="",
        system="",
        parameters={"stop": [], "seed": None},
        messages=[],
        licenses=[""],
    )
    assert (child.template, child.system, child.messages) == ("", "", ())
    assert child.params == {"temperature": 0.5}
    assert child.licenses == ("MIT",)
    assert make(store, "child", from_name=name("child"), parameters={"temperature": None}).params == {}


def test_replacing_a_model_by_its_own_child(store: Store, parent: StoredModel) -> None:
    make(store, "parent", from_name=name("parent"), system="Be kind.")
    assert store.get(name("parent")).system == "Be kind."
    assert blob_names(store) == live_blob_names(store)
    assert store.check() == []


# ---- refusals


def refusals(folder: Path) -> Iterator[tuple[str, dict[str, Any], dict[str, bytes], dict[str, bytes], str]]:
    """Name, request, uploaded files, uploaded adapters, and what the message says."""
    gguf = gguf_bytes(folder)
    child = {"from_name": name("parent")}
    yield "nothing", {}, {}, {}, "neither 'from' or 'files' was specified"
    yield "absolute", {}, {"/m.gguf": gguf}, {}, "file path must be relative"
    yield "climbing", {}, {"../m.gguf": gguf}, {}, "a file path must be clean"
    yield "climbing adapter", child, {}, {"../m.gguf": gguf}, "a file path must be clean"
    yield "pickle", {}, {"pytorch_model.bin": b"\x80\x04"}, {}, "can run code"
    yield "pickle named gguf", {}, {"m.gguf": b"\x80\x04" + bytes(99)}, {}, "m.gguf"
    yield "no weights", {}, {"README.md": b"hello"}, {}, "unknown type"
    yield "cut", {}, {"m.gguf": gguf[:100]}, {}, "m.gguf"
    yield "magic only", {}, {"m.gguf": b"GGUF"}, {}, "m.gguf"
    yield "no architecture", {}, {"m.gguf": gguf_bytes(folder, {"general.file_type": 1})}, {}, "general.architecture"
    yield "only a projector", {}, {"m.gguf": gguf_bytes(folder, PROJECTOR)}, {}, "no model's weights"
    yield "adapter as model", {}, {"m.gguf": gguf_bytes(folder, LORA)}, {}, "m.gguf is a LoRA adapter"
    yield "model as adapter", child, {}, {"m.gguf": gguf}, "m.gguf is no LoRA adapter"
    lora = gguf_bytes(folder, LORA)
    yield "an adapter and none", child, {}, {"a.gguf": lora, "b.gguf": gguf}, "b.gguf is no LoRA adapter"
    yield "no adapter at all", child, {}, {"README.md": b"hello"}, "unknown type"
    yield "config without adapter", child, {}, {"1/adapter_config.json": b"{}"}, "no adapter's weights beside 1/adapter"
    yield "adapter without config", child, {}, {"adapter_model.safetensors": safetensors_bytes()}, "adapter_config.json"
    yield "two models", child, {"m.gguf": gguf}, {}, "'from' names a model that has its own"
    yield "safetensors without config", {}, {"model.safetensors": safetensors_bytes()}, {}, "config.json"
    yield "template", child | {"template": "{{ .Prompt "}, {}, {}, "template error: "
    yield "parameter", child | {"parameters": {"temperature": "hot"}}, {}, {}, 'option "temperature" must be of type'
    yield "role", child | {"messages": [{"role": "tool", "content": "x"}]}, {}, {}, "message role must be one of"
    yield "content", child | {"messages": [{"role": "user", "content": 1}]}, {}, {}, "the content of a message"
    yield "quantize", child | {"quantize": "Q4_K_M"}, {}, {}, "quantizing to Q4_K_M needs the engine"
    yield "info list", child | {"info": {"capabilities": ["tools", 1]}}, {}, {}, "info 'capabilities' must be a list"
    yield "info text", child | {"info": {"model_family": 1}}, {}, {}, "info 'model_family' must be a text"
    yield (
        "info number",
        child | {"info": {"context_length": -1}},
        {},
        {},
        "info 'context_length' must be a whole number",
    )
    yield (
        "info bool",
        child | {"info": {"context_length": True}},
        {},
        {},
        "info 'context_length' must be a whole number",
    )


def test_a_bad_request_changes_nothing(store: Store, parent: StoredModel, tmp_path: Path) -> None:
    for case, request, files, adapters, reason in refusals(tmp_path):
        uploads = {"files": upload(store, files), "adapters": upload(store, adapters)}
        before = snapshot(store)
        with pytest.raises(CreateError, match=reason) as caught:
            list(create_model(store, CreateRequest(name("parent"), **uploads, **request)))
        assert snapshot(store) == before, case
        assert str(store.root) not in str(caught.value), case
        assert "sha256-" not in str(caught.value), case


def test_a_digest_that_is_none_or_not_here(store: Store) -> None:
    for text in ("", "sha256:", "sha256:../../etc/passwd", "x"):
        with pytest.raises(CreateError, match=r"invalid digest: .* \(of m.gguf\)"):
            list(create_model(store, CreateRequest(name("m"), files={"m.gguf": text})))
    missing = str(Digest.of(b"never uploaded"))
    with pytest.raises(BlobNotFound, match=missing):
        list(create_model(store, CreateRequest(name("m"), files={"m.gguf": missing})))
    with pytest.raises(ModelNotFound, match='model "nobody:latest" not found'):
        list(create_model(store, CreateRequest(name("m"), from_name=name("nobody"))))


def test_who_knows_the_engine_can_refuse(store: Store, gguf: dict[str, str]) -> None:
    seen: list[ModelSource] = []

    def refuse(source: ModelSource) -> None:
        seen.append(source)
        raise ValueError("llama.attention.head_count is 0")

    with pytest.raises(CreateError, match=r"llama\.attention\.head_count is 0"):
        list(create_model(store, CreateRequest(name("m"), files=gguf), refuse))
    assert seen[0].gguf_files == (store.blob_path(Digest.parse(gguf["my.gguf"])),)
    assert list(create_model(store, CreateRequest(name("m"), files=gguf), seen.append))[-1].status == "success"


def test_a_client_that_leaves_leaves_nothing(store: Store, parent: StoredModel) -> None:
    before = snapshot(store)
    statuses = create_model(store, CreateRequest(name("parent"), from_name=name("parent"), system="never told"))
    for status in statuses:
        if status.status.startswith("creating new layer"):
            break
    assert store.has_blob(Digest.of(b"never told"))
    statuses.close()  # type: ignore[attr-defined]
    assert snapshot(store) == before


def test_a_disk_that_fills_up_leaves_the_old_model(store: Store, parent: StoredModel) -> None:
    before = [(model.name.full, model.digest) for model in store.list()]
    num_refused = 0
    for k in itertools.count():
        full = Store(store.root, disk=FaultyDisk(fault_at=k, error=errno.ENOSPC))
        request = CreateRequest(name("parent"), from_name=name("parent"), system="new", parameters={"top_k": 1})
        try:
            list(create_model(full, request))
        except OutOfSpace:
            num_refused += 1
            after = [(model.name.full, model.digest) for model in full.list()]
            if after != before:
                break  # the very last step, making the rename durable, failed: the model is the new one, whole
            assert blob_names(full) == live_blob_names(full)
        else:
            break
        assert names_in(full.private / "tmp") == set()
        assert full.check() == []
    assert num_refused > 10
    assert store.check() == []


# ---- quantising


def written_as(files: dict[str, bytes]) -> QuantizeModel:
    """What the engine would do: writes these files."""

    def quantize(order: QuantizeOrder) -> Iterator[CreateStatus]:
        yield CreateStatus(f"{order.source_type} to {order.file_type}", digest="sha256:0", total=2)
        for file, data in files.items():
            (order.folder / file).write_bytes(data)

    return quantize


def test_quantized_weights_take_the_place_of_the_parents(store: Store, parent: StoredModel, tmp_path: Path) -> None:
    new = gguf_bytes(tmp_path, LLAMA | {"general.file_type": 15})
    request = CreateRequest(name("m"), from_name=name("parent"), quantize="Q4_K_M")
    statuses = list(create_model(store, request, quantize=written_as({"model.gguf": new})))
    assert statuses[0] == CreateStatus("F16 to Q4_K_M", digest="sha256:0", total=2)
    assert statuses[1].status == f"creating new layer {Digest.of(new)}"
    model = store.get(name("m"))
    assert [path.read_bytes() for path in model.source.gguf_files] == [new]
    assert (model.config["file_type"], model.system, model.licenses) == ("Q4_K_M", "Be brief.", ("MIT",))
    assert store.get(name("parent")).digest == parent.digest


def test_new_safetensors_leave_what_stands_beside_them(store: Store) -> None:
    config = json.dumps(CONFIG | {"quantization_config": {"quant_method": "fp8"}}).encode()
    old = {
        "model-00001-of-00002.safetensors": safetensors_bytes("a"),
        "model-00002-of-00002.safetensors": safetensors_bytes("b"),
        "model.safetensors.index.json": json.dumps(
            {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
        ).encode(),
        "config.json": json.dumps(CONFIG).encode(),
        "tokenizer.json": b"{}",
    }
    new = {"model.safetensors": safetensors_bytes("a"), "config.json": config}
    request = CreateRequest(name("m"), files=upload(store, old), quantize="FP8")
    assert [*create_model(store, request, quantize=written_as(new))][-1].status == "success"
    model = store.get(name("m"))
    assert set(model.files) == {"model.safetensors", "config.json", "tokenizer.json"}
    assert model.files["config.json"].read_bytes() == config
    assert model.config["file_type"] == "FP8"


def test_a_client_that_leaves_after_quantizing_leaves_nothing(
    store: Store, parent: StoredModel, tmp_path: Path
) -> None:
    before = snapshot(store)
    new = gguf_bytes(tmp_path, LLAMA | {"general.file_type": 15})
    request = CreateRequest(name("m"), from_name=name("parent"), quantize="Q4_K_M")
    statuses = create_model(store, request, quantize=written_as({"model.gguf": new}))
    assert isinstance(statuses, Generator)
    while not next(statuses).status.startswith("creating new layer"):
        pass
    assert store.has_blob(Digest.of(new))
    statuses.close()
    assert snapshot(store) == before
    assert list((store.private / "tmp").iterdir()) == []
