"""A data set → images.parquet, captions.parquet, samples.parquet, rejected.csv, unmatched.csv, copies.csv and near.csv: what is
there, what can be used, in which bucket and how often, and what was left out."""

import csv
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import progress, store
from pipeline.data import fit, focus, masks, near, tables
from pipeline.data.buckets import common
from pipeline.data.examine import Examiner
from pipeline.data.geometry import enlargement
from pipeline.data.how import How, dumps
from pipeline.data.part import Part, SourceError, Unmatched, choose_pictures, some
from pipeline.data.sets import (
    WHOLE,
    Members,
    Set,
    check,
    epoch,
    inside,
    is_whole,
    members,
    multipliers,
    of_passed_over,
    passed_over,
)
from pipeline.data.sources import Source
from pipeline.data.summary import Summary, counted, kind_of, samples_of
from pipeline.data.views import (
    USUAL,
    Choice,
    Views,
    first,
    is_plain,
    of_pictures,
    of_samples,
    of_sets,
    resolutions,
    see,
)  # fmt: skip
from pipeline.stage import StageError

if TYPE_CHECKING:
    from pipeline.workers.tasks import Tasks

_IN_NO_SET = "in no set"
_NONE_TAKEN = "; left out: of the pictures that index.max_samples takes none is of this set and used"


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
    alpha_mask: bool = False,
    others: dict[int, list[tuple[int, int]]] | None = None,
    neighbors: int = 0,
    emphasis: str = "none",
    tasks: "Tasks | None" = None,
) -> Summary:
    """Write the seven files into `out`. `sizes` are buckets from the tallest to the widest, as buckets.buckets gives
    them. A picture that has to be enlarged more than `max_enlargement` times to cover its bucket is rejected; None is no
    bound. Pictures of buckets with fewer than `min_bucket` go to the nearest bucket that has more: this changes no
    rejection. Of more than `max_samples` pictures so many are taken, chosen by their names alone. `alpha_mask`: where
    its set says nothing else, a transparent picture's alpha channel is its mask. `others`: the buckets of the further
    resolutions that sets name; `neighbors`: how many buckets each picture has at each beside the nearest; `emphasis`: as
    captions.name takes it; `tasks`: as Examiner takes them.

    Raises StageError, before it writes, when more than the share `max_rejected` of the pictures is rejected or none is
    left (None: any share may be, and all); SourceError, CaptionError, OSError."""
    try:
        with Examiner(source, max_pixels, workers, source.part_count, tasks) as examiner:
            every, read = {USUAL: sizes, **(others or {})}, 0
            kept = every
            highest = _highest(source, sets, max_samples) if max_samples else None
            if min_bucket > 1:
                parts = _examined(examiner, source, sets, highest, alpha_mask)
                kept, read = kept_sizes(parts, every, min_side, max_enlargement, min_bucket, sets)
            parts = _examined(examiner, source, sets, highest, alpha_mask)  # again: by the memo
            summary = tabulate(
                parts, out, sizes, min_side, max_enlargement, max_rejected, kept, sets, others, neighbors, emphasis,
                highest is not None,
            )  # fmt: skip
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
    kept: dict[int, list[tuple[int, int]]] | None = None,
    sets: tuple[Set, ...] = WHOLE,
    others: dict[int, list[tuple[int, int]]] | None = None,
    neighbors: int = 0,
    emphasis: str = "none",
    is_choice: bool = False,
) -> Summary:
    """The part of `index` that opens no picture. Each part comes with its examine.EXAMINED table and the number of
    pictures read; `kept` are the sizes that pictures may be brought to, by resolution, default all. is_choice: of the data
    set's pictures these are some, so that a set may have none. Memory does not grow with the number of
    rows, apart from the list of rejected ones."""
    summary, rejected = Summary(), []
    images, samples, texts = (tables.Rows(schema) for schema in (tables.IMAGES, tables.MEMBERS, tables.TEXTS))
    every, plain = {USUAL: sizes, **(others or {})}, is_plain(sets, neighbors)
    for part, found, read in parts:
        of_part = members(part, sets)
        choices = fit.choices(part, found, every, kept or every, min_side, max_enlargement, neighbors)
        views = see(of_part, sets, choices)
        rows = _rows(part, found, of_part, views, sets, choices, plain)
        images.add(rows)
        mine = _members(part, of_part, rows, views, plain)
        samples.add(mine)
        texts.add(_texts(of_part, rows, views, len(sets)))
        summary.passed_over += passed_over(part, sets)
        part = replace(part, unmatched=[*part.unmatched, *_not_in_set(part, of_part, views, sets, choices)])
        _count(summary, part, found, rows, read)
        if not plain:
            _count_views(summary, of_part, views, sets, choices)
        for item in mine.group_by("set").aggregate([([], "count_all"), ("times", "sum")]).to_pylist():
            summary.members[item["set"]] += item["count_all"]
            summary.times[item["set"]] += item["times_sum"]
        bad = rows.filter(pc.is_valid(rows["rejected"]))
        rejected += zip(bad["path"].to_pylist(), bad["rejected"].to_pylist())
        rejected += [(lost.path, lost.reason) for lost in part.lost]
    _check(summary, rejected, max_rejected)
    settings = _settings(summary, sets, is_choice)
    out.mkdir(parents=True, exist_ok=True)
    with (
        store.atomic(out / "images.parquet") as images_file,
        store.atomic(out / "captions.parquet") as captions_file,
        store.atomic(out / "samples.parquet") as samples_file,
        store.atomic(out / "rejected.csv") as rejected_file,
        store.atomic(out / "unmatched.csv") as unmatched_file,
        store.atomic(out / "copies.csv") as copies_file,
        store.atomic(out / "near.csv") as near_file,
        progress.Bar(4, "table", "index tables") as bar,
    ):
        hows, _ = of_sets(sets)
        copies = tables.write_images(images, images_file, dumps(hows) if hows != [How()] else None)
        tables.write_copies(copies, copies_file)
        bar.update()
        summary.near = near.write(images_file, near_file)
        bar.update()
        written = tables.write_captions(samples, texts, captions_file, samples_file, settings, emphasis)
        bar.update(2)  # of captions and of samples
        tables.write_unmatched(summary.unmatched, pa.chunked_array(written.bare), unmatched_file)
        with open(rejected_file, "w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([("path", "reason"), *sorted(rejected)])
    summary.captions, summary.without_caption = written.given, written.empty
    summary.samples, summary.often = written.samples, written.often
    summary.copied = len(copies)
    summary.copies = [f"{row['copy_of']} = {row['path']}" for row in copies.slice(0, 100).to_pylist()]
    return summary


def in_sets(source: Source, sets: tuple[Set, ...], highest: int | None) -> Iterator[Part]:
    """The parts, with the pictures that are in a set and whose number by name is not above `highest`."""
    for part in source.parts():
        part = masks.of_sets(part, sets)
        if not is_whole(sets):
            is_in_one = inside(part, sets).any(axis=0)
            alone = part.paths.filter(pa.array(~is_in_one)).to_pylist()
            unmatched = [*part.unmatched, *(Unmatched(path, "picture", _IN_NO_SET) for path in alone)]
            part = replace(choose_pictures(part, is_in_one), unmatched=unmatched)
        if highest is not None:
            part = choose_pictures(part, _numbers(part) <= highest)
        yield part


def _examined(
    examiner: Examiner, source: Source, sets: tuple[Set, ...], highest: int | None, alpha_mask: bool
) -> Iterator[tuple[Part, pa.Table, int]]:
    """The parts with all their masks, and what Examiner.examine says of each."""
    for part in in_sets(source, sets, highest):
        found, read = examiner.examine(part)
        yield masks.of_alpha(part, sets, found["transparent"].to_numpy(), alpha_mask), found, read
    examiner.begin()


def _highest(source: Source, sets: tuple[Set, ...], count: int) -> int | None:
    """Of more than `count` pictures the highest number by name that is taken. Raises SetsError for a set that has no
    pictures at all, as it cannot be told later from one of which none is taken."""
    found, counts = [np.empty(0, np.uint64)], np.zeros(len(sets), np.int64)
    for part in in_sets(source, sets, None):
        found.append(_numbers(part))
        counts += inside(part, sets).sum(axis=1)
    numbers = np.concatenate(found)
    if len(numbers) <= count:
        return None
    check(sets, counts)
    return int(np.partition(numbers, count - 1)[count - 1])


def _numbers(part: Part) -> np.ndarray:
    """(n,) uint64 of the pictures' names: in no order, and the same whatever other pictures there are."""
    digests = [hashlib.blake2b(path.encode(), digest_size=8).digest() for path in part.paths.to_pylist()]
    return np.frombuffer(b"".join(digests), "<u8")


def _settings(summary: Summary, sets: tuple[Set, ...], is_choice: bool) -> list[dict]:
    """Of each set what tables.write_captions takes. Raises SetsError."""
    if not is_choice:
        check(sets, summary.members)
    how_often = epoch if summary.used else multipliers  # of a report, where all may be rejected
    often = how_often(sets, [summary.times[number] for number in range(len(sets))])
    if not is_whole(sets):
        summary.sets = [
            f"set {one.name}: {counted(summary.members[number], 'picture')}, {samples_of(summary.times[number] * often[number])} "
            f"an epoch{' (class pictures)' if one.class_images else ''}"
            f"{_NONE_TAKEN if is_choice and not summary.members[number] and not one.rest else ''}"
            for number, one in enumerate(sets)
        ]
    summary.sets += of_passed_over(summary.passed_over, sets)
    hows, how_of = of_sets(sets)
    return [
        {
            "name": one.name,
            "repeats": times,
            "loss_weight": one.loss_weight,
            "caption_dropout": one.caption_dropout,
            "class_images": one.class_images,
        }
        | ({"how": dumps([hows[how]])[1:-1]} if len(hows) > 1 else {})
        for one, times, how in zip(sets, often, how_of)
    ]


def kept_sizes(
    parts: Iterable[tuple[Part, pa.Table, int]],
    sizes: dict[int, list[tuple[int, int]]],
    min_side: int,
    max_enlargement: float | None,
    least: float,
    sets: tuple[Set, ...],
) -> tuple[dict[int, list[tuple[int, int]]], int]:
    """buckets.common of the pictures that are used, by resolution, and the number of pictures read."""
    counts, read = {resolution: Counter() for resolution in sizes}, 0
    for part, found, new in parts:
        read += new
        of_part = members(part, sets)
        choices = fit.choices(part, found, sizes, sizes, min_side, max_enlargement)
        width, height = (pc.fill_null(found[side], 1).to_numpy() for side in ("width", "height"))
        for resolution, choice in choices.items():
            numbers = [number for number, one in enumerate(sets) if resolution in resolutions(one)]
            is_used = np.equal(choice.reasons, None)
            is_used &= np.isin(np.arange(len(is_used)), of_part.picture[np.isin(of_part.number, numbers)])
            both, times = np.unique(np.stack([width, height], 1)[is_used], axis=0, return_counts=True)
            counts[resolution].update(dict(zip(map(tuple, both.tolist()), times.tolist())))
    kept = dict(sizes)
    for resolution, found in counts.items():
        if found:
            widths, heights = np.array(list(found)).T
            kept[resolution] = common(widths, heights, np.array(list(found.values())), sizes[resolution], least)
    return kept, read


def _rows(
    part: Part,
    found: pa.Table,
    of_part: Members,
    views: Views,
    sets: tuple[Set, ...],
    choices: dict[int, Choice],
    plain: bool,
) -> pa.Table:
    """The rows of tables.IMAGES of a part: with the bucket of a picture's first view."""
    count = len(part.paths)
    buckets, reasons = first(views, of_part, sets, choices, count)
    is_used = np.isin(np.arange(count), views.picture)
    sides = [pc.fill_null(found[name], 1).to_numpy() for name in ("width", "height")]
    centres = focus.column(focus.shares(part.focus, *sides)[0])
    columns = [_contents(part, found, centres), part.paths, found["width"], found["height"]]
    columns += [pa.array(side, pa.int32(), mask=~is_used) for side in buckets.T.copy()]
    columns += [pa.array(reasons, pa.string()), found["phash"], part.masks, centres]
    kind = tables.IMAGES.field("views").type
    columns.append(pa.nulls(count, kind) if plain else of_pictures(views, count))
    return pa.Table.from_arrays(
        [pa.chunked_array([c]) if isinstance(c, pa.Array) else c for c in columns], schema=tables.IMAGES
    )


def _not_in_set(
    part: Part, of_part: Members, views: Views, sets: tuple[Set, ...], choices: dict[int, Choice]
) -> list[Unmatched]:
    """Samples that are left out though their picture is used in another set."""
    found = []
    is_used = np.isin(np.arange(len(part.paths)), views.picture)
    for sample in np.flatnonzero(~views.seen & is_used[of_part.picture]):
        picture, one = int(of_part.picture[sample]), sets[int(of_part.number[sample])]
        reason = choices[resolutions(one)[0]].reasons[picture]
        found.append(Unmatched(part.paths[picture].as_py(), "picture", f"not in the set {one.name}: {reason}"))
    return found


def _contents(part: Part, found: pa.Table, centres: pa.Array) -> pa.Array | pa.ChunkedArray:
    """masks.content of each picture."""
    if part.masks.null_count == len(part.masks) and centres.null_count == len(centres):
        return found["image"]
    columns = found["image"].to_pylist(), part.masks.to_pylist(), found["mask"].to_pylist(), centres.to_pylist()
    names = [
        masks.content(image, masks.OF_ALPHA if path == masks.ALPHA else mask, focus.key(box))
        for image, path, mask, box in zip(*columns)
    ]
    return pa.array(names, pa.binary(16))


def _members(part: Part, of_part: Members, rows: pa.Table, views: Views, plain: bool) -> pa.Table:
    """The rows of tables.MEMBERS of a part: its samples that have a view."""
    used = views.seen
    picture = pa.array(of_part.picture[used])
    columns = [rows["image"].combine_chunks().take(picture), pa.array(of_part.number[used])]
    columns += [part.paths.take(picture), pa.array(part.times[of_part.picture[used]])]
    kind = tables.MEMBERS.field("buckets").type
    columns.append(pa.nulls(len(picture), kind) if plain else of_samples(views).filter(pa.array(used)))
    return pa.Table.from_arrays(columns, schema=tables.MEMBERS)


def _texts(of_part: Members, rows: pa.Table, views: Views, sets: int) -> pa.Table:
    """The rows of tables.TEXTS of a part: the captions of samples that have a view."""
    is_seen = np.zeros((sets, len(rows)), bool)
    is_seen[of_part.number[views.seen], of_part.picture[views.seen]] = True
    used = is_seen[of_part.caption_number, of_part.caption_picture]
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
    summary.masked += len(used) - used["mask"].null_count
    summary.focused += len(used) - used["focus"].null_count
    times = enlargement(*(used[name].to_numpy() for name in ("width", "height", "bucket_width", "bucket_height")))
    summary.enlarged += int((times > 1).sum())
    summary.most_enlarged = max(summary.most_enlarged, times.max(initial=1.0))
    summary.lost += part.lost
    summary.unmatched += part.unmatched
    for lost in part.lost:
        summary.reasons[kind_of(lost.reason)] += lost.count
    kinds = pc.list_element(pc.split_pattern(pc.drop_null(rows["rejected"]), ":", max_splits=1), 0)
    for item in pc.value_counts(kinds).to_pylist():
        summary.reasons[item["values"]] += item["counts"]
    for item in rows.group_by(["bucket_width", "bucket_height"]).aggregate([([], "count_all")]).to_pylist():
        if item["bucket_width"] is not None:
            summary.buckets[item["bucket_width"], item["bucket_height"]] += item["count_all"]


def _count_views(
    summary: Summary, of_part: Members, views: Views, sets: tuple[Set, ...], choices: dict[int, Choice]
) -> None:
    distinct = np.unique(np.column_stack([views.picture, views.how, views.bucket]), axis=0)
    summary.encoded += len(distinct)
    sizes = np.unique(distinct[:, [0, 2, 3]], axis=0)[:, 1:]
    for size, count in zip(*np.unique(sizes, axis=0, return_counts=True)):
        summary.every_bucket[tuple(size.tolist())] += int(count)
    for number, one in enumerate(sets):
        mine = of_part.picture[of_part.number == number]
        for resolution in resolutions(one)[1:]:
            summary.at[resolution] += int(choices[resolution].can[mine, 0].sum())


def _check(summary: Summary, rejected: list[tuple[str, str]], max_rejected: float | None) -> None:
    if not summary.files:
        if any(one.reason == _IN_NO_SET for one in summary.unmatched):
            raise StageError(f"no picture of data.images is in a set: {some(summary.places)}")
        raise StageError(f"data.images holds no pictures: {some(summary.places)}")
    if max_rejected is None:
        return
    # Damages of whole tars come first: each stands for many pictures.
    rejected = sorted(rejected, key=lambda row: (kind_of(row[1]) != "damaged", row))
    few = "\n".join(f"  {path}: {reason}" for path, reason in rejected[:20])
    reasons = ", ".join(f"{count:,} {kind}" for kind, count in sorted(summary.reasons.items()))
    small = "too small" in summary.reasons
    bounds = "; index.min_side and index.max_enlargement, with index.resolution, say what is too small" if small else ""
    if not summary.used:
        whole = "the one picture is" if summary.files == 1 else f"all {summary.files:,} pictures are"
        raise StageError(f"{whole} rejected ({reasons}){bounds}:\n{few}")
    count = summary.reasons.total()
    if count > max_rejected * summary.files:
        one, more = f"1 of {counted(summary.files, 'picture')} is rejected (", " pictures are rejected ("
        rejection = one if count == 1 else f"{count:,} of {summary.files:,}{more}"
        raise StageError(
            f"{rejection}{reasons}), more than the share "
            f"index.max_rejected = {max_rejected}; mend or remove them, or raise the share{bounds} (`python -m pipeline "
            f"data report` shows them):\n{few}"
        )
