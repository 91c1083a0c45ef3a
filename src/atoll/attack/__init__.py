"""Attacks as tools: against one's own job, before others try. Poison: poison.py, attacks.py and trial.py.

Leaks: watch.py says who sees what, invert.py and membership.py what that tells; audit.py and one_run.py
attack a promise.
"""

from .attacks import (
    alie,
    backdoor,
    foe,
    free_rider,
    gauss,
    ipm,
    label_flip,
    mimic,
    min_max,
    nan,
    scaling,
    sign_flip,
    sybils,
)
from .audit import Audit, audit
from .invert import Leak, leaks
from .membership import Membership, memberships
from .one_run import OneRun, one_run
from .poison import Attack, poison
from .trial import Trial, attackers, trials, ways

__all__ = [
    "Attack",
    "Audit",
    "Leak",
    "Membership",
    "OneRun",
    "Trial",
    "alie",
    "attackers",
    "audit",
    "backdoor",
    "foe",
    "free_rider",
    "gauss",
    "ipm",
    "label_flip",
    "leaks",
    "memberships",
    "mimic",
    "min_max",
    "nan",
    "one_run",
    "poison",
    "scaling",
    "sign_flip",
    "sybils",
    "trials",
    "ways",
]
