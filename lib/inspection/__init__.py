"""Looking inside networks: what a score depends on, what it likes, and which data made it so."""

from lib.inspection.automaton import Automaton, Recognizer, extract
from lib.inspection.influence import Influence, leave_one_out, minimise
from lib.inspection.maximisation import (
    Density,
    Generator,
    Maximised,
    Pixels,
    Prior,
    maximise_activation,
)
from lib.inspection.pictures import distance_to_means, nearest, sharpness
from lib.inspection.saliency import integrated_gradients, occlusion, saliency
from lib.inspection.scores import gradient, score

__all__ = [
    "Automaton",
    "Density",
    "Generator",
    "Influence",
    "Maximised",
    "Pixels",
    "Prior",
    "Recognizer",
    "distance_to_means",
    "extract",
    "gradient",
    "integrated_gradients",
    "leave_one_out",
    "maximise_activation",
    "minimise",
    "nearest",
    "occlusion",
    "saliency",
    "score",
    "sharpness",
]
