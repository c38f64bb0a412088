"""Invertible networks that explain other networks: concepts and invariances."""

from lib.concepts.attacks import fgsm, pgd, random_signs
from lib.concepts.fibres import fibre_ratio, nearest, retained_share
from lib.concepts.invariances import Invariances
from lib.concepts.readers import Reading, ShapeReader

__all__ = [
    "Invariances",
    "Reading",
    "ShapeReader",
    "fgsm",
    "fibre_ratio",
    "nearest",
    "pgd",
    "random_signs",
    "retained_share",
]
