"""Diffusion and flow matching: distances with their floor, likelihood, speed.

    OMP_NUM_THREADS=1 python benchmarks/diffusion.py > benchmarks/results/diffusion.md
    OMP_NUM_THREADS=1 python benchmarks/diffusion.py moons speed

Published rows of the section on matching: Tong et al. (2023), Simulation-free Schroedinger bridges
via score and flow matching, arXiv 2307.03672, table 2: samples of 10,000, five seeds, 3x64 SELU
network, 100 Euler steps. Its table gives no floor. The laws are those of the code that made it.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from lib.book.page import device_name
from lib.data.targets import Moons
from lib.diffusion import (
    Ancestral,
    FlowMatching,
    MixtureDenoiser,
    Multistep,
    NetworkDenoiser,
    NoiseMLP,
    OneHotMLP,
    Sampler,
    Schedule,
    optimal_pairs,
    probability_flow,
    random_steps,
)
from lib.diffusion.schedules import edm, linear, polynomial
from lib.metrics import wasserstein
from lib.training import fit

MOONS = Moons(scaled=True)
TEN = edm(10, 0.02, 4.0, rho=15.0)
SEEDS = 5


def row(*cells: object) -> None:
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def head(*names: str) -> None:
    row(*names)
    print("|:--" + "|--:" * (len(names) - 1) + "|")


def spread(values: list[float], digits: int = 3) -> str:
    """Mean and its standard error."""
    error = statistics.stdev(values) / math.sqrt(len(values))
    return f"{statistics.mean(values):.{digits}f} ± {error:.{digits}f}"


def guide(schedule: Schedule, data: Tensor, seed: int) -> tuple[NetworkDenoiser, float]:
    """The recipe of the guide: one-hot time, noise predicted, 5,000 steps of all points."""
    torch.manual_seed(seed)
    made = NetworkDenoiser(OneHotMLP(schedule), schedule, (2,), predicts="eps")

    def loss(made: NetworkDenoiser, x: Tensor, generator: torch.Generator) -> Tensor:
        return made.loss(x, random_steps(len(x), schedule.steps, generator), generator)["mean"]

    def adamw(weights: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(weights, lr=1e-2, weight_decay=1e-4)

    return made, fit(made, loss, data, steps=5000, optimizer=adamw, seed=seed).seconds


def ours(data: Tensor, seed: int, steps: int = 3500) -> tuple[NetworkDenoiser, float]:
    """The denoiser of the chapter, with its covariance."""
    torch.manual_seed(seed)
    nets = NoiseMLP(2, hidden=(128, 128, 128)), NoiseMLP(2, 3, hidden=(64, 64))
    made = NetworkDenoiser(nets[0], TEN, (2,), sd=0.55, spread=nets[1])
    return made, made.fit(data, steps=steps, seed=seed).seconds


def moons() -> None:
    """Distances at few steps, each the mean over trainings and samples, with the floor."""
    print(f"Two moons, noise 0.05, in [-1, 1]; 2,000 points against 2,000 stratified; {SEEDS}")
    print("trainings with six samples each; the error is over trainings. The floor is the mean of")
    print("40 fresh samples. Seconds are those of one training.\n")
    generator = torch.Generator().manual_seed(0)
    reference, data = (MOONS.stratified(2000, generator) for _ in range(2))
    fresh = [wasserstein(MOONS.sample(2000, generator), reference).value for _ in range(40)]
    floor = statistics.mean(fresh)
    print(f"Floor {spread(fresh, 4)}.\n")
    head("recipe, sampler", "calls", "W2", "over the floor", "seconds")

    def score(sampler: Sampler, steps: int) -> float:
        draws = (sampler.sample(2000, steps, generator=generator) for _ in range(6))
        return statistics.mean(wasserstein(x, reference).value for x in draws)

    def report(name: str, calls: int, found: list[float], seconds: list[float] | None) -> None:
        ratio = spread([value / floor for value in found], 2)
        took = f"{statistics.mean(seconds):.0f}" if seconds else "-"
        row(name, calls, spread(found), ratio, took)

    for name, schedule in (
        ("guide, polynomial", polynomial(10)),
        ("guide, linear", linear(10)),
        ("guide, polynomial", polynomial(50)),
    ):
        made = [guide(schedule, data, seed) for seed in range(SEEDS)]
        found = [score(Ancestral(model), schedule.steps) for model, _ in made]
        report(name, schedule.steps, found, [took for _, took in made])
    made = [ours(data, seed) for seed in range(SEEDS)]
    for name, sampler, steps in (
        ("ours, multistep", Multistep, 10),
        ("ours, full covariance", lambda d: Ancestral(d, "full"), 10),
        ("ours, multistep", Multistep, 50),
        ("ours, full covariance", lambda d: Ancestral(d, "full"), 50),
        ("ours, small", Ancestral, 10),
        ("ours, small", Ancestral, 50),
        ("ours, small", Ancestral, 1000),
    ):
        found = [score(sampler(model), steps) for model, _ in made]
        report(name, steps, found, [took for _, took in made])
    exact = MixtureDenoiser(*MOONS.mixture(104), TEN)
    for name, sampler in (
        ("exact denoiser, small", Ancestral(exact, "small")),
        ("exact denoiser, multistep", Multistep(exact)),
        ("exact denoiser, full covariance", Ancestral(exact, "full")),
    ):
        report(name, 10, [score(sampler, 10) for _ in range(SEEDS)], None)


def likelihood() -> None:
    """Negative log-likelihood of the probability flow, less the entropy; integral of it."""
    units = math.log(1.6 * 0.85)
    print(
        f"Entropy {MOONS.entropy() + units:.4f} nats in the units of scikit-learn. 4,000 points.\n"
    )
    head("training points", "seed", "NLL", "NLL - entropy", "integral", "seconds")
    side = torch.linspace(-1.6, 1.6, 121)
    points, area = torch.cartesian_prod(side, side), float(side[1] - side[0]) ** 2
    for count, steps in ((2000, 3500), (2000, 6000), (100_000, 6000)):
        for seed in range(2):
            generator = torch.Generator().manual_seed(seed)
            data = MOONS.stratified(count, generator)
            model, took = ours(data, seed, steps)
            flow = probability_flow(model, 40)
            kl = MOONS.kl(flow.log_prob, 4000, generator)
            with torch.no_grad():
                mass = float(flow.log_prob(points).double().exp().sum() * area)
            nll = kl.value + MOONS.entropy() + units
            row(f"{count:,}", seed, f"{nll:.4f}", kl, f"{mass:.5f}", f"{took:.0f}")


def speed() -> None:
    """Ancestral sampling, 2,000 points, T = 1000, against the loop of the guide."""
    print("Both with the layers 3-100-100-100-20-2 of the guide; medians of seven rounds.\n")
    steps, n = 1000, 2000
    schedule = linear(steps)
    bar = schedule.alpha_bar(torch.arange(steps + 1)).float()
    alpha, made = 1 - schedule.betas.float(), OneHotMLP(schedule)
    sigma = ((1 - alpha) * (1 - bar[:-1]) / (1 - bar[1:])).sqrt()
    layers = []
    for layer in [m for m in made.mlp.modules() if isinstance(m, nn.Linear)]:
        layers += [layer, nn.LeakyReLU()]
    network = nn.Sequential(*layers[:-1])

    @torch.no_grad()
    def loop(generator: torch.Generator) -> Tensor:
        x = torch.randn(n, 2, generator=generator)
        for k in range(steps, 0, -1):
            t = torch.full((n,), k)
            time_code = made.time(one_hot(t - 1, steps).float())
            eps = network(torch.cat([x, time_code], -1))
            share = (1 - alpha[t - 1]) / (1 - bar[t]).sqrt()
            mean = (x - share[:, None] * eps) / alpha[t - 1].sqrt()[:, None]
            noise = torch.randn(n, 2, generator=generator)
            x = mean + sigma[t - 1][:, None] * noise if k > 1 else mean
        return x

    sampler = Ancestral(NetworkDenoiser(made, schedule, (2,), predicts="eps"))
    told = NetworkDenoiser(NoiseMLP(2, hidden=(100, 100, 100, 20)), schedule, (2,), predicts="eps")
    ways: dict[str, Callable[[torch.Generator], Tensor]] = {
        "loop of the guide": loop,
        "ours, its network": lambda g: sampler.sample(n, generator=g),
        "ours, told in every layer": lambda g: Ancestral(told).sample(n, generator=g),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(7):
        for name, way in ways.items():
            began = time.perf_counter()
            way(torch.Generator().manual_seed(round_))
            seconds[name].append(time.perf_counter() - began)
    first, second = (ways[k](torch.Generator().manual_seed(0)) for k in list(ways)[:2])
    gap = float((first - second).abs().max())
    print(f"Same network, same noise: samples differ by at most {gap:.1e}.\n")
    head("sampler", "seconds", "loop over it")
    base = statistics.median(seconds["loop of the guide"])
    for name, found in seconds.items():
        middle = statistics.median(found)
        row(name, f"{middle:.2f}", f"{base / middle:.2f}")


def ring(n: int, radius: float, sd: float, generator: torch.Generator, even: bool) -> Tensor:
    """Eight Gaussians on a circle; even: as many points on each."""
    mode = torch.arange(n) % 8 if even else torch.randint(8, (n,), generator=generator)
    angle = mode * (math.pi / 4)
    centre = radius * torch.stack([angle.cos(), angle.sin()], 1)
    return centre + sd * torch.randn(n, 2, generator=generator)


def normal(n: int, generator: torch.Generator, even: bool) -> Tensor:
    """N(0, I); even: from scrambled Sobol points."""
    if not even:
        return torch.randn(n, 2, generator=generator)
    seed = int(torch.randint(2**31, (), generator=generator))
    u = torch.quasirandom.SobolEngine(2, scramble=True, seed=seed).draw(n, dtype=torch.float64)
    return torch.special.ndtri(u.clamp(1e-7, 1 - 1e-7)).float()


def two_moons(noise: float, n: int, generator: torch.Generator, even: bool) -> Tensor:
    """The moons of scikit-learn; even: stratified."""
    law = Moons(noise)
    return law.stratified(n, generator) if even else law.sample(n, generator)


Law = Callable[[int, torch.Generator, bool], Tensor]
NORMAL: Law = normal
# As the code of the published table makes them: moons of noise 0.1, their entries centred and
# scaled together to standard deviation 7; moons times 2, with 1 taken from the first coordinate.
WIDE: Law = lambda n, g, even: 7 * (two_moons(0.1, n, g, even) - 0.375) / 0.72299  # noqa: E731
DOUBLE: Law = lambda n, g, even: 2 * two_moons(0.05, n, g, even) - torch.tensor([1.0, 0.0])  # noqa: E731
PUBLISHED = {  # name: source, target, unit of the network, best published rows
    "moons to 8 Gaussians": (
        WIDE,
        lambda n, g, even: ring(n, 12.0, 1.5, g, even),
        7.0,
        "0.601 (OT-CFM)",
    ),
    "normal to moons": (NORMAL, DOUBLE, 1.0, "0.124 (SF2M), 0.130 (OT-CFM)"),
    "normal to 8 Gaussians": (
        NORMAL,
        lambda n, g, even: ring(n, 5.0, 1.0, g, even),
        3.6,
        "0.275 (SF2M), 0.303 (OT-CFM)",
    ),
}


def matching() -> None:
    """The published set-up of flow matching on the plane."""
    n, blocks, size = 10_000, 400, 256
    print(f"{n:,} samples against {n:,}, {SEEDS} trainings, each with a reference of its own; 3x64")
    print(
        f"SELU network of x and t, 100 steps of Euler's rule. Ours: {blocks * size:,} pairs, made"
    )
    print(
        f"once, optimal in blocks of {size} that are drawn evenly; 20,000 steps of 512 pairs, Adam"
    )
    print("0.01 with a cosine, averaged weights. Floor: fresh samples, same reference.\n")
    head("task", "published, best", "ours", "floor", "ours, 10 steps", "over the floor", "seconds")
    for name, (source, target, unit, published) in PUBLISHED.items():
        found: dict[str, list[float]] = {"ours": [], "floor": [], "few": [], "seconds": []}
        for seed in range(SEEDS):
            generator = torch.Generator().manual_seed(seed)
            torch.manual_seed(seed)
            began = time.process_time()
            laws = [
                torch.cat([law(size, generator, True) for _ in range(blocks)]) / unit
                for law in (source, target)
            ]
            field = FlowMatching(2, activation="selu")
            options = {"batch_size": 512, "lr": 1e-2, "ema": 0.999, "seed": seed}
            field.fit(*optimal_pairs(*laws, block=size), steps=20_000, **options)
            found["seconds"].append(time.process_time() - began)
            generator = torch.Generator().manual_seed(1000 + seed)
            fresh = (law(n, generator, False) for law in (target, target, source))
            reference, other, start = fresh
            with torch.no_grad():
                x, few = (
                    unit * field.ode(k).transport(start / unit, reverse=True) for k in (100, 10)
                )
            for key, points in (("ours", x), ("floor", other), ("few", few)):
                found[key].append(wasserstein(points, reference).value)
        cells = [spread(found[key]) for key in ("ours", "floor", "few")]
        over = statistics.mean(found["ours"]) / statistics.mean(found["floor"])
        row(name, published, *cells, f"{over:.2f}", f"{statistics.mean(found['seconds']):.0f}")


SECTIONS = {f.__name__: f for f in (moons, likelihood, speed, matching)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("sections", nargs="*", choices=[*SECTIONS, []], help="default: all")
    chosen = parser.parse_args()
    print(f"{device_name()}, {torch.get_num_threads()} thread(s), torch {torch.__version__}")
    for name in chosen.sections or SECTIONS:
        print(f"\n## {name}\n", flush=True)
        SECTIONS[name]()


if __name__ == "__main__":
    main()
