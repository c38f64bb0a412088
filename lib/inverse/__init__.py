"""Inverse problems with exact posteriors, and networks that solve them."""

from lib.inverse.baselines import ConditionalVAE, FlowMatching, MixtureDensityNetwork, PriorOnly
from lib.inverse.conditional import ConditionalFlow, LinearGaussian
from lib.inverse.evaluation import (
    Calibration,
    Diagnosis,
    Exact,
    Spoilt,
    Spread,
    calibration,
    diagnose,
    negative_log_likelihood,
    posterior_c2st,
    posterior_error,
    ranks,
    resimulation_error,
)
from lib.inverse.invertible import InvertibleSolver, ramp
from lib.inverse.solver import Solver

__all__ = [
    "Calibration",
    "ConditionalFlow",
    "ConditionalVAE",
    "Diagnosis",
    "Exact",
    "FlowMatching",
    "InvertibleSolver",
    "LinearGaussian",
    "MixtureDensityNetwork",
    "PriorOnly",
    "Solver",
    "Spoilt",
    "Spread",
    "calibration",
    "diagnose",
    "negative_log_likelihood",
    "posterior_c2st",
    "posterior_error",
    "ramp",
    "ranks",
    "resimulation_error",
]
