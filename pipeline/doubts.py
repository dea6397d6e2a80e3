"""Settings that are allowed and that few runs want: most are left over from the other model. What can't be wanted is
refused by pipeline/contradictions."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pipeline import without_effect
from pipeline.contradictions.model import PRESET
from pipeline.contradictions.paths import BASE_UNET
from pipeline.contradictions.pictures import own_sides
from pipeline.contradictions.train import bias, peak_rate

if TYPE_CHECKING:
    from pipeline.params import Params, Train


LION_SDXL, LION_TINY = 5e-6, 5e-4  # rates above which lion is given adamw's


def doubts(params: "Params") -> Iterator[tuple[str, str]]:
    """(key, what is doubtful and what is usual)."""
    yield from _of_previews(params)
    yield from (_of_sdxl if params.model.config == "sdxl-base" else _of_tiny)(params)
    yield from _optimizer(params)
    yield from _alpha(params.train)
    yield from _loras(params)
    yield from _bias(params.train)
    yield from _too_short(params.train)
    yield from _for_nothing(params)
    yield from _flow(params)
    yield from without_effect.doubts(params)
    if params.model.loras and params.train.init_from != BASE_UNET:
        yield (
            "model.loras",
            f"they are merged into the base, and the UNet that is trained is another one's (train.init_from: "
            f"{params.train.init_from}): of them only the text encoders' part counts there",
        )
    for key in ("snr_gamma", "snr_gamma_soft", "p2_gamma"):
        if params.diffusion.zero_terminal_snr and getattr(params.train, key) is not None:
            yield (
                f"train.{key}",
                "with diffusion.zero_terminal_snr true the last timestep, which has no signal, gets the weight 0 and "
                "is not learned; null is usual",
            )


def _of_previews(params: "Params") -> Iterator[tuple[str, str]]:
    if params.train.previews and not params.train.sample_interval:
        yield "train.previews", "none are drawn, as train.sample_interval is 0; 100 or 500 is usual"


def _for_nothing(params: "Params") -> Iterator[tuple[str, str]]:
    """Values with which a key does not do what it is for."""
    train, sample = params.train, params.sample
    if train.save_dtype != "float32" and train.adapter == "none" and not train.save_interval and not train.keep_best:
        yield (
            "train.save_dtype",
            f"{train.save_dtype} has no effect without train.save_interval or train.keep_best; merge.dtype is that of the model",
        )
    if train.lr_scheduler == "wsd" and not train.lr_decay_steps:
        yield (
            "train.lr_decay_steps",
            "0 leaves wsd without its decay, as constant_with_warmup; a tenth of the steps is usual",
        )
    if train.multires_noise_iterations and not train.multires_noise_discount:
        yield "train.multires_noise_discount", "0 adds nothing of the further noises; 0.1 to 0.4 is usual"
    if train.loss_type == "huber" and train.huber_schedule == "exponential" and train.huber_c > 1:
        yield (
            "train.huber_c",
            f"{train.huber_c:g} with the exponential schedule, which begins at 1, rises; 0.1 is usual",
        )
    if sample.guidance_scale == 1 and sample.guidance_rescale:
        yield (
            "sample.guidance_rescale",
            f"{sample.guidance_rescale:g} has no effect with guidance_scale 1, which draws without guidance",
        )
    for number, one in enumerate(sample.prompts):
        guidance = sample.guidance_scale if isinstance(one, str) or one.guidance_scale is None else one.guidance_scale
        if guidance == 1 and not isinstance(one, str) and one.negative_prompt is not None:
            yield (
                f"sample.prompts.{number}",
                "its negative prompt has no effect with guidance_scale 1, which draws without guidance",
            )


def _too_short(train: "Train") -> Iterator[tuple[str, str]]:
    """What a run of so many steps does not come to; of epochs the data say how many steps they are."""
    if train.steps is None:
        return
    for key, none in (("save_interval", "none in between are kept"), ("sample_interval", "no pictures are drawn")):
        if (interval := getattr(train, key)) > train.steps:
            yield f"train.{key}", f"{none}: {interval} is above train.steps ({train.steps})"
    if train.keep_best and train.validation_interval >= train.steps:
        yield (
            "train.keep_best",
            f"the only validation is that of the last step: train.validation_interval {train.validation_interval} is not below "
            f"train.steps ({train.steps})",
        )
    if train.log_interval > train.steps:
        yield (
            "train.log_interval",
            f"the curves have one point: {train.log_interval} is above train.steps ({train.steps})",
        )
    if train.lr_scheduler == "cosine_with_restarts" and train.lr_num_cycles > train.steps // 2:
        yield (
            "train.lr_num_cycles",
            f"{train.lr_num_cycles} in {train.steps} steps leaves no cycle two steps; 1 to 10 is usual",
        )
    first = (train.patience + 1) * train.validation_interval  # one is the best by then, and as many are no better
    if train.patience and first >= train.steps:
        yield (
            "train.patience",
            f"{train.patience} cannot stop the run early: validations every {train.validation_interval} steps "
            f"(validation_interval) can do so after step {first}, and train.steps is {train.steps}",
        )


def _bias(train: "Train") -> Iterator[tuple[str, str]]:
    key, strategy = "train.timestep_bias_strategy", train.timestep_bias_strategy
    begin, end, first, last = bias(train)
    drawn = train.timestep_min, train.timestep_max
    if strategy == "none":
        return
    if train.timestep_bias_multiplier == 1:
        yield key, f"{strategy} changes nothing with timestep_bias_multiplier 1; another multiplier, or none, is usual"
    elif (first, last) == drawn:
        yield key, f"{strategy} changes nothing: all timesteps that are drawn, {first} to {last - 1}, are in it"
    elif (first, last) != (begin, end):
        yield (
            key,
            f"{strategy} is of the timesteps {begin} to {end - 1}, of which only {first} to {last - 1} are drawn "
            "(timestep_min, timestep_max)",
        )


def _flow(params: "Params") -> Iterator[tuple[str, str]]:
    shift, further = params.diffusion.flow_shift, params.index.further_resolutions
    if shift != 1 and further:  # only flow has one
        resolutions = ", ".join(map(str, sorted({params.index.resolution, *further})))
        yield (
            "diffusion.flow_shift",
            f"pictures of all resolutions ({resolutions}) get the shift {shift:g}, and smaller ones want a smaller one; "
            "one resolution (index.further_resolutions: []), or the shift 1, is usual",
        )


def _optimizer(params: "Params") -> Iterator[tuple[str, str]]:
    train, rate = params.train, peak_rate(params)
    if train.optimizer == "prodigy" and not 0.1 <= rate <= 10:
        yield (
            "train.learning_rate",
            f"{rate:g} is far from 1, and prodigy multiplies the rate that it finds by it; 1.0 is usual",
        )
    if train.optimizer == "lion" and rate > (LION_SDXL if params.model.config == "sdxl-base" else LION_TINY):
        yield (
            "train.learning_rate",
            f"{rate:g} is adamw's; lion wants a rate 3 to 10 times smaller (docs/optimizers.md)",
        )


def _loras(params: "Params") -> Iterator[tuple[str, str]]:
    paths = [lora.path for lora in params.model.loras]
    for path in sorted({path for path in paths if paths.count(path) > 1}):
        yield "model.loras", f"{path} stands there more than once, and each one's change is added"
    for lora in params.model.loras:
        if not lora.weight:
            yield "model.loras", f"{lora.path} has the weight 0, and changes nothing"


def _alpha(train: "Train") -> Iterator[tuple[str, str]]:
    if train.adapter != "none" and train.alpha > 8 * train.rank:
        yield (
            "train.alpha",
            f"{train.alpha:g} with a rank of {train.rank} multiplies the adapter's change by {train.alpha / train.rank:g}, and "
            "training may fly apart; as large as the rank, or half, is usual",
        )


def _of_sdxl(params: "Params") -> Iterator[tuple[str, str]]:
    train, index = params.train, params.index
    if (rate := peak_rate(params)) > 7e-4 and train.adapter != "none" and train.optimizer != "prodigy":
        yield "train.learning_rate", f"{rate:g} is high for an adapter of SDXL: 5e-5 to 5e-4 is usual"
    if rate > 5e-5 and train.optimizer not in ("lion", "prodigy") and train.adapter == "none":
        yield "train.learning_rate", f"{rate:g} is high for all of SDXL's UNet: 4e-7 to 1e-5 is usual; {PRESET}"
    texts, adapts = train.text_encoder_learning_rate, train.adapter != "none"
    own = train.optimizer in ("lion", "prodigy")  # which have rates of their own
    if adapts and rate < 2e-5 and not own:
        yield (
            "train.learning_rate",
            f"{rate:g} is low for an adapter of SDXL, which learns next to nothing by it: 5e-5 to 5e-4 is usual",
        )
    if train.text_encoders != "none" and not own:
        of = "adapters of SDXL's text encoders: 1e-5 to 1e-4" if adapts else "SDXL's text encoders: 1e-6 to 3e-6"
        if texts > (5e-4 if adapts else 1e-5):
            yield "train.text_encoder_learning_rate", f"{texts:g} is high for {of} is usual"
        if adapts and texts < 5e-6:
            yield "train.text_encoder_learning_rate", f"{texts:g} is low for {of} is usual"
    if index.resolution < 768:
        yield "index.resolution", f"SDXL was trained at 1024 and draws worse at {index.resolution}; {PRESET}"
    if index.buckets and index.bucket_step < 64:
        yield "index.bucket_step", f"{index.bucket_step} makes many more buckets, each a graph to compile; 64 is usual"
    if index.max_enlargement is None and index.min_side < index.resolution // 4:
        yield (
            "index.min_side",
            f"pictures of {index.min_side} pixels a side are enlarged to {index.resolution}; wanted "
            f"{index.resolution // 2} or a bound in index.max_enlargement",
        )
    if train.precision == "float32":
        yield "train.precision", "float32 has no flash attention and takes more memory; float16 or bfloat16 is usual"
    if train.checkpointing_steps <= 100:
        yield (
            "train.checkpointing_steps",
            f"a state of SDXL's training takes 10 to 41 GB and {train.checkpointing_steps} steps some minutes; 500 or "
            "1000 is usual",
        )
    for key, side in dict.fromkeys(_sides(params)):
        if side < 512:
            yield key, f"SDXL draws pictures of 1024 pixels a side, and worse at {side}"


def _of_tiny(params: "Params") -> Iterator[tuple[str, str]]:
    index = params.index
    if (rate := peak_rate(params)) < (1e-5 if params.train.optimizer == "lion" else 1e-4):
        yield "train.learning_rate", f"{rate:g} is SDXL's; the tiny model learns next to nothing by it, 1e-3 is usual"
    if index.resolution > 128:
        yield "index.resolution", f"the tiny model was trained at 64, and {index.resolution} is asked for; {PRESET}"
    for key, side in dict.fromkeys(_sides(params)):
        if side > 256:
            yield key, f"{side} is SDXL's; the tiny model draws 64 pixels a side"


def _sides(params: "Params") -> Iterator[tuple[str, int]]:
    """(key of params.yaml, side) of all pictures; a prompt's own sides stand in the key of the prompts."""
    yield from ((f"sample.{key}", getattr(params.sample, key)) for key in ("width", "height"))
    yield from ((place.rpartition(".")[0], side) for place, _, side in own_sides(params))
