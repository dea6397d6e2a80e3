"""From the cache to the inputs of a step, on the host and ahead of the device; or from the pictures, which are prepared
ahead and encoded in the loop.

Every random number is a function of (seed, step, number of the sample in the plan), so a resumed run and any number of
ranks feed the same samples with the same noise."""

import functools
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from pipeline.cache.reading import plan
from pipeline.cache.reading.reader import Batch, Reader
from pipeline.diffusion import conditioning, draws, loss, noise, schedule, timesteps
from pipeline.stage import StageError

DROPPED = -1  # in the place of the ids of a text that is left out
_ADVICE = {  # whether the loop encodes ->
    False: "`python -m pipeline.cache verify` checks the caches",
    True: "the picture or the encoders' weights are broken, or their precision is too low",
}


@dataclass(frozen=True)
class Inputs:
    """One micro-batch, as training/step.py takes it."""

    x_t: np.ndarray  # (b, 4, h, w) float32
    timesteps: np.ndarray  # (b,) float32
    # (b, tokens, context_dim) float32; where text encoders are trained (b, 2, chunks, 77) int32 ids
    context: np.ndarray
    vector: np.ndarray  # (b, vector_dim) float32, or then without the pooled text
    target: np.ndarray  # (b, 4, h, w) float32
    weight: np.ndarray  # (b,) float32, or where the cache has masks (b, 1, h, w); 0 for padding

    def arrays(self) -> tuple[np.ndarray, ...]:
        return self.x_t, self.timesteps, self.context, self.vector, self.target, self.weight


@dataclass(frozen=True)
class Objective:
    """What the UNet is trained on: schedule, timesteps, weights and noise. The arrays have 1000 entries."""

    seed: int
    prediction: str
    alphas: np.ndarray  # alphas_cumprod
    chances: np.ndarray  # of each timestep
    weights: np.ndarray  # of the loss at each timestep
    scaling_factor: float  # from the VAE's latents to the UNet's, after the shift is taken off
    shift_factor: float = 0.0
    noise_offset: float = 0.0
    multires_noise_iterations: int = 0
    multires_noise_discount: float = 0.0
    input_perturbation: float = 0.0
    caption_dropout: float = 0.0
    caption_dropout_with: str = "zeros"
    mask_floor: float = 0.0  # how much what is outside of a mask counts


@dataclass(frozen=True)
class Step:
    """What one optimizer step reads."""

    number: int
    samples: np.ndarray  # (global_batch,) int64 sample indices over all ranks, -1 for padding
    micro_batches: list[Inputs]  # of this rank


def size(latents: np.ndarray) -> str:
    """The bucket in pixels, of which both configurations' VAEs make latents (b, 4, h, w) with sides of an eighth."""
    height, width = latents.shape[2:]
    return f"{8 * width}x{8 * height}"


def latents(batch: Batch, posterior: np.ndarray | None, scaling_factor: float, shift_factor: float = 0.0) -> np.ndarray:
    """(b, 4, h, w) float32 latents as the UNet sees them, (z - shift_factor) * scaling_factor of the VAE's z. Of cached
    moments, z is a draw with the standard normal numbers `posterior` (b, 4, h, w), or the mean when that is None; of
    cached latents, these as they are."""
    values = batch.latents.astype(np.float32)
    if values.shape[1] == 8:
        mean, log_variance = values[:, :4], values[:, 4:]
        # the same bounds as Latent Diffusion's DiagonalGaussianDistribution
        values = mean if posterior is None else mean + np.exp(0.5 * np.clip(log_variance, -30.0, 20.0)) * posterior
    return (values - np.float32(shift_factor)) * np.float32(scaling_factor)


def conditions(batch: Batch, dropped: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The context and the vector that the UNet is conditioned on, float32, with zeros for the text where `dropped` (b,)
    bool; or what models/with_text.py wants in their place."""
    dropped = np.zeros(len(batch.images), bool) if dropped is None else dropped
    if batch.ids is not None:
        ids = np.where(dropped[:, None, None, None], DROPPED, batch.ids).astype(np.int32)
        return ids, conditioning.vector(np.zeros((len(ids), 0)), batch.time_ids)
    context, pooled = np.array(batch.context, np.float32), np.array(batch.pooled, np.float32)
    context[dropped], pooled[dropped] = 0, 0
    return context, conditioning.vector(pooled, batch.time_ids)


def micro_batch(
    reader: Reader,
    objective: Objective,
    samples: np.ndarray,
    filler: int,
    epoch: int,
    step: int,
    real: int,
    global_batch: int,
) -> Callable[[], Inputs]:
    """-> function that gives the inputs for `samples` (b,), of which -1 reads sample `filler` at weight 0; `real` of
    `global_batch` are not padding. What is read is begun here.

    That raises StageError when an encoded value is not finite, with the step and the sample."""
    seed, o = objective.seed, objective
    filled = np.where(samples >= 0, samples, filler)
    of_set = reader.caption_dropout[filled % reader.n]
    dropout = np.where(of_set < 0, o.caption_dropout, of_set.astype(np.float64))
    dropped = draws.uniform(seed, draws.DROPOUT, step, samples) < dropout
    read = reader.begin(filled, epoch, seed, dropped if o.caption_dropout_with == "empty" else None)
    return functools.partial(_inputs, reader, objective, samples, filled, dropped, read, step, real, global_batch)


def _inputs(
    reader: Reader, objective: Objective, samples: np.ndarray, filled: np.ndarray, dropped: np.ndarray,
    read: Callable[[], Batch], step: int, real: int, global_batch: int,
) -> Inputs:  # fmt: skip
    seed, o, batch = objective.seed, objective, read()
    shape = (4, *batch.latents.shape[2:])
    posterior = draws.normal(seed, draws.POSTERIOR, step, samples, shape) if batch.latents.shape[1] == 8 else None
    x_0 = latents(batch, posterior, o.scaling_factor, o.shift_factor)
    draw = timesteps.draw_between if o.prediction == "flow" else timesteps.draw
    t = draw(o.chances, seed, step, samples)
    added = draws.normal(seed, draws.NOISE, step, samples, shape)
    if o.noise_offset:
        added = noise.offset(added, o.noise_offset, seed, step, samples)
    if o.multires_noise_iterations:
        added = noise.pyramid(added, o.multires_noise_iterations, o.multires_noise_discount, seed, step, samples)
    seen = noise.perturbed(added, o.input_perturbation, seed, step, samples) if o.input_perturbation else added
    context, vector = conditions(batch, dropped if o.caption_dropout_with == "zeros" else None)
    for index, sample in enumerate(filled):
        if not (
            np.isfinite(x_0[index]).all() and np.isfinite(context[index]).all() and np.isfinite(vector[index]).all()
        ):
            raise StageError(
                f"step {step}: the {'encoded' if reader.encodes else 'cached'} latents or text of sample "
                f"{reader.names[sample % reader.n].tobytes().hex()} (number {sample % reader.n}) are not finite; "
                f"{_ADVICE[reader.encodes]}"
            )
    mixture = schedule.mixture(o.prediction, t, o.alphas)
    weights = o.weights[t.astype(np.int32)] * reader.loss_weights[filled % reader.n]
    weights = loss.batch_weights(weights, samples >= 0, real, global_batch)
    return Inputs(
        schedule.add_noise(x_0, seen, *mixture),
        t.astype(np.float32),
        context,
        vector,
        schedule.target(o.prediction, x_0, added, *mixture),
        weights if batch.masks is None else loss.masked(weights, batch.masks, o.mask_floor),
    )


def epochs(reader: Reader, subset: np.ndarray, seed: int, global_batch: int) -> plan.Epochs:
    """Where epochs begin, in optimizer steps: in each the samples of `subset` are seen as often as they should be."""
    return plan.Epochs(reader.buckets, reader.repeats, subset, seed, global_batch, reader.samples)


class Steps:
    """The steps `first` to `end` - 1 of one rank, the rest of the whole run, over as many epochs as it takes. Each is
    made when it is asked for, and is a function of its number alone."""

    def __init__(
        self, reader: Reader, objective: Objective, subset: np.ndarray, first: int, end: int,
        batch_size: int, accumulation: int, rank: int, ranks: int,
    ):  # fmt: skip
        self.reader, self.objective, self.subset = reader, objective, subset
        self.first, self.end = first, end
        self.accumulation, self.rank, self.ranks = accumulation, rank, ranks
        self.global_batch = batch_size * accumulation * ranks
        self.epochs = epochs(reader, subset, objective.seed, self.global_batch)
        # a sink's thread and the loop may be at two epochs
        self._plan = functools.lru_cache(2)(
            lambda epoch: plan.epoch_plan(
                reader.buckets, reader.repeats, subset, objective.seed, epoch, self.global_batch, reader.samples
            )
        )

    def __len__(self) -> int:
        return self.end - self.first

    def samples(self, number: int) -> np.ndarray:
        """(global_batch,) int64 sample indices of a step over all ranks, -1 for padding."""
        epoch = self.epochs.of(number)
        return self._plan(epoch)[number - self.epochs.start(epoch)]

    def __getitem__(self, index: int) -> Step:
        return self.begin(index)()

    def begin(self, index: int) -> Callable[[], Step]:
        """-> function that gives the step: where the reader encodes, it is for the loop to call."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = self.first + index
        epoch, row = self.epochs.of(number), self.samples(number)
        real = row[row >= 0]
        parts = np.split(np.split(row, self.ranks)[self.rank], self.accumulation)
        begun = [
            micro_batch(self.reader, self.objective, part, int(real[0]), epoch, number, len(real), self.global_batch)
            for part in parts
        ]

        def finish() -> Step:
            return Step(number, row, [one() for one in begun])

        if self.reader.encodes:
            return finish
        step = finish()
        return lambda: step


def ahead(source: Iterable, depth: int = 2) -> Iterator:
    """The items of `source`, made in a thread of its own, `depth` of them ahead. Its exceptions are raised here."""
    items: queue.Queue = queue.Queue(depth)
    stop = threading.Event()

    def put(item) -> bool:
        while not stop.is_set():
            try:
                items.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work():
        try:
            for item in source:
                if not put((item, None)):
                    return
            put((None, StopIteration()))
        except BaseException as error:  # noqa: BLE001  (handed to the consumer, who raises it)
            put((None, error))

    thread = threading.Thread(target=work, name="feed", daemon=True)
    thread.start()
    try:
        while True:
            item, error = items.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item
    finally:
        stop.set()
        thread.join()
