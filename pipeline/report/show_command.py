"""Show the captions that pictures will be trained with, as their sets and variants make them, and what encoding them
takes. All pictures are read, those that are known from an earlier time excepted, as `dvc repro index` does: the captions
of those that it rejects, or leaves out by index.max_samples, are not encoded."""

import argparse
import contextlib
import json
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import cli, params
from pipeline.cache.building import captions as rows_of
from pipeline.cache.building import previews
from pipeline.data import captions
from pipeline.data.sources import Source
from pipeline.data.summary import counted
from pipeline.models.config import CONFIGS
from pipeline.report import trial
from pipeline.stage import printable


def main(arguments: list[str] | None = None) -> None:
    made = cli.parser("data show", __doc__)
    made.add_argument("path", nargs="?", help="a folder, .tar or .parquet; default: data.images of params.yaml")
    made.add_argument("--count", type=cli.count(least=0), default=5, metavar="N", help="pictures to show (default 5)")
    cli.add_json(made)
    cli.run(made, _run, arguments)


def _run(given: argparse.Namespace) -> None:
    settings = params.load()
    found = show(given.path, settings, given.count)
    if given.json:
        cli.print_json(found)
        return
    for one in found["shown"]:
        print(printable(f"{one['path']}{one['set'] and ', set ' + one['set']}"))
        for caption in one["captions"]:
            second = f"  | {caption['text_2']}" if caption["text_2"] else ""
            print(printable(f"  {caption['share']:5.1%}  {caption['text'] or '(no caption)'}{second}"))
    print(
        f"{found['pictures']:,} of {counted(found['files'], 'picture')} used, "
        f"{counted(found['given'], 'distinct caption')} as given"
    )
    if settings.train.reads_captions:
        print(
            "cache_text will have no rows: training reads the captions themselves (train.source, train.text_encoders)"
        )
        return
    each = found["bytes"] // found["rows"]
    print(f"cache_text will have {found['rows']:,} rows of {each:,} bytes: {found['bytes'] / 1e9:.3f} GB")


def show(path: str | None, settings: params.Params, count: int) -> dict:
    """The captions of `count` pictures that are used, spread evenly, and how many rows and bytes the text cache of all
    will have. Raises StageError, OSError."""
    path = path or settings.data.images
    with tempfile.TemporaryDirectory() as folder:
        with contextlib.redirect_stdout(sys.stderr):  # what it says of its memo is no JSON
            source, summary, notes = trial.write(path, settings, Path(folder))
        images = pq.read_table(Path(folder, "images.parquet"), columns=["image", "path", "rejected"])
        samples = pq.read_table(Path(folder, "samples.parquet"), columns=["image", "set", "caption", "chance"])
        texts = pq.read_table(Path(folder, "captions.parquet"))
        further = ["", *previews.texts(settings.train.previews)]
        names, _ = rows_of.distinct(Path(folder, "captions.parquet"), further, settings.cache_text.emphasis)
    used = images.filter(pc.is_null(images["rejected"])).sort_by("path")
    places = np.unique(np.linspace(0, max(len(used) - 1, 0), min(count, len(used))).astype(int))
    rows = 0 if settings.train.reads_captions else len(names)
    return {
        "path": path,
        "files": summary.files,
        "pictures": len(used),
        "given": _given(source, used["path"]),
        "rows": rows,
        "bytes": rows * CONFIGS[settings.model.config].text_bytes(settings.cache_text.chunks),
        "shown": _shown(used.take(pa.array(places)), samples, texts),
        "notes": notes,
    }


def _given(source: Source, used: pa.ChunkedArray) -> int:
    """How many distinct captions the files of the pictures `used` hold."""
    found = set()
    for part in source.parts():
        mine = pc.is_in(part.paths, value_set=used).to_numpy(zero_copy_only=False)[part.caption_rows]
        columns = (column.filter(pa.array(mine)).to_pylist() for column in (part.texts, part.texts_2))
        found.update(map(captions.name, *columns))
    return len(found)


def _shown(chosen: pa.Table, samples: pa.Table, texts: pa.Table) -> list[dict]:
    """Of each picture in `chosen`, in each of its sets, the captions and their shares."""
    sets = json.loads(samples.schema.metadata[b"sets"])
    of_chosen = (table.filter(pc.is_in(table["image"], value_set=chosen["image"])) for table in (samples, texts))
    samples, texts = (table.to_pylist() for table in of_chosen)
    written = {row["caption"]: {"text": row["text"], "text_2": row["text_2"]} for row in texts}
    of_image = defaultdict(lambda: defaultdict(list))
    for row in samples:
        of_image[row["image"]][row["set"]].append((row["chance"], written[row["caption"]]))
    return [
        {
            "path": path,
            "set": sets[number],
            "captions": [{"share": chance / sum(c for c, _ in found), **caption} for chance, caption in found],
        }
        for image, path in zip(chosen["image"].to_pylist(), chosen["path"].to_pylist())
        for number, found in of_image[image].items()
    ]
