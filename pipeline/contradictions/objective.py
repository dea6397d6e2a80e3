"""What is predicted, and how the loss is weighted."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.params import Diffusion, Params, Train


def faults(params: "Params") -> Iterator[tuple[str, str]]:
    yield from _diffusion(params.diffusion)
    if params.diffusion.prediction == "flow":
        yield from _flow(params.train)
    elif params.diffusion.zero_terminal_snr and params.train.timestep_min == 999:
        for key, found in weightings(params.train):
            if key != "debiased_estimation":
                yield (
                    f"train.{key}",
                    f"gives the only timestep that is drawn, 999, the weight 0 with zero_terminal_snr; wanted null, found {found}",
                )


def _diffusion(diffusion: "Diffusion") -> Iterator[tuple[str, str]]:
    if diffusion.zero_terminal_snr and diffusion.prediction == "epsilon":
        yield (
            "diffusion.zero_terminal_snr",
            "true needs diffusion.prediction v: without signal the noise is the input (arXiv 2305.08891, 3.2)",
        )
    if diffusion.zero_terminal_snr and diffusion.prediction == "flow":
        yield (
            "diffusion.zero_terminal_snr",
            "true needs diffusion.prediction v: flow has no such schedule, and ends in pure noise by itself; wanted "
            "false",
        )
    if diffusion.flow_shift != 1 and diffusion.prediction != "flow":
        yield (
            "diffusion.flow_shift",
            f"moves the timesteps of diffusion.prediction flow, found {diffusion.prediction}; wanted 1.0",
        )


def _flow(train: "Train") -> Iterator[tuple[str, str]]:
    for key, found in weightings(train):
        yield (
            f"train.{key}",
            "weights the loss by the signal-to-noise ratio of SDXL's schedule, and diffusion.prediction is flow; "
            f"wanted {'false' if found is True else 'null'}, found {str(found).lower()}",
        )
    if train.loss_type == "huber" and train.huber_schedule == "snr":
        yield (
            "train.huber_schedule",
            "snr is of SDXL's schedule, and diffusion.prediction is flow; wanted constant or exponential",
        )


def weightings(train: "Train") -> list[tuple[str, float | bool]]:
    """The keys that weight the loss by the signal-to-noise ratio, and are set."""
    keys = ("snr_gamma", "snr_gamma_soft", "p2_gamma", "debiased_estimation")
    return [(key, found) for key in keys if (found := getattr(train, key)) not in (None, False)]
