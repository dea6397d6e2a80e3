"""The page of a data set, which the index leaves: a function of the index's tables and of the pictures that it shows."""

import csv
import itertools
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import store
from pipeline.data.sources import Source
from pipeline.report import data, data_charts, html, thumbnails
from pipeline.report.pictures import Picture

_SHOWN = 48  # pictures of each kind
_PAIRS = 24  # of near copies


@dataclass(frozen=True)
class Shown:
    path: str
    text: str  # its caption, or why it is rejected
    about: str  # its size and bucket
    picture: Picture | None  # None: it cannot be decoded


def write(
    index: Path, source: Source, name: str, max_pixels: int, file: Path, measure: data.Lengths = data.letters
) -> None:
    """`index`: the folder with the index's other files. `name`: what the page calls the data set. Raises SourceError,
    OSError."""

    def open_file(of_index: str):
        return open(index / of_index, "rb")

    found = data.read(open_file, measure)
    charts = data_charts.of_data(found, "")
    used, marked, rejected, rare = _chosen(
        index / "images.parquet", {(b.width, b.height) for b in found.buckets if b.rare}
    )
    captions = data.captions(open_file, [row["image"] for row in used])

    def show(row: dict, text: str) -> Shown:
        size = f"{row['width']}×{row['height']}" if row["width"] else ""
        bucket = f" → {row['bucket_width']}×{row['bucket_height']}" if row["bucket_width"] else ""
        picture = thumbnails.thumbnail(source, row, max_pixels) if row["width"] else None
        marks = ", masked" * (row["mask"] is not None) + ", with a focus" * (row["focus"] is not None)
        return Shown(data.clip(row["path"]), text, size + bucket + marks, picture)

    page = html.render(
        "data_page.jinja",
        charts,
        name=data.clip(name),
        d=found,
        charts=charts,
        contact=[show(row, captions.get(row["image"], "")) for row in used],
        marked=[show(row, "") for row in marked],
        rejected=[show(row, row["rejected"]) for row in rejected],
        rare=[show(row, "") for row in rare],
        near=[(show(row, f"{bits} bits differ"), show(other, "")) for row, other, bits in _near(index)],
    )
    thumbnails.prune()
    with store.atomic(file) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _chosen(images: Path, rare: set[tuple[int, int]]) -> tuple[list[dict], list[dict], list[dict], list[dict]]:
    """Rows of images.parquet: used ones, used ones with a mask or a centre of interest, rejected ones and used ones of the
    `rare` buckets; the first _SHOWN of each by their hashes, so that another picture more changes few of them."""
    used, marked, rejected, others = [], [], [], []
    with pq.ParquetFile(images) as file:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group)
            is_used = pc.is_null(table["rejected"])
            rejected += table.filter(pc.invert(is_used)).slice(0, _SHOWN).to_pylist()
            table = table.filter(is_used)
            if len(used) < _SHOWN:
                used += _distinct(table)
            if len(marked) < _SHOWN:
                marked += _distinct(table.filter(pc.or_(pc.is_valid(table["mask"]), pc.is_valid(table["focus"]))))
            sizes = zip(table["bucket_width"].to_pylist(), table["bucket_height"].to_pylist()) if rare else ()
            places = [place for place, size in enumerate(sizes) if size in rare][:_SHOWN]
            others += table.take(places).to_pylist() if places else []
    return used[:_SHOWN], marked[:_SHOWN], rejected[:_SHOWN], others[:_SHOWN]


def _distinct(table: pa.Table) -> list[dict]:
    """Some of the first rows, of copies the first."""
    distinct = {row["image"]: row for row in table.slice(0, 20 * _SHOWN).to_pylist()[::-1]}
    return list(distinct.values())[::-1][:_SHOWN]


def _near(index: Path) -> list[tuple[dict, dict, int]]:
    """The first _PAIRS rows of near.csv: (row of images.parquet, that of the picture that it looks like, bits)."""
    with open(index / "near.csv", encoding="utf-8", newline="") as file:
        listed = list(itertools.islice(csv.DictReader(file), _PAIRS))
    wanted = pa.array({name for row in listed for name in (row["path"], row["near_to"])}, pa.string())
    rows: dict[str, dict] = {}
    with pq.ParquetFile(index / "images.parquet") as table:
        for group in range(table.num_row_groups if listed else 0):
            found = table.read_row_group(group)
            rows |= {row["path"]: row for row in found.filter(pc.is_in(found["path"], wanted)).to_pylist()}
    return [(rows[row["path"]], rows[row["near_to"]], int(row["distance"])) for row in listed]
