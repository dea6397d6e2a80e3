"""Encode every caption once with both text encoders: outs/index/captions.parquet, clip_l.ckpt, clip_g.ckpt →
outs/text. With train.source pictures, and where text encoders are trained, nothing is encoded: the out says so, and by it
DVC knows which captions training reads."""

from pathlib import Path

from pipeline import hardware
from pipeline.cache.building import captions, engine, previews, ranks
from pipeline.cache.building.text import count_long, make_job
from pipeline.cache.building.tokens import Tokenizer, check_vocabulary
from pipeline.cache.format import fingerprint, stand_in
from pipeline.models.config import CONFIGS
from pipeline.params import Params
from pipeline.stage import run

CAPTIONS = "outs/index/captions.parquet"
CLIP_L = "outs/convert/clip_l.ckpt"
CLIP_G = "outs/convert/clip_g.ckpt"
OUT = "outs/text"


def main(params: Params) -> None:
    p, config, tokenizer = params.cache_text, params.model.config, params.model.tokenizer
    check_vocabulary(tokenizer, CONFIGS[config].clip_l.vocab_size, config)

    def describe() -> dict:
        return fingerprint.text(
            CLIP_L, CLIP_G, tokenizer, config=config, precision=p.precision, batch_size=p.batch_size, chunks=p.chunks
        )

    made_with = describe()
    if params.train.reads_captions:
        names, _ = captions.distinct(Path(CAPTIONS), [""], p.emphasis)
        print(f"cache_text: {stand_in.write(OUT, 'text', made_with, (names,))}")
        return

    def make_tokenizer():
        made = Tokenizer(tokenizer)
        fingerprint.check(made_with, describe())
        return made

    def make_encoder():
        hardware.check(params, "cache_text")
        from pipeline import device  # MindSpore takes seconds to import, and most runs encode nothing
        from pipeline.models.encode import text_encoder

        encode = text_encoder(CONFIGS[config], CLIP_L, CLIP_G, device.setup(params.device.target), p.precision)
        fingerprint.check(made_with, describe())
        return encode

    further = previews.texts(params.train.previews)
    job = make_job(CAPTIONS, made_with, make_tokenizer, make_encoder, p.chunks, p.batch_size, further,
                   p.emphasis, CONFIGS[config].clip_l.width)  # fmt: skip
    with ranks.beside(params.device.workers) as others:
        report = engine.build(job, OUT, others)
    print(
        f"{report.rows} captions in {report.shards} shards: "
        f"{report.encoded} encoded, {report.shards_written} shards written"
    )
    if report.assembled:
        cut, over, total = count_long(OUT, p.chunks)
        print(f"{over} of {total} captions have more than 77 tokens; {cut} were cut (cache_text.chunks is {p.chunks})")


if __name__ == "__main__":
    run(main)
