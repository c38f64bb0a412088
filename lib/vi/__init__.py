"""Variational inference: coordinate ascent, guides for Pyro models, and how far to trust them."""

from lib.vi.ascent import Ascent, BoundDecreased, BoundNotFinite, coordinate_ascent
from lib.vi.diagnostics import (
    calibration_ranks,
    calibration_test,
    exact_khat_gaussian,
    exact_khat_scale,
    mean_field_gap,
    mean_field_variances,
    pareto_khat,
    psis_moments,
)
from lib.vi.factors import GammaFactor, GaussianFactor, NormalFactor, NormalWishartFactor
from lib.vi.flow_guide import FlowGuide
from lib.vi.guides import GuideFit, fit_guide
from lib.vi.mixture import MixturePrior, MixtureState, fit_mixture, mixture_elbo
from lib.vi.natural import (
    gamma_from_natural,
    gamma_log_normalizer,
    gamma_natural,
    natural_gradient,
    normal_from_natural,
    normal_log_normalizer,
    normal_natural,
)
from lib.vi.normal import (
    ExactNormal,
    NormalState,
    contraction,
    fit_normal,
    kl_gap,
    normal_elbo,
    normal_updates,
)
from lib.vi.particles import elbo
from lib.vi.regression import (
    RegressionPrior,
    RegressionState,
    exact_log_evidence,
    fit_regression,
    regression_elbo,
)
from lib.vi.statistics import RegressionStatistics, SufficientStatistics

__all__ = [
    "Ascent",
    "BoundDecreased",
    "BoundNotFinite",
    "ExactNormal",
    "FlowGuide",
    "GammaFactor",
    "GaussianFactor",
    "GuideFit",
    "MixturePrior",
    "MixtureState",
    "NormalFactor",
    "NormalState",
    "NormalWishartFactor",
    "RegressionPrior",
    "RegressionState",
    "RegressionStatistics",
    "SufficientStatistics",
    "calibration_ranks",
    "calibration_test",
    "contraction",
    "coordinate_ascent",
    "elbo",
    "exact_khat_gaussian",
    "exact_khat_scale",
    "exact_log_evidence",
    "fit_guide",
    "fit_mixture",
    "fit_normal",
    "fit_regression",
    "gamma_from_natural",
    "gamma_log_normalizer",
    "gamma_natural",
    "kl_gap",
    "mean_field_gap",
    "mean_field_variances",
    "mixture_elbo",
    "natural_gradient",
    "normal_elbo",
    "normal_from_natural",
    "normal_log_normalizer",
    "normal_natural",
    "normal_updates",
    "pareto_khat",
    "psis_moments",
    "regression_elbo",
]
