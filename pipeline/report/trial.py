"""An index for looking: as the settings of params.yaml have it, in a folder of its own. The pictures that it reads are
remembered, and `dvc repro index` reads them no more."""

from pathlib import Path

from pipeline.data.buckets import sizes
from pipeline.data.index import index
from pipeline.data.sets_file import find
from pipeline.data.sources import Source, open_source
from pipeline.data.summary import Summary
from pipeline.data.views import sizes_of, with_usual
from pipeline.params import Params


def write(path: str, settings: Params, out: Path) -> tuple[Source, Summary, list[str]]:
    """-> the data set at `path`, the index's summary, and what is to be said of the file of sets. However many pictures
    are rejected, it is written. Raises StageError, OSError."""
    chosen, columns = settings.index, settings.data
    source = open_source(path, chosen.caption_lines, columns.image_column, columns.caption_column)
    sets, notes = find(path, source, chosen.caption_variants, chosen.caption_seed)
    sets = with_usual(sets, tuple(chosen.further_resolutions))
    summary = index(
        source,
        out,
        sizes(chosen.resolution, chosen.bucket_step, chosen.buckets),
        chosen.min_side,
        chosen.max_enlargement,
        chosen.max_pixels,
        None,
        chosen.workers,
        chosen.min_bucket,
        sets,
        chosen.max_samples,
        chosen.alpha_mask,
        sizes_of(sets, chosen.bucket_step, chosen.buckets),
        chosen.neighbors,
        settings.cache_text.emphasis,
    )
    return source, summary, notes
