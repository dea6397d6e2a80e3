"""Look at pictures and captions before they are indexed: all names and captions, and some of the pictures. Writes
nothing; `dvc repro index` looks at every picture. Which buckets index.min_bucket gives up is reckoned from these.

`data show` shows captions as training will have them, with their variants, and `data report` writes a page; both look
at all pictures. `data refresh` asks the servers behind a .urls file whether something has changed."""

import argparse
import sys
from collections import Counter

import numpy as np
import pyarrow as pa

from pipeline import cli, params
from pipeline.data import fit, refresh
from pipeline.data.buckets import sizes
from pipeline.data.by_params import opened
from pipeline.data.examine import look_at_all
from pipeline.data.index import in_sets, kept_sizes
from pipeline.data.part import Part, choose_pictures, without_captions
from pipeline.data.sets import Set, is_whole, members, multipliers, of_passed_over, passed_over
from pipeline.data.summary import counted, kind_of, samples_of
from pipeline.data.views import USUAL, first, see, sizes_of
from pipeline.stage import printable


def main(arguments: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] in (["show"], ["report"]):
        from pipeline.report import data_command, show_command  # which are above this folder

        return {"show": show_command, "report": data_command}[arguments[0]].main(arguments[1:])
    if arguments[:1] == ["refresh"]:
        return refresh.main(arguments[1:])
    made = cli.parser("data", __doc__)
    made.add_argument("path", nargs="?", help="a folder, .tar or .parquet; default: data.images of params.yaml")
    made.add_argument(
        "--decode", type=cli.count(least=0), default=64, metavar="N", help="pictures to decode (default 64)"
    )
    cli.add_json(made)
    cli.run(made, _run, arguments)


def _run(given: argparse.Namespace) -> int:
    found = examine(given.path, params.load(), given.decode)
    if given.json:
        cli.print_json(found)
    else:
        print(
            f"{found['path']}: {found['form']}, {counted(found['pictures'], 'picture')}, {found['captioned']:,} with captions"
        )
        if found["focused"]:
            print(f"  {counted(found['focused'], 'of them has', 'of them have')} a centre of interest (focus or bbox)")
        if found["masked"]:
            print(f"  {counted(found['masked'], 'of them has', 'of them have')} a mask file")
        print(f"  decoded {found['decoded']:,}, of which {found['used']:,} would be used")
        for one in found["sets"]:
            often = f"{samples_of(one['samples'])} an epoch if all can be used"
            print(printable(f"  set {one['name']}: {counted(one['pictures'], 'picture')}, {often}"))
        for note in found["notes"]:
            print(printable(f"  {note}"))
        for kind, count in found["rejected"].items():
            print(f"  rejected, {kind}: {count:,}")
        for size, count in found["buckets"].items():
            print(f"  bucket {size}: {count:,}")
        for kind, count in found["lost"].items():
            print(f"  cannot be opened, {kind}: {count:,}")
        for kind, count in found["left_alone"].items():
            print(f"  left alone, {kind}: {count:,}")
    return 0 if found["used"] or not found["decoded"] and found["pictures"] else 1


def examine(path: str | None, settings: params.Params, decode: int) -> dict:
    """Counts of a data set, as the index's settings would have it. Of its pictures `decode` are opened, spread evenly.

    Raises StageError, OSError."""
    path, index = path or settings.data.images, settings.index
    source, sets, notes = opened(path, settings)
    parts, captioned, lost, alone, passed = [], 0, Counter(), Counter(), Counter()
    of_sets, times = np.zeros(len(sets), np.int64), np.zeros(len(sets))
    for part in in_sets(source, sets, None):
        of_part = members(part, sets)
        passed += passed_over(part, sets)
        captioned += len(np.unique(of_part.caption_picture))
        of_sets += np.bincount(of_part.number, minlength=len(sets))
        times += np.bincount(of_part.number, part.times[of_part.picture], len(sets))
        for one in part.lost:
            lost[kind_of(one.reason)] += one.count
        alone.update(f"{one.what}, {kind_of(one.reason)}" for one in part.unmatched)
        parts.append(without_captions(part))
    count = sum(len(part.paths) for part in parts)
    chosen = _spread(parts, count, decode)
    found = [(part, look_at_all(source, part, index.max_pixels), 0) for part in chosen]
    buckets, reasons = _fitted(found, sets, settings, sum(len(part.paths) for part in chosen) / max(count, 1))
    samples = times * multipliers(sets, times.tolist())
    return {
        "path": path,
        "form": type(source).__name__,
        "pictures": count,
        "captioned": captioned,
        "masked": sum(len(part.masks) - part.masks.null_count for part in parts),
        "focused": sum(int((~np.isnan(part.focus[:, 0])).sum()) for part in parts),
        "decoded": buckets.total() + reasons.total(),
        "used": buckets.total(),
        "rejected": dict(reasons),
        "buckets": {f"{width}x{height}": count for (width, height), count in sorted(buckets.items())},
        "lost": dict(lost),
        "left_alone": dict(alone),
        "sets": [
            {"name": one.name, "pictures": int(of_sets[number]), "samples": float(samples[number])}
            for number, one in enumerate(sets if not is_whole(sets) else ())
        ],
        "notes": [*notes, *of_passed_over(passed, sets)],
    }


def _spread(parts: list[Part], count: int, wanted: int) -> list[Part]:
    """Of the `count` pictures of all parts so many, spread evenly."""
    is_chosen = np.zeros(count, bool)
    is_chosen[np.linspace(0, max(count - 1, 0), min(wanted, count)).astype(int)] = True
    ends = np.cumsum([len(part.paths) for part in parts])[:-1]
    both = zip(parts, np.split(is_chosen, ends))
    return [choose_pictures(part, mine) for part, mine in both if mine.any()]


def _fitted(
    found: list[tuple[Part, pa.Table, int]], sets: tuple[Set, ...], settings: params.Params, share: float
) -> tuple[Counter, Counter]:
    """(width, height) -> pictures, and kind of rejection -> pictures, of those that were looked at, which are this share
    of all."""
    index = settings.index
    every = {
        USUAL: sizes(index.resolution, index.bucket_step, index.buckets),
        **sizes_of(sets, index.bucket_step, index.buckets),
    }
    bounds = index.min_side, index.max_enlargement
    kept, _ = kept_sizes(found, every, *bounds, index.min_bucket * share, sets)
    buckets, rejected = Counter(), Counter()
    for part, table, _ in found:
        of_part = members(part, sets)
        choices = fit.choices(part, table, every, kept, *bounds, index.neighbors)
        of_first, reasons = first(see(of_part, sets, choices), of_part, sets, choices, len(part.paths))
        buckets.update(map(tuple, of_first[np.equal(reasons, None)].tolist()))
        rejected.update(kind_of(reason) for reason in reasons if reason)
    return buckets, rejected


if __name__ == "__main__":
    main()
