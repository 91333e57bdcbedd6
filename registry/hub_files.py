"""Which files of a hub's repository make up which variant of its model.

A repository of GGUF files holds one model in several quantisations, each in a file or in shards, and perhaps a
projector for images. They are told apart by their names, as Ollama and the hub itself do: a variant's tag is the
quantisation in its file name, or where there is none, or twice the same, the file name itself. A repository of
safetensors holds one variant, which beside GGUF files is reached by the tag "safetensors".

Nothing here trusts a name: what is no clean relative path is not taken, nor is what can run code (pickles, programs).
`registry.hub` calls this; no request is made and no byte of a file looked at.
Source: huggingface.co/docs/hub/ollama for tags and the default; llama.cpp's gguf-split for the names of shards.
"""

from __future__ import annotations

import fnmatch
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from modelfiles.source import POOLING_FILES
from registry import model_files
from registry.errors import CreateError, RemoteError, RemoteNotFound
from registry.manifest import Digest, is_clean_path
from registry.name import DEFAULT_TAG

SAFETENSORS = "safetensors"
"""Tag of the variant that is made of safetensors files."""

QUANTIZATION = re.compile(
    r"(?:^|[-._ ])"
    r"((?:UD-)?(?:I?Q[1-9](?:_(?:[0-9]|K|NL|XXS|XS|S|M|L|XL))*|TQ[12]_0|MXFP4(?:_MOE)?|BF16|F16|F32|FP16|FP32))"
    r"(?=$|[-._ ])",
    re.IGNORECASE,
)
SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})")
SPELLINGS = {"FP16": "F16", "FP32": "F32"}

DEFAULT_ORDER = (
    "Q4_K_M UD-Q4_K_XL Q4_K_L Q4_K Q4 Q4_0 Q4_K_S IQ4_NL IQ4_XS Q4_1 Q5_K_M Q5_K_S Q5_0 Q5_1 Q6_K Q8_0 "
    "Q3_K_L Q3_K_M Q3_K_S BF16 F16 F32"
)
"""Which quantisation a name without a tag means: the first of these that is there."""
PROJECTOR_ORDER = ("F16", "BF16", "F32", "Q8_0")
"""The same of projectors."""

PROJECTOR, IMPORTANCE_MATRIX = "mmproj", "imatrix"
"""What stands in the names of GGUF files that hold no language model."""

MAX_SHARDS = 1000
MAX_LISTED = 30
WORDS = ("template", "system", "params")
"""Files beside GGUF files that Ollama takes over into a model."""
LICENSES = ("LICENSE", "LICENSE.txt", "LICENSE.md")
MAX_WORDS_BYTES = 1024 * 1024


@dataclass(frozen=True)
class HubFile:
    """One file of a repository, as the hub lists it."""

    path: str
    size: int | None
    digest: Digest | None
    git_hash: str


@dataclass(frozen=True)
class Variant:
    """One of the forms in which a repository has its model."""

    tag: str
    weights: tuple[HubFile, ...]
    """And what describes them; shards in their order."""
    num_missing: int = 0
    """Shards that the repository lacks."""
    names: frozenset[str] = field(default=frozenset())
    """What else asks for it, in lower case: its file names."""


@dataclass(frozen=True)
class RepositoryFiles:
    """A repository's files by what they are for."""

    variants: tuple[Variant, ...]
    """Of GGUF files in the order of their names, that of safetensors last."""
    projector: HubFile | None
    words: tuple[HubFile, ...]
    """WORDS and a licence."""
    unsafe: tuple[str, ...]
    """Names of files that can run code."""

    def choose(self, repository: str, tag: str) -> tuple[HubFile, ...]:
        """All files to fetch for the variant that a tag means.

        Args:
            repository: for messages.

        Raises:
            RemoteNotFound: there is no such variant; those that there are, are listed.
            RemoteError: the repository has nothing that Hob takes, or the variant is not whole.
        """
        if not self.variants:
            raise RemoteError(self._nothing(repository))
        variant = self._default(repository) if tag == DEFAULT_TAG else self._tagged(repository, tag)
        if variant.num_missing:
            raise RemoteError(
                f"{repository} has {variant.tag} without {variant.num_missing} of its shards; take another of its "
                f"variants: {self._listed()}"
            )
        return self.files_of(variant)

    def files_of(self, variant: Variant) -> tuple[HubFile, ...]:
        """All files to fetch for a variant."""
        if variant.tag == SAFETENSORS:
            return (*variant.weights, *(file for file in self.words if file.path in LICENSES))
        return (*variant.weights, *([self.projector] if self.projector else []), *self.words)

    def _default(self, repository: str) -> Variant:
        gguf = [variant for variant in self.variants if variant.tag != SAFETENSORS]
        if not gguf:
            return self.variants[0]
        by_tag = {variant.tag: variant for variant in gguf if not variant.num_missing}
        for quantization in DEFAULT_ORDER.split():
            if quantization in by_tag:
                return by_tag[quantization]
        if len(gguf) > 1:
            raise RemoteNotFound(f"{repository} has several models; name one of them as the tag: {self._listed()}")
        return gguf[0]

    def _tagged(self, repository: str, tag: str) -> Variant:
        wanted = _canonical(tag)
        for spelling in (wanted, f"UD-{wanted}"):
            for variant in self.variants:
                if variant.tag.upper() == spelling:
                    return variant
        for variant in self.variants:
            if tag.lower() in variant.names:
                return variant
        raise RemoteNotFound(f"{repository} has no {tag}; it has {self._listed()}")

    def _listed(self) -> str:
        tags = [variant.tag for variant in self.variants]
        more = f" and {len(tags) - MAX_LISTED} more" if len(tags) > MAX_LISTED else ""
        return ", ".join(tags[:MAX_LISTED]) + more

    def _nothing(self, repository: str) -> str:
        pickles = [name for name in self.unsafe if posixpath.splitext(name)[1].lower() in model_files.PICKLES.split()]
        if pickles:
            return (
                f"{repository} has its weights as {pickles[0]} only, and such a file can run code when it is loaded; "
                "look for a repository that has them as safetensors or GGUF"
            )
        return (
            f"{repository} has no model that Hob reads: there are no .gguf files, and no model*.safetensors with a "
            "config.json beside them"
        )


def total_size(files: Iterable[HubFile]) -> int | None:
    """Bytes of files, None where the hub does not say of one."""
    sizes = [file.size for file in files]
    return None if None in sizes else sum(size for size in sizes if size is not None)


def sort_files(files: Iterable[HubFile]) -> RepositoryFiles:
    """Say what each file of a repository is for.

    Raises:
        RemoteError: a path leads out of its folder, which no repository of git can hold.
    """
    clean: list[HubFile] = []
    unsafe: list[str] = []
    for file in sorted(files, key=lambda file: file.path):
        if not {"", ".", ".."}.isdisjoint(file.path.split("/")):
            raise RemoteError(f"the hub lists a file that lies outside of its repository: {file.path[:80]!r}")
        if not is_clean_path(file.path):
            continue
        try:
            model_files.check_name(file.path)
        except CreateError:
            unsafe.append(file.path)
        else:
            clean.append(file)
    gguf = [file for file in clean if file.path.lower().endswith(".gguf")]
    projectors = [file for file in gguf if PROJECTOR in _base(file)]
    weights = [file for file in gguf if PROJECTOR not in _base(file) and IMPORTANCE_MATRIX not in _base(file)]
    words = [file for file in clean if file.path in WORDS and (file.size or 0) <= MAX_WORDS_BYTES]
    by_path = {file.path: file for file in clean if (file.size or 0) <= MAX_WORDS_BYTES}
    license_file = next((by_path[name] for name in LICENSES if name in by_path), None)
    return RepositoryFiles(
        variants=(*_gguf_variants(weights), *_safetensors_variant(clean)),
        projector=min(projectors, key=_projector_rank, default=None),
        words=(*words, *([license_file] if license_file else [])),
        unsafe=tuple(unsafe),
    )


def _base(file: HubFile) -> str:
    return posixpath.basename(file.path).lower()


def quantization_of(path: str) -> str:
    """The quantisation that a file's name tells, "" where it tells none: "dir/M-7B-q4_k_m.gguf" -> "Q4_K_M"."""
    stem = _stem(path)
    for text in (posixpath.basename(stem), posixpath.dirname(stem)):
        if found := QUANTIZATION.findall(text):
            return _canonical(found[-1])
    return ""


def _canonical(tag: str) -> str:
    tag = tag.upper()
    return SPELLINGS.get(tag, tag)


def _stem(path: str) -> str:
    """The path without ".gguf" and the number of a shard."""
    stem = path[: -len(".gguf")] if path.lower().endswith(".gguf") else path
    shard = SHARD.fullmatch(stem)
    return shard[1] if shard else stem


def _gguf_variants(files: Sequence[HubFile]) -> list[Variant]:
    groups: dict[str, list[HubFile]] = {}
    for file in files:
        groups.setdefault(_stem(file.path), []).append(file)
    times = Counter(quantization_of(f"{stem}.gguf") for stem in groups)
    variants = []
    for stem, group in groups.items():
        quantization = quantization_of(f"{stem}.gguf")
        is_unique = quantization and times[quantization] == 1
        base = posixpath.basename(stem)
        names = {name for file in group for name in _spellings(posixpath.basename(file.path))}
        variants.append(
            Variant(
                tag=quantization if is_unique else base,
                weights=tuple(group),
                num_missing=_num_missing(group),
                names=frozenset({base.lower(), *names}),
            )
        )
    return variants


def _spellings(file_name: str) -> tuple[str, str]:
    return file_name.lower(), posixpath.splitext(file_name)[0].lower()


def _num_missing(group: Sequence[HubFile]) -> int:
    """How many shards are not there, of a group sorted by name."""
    shards = [SHARD.fullmatch(file.path[: -len(".gguf")]) for file in group]
    numbers = {int(shard[2]) for shard in shards if shard}
    counts = {int(shard[3]) for shard in shards if shard}
    if not counts:
        return 0
    count = max(counts)
    if count > MAX_SHARDS or len(counts) > 1 or len(numbers) < len(group):
        return count
    return count - len(numbers & set(range(1, count + 1)))


def _safetensors_variant(files: Sequence[HubFile]) -> list[Variant]:
    by_path = {file.path: file for file in files if not file.path.lower().endswith(".gguf")}
    if "config.json" not in by_path:
        return []
    # Weights in folders are other forms of the model (onnx/, fp8/) where there are some beside config.json.
    for paths in ([path for path in by_path if "/" not in path or _says_how_to_pool(path)], list(by_path)):
        try:
            chosen = model_files.select(paths)
        except CreateError:
            continue
        folders = {"", *(posixpath.dirname(path) for path in chosen if path.endswith(".safetensors"))}
        return [Variant(SAFETENSORS, tuple(by_path[path] for path in chosen if _is_taken(by_path[path], folders)))]
    return []


def _is_taken(file: HubFile, folders: set[str]) -> bool:
    """Whether a chosen file lies beside the weights, and is not too long for what its name says."""
    is_weights = file.path.endswith(".safetensors")
    is_short = (file.size or 0) <= model_files.MAX_SIDE_FILE_BYTES
    is_beside = posixpath.dirname(file.path) in folders or _says_how_to_pool(file.path)
    return is_beside and (is_weights or is_short)


def _says_how_to_pool(path: str) -> bool:
    """Models for embedding keep that in a folder of its own."""
    return fnmatch.fnmatchcase(path, POOLING_FILES) and path.count("/") == 1


def _projector_rank(file: HubFile) -> tuple[int, int, str]:
    quantization = quantization_of(file.path)
    rank = PROJECTOR_ORDER.index(quantization) if quantization in PROJECTOR_ORDER else len(PROJECTOR_ORDER)
    return rank, file.size or 0, file.path
