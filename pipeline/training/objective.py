"""The objective of a run from its parameters. Needs no MindSpore."""

from pipeline import params
from pipeline.diffusion import loss, schedule, timesteps
from pipeline.training.feed import Objective


def objective(diffusion: params.Diffusion, train: params.Train, scaling_factor: float) -> Objective:
    """`scaling_factor`: that of the model's VAE, which holds where `diffusion` has none."""
    alphas = schedule.alphas_cumprod(diffusion.zero_terminal_snr)
    density = timesteps.density(
        train.timestep_distribution,
        train.timestep_min,
        train.timestep_max,
        diffusion.flow_shift,
        train.timestep_logit_mean,
        train.timestep_logit_std,
        train.timestep_sigmoid_scale,
        train.timestep_alpha,
        train.timestep_beta,
    )
    chances = timesteps.probabilities(
        train.timestep_bias_strategy,
        train.timestep_bias_multiplier,
        train.timestep_bias_begin,
        train.timestep_bias_end,
        train.timestep_bias_portion,
        density,
    )
    weights = loss.weights(  # of flow, all 1: contradictions refuse the others
        schedule.snr(alphas),
        diffusion.prediction,
        snr_gamma=train.snr_gamma,
        snr_gamma_soft=train.snr_gamma_soft,
        p2_gamma=train.p2_gamma,
        p2_k=train.p2_k,
        debiased=train.debiased_estimation,
    )
    return Objective(
        seed=train.seed,
        prediction=diffusion.prediction,
        alphas=alphas,
        chances=chances,
        weights=weights,
        scaling_factor=diffusion.scaling_factor or scaling_factor,
        shift_factor=diffusion.shift_factor,
        noise_offset=train.noise_offset,
        multires_noise_iterations=train.multires_noise_iterations,
        multires_noise_discount=train.multires_noise_discount,
        input_perturbation=train.input_perturbation,
        caption_dropout=train.caption_dropout,
        caption_dropout_with=train.caption_dropout_with,
        mask_floor=train.mask_floor,
    )
