"""A site's budgets as jobs spend them: held against what the site has signed, spent, and signed anew.

folder/budgets/ID.receipt     what the site signed last, for others to keep (privacy/receipt.py)
folder/budgets/ID.newer       a receipt that showed this ledger to be an older copy
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from ...core.errors import PrivacyError, ProtocolError
from ...privacy.keys import Identity
from ...privacy.ledger import Ledger
from ...privacy.private import write_private
from ...privacy.receipt import Receipt, check, opened, signed


def spend(
    folder: Path, budget: str, run: str, epsilon: float, delta: float, known: Sequence[str], *, now: float
) -> None:
    """Spend a run's promise, on disk and signed when this returns; again for the same run changes nothing.

    `known`: receipts of this client that others kept. Raises PrivacyError, and spends nothing, where the
    ledger is missing, damaged, an older copy than any of them says, or has less left.
    """
    ledger, identity = Ledger.open(folder, budget), Identity.open(folder / "identity")
    mine = _file(ledger, "receipt")
    for text, receipt in _of(ledger, identity, [*known, *_texts(ledger)]):
        try:
            check(ledger, receipt)
        except PrivacyError:
            write_private(_file(ledger, "newer"), text.encode())
            raise
    ledger.spend(run, epsilon, delta)
    if not any(r.head == ledger.head for _, r in _of(ledger, identity, _read([mine]))):
        write_private(mine, signed(ledger, identity, now=now).encode())


def recover(folder: Path, budget: str) -> Ledger:
    """The ledger once it counts as spent whatever newer copies of it had, as its receipts say."""
    ledger, identity = Ledger.open(folder, budget), Identity.open(folder / "identity")
    for _, found in _of(ledger, identity, _texts(ledger)):
        ledger.recover(found.entries, found.head, found.epsilon, found.delta)
    return ledger


def told(folder: Path) -> list[str]:
    """What the client in `folder` has signed last of each of its budgets."""
    return _read(sorted((folder / "budgets").glob("*.receipt")))


def _of(ledger: Ledger, identity: Identity, texts: Iterable[str]) -> list[tuple[str, Receipt]]:
    """Those that this member has signed of this budget, the newest first; others say nothing."""
    found = []
    for text in texts:
        try:
            receipt = opened(text, identity.roots)
        except ProtocolError:
            continue
        whose = receipt.federation, receipt.member, receipt.budget
        if whose == (identity.member.federation, identity.member.name, ledger.id):
            found.append((text, receipt))
    return sorted(found, key=lambda each: -each[1].entries)


def _texts(ledger: Ledger) -> list[str]:
    return _read([_file(ledger, "receipt"), _file(ledger, "newer")])


def _read(paths: Iterable[Path]) -> list[str]:
    return [path.read_text("utf-8") for path in paths if path.exists()]


def _file(ledger: Ledger, kind: str) -> Path:
    return ledger.path.with_suffix(f".{kind}")
