"""Downloads repositories of the Hugging Face hub into its cache, with errors turned into a phrase for the user."""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path


class HubError(Exception):
    """Why a repository cannot be had. `absent` says that it does not exist, as far as is known."""

    def __init__(self, problem: str, *, absent: bool = False) -> None:
        super().__init__(problem)
        self.absent = absent


def snapshot(
    repository: str, *, kind: str, revision: str | None, wanted: Sequence[str], unwanted: Sequence[str] = ()
) -> Path:
    """Return the folder of a repository in the hub's cache; its name is the commit.

    The cache provides the files it has; the rest of those that match `wanted` and not `unwanted` is downloaded. `kind`
    is `model` or `dataset`. Raises HubError.
    """
    from huggingface_hub import errors, snapshot_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if not (sys.stderr.isatty() and logging.getLogger("fastvec").isEnabledFor(logging.WARNING)):
        disable_progress_bars()
    try:
        return Path(
            snapshot_download(
                repository,
                repo_type=kind,
                revision=revision,
                allow_patterns=list(wanted),
                ignore_patterns=list(unwanted),
            )
        )
    except errors.HFValidationError:
        raise HubError("not a valid hub id (org/name)", absent=True) from None
    except errors.GatedRepoError:
        problem = "gated on the hub: accept its terms on its page there, then log in with `hf auth login`"
        raise HubError(problem) from None
    except errors.RevisionNotFoundError:
        raise HubError("the hub has no such revision: check its spelling, or leave it out") from None
    except errors.RepositoryNotFoundError:
        problem = "no such repository on the hub; if it is private, log in with `hf auth login`"
        raise HubError(problem, absent=True) from None
    except errors.LocalEntryNotFoundError:
        problem = "the hub's cache has no complete copy, and the hub cannot be reached"
        raise HubError(problem, absent=True) from None
    except Exception as error:  # errors of whichever HTTP library the hub's client uses
        problem = f"the download failed ({type(error).__name__}): run the command again to resume it"
        raise HubError(problem) from None
