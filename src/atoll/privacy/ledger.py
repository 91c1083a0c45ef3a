"""What a data set's owner lets be spent of its privacy, and what was: kept at the site, over all jobs.

    Ledger.create(folder, vault, "heart-2026", epsilon=8.0, delta=1e-5)       the owner's act, once
    Ledger.open(folder, vault, "heart-2026").spend(run, epsilon, delta, release)      before a run is answered

A budget belongs to an id that the owner gives to the rows, and stays the same when files are edited or
renamed. Each run is spent once, whatever becomes of it, and as a whole, by one of two countings, chosen
before it runs and never again:

- by its *curve*: Rényi divergences add up at each order until none has room (renyi_filter.py);
- as *promised*, where that has no room or the curve is of other neighbours than the first one's: ε to ε and
  δ to δ (Rogers, Roth, Ullman, Vadhan 2016, "Privacy odometers and filters: pay-as-you-go composition", §3:
  basic composition is a valid filter).

Both hold for jobs that are chosen by what earlier ones gave, also while those go on (Haney et al. 2023,
"Concurrent composition for interactive differential privacy with adaptive privacy-loss parameters").
Together: what was promised before the first curve is a mechanism before the filter's, and leaves it ε - Σε
and δ - Σδ. Of that δ the filter has all but an eighth, fixed; from the eighth come the δ of later promises,
whose ε counts at every order. A δ that the two shared by what happens could be spent twice.

    folder/budgets/NAME.ledger     sealed by the client's vault; NAME: a keyed hash of the id

A ledger that is missing or damaged says no: nobody can tell any more what was spent. An older copy is found
out by what the site has signed of the newer (receipt.py). One in plain, as development versions wrote it as
ID.json, is not read: whoever can write there could have written it.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from hashlib import sha256
from itertools import accumulate, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import ConfigError, PrivacyError, StateError
from . import renyi_filter
from .vault import Vault

if TYPE_CHECKING:
    from .accountant import Release

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_ROUNDED = 1e-9  # of a budget: sums of decimal numbers
_APART = 1 / 8  # of δ: for promises beside curves


@dataclass(frozen=True, slots=True)
class Spent:
    """One run's promise; or, named by a head of the chain, `entries` of which only their sum is known.

    `curve`: its divergences at the ledger's orders, where it counts by them, and `of` whose neighbours they
    are ("client", "example replaced"); () where it counts as promised.
    """

    run: str
    epsilon: float
    delta: float
    entries: int = 1
    curve: tuple[float, ...] = ()
    of: str = ""


@dataclass(frozen=True, slots=True)
class Total:
    """What a ledger comes to: `promised`, ε and δ of all; `epsilon` and `delta` of those that count as
    promised; and the sum of the others' curves.
    """

    promised: tuple[float, float]
    epsilon: float
    delta: float
    curve: tuple[float, ...] = ()
    orders: tuple[float, ...] = ()
    of: str = ""


class Ledger:
    """One budget. Made by `create` and `open`; one process at a time changes it."""

    def __init__(
        self, path: Path, vault: Vault, values: dict[str, Any], orders: tuple[float, ...] = ()
    ) -> None:
        self.path = path
        self.vault = vault
        self.id = str(values["id"])
        self.epsilon, self.delta = float(values["epsilon"]), float(values["delta"])
        self.orders = orders or tuple(map(float, values["orders"]))
        self.spent = tuple(_spent(s) for s in values["spent"])

    @classmethod
    def create(cls, folder: Path, vault: Vault, id: str, *, epsilon: float, delta: float) -> Ledger:
        """A new budget of an id that has none. Raises ConfigError for values that mean nothing,
        StateError where there is one.
        """
        path = _path(folder, vault, id)
        if not 0 < epsilon < float("inf"):
            raise ConfigError(f"a budget's epsilon is above 0, got {epsilon}")
        if not 0 < delta < 1:
            raise ConfigError(f"a budget's delta is above 0 and below 1, got {delta}")
        if path.exists():
            raise StateError(f"{id} has a budget already: what was spent stays spent")
        values = {"id": id, "epsilon": epsilon, "delta": delta, "spent": ()}
        made = cls(path, vault, values, renyi_filter.orders(epsilon, delta))
        made._write(made.spent)
        return made

    @classmethod
    def open(cls, folder: Path, vault: Vault, id: str) -> Ledger:
        """The budget as it stands. Raises PrivacyError where it is missing or damaged."""
        path = _path(folder, vault, id)
        if not path.exists():
            raise PrivacyError(
                f"the budget {id!r} has no ledger in {path.parent}: its owner opens one with"
                f" atoll privacy open {id} --epsilon E --delta D; if there was one, restore it"
            )
        made = cls._read(path, vault)
        if made.id != id:
            raise _damaged(path)
        return made

    @classmethod
    def _read(cls, path: Path, vault: Vault) -> Ledger:
        try:
            found = json.loads(vault.read(path))
            made = cls(path, vault, found)
            whole = found["hash"] == made.head
        except (OSError, ValueError, LookupError, TypeError, StateError):
            whole = False
        if not whole:
            raise _damaged(path)
        return made

    @property
    def total(self) -> Total:
        """What was spent."""
        return self._total(self.spent)

    @property
    def left(self) -> tuple[float, float]:
        """ε that the filter does not count yet, and δ that promises beside curves may still take, at least 0.

        A job may need more than its own ε where curves count, or less: only `spend` knows.
        """
        epsilon, delta = self._used(self.spent)
        return max(0.0, self.epsilon - epsilon), max(0.0, delta)

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

    def recover(self, entries: int, head: str, other: Total) -> None:
        """Take over what a newer copy of this ledger had spent, of which only the sums are known.

        What is missing counts as one entry more, also where more than the budget is spent by then. Curves
        that cannot be added to ours count as promised.
        """
        if self.follows(entries, head):
            return
        mine, lost = self.total, max(1, entries - self.entries + 1)
        known = (other.orders, other.of) == (self.orders, mine.of or other.of)
        sums = (other.epsilon, other.delta) if known else other.promised
        missing = Spent(head, max(0.0, sums[0] - mine.epsilon), max(0.0, sums[1] - mine.delta), lost)
        if not known:
            self._write((*self.spent, missing))
            return
        had = mine.curve or (0.0,) * len(self.orders)
        curved = tuple(a - b if a > b else 0.0 for a, b in zip(other.curve, had, strict=True))
        rest = [max(0.0, a - b) for a, b in zip(other.promised, mine.promised, strict=True)]
        rest = [max(0.0, a - b) for a, b in zip(rest, (missing.epsilon, missing.delta), strict=True)]
        self._write((*self.spent, missing, Spent(head, rest[0], rest[1], 1, curved, other.of)))

    def spend(
        self, run: str, epsilon: float, delta: float, release: Release | None = None, of: str = ""
    ) -> None:
        """Note a run's promise, on disk when this returns; again for the same run changes nothing.

        `release`: what keeps the promise, and `of` its neighbours. Raises PrivacyError, and notes nothing,
        where there is no room for it, or another promise than the run's first.
        """
        known = next((s for s in self.spent if s.run == run), None)
        if known is not None:
            if (known.epsilon, known.delta) != (epsilon, delta):
                raise PrivacyError(f"{run} promised epsilon {known.epsilon:g} before, and {epsilon:g} now")
            return
        ways = [Spent(run, epsilon, delta)]
        if release is not None and (self.total.of or of) == of:
            from .accountant import curve

            ways.insert(0, Spent(run, epsilon, delta, 1, curve(release, self.orders), of))
        for way in ways:
            after = *self.spent, way
            used, left = self._used(after)
            if used <= self.epsilon * (1 + _ROUNDED) and left >= -_ROUNDED * self.delta:
                self._write(after)
                return
        left_ = self.left
        raise PrivacyError(
            f"this data set's budget has epsilon {left_[0]:.4g} and delta {left_[1]:.3g} left,"
            f" the job needs {epsilon:g} and {delta:g}"
        )

    def _total(self, spent: tuple[Spent, ...]) -> Total:
        plain, curved = [s for s in spent if not s.curve], [s for s in spent if s.curve]
        return Total(
            (sum(s.epsilon for s in spent), sum(s.delta for s in spent)),
            sum(s.epsilon for s in plain),
            sum(s.delta for s in plain),
            tuple(map(sum, zip(*(s.curve for s in curved), strict=True))),
            self.orders if curved else (),
            curved[0].of if curved else "",
        )

    def _used(self, spent: tuple[Spent, ...]) -> tuple[float, float]:
        """ε that is counted, and δ that promises may still take, below 0 where they took too much."""
        total = self._total(spent)
        if not total.curve:
            return total.epsilon, self.delta - total.delta
        before = sum(s.delta for s in takewhile(lambda s: not s.curve, spent))
        rest = self.delta - before
        counted = renyi_filter.used(total.curve, self.orders, rest * (1 - _APART))
        return total.epsilon + counted, rest * _APART - (total.delta - before)

    def _heads(self, spent: tuple[Spent, ...]) -> list[str]:
        """The head before the first entry and after each."""
        heads = [_hash(self.id, self.epsilon, self.delta)]
        for s in spent:
            by: tuple[str | float, ...] = (s.of, *self.orders, *s.curve) if s.curve else ()
            heads.append(_hash(heads[-1], s.run, s.epsilon, s.delta, s.entries, *by))
        return heads

    def _write(self, spent: tuple[Spent, ...]) -> None:
        values: dict[str, Any] = {
            "id": self.id,
            "epsilon": self.epsilon,
            "delta": self.delta,
            "orders": self.orders,
            "spent": [asdict(s) for s in spent],
            "hash": self._heads(spent)[-1],
        }
        self.vault.write(self.path, json.dumps(values).encode())
        self.spent = spent


def _spent(s: dict[str, Any]) -> Spent:
    by = tuple(map(float, s.get("curve", ()))), str(s.get("of", ""))
    return Spent(str(s["run"]), float(s["epsilon"]), float(s["delta"]), int(s["entries"]), *by)


def _hash(*values: str | float) -> str:
    return sha256(json.dumps(values).encode()).hexdigest()


def _damaged(path: Path) -> PrivacyError:
    return PrivacyError(f"the ledger {path} is damaged: nobody can tell what was spent; restore it")


def ledgers(folder: Path, vault: Vault) -> list[Ledger]:
    """Every budget in a client's folder, by id. Raises PrivacyError for one that is damaged."""
    found = [Ledger._read(path, vault) for path in (folder / "budgets").glob("*.ledger")]
    return sorted(found, key=lambda made: made.id)


def _path(folder: Path, vault: Vault, id: str) -> Path:
    if not _ID.fullmatch(id):
        raise ConfigError(f"a budget's id is up to 63 letters, digits, . _ - and begins with one, got {id!r}")
    return folder / "budgets" / f"{vault.name('budget', id)}.ledger"
