"""`fastvec inspect` of a folder: a one-screen summary of an output in shards."""

from dataclasses import replace

from fastvec.output.inspect import Summary, inspect
from fastvec.shards.folder import Folder
from fastvec.shards.verify import require_manifest


def inspect_folder(folder: Folder) -> Summary:
    """Summarize an output from its manifest and its first shard, from which the norms are.

    Raises OutputError if it is not finished, or the shard's columns do not match its metadata.
    """
    manifest = require_manifest(folder)
    with folder.fetched(manifest.shards[0].file) as path:
        first = inspect(path)
    return replace(
        first,
        path=folder.location,
        shards=len(manifest.shards),
        size_bytes=sum(shard.bytes for shard in manifest.shards),
        rows=manifest.rows,
        input_rows=sum(shard.input_rows for shard in manifest.shards),
        nulls=manifest.counts.get("nulls", 0) + manifest.counts.get("errors", 0),
        counts=dict(manifest.counts),
    )
