"""Tensors that a checkpoint holds beside those of SDXL: left out, and named in the log."""

import re
from collections import Counter

from pipeline.weights.check import described, listed
from pipeline.weights.tensor import Tensor

_OTHERS = "others"
_KINDS = {
    "marks of the objective": r"v_pred|ztsnr|edm_mean|edm_std|edm_vpred\..*",
    "of a noise schedule": r"(.*\.)?((sqrt_|log_)?(one_minus_|recipm?1?_)?alphas_cumprod(_prev)?|alphas|betas|sigmas"
    r"|log_sigmas|posterior_\w+)",
    "positions, which count 0 to 76": r".*\.position_ids",
    "averaged weights (EMA)": r"(.*\.)?(model_)?ema\..*",
    "of an adapter (LoRA, LyCORIS)": r"(lora|lycoris)_.*|.*\.(lora|hada|lokr|oft|dora)_.*",
    "of an optimizer or its progress": r"(adam_[mv]|moments?|moment[12]|exp_avg(_sq)?|state)\..*"
    r"|global_step|epoch_num|step_num|learning_rate|updates|current_iterator_step",
    _OTHERS: r"(?s:.*)",
}


def is_harmless(name: str) -> bool:
    """Whether the name is one of a kind that is known to stand beside weights, and so cannot be a weight's own."""
    return _kind(name) != _OTHERS


def counted(found: dict[str, Tensor]) -> str:
    """One line that counts the tensors by kind; "" for none."""
    counts = Counter(map(_kind, found))
    kinds = [f"{counts[kind]:,} {kind}" for kind in _KINDS if kind in counts]
    are = "tensor, which is" if len(found) == 1 else "tensors, which are"
    return f"  {len(found):,} further {are} no part of SDXL: {'; '.join(kinds)}" if found else ""


def note(found: dict[str, Tensor]) -> str:
    """Lines that count the tensors and name them by kind."""
    kinds: dict[str, list[str]] = {kind: [] for kind in _KINDS}
    for name, tensor in found.items():
        kinds[_kind(name)].append(described(name, tensor))
    lines = [listed(kind, names) for kind, names in kinds.items() if names]
    are = ("tensor, which is", "is") if len(found) == 1 else ("tensors, which are", "are")
    return "\n".join([f"{len(found):,} further {are[0]} no part of SDXL, {are[1]} left out:", *lines])


def _kind(name: str) -> str:
    return next(kind for kind, pattern in _KINDS.items() if re.fullmatch(pattern, name.rpartition("/")[2]))
