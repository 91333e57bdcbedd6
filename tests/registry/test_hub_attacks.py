"""Hubs and repositories that mean harm. The numbers are those of published flaws of other model managers.

S01  a digest that is a path                     S21  a token that leaks to another host
S20  answers without an end                      S22  redirects into networks that only the daemon reaches
S25  file names out of headers                   S29  file names that leave their folder
S31  files of different versions (test_hub.py)   P14, P15  pickles and remote code
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from daemon.creation import check_source
from registry.addresses import Reach
from registry.addresses import reach_of as real_reach_of
from registry.errors import CreateError, RemoteError
from registry.hub import HubSource
from registry.name import ModelName
from registry.retries import NO_RETRIES
from registry.store import Store
from registry.transport import Transport
from tests.registry.hub_models import hf_files, pull
from tests.registry.hub_server import Answer, HubServer
from tests.registry.small_models import blob_names
from tests.registry.weights import CONFIG, gguf_bytes, safetensors_bytes

NAME = ModelName.parse("hf.co/o/r")
HF = {"model.safetensors": safetensors_bytes(), "config.json": json.dumps(CONFIG).encode()}


def first_file(**changes: Any) -> Any:
    """A change of what the hub says of its first file."""

    def tamper(description: dict[str, Any]) -> dict[str, Any]:
        first, *others = description["siblings"]
        return {**description, "siblings": [{**first, **changes}, *others]}

    return tamper


def everything_under(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize(
    "sha256",
    [
        "../../../../tmp/x",
        "A" * 64,
        "a" * 63,
        "a" * 65,
        "a" * 64 + "\n",
        "",
        "sha256:" + "a" * 64,
        "a" * 63 + "٣",
        7,
        None,
    ],
)
def test_s01_a_digest_that_is_none(
    hub: HubServer, hub_source: HubSource, store: Store, tmp_path: Path, sha256: object
) -> None:
    hub.add("o/r", {"m-Q8_0.gguf": gguf_bytes(tmp_path)})
    hub.tamper = first_file(lfs={"sha256": sha256, "size": 1, "pointerSize": 1})
    with pytest.raises(RemoteError, match="names an invalid digest"):
        hub_source.find(NAME)
    assert not hub.paths("storage")
    assert not store.root.exists()


@pytest.mark.parametrize("size", [-1, 2**63, 2**70, 1.5, "9", True, [1]])
def test_s19_a_size_that_is_none(hub: HubServer, hub_source: HubSource, tmp_path: Path, size: object) -> None:
    hub.add("o/r", {"m-Q8_0.gguf": gguf_bytes(tmp_path)})
    hub.tamper = first_file(size=size, lfs=None)
    with pytest.raises(RemoteError, match=r"a size of|is no description of a repository"):
        hub_source.find(NAME)


def test_s19_two_sizes(hub: HubServer, hub_source: HubSource, tmp_path: Path) -> None:
    hub.add("o/r", {"m-Q8_0.gguf": gguf_bytes(tmp_path)})
    hub.tamper = first_file(size=1)
    with pytest.raises(RemoteError, match=r"gives 'm-Q8_0.gguf' of o/r two sizes"):
        hub_source.find(NAME)


def test_s19_a_million_files(hub: HubServer, hub_source: HubSource) -> None:
    hub.add("o/r", HF)
    hub.tamper = lambda description: {**description, "siblings": [{"rfilename": "a"}] * 10_001}
    with pytest.raises(RemoteError, match="o/r has 10001 files; the limit is 10000"):
        hub_source.find(NAME)


def test_s20_descriptions_without_an_end(hub: HubServer, hub_source: HubSource) -> None:
    hub.answers["/api/models/o/r"] = Answer(body=b"[" + b" " * (17 * 1024 * 1024))
    with pytest.raises(RemoteError, match="a description of a repository of more than 16777216 bytes"):
        hub_source.find(NAME)
    hub.answers["/api/models/o/r"] = Answer(404, b" " * (1024 * 1024))
    with pytest.raises(RemoteError, match="of more than 8192 bytes"):
        hub_source.find(NAME)


def test_s20_a_compressed_description(hub: HubServer, hub_source: HubSource) -> None:
    bomb = gzip.compress(b" " * 1_000_000)
    hub.answers["/api/models/o/r"] = Answer(body=bomb, headers={"Content-Encoding": "gzip"})
    with pytest.raises(RemoteError, match="compressed its answer although it was asked for plain bytes"):
        hub_source.find(NAME)


def test_s21_a_description_elsewhere_does_not_get_the_token(hub: HubServer, transport: Transport) -> None:
    hub.tokens.add("hf_secret_token")
    hub.add("o/r", HF)
    hub.answers["/api/models/o/r"] = Answer(302, headers={"Location": f"{hub.storage}/elsewhere"})
    hub_source = HubSource(transport, endpoint=hub.endpoint, token="hf_secret_token", policy=NO_RETRIES)
    with pytest.raises(RemoteError) as error:
        hub_source.find(NAME)
    assert hub.paths("storage") == ["/elsewhere"]
    assert not [request for request in hub.requests if request.server == "storage" and "secret" in str(request)]
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("path", ["/api/models/o/r", "/o/r/resolve/"])
@pytest.mark.parametrize(
    "target", ["http://169.254.169.254/latest/meta-data/", "http://127.0.0.2:1/", "http://localhost/"]
)
def test_s22_redirects_into_nearer_networks(hub: HubServer, path: str, target: str, tmp_path: Path) -> None:
    hub.add("o/r", {"m-Q8_0.gguf": gguf_bytes(tmp_path)})
    hub.answers[path] = Answer(302, headers={"Location": target})

    def reach_of(address: str) -> Reach:
        """As if the hub were on the internet."""
        return Reach.INTERNET if address == "127.0.0.1" else real_reach_of(address)

    with Transport(use_environment=False, reach_of=reach_of) as transport:
        hub_source = HubSource(transport, endpoint=hub.endpoint, token="", policy=NO_RETRIES)
        with pytest.raises(RemoteError, match="closer to this machine"):
            hub_source.find(NAME).blobs[0].open(0, None).__enter__()


def test_s25_names_in_headers_are_not_used(hub: HubServer, hub_source: HubSource, store: Store, tmp_path: Path) -> None:
    data = gguf_bytes(tmp_path)
    hub.add("o/r", {"m-Q8_0.gguf": data})
    hostile = {
        "Content-Disposition": 'attachment; filename="../../x"',
        "ETag": '"../../x"',
        "X-Repo-Commit": "../../x",
        "X-Linked-Etag": '"../../x"',
    }
    hub.answers["/o/r/resolve/"] = Answer(body=data, headers=hostile)
    before = everything_under(tmp_path)
    pull(store, hub_source.find(NAME))
    assert not [path for path in everything_under(tmp_path) - before if not path.startswith("models")]


@pytest.mark.parametrize(
    "path", ["../m-Q8_0.gguf", "a/../../m-Q8_0.gguf", "/etc/m-Q8_0.gguf", "a//m-Q8_0.gguf", "./m-Q8_0.gguf", ".."]
)
def test_s29_a_path_that_leaves_its_folder(hub: HubServer, hub_source: HubSource, tmp_path: Path, path: str) -> None:
    hub.add("o/r", {"m-Q8_0.gguf": gguf_bytes(tmp_path)})
    hub.tamper = first_file(rfilename=path)
    with pytest.raises(RemoteError, match="lists a file that lies outside of its repository"):
        hub_source.find(NAME)


@pytest.mark.parametrize("path", ["..\\m-Q8_0.gguf", "C:m-Q8_0.gguf", "m\n-Q8_0.gguf", "~/m-Q8_0.gguf", "m\x00.gguf"])
def test_s29_a_path_that_is_not_clean_is_not_taken(
    hub: HubServer, hub_source: HubSource, tmp_path: Path, path: str
) -> None:
    hub.add("o/r", {"m-Q8_0.gguf": gguf_bytes(tmp_path)})
    hub.tamper = first_file(rfilename=path)
    with pytest.raises(RemoteError, match="o/r has no model that Hob reads"):
        hub_source.find(NAME)


def test_s29_a_link_in_a_repository_is_a_file_of_no_use(hub: HubServer, hub_source: HubSource, store: Store) -> None:
    """A hub lists a symbolic link as a file, whose bytes are the path that it leads to."""
    hub.add("o/r", {**HF, "model.safetensors": b"../../../../etc/passwd"})
    with pytest.raises(CreateError, match=r"model\.safetensors"):
        pull(store, hub_source.find(NAME))
    assert not store.list()
    assert not blob_names(store)


@pytest.mark.parametrize("pickle", ["pytorch_model.bin", "model.pt", "weights.ckpt", "flax_model.h5"])
def test_p14_pickles_alone(hub: HubServer, hub_source: HubSource, pickle: str) -> None:
    hub.add("o/r", {pickle: b"\x80\x02.", "config.json": HF["config.json"], "tokenizer.json": b"{}"})
    with pytest.raises(RemoteError, match=rf"o/r has its weights as {pickle} only, and such a file can run code"):
        hub_source.find(NAME)
    assert hub_source.tags(NAME) == []


def test_p14_a_pickle_by_another_name(hub: HubServer, hub_source: HubSource, store: Store) -> None:
    hub.add("o/r", {**HF, "tokenizer.json": b"\x80\x04\x95" + b"x" * 40})
    with pytest.raises(CreateError, match=r"tokenizer\.json"):
        pull(store, hub_source.find(NAME))
    assert not blob_names(store)


def test_p15_remote_code_is_not_fetched(hub: HubServer, transport: Transport, store: Store, data_dir: Path) -> None:
    files = hf_files(data_dir / "models" / "stories260K" / "hf")
    config = json.loads((data_dir / "models" / "stories260K" / "hf" / "config.json").read_bytes())
    config |= {"auto_map": {"AutoModelForCausalLM": "modeling_evil.EvilForCausalLM"}}
    code = {"modeling_evil.py": b"open('/tmp/evil', 'w')", "setup.sh": b"#!/bin/sh", "lib.so": b"\x7fELF"}
    hub_source = HubSource(transport, check_source, endpoint=hub.endpoint, token="", policy=NO_RETRIES)
    hub.add("o/known", {**files, **code, "config.json": json.dumps(config).encode()})
    model = pull(store, hub_source.find(ModelName.parse("hf.co/o/known")))
    assert not set(code) & set(model.source.files)
    config["architectures"] = ["EvilForCausalLM"]
    hub.add("o/unknown", {**files, **code, "config.json": json.dumps(config).encode()})
    with pytest.raises(CreateError, match="EvilForCausalLM"):
        pull(store, hub_source.find(ModelName.parse("hf.co/o/unknown")))
    assert not [path for path in hub.paths() if path.endswith((".py", ".sh", ".so"))]
    assert [stored.name.model for stored in store.list()] == ["known"]


@pytest.mark.parametrize("side", ["template", "system", "params"])
def test_words_that_are_none(hub: HubServer, hub_source: HubSource, store: Store, tmp_path: Path, side: str) -> None:
    hub.add("o/r", {"m-Q8_0.gguf": gguf_bytes(tmp_path), side: b"\xff\xfe{{"})
    with pytest.raises(CreateError, match=f"{side} of the repository is no"):
        pull(store, hub_source.find(NAME))
    assert not blob_names(store)


@pytest.mark.parametrize("params", [b"[]", b'{"num_ctx": "many"}', b"{" * 100_000])
def test_params_that_are_none(
    hub: HubServer, hub_source: HubSource, store: Store, tmp_path: Path, params: bytes
) -> None:
    hub.add("o/r", {"m-Q8_0.gguf": gguf_bytes(tmp_path), "params": params})
    with pytest.raises(CreateError):
        pull(store, hub_source.find(NAME))
    assert not blob_names(store)
