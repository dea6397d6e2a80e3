"""The data of a run, and the faults that only the data show. Needs no MindSpore, so they stop it at once."""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline import params
from pipeline.cache.building import previews
from pipeline.cache.format.preparation import Preparation
from pipeline.cache.reading.live import LiveReader, Originals
from pipeline.cache.reading.reader import CacheError, Reader
from pipeline.cache.reading.texts import CaptionReader, Captions
from pipeline.contradictions.train import warm_up_fault
from pipeline.stage import StageError
from pipeline.training.feed import epochs

log = logging.getLogger(__name__)

PICTURES = "pictures"  # subfolder of live/ for what is drawn on the way; it is there also when nothing is
_MOST_STEPS = 99_999_999  # a state's name has its step in eight digits


@dataclass(frozen=True)
class Paths:
    unet: Path  # the weights to start from
    latents: Path
    text: Path
    samples: Path  # samples.parquet
    vae: Path  # the encoders that made the caches; the VAE is read for pictures as well (train.sample_interval)
    clip_l: Path
    clip_g: Path
    out: Path  # folder of weights/ (unet.ckpt, unet_ema.ckpt) and live/ (the curves)


@dataclass(frozen=True)
class Data:
    reader: Reader
    subset: np.ndarray  # int64 sample indices of the training part
    held_out: np.ndarray  # and of the held-out part


def open_data(
    paths: Paths,
    made_with: dict[str, dict],
    train: params.Train,
    preparation: Preparation | None = None,
    originals: Originals | None = None,
    captions: Captions | None = None,
    emphasis: str = "none",
) -> Data:
    """Open the caches, or the `originals` with train.source pictures, or `captions` with train.reads_captions, and hold
    out a share of the pictures. made_with: "latents" and "text" -> the settings that the rows must have been made with;
    preparation: that of params.yaml; emphasis: cache_text.emphasis. Where the encoders' checkpoints are on this
    computer, the rows must be theirs.

    Raises StageError."""
    outs = paths.latents, paths.text, paths.samples
    try:
        if train.source == "pictures":
            taught = train.text_encoders != "none"
            reader = LiveReader(*outs, originals, captions, train.batch_size, taught)
        elif train.reads_captions:
            made = _present({"vae": paths.vae})
            reader = CaptionReader(
                *outs, captions, train.batch_size, **made, made_with=made_with, preparation=preparation
            )
        else:
            reader = _open_caches(paths, made_with, train, preparation, emphasis)
    except CacheError as error:
        raise StageError(str(error)) from error
    subset, held_out = split(reader.names, train.validation_share)
    held_out = validated(reader, held_out)
    if not len(subset):
        reader.close()
        raise StageError(
            f"{paths.latents} has {reader.pictures(np.arange(reader.n))} pictures and train.validation_share "
            f"{train.validation_share} leaves none to train on"
        )
    subset = subset[reader.repeats[subset] > 0]
    once = subset
    if reader.samples is not None:  # of several views of a sample an epoch has one
        once = subset[np.unique(reader.samples[subset], return_index=True)[1]]
    if (total := reader.repeats[once].sum()) < 1:
        reader.close()
        raise StageError(
            f"an epoch has {total:g} samples: {paths.samples} says how often each is seen, by the repeats and weights of "
            "the data set; wanted 1 at least"
        )
    return Data(reader, subset, held_out)


def _open_caches(
    paths: Paths, made_with: dict[str, dict], train: params.Train, preparation: Preparation | None, emphasis: str
) -> Reader:
    present = _present({name: getattr(paths, name) for name in ("vae", "clip_l", "clip_g")})
    texts = previews.texts(train.previews)
    return Reader(
        paths.latents,
        paths.text,
        paths.samples,
        **present,
        made_with=made_with,
        texts=texts,
        preparation=preparation,
        emphasis=emphasis,
    )


def _present(encoders: dict[str, Path]) -> dict[str, Path]:
    """Those that are on this computer; the others are named in the log."""
    absent = [str(path) for path in encoders.values() if not path.exists()]
    if absent:
        log.info("not compared with the caches, as they are not here: %s", ", ".join(absent))
    return {name: path for name, path in encoders.items() if path.exists()}


def split(names: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Sample indices (int64) of the training and of the held-out part of `names` (n, 16) uint8. A picture is held out
    when its content's hash, read as a number from 0 to 1, is below `share`: adding pictures moves none of the
    others."""
    place = np.ascontiguousarray(names[:, :8]).view(">u8")[:, 0] / 2.0**64
    return np.flatnonzero(place >= share).astype(np.int64), np.flatnonzero(place < share).astype(np.int64)


def validated(reader: Reader, held_out: np.ndarray) -> np.ndarray:
    """Of the samples `held_out` those that are validated on: of each picture the first that is of no class set."""
    found = held_out[~reader.class_images[held_out]]
    _, first = np.unique(reader.names[found], axis=0, return_index=True)
    return found[first]


def count_steps(data: Data, train: params.Train, ranks: int) -> tuple[int, int]:
    """(optimizer steps of the run, of its first epoch) on so many ranks. Raises StageError when train.epochs makes
    steps that the other settings do not allow."""
    global_batch = train.batch_size * train.gradient_accumulation_steps * ranks
    starts = epochs(data.reader, data.subset, train.seed, global_batch)
    per_epoch, end = starts.start(1), train.steps or starts.start(train.epochs)
    pictures = data.reader.pictures(data.subset)
    made_of = f"train.epochs {train.epochs} of {per_epoch} steps, {pictures} pictures in batches of {global_batch}"
    if end > _MOST_STEPS:
        raise StageError(f"{made_of}, are {end} steps; wanted at most {_MOST_STEPS}")
    if fault := warm_up_fault(train, end):
        raise StageError(f"train.lr_warmup_steps: {fault} ({made_of})")
    return end, per_epoch


def count_graphs(buckets: int, validated: int, sinks: bool, ema: bool) -> int:
    """How many graphs a run compiles over so many buckets to train on and to validate on: one of the gradients for each
    bucket and one of the update, or with a data sink a single one; one of the loss for each bucket that is validated;
    and those of the averages."""
    return (1 if sinks else buckets + 1) + validated + (3 if ema and validated else ema)
