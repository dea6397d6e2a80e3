"""Pictures and captions -> outs/index/{images.parquet, captions.parquet, samples.parquet, rejected.csv, unmatched.csv,
copies.csv, near.csv, report.html}."""

from pathlib import Path

from pipeline.data.by_params import indexed, opened
from pipeline.data.examine import look
from pipeline.params import Params
from pipeline.report import data_page
from pipeline.stage import printable, run
from pipeline.workers.crew import tasks


def main(params: Params) -> None:
    images, out = params.data.images, Path("outs/index")
    source, sets, notes = opened(images, params)
    print(*(printable(f"index: {note}") for note in notes), sep="\n", end="\n" * bool(notes), flush=True)
    with tasks(params.device, look, source) as found:
        summary = indexed(source, sets, params, out, params.index.max_rejected, found)
    print(summary, flush=True)
    data_page.write(out, source, images, params.index.max_pixels, out / "report.html")
    print(f"index: {out}/report.html shows them; open it in a browser", flush=True)


if __name__ == "__main__":
    run(main)
