"""`fastvec verify` of a folder: the manifest, each file that it names, and that together they are the whole output."""

from collections.abc import Collection, Iterator
from pathlib import Path

from fastvec.errors import OutputError
from fastvec.fingerprint import Json, fingerprint_differences
from fastvec.output.reader import SHARD, Output, read_output
from fastvec.output.verify import Check, Verification, check, verify
from fastvec.shards.folder import Folder
from fastvec.shards.manifest import MANIFEST, Manifest, Shard, read_errors, read_manifest
from fastvec.shards.receipts import RECEIPTS, Receipts, finished_shards, is_part, receipt_name
from fastvec.shards.record import RECORD, read_record

REMEDY = "delete it, and run the same fastvec embed again to make it anew"
_NOT_NEEDED = "it is only needed to make lost shards again"


def verify_folder(folder: Folder) -> Verification:
    """Check every promise about an output in shards: every byte of its files, and their order.

    A damaged output raises no error; it gives failed checks, which name the file.
    """
    try:
        manifest = require_manifest(folder)
        checks = [check("manifest", None, f"{len(manifest.shards):,} shards, {manifest.rows:,} rows")]
        names = folder.names()
        checks += [_check_ranges(manifest), *_check_files(names, manifest), _check_errors(folder, manifest)]
        checks += _check_job(folder, manifest)
        found = [shard for shard in manifest.shards if shard.file in names]
        problems = [problem for shard in found for problem in _problems(folder, manifest, shard)]
        checks += problems or [check("shards", None, "all pass every check of a file")]
    except (OutputError, OSError) as error:
        checks = [check("manifest", str(error), "")]
    return Verification(path=folder.location, checks=tuple(checks))


def require_manifest(folder: Folder) -> Manifest:
    """Return the manifest of a finished output. Raises OutputError if there is none, or it is damaged."""
    manifest = read_manifest(folder)
    if manifest is not None:
        return manifest
    if RECORD in folder.names():
        raise OutputError(f"{folder.location} is unfinished: run the same fastvec embed again to resume it")
    raise OutputError(f"{folder.location} has no {MANIFEST}, so it is no output in shards")


def open_shard(path: Path, manifest: Manifest, shard: Shard) -> Output:
    """Open the file of a shard, and compare it with the manifest by its size, checksum, rows and job.

    Raises OutputError.
    """
    output = read_output(path)
    own: dict[str, Json] = {
        "first_row": output.rows_of_inputs.start,
        "input_rows": len(output.rows_of_inputs),
        "rows": output.rows,
    }
    own |= {"bytes": path.stat().st_size, "checksum": output.promises.get("fastvec.checksum", "")}
    listed = {name: getattr(shard, name) for name in own}
    found = fingerprint_differences(listed, own)
    found += fingerprint_differences(
        {**manifest.fingerprint, SHARD: [shard.rows_of_inputs.start, shard.rows_of_inputs.stop]}, output.fingerprint
    )
    if found:
        raise OutputError(f"{path.name} is not the shard that {MANIFEST} lists: {found[0]}")
    return output


def _problems(folder: Folder, manifest: Manifest, shard: Shard) -> Iterator[Check]:
    """Yield the failed checks of a shard's file."""
    local = shard.file
    try:
        with folder.fetched(shard.file) as path:
            local = str(path)
            open_shard(path, manifest, shard)
            checks = verify(path).checks
    except (OutputError, OSError) as error:
        problem = str(error).replace(local, shard.file).removeprefix(f"{shard.file} ")  # it may be a copy
        yield check(shard.file, f"{problem}; {REMEDY}", "")
    else:
        yield from (check(shard.file, f"{one.name}: {one.detail}; {REMEDY}", "") for one in checks if not one.passed)


def _check_job(folder: Folder, manifest: Manifest) -> Iterator[Check]:
    """Yield the failed checks of the job's record and receipts, by which a lost shard is made again.

    Without them, an output is whole.
    """
    try:
        record = read_record(folder)
    except OutputError:
        yield check(RECORD, f"is damaged: delete it; {_NOT_NEEDED}", "")
        return
    if record is None:
        return
    if fingerprint_differences(manifest.fingerprint, record.fingerprint):
        yield check(RECORD, f"is that of another job than {MANIFEST}: delete it; {_NOT_NEEDED}", "")
        return
    receipts = Receipts(folder, record.id, len(manifest.shards))
    try:
        receipts.read(sorted(finished_shards(folder, record.id) & set(range(len(manifest.shards)))))
    except OutputError as error:
        yield check("receipts", f"{error}; {_NOT_NEEDED}", "")
        return
    for number, shard in enumerate(manifest.shards):
        own = receipts.rows[number], receipts.bytes[number], f"{receipts.checksums[number]:08x}"
        if receipts.has[number] and own != (shard.rows, shard.bytes, shard.checksum):
            name = receipt_name(record.id, number)
            yield check("receipts", f"{name} is not that of {shard.file}: delete it; {_NOT_NEEDED}", "")
            return
    if receipts.has.all() and dict(receipts.counts) != dict(manifest.counts):
        yield check("receipts", f"their counts are not those of {MANIFEST}: delete {RECEIPTS}; {_NOT_NEEDED}", "")


def _check_ranges(manifest: Manifest) -> Check:
    row, problem = 0, None
    for shard in manifest.shards:
        if shard.first_row != row and problem is None:
            problem = f"{shard.file} begins with row {shard.first_row:,}, expected {row:,}"
        row = shard.rows_of_inputs.stop
    if problem is None and row != manifest.fingerprint["rows"]:
        problem = f"the last shard ends with row {row - 1:,}, and the job has {manifest.fingerprint['rows']} rows"
    return check("ranges", problem, f"rows 0 to {row - 1:,}, without a gap" if row else "no rows")


def _check_files(names: Collection[str], manifest: Manifest) -> Iterator[Check]:
    listed, found = {shard.file for shard in manifest.shards}, {name for name in names if is_part(name)}
    wrong = [f"{name} is missing: run the same fastvec embed again" for name in sorted(listed - found)]
    wrong += [f"{name} is not in {MANIFEST}, but tools that read the folder would read it" for name in found - listed]
    yield check("files", wrong[0] if wrong else None, "those of the manifest")


def _check_errors(folder: Folder, manifest: Manifest) -> Check:
    problem = None
    try:
        read_errors(folder, manifest)
    except OutputError as error:
        problem = f"{error}; run the same fastvec embed again to make it anew"
    return check("row errors", problem, f"{manifest.counts.get('errors', 0):,}")
