"""Invertible networks that explain other networks: concepts and invariances."""

from lib.concepts.attacks import fgsm, pgd, random_signs
from lib.concepts.coloured import DigitReader, digit_pairs
from lib.concepts.fibres import fibre_ratio, nearest, retained_share
from lib.concepts.interpretation import FactorLoss, Interpretation
from lib.concepts.invariances import Invariances
from lib.concepts.pairs import Pairs, class_pairs, shape_pairs
from lib.concepts.readers import Reading, ShapeReader
from lib.concepts.sizes import canonical_correlations, canonical_size, noise_level, softmax_sizes
from lib.concepts.swaps import SwapScores, explained, known, shape_values, swap_scores

__all__ = [
    "DigitReader",
    "FactorLoss",
    "Interpretation",
    "Invariances",
    "Pairs",
    "Reading",
    "ShapeReader",
    "SwapScores",
    "canonical_correlations",
    "canonical_size",
    "class_pairs",
    "digit_pairs",
    "explained",
    "fgsm",
    "fibre_ratio",
    "known",
    "nearest",
    "noise_level",
    "pgd",
    "random_signs",
    "retained_share",
    "shape_pairs",
    "shape_values",
    "softmax_sizes",
    "swap_scores",
]
