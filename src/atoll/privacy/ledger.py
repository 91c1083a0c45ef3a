"""What a data set's owner lets be spent of its privacy, and what was: kept at the site, over all jobs.

    Ledger.create(folder, "heart-2026", epsilon=8.0, delta=1e-5)     the owner's act, once
    Ledger.open(folder, "heart-2026").spend(run, epsilon, delta)     before anything of the run is answered

A budget belongs to an id that the owner gives to the rows, and stays the same when files are edited or
renamed. Each run is spent once, whatever becomes of it, and as a whole: its promises add up, ε to ε and δ
to δ, which holds for jobs that are chosen by what earlier ones gave (Rogers, Roth, Ullman, Vadhan 2016,
"Privacy odometers and filters: pay-as-you-go composition", §3: basic composition is a valid filter).

    folder/budgets/ID.json     the entries, and the head of their chain of hashes

A ledger that is missing or damaged says no: nobody can tell any more what was spent. An older copy is found
out by what the site has signed of the newer (receipt.py).
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from hashlib import sha256
from itertools import accumulate
from pathlib import Path
from typing import Any

from ..core.errors import ConfigError, PrivacyError, StateError
from .private import write_private

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_ROUNDED = 1e-9  # of a budget: sums of decimal numbers


@dataclass(frozen=True, slots=True)
class Spent:
    """One run's promise; or, named by a head of the chain, `entries` of which only their sum is known."""

    run: str
    epsilon: float
    delta: float
    entries: int = 1


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
                tuple(
                    Spent(str(s["run"]), float(s["epsilon"]), float(s["delta"]), int(s["entries"]))
                    for s in found["spent"]
                ),
            )
            whole = found["hash"] == made.head and found["id"] == id
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
    def id(self) -> str:
        """The budget's."""
        return self.path.stem

    @property
    def total(self) -> tuple[float, float]:
        """ε and δ that were spent."""
        return sum(s.epsilon for s in self.spent), sum(s.delta for s in self.spent)

    @property
    def left(self) -> tuple[float, float]:
        """ε and δ that may still be spent, at least 0."""
        epsilon, delta = self.total
        return max(0.0, self.epsilon - epsilon), max(0.0, self.delta - delta)

    @property
    def entries(self) -> int:
        """How many promises were spent."""
        return sum(s.entries for s in self.spent)

    @property
    def head(self) -> str:
        """What names the budget and every entry in its order: the end of a chain of hashes."""
        return self._heads(self.spent)[-1]

    def follows(self, entries: int, head: str) -> bool:
        """Whether this ledger once had so many entries and that head, or has taken over what they came to."""
        counts = accumulate((s.entries for s in self.spent), initial=0)
        once = zip(counts, self._heads(self.spent), strict=True)
        return (entries, head) in once or any(s.run == head for s in self.spent)

    def recover(self, entries: int, head: str, epsilon: float, delta: float) -> None:
        """Take over what a newer copy of this ledger had spent, of which only the sums are known.

        What is missing counts as one entry more, also where more than the budget is spent by then.
        """
        if self.follows(entries, head):
            return
        had, lost = self.total, max(1, entries - self.entries + 1)
        missing = Spent(head, max(0.0, epsilon - had[0]), max(0.0, delta - had[1]), lost)
        self._write((*self.spent, missing))

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
        self._write((*self.spent, Spent(run, epsilon, delta)))

    def _heads(self, spent: tuple[Spent, ...]) -> list[str]:
        """The head before the first entry and after each."""
        heads = [_hash(self.id, self.epsilon, self.delta)]
        for s in spent:
            heads.append(_hash(heads[-1], s.run, s.epsilon, s.delta, s.entries))
        return heads

    def _write(self, spent: tuple[Spent, ...]) -> None:
        values: dict[str, Any] = {
            "id": self.id,
            "epsilon": self.epsilon,
            "delta": self.delta,
            "spent": [asdict(s) for s in spent],
            "hash": self._heads(spent)[-1],
        }
        write_private(self.path, json.dumps(values, indent=1).encode())
        self.spent = spent


def _hash(*values: str | float) -> str:
    return sha256(json.dumps(values).encode()).hexdigest()


def ledgers(folder: Path) -> list[Ledger]:
    """Every budget in a client's folder, by id."""
    return [Ledger.open(folder, path.stem) for path in sorted((folder / "budgets").glob("*.json"))]


def _path(folder: Path, id: str) -> Path:
    if not _ID.fullmatch(id):
        raise ConfigError(f"a budget's id is up to 63 letters, digits, . _ - and begins with one, got {id!r}")
    return folder / "budgets" / f"{id}.json"
