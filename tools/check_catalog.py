"""Whether the catalog is still true: asks the hub for every entry. Needs a network; `make check-catalog` calls it.

Prints a line for each entry that the hub does not have, that has no such quantisation or that differs in size, and
exits with 1 if there was any. Gated repositories need HF_TOKEN. Words of the command line choose models;
`--write-schema` needs no network and writes `registry/catalog.schema.json` anew.
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from registry.catalog import MEGABYTE, Catalog, CatalogEntry, CatalogFile  # noqa: E402 -- a script finds the project
from registry.errors import RemoteError  # noqa: E402
from registry.hub import HubSource  # noqa: E402
from registry.transport import Transport  # noqa: E402

TOLERANCE = 0.05
"""By how much a size may differ: makers convert their files anew now and then."""


def check(hub: HubSource, entry: CatalogEntry) -> str:
    """What is wrong with an entry, "" where nothing is."""
    try:
        sizes = [blob.size for blob in hub.find(entry.hub_name).blobs]
    except RemoteError as error:
        return str(error)
    size_mb = round(sum(size or 0 for size in sizes) / MEGABYTE)
    if abs(size_mb - entry.variant.size_mb) > TOLERANCE * size_mb:
        return f"{entry.hub_name} has {size_mb} MB where the catalog says {entry.variant.size_mb}"
    return ""


def write_schema() -> None:
    schema = msgspec.json.encode(msgspec.json.schema(CatalogFile))
    (ROOT / "registry" / "catalog.schema.json").write_bytes(msgspec.json.format(schema) + b"\n")


def main(words: list[str]) -> int:
    if words == ["--write-schema"]:
        write_schema()
        return 0
    catalog = Catalog.load()
    num_wrong = num_checked = 0
    with Transport() as transport:
        hub = HubSource(transport)
        for model in catalog.models:
            if words and model.name not in words:
                continue
            for variant in model.variants:
                wrong = check(hub, CatalogEntry(model, variant, variant.quantization))
                num_checked += 1
                num_wrong += bool(wrong)
                if wrong:
                    sys.stdout.write(f"{model.name}:{variant.tag}: {wrong}\n")
                    sys.stdout.flush()
    sys.stdout.write(f"{num_checked} entries, {num_wrong} wrong\n")
    return 1 if num_wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
