"""A number is worth little without its floor: what two fresh samples of the truth would have given.

Every metric of this package returns a `Measured`: the value, the floor, and the standard error.
"""

from lib.metrics.divergence import kl_divergence
from lib.metrics.measured import Measured
from lib.metrics.transport import sliced_wasserstein, wasserstein
from lib.metrics.two_sample import c2st, gaussian, inverse_multiquadratic, mmd, mmd_loss

__all__ = [
    "Measured",
    "c2st",
    "gaussian",
    "inverse_multiquadratic",
    "kl_divergence",
    "mmd",
    "mmd_loss",
    "sliced_wasserstein",
    "wasserstein",
]
