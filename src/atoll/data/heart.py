"""Heart Disease: four hospitals that measured the same things on different people.

Janosi, Steinbrunn, Pfisterer, Detrano 1988 (UCI 45), prepared and split as in FLamby (Ogier du
Terrail et al. 2022, "FLamby: Datasets and Benchmarks for Cross-Silo Federated Learning in Realistic
Healthcare Settings"): columns 11-13 are dropped (hardly measured outside Cleveland), then rows with
a missing cell; chest pain and resting ECG become indicators without their first level; any
narrowing counts as disease. 740 rows and 13 columns remain.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from atoll.core.errors import DataError
from atoll.core.registry import part

from .examples import Array, Dataset, Examples
from .fetch import File, locate

_UCI = "https://archive.ics.uci.edu/ml/machine-learning-databases/heart-disease/"
_HOSPITALS = {
    "cleveland": (18_461, "a74b7efa387bc9d108d7d0115d831fe9b414b29ae7124f331b622b4efa0427c8"),
    "hungarian": (10_263, "d1ad108f785768cd3d7e82dc522e6f5a61eea93cccfb3a46ee8076f73fc3d796"),
    "switzerland": (4_109, "834a405ccf5b66ab4056bb77794adc8df0b7125186454c0a1d002d33c6c3b314"),
    "va": (6_737, "e7c93d8d0d2acdadfa4c5e8de768e2191e7f618b952e29623f1f0d5949ff6b8f"),
}
# FLamby's test rows, one bit per complete row, high bit first: scikit-learn's train_test_split with
# train_size 0.66, random_state 43, stratified by class where both have more than two rows. Recorded,
# because its draws are an implementation detail and the split should not need scikit-learn;
# tests/against/test_data.py draws it again.
_TEST_ROWS = {
    "cleveland": "040480a020b3c59dc48a03b505c0481087c001ac9430180a847015a598491260f8e2001cebe4",
    "hungarian": "1100847cb841d42c88700d510093869198d144134848122f693a0411802910ba30",
    "switzerland": "07863a8c80c0",
    "va": "464800245b65020eb85b04886003a74580",
}
_COMPLETE = {"cleveland": 303, "hungarian": 261, "switzerland": 46, "va": 130}
_PLAIN = {0: "age", 1: "sex", 3: "trestbps", 4: "chol", 5: "fbs", 7: "thalach", 8: "exang", 9: "oldpeak"}
_LEVELS = {2: ("cp", (2, 3, 4)), 6: ("restecg", (1, 2))}
_TARGET, _DROPPED, _WIDTH = 13, (10, 11, 12), 14
FEATURES = (*_PLAIN.values(), *(f"{name}_{level}" for name, levels in _LEVELS.values() for level in levels))


@part("data")
def heart_disease() -> Dataset:
    """Heart disease in four hospitals, 486 + 254 rows, 13 columns, FLamby's split.

    Sites, train/test: cleveland 199/104, hungarian 172/89, switzerland 30/16 (all its training
    rows are of one class), va 85/45. x: (n, 13) float64, unscaled.
    Raises DataError if the files are not at hand or damaged.
    """
    files = [File(f"processed.{h}.data", f"{_UCI}processed.{h}.data", *f) for h, f in _HOSPITALS.items()]
    paths = locate("heart_disease", files)
    tables = {h: complete_rows(paths[f"processed.{h}.data"]) for h in _HOSPITALS}
    for hospital, table in tables.items():
        if len(table) != _COMPLETE[hospital]:
            raise DataError(
                f"processed.{hospital}.data has {len(table)} complete rows, not {_COMPLETE[hospital]}"
            )
    table = np.concatenate([*tables.values()])
    held = np.concatenate([_held_out(hospital) for hospital in _HOSPITALS])
    sites = np.repeat([*_HOSPITALS], [*_COMPLETE.values()])
    rows = Examples(_columns(table), (table[:, _TARGET] > 0).astype(np.int64), FEATURES)
    return Dataset(
        "heart_disease",
        rows[~held],
        rows[held],
        classes=("no disease", "disease"),
        sites=sites[~held],
        test_sites=sites[held],
        source="UCI 45: Janosi, Steinbrunn, Pfisterer, Detrano 1988; split of FLamby",
        licence="CC BY 4.0",
    )


def complete_rows(path: Path) -> Array:
    """(n, 14) float64: one hospital's rows without a missing cell in the columns we keep.

    The dropped columns are 0. Raises DataError for a line that is not 14 numbers or `?`.
    """
    rows = []
    for number, line in enumerate(path.read_text("ascii", errors="replace").split(), start=1):
        cells = line.split(",")
        try:
            row = [0.0 if i in _DROPPED else np.nan if c == "?" else float(c) for i, c in enumerate(cells)]
        except ValueError:
            row = []
        if len(row) != _WIDTH:
            raise DataError(f"{path.name}, line {number}: expected 14 numbers: fetch the file again")
        rows.append(row)
    table = np.array(rows, dtype=np.float64).reshape(-1, _WIDTH)
    return np.asarray(table[~np.isnan(table).any(axis=1)])


def _columns(table: Array) -> Array:
    dummies = [table[:, c] == level for c, (_, levels) in _LEVELS.items() for level in levels]
    return np.column_stack([table[:, [*_PLAIN]], *dummies]).astype(np.float64)


def _held_out(hospital: str) -> Array:
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(_TEST_ROWS[hospital]), np.uint8))
    return bits[: _COMPLETE[hospital]].astype(bool)
