"""Write one HTML page about pictures and captions, as the index's settings have them: sizes, buckets, captions, tags, and
what is rejected and why, with small pictures. It needs no network.

All pictures are read, those that are known from an earlier time excepted, as `dvc repro index` does; that leaves the
same page as outs/index/report.html, with caption lengths in letters and not in tokens, and fails when too many are
rejected."""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline import cli, params
from pipeline.cache.building.tokens import Tokenizer, length, weighted
from pipeline.report import data, data_page, trial

OUT = Path("dvc_plots/data.html")
_COUNTED = 20_000  # captions whose tokens are counted


def main(arguments: list[str] | None = None) -> None:
    made = cli.parser("data report", __doc__)
    made.add_argument("path", nargs="?", help="a folder, .tar or .parquet; default: data.images of params.yaml")
    made.add_argument("--out", type=cli.new_file(".html"), default=OUT, help=f"default: {OUT}")
    cli.run(made, _run, arguments)


def _run(given: argparse.Namespace) -> None:
    settings = params.load()
    path = given.path or settings.data.images
    print(write(path, settings, given.out))
    print(f"{given.out}: {given.out.stat().st_size / 1e6:.1f} MB; open it in a browser")


def write(path: str, settings: params.Params, out: Path) -> str:
    """-> the index's summary. Raises StageError, OSError; no page is written then."""
    with tempfile.TemporaryDirectory() as folder:
        source, summary, _ = trial.write(path, settings, Path(folder))
        data_page.write(Path(folder), source, path, settings.index.max_pixels, out, _measure(settings))
    return str(summary)


def _measure(settings: params.Params) -> data.Lengths:
    """In tokens where the tokenizer is there already."""
    folder, emphasis = settings.model.tokenizer, settings.cache_text.emphasis
    if not (Path(folder) / "vocab.json").is_file():
        print(f"{folder} has no vocab.json (model.tokenizer), so the lengths of captions are in letters", flush=True)
        return data.letters

    def tokens(texts: pa.StringArray) -> tuple[np.ndarray, str]:
        tokenizer = Tokenizer(folder)
        chosen = texts.slice(0, _COUNTED).to_pylist()
        return np.array([length(weighted(tokenizer, text, emphasis)[0]) for text in chosen], np.int64), "tokens"

    return tokens


if __name__ == "__main__":
    main()
