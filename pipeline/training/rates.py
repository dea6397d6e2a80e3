"""What changes from step to step by a formula: the learning rate and the EMA's decay. Plain Python."""

from math import cos, pi


def learning_rate(step: int, steps: int, peak: float, scheduler: str, warmup: int) -> float:
    """The learning rate of `step` (0 is the first of `steps`), as diffusers' `get_scheduler` gives it: over `warmup`
    steps it rises evenly from 0 to `peak`; then "linear" falls evenly to 0 at `steps`, "cosine" along half a cosine,
    and "constant_with_warmup" stays. "constant" is `peak` from the first step on, whatever `warmup` says."""
    if scheduler == "constant":
        return peak
    if step < warmup:
        return peak * step / warmup
    if scheduler == "constant_with_warmup":
        return peak
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * (max(0.0, 1 - progress) if scheduler == "linear" else max(0.0, 0.5 * (1 + cos(pi * progress))))


def ema_decay(step: int, decay: float) -> float:
    """The EMA's decay after `step` (0 is the first): min(decay, (1 + step) / (10 + step)), so that a young average
    follows the weights; the first step copies them (diffusers' `EMAModel.get_decay`)."""
    return 0.0 if step == 0 else min(decay, (1 + step) / (10 + step))
