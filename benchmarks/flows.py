"""Flows side by side with their peers: speed, inverses, and exact divergences.

    OMP_NUM_THREADS=1 python benchmarks/flows.py > benchmarks/results/flows.md
    OMP_NUM_THREADS=1 python benchmarks/flows.py affine spline --quick

The peers are the extra `bench` of pyproject.toml. Whatever is compared runs in one process, in
turns, on the same data. Importing zuko changes torch.distributions for everybody (it switches off
validation); it is imported after ours is built, and ours gives the same numbers afterwards.
"""

from __future__ import annotations

import argparse

import torch
from flows import accuracy, interval, measure, plane, speed  # the folder beside this file

SECTIONS = {
    "affine": speed.affine,
    "spline": speed.spline,
    "autoregressive": accuracy.autoregressive,
    "roundtrip": accuracy.roundtrip,
    "inverse": accuracy.inverse,
    "interval": interval.interval,
    "plane": plane.plane,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("sections", nargs="*", choices=[*SECTIONS, []], help="default: all")
    parser.add_argument("--quick", action="store_true", help="a smoke run of a few minutes")
    chosen = parser.parse_args()
    print(measure.machine())
    for name in chosen.sections or SECTIONS:
        torch.manual_seed(0)
        print(f"\n## {name}\n", flush=True)
        SECTIONS[name](chosen.quick)


if __name__ == "__main__":
    main()
