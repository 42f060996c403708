"""What all shards of a job share, in a file of its folder."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from fastvec.errors import OutputError
from fastvec.fingerprint import Json
from fastvec.shards.folder import Folder
from fastvec.shards.manifest import MANIFEST
from fastvec.system.sealed import read_sealed, sealed

RECORD = "_job.json"
_FORMAT = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """The job of a folder, and what its first worker decided.

    `id` is in the names of receipts and work, so that what is left of another job, or of an earlier time that this one
    was begun, is not taken for this one's.
    """

    id: str
    fingerprint: Mapping[str, Json]
    limits: Mapping[str, int]  # of chunks, and of shards
    choices: Mapping[str, Json] | None  # what CPUs compute by
    ranges: Sequence[float] | None  # [D], of int8 vectors

    @property
    def shard_rows(self) -> int:
        return self.limits["shard_rows"]

    def write(self, folder: Folder) -> bool:
        """Publish the record; returns False if there is one already."""
        return folder.create(RECORD, sealed({"fastvec_job": _FORMAT, **asdict(self)}))


def read_record(folder: Folder) -> Record | None:
    """Return the record of the folder's job; None if none was begun. Raises OutputError if it is damaged."""
    try:
        fields = read_sealed(folder.read(RECORD))
        if fields.pop("fastvec_job") == _FORMAT:
            return Record(**fields)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise OutputError(
            f"{folder.location}/{RECORD} is damaged: delete it if the folder has a {MANIFEST}, or else the folder"
        ) from error
    raise OutputError(f"{folder.location} is from another version of fastvec: finish it with that")
