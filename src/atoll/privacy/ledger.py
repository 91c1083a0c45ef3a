"""What a data set's owner lets be spent of its privacy, and what was: kept at the site, over all jobs.

    Ledger.create(folder, "heart-2026", epsilon=8.0, delta=1e-5)     the owner's act, once
    Ledger.open(folder, "heart-2026").spend(run, epsilon, delta)     before anything of the run is answered

A budget belongs to an id that the owner gives to the rows, and stays the same when files are edited or
renamed. Each run is spent once, whatever becomes of it, and as a whole: its promises add up, ε to ε and δ
to δ, which holds for jobs that are chosen by what earlier ones gave (Rogers, Roth, Ullman, Vadhan 2016,
"Privacy odometers and filters: pay-as-you-go composition", §3: basic composition is a valid filter).

    folder/budgets/ID.json     each entry carries the hash of those before it

A ledger that is missing or damaged says no: nobody can tell any more what was spent.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from ..core.errors import ConfigError, PrivacyError, StateError
from .private import write_private

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_ROUNDED = 1e-9  # of a budget: sums of decimal numbers


@dataclass(frozen=True, slots=True)
class Spent:
    """One run's promise."""

    run: str
    epsilon: float
    delta: float


class Ledger:
    """One budget. Made by `create` and `open`; one process at a time changes it."""

    def __init__(self, path: Path, epsilon: float, delta: float, spent: tuple[Spent, ...]) -> None:
        self.path = path
        self.epsilon = epsilon
        self.delta = delta
        self.spent = spent

    @classmethod
    def create(cls, folder: Path, id: str, *, epsilon: float, delta: float) -> Ledger:
        """A new budget of an id that has none. Raises ConfigError for values that mean nothing,
        StateError where there is one.
        """
        path = _path(folder, id)
        if not 0 < epsilon < float("inf"):
            raise ConfigError(f"a budget's epsilon is above 0, got {epsilon}")
        if not 0 < delta < 1:
            raise ConfigError(f"a budget's delta is above 0 and below 1, got {delta}")
        if path.exists():
            raise StateError(f"{id} has a budget already, in {path}: what was spent stays spent")
        made = cls(path, epsilon, delta, ())
        made._write(made.spent)
        return made

    @classmethod
    def open(cls, folder: Path, id: str) -> Ledger:
        """The budget as it stands. Raises PrivacyError where it is missing or damaged."""
        path = _path(folder, id)
        try:
            found = json.loads(path.read_bytes())
            made = cls(
                path,
                float(found["epsilon"]),
                float(found["delta"]),
                tuple(Spent(str(s["run"]), float(s["epsilon"]), float(s["delta"])) for s in found["spent"]),
            )
            whole = found["hash"] == made._hash(made.spent) and found["id"] == id
        except FileNotFoundError:
            raise PrivacyError(
                f"the budget {id!r} has no ledger in {path.parent}: its owner opens one with"
                f" atoll privacy open {id} --epsilon E --delta D; if there was one, restore it"
            ) from None
        except (OSError, ValueError, KeyError, TypeError):
            whole = False
        if not whole:
            raise PrivacyError(f"the ledger {path} is damaged: nobody can tell what was spent; restore it")
        return made

    @property
    def left(self) -> tuple[float, float]:
        """ε and δ that may still be spent, at least 0."""
        epsilon = self.epsilon - sum(s.epsilon for s in self.spent)
        delta = self.delta - sum(s.delta for s in self.spent)
        return max(0.0, epsilon), max(0.0, delta)

    def spend(self, run: str, epsilon: float, delta: float) -> None:
        """Note a run's promise, on disk when this returns; again for the same run changes nothing.

        Raises PrivacyError, and notes nothing, where that is more than is left, or another promise than
        the run's first.
        """
        known = next((s for s in self.spent if s.run == run), None)
        if known is not None:
            if (known.epsilon, known.delta) != (epsilon, delta):
                raise PrivacyError(f"{run} promised epsilon {known.epsilon:g} before, and {epsilon:g} now")
            return
        left = self.left
        if epsilon > left[0] + _ROUNDED * self.epsilon or delta > left[1] + _ROUNDED * self.delta:
            raise PrivacyError(
                f"this data set's budget has epsilon {left[0]:.4g} and delta {left[1]:.3g} left,"
                f" the job needs {epsilon:g} and {delta:g}"
            )
        more = (*self.spent, Spent(run, epsilon, delta))
        self._write(more)
        self.spent = more

    def _hash(self, spent: tuple[Spent, ...]) -> str:
        """Of the budget and every entry in its order."""
        found = sha256(json.dumps([self.path.stem, self.epsilon, self.delta]).encode()).hexdigest()
        for s in spent:
            found = sha256(json.dumps([found, s.run, s.epsilon, s.delta]).encode()).hexdigest()
        return found

    def _write(self, spent: tuple[Spent, ...]) -> None:
        values: dict[str, Any] = {
            "id": self.path.stem,
            "epsilon": self.epsilon,
            "delta": self.delta,
            "spent": [{"run": s.run, "epsilon": s.epsilon, "delta": s.delta} for s in spent],
            "hash": self._hash(spent),
        }
        write_private(self.path, json.dumps(values, indent=1).encode())


def ledgers(folder: Path) -> list[Ledger]:
    """Every budget in a client's folder, by id."""
    return [Ledger.open(folder, path.stem) for path in sorted((folder / "budgets").glob("*.json"))]


def _path(folder: Path, id: str) -> Path:
    if not _ID.fullmatch(id):
        raise ConfigError(f"a budget's id is up to 63 letters, digits, . _ - and begins with one, got {id!r}")
    return folder / "budgets" / f"{id}.json"
