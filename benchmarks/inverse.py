"""Inverse problems: learned posteriors against exact ones.

    OMP_NUM_THREADS=1 python benchmarks/inverse.py > benchmarks/results/inverse.md
    OMP_NUM_THREADS=1 python benchmarks/inverse.py moons linear

Published rows: Lueckmann et al. (2021), main paper, mean C2ST over ten observations; a replication
of Kruse et al. (2021) with the kernel and the estimator used here. Their observations are others,
drawn from the same law.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.functional import one_hot

from lib.book.page import device_name
from lib.inverse import (
    ConditionalFlow,
    ConditionalVAE,
    Exact,
    FlowMatching,
    InvertibleSolver,
    MixtureDensityNetwork,
    PriorOnly,
    Solver,
    calibration,
    negative_log_likelihood,
    posterior_c2st,
    posterior_error,
    ranks,
    resimulation_error,
)
from lib.inverse.problems import (
    Ballistics,
    EightModes,
    GaussianLinear,
    InverseProblem,
    Kinematics,
    TwoMoons,
)
from lib.metrics import c2st


@dataclass
class Trained:
    """A model, what it cost, and what it was trained on."""

    model: Solver
    seconds: float

    @property
    def parameters(self) -> str:
        return f"{sum(p.numel() for p in self.model.parameters()):,}"


def train(make: Callable[[], Solver], problem: InverseProblem, n: int, seed: int, **fit) -> Trained:
    """Fit a new model to n simulations; processor seconds."""
    torch.manual_seed(seed)
    model = make()
    pairs = problem.sample(n, torch.Generator().manual_seed(100 + seed))
    began = time.process_time()
    model.fit(*pairs, seed=seed, **fit)
    return Trained(model, time.process_time() - began)


def head(*names: str) -> None:
    row(*names)
    print("|:--" + "|--:" * (len(names) - 1) + "|")


def row(*cells: object) -> None:
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def samplers() -> None:
    """Seconds for 100,000 exact draws, and how far their simulations are from y."""
    print("100,000 independent exact draws, float64, fastest of three.\n")
    head("problem, y", "seconds", "largest error of a re-simulation")
    double = {"dtype": torch.float64}
    for problem, y in (
        (Kinematics(**double), [1.5, 0.0]),
        (Kinematics(**double), [1.7, 0.1]),
        (Kinematics(**double), [0.0, 1.5]),
        (Ballistics(**double), [5.0]),
        (Ballistics("poisson", **double), [5.0]),
    ):
        y, spent = torch.tensor(y, dtype=torch.float64), []
        for seed in range(3):
            began = time.process_time()
            x = problem.sample_posterior(y, 100_000, torch.Generator().manual_seed(seed))
            spent.append(time.process_time() - began)
        error = float((problem.simulate(x) - y).abs().max())
        row(f"{problem.name}, {y.tolist()}", f"{min(spent):.3f}", f"{error:.0e}")


def modes() -> None:
    """The INN of the chapter on the eight modes, by likelihood and by MMD."""
    print("100,000 pairs; per label 1,000 draws; C2ST with 2,000 on each side, the worst label.")
    print("Largest deviation of a share of a mode, in binomial standard deviations. MMD at the")
    print("default weights: where each spot has a label, it can swap them (see the chapter).\n")
    head("objective, labels", "parameters", "seconds", "largest deviation", "wrong modes", "C2ST")
    likelihood = {"layers": 5, "objective": "likelihood", "kind": "spline", "noise": 0.3}
    settings = {
        "likelihood": (likelihood, {"steps": 2500, "batch_size": 400, "lr": 4e-3, "ema": 0.99}),
        "MMD": ({"layers": 6, "noise": 0.1}, {"steps": 1500, "batch_size": 500, "lr": 3e-3}),
    }
    for name, (options, fit) in settings.items():
        for labels in ("all", "some", "none"):
            problem = EightModes(labels)
            make = lambda o=options: InvertibleSolver(  # noqa: E731
                2, 8, latent=2, total=10, hidden=(64,), **o
            )
            trained = train(make, problem, 100_000, 0, **fit)
            deviations, wrong, tests = [], [], []
            for c in range(8):
                own = [k for k, label in enumerate(problem.label_of_mode) if label == c]
                if not own:
                    continue
                y = one_hot(torch.tensor(c), 8).float()
                x = trained.model.sample(y, 2000, torch.Generator().manual_seed(c))
                exact = problem.sample_posterior(y, 2000, torch.Generator().manual_seed(c))
                tests.append(c2st(x, exact).value)
                nearest = torch.cdist(x[:1000], problem.centres.to(x)).argmin(1)
                share = torch.bincount(nearest, minlength=8)[own] / 1000
                wrong.append(1 - float(share.sum()))
                p = 1 / len(own)
                if p < 1:
                    sd = (p * (1 - p) / 1000) ** 0.5
                    deviations.append(float((share - p).abs().max() / sd))
            row(
                f"{name}, {labels}",
                trained.parameters,
                f"{trained.seconds:.0f}",
                f"{max(deviations):.1f}" if deviations else "-",
                f"{max(wrong):.1%}",
                f"{max(tests):.3f}",
            )


def moons() -> None:
    """Two moons by the protocol of the benchmark: ten observations, 10,000 draws on each side."""
    print("Mean C2ST over ten observations (sd over them); NPE with splines: 0.606 and 0.542,")
    print("with a MAF 0.814 and 0.770. E KL is exact: nats over fresh pairs.\n")
    budgets = {
        10_000: {"steps": 3000, "batch_size": 500, "lr": 3e-3, "validation": 0.1, "patience": 20},
        100_000: {
            "steps": 6000,
            "batch_size": 1000,
            "lr": 3e-3,
            "validation": 0.05,
            "patience": 30,
        },
    }
    sizes = {10_000: (32, 32), 100_000: (64, 64)}
    problem = TwoMoons()
    _protocol(
        problem,
        budgets,
        {
            f"cINN, {kind}": lambda n, kind=kind: ConditionalFlow(
                2, 2, kind=kind, layers=6, hidden=sizes[n], low=problem.low, high=problem.high
            )
            for kind in ("spline", "affine")
        },
    )


def linear() -> None:
    """Gaussian linear by the same protocol."""
    print(
        "Mean C2ST over two observations (sd over them), as each test takes four minutes; NPE over"
    )
    print("ten: 0.552 and 0.506. The rows without steps are a regression, where the flow starts.\n")
    budgets = {
        10_000: {"steps": 300, "batch_size": 500, "lr": 3e-4, "validation": 0.1},
        100_000: {"steps": 1000, "batch_size": 1000, "lr": 3e-4, "validation": 0.05},
    }
    make = lambda n: ConditionalFlow(10, 10, kind="affine", layers=2, hidden=(32,))  # noqa: E731
    models = {"cINN, no steps": make, "cINN, affine": make}
    _protocol(GaussianLinear(), budgets, models, observations=2)


def _protocol(problem: InverseProblem, budgets: dict, models: dict, observations: int = 10) -> None:
    y = problem.sample(observations, torch.Generator().manual_seed(5))[1]
    head("model, simulations", "parameters", "seconds", "E KL (nats)", "C2ST")
    for n, fit in budgets.items():
        for name, make in models.items():
            if name == "cINN, affine" and n > 10_000 and problem.name == "two_moons":
                continue  # one comparison of the two kinds will do
            options = {"steps": 0} if "no steps" in name else fit
            trained = train(lambda make=make, n=n: make(n), problem, n, 1, **options)
            nll = negative_log_likelihood(
                trained.model, problem, 50_000, torch.Generator().manual_seed(6)
            )
            tested = "-"
            if options["steps"]:
                generator = torch.Generator().manual_seed(7)
                test = posterior_c2st(trained.model, problem, y, generator=generator)
                tested = f"{test.mean.value:.3f} ({float(test.values.std()):.3f})"
            row(
                f"{name}, {n:,}",
                trained.parameters,
                f"{trained.seconds:.0f}",
                f"{nll.excess:.4f} ± {nll.stderr:.1g}",
                tested,
            )
    print("\nTwo samples of one law: 0.500 (0.0035), the binomial standard deviation.")


def mechanics(problem: InverseProblem, noise: float, large: bool) -> None:
    """All models of one problem on 300 observations, 1,000 draws for each."""
    D, d = problem.features, problem.observed
    small = {"steps": 3000, "batch_size": 1000, "lr": 3e-3, "ema": 0.99}
    models = {
        "prior only": (lambda: PriorOnly(D, d), {}),
        "MDN": (lambda: MixtureDensityNetwork(D, d, components=16, hidden=(128, 128)), small),
        "cVAE": (lambda: ConditionalVAE(D, d, hidden=(128, 128)), small),
        "flow matching": (lambda: FlowMatching(D, d, hidden=(128, 128, 128)), small),
        "INN, MMD": (
            lambda: InvertibleSolver(
                D, d, latent=D - d, total=D + 2, layers=6, hidden=(128,), noise=0.03
            ),
            {"steps": 1500, "batch_size": 500, "lr": 2e-3},
        ),
        "INN, likelihood": (
            lambda: InvertibleSolver(
                *(D, d), latent=D - d, objective="likelihood", kind="spline", layers=6, noise=0.03
            ),
            small,
        ),
        "cINN, affine": (
            lambda: ConditionalFlow(D, d, kind="affine", layers=10, noise=noise),
            small,
        ),
        "cINN, splines": (lambda: ConditionalFlow(D, d, layers=6, noise=noise), small),
    }
    if large:
        models["cINN, splines, larger"] = (
            lambda: ConditionalFlow(D, d, layers=6, hidden=(128, 128), noise=noise),
            {"steps": 15_000, "batch_size": 1000, "lr": 3e-3, "ema": 0.998},
        )
        models["flow matching, larger"] = (
            lambda: FlowMatching(D, d, hidden=(192, 192, 192)),
            {"steps": 15_000, "batch_size": 1000, "lr": 3e-3, "ema": 0.998},
        )
    y = problem.sample(300, torch.Generator().manual_seed(77))[1]
    print("A million pairs; 300 observations from the prior predictive, 1,000 draws for each.\n")
    names = ("Err_post, mean", "median (quartiles)", "Err_resim, median", "SBC gap (band)")
    head("model", "parameters", "seconds", *names)
    for name, (make, fit) in models.items():
        trained = train(make, problem, 1_000_000, 0, **fit)
        _judge(name, trained.parameters, f"{trained.seconds:.0f}", trained.model, problem, y)
    _judge("exact posterior", "", "", Exact(problem), problem, y)


def _judge(name: str, size: str, seconds: str, model, problem: InverseProblem, y) -> None:
    generator = torch.Generator().manual_seed(8)
    error = posterior_error(model, problem, y, generator=generator)
    resim = resimulation_error(model, problem, y[:200], generator=generator)
    found = calibration(ranks(model, problem, 500, generator=generator))
    low, middle, high = error.quartiles
    row(
        name,
        size,
        seconds,
        f"{error.mean.value:.4f} ± {error.mean.stderr:.1g}",
        f"{middle:.4f} ({low:.4f} to {high:.4f})",
        f"{resim.quartiles[1]:.1e}",
        f"{found.gap:.3f} ({found.band:.3f})",
    )


def kinematics() -> None:
    """The comparison of Kruse et al. on the robot arm."""
    print(
        "A replication with this kernel, about 3M parameters and a million pairs, 50 epochs: prior"
    )
    print("0.242, MDN 0.0031, autoencoder 0.0053, flow matching 0.0016, cVAE 0.0169 (means).")
    mechanics(Kinematics(), noise=0.01, large=True)


def ballistics() -> None:
    """The same on the thrown object, with a real-valued speed."""
    mechanics(Ballistics(), noise=0.01, large=False)


SECTIONS = {f.__name__: f for f in (samplers, modes, moons, linear, kinematics, ballistics)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("sections", nargs="*", choices=[*SECTIONS, []], help="default: all")
    chosen = parser.parse_args()
    print(
        f"{device_name()}, {torch.get_num_threads()} thread(s), torch {torch.__version__},", end=""
    )
    print(" seconds of the CPU")
    for name in chosen.sections or SECTIONS:
        print(f"\n## {name}\n", flush=True)
        SECTIONS[name]()


if __name__ == "__main__":
    main()
