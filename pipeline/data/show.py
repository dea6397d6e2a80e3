"""Show the captions that pictures will be trained with, as their sets and variants make them, and what encoding them
takes. Opens no picture and writes nothing."""

import argparse
from collections import defaultdict

import numpy as np

from pipeline import cli, params
from pipeline.data import captions, masks
from pipeline.data.sets import members
from pipeline.data.sets_file import find
from pipeline.data.sources import open_source
from pipeline.data.summary import counted
from pipeline.models.config import CONFIGS


def main(arguments: list[str] | None = None) -> None:
    made = cli.parser("data show", __doc__)
    made.add_argument("path", nargs="?", help="a folder, .tar or .parquet; default: data.images of params.yaml")
    made.add_argument("--count", type=cli.count(least=0), default=5, metavar="N", help="pictures to show (default 5)")
    cli.add_json(made)
    cli.run(made, _run, arguments)


def _run(given: argparse.Namespace) -> None:
    found = show(given.path, params.load(), given.count)
    if given.json:
        cli.print_json(found)
        return
    for one in found["shown"]:
        print(f"{one['path']}{one['set'] and ', set ' + one['set']}")
        for caption in one["captions"] or [{"share": 1, "text": "", "text_2": None}]:
            second = f"  | {caption['text_2']}" if caption["text_2"] else ""
            print(f"  {caption['share']:5.1%}  {caption['text'] or '(no caption)'}{second}")
    print(f"{counted(found['pictures'], 'picture')}, {counted(found['given'], 'distinct caption')} as given")
    each = found["bytes"] // max(found["rows"], 1)
    print(f"cache_text will have {found['rows']:,} rows of {each:,} bytes: {found['bytes'] / 1e9:.3f} GB")


def show(path: str | None, settings: params.Params, count: int) -> dict:
    """The captions of `count` pictures, spread evenly, and how many rows and bytes the text cache of all will have.
    Raises StageError, OSError."""
    data, index = settings.data, settings.index
    path = path or data.images
    source = open_source(path, index.caption_lines, data.image_column, data.caption_column)
    sets, notes = find(path, source, index.caption_variants, index.caption_seed)
    pictures = sum(len(masks.of_sets(part, sets).paths) for part in source.parts())
    wanted = set(np.unique(np.linspace(0, max(pictures - 1, 0), min(count, pictures)).astype(int)).tolist())
    shown, given, rows, begin = [], set(), {captions.name("", None)}, 0
    for part in source.parts():
        part = masks.of_sets(part, sets)
        given |= set(map(captions.name, part.texts.to_pylist(), part.texts_2.to_pylist()))
        found = members(part, sets)
        texts, texts_2 = found.texts.to_pylist(), found.texts_2.to_pylist()
        rows |= {captions.name(*pair, settings.cache_text.emphasis) for pair in zip(texts, texts_2)}
        of_sample = defaultdict(list)
        for place, (row, number) in enumerate(zip(found.caption_picture.tolist(), found.caption_number.tolist())):
            if begin + row in wanted:
                of_sample[row, number].append(place)
        for row, number in sorted(zip(found.picture.tolist(), found.number.tolist())):
            if begin + row in wanted:
                places = of_sample[row, number]
                total = found.chances[places].sum()
                lines = [
                    {"share": float(found.chances[place] / total), "text": texts[place], "text_2": texts_2[place]}
                    for place in places
                ]
                shown.append({"path": part.paths[row].as_py(), "set": sets[number].name, "captions": lines})
        begin += len(part.paths)
    size = CONFIGS[settings.model.config].text_bytes(settings.cache_text.chunks)
    return {
        "path": path,
        "pictures": pictures,
        "given": len(given),
        "rows": len(rows),
        "bytes": len(rows) * size,
        "shown": shown,
        "notes": notes,
    }
