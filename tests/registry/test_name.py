"""Model names: what parses, what it means, and what cannot become a path."""

from __future__ import annotations

from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.errors import InvalidName
from registry.name import ModelName


@pytest.mark.parametrize(
    ("text", "full", "short"),
    [
        ("tale", "registry.ollama.ai/library/tale:latest", "tale:latest"),
        ("qwen:7b", "registry.ollama.ai/library/qwen:7b", "qwen:7b"),
        ("ana/tale", "registry.ollama.ai/ana/tale:latest", "ana/tale:latest"),
        ("library/tale:1", "registry.ollama.ai/library/tale:1", "tale:1"),
        ("registry.ollama.ai/library/tale", "registry.ollama.ai/library/tale:latest", "tale:latest"),
        ("Registry.Ollama.AI/Library/tale", "Registry.Ollama.AI/Library/tale:latest", "tale:latest"),
        ("registry.ollama.ai/ana/tale", "registry.ollama.ai/ana/tale:latest", "ana/tale:latest"),
        (
            "hf.co/maker/Model-1.5-GGUF:Q4_K_M",
            "hf.co/maker/Model-1.5-GGUF:Q4_K_M",
            "hf.co/maker/Model-1.5-GGUF:Q4_K_M",
        ),
        ("hf.co/maker/repo:a-b.gguf", "hf.co/maker/repo:a-b.gguf", "hf.co/maker/repo:a-b.gguf"),
        ("localhost:5000/ns/m:t", "localhost:5000/ns/m:t", "localhost:5000/ns/m:t"),
        ("example.com/library/m", "example.com/library/m:latest", "example.com/library/m:latest"),
        ("_m", "registry.ollama.ai/library/_m:latest", "_m:latest"),
        ("m" * 80 + ":" + "t" * 80, f"registry.ollama.ai/library/{'m' * 80}:{'t' * 80}", f"{'m' * 80}:{'t' * 80}"),
        ("h" * 350 + "/n/m", "h" * 350 + "/n/m:latest", "h" * 350 + "/n/m:latest"),
    ],
)
def test_parses_with_defaults(text: str, full: str, short: str) -> None:
    name = ModelName.parse(text)
    assert name.full == full
    assert name.short == str(name) == short
    assert ModelName.parse(name.short) == name
    assert ModelName.parse(name.full) == name


def test_keeps_the_scheme_beside_the_name() -> None:
    name = ModelName.parse("HTTP://localhost:5000/ns/m")
    assert name.scheme == "http"
    assert name == ModelName.parse("localhost:5000/ns/m")
    assert ModelName.parse("m").scheme == "https"


def test_equality_ignores_case_and_display_keeps_it() -> None:
    assert ModelName.parse("Tale:Q4") == ModelName.parse("tale:q4")
    assert len({ModelName.parse("Tale"), ModelName.parse("TALE")}) == 1
    assert ModelName.parse("Tale").short == "Tale:latest"
    assert ModelName.parse("tale") != ModelName.parse("tale:1")
    assert ModelName.parse("tale") != "tale"


@pytest.mark.parametrize(
    ("text", "tag", "shown", "variant", "revision"),
    [
        ("hf.co/o/r:Q4_K_M@main", "Q4_K_M--main", "hf.co/o/r:Q4_K_M@main", "Q4_K_M", "main"),
        ("hf.co/o/r@main:Q4_K_M", "Q4_K_M--main", "hf.co/o/r:Q4_K_M@main", "Q4_K_M", "main"),
        ("hf.co/o/r:Q4_K_M--main", "Q4_K_M--main", "hf.co/o/r:Q4_K_M@main", "Q4_K_M", "main"),
        ("huggingface.co/o/r@v1.0", "latest--v1.0", "huggingface.co/o/r:latest@v1.0", "latest", "v1.0"),
        ("HF.co/o/r@" + "0a" * 20, "latest--" + "0a" * 20, "HF.co/o/r:latest@" + "0a" * 20, "latest", "0a" * 20),
        ("https://hf.co/o/r@refs/pr/1", "latest--refs--pr--1", "hf.co/o/r:latest@refs/pr/1", "latest", "refs/pr/1"),
        ("hf.co/o/r@a-b", "latest--a-b", "hf.co/o/r:latest@a-b", "latest", "a-b"),
        ("hf.co/o/r:Q8_0", "Q8_0", "hf.co/o/r:Q8_0", "Q8_0", ""),
        ("hf.co/o/r:a---b", "a---b", "hf.co/o/r:a---b", "a---b", ""),
        ("hf.co/o/r:a--", "a--", "hf.co/o/r:a--", "a--", ""),
        ("example.com/o/r:a--b", "a--b", "example.com/o/r:a--b", "a--b", ""),
        ("qwen:a--b", "a--b", "qwen:a--b", "a--b", ""),
    ],
)
def test_a_hubs_name_can_have_a_revision(text: str, tag: str, shown: str, variant: str, revision: str) -> None:
    name = ModelName.parse(text)
    assert (name.tag, name.short, name.variant, name.revision) == (tag, shown, variant, revision)
    host, namespace, model, stored = name.path_parts
    assert ModelName(model, stored, namespace, host) == ModelName.parse(name.short) == name


def test_only_a_hub_has_revisions() -> None:
    assert ModelName.parse("hf.co/o/r").is_hub
    assert ModelName.parse("HuggingFace.co/o/r").is_hub
    assert not ModelName.parse("o/r").is_hub


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("hf.co/o/r@", "the revision"),
        ("hf.co/o/r@:Q4_K_M", "the revision"),
        ("hf.co/o/r@../../x", "the revision"),
        ("hf.co/o/r@a//b", "the revision"),
        ("hf.co/o/r@a--b", "the revision"),
        ("hf.co/o/r@-a", "the revision"),
        ("hf.co/o/r@.git", "the revision"),
        ("hf.co/o/r@a@b", "the revision"),
        ("hf.co/o/r@a b", "the revision"),
        ("hf.co/o/r@a\n", "the revision"),
        ("hf.co/o/r@%2e%2e", "the revision"),
        ("hf.co/o/r:x@a:y", "the tag contains ':'"),
        ("hf.co/o/r:a--b@main", "a tag with a revision"),
        ("hf.co/o/r:a-@main", "a tag with a revision"),
        ("hf.co/o/r@" + "a" * 80, "the tag has 88 characters"),
        ("hf.co@main/o/r", "the host contains '@'"),
        ("hf.co.evil/o/r@main", "the model contains '@'"),
        ("", "the model is empty"),
        (":7b", "the model is empty"),
        ("tale:", "the tag is empty"),
        ("/etc/passwd", "the host is empty"),
        ("a//b", "the namespace is empty"),
        ("../../etc/passwd", "it has 4 parts"),
        ("../../passwd", "the host starts with '.'"),
        ("a/../b", "the namespace starts with '.'"),
        ("a/../../b", "it has 4 parts"),
        ("a/b/..", "the model starts with '.'"),
        ("a:..", "the tag starts with '.'"),
        ("-rf", "the model starts with '-'"),
        ("%2e%2e", "the model starts with '%'"),
        ("a%2fb", "contains '%'"),
        ("a b", "contains ' '"),
        ("a\\b", r"contains '\\\\'"),
        ("a\x00b", r"contains '\\x00'"),
        ("tale\n", r"contains '\\n'"),
        ("näh", "contains 'ä'"),
        ("٣", "starts with"),
        ("a:b:c", "the tag contains ':'"),
        ("a@sha256:00", "the model contains '@'"),
        ("dotted.space/m", "the namespace contains '.'"),
        ("$(touch x)", r"starts with '\$'"),
        ("a/b/c/d", "it has 4 parts"),
        ("file:///etc/passwd", "can lead to a registry"),
        ("m" * 81, "has 81 characters; the limit is 80"),
        ("m:" + "t" * 81, "the tag has 81 characters"),
        ("n" * 81 + "/m", "the namespace has 81 characters"),
        ("h" * 351 + "/n/m", "the host has 351 characters; the limit is 350"),
        ("m" * 10_000, "has 10000 characters"),
    ],
)
def test_refuses_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(InvalidName, match=f"^invalid model name: .*{reason}"):
        ModelName.parse(text)


@given(st.text(alphabet=st.sampled_from("aZ9_-.:/\\ \x00%é@"), max_size=30) | st.text(max_size=30))
def test_whatever_parses_round_trips_and_stays_in_its_folder(text: str) -> None:
    try:
        name = ModelName.parse(text)
    except InvalidName:
        return
    assert ModelName.parse(name.full).full == name.full
    assert ModelName.parse(name.short) == name
    path = PurePosixPath("/store").joinpath(*name.path_parts)
    assert len(path.parts) == 6
    assert not {"", ".", ".."} & set(path.parts)
    assert all("/" not in part and "\x00" not in part and part.isascii() for part in name.path_parts)


@given(st.from_regex(r"hf\.co/o/r(:[a.-]{0,6})?(@[a.\-/]{0,8})?(:[a-]{0,3})?", fullmatch=True))
def test_whatever_parses_of_a_hub_round_trips(text: str) -> None:
    try:
        name = ModelName.parse(text)
    except InvalidName:
        return
    assert ModelName.parse(name.short).full == name.full
    host, namespace, model, tag = name.path_parts
    assert ModelName(model, tag, namespace, host).full == name.full
    assert ("@" in text) == bool(name.revision) or "--" in text
