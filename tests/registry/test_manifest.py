"""Digests and manifests: one spelling of a digest, and a clean error for every bad manifest."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.errors import InvalidDigest, ManifestError
from registry.manifest import (
    CONFIG_MEDIA_TYPE,
    FILE,
    MANIFEST_MEDIA_TYPE,
    MAX_LAYERS,
    MAX_MANIFEST_BYTES,
    MODEL,
    Digest,
    Layer,
    Manifest,
    is_clean_path,
)

HEX = "0123456789abcdef" * 4
DIGEST = f"sha256:{HEX}"


def manifest_json(**changes: Any) -> bytes:
    """A sound manifest with some keys replaced, or removed where the value is `...`."""
    manifest: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_MEDIA_TYPE,
        "config": {"mediaType": CONFIG_MEDIA_TYPE, "digest": DIGEST, "size": 10},
        "layers": [{"mediaType": MODEL, "digest": "sha256:" + "1" * 64, "size": 20}],
    }
    manifest.update(changes)
    return json.dumps({key: value for key, value in manifest.items() if value is not ...}).encode()


def layer_json(**changes: Any) -> dict[str, Any]:
    layer = {"mediaType": MODEL, "digest": "sha256:" + "1" * 64, "size": 20} | changes
    return {key: value for key, value in layer.items() if value is not ...}


BAD_DIGESTS = [
    "",
    "sha256:",
    HEX,
    f"sha256:{HEX[:-1]}",
    f"sha256:{HEX}0",
    f"sha256:{HEX.upper()}",
    f"SHA256:{HEX}",
    f"sha512:{HEX}",
    f"sha256:{HEX}\n",
    f" sha256:{HEX}",
    f"sha256:{HEX} ",
    f"sha256:{HEX[:-1]}\x00",
    f"sha256:{HEX[:-1]}/",
    f"sha256/{HEX}",
    f"sha256:{HEX[:-1]}٣",
    f"sha256:{HEX[:-1]}g",
    "sha256:../../../../etc/passwd",
    "sha256:" + "../" * 21 + "a",
    f"../sha256:{HEX}",
    f"sha256:sha256:{HEX}",
]


@pytest.mark.parametrize("text", BAD_DIGESTS)
def test_a_digest_has_one_form(text: str) -> None:
    with pytest.raises(InvalidDigest, match="invalid digest"):
        Digest.parse(text)
    with pytest.raises(ManifestError, match="invalid digest"):
        Manifest.parse(manifest_json(layers=[layer_json(digest=text)]))


def test_a_digest_reads_its_two_spellings() -> None:
    digest = Digest.parse(DIGEST)
    assert digest == Digest.parse(f"sha256-{HEX}") == Digest(HEX)
    assert str(digest) == DIGEST
    assert digest.file_name == f"sha256-{HEX}"
    assert str(Digest.of(b"")) == "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    with pytest.raises(InvalidDigest):
        Digest("../" * 21 + "a")


def test_a_manifest_comes_back_from_its_bytes() -> None:
    manifest = Manifest(
        Layer(CONFIG_MEDIA_TYPE, Digest.of(b"config"), 6),
        (
            Layer(MODEL, Digest.of(b"weights"), 7, origin="/some/where"),
            Layer(FILE, Digest.of(b"{}"), 2, name="a/config.json"),
        ),
    )
    assert Manifest.parse(manifest.encode()) == manifest
    assert manifest.size == 15
    assert manifest.digests() == {Digest.of(b"config"), Digest.of(b"weights"), Digest.of(b"{}")}


def test_encoding_has_the_keys_that_others_read() -> None:
    manifest = Manifest(
        Layer(CONFIG_MEDIA_TYPE, Digest.of(b""), 0), (Layer(FILE, Digest.of(b"a"), 1, name="f", origin="o"),)
    )
    assert json.loads(manifest.encode()) == {
        "schemaVersion": 2,
        "mediaType": MANIFEST_MEDIA_TYPE,
        "config": {"mediaType": CONFIG_MEDIA_TYPE, "digest": str(Digest.of(b"")), "size": 0},
        "layers": [{"mediaType": FILE, "digest": str(Digest.of(b"a")), "size": 1, "from": "o", "name": "f"}],
    }


def test_keys_of_a_newer_ollama_are_passed_over() -> None:
    manifest = Manifest.parse(manifest_json(runner="mlx", mediaType=..., layers=[layer_json(annotations={"a": "b"})]))
    assert manifest.layers[0].size == 20


BAD_MANIFESTS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty"),
    "blank": (b" \n", "is empty"),
    "zeros": (bytes(100), "is not valid"),
    "half": (manifest_json()[:100], "is not valid"),
    "html": (b"<html>log in</html>", "is not valid"),
    "not utf-8": (manifest_json().replace(b"vnd.ollama", b"\xff\xfe"), "is not valid"),
    "array": (b"[]", "Expected `object`"),
    "null": (b"null", "Expected `object`"),
    "number": (b"7", "Expected `object`"),
    "deep": (b'{"schemaVersion":2,"x":' + b"[" * 100_000, "is not valid"),
    "long": (b" " * (MAX_MANIFEST_BYTES + 1), "the limit is 4194304"),
    "no schema version": (manifest_json(schemaVersion=...), "schemaVersion"),
    "schema version 1": (manifest_json(schemaVersion=1), "schema version 1"),
    "schema version text": (manifest_json(schemaVersion="2"), "schemaVersion"),
    "no config": (manifest_json(config=...), "config"),
    "config null": (manifest_json(config=None), "config"),
    "config text": (manifest_json(config="x"), "config"),
    "config without digest": (manifest_json(config={"mediaType": "x", "size": 1}), "digest"),
    "no layers": (manifest_json(layers=...), "layers"),
    "layers null": (manifest_json(layers=None), "layers"),
    "layers object": (manifest_json(layers={}), "layers"),
    "layer null": (manifest_json(layers=[None]), "layers"),
    "layer text": (manifest_json(layers=["x"]), "layers"),
    "layer without media type": (manifest_json(layers=[layer_json(mediaType=...)]), "mediaType"),
    "layer without size": (manifest_json(layers=[layer_json(size=...)]), "size"),
    "digest null": (manifest_json(layers=[layer_json(digest=None)]), "digest"),
    "digest number": (manifest_json(layers=[layer_json(digest=5)]), "digest"),
    "size negative": (manifest_json(layers=[layer_json(size=-1)]), "has size -1"),
    "size fraction": (manifest_json(layers=[layer_json(size=1.5)]), "size"),
    "size text": (manifest_json(layers=[layer_json(size="20")]), "size"),
    "size true": (manifest_json(layers=[layer_json(size=True)]), "size"),
    "size huge": (manifest_json(layers=[layer_json(size=2**63)]), "has size"),
    "two sizes": (manifest_json(layers=[layer_json(), layer_json(size=21)]), "two sizes"),
    "name climbs": (manifest_json(layers=[layer_json(name="../x")]), "no clean relative path"),
    "name absolute": (manifest_json(layers=[layer_json(name="/etc/passwd")]), "no clean relative path"),
    "many layers": (manifest_json(layers=[layer_json()] * (MAX_LAYERS + 1)), "the limit is 10000"),
    "index of manifests": (b'{"schemaVersion":2,"manifests":[{"digest":"%s"}]}' % DIGEST.encode(), "config"),
}


@pytest.mark.parametrize(("data", "reason"), BAD_MANIFESTS.values(), ids=BAD_MANIFESTS.keys())
def test_a_bad_manifest_says_what_is_wrong(data: bytes, reason: str) -> None:
    with pytest.raises(ManifestError, match=reason):
        Manifest.parse(data)


@given(st.binary(max_size=200), st.integers(0, 300), st.integers(0, 300))
def test_no_bytes_do_more_than_raise_manifest_error(noise: bytes, start: int, stop: int) -> None:
    data = manifest_json()
    for mutant in (noise, data[:start] + noise + data[stop:]):
        try:
            Manifest.parse(mutant)
        except ManifestError:
            continue


@pytest.mark.parametrize("path", ["a", "a/b.json", "a b", ".hidden", "ä.json", "a..b"])
def test_clean_paths(path: str) -> None:
    assert is_clean_path(path)


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "/a",
        "a/",
        "a//b",
        ".",
        "..",
        "a/../b",
        "./a",
        "a\\b",
        "C:a",
        "a\x00",
        "a\n",
        "a\x7f",
        "x" * 256,
        "a/" * 600,
    ],
)
def test_paths_that_are_not_clean(path: str) -> None:
    assert not is_clean_path(path)
