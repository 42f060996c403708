"""Check memory, the limit of open files, and how the Hugging Face hub is set up."""

import sys

from fastvec.doctor.report import Outcome, outcome
from fastvec.system.limits import available_bytes, memory_bytes

# a job with the bundled model peaks below 1.1 GB (docs/performance.md); a larger model's weights come on top of that
LEAST_MEMORY = 2 << 30
# a job on a CPU had at most 14 open, also with two processes and many shards; a GPU and a store's connections take more
LEAST_FILES, USUAL_FILES = 64, 1024


def check_memory() -> Outcome:
    free, total = available_bytes(), memory_bytes()
    if free is None or not total:
        return outcome("this system does not say how much there is")
    found = f"{free / 1e9:.1f} of {total / 1e9:.1f} GB free for this process"
    if free < LEAST_MEMORY:
        needed = f"a job takes about 1 GB beside the model's weights, expected {LEAST_MEMORY / 1e9:.1f} GB"
        return outcome(found, notes=[f"{needed}: end other programs, or raise the container's limit"])
    return outcome(found)


def check_open_files() -> Outcome:
    if sys.platform == "win32":
        return outcome("no limit on Windows")
    import resource

    limit, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit != resource.RLIM_INFINITY and limit < LEAST_FILES:
        remedy = f"ulimit -n {USUAL_FILES if hard == resource.RLIM_INFINITY else min(hard, USUAL_FILES)}"
        if hard != resource.RLIM_INFINITY and hard < LEAST_FILES:
            remedy = "let an administrator raise the limit of this user"
        return outcome(f"{limit:,} at most", notes=[f"expected {LEAST_FILES}: {remedy}"])
    return outcome("no limit" if limit == resource.RLIM_INFINITY else f"{limit:,} at most")


def check_hub() -> Outcome:
    from huggingface_hub import constants, get_token

    token = "a token" if get_token() else "no token"  # never which one
    if constants.is_offline_mode():
        return outcome(f"offline (HF_HUB_OFFLINE): models come from its cache; {token}")
    return outcome(f"models are downloaded when they are first used, which is not tried here; {token}")
