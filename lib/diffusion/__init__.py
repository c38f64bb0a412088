"""Diffusion: noise that grows by a schedule, a denoiser, and samplers that walk back.

Three things fit together: a `Schedule` says how much signal and noise there is at a time, a
`Denoiser` gives p(x_0 | x_t), whether trained or exact, and a `Sampler` makes steps from it.
"""

from lib.diffusion.denoisers import (
    Denoiser,
    NetworkDenoiser,
    Posterior,
    random_steps,
    stratified_times,
)
from lib.diffusion.exact import MixtureDenoiser
from lib.diffusion.guidance import ClassifierGuided, Guided
from lib.diffusion.likelihood import Bound, elbo, probability_flow
from lib.diffusion.matching import FlowMatching, optimal_pairs
from lib.diffusion.networks import NoiseMLP, OneHotMLP
from lib.diffusion.samplers import (
    DDIM,
    Ancestral,
    EulerMaruyama,
    Heun,
    Multistep,
    Sampler,
    State,
)
from lib.diffusion.schedules import SCHEDULES, Schedule, from_alpha_bar, from_betas
from lib.diffusion.unet import UNet

__all__ = [
    "DDIM",
    "SCHEDULES",
    "Ancestral",
    "Bound",
    "ClassifierGuided",
    "Denoiser",
    "EulerMaruyama",
    "FlowMatching",
    "Guided",
    "Heun",
    "MixtureDenoiser",
    "Multistep",
    "NetworkDenoiser",
    "NoiseMLP",
    "OneHotMLP",
    "Posterior",
    "Sampler",
    "Schedule",
    "State",
    "UNet",
    "elbo",
    "from_alpha_bar",
    "from_betas",
    "optimal_pairs",
    "probability_flow",
    "random_steps",
    "stratified_times",
]
