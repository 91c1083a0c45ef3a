"""AI4I 2020: 10 000 cutting operations of a milling machine, 339 of which failed (synthetic).

Matzka 2020, "Explainable Artificial Intelligence for Predictive Maintenance Applications" (UCI 601).
The five columns TWF..RNF say *why* a machine failed and would give the answer away; they are not
loaded. A client is a product quality: low, medium or high.
"""

from __future__ import annotations

import numpy as np

from atoll.core.errors import ConfigError, DataError
from atoll.core.registry import part

from .columns import number_column, read_csv
from .examples import Dataset, Examples
from .fetch import File, locate

_FILE = File(
    "ai4i2020.csv",
    "https://archive.ics.uci.edu/ml/machine-learning-databases/00601/ai4i2020.csv",
    522_048,
    "dc6630cd9b1f0f853922fad78a1b6436570d3f1ec863f1dd5c4340ac56bc8a8e",
)
_PROCESS = (
    "Air temperature [K]",
    "Process temperature [K]",
    "Rotational speed [rpm]",
    "Torque [Nm]",
    "Tool wear [min]",
)
_QUALITY = ("L", "M", "H")
_TARGET = "Machine failure"  # some copies write it with an underscore


@part("data")
def ai4i2020(*, type: str = "ordinal") -> Dataset:  # noqa: A002  the column's own name
    """Machine failure from product type and five process values, 10 000 rows, 3 sites.

    `type`: "ordinal" (L, M, H become 0, 1, 2: six columns) or "onehot" (eight columns).
    x: (10000, 6 or 8) float64, unscaled; no test split.
    Raises DataError if the file is not at hand or damaged.
    """
    if type not in ("ordinal", "onehot"):
        raise ConfigError(f'type is "ordinal" or "onehot", got {type!r}', "$.type")
    table = {k.replace("_", " "): v for k, v in read_csv(locate("ai4i2020", [_FILE])[_FILE.name]).items()}
    lacking = [name for name in ("Type", *_PROCESS, _TARGET) if name not in table]
    if lacking or not np.isin(table["Type"], _QUALITY).all() or len(table["Type"]) != 10_000:
        raise DataError(f"{_FILE.name} is not the AI4I 2020 table of 10 000 rows: fetch it again")
    ranks = (table["Type"][:, None] == np.array(_QUALITY)).astype(np.float64)  # (n, 3)
    names = tuple(f"Type {q}" for q in _QUALITY) if type == "onehot" else ("Type",)
    quality = ranks if type == "onehot" else ranks @ np.arange(3.0)
    process = [number_column(table[name], name, _FILE.name) for name in _PROCESS]
    return Dataset(
        "ai4i2020",
        Examples(np.column_stack([quality, *process]), table[_TARGET].astype(np.int64), (*names, *_PROCESS)),
        classes=("no failure", "failure"),
        sites=table["Type"],
        source="UCI 601: Matzka 2020",
        licence="CC BY 4.0",
    )
