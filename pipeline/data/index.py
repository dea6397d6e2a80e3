"""A data set → images.parquet, captions.parquet, samples.parquet, rejected.csv, unmatched.csv, copies.csv and near.csv: what is
there, what can be used, in which bucket and how often, and what was left out."""

import csv
import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import store
from pipeline.data import near, tables
from pipeline.data.buckets import choose, common
from pipeline.data.examine import Examiner
from pipeline.data.geometry import enlargement
from pipeline.data.part import Lost, Part, SourceError, Unmatched, choose_pictures, some
from pipeline.data.sets import WHOLE, Members, Set, check, members, multipliers
from pipeline.data.sources import Source
from pipeline.stage import StageError


@dataclass
class Summary:
    files: int = 0
    used: int = 0
    read: int = 0  # files that the memo did not know
    reasons: Counter = field(default_factory=Counter)  # kind of rejection → files
    buckets: Counter = field(default_factory=Counter)  # (width, height) → files
    captions: int = 0  # distinct ones of each distinct picture that is used
    without_caption: int = 0  # distinct pictures
    profiles_ignored: int = 0
    enlarged: int = 0  # files that are smaller than their bucket
    most_enlarged: float = 1.0  # times, of those
    places: list[str] = field(default_factory=list)  # the folder or files that were read
    others: list[str] = field(default_factory=list)  # files that are neither pictures nor captions
    lost: list[Lost] = field(default_factory=list)  # pictures that could not be opened; counted in files and reasons
    unmatched: list[Unmatched] = field(default_factory=list)
    members: Counter = field(default_factory=Counter)  # number of a set → files of it that are used
    times: Counter = field(default_factory=Counter)  # number of a set → the sum of their Part.times
    copies: list[str] = field(default_factory=list)  # "a.png = b.png"
    copied: int = 0  # files whose content another file has too, that one not counted
    near: list[tuple[str, str, int]] = field(default_factory=list)  # rows of near.csv
    samples: int = 0  # pictures, each in each of its sets
    often: float = 0.0  # samples of an epoch
    sets: list[str] = field(default_factory=list)  # what each is

    def __str__(self) -> str:
        lines = [f"index: {self.used:,} of {self.files:,} pictures are used"]
        lines += [f"index: {self.read:,} pictures were read, the others have not changed"]
        lines += [f"index:   rejected, {kind}: {count:,}" for kind, count in sorted(self.reasons.items())]
        lines += [
            f"index:   bucket {width}×{height}: {count:,}" for (width, height), count in sorted(self.buckets.items())
        ]
        lines += [
            f"index: {self.captions:,} captions; {self.without_caption:,} pictures have none and get the empty one"
        ]
        lines += [f"index: {line}" for line in self.sets]
        if self.copied:
            lines.append(
                f"index: {self.copied:,} files are copies (copies.csv): each counts, and their pictures are encoded "
                f"once: {some(self.copies)}"
            )
        if self.near:
            pairs = [f"{first} ~ {path}" for path, first, _ in self.near]
            lines.append(
                f"index: {len(self.near):,} pictures look like another one (near.csv) and are used all the same: {some(pairs)}"
            )
        if self.sets or self.often != self.samples:
            lines.append(f"index: {self.samples:,} samples, {self.often:,.10g} an epoch")
        if self.enlarged:
            lines.append(
                f"index: {self.enlarged:,} of the used pictures are enlarged, {_times(self.most_enlarged)} times at most"
            )
        if self.profiles_ignored:
            lines.append(
                f"index: {self.profiles_ignored:,} pictures have a broken colour profile and are taken as sRGB"
            )
        damages = [f"{lost.path}: {lost.reason}" for lost in self.lost if _kind(lost.reason) == "damaged"]
        lines += [f"index: {damage}" for damage in damages]
        groups = defaultdict(list)
        for path, what, reason in sorted(self.unmatched):
            groups[what, _kind(reason)].append(path)
        lines += [
            f"index: {len(paths):,} left alone (unmatched.csv), {what}, {reason}: {some(paths)}"
            for (what, reason), paths in sorted(groups.items())
        ]
        if self.others:
            lines.append(f"index: {len(self.others):,} other files are left alone: {some(self.others)}")
        return "\n".join(lines)


def index(
    source: Source,
    out: Path,
    sizes: list[tuple[int, int]],
    min_side: int,
    max_enlargement: float | None,
    max_pixels: int,
    max_rejected: float | None,
    workers: int,
    min_bucket: int = 1,
    sets: tuple[Set, ...] = WHOLE,
    max_samples: int | None = None,
) -> Summary:
    """Write the seven files into `out`. `sizes` are buckets from the tallest to the widest, as buckets.buckets gives
    them. A picture that has to be enlarged more than `max_enlargement` times to cover its bucket is rejected; None is no
    bound. Pictures of buckets with fewer than `min_bucket` go to the nearest bucket that has more: this changes no
    rejection. Of more than `max_samples` pictures so many are taken, chosen by their names alone.

    Raises StageError, before it writes, when more than the share `max_rejected` of the pictures is rejected or none is
    left (None: any share may be, and all); SourceError, CaptionError, OSError."""
    try:
        with Examiner(source, max_pixels, workers, source.part_count) as examiner:
            kept, read = sizes, 0
            highest = _highest(source, sets, max_samples) if max_samples else None
            if min_bucket > 1:
                parts = ((part, *examiner.examine(part)) for part in _parts(source, sets, highest))
                kept, read = _common(parts, sizes, min_side, max_enlargement, min_bucket)
            parts = ((part, *examiner.examine(part)) for part in _parts(source, sets, highest))  # again: by the memo
            summary = tabulate(parts, out, sizes, min_side, max_enlargement, max_rejected, kept, sets)
            summary.read += read
            return summary
    except (FileNotFoundError, NotADirectoryError) as error:
        if not Path(str(error.filename)).is_relative_to(source.root):
            raise
        raise SourceError(
            f"{error.filename} is gone: the pictures were moved or removed while index ran; run `dvc repro` again"
        ) from None


def tabulate(
    parts: Iterable[tuple[Part, pa.Table, int]],
    out: Path,
    sizes: list[tuple[int, int]],
    min_side: int,
    max_enlargement: float | None,
    max_rejected: float | None,
    kept: list[tuple[int, int]] | None = None,
    sets: tuple[Set, ...] = WHOLE,
) -> Summary:
    """The part of `index` that opens no picture. Each part comes with its memo.FOUND table and the number of pictures
    read; `kept` are the sizes that pictures may be brought to, default all. Memory does not grow with the number of
    rows, apart from the list of rejected ones."""
    summary, rejected = Summary(), []
    images, samples, texts = (tables.Rows(schema) for schema in (tables.IMAGES, tables.MEMBERS, tables.TEXTS))
    for part, found, read in parts:
        rows = _rows(part, found, sizes, min_side, max_enlargement, kept or sizes)
        images.add(rows)
        of_part = members(part, sets)
        is_used = pc.is_null(rows["rejected"]).to_numpy()
        mine = _members(part, of_part, rows, is_used)
        samples.add(mine)
        texts.add(_texts(of_part, rows, is_used))
        _count(summary, part, found, rows, read)
        for item in mine.group_by("set").aggregate([([], "count_all"), ("times", "sum")]).to_pylist():
            summary.members[item["set"]] += item["count_all"]
            summary.times[item["set"]] += item["times_sum"]
        bad = rows.filter(pc.is_valid(rows["rejected"]))
        rejected += zip(bad["path"].to_pylist(), bad["rejected"].to_pylist())
        rejected += [(lost.path, lost.reason) for lost in part.lost]
    _check(summary, rejected, max_rejected)
    settings = _settings(summary, sets)
    out.mkdir(parents=True, exist_ok=True)
    with (
        store.atomic(out / "images.parquet") as images_file,
        store.atomic(out / "captions.parquet") as captions_file,
        store.atomic(out / "samples.parquet") as samples_file,
        store.atomic(out / "rejected.csv") as rejected_file,
        store.atomic(out / "unmatched.csv") as unmatched_file,
        store.atomic(out / "copies.csv") as copies_file,
        store.atomic(out / "near.csv") as near_file,
    ):
        copies = tables.write_images(images, images_file)
        tables.write_copies(copies, copies_file)
        summary.near = near.write(images_file, near_file)
        written = tables.write_captions(samples, texts, captions_file, samples_file, settings)
        tables.write_unmatched(summary.unmatched, pa.chunked_array(written.bare), unmatched_file)
        with open(rejected_file, "w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([("path", "reason"), *sorted(rejected)])
    summary.captions, summary.without_caption = written.given, written.empty
    summary.samples, summary.often = written.samples, written.often
    summary.copied = len(copies)
    summary.copies = [f"{row['copy_of']} = {row['path']}" for row in copies.slice(0, 100).to_pylist()]
    return summary


def _parts(source: Source, sets: tuple[Set, ...], highest: int | None) -> Iterator[Part]:
    """The parts, with the pictures that are in a set and whose number by name is not above `highest`."""
    for part in source.parts():
        if sets != WHOLE:
            inside = np.zeros(len(part.paths), bool)
            inside[members(part, sets).picture] = True
            alone = part.paths.filter(pa.array(~inside)).to_pylist()
            unmatched = [*part.unmatched, *(Unmatched(path, "picture", "in no set") for path in alone)]
            part = replace(choose_pictures(part, inside), unmatched=unmatched)
        if highest is not None:
            part = choose_pictures(part, _numbers(part) <= highest)
        yield part


def _highest(source: Source, sets: tuple[Set, ...], count: int) -> int | None:
    """Of more than `count` pictures the highest number by name that is taken."""
    numbers = np.concatenate([np.empty(0, np.uint64), *(_numbers(part) for part in _parts(source, sets, None))])
    return int(np.partition(numbers, count - 1)[count - 1]) if len(numbers) > count else None


def _numbers(part: Part) -> np.ndarray:
    """(n,) uint64 of the pictures' names: in no order, and the same whatever other pictures there are."""
    digests = [hashlib.blake2b(path.encode(), digest_size=8).digest() for path in part.paths.to_pylist()]
    return np.frombuffer(b"".join(digests), "<u8")


def _settings(summary: Summary, sets: tuple[Set, ...]) -> list[dict]:
    """Of each set what tables.write_captions takes. Raises SetsError."""
    check(sets, summary.members)
    often = multipliers(sets, [summary.times[number] for number in range(len(sets))])
    if sets != WHOLE:
        summary.sets = [
            f"set {one.name}: {summary.members[number]:,} pictures, {summary.times[number] * often[number]:,.10g} "
            f"samples an epoch{' (class pictures)' if one.class_images else ''}"
            for number, one in enumerate(sets)
        ]
    return [
        {
            "name": one.name,
            "repeats": times,
            "loss_weight": one.loss_weight,
            "caption_dropout": one.caption_dropout,
            "class_images": one.class_images,
        }
        for one, times in zip(sets, often)
    ]


def _common(
    parts: Iterable[tuple[Part, pa.Table, int]],
    sizes: list[tuple[int, int]],
    min_side: int,
    max_enlargement: float | None,
    least: int,
) -> tuple[list[tuple[int, int]], int]:
    """buckets.common of the pictures that are used, and the number of pictures read."""
    counts, read = Counter(), 0
    for part, found, new in parts:
        read += new
        rows = _rows(part, found, sizes, min_side, max_enlargement, sizes)
        used = rows.filter(pc.is_null(rows["rejected"]))
        for item in used.group_by(["width", "height"]).aggregate([([], "count_all")]).to_pylist():
            counts[item["width"], item["height"]] += item["count_all"]
    if not counts:
        return sizes, read
    widths, heights = np.array(list(counts)).T
    return common(widths, heights, np.array(list(counts.values())), sizes, least), read


def _rows(
    part: Part,
    found: pa.Table,
    sizes: list[tuple[int, int]],
    min_side: int,
    max_enlargement: float | None,
    kept: list[tuple[int, int]],
) -> pa.Table:
    """The rows of tables.IMAGES of a part. What is too small is judged by the nearest of all `sizes`."""
    chosen, reasons = reject(found, sizes, min_side, max_enlargement)
    reasons = pa.array(reasons, pa.string())
    if kept != sizes:
        sides = (pc.fill_null(found[name], 1).to_numpy() for name in ("width", "height"))
        chosen = np.array(kept, np.int32)[choose(*sides, kept)]
    is_used = pc.is_null(reasons)
    null = pa.scalar(None, pa.int32())
    bucket_width, bucket_height = (pc.if_else(is_used, pa.array(side), null) for side in chosen.T.copy())
    columns = [found["image"], part.paths, found["width"], found["height"], bucket_width, bucket_height, reasons]
    columns.append(found["phash"])
    return pa.Table.from_arrays(
        [pa.chunked_array([c]) if isinstance(c, pa.Array) else c for c in columns], schema=tables.IMAGES
    )


def reject(
    found: pa.Table, sizes: list[tuple[int, int]], min_side: int, max_enlargement: float | None
) -> tuple[np.ndarray, np.ndarray]:
    """The bucket of each picture of a memo.FOUND table, (n, 2) int32, and why it is not used, (n,) text or None."""
    width, height = (pc.fill_null(found[name], 1).to_numpy() for name in ("width", "height"))
    chosen = np.array(sizes, np.int32)[choose(width, height, sizes)]
    reasons = found["rejected"].to_numpy(zero_copy_only=False)
    is_decoded = found["width"].is_valid().to_numpy()
    is_small = is_decoded & (np.minimum(width, height) < min_side)
    times = enlargement(width, height, *chosen.T)
    is_blown_up = is_decoded & ~is_small & (times > (np.inf if max_enlargement is None else max_enlargement))
    for row in np.flatnonzero(is_small):
        reasons[row] = f"too small: {width[row]}×{height[row]}, a side is under {min_side}"
    for row in np.flatnonzero(is_blown_up):
        reasons[row] = (
            f"too small: {width[row]}×{height[row]} would be enlarged {_times(times[row])} times to "
            f"{chosen[row][0]}×{chosen[row][1]}, above {max_enlargement:g}"
        )
    return chosen, reasons


def _times(enlargement: float) -> str:
    """Two places, rounded up, so that what is above a bound is not shown as the bound."""
    return f"{np.ceil(enlargement * 100 - 1e-6) / 100:g}"


def _members(part: Part, of_part: Members, rows: pa.Table, is_used: np.ndarray) -> pa.Table:
    """The rows of tables.MEMBERS of a part: its samples whose pictures are used."""
    used = is_used[of_part.picture]
    picture = pa.array(of_part.picture[used])
    columns = [rows["image"].combine_chunks().take(picture), pa.array(of_part.number[used])]
    columns += [part.paths.take(picture), pa.array(part.times[of_part.picture[used]])]
    return pa.Table.from_arrays(columns, schema=tables.MEMBERS)


def _texts(of_part: Members, rows: pa.Table, is_used: np.ndarray) -> pa.Table:
    """The rows of tables.TEXTS of a part: the captions of samples whose pictures are used."""
    used = is_used[of_part.caption_picture]
    picture, mask = pa.array(of_part.caption_picture[used]), pa.array(used)
    columns = [rows["image"].combine_chunks().take(picture), pa.array(of_part.caption_number[used])]
    columns += [of_part.texts.filter(mask), of_part.texts_2.filter(mask), pa.array(of_part.chances[used], pa.float32())]
    return pa.Table.from_arrays(columns, schema=tables.TEXTS)


def _count(summary: Summary, part: Part, found: pa.Table, rows: pa.Table, read: int) -> None:
    summary.files += len(rows) + sum(lost.count for lost in part.lost)
    summary.read += read
    summary.used += rows["rejected"].null_count
    summary.profiles_ignored += pc.sum(found["profile_ignored"]).as_py() or 0
    summary.places.append(part.place)
    summary.others += part.others
    used = rows.filter(pc.is_null(rows["rejected"]))
    times = enlargement(*(used[name].to_numpy() for name in ("width", "height", "bucket_width", "bucket_height")))
    summary.enlarged += int((times > 1).sum())
    summary.most_enlarged = max(summary.most_enlarged, times.max(initial=1.0))
    summary.lost += part.lost
    summary.unmatched += part.unmatched
    for lost in part.lost:
        summary.reasons[_kind(lost.reason)] += lost.count
    kinds = pc.list_element(pc.split_pattern(pc.drop_null(rows["rejected"]), ":", max_splits=1), 0)
    for item in pc.value_counts(kinds).to_pylist():
        summary.reasons[item["values"]] += item["counts"]
    for item in rows.group_by(["bucket_width", "bucket_height"]).aggregate([([], "count_all")]).to_pylist():
        if item["bucket_width"] is not None:
            summary.buckets[item["bucket_width"], item["bucket_height"]] += item["count_all"]


def _check(summary: Summary, rejected: list[tuple[str, str]], max_rejected: float | None) -> None:
    if not summary.files:
        raise StageError(f"data.images holds no pictures: {some(summary.places)}")
    if max_rejected is None:
        return
    # Damages of whole tars come first: each stands for many pictures.
    rejected = sorted(rejected, key=lambda row: (_kind(row[1]) != "damaged", row))
    few = "\n".join(f"  {path}: {reason}" for path, reason in rejected[:20])
    reasons = ", ".join(f"{count:,} {kind}" for kind, count in sorted(summary.reasons.items()))
    small = "too small" in summary.reasons
    bounds = "; index.min_side and index.max_enlargement, with index.resolution, say what is too small" if small else ""
    if not summary.used:
        raise StageError(f"all {summary.files:,} pictures are rejected ({reasons}){bounds}:\n{few}")
    count = summary.reasons.total()
    if count > max_rejected * summary.files:
        raise StageError(
            f"{count:,} of {summary.files:,} pictures are rejected ({reasons}), more than the share "
            f"index.max_rejected = {max_rejected}; mend or remove them, or raise the share{bounds} (`python -m pipeline "
            f"data report` shows them):\n{few}"
        )


def _kind(reason: str) -> str:
    return reason.partition(":")[0]
