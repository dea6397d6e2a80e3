"""Steps, rates, optimizer, timesteps and validation."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pipeline.contradictions.objective import weightings
from pipeline.diffusion import timesteps
from pipeline.models.config import CONFIGS, SDXLConfig
from pipeline.training import groups, targets
from pipeline.training.rates import shared_steps
from pipeline.weights import layout
from pipeline.weights.names import PREFIX

if TYPE_CHECKING:
    from pipeline.params import Params, Train


def faults(params: "Params") -> Iterator[tuple[str, str]]:
    yield from _groups(params.train, CONFIGS[params.model.config])
    yield from _train(params.train, peak_rate(params))
    if params.train.source == "pictures":
        yield from _pictures(params)
    if (found := params.train.text_encoders) != "none":
        if params.cache_text.emphasis != "none":
            yield (
                "cache_text.emphasis",
                f"must be none with train.text_encoders {found}: words have no weights where encoders are trained; found "
                f"{params.cache_text.emphasis}",
            )


def _pictures(params: "Params") -> Iterator[tuple[str, str]]:
    if params.device.sink_size:
        yield (
            "device.sink_size",
            f"above 0 needs train.source cache: the encoders run between the steps; found {params.device.sink_size}",
        )
    if params.cache_latents.crops > 1:
        yield (
            "cache_latents.crops",
            "must be 1 with train.source pictures: each epoch has a crop of its own; found "
            f"{params.cache_latents.crops}",
        )


def _train(train: "Train", peak: float) -> Iterator[tuple[str, str]]:
    if (train.steps is None) == (train.epochs is None):
        found = f"{train.steps} and {train.epochs}"
        yield "train.steps", f"give one of steps and epochs and set the other to null, found {found}"
    elif train.steps is not None and (fault := warm_up_fault(train, train.steps)):
        yield "train.lr_warmup_steps", fault
    texts = train.text_encoder_learning_rate / train.learning_rate if train.text_encoders != "none" else 1.0
    highest = peak * max([1.0, texts, *(group.learning_rate or 1.0 for group in train.groups)])
    if train.optimizer != "prodigy" and train.weight_decay * highest >= 1:
        yield (
            "train.weight_decay",
            f"must be below 1 / the learning rate ({highest:g}): a step would take more than all of a weight; "
            f"found {train.weight_decay:g}",
        )
    for key, found in (weighting := weightings(train))[1:]:
        first = weighting[0][0]
        yield (
            f"train.{key}",
            f"{str(found).lower()} needs {first} null: both weight the loss by the signal-to-noise ratio",
        )
    if train.lr_scheduler == "polynomial" and train.lr_end >= peak:
        yield "train.lr_end", f"must be below the learning rate ({peak:g}), found {train.lr_end:g}"
    if train.timestep_min >= train.timestep_max:
        yield "train.timestep_min", f"must be below timestep_max ({train.timestep_max}), found {train.timestep_min}"
    begin, end = train.timestep_bias_begin, train.timestep_bias_end
    if train.timestep_bias_strategy == "range" and begin >= end:
        yield "train.timestep_bias_begin", f"must be below timestep_bias_end ({end}), found {begin}"
    if train.timestep_bias_strategy in ("earlier", "later") and train.timestep_bias_portion * 1000 < 1:
        yield (
            "train.timestep_bias_portion",
            f"{train.timestep_bias_strategy} needs 0.001 or more, one of the 1000 timesteps; found "
            f"{train.timestep_bias_portion:g}",
        )
    if fault := _bias_fault(train):
        yield f"train.timestep_bias_{'begin' if train.timestep_bias_strategy == 'range' else 'portion'}", fault
    if train.keep_state and not shared_steps(train.lr_scheduler, train.lr_decay_steps + 1, train.lr_decay_steps):
        yield (
            "train.keep_state",
            f"true needs lr_scheduler constant, constant_with_warmup or wsd, found {train.lr_scheduler}: its rates depend "
            "on the number of steps, so no longer run can go on from there",
        )
    if train.validation_share == 0:
        for key in ("keep_best", "patience"):
            if found := getattr(train, key):
                yield f"train.{key}", f"needs validation_share above 0: there is no validation loss; found {found}"
    if train.weights_dtype == "float16" and train.precision != "float16":
        yield (
            "train.weights_dtype",
            f"float16 needs precision float16, found {train.precision}; wanted bfloat16 or float32",
        )
    if train.weights_dtype == "float16" and train.optimizer == "prodigy" and train.adapter == "none":
        yield (
            "train.weights_dtype",
            "float16 loses the first steps of prodigy, a millionth each, and it would never find its rate; wanted "
            "bfloat16 or float32",
        )
    if train.shard_optimizer is True and train.optimizer != "adamw":
        yield "train.shard_optimizer", f"true needs optimizer adamw: {train.optimizer} keeps its state on each process"
    if len(set(train.validation_timesteps)) < len(train.validation_timesteps):
        yield "train.validation_timesteps", f"wanted each once, found {train.validation_timesteps[:20]}"


def bias(train: "Train") -> tuple[int, int, int, int]:
    """The first of the timesteps that the bias is on, and one past the last; and of those among them that are drawn."""
    begin, end = timesteps.biased(
        train.timestep_bias_strategy, train.timestep_bias_begin, train.timestep_bias_end, train.timestep_bias_portion
    )
    return begin, end, max(begin, train.timestep_min), min(end, train.timestep_max)


def _bias_fault(train: "Train") -> str | None:
    begin, end, first, last = bias(train)
    if begin >= end or train.timestep_min >= train.timestep_max or first < last:
        return None
    return (
        f"{train.timestep_bias_strategy} is of the timesteps {begin} to {end - 1}, and none of them is drawn: "
        f"timestep_min and timestep_max are {train.timestep_min} and {train.timestep_max}; wanted some that are, or "
        "timestep_bias_strategy none"
    )


def _groups(train: "Train", config: SDXLConfig) -> Iterator[tuple[str, str]]:
    unclear = False
    for number, group in enumerate(train.groups):
        if not group.freeze and group.learning_rate is not None and group.learning_rate < 1e-6:
            found = f"found {group.learning_rate:g}; with freeze: true in its place they stay as they are"
            yield f"train.groups.{number}.learning_rate", f"must be 0.000001 to 1000000; {found}"
        if group.freeze == (group.learning_rate is not None):
            unclear = True
            found = "both" if group.freeze else "neither"
            yield f"train.groups.{number}", f"give one of learning_rate and freeze: true, found {found}"
    prefix = PREFIX["unet"]
    shapes = {
        name.removeprefix(prefix): shape for name, shape in layout.shapes(config).items() if name.startswith(prefix)
    }
    names = list(shapes)
    if train.adapter != "none":
        names = targets.targets(shapes, train.adapter_targets, ())
        for number, pattern in enumerate(train.adapter_targets):
            if not targets.targets(shapes, [pattern], ()):
                yield (
                    f"train.adapter_targets.{number}",
                    f"no linear layer or convolution of the UNet has a weight of such a name: {pattern!r}; "
                    f"{groups.near_to(pattern, targets.adaptable(shapes))}",
                )
    if train.groups and names and not unclear:
        for number, fault in groups.faults(groups.groups(train.groups), names, list(shapes)):
            yield "train.groups" if number < 0 else f"train.groups.{number}.pattern", fault


def peak_rate(params: "Params") -> float:
    """The learning rate after warm-up."""
    train, device = params.train, params.device
    samples = train.batch_size * train.gradient_accumulation_steps * device.workers * device.nodes
    return train.learning_rate * (samples if train.scale_lr else 1)


def warm_up_fault(train: "Train", steps: int) -> str | None:
    """Why a run of so many steps can't have this warm-up, or None."""
    warm_up = train.lr_warmup_steps
    if train.lr_scheduler == "constant":  # which has none
        return None
    if train.lr_scheduler == "wsd" and warm_up + train.lr_decay_steps > steps:
        return (
            f"must not be above steps ({steps}) together with lr_decay_steps, found {warm_up} and "
            f"{train.lr_decay_steps}, {warm_up + train.lr_decay_steps} in all; add `-S train.lr_warmup_steps={steps // 10} "
            f"-S train.lr_decay_steps={steps // 5}`"
        )
    if warm_up > steps:
        return (
            f"must not be above steps ({steps}), found {warm_up}: the learning rate would never be reached; add "
            f"`-S train.lr_warmup_steps={steps // 10}`"
        )
    if warm_up == steps == 1:
        return "must be 0 for a single step, which would have the learning rate 0"
    return None
