"""Pulling from a hub: names, variants, revisions, what becomes of a repository's files, and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from daemon.creation import check_architecture, check_source
from registry.errors import RemoteDenied, RemoteError, RemoteNotFound, RemoteUnreachable
from registry.hub import HubSource
from registry.manifest import FILE, LICENSE, MODEL, PARAMS, PROJECTOR, SYSTEM, TEMPLATE
from registry.name import ModelName
from registry.remote import RemoteTag
from registry.retries import NO_RETRIES, RetryPolicy
from registry.store import Store
from registry.stored_model import StoredModel
from registry.transport import Transport
from tests.registry.hub_models import fetch, hf_files, pull, split_gguf
from tests.registry.hub_server import Answer, HubServer, error_answer, git_hash
from tests.registry.small_models import blob_names, live_blob_names
from tests.registry.weights import CONFIG, gguf_bytes, safetensors_bytes
from tests.registry.weights import PROJECTOR as CLIP


def name(text: str) -> ModelName:
    return ModelName.parse(text)


# ---- real models


def test_a_gguf_repository(hub: HubServer, transport: Transport, store: Store, data_dir: Path) -> None:
    folder = data_dir / "models" / "stories260K" / "gguf"
    hub.add("karpathy/stories-GGUF", hf_files(folder))
    hub_source = HubSource(transport, check_source, endpoint=hub.endpoint, token="", policy=NO_RETRIES)
    model = pull(store, hub_source.find(name("hf.co/karpathy/stories-GGUF:q8_0")))
    assert model.name.short == "hf.co/karpathy/stories-GGUF:q8_0"
    assert model.source.gguf_files[0].read_bytes() == (folder / "stories260K-Q8_0.gguf").read_bytes()
    assert model.config["file_type"] == "Q8_0"
    assert [layer.media_type for layer in model.manifest.layers] == [MODEL]
    assert blob_names(store) == live_blob_names(store)
    assert len(hub.paths("storage")) == 1
    assert not store.check()


def test_shards(hub: HubServer, transport: Transport, store: Store, data_dir: Path, tmp_path: Path) -> None:
    whole = data_dir / "models" / "stories260K" / "gguf" / "stories260K-F16.gguf"
    shards = split_gguf(whole, tmp_path, "stories-f16", 3)
    hub.add("karpathy/stories", {f"F16/{shard}": path for shard, path in shards.items()})
    hub_source = HubSource(transport, check_source, endpoint=hub.endpoint, token="", policy=NO_RETRIES)
    model = pull(store, hub_source.find(name("huggingface.co/karpathy/stories")))
    assert [path.read_bytes() for path in model.source.gguf_files] == [path.read_bytes() for path in shards.values()]
    assert hub_source.tags(name("hf.co/karpathy/stories")) == [
        RemoteTag("F16", sum(path.stat().st_size for path in shards.values()))
    ]


def test_a_safetensors_repository(hub: HubServer, transport: Transport, store: Store, data_dir: Path) -> None:
    files = hf_files(data_dir / "models" / "stories260K" / "hf")
    rubbish = {
        "README.md": b"# Stories",
        ".gitattributes": b"*.safetensors filter=lfs",
        "pytorch_model.bin": b"\x80\x02",
        "modeling_stories.py": b"raise SystemExit",
        "onnx/model.onnx": b"onnx",
        "onnx/config.json": b"{}",
        "LICENSE": b"MIT License",
    }
    hub.add("karpathy/stories", files | rubbish)
    hub_source = HubSource(transport, check_source, endpoint=hub.endpoint, token="", policy=NO_RETRIES)
    model = pull(store, hub_source.find(name("hf.co/karpathy/stories")))
    assert {layer.name for layer in model.manifest.layers if layer.media_type == FILE} == set(files)
    assert model.source.format == "safetensors"
    assert model.licenses == ("MIT License",)
    assert blob_names(store) == live_blob_names(store)
    asked = [path for path in hub.paths() if "/resolve/" in path]
    assert not [path for path in asked if path.endswith((".bin", ".py", ".md", "onnx/config.json"))]
    assert hub_source.tags(name("hf.co/karpathy/stories"))[0].tag == "latest"


# ---- what belongs to a model


def test_words_and_projector_of_a_gguf_repository(
    hub: HubServer, hub_source: HubSource, store: Store, tmp_path: Path
) -> None:
    clip = gguf_bytes(tmp_path, CLIP)
    hub.add(
        "o/r",
        {
            "m-Q4_K_M.gguf": gguf_bytes(tmp_path),
            "m-Q8_0.gguf": gguf_bytes(tmp_path, name="other"),
            "mmproj-Q8_0.gguf": gguf_bytes(tmp_path, CLIP, "small"),
            "mmproj-F16.gguf": clip,
            "m.imatrix.gguf": b"no model",
            "template": b"{{ .Prompt }}",
            "system": b"Be brief.",
            "params": b'{"temperature": 0.5, "stop": ["a"]}',
            "config.json": b"{}",
            "LICENSE.md": b"MIT",
        },
    )
    model = pull(store, hub_source.find(name("hf.co/o/r")))
    assert model.template == "{{ .Prompt }}"
    assert model.system == "Be brief."
    assert model.params == {"temperature": 0.5, "stop": ["a"]}
    assert model.licenses == ("MIT",)
    assert [path.read_bytes() for path in model.projectors] == [clip]
    sizes = {tag.tag: tag.size for tag in hub_source.tags(name("hf.co/o/r"))}
    assert sizes["Q4_K_M"] == sum(blob.size or 0 for blob in hub_source.find(name("hf.co/o/r")).blobs)
    kinds = [layer.media_type for layer in model.manifest.layers]
    assert kinds == [MODEL, PROJECTOR, TEMPLATE, SYSTEM, PARAMS, LICENSE]
    assert blob_names(store) == live_blob_names(store), "the bytes of params, which are written anew, are given up"


def test_the_same_bytes_under_two_names_are_one_blob(hub: HubServer, hub_source: HubSource, store: Store) -> None:
    text = json.dumps(CONFIG).encode()
    hub.add("o/r", {"model.safetensors": safetensors_bytes(), "config.json": text, "generation_config.json": text})
    remote = hub_source.find(name("hf.co/o/r"))
    assert len(remote.blobs) == 2
    assert set(pull(store, remote).source.files) == {"model.safetensors", "config.json", "generation_config.json"}


def test_a_hub_without_hashes(hub: HubServer, hub_source: HubSource, tmp_path: Path) -> None:
    """As some mirrors are: the file's place pins it, and its ETag tells versions apart."""
    data = gguf_bytes(tmp_path)
    commit = hub.add("o/r", {"m-Q8_0.gguf": data}).branches["main"]
    hub.tamper = lambda description: {**description, "siblings": [{"rfilename": "m-Q8_0.gguf"}]}
    (blob,) = hub_source.find(name("hf.co/o/r")).blobs
    assert (blob.size, blob.digest, blob.git_hash) == (None, None, "")
    assert blob.key == f"{hub.endpoint}/o/r/resolve/{commit}/m-Q8_0.gguf"
    with blob.open(0, None) as reply:
        assert (reply.total, b"".join(reply.chunks)) == (len(data), data)
        assert reply.validator


def test_it_can_be_stored_under_another_name(
    hub: HubServer, hub_source: HubSource, store: Store, tmp_path: Path
) -> None:
    hub.add("o/r", {"m-Q8_0.gguf": gguf_bytes(tmp_path)})
    pull(store, hub_source.find(name("hf.co/o/r:Q8_0"), stored_as=name("short:1b")))
    assert [model.name.short for model in store.list()] == ["short:1b"]


def test_safetensors_beside_gguf(hub: HubServer, hub_source: HubSource, tmp_path: Path) -> None:
    files = {"model.safetensors": safetensors_bytes(), "config.json": json.dumps(CONFIG).encode()}
    hub.add("o/r", {**files, "m-Q8_0.gguf": gguf_bytes(tmp_path)})
    assert [blob.label for blob in hub_source.find(name("hf.co/o/r")).blobs] == ["m-Q8_0.gguf"]
    both = hub_source.find(name("hf.co/o/r:safetensors")).blobs
    assert {blob.label for blob in both} == set(files)
    assert [tag.tag for tag in hub_source.tags(name("hf.co/o/r"))] == ["Q8_0", "safetensors"]


def test_blobs_carry_the_hubs_hashes_and_ranges(hub: HubServer, hub_source: HubSource) -> None:
    weights, text = safetensors_bytes(), json.dumps(CONFIG).encode()
    hub.add("o/r", {"model.safetensors": weights, "config.json": text})
    blobs = {blob.label: blob for blob in hub_source.find(name("hf.co/o/r")).blobs}
    large, small = blobs["model.safetensors"], blobs["config.json"]
    assert (large.size, large.key, large.git_hash) == (len(weights), str(large.digest), "")
    assert (small.size, small.digest) == (len(text), None)
    assert small.git_hash == git_hash(text)
    with large.open(3, 10) as reply:
        assert (reply.start, reply.total, b"".join(reply.chunks)) == (3, len(weights), weights[3:10])
        assert reply.validator == "", "the digest is what counts"
    with small.open(4, None) as reply:
        assert b"".join(reply.chunks) == text[4:]


@pytest.mark.parametrize(
    ("tag", "looked_into", "refused"),
    [
        (
            "latest",
            {"gguf": {"architecture": "mamba"}},
            "'mamba', which is not one that Hob runs; it runs llama, mistral",
        ),
        ("safetensors", {"config": {"architectures": ["MambaModel"]}}, "'MambaModel', which is not one"),
        ("latest", {"gguf": {"architecture": "qwen2"}, "config": {"architectures": ["MambaModel"]}}, ""),
        ("safetensors", {"gguf": {"architecture": "mamba"}, "config": {"architectures": ["Qwen3ForCausalLM"]}}, ""),
        ("latest", {"gguf": {"architecture": "clip"}}, ""),
        ("latest", {"gguf": {"architecture": 7}, "config": []}, ""),
        ("safetensors", {"config": {"architectures": []}}, ""),
        ("safetensors", {"gguf": 7, "config": {"architectures": [[]]}}, ""),
    ],
)
def test_what_the_engine_does_not_run_is_not_fetched(
    hub: HubServer, transport: Transport, tmp_path: Path, tag: str, looked_into: dict[str, Any], refused: str
) -> None:
    files = {"model.safetensors": safetensors_bytes(), "config.json": b"{}", "m-Q8_0.gguf": gguf_bytes(tmp_path)}
    hub.add("o/r", files, looked_into=looked_into)
    hub_source = HubSource(transport, None, check_architecture, endpoint=hub.endpoint, token="", policy=NO_RETRIES)
    if not refused:
        assert hub_source.find(name(f"hf.co/o/r:{tag}")).blobs
        return
    with pytest.raises(RemoteError, match=f"o/r was not pulled: its architecture is {refused}"):
        hub_source.find(name(f"hf.co/o/r:{tag}"))
    assert len(hub.requests) == 1


# ---- revisions


def test_a_revision(hub: HubServer, hub_source: HubSource, store: Store, tmp_path: Path) -> None:
    old, new = gguf_bytes(tmp_path, name="old"), gguf_bytes(tmp_path, name="new")
    repository = hub.add("o/r", {"m-Q8_0.gguf": new})
    commit = repository.commit({"m-Q8_0.gguf": old}, branch="refs/pr/1")
    for revision in ("refs/pr/1", commit):
        model = pull(store, hub_source.find(name(f"hf.co/o/r:Q8_0@{revision}")))
        assert model.name.revision == revision
        assert model.source.gguf_files[0].read_bytes() == old
    assert pull(store, hub_source.find(name("hf.co/o/r:Q8_0@main"))).source.gguf_files[0].read_bytes() == new
    assert len(store.list()) == 3
    assert store.get(name("hf.co/o/r@refs/pr/1:Q8_0")).name.tag == "Q8_0--refs--pr--1"


def test_a_revision_that_is_not_there(hub: HubServer, hub_source: HubSource, tmp_path: Path) -> None:
    hub.add("o/r", {"m-Q8_0.gguf": gguf_bytes(tmp_path)})
    with pytest.raises(RemoteNotFound, match="o/r has no revision 'v2'"):
        hub_source.find(name("hf.co/o/r@v2"))


def test_s31_a_branch_that_moves_during_a_pull_changes_nothing(
    hub: HubServer, hub_source: HubSource, store: Store, tmp_path: Path
) -> None:
    repository = hub.add(
        "o/r", {"model.safetensors": safetensors_bytes("v1"), "config.json": json.dumps(CONFIG).encode()}
    )
    first = repository.branches["main"]
    remote = hub_source.find(name("hf.co/o/r"))
    digests = fetch(
        store, remote, lambda: repository.commit({"model.safetensors": safetensors_bytes("v2"), "config.json": b"{}"})
    )
    for _ in remote.publish(store, digests):
        pass
    files = store.get(name("hf.co/o/r")).source.files
    assert files["model.safetensors"].read_bytes() == safetensors_bytes("v1")
    assert json.loads(files["config.json"].read_bytes()) == CONFIG
    asked = [path for path in hub.paths() if "/resolve" in path]
    assert asked
    assert all(first in path for path in asked)


def test_s31_a_commit_that_is_taken_away_during_a_pull_is_an_error(
    hub: HubServer, hub_source: HubSource, store: Store, tmp_path: Path
) -> None:
    repository = hub.add("o/r", {"m-Q8_0.gguf": gguf_bytes(tmp_path)})
    remote = hub_source.find(name("hf.co/o/r"))
    repository.commits.clear()
    with pytest.raises(RemoteNotFound, match=r"has no m-Q8_0\.gguf of o/r"):
        fetch(store, remote)


def test_s31_a_hub_that_answers_with_another_commit_than_was_asked_for(
    hub: HubServer, hub_source: HubSource, tmp_path: Path
) -> None:
    commit = hub.add("o/r", {"m-Q8_0.gguf": gguf_bytes(tmp_path)}).branches["main"]
    hub.tamper = lambda description: {**description, "sha": "0" * 40}
    with pytest.raises(RemoteError, match=f"answers with commit 0{{40}} of o/r where {commit} was asked for"):
        hub_source.find(name(f"hf.co/o/r@{commit}"))


# ---- what the hub refuses


def test_a_repository_that_is_not_there(hub: HubServer, hub_source: HubSource, transport: Transport) -> None:
    with pytest.raises(RemoteNotFound, match="has no repository o/r that is public; for a private one set HF_TOKEN"):
        hub_source.find(name("hf.co/o/r"))
    hub.tokens.add("hf_known")
    known = HubSource(transport, endpoint=hub.endpoint, token="hf_known", policy=NO_RETRIES)
    with pytest.raises(RemoteNotFound, match="has no repository o/r that the token of HF_TOKEN may see"):
        known.tags(name("hf.co/o/r"))
    with pytest.raises(RemoteNotFound, match=r"o/a\.\.b cannot be a repository"):
        hub_source.find(name("hf.co/o/a..b"))


def test_a_private_repository(hub: HubServer, transport: Transport, store: Store, tmp_path: Path) -> None:
    hub.tokens |= {"hf_member", "hf_stranger"}
    hub.add("o/r", {"m-Q8_0.gguf": gguf_bytes(tmp_path), "system": b"Hi."}, is_private=True, members={"hf_member"})

    def find(token: str) -> StoredModel:
        hub_source = HubSource(transport, endpoint=hub.endpoint, token=token, policy=NO_RETRIES)
        return pull(store, hub_source.find(name("hf.co/o/r")))

    for token in ("", "hf_stranger"):
        with pytest.raises(RemoteNotFound):
            find(token)
    with pytest.raises(RemoteDenied, match="does not accept the token"):
        find("hf_forged")
    hub.requests.clear()
    assert find("hf_member").system == "Hi."
    assert {request.headers.get("authorization") for request in hub.requests if request.server == "hub"} == {
        "Bearer hf_member"
    }


def test_s21_the_token_does_not_reach_the_storage(
    hub: HubServer, transport: Transport, store: Store, tmp_path: Path
) -> None:
    hub.tokens.add("hf_secret")
    hub.add("o/r", {"m-Q8_0.gguf": gguf_bytes(tmp_path)})
    hub_source = HubSource(transport, endpoint=hub.endpoint, token="hf_secret", policy=NO_RETRIES)
    pull(store, hub_source.find(name("hf.co/o/r")))
    stored = [request for request in hub.requests if request.server == "storage"]
    assert stored
    assert not [request for request in stored if "hf_secret" in str(request)]


@pytest.mark.parametrize("token", ["", "hf_stranger"])
def test_a_gated_repository(hub: HubServer, transport: Transport, store: Store, tmp_path: Path, token: str) -> None:
    hub.tokens |= {"hf_member", "hf_stranger"}
    hub.add("o/r", {"m-Q8_0.gguf": gguf_bytes(tmp_path)}, gated="manual", members={"hf_member"})
    hub_source = HubSource(transport, endpoint=hub.endpoint, token=token, policy=NO_RETRIES)
    with pytest.raises(RemoteDenied, match=f"accept its conditions at {hub.endpoint}/o/r, and set HF_TOKEN") as error:
        fetch(store, hub_source.find(name("hf.co/o/r")))
    assert not token or token not in str(error.value)
    assert token or len(hub.requests) == 1, "without a token no file is asked for"
    member = HubSource(transport, endpoint=hub.endpoint, token="hf_member", policy=NO_RETRIES)
    pull(store, member.find(name("hf.co/o/r")))


@pytest.mark.parametrize(
    ("answer", "message", "kind"),
    [
        (error_answer(403, "GatedRepo", "restricted"), "o/r is gated: accept its conditions", RemoteDenied),
        (error_answer(403, "", "no"), r"denies access to o/r \(HTTP 403\)", RemoteDenied),
        (Answer(403, b"", {"X-Error-Message": "Access to this resource is disabled."}), "has disabled", RemoteDenied),
        (Answer(400), r"refuses to describe o/r \(HTTP 400\)", RemoteError),
        (Answer(418), r"refuses to describe o/r \(HTTP 418\)", RemoteError),
        (Answer(429, b"", {"Retry-After": "7"}), r"cannot answer .* at the moment \(HTTP 429\)", RemoteError),
        (Answer(503), r"cannot answer .* at the moment \(HTTP 503\)", RemoteError),
        (Answer(200, b"{}"), "is no description of a repository", RemoteError),
        (Answer(200, b"[]"), "is no description of a repository", RemoteError),
        (Answer(200, b"<html>"), "is no description of a repository", RemoteError),
        (Answer(200, b"[" * 100_000), "is no description of a repository", RemoteError),
        (Answer(200, b'{"id": "o/r", "siblings": [1]}'), "is no description of a repository", RemoteError),
        (Answer(200, b'{"id": "o/r", "sha": "../..", "siblings": []}'), "is no description", RemoteError),
        (Answer(200, b'{"id": "o/r", "sha": 7, "siblings": []}'), "is no description", RemoteError),
        (Answer(302, b"", {"Location": "file:///etc/passwd"}), "has the scheme 'file'", RemoteError),
    ],
)
def test_what_the_hub_may_answer(
    hub: HubServer, hub_source: HubSource, answer: Answer, message: str, kind: type[RemoteError]
) -> None:
    hub.answers["/api/models/o/r"] = answer
    with pytest.raises(kind, match=message) as error:
        hub_source.find(name("hf.co/o/r"))
    assert error.value.is_temporary == (answer.status in (429, 503))
    assert error.value.retry_after_s == (7 if answer.status == 429 else None)


def test_the_hub_tells_when_its_limit_of_requests_ends(hub: HubServer, hub_source: HubSource) -> None:
    for remaining, retry_after_s in ((0, 55), (3, None)):
        hub.answers["/api/models/o/r"] = Answer(429, headers={"RateLimit": f'"api";r={remaining};t=55'})
        with pytest.raises(RemoteError, match=r"HTTP 429") as error:
            hub_source.find(name("hf.co/o/r"))
        assert error.value.is_temporary
        assert error.value.retry_after_s == retry_after_s


def test_it_is_asked_again_after_a_passing_failure(hub: HubServer, transport: Transport, tmp_path: Path) -> None:
    hub.add("o/r", {"m-Q8_0.gguf": gguf_bytes(tmp_path)})
    hub_source = HubSource(
        transport, endpoint=hub.endpoint, token="", policy=RetryPolicy(max_attempts=2, first_pause_s=0)
    )
    failures = [Answer(503)]
    hub.tamper = lambda description: failures.pop() if failures else description
    assert hub_source.tags(name("hf.co/o/r"))[0].tag == "Q8_0"
    assert len(hub.requests) == 2


def test_nothing_but_the_description_is_asked_for(
    hub: HubServer, transport: Transport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No telemetry, and no list of programs by which huggingface_hub would tell who calls."""
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", False)
    monkeypatch.setattr(constants, "AGENT_HARNESSES_PATH", str(tmp_path / "programs.json"))
    monkeypatch.setattr("huggingface_hub.utils._detect_agent._registry", None)
    hub.add("o/r", {"m-Q8_0.gguf": gguf_bytes(tmp_path)})
    HubSource(transport, token="", policy=NO_RETRIES).find(name("hf.co/o/r"))
    (request,) = hub.requests
    assert request.path == "/api/models/o/r?blobs=true"
    assert request.headers["user-agent"] == "hob"
    assert "authorization" not in request.headers


def test_a_hub_that_cannot_be_reached(transport: Transport) -> None:
    with HubServer() as gone:
        endpoint = gone.endpoint
    hub_source = HubSource(transport, endpoint=endpoint, token="", policy=NO_RETRIES)
    with pytest.raises(RemoteUnreachable, match=r"cannot reach 127\.0\.0\.1"):
        hub_source.find(name("hf.co/o/r"))


@pytest.mark.parametrize("endpoint", ["ftp://hub", "hub", "https://me:secret@hub", "https://"])
def test_an_endpoint_that_is_none(transport: Transport, endpoint: str) -> None:
    hub_source = HubSource(transport, endpoint=endpoint, token="", policy=NO_RETRIES)
    with pytest.raises(RemoteError, match=r"HF_ENDPOINT must be an address such as https://huggingface\.co"):
        hub_source.find(name("hf.co/o/r"))


def test_plain_http_is_for_this_machine_and_for_who_asks_for_it(transport: Transport) -> None:
    hub_source = HubSource(transport, endpoint="http://192.0.2.1:9/hub", token="", policy=NO_RETRIES)
    with pytest.raises(RemoteError, match=r"HF_ENDPOINT is plain http at 192.0.2.1:9, .* --insecure"):
        hub_source.find(name("hf.co/o/r"))


@pytest.mark.parametrize("token", ["hf_a b", "hf_\xe4", "hf_a\nHost: x"])
def test_a_token_that_is_none(hub: HubServer, transport: Transport, token: str) -> None:
    hub_source = HubSource(transport, endpoint=hub.endpoint, token=token, policy=NO_RETRIES)
    with pytest.raises(RemoteDenied, match="has characters that no token of the hub has"):
        hub_source.find(name("hf.co/o/r"))
    assert not hub.requests


def test_a_repository_that_was_renamed(hub: HubServer, hub_source: HubSource, store: Store, tmp_path: Path) -> None:
    repository = hub.add("o/new", {"m-Q8_0.gguf": gguf_bytes(tmp_path), "system": b"Hi."})
    commit = repository.branches["main"]
    hub.answers["/api/models/o/old"] = Answer(307, headers={"Location": "/api/models/o/new?blobs=true"})
    for path in ("m-Q8_0.gguf", "system"):
        location = {"Location": f"/o/new/resolve/{commit}/{path}"}
        hub.answers[f"/o/old/resolve/{commit}/{path}"] = Answer(307, headers=location)
    assert pull(store, hub_source.find(name("hf.co/o/old"))).system == "Hi."


def test_names_of_files_are_quoted(hub: HubServer, hub_source: HubSource, store: Store, tmp_path: Path) -> None:
    hub.add("o/r", {"sub dir/a #1?%20&ü.gguf": gguf_bytes(tmp_path)})
    assert pull(store, hub_source.find(name("hf.co/o/r"))).config["file_type"] == "F16"


def test_offline(hub_source: HubSource, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(RemoteError, match="HF_HUB_OFFLINE is set"):
        hub_source.find(name("hf.co/o/r"))


def test_the_token_and_the_endpoint_are_those_of_huggingface_hub(
    hub: HubServer, transport: Transport, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hub.tokens.add("hf_environment")
    hub.add("o/r", {"m-Q8_0.gguf": gguf_bytes(tmp_path)}, is_private=True, members={"hf_environment"})
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.setenv("HF_TOKEN", "hf_environment")
    hub_source = HubSource(transport, policy=NO_RETRIES)
    assert hub_source.tags(name("hf.co/o/r"))[0].tag == "Q8_0"
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    with pytest.raises(RemoteNotFound):
        hub_source.tags(name("hf.co/o/r"))
