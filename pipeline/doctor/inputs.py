"""What a run reads: weights, tokenizer, pictures and captions. Headers and a few pictures only."""

import contextlib
import io
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np

from pipeline import preset
from pipeline.cache.building.tokens import check_vocabulary
from pipeline.contradictions.model import PRESET
from pipeline.contradictions.paths import BASE_UNET
from pipeline.data import fit, urls
from pipeline.data.buckets import sizes
from pipeline.data.by_params import opened
from pipeline.data.examine import look_at_all
from pipeline.data.index import in_sets
from pipeline.data.part import Part, choose_pictures, is_far
from pipeline.data.sets import Members, Set, check, epoch, is_whole, members, of_passed_over, passed_over
from pipeline.data.views import USUAL, resolutions, sizes_of
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
    """What the data set says of its sets, and its first parts up to one with pictures, of which some are decoded."""
    data, index = params.data, params.index
    if is_far(data.images) and (data.images.startswith("hf://") or "{" in data.images):
        do = f"Write it into a file such as data/web{urls.END}, and set data.images to that (docs/far-data.md)"
        return [
            Finding("data", BAD, f"data.images is {data.images}", "what DVC can watch: no hf:// and no pattern", do)
        ]
    source, sets, _ = opened(data.images, params)
    further = sizes_of(sets, index.bucket_step, index.buckets)
    part = next((part for part in in_sets(source, sets, None) if len(part.paths) or part.lost), None)
    if part is None:
        which = "" if is_whole(sets) else " that are in a set"
        raise StageError(f"data.images is {data.images}, and it holds no pictures{which}")
    if not len(part.paths):
        return [Finding("data", BAD, f"{part.lost[0].path}: {part.lost[0].reason}", "pictures that can be read")]
    of_part = members(part, sets)
    if source.part_count == 1:
        check(sets, Counter(of_part.number.tolist()))
        epoch(sets, np.bincount(of_part.number, part.times[of_part.picture], len(sets)).tolist())
    is_chosen = np.zeros(len(part.paths), bool)
    is_chosen[np.linspace(0, len(part.paths) - 1, LOOKED_AT).astype(int)] = True
    chosen = choose_pictures(part, is_chosen)
    found = look_at_all(source, chosen, index.max_pixels)
    allowed = {USUAL: sizes(index.resolution, index.bucket_step, index.buckets), **further}
    choices = fit.choices(chosen, found, allowed, allowed, index.min_side, index.max_enlargement)
    reasons = {side: choice.reasons for side, choice in choices.items()}
    return [
        _pictures(params, part, len(found), _bad(members(chosen, sets), sets, reasons)),
        _captions(part, of_part, sets),
    ]


def _bad(found: Members, sets: tuple[Set, ...], reasons: dict[int, np.ndarray]) -> list[str]:
    """Why pictures are used by none of their sets. reasons: of all pictures, by resolution."""
    of_picture = defaultdict(list)
    for picture, number in zip(found.picture.tolist(), found.number.tolist()):
        of_picture[picture] += [reasons[side][picture] for side in resolutions(sets[number])]
    return [each[0] for each in of_picture.values() if None not in each]


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


def _captions(part: Part, of_part: Members, sets: tuple[Set, ...]) -> Finding:
    captioned = len(np.unique(of_part.caption_picture))
    found = f"{captioned:,} of these {len(part.paths):,} pictures have captions"
    if captioned == len(part.paths):
        return Finding("captions", GOOD, f"{found}, such as {of_part.texts[0].as_py()[:60]!r}")
    said = of_passed_over(passed_over(part, sets), sets)
    do = (
        "; ".join(said)
        or "Captions are name.txt beside name.png, or a column of metadata.jsonl, metadata.csv or a .parquet"
    )
    state = DOUBTFUL if captioned else BAD
    return Finding("captions", state, found, "one for each, or they are trained on with the empty caption", do)
