"""How unlike the clients are, and which algorithm suits: `heterogeneity(sites)`.

Let p_k be client k's label histogram (a regression's quantile bins), g the pooled one, n_k sizes.
    label_tv   mean over clients of TV(p_k, g) = 1/2 sum |p_k - g|                      0..1
    label_js   mean Jensen-Shannon divergence, H((p_k + g)/2) - (H(p_k) + H(g))/2, bits  0..1
    gini, cv   of the n_k: 0 for equal sizes
    label_iid  the label_tv that chance gives an iid division into these sizes; small clients differ
               by chance, so advice looks at sqrt(label_tv² - label_iid²)
    shift      how far clients' feature means lie from those of the *same label* elsewhere, in
               standard deviations within a client (Cohen's f), root mean square, less what chance
               gives, so that neither label skew nor small clients look like feature skew
Everything is computed from sums per client, label and feature, so a federation could add them up.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .divide import strata
from .examples import Array
from .sites import Sites

_STRONG, _MODERATE = 0.45, 0.35  # skew; at 0.30 plain FedAvg lost 9 % in rounds, at 0.8 5x
_UNEVEN, _SHIFTED = 1.0, 0.5  # cv of sizes; standard deviations
_SILOS, _TABULAR = 10, 256  # clients, columns
_OFTEN = 0.1  # share of clients per round from which a client's own state stays fresh


class Recommendation(NamedTuple):
    """An algorithm by name, and why in one sentence."""

    algorithm: str
    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class Heterogeneity:
    """The measures above; `counts` (clients, labels) rows of each label, `labels` their names.

    `one_label`: clients whose rows all carry one label. `width`: features, 0 for images.
    Empty clients count in `sizes`, gini and cv only. `str()` is a table.
    """

    counts: NDArray[np.int64]
    labels: tuple[str, ...]
    names: tuple[str, ...]
    label_tv: float
    label_js: float
    label_iid: float
    gini: float
    cv: float
    shift: float
    one_label: int
    width: int

    @property
    def sizes(self) -> NDArray[np.int64]:
        """(clients,) rows of each client."""
        return np.asarray(self.counts.sum(axis=1))

    @property
    def skew(self) -> float:
        """label_tv less the part that chance alone gives, 0 to 1."""
        return float(np.sqrt(max(0.0, self.label_tv**2 - self.label_iid**2)))

    def recommend(self, share: float = 1.0) -> Recommendation:
        """Where to start, given the `share` of clients that take part in a round (0 to 1].

        A starting point by stated thresholds, not a promise: compare two algorithms on your data.
        """
        clients, skew = len(self.names), f"label distance {self.label_tv:.2f}"
        rules = (  # the first that applies
            (
                clients <= _SILOS and 0 < self.width <= _TABULAR,
                "exact statistics",
                (
                    f"{clients} sites with {self.width} columns can add up the statistics of a linear or"
                    " logistic model, which gives the pooled optimum whatever the skew"
                ),
            ),
            (
                self.skew >= _STRONG and share >= _OFTEN,
                "scaffold",
                (
                    f"strong label skew ({skew}) pulls clients apart, and each returns often enough to keep"
                    " the control variate that corrects it fresh; it doubles the bytes"
                ),
            ),
            (
                self.skew >= _STRONG,
                "fedavgm",
                (
                    f"strong label skew ({skew}) with few clients per round: server momentum (or fedadam)"
                    " averages over rounds what one cohort cannot show, and clients keep no state"
                ),
            ),
            (
                self.shift >= _SHIFTED,
                "fedbn",
                (
                    f"the same labels look different across clients ({self.shift:.1f} standard deviations):"
                    " keep batch normalisation local; without such layers standardise at each site"
                ),
            ),
            (
                self.cv >= _UNEVEN,
                "fednova",
                (
                    f"client sizes differ much (cv {self.cv:.1f}), so epochs mean unequal numbers of steps,"
                    " which fednova weighs out"
                ),
            ),
            (
                self.skew >= _MODERATE,
                "fedprox",
                f"moderate label skew ({skew}): a small proximal term limits drift at no extra bytes",
            ),
            (
                True,
                "fedavg",
                f"clients are alike ({skew}): plain averaging with a tuned rate is hard to beat",
            ),
        )
        return next(Recommendation(name, reason) for applies, name, reason in rules if applies)

    def draw(self, path: str | Path) -> Path:
        """Write the clients' labels and sizes as a picture, .png or .svg. Needs matplotlib."""
        from .draw import draw  # only who draws pays for it

        return draw(self, Path(path))

    def __str__(self) -> str:
        sizes, clients = self.sizes, len(self.names)
        spread = f"{sizes.min()} / {int(np.median(sizes))} / {sizes.max()}"
        advice = self.recommend()
        rows = [
            ("clients", f"{clients}", f"{sizes.sum()} rows"),
            ("rows per client", spread, "smallest / median / largest"),
            ("one label only", f"{self.one_label}", "clients"),
            (
                "label distance",
                f"{self.label_tv:.3f}",
                f"{_word(self.skew, _MODERATE, _STRONG)}; iid would give {self.label_iid:.3f}",
            ),
            ("label divergence", f"{self.label_js:.3f}", "Jensen-Shannon, bits"),
            ("size inequality", f"{self.gini:.3f}", f"Gini; cv {self.cv:.2f}"),
            ("feature shift", f"{self.shift:.3f}", _word(self.shift, _SHIFTED / 2, _SHIFTED)),
        ]
        lines = [f"{name:17s} {value:>16s}  {note}" for name, value, note in rows]
        return "\n".join([*lines, f"start with        {advice.algorithm:>16s}  {advice.reason}"])


def heterogeneity(sites: Sites) -> Heterogeneity:
    """Measure how unlike the clients of `sites` are; see the top of this file.

    Raises DataError where cells are missing.
    """
    sites.check()
    label = strata(sites.y, sites.task)
    width = max(sites.outputs if sites.task == "classes" else 1, int(label.max()) + 1)
    owner = np.repeat(np.arange(len(sites)), sites.sizes)
    counts = np.bincount(owner * width + label, minlength=len(sites) * width).reshape(-1, width)
    full = counts[counts.sum(axis=1) > 0]
    p, g = full / full.sum(axis=1, keepdims=True), full.sum(axis=0) / full.sum()  # (k, C), (C,)
    sizes = np.sort(sites.sizes)
    ranks = 2 * np.arange(1, len(sizes) + 1) - len(sizes) - 1
    return Heterogeneity(
        counts=counts,
        labels=sites.classes or _bin_names(width),
        names=sites.names,
        label_tv=float(np.abs(p - g).sum(axis=1).mean() / 2),
        label_iid=_chance(g, full.sum(axis=1)),
        label_js=float((_entropy((p + g) / 2) - (_entropy(p) + _entropy(g)) / 2).mean()),
        gini=float((ranks * sizes).sum() / (len(sizes) * sizes.sum())),
        cv=float(sizes.std() / sizes.mean()),
        shift=_shift(sites, label, width),
        one_label=int(((full > 0).sum(axis=1) == 1).sum()),
        width=int(sites.x.shape[1]) if sites.x.ndim == 2 else 0,
    )


def _entropy(p: Array) -> Array:
    return np.asarray(-(p * np.log2(np.where(p > 0, p, 1))).sum(axis=-1))


def _chance(g: Array, sizes: Array) -> float:
    """Mean TV between g and n_k draws from it: normal approximation, capped by its value at n = 1."""
    draws = np.sqrt(2 / np.pi * g * (1 - g)).sum() / 2 / np.sqrt(sizes)
    return float(np.minimum(draws, 1 - (g**2).sum()).mean())


def _bin_names(width: int) -> tuple[str, ...]:
    return tuple(f"bin {b + 1}" for b in range(width))


def _word(value: float, moderate: float, strong: float) -> str:
    return "strong" if value >= strong else "moderate" if value >= moderate else "mild"


def _shift(sites: Sites, label: NDArray[np.int64], width: int) -> float:
    """Cohen's f of the client among rows of one label, over labels and features.

    With S the sum over one client's rows of one label and n their number, per label and feature:
    between clients B = sum S²/n - (sum S)²/sum n, in all T = sum x² - (sum S)²/sum n. Were clients
    drawn at random, B would be (clients - 1) T / (rows - 1) on average, whatever the distribution.
    """
    features = prod(sites.x.shape[1:])
    total, parts, squares = np.zeros((3, width, features))
    groups = np.zeros(width)
    centre = sites.x.mean(axis=0, dtype=np.float64).reshape(-1)  # against cancellation in the squares
    for k, rows in enumerate(sites):
        own = label[sites.offsets[k] : sites.offsets[k + 1]]
        x = rows.x.reshape(len(rows), features) - centre
        for c in np.unique(own):
            of_c = x[own == c]
            s = of_c.sum(axis=0)
            total[c] += s
            parts[c] += s**2 / len(of_c)
            squares[c] += (of_c**2).sum(axis=0)
            groups[c] += 1
    n = np.bincount(label, minlength=width)
    compared = (groups > 1) & (n > groups)  # a label held by one client shows no shift
    if not compared.any():
        return 0.0
    n, groups = n[compared, None], groups[compared, None]
    mean_part = total[compared] ** 2 / n
    spread = squares[compared] - mean_part
    varies = spread > 1e-9 * max(float(squares.max()), 1e-300)
    ratio = (parts[compared] - mean_part) / np.where(varies, spread, 1)  # B / T
    chance = (groups - 1) / (n - 1)
    excess = (ratio - chance) / (1 - chance)  # 0 by chance, 1 if clients explain everything
    weight = varies * n
    share = float((excess * weight).sum() / max(float(weight.sum()), 1.0))
    return float(np.sqrt(max(0.0, share) / max(1 - share, 1e-9)))
