# ---
# jupyter:
#   accelerator: GPU
#   colab:
#     gpuType: T4
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Diffusion
#
# Noise destroys data step by step; a network learns to undo one step; many steps make data out of noise. On two moons the best possible denoiser is known in closed form. So each error of a
# diffusion model can be told from the others, and ten steps turn out to be enough.
#
# > **You will be able to.** Write the forward process, the denoiser and five samplers on one page. Say how much of an error comes from the schedule, the steps, the start and the learning.
# > Reach the distance that a fresh sample of the truth has, with ten calls of a network. See when a model only remembers.
#
# > **Before you start.** Variances and the bound, from the page on [variational inference](variational-inference.md). The page needs about two minutes on one CPU core; a GPU is not needed.

# %% tags=["remove-cell"]
import importlib.util

if importlib.util.find_spec("lib") is None:  # on Colab
    get_ipython().run_line_magic(
        "pip",
        "install -q git+https://github.com/your-name/seeing-through-models",
    )

# %%
import math
import time

import matplotlib.pyplot as plt
import torch

from lib.book import (
    claim,
    claims_table,
    figure,
    provenance,
    scale,
    show_source,
    slides,
    start,
)
from lib.data.targets import Moons
from lib.metrics import Measured, wasserstein

generator = start(seed=3)

# %% [markdown]
# ## Two moons, and the distance of the truth from itself
#
# The data are the two moons of scikit-learn with noise 0.05, scaled to $[-1, 1]$: 2,000 points, evenly spread over both arcs. The density behind them is known.
#
# A sample is judged by its Wasserstein distance $W_2$ to a reference of 2,000 points, computed exactly by optimal assignment. Even a perfect sampler does not score zero: a fresh sample of the truth
# is at some distance from the reference too. That distance is the floor.

# %%
moons = Moons(scaled=True)
data = moons.stratified(2000, generator)
reference = moons.stratified(2000, generator)
fresh = [moons.sample(2000, generator) for _ in range(8)]
floors = torch.tensor([wasserstein(x, reference).value for x in fresh])
floor = floors.mean().item()


# %%
def distance(sampler, steps, seeds=3, **options):
    """W2 of samples to the reference, the mean over seeds."""
    found = torch.tensor(
        [
            wasserstein(
                sampler.sample(2000, steps, generator=generator, **options),
                reference,
            ).value
            for _ in range(seeds)
        ]
    )
    stderr = found.std().item() / seeds**0.5 if seeds > 1 else 0.0
    return Measured(found.mean().item(), floor, stderr)


# %% cellView="form" tags=["hide-input"]
# @title Claim
claim(
    "floor: W2 of a fresh sample",
    floor,
    low=0.04,
    high=0.07,
    because="8 samples that differ by 0.012 each; 100 gave 0.056",
)

# %% [markdown]
# The floor is [0.055](#floor-w2-of-a-fresh-sample), most of it from chance: of 2,000 fresh points not just 1,000 lie on each moon.
#
# ## Forward: noise by a schedule
#
# A schedule says how much signal and how much noise there is at a time $t$ between 0 and 1:
#
# $$
# x_t = \alpha_t x_0 + \sigma_t \varepsilon, \qquad \varepsilon \sim N(0, I), \qquad \alpha_0 = 1, \quad \sigma_0 = 0 .
# $$
#
# One number decides, the signal-to-noise ratio $\alpha_t^2 / \sigma_t^2$; `lib.diffusion.Schedule` keeps its logarithm and derives all else from it. With $\alpha_t^2 + \sigma_t^2 = 1$ and $\bar\alpha_t = \alpha_t^2$
# this is the usual chain of $T$ small steps $q(x_t \mid x_s)$, each with variance $\beta_t$. An integer $k$ stands for the time $k / T$.

# %%
from lib.diffusion import SCHEDULES
from lib.diffusion.schedules import edm, polynomial

schedule = polynomial(10)
steps = schedule.walk(data, generator)
shots = [schedule.noise(data, k, generator)[0] for k in range(11)]
gap = max(
    (a.T.cov() - b.T.cov()).abs().max().item() for a, b in zip(steps, shots)
)

# %% cellView="form" tags=["hide-input"]
# @title Claim
claim(
    "forward: one shot against step by step, largest gap of a covariance",
    gap,
    high=0.12,
    because="covariances of 2,000 points near 1 have a s.e. of 0.03",
)

# %% cellView="form" tags=["hide-input"]
# @title Figure
fig, axes = plt.subplots(1, 5, figsize=(7.5, 1.7), layout="constrained")
for ax, k in zip(axes, (0, 2, 4, 7, 10)):
    ax.scatter(*steps[k].T, s=0.4, lw=0)
    ax.set(xlim=(-2.5, 2.5), ylim=(-2.5, 2.5), xticks=[], yticks=[])
    ax.set_title(f"step {k}", fontsize=8)
figure(
    fig,
    alt="Five scatter plots: two thin moons that thicken from step to step"
    " until a round cloud is left.",
    caption="The forward process of the polynomial schedule with ten steps.",
)

# %% [markdown]
# Both ways to get to $x_t$ have one law: by one draw, or step by step.
#
# ## What a schedule does
#
# With $T = 10$ the usual linear schedule is still at the beginning when it stops. What remains of the data is measured by the terminal mismatch, $\mathrm{KL}(q(x_T) \,\|\, N(0, I))$: sampling starts from $N(0, I)$,
# and so from the wrong place.

# %%
from lib.diffusion import MixtureDenoiser

exact = MixtureDenoiser(*moons.mixture(104), schedule)
names = ("linear", "scaled linear", "polynomial", "cosine", "sigmoid")
ten = {name: SCHEDULES[name](10) for name in names}
ten["EDM"] = edm(10, 0.02, 4.0, rho=15.0)
mismatch = {
    name: exact.on(s).mismatch(generator=generator) for name, s in ten.items()
}

# %% cellView="form" tags=["hide-input"]
# @title Claims
claim(
    "linear, T = 10: signal that is left",
    ten["linear"].alpha_bar(10),
    low=0.9,
    high=0.91,
    because="the product of 1 - beta",
)
claim(
    "linear, T = 10: terminal mismatch in nats",
    mismatch["linear"],
    low=0.4,
    high=0.56,
    because="exact density of x_T; 20,000 draws",
)

# %% cellView="form" tags=["hide-input"]
# @title Claims
claim(
    "polynomial, T = 10: terminal mismatch in nats",
    abs(mismatch["polynomial"].value),
    high=0.004,
    because="alpha_bar is 0.003",
)
claim(
    "EDM, T = 10: terminal mismatch in nats",
    abs(mismatch["EDM"].value),
    high=0.004,
    because="sigma is 4 where the data have 0.55",
)

# %% cellView="form" tags=["hide-input"]
# @title Figure
fig, axes = plt.subplots(1, 2, figsize=(7.5, 2.5), layout="constrained")
k = torch.arange(11)
for name, s in ten.items():
    axes[0].plot(k, 1 - s.alpha_bar(k), marker="o", ms=3, label=name)
    axes[1].plot(k[1:], s.log_snr(k[1:]), marker="o", ms=3)
axes[0].set(xlabel="step", ylabel=r"$1 - \bar\alpha$")
axes[1].set(xlabel="step", ylabel="log-SNR", ylim=(-12, 12))
axes[0].legend(fontsize=7)
figure(
    fig,
    alt="Two panels over ten steps. Left, the share of noise: linear stays"
    " below 0.1, the others rise to one. Right, the log signal-to-noise ratio"
    " falls for all; the EDM schedule falls most evenly.",
    caption="Six schedules with ten steps: share of noise, and log-SNR.",
)

# %% [markdown]
# The linear schedule leaves [0.90](#linear-t-10-signal-that-is-left) of the signal, and its start costs [0.48](#linear-t-10-terminal-mismatch-in-nats) nats. The polynomial one, $\beta_k = 0.95\, (k/T)^3$, goes all the way and is still gentle near the data. That is why
# it does with ten steps what the linear one needs a thousand for.
#
# *Does scaling to $[-1, 1]$ help, against standardising?* The two are one question. Data multiplied by $c$ under one schedule are the same as the data under a schedule whose log-SNR is shifted by $2 \ln c$:
#
# $$
# \alpha\, (c\, x_0) + \sigma \varepsilon \;\propto\; \alpha' x_0 + \sigma' \varepsilon, \qquad \frac{\alpha'}{\sigma'} = c\, \frac{\alpha}{\sigma} .
# $$

# %%
c = 1 / 0.55  # standardised, instead of in [-1, 1]
weights, means, cov = moons.mixture(104)
big = MixtureDenoiser(weights, c * means, c**2 * cov, schedule)
shift = exact.on(schedule.shifted(2 * math.log(c)))
x = big.sample(500, generator)
x_t, _ = schedule.noise(x, 0.5, generator)
factor = shift.schedule.sigma(0.5) / schedule.sigma(0.5)
gap = big(x_t, 0.5).mean - c * shift(x_t * factor, 0.5).mean

# %% cellView="form" tags=["hide-input"]
# @title Claim
claim(
    "scaling the data is shifting the log-SNR: largest difference",
    gap.abs().max(),
    high=1e-10,
    because="a theorem; float64",
)

# %% [markdown]
# The largest difference between the two denoisers is [1e-15](#scaling-the-data-is-shifting-the-log-snr-largest-difference). What helped was a schedule that suits the size of the data.
#
# ## Reverse: a network that predicts the noise
#
# A denoiser returns the mean of $x_0$ given $x_t$, whatever its network says. The network of the guide that this page grows from says $\varepsilon$: an MLP of widths 100, 100, 100 and 20, told the step by one number. The
# simple objective is the squared error of $\varepsilon$ at random steps ([Ho, Jain and Abbeel, 2020](https://arxiv.org/abs/2006.11239)).

# %%
from lib.diffusion import Ancestral, NetworkDenoiser, OneHotMLP, random_steps
from lib.training import fit

show_source(
    NetworkDenoiser.loss,
    test="tests/diffusion/test_denoisers.py::test_simple_weight_is_the_error_of_the_noise",
)

# %%
guide = NetworkDenoiser(OneHotMLP(schedule), schedule, (2,), predicts="eps")


def simple(denoiser, x, generator):
    """Independent random steps, squared error of the noise."""
    t = random_steps(len(x), 10, generator, device=x.device)
    return denoiser.loss(x, t, generator)


def adamw(weights):
    """The optimiser of the guide."""
    return torch.optim.AdamW(weights, lr=1e-2, weight_decay=1e-4)


options = {"optimizer": adamw, "seed": 3}
history = fit(guide, simple, data, steps=scale(1200, 5000), **options)

# %% [markdown]
# The ancestral sampler then draws $x_s$ from a Gaussian around a mixture of $x_t$ and the mean, with the variance that $q(x_s \mid x_t, x_0)$ would have if $x_0$ were known.

# %%
show_source(
    Ancestral._step,
    test="tests/diffusion/test_samplers.py::test_full_ancestral_steps_give_the_law_of_gaussian_data_in_any_number",
)
baseline = distance(Ancestral(guide), 10, seeds=1)
perfect = distance(Ancestral(exact), 10, seeds=2)

# %% cellView="form" tags=["hide-input"]
# @title Claims
claim(
    "guide, T = 10: W2",
    baseline,
    low=0.08,
    high=0.35,
    because="four runs gave 0.14 to 0.26; its last iterate is noisy",
)
claim(
    "guide, T = 10: W2 over the floor",
    baseline.value / floor,
    low=1.5,
    high=6.5,
    because="as above",
)
claim(
    "exact denoiser in the same sampler: W2",
    perfect,
    low=0.08,
    high=0.2,
    because="no network could be better",
)

# %% [markdown]
# After 1,200 steps of all points the samples are at [0.2](#guide-t-10-w2), which is [3](#guide-t-10-w2-over-the-floor) times the floor. More training helps only so far: a *perfect* network in this sampler is at [0.15](#exact-denoiser-in-the-same-sampler-w2).
#
# ## The denoiser that knows everything
#
# The two moons are a mixture of Gaussians, up to an error of $10^{-8}$. For a mixture, mean and covariance of $x_0$ given $x_t$ are in closed form, and so is the density of $x_t$. `lib.diffusion.MixtureDenoiser` has the interface of the network, and stands in for it in every sampler. What is then left is not the network's fault.

# %%
from lib.diffusion import DDIM, Heun, Multistep

fitted = exact.on(ten["EDM"])
samplers = {
    "small": Ancestral(fitted, "small"),
    "large": Ancestral(fitted, "large"),
    "full": Ancestral(fitted, "full"),
    "DDIM": DDIM(fitted),
    "Heun": Heun(fitted),
    "multistep": Multistep(fitted),
}
calls = {name: 5 if name == "Heun" else 10 for name in samplers}
reached = {
    name: distance(s, calls[name], seeds=2) for name, s in samplers.items()
}
start_wrong = distance(Ancestral(exact.on(ten["linear"])), 10, seeds=2)
for name, d in reached.items():
    print(f"{name:10s} {d}")

# %% cellView="form" tags=["hide-input"]
# @title Claims
for name, low, high in (
    ("small", 1.6, 4.0),
    ("large", 1.0, 2.3),
    ("full", 0.6, 1.7),
    ("DDIM", 1.2, 2.8),
    ("Heun", 0.6, 2.8),
    ("multistep", 0.6, 1.7),
):
    claim(
        f"exact denoiser, ten calls, {name}: W2 over the floor",
        reached[name].value / floor,
        low=low,
        high=high,
        because="two samples, s.e. 0.15",
    )
claim(
    "exact denoiser, linear schedule, T = 10: W2",
    start_wrong,
    low=0.12,
    high=0.25,
    because="the start is wrong, whatever the network",
)

# %% [markdown]
# Over the floor, with ten calls of a perfect denoiser: the small variance [3.1](#exact-denoiser-ten-calls-small-w2-over-the-floor), the large one [1.4](#exact-denoiser-ten-calls-large-w2-over-the-floor), DDIM [2.0](#exact-denoiser-ten-calls-ddim-w2-over-the-floor). Near the floor are
# the full covariance, [1.2](#exact-denoiser-ten-calls-full-w2-over-the-floor), and the second-order multistep solver, [1](#exact-denoiser-ten-calls-multistep-w2-over-the-floor).
#
# Why? The small variance is right if $x_0$ is known; it forgets that the denoiser is unsure. The reverse step is a Gaussian with covariance
#
# $$
# \mathrm{Cov}(x_s \mid x_t) = \underbrace{\sigma_s^2 (1 - r^2)\, I}_\text{small} + \alpha_s^2 (1 - r^2)^2\, \mathrm{Cov}(x_0 \mid x_t), \qquad r = \frac{\alpha_t \sigma_s}{\alpha_s \sigma_t} ,
# $$
#
# and on a thin curve the last term is long in one direction. A network can learn it: in the plane it has three numbers ([Bao et al., 2022](https://arxiv.org/abs/2206.07309)).
#
# ### Order of convergence
#
# Samplers without noise solve a differential equation, so their error per path falls as a power of the steps. Against the path of 500 steps of Heun, from $t = 0.8$ to $t = 0.3$:

# %%
x = moons.sample(100, generator).double()
x, _ = fitted.schedule.noise(x, 0.8, generator)


def path_end(sampler, steps):
    """Where the points are at t = 0.3."""
    *_, end = sampler.walk(x, torch.linspace(0.8, 0.3, steps + 1))
    return end.x


truth, counts = path_end(Heun(fitted), 500), [16, 32, 64, 128]
errors = {
    name: [
        (path_end(samplers[name], n) - truth).norm(dim=1).mean().item()
        for n in counts
    ]
    for name in ("DDIM", "Heun", "multistep")
}
slopes = {name: math.log2(e[-2] / e[-1]) for name, e in errors.items()}

# %% cellView="form" tags=["hide-input"]
# @title Claims
for name, slope in slopes.items():
    claim(
        f"order of convergence, {name}",
        slope,
        low=samplers[name].order - 0.2,
        high=samplers[name].order + 0.2,
        because=f"theory: {samplers[name].order}",
    )

# %% cellView="form" tags=["hide-input"]
# @title Figure
fig, ax = plt.subplots(figsize=(4.2, 2.6), layout="constrained")
for name, e in errors.items():
    work = [n * samplers[name].calls for n in counts]
    ax.loglog(work, e, marker="o", ms=3, label=name)
ax.set(xlabel="calls of the denoiser", ylabel="mean error of a path")
ax.set(xticks=[16, 32, 64, 128, 256], xticklabels=[16, 32, 64, 128, 256])
ax.minorticks_off()
ax.legend(fontsize=8)
figure(
    fig,
    alt="Three straight lines that fall in a plot with logarithmic axes: DDIM"
    " with slope one, Heun and multistep with slope two, multistep lowest.",
    caption="Error of a path against the work, with the exact denoiser.",
)

# %% [markdown]
# The slopes are [1.2](#order-of-convergence-ddim), [2.1](#order-of-convergence-heun) and [2.0](#order-of-convergence-multistep). The multistep solver uses what the step before has seen, and so pays for one call where Heun's rule pays for two ([Lu et al., 2022](https://arxiv.org/abs/2211.01095)).
#
# ## A denoiser for ten steps
#
# Four changes to the guide's network. It is told the noise level as a number, in every layer, and not a step of a fixed $T$. Its input keeps unit variance, and it predicts the mixture of $x_0$ and $\varepsilon$ that is never
# trivial ([Karras et al., 2022](https://arxiv.org/abs/2206.00364)). The times of a batch are stratified. A small second network learns the covariance by maximum likelihood.

# %%
from lib.diffusion import NoiseMLP

ours = NetworkDenoiser(
    NoiseMLP(2, hidden=(128, 128, 128)),
    ten["EDM"],
    (2,),
    sd=0.55,
    spread=NoiseMLP(2, 3, hidden=(64, 64)),
)
began = time.process_time()
ours.fit(data, steps=scale(2600, 20_000), seed=3)
seconds = time.process_time() - began

# %% [markdown]
# To see a few per cent, the truth and the model get the same noise. The exact denoiser with sixty steps turns it into a fresh sample of the truth, whose $W_2$ is the floor; the model turns it into its own.

# %%
pairs = range(5)


def twin(sampler, steps, seed):
    """W2 of the sample that the noise of a seed leads to."""
    same = torch.Generator().manual_seed(seed)
    x = sampler.sample(2000, steps, generator=same)
    return wasserstein(x, reference).value


truths = sum(twin(Multistep(fitted), 60, k) for k in pairs)
over = {
    T: sum(twin(Multistep(ours), T, k) for k in pairs) / truths
    for T in (10, 50)
}

# %%
ways = {
    "full covariance, T = 10": (Ancestral(ours, "full"), 10),
    "small, T = 10": (Ancestral(ours), 10),
    "small, T = 200": (Ancestral(ours), 200),
}
ours_at = {
    name: distance(*way, seeds=1 if "small" in name else 5)
    for name, way in ways.items()
}
for name, d in ours_at.items():
    print(f"{name:24s} {d}")

# %% cellView="form" tags=["hide-input"]
# @title Claims
claim(
    "seconds of training on one core",
    seconds,
    high=30,
    because="asked; of the processor, whatever else it does",
)
claim(
    "ours, multistep, T = 10: W2 over the floor",
    over[10],
    high=1.15,
    because="asked; five samples and their twins of the truth",
)
claim(
    "ours, multistep, T = 50: W2 over the floor",
    over[50],
    high=1.05,
    because="asked; five samples and their twins of the truth",
)
claim(
    "ours, full covariance, T = 10: W2 over the floor",
    ours_at["full covariance, T = 10"].value / floor,
    high=1.3,
    because="five samples against eight fresh ones, s.e. 0.13",
)

# %% cellView="form" tags=["hide-input"]
# @title Claims
claim(
    "ours, small, T = 10: W2 over the floor",
    ours_at["small, T = 10"].value / floor,
    low=1.6,
    high=4,
    because="no training helps this sampler",
)
claim(
    "ours, small, T = 200: W2 over the floor",
    ours_at["small, T = 200"].value / floor,
    high=1.5,
    because="one sample, s.e. 0.25",
)

# %% [markdown]
# With ten calls, the trained denoiser is at [1.00](#ours-multistep-t-10-w2-over-the-floor) floors by the multistep solver, and at [1.0](#ours-full-covariance-t-10-w2-over-the-floor) with the full covariance. Fifty calls give [1.01](#ours-multistep-t-50-w2-over-the-floor). The small variance needs many steps: [3](#ours-small-t-10-w2-over-the-floor) for
# ten, and about the floor, [1](#ours-small-t-200-w2-over-the-floor), for two hundred. There the denoiser is unsure of little in each step.
#
# ### The error budget
#
# Now each part of an error can be taken away alone. *Discretisation*: the exact denoiser, started from exact draws of $x_T$. *Terminal mismatch*: the exact denoiser, started from $N(0, I)$. *Learning*: the network.

# %%
oracle = Ancestral(exact.on(ten["linear"]))


def from_truth(oracle):
    """W2 of an exact sampler that starts from exact draws of x_T."""
    schedule, found = oracle.denoiser.schedule, []
    for x in fresh[:2]:
        x_T, _ = schedule.noise(x, 1.0, generator)
        *_, end = oracle.walk(x_T, schedule.grid(10))
        found.append(wasserstein(end.x, reference).value)
    return sum(found) / 2


# %%
near = from_truth(Ancestral(exact)), perfect, baseline
best = from_truth(Multistep(fitted)), reached["multistep"]
budget = {  # exact start, start from N(0, I), network
    "linear, small": (from_truth(oracle), start_wrong, None),
    "guide: polynomial, small": near,
    "ours: EDM, multistep": (*best, over[10] * floor),
}

# %% cellView="form" tags=["hide-input"]
# @title Claims
discrete, whole, learned = map(float, budget["guide: polynomial, small"])
claim(
    "guide: discretisation, W2 over the floor",
    discrete / floor,
    low=1.5,
    high=4.0,
    because="three seeds gave 2.4 to 2.9",
)
claim(
    "guide: what learning adds to W2",
    learned - whole,
    low=-0.05,
    high=0.22,
    because="four runs gave 0 to 0.12",
)
claim(
    "linear: what the start adds to W2",
    float(start_wrong) - budget["linear, small"][0],
    low=0.05,
    because="0.48 nats of mismatch",
)

# %% cellView="form" tags=["hide-input"]
# @title Figure
fig, ax = plt.subplots(figsize=(7.0, 1.9), layout="constrained")
for j, name in enumerate(("exact start", "start from N(0, I)", "network")):
    values = [float(row[j] or 0) for row in budget.values()]
    ax.barh([k + 0.26 * (1 - j) for k in range(3)], values, 0.24, label=name)
ax.axvline(floor, color="k", lw=1, ls="--")
ax.set(yticks=range(3), yticklabels=list(budget), xlabel="$W_2$")
ax.legend(fontsize=7)
figure(
    fig,
    alt="Bars of the Wasserstein distance for three settings. For the guide all"
    " three bars are more than twice the dashed floor; for ours all are near"
    " the floor; for the linear schedule the start adds most.",
    caption="The error budget at ten calls; the dashed line is the floor.",
)

# %% [markdown]
# For the guide, the discretisation alone is at [2.6](#guide-discretisation-w2-over-the-floor) floors, and learning adds [0.02](#guide-what-learning-adds-to-w2) to $W_2$. For the linear schedule the wrong start adds [0.1](#linear-what-the-start-adds-to-w2).
#
# ## The field, and two kinds of path
#
# Each denoiser makes a velocity: with $y = \cos\varphi\, x_0 + \sin\varphi\, \varepsilon$, the mean of $\mathrm dy / \mathrm d\varphi$ given $y$. Its paths are those of DDIM with many steps. A path of the ancestral sampler is no streamline of it; both are drawn, each as what it is.

# %%
from lib.diffusion.likelihood import Velocity

field = Velocity(ours)
angle = torch.atan((-ten["EDM"].log_snr(torch.arange(1, 11)) / 2).exp())
lattice = torch.cartesian_prod(*2 * [torch.linspace(-1.8, 1.8, 15)])
grid = ten["EDM"].grid(10)
z = torch.randn(300, 2, generator=generator)
with torch.no_grad():
    states = list(Multistep(ours).walk(z, grid))
    smooth = list(DDIM(ours).walk(z[:4], ten["EDM"].grid(200)))
    rough = list(
        Ancestral(ours, "full").walk(z[:4], grid, generator=generator)
    )


# %% cellView="form" tags=["hide-input"]
# @title Figure
def draw_paths(ax, k):
    """The arrows of the velocity at step k, and the paths until there."""
    with torch.no_grad():
        v = -field(lattice, angle[max(k, 1) - 1].float())
    ax.quiver(*lattice.T, *v.T, color="0.6", width=0.004)
    for path, style, lw in ((rough, "C1", 0.6), (smooth, "C0", 1.3)):
        for j in range(3):
            line = torch.stack([s.x[j] for s in path if s.t >= k / 10])
            ax.plot(*line.T, color=style, lw=lw)


def frame(k):
    """Process, field and samples at step k."""
    fig, axes = plt.subplots(1, 3, figsize=(4.8, 1.75), layout="constrained")
    x_t = ten["EDM"].noise(data[:400], k, generator)[0]
    axes[0].scatter(*x_t.T, s=0.7, lw=0)
    draw_paths(axes[1], k)
    axes[2].scatter(*states[10 - k].x.T, s=0.7, lw=0, color="C2")
    for ax, title in zip(axes, ("process", "velocity", "samples")):
        ax.set(xlim=(-1.9, 1.9), ylim=(-1.9, 1.9), xticks=[], yticks=[])
        ax.set_title(title, fontsize=7)
    return fig


# %% cellView="form" tags=["hide-input"]
# @title Slides
order = [10, 8, 7, 6, 5, 4, 3, 2, 1, 0]
slides(
    [frame(k) for k in order],
    [f"t = {k / 10:.1f}" for k in order],
    columns=2,
    alt="Ten rows of three panels, from t = 1 to t = 0: the noised data become"
    " two moons, the arrows of the velocity turn from pointing inwards to"
    " pointing at the moons, and the samples contract onto them. Smooth blue"
    " and jagged orange paths end on the moons.",
    caption="Forward process, velocity with three paths (blue: of the velocity;"
    " orange: ancestral), and samples, at ten times.",
)

# %% [markdown]
# ## Remembering
#
# The best denoiser for the 2,000 points is not the best one for the law behind them. It is the exact denoiser of the data set, a mixture of 2,000 points. It can only return what it has seen. Trained forever, a large network would become it.

# %%
fine = edm(10, 0.005, 4.0)
memory = MixtureDenoiser.empirical(data, fine)
best, learned = fitted.on(fine), ours.on(fine)
held = moons.sample(1000, generator)
excess = {"data set": [], "network": []}
for k in range(1, 8):
    x_t, _ = fine.noise(held, k, generator)
    least = (held - best(x_t, k).mean).square().sum(1).mean()
    for name, d in (("data set", memory), ("network", learned)):
        with torch.no_grad():
            error = (held - d(x_t, k).mean).square().sum(1).mean()
        excess[name].append((error / least - 1).item())
copies = Multistep(memory).sample(500, 20, generator=generator)
own = Multistep(ours).sample(500, 20, generator=generator)
near = {
    name: torch.cdist(x, data).min(1).values.median().item()
    for name, x in (("data set", copies), ("network", own), ("truth", held))
}

# %% cellView="form" tags=["hide-input"]
# @title Claims
claim(
    "remembering: largest excess error of the data set's denoiser",
    max(excess["data set"]),
    low=0.1,
    because="it takes the nearest seen points for the truth",
)
claim(
    "remembering: largest excess error of the network",
    max(excess["network"]),
    high=0.06,
    because="three runs",
)

# %% cellView="form" tags=["hide-input"]
# @title Claims
claim(
    "remembering: median distance to the data, data set's denoiser",
    near["data set"],
    high=1e-3,
    because="each sample is a copy",
)
claim(
    "remembering: the same for the network, over that of the truth",
    near["network"] / near["truth"],
    low=0.8,
    high=1.25,
    because="a law that was learned; medians of 500 and 1,000",
)

# %% [markdown]
# On points that neither has seen, the denoiser of the data set has up to [4](#remembering-largest-excess-error-of-the-data-set-s-denoiser) times the error of the best one on top; the network has [0.02](#remembering-largest-excess-error-of-the-network). Its samples are no copies: their distance to the data is [1.0](#remembering-the-same-for-the-network-over-that-of-the-truth) times
# that of fresh points.
#
# ## The bound, term by term
#
# Read from $x_0$ to $x_T$, diffusion is a variational autoencoder whose encoder is fixed, with $T$ layers of latents. The bound of the [first chapter](variational-inference.md) splits:
#
# $$
# -\log p(x_0) \le \mathrm{KL}(q(x_T \mid x_0) \,\|\, p(x_T)) + \sum_{t > s > 0} \mathrm E\, \mathrm{KL}(q(x_s \mid x_t, x_0) \,\|\, p(x_s \mid x_t)) - \mathrm E \log p(x_0 \mid x_1) .
# $$
#
# With the exact denoiser the gap to the entropy of the data is due to the steps alone. It falls with $T$.

# %%
from lib.diffusion import elbo

many = moons.sample(4000, generator)
surprise = -moons.log_prob(many)
gaps = {}
for T, variance in ((10, "large"), (10, "full"), (80, "full")):
    bound = elbo(fitted, many, T, variance=variance, generator=generator)
    gaps[variance, T] = (bound.total - surprise).mean().item()
terms = elbo(ours, many, 40, generator=generator)
gap = (terms.total - surprise).mean().item()

# %% cellView="form" tags=["hide-input"]
# @title Claims
claim(
    "bound, exact denoiser, full covariance, T = 10: gap in nats",
    gaps["full", 10],
    low=0.03,
    high=0.35,
    because="4,000 points, s.e. 0.03",
)
claim(
    "bound, exact denoiser, full covariance, T = 80: gap in nats",
    gaps["full", 80],
    low=-0.15,
    high=0.2,
    because="goes to zero as 1 / T; s.e. 0.05",
)

# %% cellView="form" tags=["hide-input"]
# @title Claims
claim(
    "bound, exact denoiser, large variance, T = 10: gap in nats",
    gaps["large", 10],
    low=0.5,
    high=1.3,
    because="a wrong variance in each step",
)
claim(
    "bound, trained, T = 40: gap in nats",
    gap,
    low=0.0,
    high=0.4,
    because="learning adds to the steps",
)
claim(
    "bound, trained, T = 40: the term of the prior in nats",
    terms.prior.mean(),
    high=0.04,
    because="sigma is 4 at the end",
)

# %% [markdown]
# With ten steps and the full covariance the bound is [0.17](#bound-exact-denoiser-full-covariance-t-10-gap-in-nats) nats above the entropy, with the large variance [0.8](#bound-exact-denoiser-large-variance-t-10-gap-in-nats). The trained denoiser has a gap of [0.13](#bound-trained-t-40-gap-in-nats) with forty steps. The [next page](diffusion-as-a-flow.md) computes the likelihood itself.
#
# ## Digits
#
# The same denoiser and the same solver, with a small U-Net in place of the MLP, draw the 8x8 digits of scikit-learn in 20 calls. The network is told the class, and for a tenth of the images that there is none. *Guidance* then compares its two answers
# and exaggerates the difference by a weight ([Ho and Salimans, 2021](https://arxiv.org/abs/2207.12598)): 1 is the conditional law, more is more typical.

# %%
from sklearn.svm import SVC

from lib.data.digits import digits
from lib.diffusion import Guided, Schedule, UNet
from lib.metrics import c2st

parts = digits()
x, labels = parts.train.images.float() / 8 - 1, parts.train.labels
held, names = parts.test.images, parts.test.labels


def log_snr(u):
    """log(sigma / alpha) is normal with mean -0.7 and sd 1.1."""
    return -2 * (-0.7 + 1.1 * torch.special.ndtri(u))


painter = NetworkDenoiser(
    UNet(1, (16, 64), classes=10),
    Schedule(log_snr),
    (1, 8, 8),
    sd=x.std().item(),
)

# %%
options = {"batch_size": 32, "lr": 4e-3, "ema": 0.995, "seed": 3}
painter.fit(x, labels, steps=scale(800, 10_000), **options)

# %%
judge = SVC(C=10, gamma=1e-3)
judge.fit(parts.train.images.flatten(1).numpy(), labels.numpy())


def right(images):
    """The share of images that the judge gives their label."""
    said = judge.predict(images.flatten(1).numpy())
    return (said == names.numpy()).mean()


made = {}
for weight in (1.0, 1.5):
    guided = Guided(painter.on(edm(20, 0.02, 20.0)), weight)
    y = Multistep(guided).sample(
        len(held), 20, generator=generator, label=names
    )
    made[weight] = ((y + 1) * 8).round().clamp(0, 16).to(torch.uint8)

# %% [markdown]
# Does it copy? For each sample, is the nearest training digit nearer than the nearest of as many held-out digits? If so half of the time, the training set is nothing special to the model.

# %%
order = torch.randperm(len(x), generator=generator)
some, others = (
    parts.train.images[k] for k in (order[: len(held)], order[-len(held) :])
)


def flat(images):
    """Images as rows of numbers."""
    return images.flatten(1).float()


def nearer(images):
    """How often the nearest training digit is nearer than the nearest held-out."""
    a, b = (torch.cdist(flat(images), flat(r)).min(1) for r in (some, held))
    return (a.values < b.values).float().mean()


test = {
    name: c2st(flat(images), flat(held), early_stopping=True)
    for name, images in (("samples", made[1.0]), ("training digits", others))
}

# %% cellView="form" tags=["hide-input"]
# @title Claims
claim(
    "digits: accuracy of the judge on held-out digits",
    right(held),
    low=0.97,
    because="a judge should be right",
)
claim(
    "digits: class accuracy of guided samples",
    right(made[1.5]),
    low=0.95,
    because="weight 1.5; four runs gave 0.98 to 1",
)
claim(
    "digits: class accuracy without guidance",
    right(made[1.0]),
    low=0.75,
    because="weight 1; four runs gave 0.88 to 0.96",
)

# %% cellView="form" tags=["hide-input"]
# @title Claims
claim(
    "digits: C2ST of samples against held-out digits",
    test["samples"],
    high=0.75,
    because="four runs gave 0.56 to 0.63; the floor is one half",
)
claim(
    "digits: C2ST of training digits against held-out digits",
    test["training digits"],
    high=0.6,
    because="one law; s.e. 0.02",
)
claim(
    "digits: share of samples nearer to a training digit",
    nearer(made[1.0]),
    low=0.4,
    high=0.68,
    because="0.5 without copying; seeds gave 0.52 to 0.57, s.e. 0.03",
)

# %% cellView="form" tags=["hide-input"]
# @title Figure
fig, axes = plt.subplots(3, 10, figsize=(7.0, 2.2), layout="constrained")
shown = {"real": held, "weight 1": made[1.0], "weight 1.5": made[1.5]}
for row, (name, images) in zip(axes, shown.items()):
    for k, ax in enumerate(row):
        ax.imshow(16 - images[names == k][0, 0], cmap="gray")
        ax.set(xticks=[], yticks=[])
    row[0].set_ylabel(name, fontsize=7)
figure(
    fig,
    alt="Three rows of the digits zero to nine in 8 by 8 pixels: real ones,"
    " samples without guidance, and samples with guidance; all can be read.",
    caption="Real digits, and samples with weights 1 and 1.5.",
)

# %% [markdown]
# With weight 1.5 the judge, who is right on [0.99](#digits-accuracy-of-the-judge-on-held-out-digits) of real digits, reads [0.97](#digits-class-accuracy-of-guided-samples) of the samples as their class; with weight 1, [0.9](#digits-class-accuracy-without-guidance). A classifier tells samples (weight 1) from held-out digits in [0.6](#digits-c2st-of-samples-against-held-out-digits) of the cases; real training digits in [0.5](#digits-c2st-of-training-digits-against-held-out-digits). So they are not perfect.
# Nor are they copies: [0.5](#digits-share-of-samples-nearer-to-a-training-digit) of them are nearer to a training digit than to a held-out one.
#
# > **It breaks.** A network that predicts noise cannot start from pure noise: $x_0 = (x_t - \sigma \varepsilon) / \alpha$ divides by $\alpha_T$. The literal recipe $\beta_T = 1$ divides by zero. The package refuses it, and accepts it for networks that predict $x_0$, $v$ or the mixture above.

# %%
end = torch.randn(2000, 2, generator=generator)
with torch.no_grad():
    wild = guide(end, 10).mean.norm(dim=1)
    calm = ours(end, 10).mean.norm(dim=1)
try:
    NetworkDenoiser(
        OneHotMLP(schedule), polynomial(10, last=1.0), (2,), predicts="eps"
    )
except ValueError as error:
    print(error)

# %% cellView="form" tags=["hide-input"]
# @title Claims
claim(
    "first step of the guide: rms of the mean of x_0",
    wild.square().mean().sqrt(),
    low=0.3,
    because="1 / alpha is 19; the truth is 0.1",
)
claim(
    "first step of ours: rms of the mean of x_0",
    calm.square().mean().sqrt(),
    high=0.5,
    because="an average of the data",
)

# %% [markdown]
# At its first step the guide puts $x_0$ at a distance of [2](#first-step-of-the-guide-rms-of-the-mean-of-x-0) from the centre, where no data are; ours says [0.1](#first-step-of-ours-rms-of-the-mean-of-x-0).
#
# ## Summary
#
# - One function, the log-SNR, is a schedule; scaling the data shifts it.
# - A denoiser gives the mean of $x_0$; what its network predicts is a choice of coordinates.
# - The floor is what a fresh sample of the truth scores. Print it.
# - With ten steps, the sampler limits the result and not the network: use the full covariance or a second-order solver.
# - The denoiser of a data set is the model that remembers; compare with it.
#
# ## Exercises
#
# ### Exercise 1
#
# For data from $N(0, I)$, which of the four variances is exact in any number of steps? And for a single point? Check with $T = 2$.

# %% cellView="form" tags=["hide-cell"]
# @title Solution to exercise 1
one, two = torch.ones(1), polynomial(2)
normal = MixtureDenoiser(one, torch.zeros(1, 2), torch.eye(2), two)
point = MixtureDenoiser(one, torch.ones(1, 2), None, two)
x = Ancestral(normal, "large").sample(20_000, generator=generator)
y = Ancestral(point, "small").sample(100, generator=generator)
claim(
    "exercise 1: variance of the large sampler, less 1 - alpha_1 terms",
    abs(
        Ancestral(normal, "full").sample(20_000, generator=generator).var() - 1
    ),
    high=0.03,
    because="s.e. 0.007; full is exact for any Gaussian",
)
claim(
    "exercise 1: distance of the small sampler from the point",
    (y - 1).abs().max(),
    high=1e-5,
    because="exact",
)

# %% [markdown]
# ### Exercise 2
#
# How large is the floor if the sample is stratified like the reference? Why is it smaller?

# %% cellView="form" tags=["hide-cell"]
# @title Solution to exercise 2
# Chance puts 1,000 +- 22 points on a moon, and the surplus has to travel.
even = [
    wasserstein(moons.stratified(2000, generator), reference).value
    for _ in range(3)
]
claim(
    "exercise 2: floor of stratified samples",
    sum(even) / 3,
    low=0.015,
    high=0.03,
    because="three samples; no travel from moon to moon",
)

# %% [markdown]
# ### Exercise 3
#
# DDIM with $\eta = 1$ draws noise in each step. Which sampler is it?

# %% cellView="form" tags=["hide-cell"]
# @title Solution to exercise 3
# The ancestral one with the small variance: the same draws, given one seed.
a, b = (
    s.sample(200, 10, generator=torch.Generator().manual_seed(1))
    for s in (DDIM(exact, eta=1.0), Ancestral(exact, "small"))
)
claim(
    "exercise 3: largest difference",
    (a - b).abs().max(),
    high=1e-4,
    because="the same formula; float32",
)

# %% [markdown]
# ## What the sources left open
#
# The guide ([Elflein, 2022](https://selflein.github.io/diffusion_practical_guide)) brings the number of steps down to ten by scaling the data and by a polynomial schedule, and notes that variances are fixed and could be learned.
#
# *Why does scaling help?* It is a shift of the log-SNR, to the digit.
#
# *Is ten the limit, and the training?* Neither. The variance is, and the order of the solver.
#
# *How good are the samples?* The guide looks at them. Here they have a distance, with a floor.
#
# *Does the field show what the sampler does?* Only the path of the velocity follows it. The stochastic path is drawn apart.
#
# ## All claims of this page

# %% tags=["remove-input"]
claims_table()
provenance()
