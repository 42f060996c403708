"""Outputs in shards of 60 rows, embedded by a given schedule."""

from collections.abc import Callable
from pathlib import Path

from fastvec.embedding.options import EmbedOptions
from fastvec.embedding.plan import plan_embed
from fastvec.jobs.sharded import Schedule, embed_shards
from fastvec.report import Progress, Report
from fastvec.settings import EncoderSettings
from fastvec.shards.folder import LocalFolder


def run_sharded(
    articles: Path,
    settings: EncoderSettings,
    folder: Path,
    schedule: Schedule,
    progress: Callable[[Progress], None] = lambda _: None,
    planned: Callable[[], object] = lambda: None,
) -> Report:
    """Embed the column `text`; `planned` is called when the job is planned and nothing is embedded yet."""
    plan = plan_embed([articles], f"{folder}/", settings=settings, options=EmbedOptions(column="text"))
    planned()
    return embed_shards(
        plan,
        LocalFolder(folder),
        schedule,
        part=None,
        shard_rows=60,
        batch_tokens=None,
        overwrite=False,
        progress=progress,
        stop_signal=lambda: None,
    )


def parts_of(folder: Path) -> dict[str, bytes]:
    """Return what every way to embed the same job must write: the shards and the manifest."""
    names = [*folder.glob("part-*"), folder / "_manifest.json"]
    return {path.name: path.read_bytes() for path in names}
