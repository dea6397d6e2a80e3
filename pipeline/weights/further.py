"""Tensors that a checkpoint holds beside those of SDXL: left out, and named in the log."""

import re

from pipeline.weights.check import described, listed
from pipeline.weights.tensor import Tensor

_KINDS = {
    "marks of the objective": r"v_pred|ztsnr|edm_mean|edm_std|edm_vpred\..*",
    "of a noise schedule": r"(.*\.)?((sqrt_|log_)?(one_minus_|recipm?1?_)?alphas_cumprod(_prev)?|alphas|betas|sigmas"
    r"|log_sigmas|posterior_\w+)",
    "positions, which count 0 to 76": r".*\.position_ids",
    "averaged weights (EMA)": r"(.*\.)?(model_)?ema\..*",
    "of an adapter (LoRA, LyCORIS)": r"(lora|lycoris)_.*|.*\.(lora|hada|lokr|oft|dora)_.*",
    "of an optimizer or its progress": r"(adam_[mv]|moments?|moment[12]|exp_avg(_sq)?|state)\..*"
    r"|global_step|epoch_num|step_num|learning_rate|updates|current_iterator_step",
    "others": r"(?s:.*)",
}


def note(found: dict[str, Tensor]) -> str:
    """Lines that count the tensors and name them by kind."""
    kinds: dict[str, list[str]] = {kind: [] for kind in _KINDS}
    for name, tensor in found.items():
        kind = next(kind for kind, pattern in _KINDS.items() if re.fullmatch(pattern, name.rpartition("/")[2]))
        kinds[kind].append(described(name, tensor))
    lines = [listed(kind, names) for kind, names in kinds.items() if names]
    return "\n".join([f"{len(found):,} further tensors, which are no part of SDXL, are left out:", *lines])
