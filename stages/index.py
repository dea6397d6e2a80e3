"""Pictures and captions -> outs/index/{images.parquet, captions.parquet, samples.parquet, rejected.csv, unmatched.csv,
copies.csv, near.csv, report.html}."""

from pathlib import Path

from pipeline.data.buckets import sizes
from pipeline.data.examine import look
from pipeline.data.index import index
from pipeline.data.sets_file import find
from pipeline.data.sources import open_source
from pipeline.data.views import sizes_of, with_usual
from pipeline.params import Params
from pipeline.report import data_page
from pipeline.stage import run
from pipeline.workers.crew import tasks


def main(params: Params) -> None:
    data = params.data
    source = open_source(data.images, params.index.caption_lines, data.image_column, data.caption_column)
    sets, notes = find(data.images, source, params.index.caption_variants, params.index.caption_seed)
    sets = with_usual(sets, tuple(params.index.further_resolutions))
    print(*(f"index: {note}" for note in notes), sep="\n", end="\n" * bool(notes), flush=True)
    out = Path("outs/index")
    with tasks(params.device, look, source) as found:
        summary = index(
            source,
            out,
            sizes(params.index.resolution, params.index.bucket_step, params.index.buckets),
            params.index.min_side,
            params.index.max_enlargement,
            params.index.max_pixels,
            params.index.max_rejected,
            params.index.workers,
            params.index.min_bucket,
            sets,
            params.index.max_samples,
            params.index.alpha_mask,
            sizes_of(sets, params.index.bucket_step, params.index.buckets),
            params.index.neighbors,
            params.cache_text.emphasis,
            found,
        )
    print(summary, flush=True)
    data_page.write(out, source, data.images, params.index.max_pixels, out / "report.html")
    print(f"index: {out}/report.html shows them; open it in a browser", flush=True)


if __name__ == "__main__":
    run(main)
