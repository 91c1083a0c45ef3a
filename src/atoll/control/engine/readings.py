"""Data sets of stored readings, and whether a site's rows keep a job's contract.

    [data.press]
    source = "press"        what [sources.press] has stored
    holdout = 0.25          the newest share of it is what models are tested on
    newest = 100000         readings at most
    windows = true          a row is a full window of one device, labelled as its newest reading is;
                            without, it is a reading
    labels = false          rows without their labels, for learners that need none

Rows without their label are left out where the contract has one; where labels come later, `newest` counts the
rows that have theirs. A site that has no readings yet may join: it
refuses to train until it has.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from ...core.errors import ConfigError
from ...core.registry import nearest
from ...data.contract import Contract
from ...data.examples import Examples
from ...data.pipeline import breaks
from ...privacy.vault import Vault
from ...sense.boxes import Kept
from ...sense.place import Absent
from ...sense.source import NEWEST
from ...sense.window import Form, table
from ..settings import Client
from . import sensing

_KEYS = ("source", "holdout", "newest", "windows", "labels", "budget")
_LOOK = 20  # times as many readings are looked through for those with a label


def rows(
    name: str, said: Mapping[str, Any], settings: Client, vault: Vault
) -> tuple[Examples, Examples | None, Contract]:
    """Training rows, test rows or None, and the contract they keep.

    Raises ConfigError for a wrong key or value, StateError for a damaged store.
    """
    path = f"$.data.{name}"
    for key in said:
        if key not in _KEYS:
            raise ConfigError(f"unknown key {key!r}: {nearest(key, _KEYS)}", f"{path}.{key}")
    source = said["source"]
    if source not in settings.sources:
        raise ConfigError(f"there is no source {source!r}: {nearest(str(source), settings.sources)}", path)
    share, newest = said.get("holdout", 0.2), said.get("newest", NEWEST)
    if not isinstance(share, (int, float)) or not 0 <= share < 1:
        raise ConfigError("holdout is a share, from 0 to below 1", f"{path}.holdout")
    if not isinstance(newest, int) or newest < 1:
        raise ConfigError("newest is a number of readings, from 1", f"{path}.newest")
    made = sensing.contract(settings, source)
    span = settings.sources[source].window.size if said.get("windows") else 0
    if said.get("windows") and not span:
        raise ConfigError("rows are windows of a size: give the source window = { size = ... }", path)
    form, labels = sensing.form(made), bool(said.get("labels", True))
    late = labels and settings.sources[source].labels is not None
    kept = _kept(
        settings, source, vault, made, newest, late=late, label=form.label if late and not span else -1
    )
    if not labels:
        made = _bare(made)
    found = _examples(kept, form, span, made)
    cut = len(found) - round(share * len(found))
    return found[:cut], found[cut:] if share else None, made


def refusal(held: Any, wanted: Contract) -> str:
    """Why these rows (a datasets.Held) are none of the contract, "" where they are."""
    if held.contract is not None:
        return wanted.differs(held.contract)
    parts = filter(None, (held.train, held.test))
    return next((reason for part in parts if (reason := breaks(part, held.classes, wanted))), "")


def _bare(made: Contract) -> Contract:
    """The contract of rows without their label."""
    columns = {name: made.columns[name] for name in made.features}
    return msgspec.structs.replace(made, columns=columns, label="")


def _kept(
    settings: Client, source: str, vault: Vault, made: Contract, newest: int, *, late: bool, label: int
) -> list[Kept]:
    """The newest readings; `late`: so many with a label, which came by itself. `label`: its place among
    cells, where readings without are left out, -1 to keep all.
    """
    try:
        store = sensing.stored(settings, source, vault, made if late else None)
    except Absent:
        return []
    with store:
        after = max(store.since(newest), store.end() - _LOOK * newest)
        found = (r for form, kept in store.boxes(after) if form == made.form for r in kept)
        return [r for r in found if label < 0 or not math.isnan(r.cells[label])]


def _examples(kept: list[Kept], form: Form, span: int, made: Contract) -> Examples:
    """Rows in the order of their time."""
    kept.sort(key=lambda r: r.at)
    if span:
        x, y = _windowed(kept, form, span)
    else:
        x, y = table(kept, form)
    if not made.label:
        y = np.zeros(len(x))
    elif y is None:
        x, y = x[:0], np.zeros(0)
    here = ~np.isnan(y)
    x, y = x[here], y[here]
    if made.classes:
        y = y.astype(np.int64)
    return Examples(x, y, made.features if x.ndim == 2 else ())


def _windowed(kept: list[Kept], form: Form, span: int) -> tuple[Any, Any]:
    """A row for each full window of one device."""
    by_device: dict[str, list[int]] = defaultdict(list)
    x, y = table(kept, form)
    full = []
    for at, reading in enumerate(kept):
        mine = by_device[reading.source]
        mine.append(at)
        if len(mine) >= span:
            full.append(mine[-span:])
    places = np.array(full, np.int64).reshape(-1, span)
    return x[places], None if y is None else y[places[:, -1]]
