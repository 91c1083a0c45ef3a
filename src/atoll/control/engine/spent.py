"""A site's budgets as jobs spend them: held against what the site has signed, spent, and signed anew.

folder/budgets/NAME.receipt     what the site signed last, for others to keep (privacy/receipt.py)
folder/budgets/NAME.newer       a receipt that showed this ledger to be an older copy

Both are sealed, as the ledger is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ...core.errors import PrivacyError, ProtocolError, StateError
from ...privacy.keys import Identity
from ...privacy.ledger import Ledger
from ...privacy.receipt import Receipt, check, opened, signed
from ...privacy.vault import Vault

if TYPE_CHECKING:
    from ...privacy.accountant import Release


def spend(
    folder: Path,
    vault: Vault,
    budget: str,
    run: str,
    promise: tuple[float, float],
    known: Sequence[str],
    *,
    now: float,
    release: Release | None = None,
    of: str = "",
) -> None:
    """Spend a run's promise, ε and δ, on disk and signed when this returns; again for the same run changes
    nothing. `release`, `of`: see Ledger.spend.

    `known`: receipts of this client that others kept. Raises PrivacyError, and spends nothing, where the
    ledger is missing, damaged, an older copy than any of them says, or has no room.
    """
    ledger, identity = Ledger.open(folder, vault, budget), Identity.open(folder / "identity")
    mine = _file(ledger, "receipt")
    for text, receipt in _of(ledger, identity, [*known, *_texts(ledger)]):
        try:
            check(ledger, receipt)
        except PrivacyError:
            vault.write(_file(ledger, "newer"), text.encode())
            raise
    ledger.spend(run, *promise, release, of)
    if not any(r.head == ledger.head for _, r in _of(ledger, identity, _read(vault, [mine]))):
        vault.write(mine, signed(ledger, identity, now=now).encode())


def recover(folder: Path, vault: Vault, budget: str) -> Ledger:
    """The ledger once it counts as spent whatever newer copies of it had, as its receipts say."""
    ledger, identity = Ledger.open(folder, vault, budget), Identity.open(folder / "identity")
    for _, found in _of(ledger, identity, _texts(ledger)):
        ledger.recover(found.entries, found.head, found.total)
    return ledger


def told(folder: Path, vault: Vault) -> list[str]:
    """What the client in `folder` has signed last of each of its budgets."""
    return _read(vault, sorted((folder / "budgets").glob("*.receipt")))


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
    return _read(ledger.vault, [_file(ledger, "receipt"), _file(ledger, "newer")])


def _read(vault: Vault, paths: Iterable[Path]) -> list[str]:
    """What opens: a receipt that was changed says nothing, and others keep it, too."""
    found = []
    for path in paths:
        with suppress(FileNotFoundError, StateError):
            found.append(vault.read(path).decode())
    return found


def _file(ledger: Ledger, kind: str) -> Path:
    return ledger.path.with_suffix(f".{kind}")
