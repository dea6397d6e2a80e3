"""The data set and its index as params.yaml has them, for the stage and for the tools that look before it."""

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.data.buckets import sizes
from pipeline.data.index import index
from pipeline.data.sets import Set
from pipeline.data.sets_file import find
from pipeline.data.sources import Source, open_source
from pipeline.data.summary import Summary
from pipeline.data.views import sizes_of, with_usual
from pipeline.params import Params

if TYPE_CHECKING:
    from pipeline.workers.tasks import Tasks


def opened(path: str, params: Params) -> tuple[Source, tuple[Set, ...], list[str]]:
    """-> the data set at `path`, its sets, and what is to be said of the file of sets. Raises StageError, OSError."""
    source = open_source(path, params.index.caption_lines, params.data.image_column, params.data.caption_column)
    sets, notes = find(path, source, params.index.caption_variants, params.index.caption_seed)
    return source, with_usual(sets, tuple(params.index.further_resolutions)), notes


def indexed(
    source: Source,
    sets: tuple[Set, ...],
    params: Params,
    out: Path,
    max_rejected: float | None,
    tasks: "Tasks | None" = None,
) -> Summary:
    """Write the index into `out`: data.index.index, with its other arguments by params.yaml."""
    return index(
        source,
        out,
        sizes(params.index.resolution, params.index.bucket_step, params.index.buckets),
        params.index.min_side,
        params.index.max_enlargement,
        params.index.max_pixels,
        max_rejected,
        params.index.workers,
        params.index.min_bucket,
        sets,
        params.index.max_samples,
        params.index.alpha_mask,
        sizes_of(sets, params.index.bucket_step, params.index.buckets),
        params.index.neighbors,
        params.cache_text.emphasis,
        tasks,
    )
