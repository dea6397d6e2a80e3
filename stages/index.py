"""Pictures and captions -> outs/index/{images.parquet, captions.parquet, samples.parquet, rejected.csv, unmatched.csv,
copies.csv}."""

from pathlib import Path

from pipeline.data.buckets import sizes
from pipeline.data.index import index
from pipeline.data.sources import open_source
from pipeline.params import Params
from pipeline.stage import run


def main(params: Params) -> None:
    summary = index(
        open_source(
            params.data.images, params.index.caption_lines, params.data.image_column, params.data.caption_column
        ),
        Path("outs/index"),
        sizes(params.index.resolution, params.index.bucket_step, params.index.buckets),
        params.index.min_side,
        params.index.max_enlargement,
        params.index.max_pixels,
        params.index.max_rejected,
        params.index.workers,
        params.index.min_bucket,
        max_samples=params.index.max_samples,
    )
    print(summary, flush=True)


if __name__ == "__main__":
    run(main)
