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
from pipeline.data import masks, refresh
from pipeline.data.buckets import choose, common, sizes
from pipeline.data.examine import look
from pipeline.data.fit import reject
from pipeline.data.sets import is_whole, members
from pipeline.data.sets_file import find
from pipeline.data.sources import open_source
from pipeline.data.summary import counted


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
        for name, count in found["sets"].items():
            print(f"  set {name}: {counted(count, 'picture')}")
        for note in found["notes"]:
            print(f"  {note}")
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
    data = settings.data
    source = open_source(path, index.caption_lines, data.image_column, data.caption_column)
    sets, notes = find(path, source, index.caption_variants, index.caption_seed)
    names, captioned, masked, focused, lost, alone, in_sets = [], 0, 0, 0, Counter(), Counter(), Counter()
    for part in source.parts():
        part = masks.of_sets(part, sets)
        masked += len(part.masks) - part.masks.null_count
        focused += int((~np.isnan(part.focus[:, 0])).sum())
        numbers, counts = np.unique(members(part, sets).number, return_counts=True)
        in_sets.update(dict(zip(numbers.tolist(), counts.tolist())))
        names.append(part.paths)
        captioned += len(np.unique(part.caption_rows))
        for one in part.lost:
            lost[one.reason.partition(":")[0]] += one.count
        alone.update(f"{one.what}, {one.reason.partition(':')[0]}" for one in part.unmatched)
    paths = pa.chunked_array(names, pa.string())
    chosen = np.unique(np.linspace(0, max(len(paths) - 1, 0), min(decode, len(paths))).astype(int))
    found = look(source, paths.take(pa.array(chosen, pa.int64())).to_pylist(), index.max_pixels)
    allowed = sizes(index.resolution, index.bucket_step, index.buckets)
    _, reasons = reject(found, allowed, index.min_side, index.max_enlargement)
    kept = np.array([reason is None for reason in reasons], bool)
    widths, heights = (found[side].to_numpy(zero_copy_only=False)[kept] for side in ("width", "height"))
    if len(widths):
        each = np.full(len(widths), len(paths) / len(found))  # pictures that it stands for
        allowed = common(widths, heights, each, allowed, index.min_bucket)
    used = [allowed[place] for place in choose(widths, heights, allowed)] if len(widths) else []
    return {
        "path": path,
        "form": type(source).__name__,
        "pictures": len(paths),
        "captioned": captioned,
        "masked": masked,
        "focused": focused,
        "decoded": len(found),
        "used": len(used),
        "rejected": dict(Counter(reason.partition(":")[0] for reason in reasons if reason)),
        "buckets": {f"{width}x{height}": count for (width, height), count in sorted(Counter(used).items())},
        "lost": dict(lost),
        "left_alone": dict(alone),
        "sets": {one.name: in_sets[number] for number, one in enumerate(sets)} if not is_whole(sets) else {},
        "notes": notes,
    }


if __name__ == "__main__":
    main()
