"""An index for looking: as the settings of params.yaml have it, in a folder of its own. The pictures that it reads are
remembered, and `dvc repro index` reads them no more."""

from pathlib import Path

from pipeline.data.by_params import indexed, opened
from pipeline.data.sources import Source
from pipeline.data.summary import Summary
from pipeline.params import Params


def write(path: str, settings: Params, out: Path) -> tuple[Source, Summary, list[str]]:
    """-> the data set at `path`, the index's summary, and what is to be said of the file of sets. However many pictures
    are rejected, it is written. Raises StageError, OSError."""
    source, sets, notes = opened(path, settings)
    return source, indexed(source, sets, settings, out, max_rejected=None), notes
