"""What a run reads: weights, tokenizer, pictures and captions. Headers and a few pictures only."""

import contextlib
import io
import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline import preset
from pipeline.cache.building.tokens import check_vocabulary
from pipeline.contradictions.model import PRESET
from pipeline.contradictions.paths import BASE_UNET
from pipeline.data import urls
from pipeline.data.buckets import sizes
from pipeline.data.examine import look as decode
from pipeline.data.fit import reject
from pipeline.data.part import Part, is_far
from pipeline.data.sources import open_source
from pipeline.doctor.finding import BAD, DOUBTFUL, GOOD, Finding
from pipeline.hub import hint
from pipeline.models.config import CONFIGS
from pipeline.params import Params
from pipeline.stage import StageError
from pipeline.weights import marks
from pipeline.weights.adapters.apply import apply
from pipeline.weights.source import check_start, open_weights
from pipeline.weights.starts import starts

LOOKED_AT = 16  # pictures


def weights(params: Params) -> Finding:
    base, vae = Path(params.model.base), Path(params.model.vae)
    if not Path(params.model.lora_folder).is_dir():
        do = "Make it, empty where model.loras is []"
        return Finding("weights", BAD, f"{params.model.lora_folder} is no folder", "model.lora_folder", do)
    for key, path in (("model.base", base), ("model.vae", vae)):
        if not path.exists():
            wanted = "a safetensors file, a MindSpore .ckpt or a diffusers folder"
            demo = "" if params.model.config == "tiny" else "; `make preset NAME=tiny` is the demo"
            do = f"Put it there, or set {key}{demo}{hint(path)}"
            return Finding("weights", BAD, f"{path} does not exist", wanted, do)
    with contextlib.redirect_stdout(io.StringIO()):
        config, folder = CONFIGS[params.model.config], Path(params.model.lora_folder)
        tensors = open_weights(base, vae, config)
        apply(tensors, [(folder / lora.path, lora.weight) for lora in params.model.loras], config)
        marks.check(base, params.diffusion.prediction, params.diffusion.zero_terminal_snr)
        if params.train.init_from != BASE_UNET:
            diffusion = params.diffusion
            check_start(Path(params.train.init_from), config, diffusion.prediction, diffusion.zero_terminal_snr)
            starts(Path(params.train.init_from), Path("outs/convert"), params.train.text_encoders)
    dtypes = ", ".join(sorted({tensor.dtype for tensor in tensors.values()}))
    own = "" if base.resolve() == vae.resolve() else f", with the VAE of {vae}"
    count = sum(tensor.count for tensor in tensors.values())
    merged = f", with {', '.join(lora.path for lora in params.model.loras)}" if params.model.loras else ""
    return Finding("weights", GOOD, f"{base} is {params.model.config}: {count:,} parameters, {dtypes}{own}{merged}")


def tokenizer(params: Params) -> Finding:
    folder = Path(params.model.tokenizer)
    size = CONFIGS[params.model.config].clip_l.vocab_size
    check_vocabulary(folder, size, params.model.config)
    return Finding("tokenizer", GOOD, f"{folder}: {size:,} tokens")


def data(params: Params) -> list[Finding]:
    """The first parts of the data set up to one with pictures, of which some are decoded."""
    data = params.data
    if is_far(data.images) and (data.images.startswith("hf://") or "{" in data.images):
        do = f"Write it into a file such as data/web{urls.END}, and set data.images to that (docs/far-data.md)"
        return [
            Finding("data", BAD, f"data.images is {data.images}", "what DVC can watch: no hf:// and no pattern", do)
        ]
    source = open_source(data.images, params.index.caption_lines, data.image_column, data.caption_column)
    part = next((part for part in source.parts() if len(part.paths) or part.lost), None)
    if part is None:
        raise StageError(f"data.images is {params.data.images}, and it holds no pictures")
    if not len(part.paths):
        return [Finding("data", BAD, f"{part.lost[0].path}: {part.lost[0].reason}", "pictures that can be read")]
    chosen = np.unique(np.linspace(0, len(part.paths) - 1, LOOKED_AT).astype(int))
    found = decode(source, part.paths.take(pa.array(chosen)).to_pylist(), params.index.max_pixels)
    index = params.index
    allowed = sizes(index.resolution, index.bucket_step, index.buckets)
    reasons = reject(found, allowed, index.min_side, index.max_enlargement)[1]
    return [_pictures(params, part, len(chosen), [reason for reason in reasons if reason]), _captions(part)]


def _pictures(params: Params, part: Part, looked_at: int, bad: list[str]) -> Finding:
    found = f"{params.data.images}: {len(part.paths):,} pictures in {part.place}"
    if not bad:
        return Finding("data", GOOD, f"{found}; {looked_at} decoded")
    kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(reason.partition(":")[0] for reason in bad).items())
    found = f"{found}; of {looked_at} decoded {len(bad)} are rejected ({kinds}; {bad[0]})"
    small = any(reason.startswith("too small") for reason in bad)
    do = _larger(params) if small else "`dvc repro index` lists them all"
    state = BAD if len(bad) > max(params.index.max_rejected, 1 / looked_at) * looked_at else DOUBTFUL
    return Finding("data", state, found, f"a share of {params.index.max_rejected:g} at most (index.max_rejected)", do)


def _larger(params: Params) -> str:
    """What to do about pictures that are too small. A preset helps where it would set another resolution."""
    index = params.index
    do = f"Larger pictures, or a lower index.min_side ({index.min_side})"
    if index.max_enlargement is not None:
        do += f" or a higher index.max_enlargement ({index.max_enlargement:g})"
    presets = (preset.values(name) for name in preset.PRESETS)
    is_preset = any(
        (one["model.config"], one["index.resolution"]) == (params.model.config, index.resolution) for one in presets
    )
    return do if is_preset else f"{do}; {PRESET}"


def _captions(part: Part) -> Finding:
    captioned = len(np.unique(part.caption_rows))
    found = f"{captioned:,} of these {len(part.paths):,} pictures have captions"
    texts = itertools.islice(part.texts.to_pylist(), 1)
    if captioned == len(part.paths):
        return Finding("captions", GOOD, f"{found}, such as {next(texts)[:60]!r}")
    do = "Captions are name.txt beside name.png, or a column of metadata.jsonl, metadata.csv or a .parquet"
    state = DOUBTFUL if captioned else BAD
    return Finding("captions", state, found, "one for each, or they are trained on with the empty caption", do)
