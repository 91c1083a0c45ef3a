"""What a budget's ledger said last, signed by its site and kept by others, so that an older copy is noticed.

    text = signed(ledger, identity, now=...)       at the site, after each entry; the coordinator keeps it
    check(ledger, opened(text, roots))             at the site, before the next entry

A folder restored from a backup knows nothing of what was spent since. The site's own signature, handed back
by the coordinator with every ask, does. A coordinator cannot make one up; one that keeps them to itself
leaves a site where it was without.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import msgspec

from ..core.errors import PrivacyError, ProtocolError
from .identity import Identity
from .ledger import Ledger, Total
from .signed import open_values, sign_values

_PURPOSE = "atoll budget receipt"
LONGEST = 1 << 12  # characters


@dataclass(frozen=True, slots=True)
class Receipt:
    """A ledger as it stood at `made` (Unix seconds): how many `entries`, what they promised in all, and the
    `head` of their chain of hashes.

    `curve`: at `orders`, what those of neighbours `of` came to that count by it; then `plain`, ε and δ of
    the others. An earlier version's has none: all count as promised.
    """

    federation: str
    member: str
    budget: str
    entries: int
    epsilon: float
    delta: float
    head: str
    made: float
    plain: tuple[float, float] | None = None
    curve: tuple[float, ...] = ()
    orders: tuple[float, ...] = ()
    of: str = ""

    @property
    def total(self) -> Total:
        """What its ledger came to."""
        promised = self.epsilon, self.delta
        return Total(promised, *(self.plain or promised), self.curve, self.orders, self.of)


def signed(ledger: Ledger, identity: Identity, *, now: float) -> str:
    """The ledger's receipt as text."""
    member, total = identity.member, ledger.total
    made = Receipt(
        federation=member.federation,
        member=member.name,
        budget=ledger.id,
        entries=ledger.entries,
        epsilon=total.promised[0],
        delta=total.promised[1],
        head=ledger.head,
        made=now,
        plain=(total.epsilon, total.delta),
        curve=total.curve,
        orders=total.orders,
        of=total.of,
    )
    return sign_values(identity.key, identity.chain, asdict(made), _PURPOSE)


def opened(text: str, roots: bytes) -> Receipt:
    """The receipt. Raises ProtocolError unless the member it names has signed it."""
    values, signer = open_values(
        text, roots, purpose=_PURPOSE, when="made", most=LONGEST, what="signed receipt of a budget"
    )
    try:
        made = msgspec.convert(values, Receipt)
        if len(made.curve) != len(made.orders) or not all(c >= 0 for c in made.curve):
            raise msgspec.ValidationError
    except msgspec.ValidationError:
        raise ProtocolError("this is no signed receipt of a budget") from None
    if (signer.role, signer.federation, signer.name) != ("client", made.federation, made.member):
        raise ProtocolError(f"{signer.uri} may not sign receipts of {made.member}: only that client does")
    return made


def check(ledger: Ledger, receipt: Receipt) -> None:
    """Raise PrivacyError where the ledger is not the one the receipt is of, or an older copy of it."""
    if ledger.follows(receipt.entries, receipt.head):
        return
    was = f"{receipt.entries} entries of {receipt.epsilon:.4g} in all"
    epsilon, _ = ledger.total.promised
    raise PrivacyError(
        f"the ledger of budget {ledger.id!r} is an older copy: this site signed for {was}, and it has"
        f" {ledger.entries} of {epsilon:.4g}. Restore the newer one, or count what is missing as spent:"
        f" atoll privacy recover {ledger.id}"
    )
