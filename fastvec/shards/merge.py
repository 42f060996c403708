"""`fastvec merge` of a folder: joins its shards into the file that a run in one process writes, byte for byte."""

import json
import zlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import pyarrow as pa

from fastvec.errors import OutputError, UsageError
from fastvec.output import arrow_file, parquet_file
from fastvec.output.convert import Written, require_replaceable
from fastvec.output.merge import merge_files
from fastvec.output.ownership import replacing_errors
from fastvec.output.reader import SHARD, Output
from fastvec.output.verify import check_footer
from fastvec.shards.folder import Folder, is_folder, open_folder
from fastvec.shards.manifest import Manifest, read_errors
from fastvec.shards.verify import REMEDY, open_shard, require_manifest
from fastvec.stores.address import require_local
from fastvec.system.blocks import Block, first_damaged
from fastvec.system.durable_files import draft_path, replacing, translated_os_errors, write_at

_READ_BYTES = 1 << 20


def merge(paths: Sequence[str | Path], output: str | Path, *, overwrite: bool = False) -> Written:
    """Join finished outputs, in this order, or the shards of one folder, into one `.arrow` or `.parquet` file.

    See `merge_files` for outputs of several jobs, and `merge_folder` for a folder. Raises what these raise, and
    UsageError for a folder beside other outputs.
    """
    folders = [path for path in paths if is_folder(path)]
    if not folders:
        return merge_files(paths, output, overwrite=overwrite)
    if len(paths) > 1:
        raise UsageError(f"{folders[0]} is a folder, which is merged alone: merge each folder into a file first")
    return merge_folder(open_folder(folders[0]), output, overwrite=overwrite)


def merge_folder(folder: Folder, output: str | Path, *, overwrite: bool = False) -> Written:
    """Join the shards of a finished folder into one `.arrow` or `.parquet` file, with their row errors beside it.

    It belongs to the same job as the folder: `fastvec embed` finds it finished. Record batches are copied as they are,
    and each is compared with its CRC32.
    Raises OutputError if the folder is not finished or is damaged, or `output` cannot be written; RefusedError if
    `output` exists, unless `overwrite`; DiskFullError. An old `output` stays as it was then.
    """
    target = require_local(output)
    if target.suffix not in (".arrow", ".parquet"):
        raise OutputError(f"{output} ends in neither .arrow nor .parquet, the formats that can be written")
    with translated_os_errors(target):
        manifest = require_manifest(folder)
        errors = read_errors(folder, manifest)
        require_replaceable(target, overwrite=overwrite)
        with replacing(target, around=partial(replacing_errors, target, errors)) as fd:
            if target.suffix == ".arrow":
                _write_arrow(fd, draft_path(target), folder, manifest)
            else:
                _write_parquet(fd, folder, manifest)
    return Written(output=str(output), rows=manifest.rows, size_bytes=target.stat().st_size)


def _whole_schema(output: Output) -> pa.Schema:
    """Return a shard's schema with the metadata of a file that has all rows."""
    metadata = {key: text for key, text in output.schema.metadata.items() if key != f"fastvec.{SHARD}".encode()}
    fingerprint = {name: value for name, value in output.fingerprint.items() if name != SHARD}
    return output.schema.with_metadata({**metadata, b"fastvec.fingerprint": json.dumps(fingerprint).encode()})


def _opened(folder: Folder, manifest: Manifest) -> Iterator[Output]:
    """Yield each shard, opened, of which only one is fetched at a time."""
    first = None
    for shard in manifest.shards:
        with folder.fetched(shard.file) as path:
            output = open_shard(path, manifest, shard)
            own = output.schema.remove_metadata(), output.own.get("ranges")
            if own != (first := first or own):
                first_file = manifest.shards[0].file
                raise OutputError(f"{folder.location}/{shard.file} has other columns or ranges than {first_file}")
            footer = check_footer(output)
            if not footer.passed:
                raise _damaged(folder, output, f"its footer: {footer.detail}")
            yield output


def _damaged(folder: Folder, output: Output, problem: str) -> OutputError:
    return OutputError(f"{folder.location}/{output.path.name} is damaged: {problem}; {REMEDY}")


def _write_arrow(fd: int, path: Path, folder: Folder, manifest: Manifest) -> None:
    schema, end, crc32, blocks = None, 0, 0, list[Block]()
    for output in _opened(folder, manifest):
        if schema is None:
            schema = _whole_schema(output)
            head = arrow_file.head(schema)
            write_at(fd, 0, head)
            end, crc32 = len(head), zlib.crc32(head)
        begin = len(arrow_file.head(output.schema))
        with output.path.open("rb", buffering=0) as file:
            own_crc32 = zlib.crc32(file.read(begin))
            for block in output.blocks:
                while piece := file.read(min(_READ_BYTES, block.end_offset - begin)):
                    own_crc32, crc32 = zlib.crc32(piece, own_crc32), zlib.crc32(piece, crc32)
                    write_at(fd, end, piece)
                    begin, end = begin + len(piece), end + len(piece)
                if own_crc32 != block.crc32:
                    raise _damaged(folder, output, "a record batch does not match its CRC32")
                blocks.append(Block(rows=block.rows, end_offset=end, crc32=crc32))
                own_crc32 = crc32 = 0
    metadata = arrow_file.footer_metadata(schema, manifest.counts, blocks, manifest.errors_crc32)
    write_at(fd, end, arrow_file.footer(path, schema, blocks, metadata))


def _write_parquet(fd: int, folder: Folder, manifest: Manifest) -> None:
    with folder.fetched(manifest.shards[0].file) as path:
        first = open_shard(path, manifest, manifest.shards[0])
        schema, columns = _whole_schema(first), first.vector_columns

    def batches() -> Iterator[pa.RecordBatch]:
        for output in _opened(folder, manifest):
            if (damaged := first_damaged(output.path, output.blocks)) is not None:
                raise _damaged(folder, output, f"batch {damaged} does not match its CRC32")
            yield from (batch.replace_schema_metadata(schema.metadata) for batch in output.stored_batches())

    parquet_file.write(fd, schema, batches(), columns, manifest.counts, manifest.errors_crc32)
