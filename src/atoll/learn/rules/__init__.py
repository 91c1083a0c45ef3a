"""Robust rules: what to make of updates of which some may be lies. `Rule` is what each of them is."""

from .centre import centred_clipping, geometric_median
from .coordinate import average, median, trimmed_mean, within
from .krum import krum, multi_krum
from .nnm import nnm
from .rule import Rule
from .stack import Stack
from .trust import fltrust, level, norm_bound

__all__ = [
    "Rule",
    "Stack",
    "average",
    "centred_clipping",
    "fltrust",
    "geometric_median",
    "krum",
    "level",
    "median",
    "multi_krum",
    "nnm",
    "norm_bound",
    "trimmed_mean",
    "within",
]
