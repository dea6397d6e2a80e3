"""What changes from step to step by a formula: the learning rate and the EMA's decay. Plain Python."""

from math import cos, pi


def learning_rate(
    step: int,
    steps: int,
    peak: float,
    scheduler: str,
    warmup: int,
    *,
    num_cycles: int = 1,
    power: float = 1.0,
    end: float = 0.0,
    decay_steps: int = 0,
) -> float:
    """The learning rate of `step` (0 is the first of `steps`), as diffusers' `get_scheduler` gives it: over `warmup`
    steps it rises evenly from 0 to `peak`, and then

    "linear": falls evenly to 0 at `steps`; "cosine": along half a cosine; "cosine_with_restarts": along half a cosine
    `num_cycles` times; "polynomial": to `end`, as the `power` of what is left of the steps; "constant_with_warmup":
    stays; "wsd" (warm-up, stable, decay, arXiv 2404.06395; transformers' `get_wsd_schedule`): stays until the last
    `decay_steps`, in which it falls along half a cosine, so that a longer run has the same rates up to there.
    "constant" is `peak` from the first step on, whatever `warmup` says."""
    if scheduler == "constant":
        return peak
    if step < warmup:
        return peak * step / warmup
    if scheduler == "constant_with_warmup":
        return peak
    if scheduler == "wsd":
        into = step - (steps - decay_steps)
        return peak if into <= 0 else peak * max(0.0, 0.5 * (1 + cos(pi * into / decay_steps)))
    progress = (step - warmup) / max(1, steps - warmup)
    if scheduler == "linear":
        return peak * max(0.0, 1 - progress)
    if scheduler == "polynomial":
        return end + (peak - end) * max(0.0, 1 - progress) ** power
    if scheduler == "cosine_with_restarts":
        return 0.0 if progress >= 1 else peak * max(0.0, 0.5 * (1 + cos(pi * (num_cycles * progress % 1))))
    return peak * max(0.0, 0.5 * (1 + cos(pi * progress)))


def shared_steps(scheduler: str, steps: int, decay_steps: int) -> int:
    """How many of a run's `steps` have the learning rate that they have in any longer run; 0: none, as the rate of each
    depends on how many there are."""
    if scheduler == "wsd":
        return max(0, steps - decay_steps)
    return steps if scheduler in ("constant", "constant_with_warmup") else 0


def ema_decay(step: int, decay: float) -> float:
    """The EMA's decay after `step` (0 is the first): min(decay, (1 + step) / (10 + step)), so that a young average
    follows the weights; the first step copies them (diffusers' `EMAModel.get_decay`)."""
    return 0.0 if step == 0 else min(decay, (1 + step) / (10 + step))
