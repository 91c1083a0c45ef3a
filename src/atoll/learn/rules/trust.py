"""Rules that hold updates against a length, or against an update that is trusted.

Sun, Kairouz, Suresh, McMahan 2019, "Can you really backdoor federated learning?", §4, norm thresholding:

    g_i min(1, M / ||g_i||), then their mean or another rule

Cao, Fang, Liu, Gong 2021, "FLTrust: Byzantine-robust federated learning via trust bootstrapping", alg. 2.
Whoever coordinates has some rows it trusts; they make an update g_0 as clients make theirs:

    TS_i = ReLU(cos(g_i, g_0));    g = Σ TS_i ||g_0|| / ||g_i|| g_i / Σ TS_i

Those rows stand at a client of the coordinator's own, which takes part in every round as any other: it
trains with the job's learner from the same model, and no other way for rows or updates is needed.
"""

from __future__ import annotations

from math import isfinite

import numpy as np

from ...core.errors import ConfigError, QuorumError
from ...core.registry import part
from ...core.update import Array
from .coordinate import average
from .rule import Rule, answer, as_rule
from .stack import Stack

SHORT = 1e-9


@part("rule")
def norm_bound(norm: float | None = None, then: Rule | None = None) -> Rule:
    """Updates scaled down to the L2 norm `norm`, then the rule `then` (Sun et al. 2019, §4).

    `norm` > 0: by default the median of the round's norms. `then`: the plain mean by default. Unlike
    clip(), which clients apply, this is the receiver's and binds those who lie.
    """
    if norm is not None and not (norm > 0 and isfinite(norm)):
        raise ConfigError(f"norm is a length above 0, got {norm}")
    inner = average() if then is None else as_rule(then)

    def walk(stack: Stack) -> Array:
        norms = stack.norms
        bound = norm or float(np.median(norms))
        scale = np.minimum(1.0, bound / np.maximum(norms, 1e-300))
        return answer(inner, stack.mixed(np.diag(scale), peers=True))

    return Rule("norm_bound", walk, {"norm": norm, "then": inner}, inner.least, inner.knows)


@part("rule")
def level(then: Rule) -> Rule:
    """Every update scaled, up or down, to the median of the round's norms, then the rule `then`.

    Attacks that hold a model back hide near the middle, in updates shorter than any honest one (IPM, free
    riders); of the same length as all others they stand out. Updates a billion times shorter stay so.
    """
    inner = as_rule(then)

    def walk(stack: Stack) -> Array:
        norms = stack.norms
        usual = float(np.median(norms))
        moved = norms > SHORT * usual
        scale = np.where(moved, usual / np.where(moved, norms, 1.0), 1.0)
        return answer(inner, stack.mixed(np.diag(scale), peers=True))

    return Rule("level", walk, {"then": inner}, inner.least, inner.knows)


@part("rule")
def fltrust(root: int) -> Rule:
    """Updates weighed by their angle to a trusted one, and cut to its length (Cao et al. 2021, alg. 2).

    `root`: the id of the client that holds the coordinator's own rows. It must be in every cohort: use
    everyone(). Where no update points its way, its own is used.
    """
    if isinstance(root, bool) or not isinstance(root, int) or root < 0:
        raise ConfigError(f"root is the id of the client that is trusted, got {root!r}")

    def walk(stack: Stack) -> Array:
        if root not in stack.peers:
            raise QuorumError(
                f"fltrust weighs updates by that of client {root}, which sent none: give it to every cohort,"
                " with everyone(), and see that it is online"
            )
        at = stack.peers.index(root)
        norms = stack.norms
        scale = norms[at] / np.maximum(norms, 1e-300)
        trust = np.maximum(stack.gram[at] / np.maximum(norms * norms[at], 1e-300), 0.0)  # (n,)
        trust[at] = 0.0
        w = trust * scale / trust.sum() if trust.sum() > 0 else np.eye(stack.n)[at]
        return stack.combine(w)

    return Rule("fltrust", walk, {"root": root}, knows=(root,))
