"""ModelName: which model is meant, as text and as a place in the store.

    [scheme://][host/][namespace/]model[:tag]

    host       1..350 characters   letters digits _ - . :     default registry.ollama.ai
    namespace  1..80               letters digits _ -         default library
    model      1..80               letters digits _ - .
    tag        1..80               letters digits _ - .       default latest

Every part starts with an ASCII letter, digit or underscore, so none is empty, hidden, "." or "..", and none holds a
separator: a name that was parsed can be joined to a folder and stays inside it. Two names that differ in case are
equal, but each keeps the case it was given.

A repository of the Hugging Face hub has the same form, "hf.co/maker/repository:Q4_K_M", and may be asked for at a
revision: a branch, a tag or a commit, "hf.co/maker/repository:Q4_K_M@main" or "hf.co/maker/repository@main:Q4_K_M".
In the store the tag is then "Q4_K_M--main", and a slash of the revision another "--", so that programs which share the
folder see nothing but a name of the grammar above (Ollama takes blobs away that only an illegal name needs). The hub
itself allows no "--" in a repository's name and writes it for a slash in its cache; so a revision that holds one must
be given as a commit.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from registry.errors import InvalidName

DEFAULT_HOST = "registry.ollama.ai"
DEFAULT_NAMESPACE = "library"
DEFAULT_TAG = "latest"
DEFAULT_SCHEME = "https"

HUB_HOSTS = ("hf.co", "huggingface.co")
"""Hosts whose names lead to the Hugging Face hub and may have a revision."""
REVISION_MARK = "--"
REVISION_PART = r"[A-Za-z0-9_][A-Za-z0-9_.]*(?:-[A-Za-z0-9_.]+)*"
"""What stands between the slashes of a revision."""

SCHEMES = ("https", "http")

# part -> (longest, characters beside letters, digits and "_" that may follow the first)
PARTS = {
    "host": (350, "-.:"),
    "namespace": (80, "-"),
    "model": (80, "-."),
    "tag": (80, "-."),
}


@dataclass(frozen=True, eq=False)
class ModelName:
    """A complete model name; the constructor checks every part.

    Raises:
        InvalidName: a part is empty, too long, or has a character that it must not have.
    """

    model: str
    tag: str = DEFAULT_TAG
    namespace: str = DEFAULT_NAMESPACE
    host: str = DEFAULT_HOST
    scheme: str = DEFAULT_SCHEME
    """How to reach the host; no part of the model's identity."""

    def __post_init__(self) -> None:
        if self.scheme not in SCHEMES:
            raise InvalidName('only "https://" and "http://" can lead to a registry')
        for part in PARTS:
            _check_part(part, getattr(self, part))

    @classmethod
    def parse(cls, text: str) -> ModelName:
        """The name that a person or program wrote, with defaults for what they left out.

        Raises:
            InvalidName: the text breaks the grammar above.
        """
        scheme, found, rest = text.rpartition("://")
        rest, revision = _without_revision(rest)
        *parts, last = rest.split("/")
        if len(parts) > 2:
            raise InvalidName(f"it has {len(parts) + 1} parts; host/namespace/model are the most there are")
        model, colon, tag = last.partition(":")
        return cls(
            scheme=scheme.lower() if found else DEFAULT_SCHEME,
            host=parts[0] if len(parts) == 2 else DEFAULT_HOST,
            namespace=parts[-1] if parts else DEFAULT_NAMESPACE,
            model=model,
            tag=_with_revision(tag if colon else DEFAULT_TAG, revision),
        )

    @property
    def short(self) -> str:
        """The shortest text that parses to this name and still shows the tag: "qwen:7b", "tale:latest"."""
        name = f"{self.model}:{self._shown_tag}"
        if self.host.lower() != DEFAULT_HOST:
            return f"{self.host}/{self.namespace}/{name}"
        if self.namespace.lower() != DEFAULT_NAMESPACE:
            return f"{self.namespace}/{name}"
        return name

    @property
    def full(self) -> str:
        """All four parts: "registry.ollama.ai/library/tale:latest"."""
        return f"{self.host}/{self.namespace}/{self.model}:{self._shown_tag}"

    @property
    def is_hub(self) -> bool:
        """Whether it names a repository of the Hugging Face hub."""
        return self.host.lower() in HUB_HOSTS

    @property
    def variant(self) -> str:
        """The tag without the revision."""
        return self._split_tag()[0]

    @property
    def revision(self) -> str:
        """The revision of a hub's repository, "" where the name has none."""
        return self._split_tag()[1]

    @property
    def _shown_tag(self) -> str:
        variant, revision = self._split_tag()
        return f"{variant}@{revision}" if revision else variant

    def _split_tag(self) -> tuple[str, str]:
        variant, _, revision = self.tag.partition(REVISION_MARK)
        parts = revision.split(REVISION_MARK)
        if self.is_hub and all(re.fullmatch(REVISION_PART, part) for part in parts):
            return variant, "/".join(parts)
        return self.tag, ""

    @property
    def path_parts(self) -> tuple[str, str, str, str]:
        """The manifest's path under the store's manifests folder, one safe file name each."""
        return (self.host, self.namespace, self.model, self.tag)

    def __str__(self) -> str:
        return self.short

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ModelName):
            return NotImplemented
        return self.full.lower() == other.full.lower()

    def __hash__(self) -> int:
        return hash(self.full.lower())


def _without_revision(text: str) -> tuple[str, str]:
    """A hub's name without its revision, and the revision; any other text as it is."""
    name, at, revision = text.partition("@")
    host, *repository = name.split("/")
    if not at or host.lower() not in HUB_HOSTS or len(repository) != 2:
        return text, ""
    revision, colon, tag = revision.partition(":")
    parts = revision.split("/")
    if not all(re.fullmatch(REVISION_PART, part) for part in parts):
        raise InvalidName(
            'the revision behind "@" must be a branch, a tag or a commit of letters, digits, _ - . and /, '
            'without "--"; a commit can stand for any other'
        )
    return name + colon + tag, revision


def _with_revision(tag: str, revision: str) -> str:
    if not revision:
        return tag
    if REVISION_MARK in tag or tag.endswith("-"):
        raise InvalidName(f'a tag with a revision must not contain "{REVISION_MARK}" nor end in "-"')
    return REVISION_MARK.join([tag, *revision.split("/")])


def _check_part(part: str, text: str) -> None:
    longest, marks = PARTS[part]
    if not text:
        raise InvalidName(f"the {part} is empty")
    if len(text) > longest:
        raise InvalidName(f"the {part} has {len(text)} characters; the limit is {longest}")
    if not re.match("[A-Za-z0-9_]", text):
        raise InvalidName(f'the {part} starts with {text[0]!r}; it must start with a letter, a digit or "_"')
    wrong = re.search(f"[^A-Za-z0-9_{re.escape(marks)}]", text)
    if wrong:
        allowed = " ".join(marks)
        raise InvalidName(f"the {part} contains {wrong[0]!r}; letters, digits, _ and {allowed} are allowed")
