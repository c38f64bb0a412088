"""Densities by invertible maps: `Flow`, base laws, and whole flows in one line each."""

from lib.flows.bases import Base, StandardLogistic, StandardNormal, Uniform
from lib.flows.diagnostics import round_trip_error
from lib.flows.flow import Flow, FlowDistribution
from lib.flows.recipes import (
    autoregressive_flow,
    bounded_flow,
    circular_flow,
    coupling_flow,
    glow,
    planar_flow,
    radial_flow,
    spline_flow,
)

__all__ = [
    "Base",
    "Flow",
    "FlowDistribution",
    "StandardLogistic",
    "StandardNormal",
    "Uniform",
    "autoregressive_flow",
    "bounded_flow",
    "circular_flow",
    "coupling_flow",
    "glow",
    "planar_flow",
    "radial_flow",
    "round_trip_error",
    "spline_flow",
]
