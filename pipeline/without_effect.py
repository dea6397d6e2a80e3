"""Keys that change nothing beside another key, where they are not as the presets have them: most likely it was that other
one that should have been set too."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pipeline.params import Params


class Idle(NamedTuple):
    """Keys of a section with the values that the presets have, and which others they are nothing without."""

    section: str
    keys: dict[str, tuple]
    needs: str  # the key that decides, of the same section
    one_of: tuple = ()  # its values with which they have an effect; none: all but null, 0 and false


_TARGETS = ["*.proj_in.*", "*.transformer_blocks.*", "*.proj_out.*"]
_BETAS = {"adam_beta1": (0.9,), "adam_beta2": (0.999,)}
_LORAS = "lora", "dora", "loha", "lokr"
IDLE = [
    Idle("device", {"min_nodes": (1,)}, "cluster"),
    Idle("index", {"bucket_step": (32, 64), "min_bucket": (1, 16)}, "buckets"),
    Idle("train", {"lr_num_cycles": (1,)}, "lr_scheduler", ("cosine_with_restarts",)),
    Idle("train", {"lr_power": (1.0,), "lr_end": (1e-7,)}, "lr_scheduler", ("polynomial",)),
    Idle("train", {"lr_decay_steps": (100,)}, "lr_scheduler", ("wsd",)),
    Idle("train", {"text_encoder_learning_rate": (1e-4, 2e-6, 5e-5)}, "text_encoders", ("clip_l", "clip_g", "both")),
    Idle("train", {"rank": (16,), "alpha": (16.0,), "adapter_targets": (_TARGETS,)}, "adapter", _LORAS),
    Idle("train", {"lokr_factor": (-1,)}, "adapter", ("lokr",)),
    Idle("train", _BETAS, "optimizer", ("adamw", "adamw8bit", "lion", "prodigy")),
    Idle("train", {"adam_epsilon": (1e-8,)}, "optimizer", ("adamw", "adamw8bit", "prodigy")),
    Idle(
        "train",
        {"timestep_logit_mean": (0.0,), "timestep_logit_std": (1.0,)},
        "timestep_distribution",
        ("logit_normal",),
    ),
    Idle("train", {"timestep_sigmoid_scale": (1.0,)}, "timestep_distribution", ("sigmoid",)),
    Idle("train", {"timestep_alpha": (1.0,), "timestep_beta": (1.0,)}, "timestep_distribution", ("beta",)),
    Idle("train", {"timestep_bias_multiplier": (1.0,)}, "timestep_bias_strategy", ("earlier", "later", "range")),
    Idle("train", {"timestep_bias_begin": (0,), "timestep_bias_end": (1000,)}, "timestep_bias_strategy", ("range",)),
    Idle("train", {"timestep_bias_portion": (0.25,)}, "timestep_bias_strategy", ("earlier", "later")),
    Idle("train", {"huber_c": (0.1,), "huber_schedule": ("constant",)}, "loss_type", ("huber",)),
    Idle("train", {"loss_scale": (65536.0,)}, "precision", ("float16",)),
    Idle("train", {"ema_decay": (0.9999,)}, "ema"),
    Idle("train", {"p2_k": (1.0,)}, "p2_gamma"),
    Idle("train", {"multires_noise_discount": (0.3,)}, "multires_noise_iterations"),
    Idle("train", {"validation_timesteps": ([100, 300, 500, 700, 900],)}, "validation_share"),
    Idle("train", {"preview_sampler": ("euler",)}, "sample_interval"),
    Idle("train", {"save_limit": (None,)}, "save_interval"),
]


def doubts(params: "Params") -> Iterator[tuple[str, str]]:
    """(key, why it has no effect)."""
    for idle in IDLE:
        section = getattr(params, idle.section)
        deciding = getattr(section, idle.needs)
        if deciding in idle.one_of or not idle.one_of and deciding:
            continue
        wanted = f"{idle.section}.{idle.needs}" + f" {' or '.join(idle.one_of)}" * bool(idle.one_of)
        for key, usual in idle.keys.items():
            if (value := getattr(section, key)) not in usual:
                yield (
                    f"{idle.section}.{key}",
                    f"{shown(value)} has no effect without {wanted}, and that is {shown(deciding)}",
                )


def shown(value: object) -> str:
    """As YAML has it."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
