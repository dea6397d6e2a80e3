"""Encode every caption once with both text encoders: outs/index/captions.parquet, clip_l.ckpt, clip_g.ckpt →
outs/text. With train.source pictures, and where text encoders are trained, nothing is encoded: the out says so, and by it
DVC knows which captions training reads."""

from functools import partial
from pathlib import Path

from pipeline import hardware
from pipeline.cache.building import captions, engine, previews
from pipeline.cache.building.text import count_long, make_job
from pipeline.cache.building.tokens import Tokenizer, check_vocabulary
from pipeline.cache.format import fingerprint, stand_in
from pipeline.models.config import CONFIGS
from pipeline.params import Params
from pipeline.stage import run
from pipeline.workers.crew import Files, crew

CAPTIONS = "outs/index/captions.parquet"
CLIP_L = "outs/convert/clip_l.ckpt"
CLIP_G = "outs/convert/clip_g.ckpt"
OUT = "outs/text"


def main(params: Params) -> None:
    p, tokenizer = params.cache_text, params.model.tokenizer
    check_vocabulary(tokenizer, CONFIGS[params.model.config].clip_l.vocab_size, params.model.config)
    files = {name: Path(name) for name in (CAPTIONS, CLIP_L, CLIP_G, tokenizer)}
    if params.train.reads_captions:
        names, _ = captions.distinct(Path(CAPTIONS), [""], p.emphasis)
        live, trained = params.train.source == "pictures", params.train.text_encoders
        setting = "train.source is pictures" if live else f"train.text_encoders is {trained}"
        print(f"cache_text: {stand_in.write(OUT, 'text', describe(params, files), (names,), setting)}")
        return
    job = make(params, files)
    with crew(params.device, partial(engine.worker, partial(make, params), job.wanted.key), files) as workers:
        report = engine.build(job, OUT, workers)
    print(
        f"{report.rows} captions in {report.shards} shards: "
        f"{report.encoded} encoded, {report.shards_written} shards written"
    )
    cut, over, total = count_long(OUT, p.chunks)
    print(f"{over} of {total} captions have more than 77 tokens; {cut} were cut (cache_text.chunks is {p.chunks})")


def describe(params: Params, files: Files) -> dict:
    """The fingerprint of the embeddings."""
    p = params.cache_text
    return fingerprint.text(
        files[CLIP_L],
        files[CLIP_G],
        files[params.model.tokenizer],
        config=params.model.config,
        precision=p.precision,
        batch_size=p.batch_size,
        chunks=p.chunks,
    )


def make(params: Params, files: Files, source: None = None) -> engine.Job:
    """The job, in this process and in each worker."""
    p, config, made_with = params.cache_text, CONFIGS[params.model.config], describe(params, files)

    def make_tokenizer():
        made = Tokenizer(files[params.model.tokenizer])
        fingerprint.check(made_with, describe(params, files))
        return made

    def make_encoder():
        hardware.check(params, "cache_text")
        from pipeline import device  # MindSpore takes seconds to import, and most runs encode nothing
        from pipeline.models.encode import text_encoder

        target = device.setup(params.device.target)
        encode = text_encoder(config, files[CLIP_L], files[CLIP_G], target, p.precision)
        fingerprint.check(made_with, describe(params, files))
        return encode

    further = previews.texts(params.train.previews)
    return make_job(
        files[CAPTIONS], made_with, make_tokenizer, make_encoder, p.chunks, p.batch_size, further, p.emphasis,
        config.clip_l.width,
    )  # fmt: skip


if __name__ == "__main__":
    run(main)
