"""What a run promised and who could see what: one page, signed by its coordinator, kept in its event log.

text = sign_report(identity.key, identity.chain, report(job, run=..., ...))
open_report(text, roots)      the values again, once the signature is a coordinator's
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..core.errors import ProtocolError
from .accountant import Plan
from .certificate import PrivateKey, certificates
from .claim import Claim
from .hazmat.suite import suite_of
from .signed import open_values, sign_values

_PURPOSE = "atoll privacy report"
LONGEST = 1 << 16  # characters
SEES = {
    "each": "each client's update: the coordinator and every edge on the way",
    "sum": "sums of updates only, as long as fewer than two thirds of a sum's members help the coordinator",
}
OPEN = "TLS 1.3 between members, nothing else"
_FOLLOWS = "semi-honest coordinator: it follows the protocol"
TRUST = {
    True: f"{_FOLLOWS}. It holds the root's key and enrols members itself, so it could invent some",
    False: f"{_FOLLOWS}. The root's key lies elsewhere, but it enrols members itself by an intermediate's, so"
    " it could invent some while that one's certificate lasts",
}
BUFFERS = "one client's updates are zeros; that it was at work, and when, is not hidden"
NOISE = {
    "central": "Gaussian noise by the coordinator, which is trusted with sums without noise",
    "local": "Gaussian noise by each client, on its own update",
    "distributed": "discrete Gaussian noise by the clients, under their masks",
}


def trust(chain: bytes) -> str:
    """What has to be believed of a coordinator, by the certificates of a member, or of itself, up to below
    the root: it certifies members by the key of the root, or of an intermediate.
    """
    return TRUST[len(certificates(chain)) == 1]


def report(
    claim: Claim | None,
    plan: Plan | None,
    *,
    shows: str,
    run: str,
    federation: str,
    rounds: int,
    ended: float,
    label: str = "",
    crypto: str = "",
    integers: str = "",
    buffers: bool = False,
    state: str = "done",
    spent: Plan | None = None,
    trust: str = TRUST[True],
) -> dict[str, Any]:
    """The page's values. `shows`: what the exchange shows, "each" or "sum"; `plan`: the claim's cost over all
    rounds it was made for; `rounds`: how many there were; `state`: how it ended; `spent`: the claim's cost
    over the rounds that have begun, None where none has; `ended`: Unix seconds; `label`: what the exchange
    says of itself; `crypto`: the suite that hid updates, "" where only TLS did; `integers`: of
    how many bits they were summed, and why, "" where they were real numbers; `buffers`: whether updates
    came without rounds; `trust`: as `trust` gives it.
    """
    noisy = ", each with its own noise" if claim is not None and claim.noise == "local" else ""
    made: dict[str, Any] = {
        "run": run,
        "federation": federation,
        "ended": round(ended),
        "state": state,
        "rounds": rounds,
        "seen": f"sums of updates only; {label}" if label else SEES[shows] + noisy,
        "crypto": f"{crypto} ({suite_of(crypto).says})"
        if crypto
        else "TLS 1.3 between members, nothing else",
        **({"integers": integers} if integers else {}),
        "trust": trust,
        "promise": None,
    }
    if claim is not None and plan is not None:
        made["promise"] = {
            "unit": claim.unit,
            **({"neighbours": BUFFERS} if buffers else {}),
            "mechanism": NOISE[claim.noise],
            "epsilon": plan.epsilon,
            "epsilon of who knows who took part": plan.known,
            "delta": claim.delta,
            "clip": claim.clip,
            **({} if claim.adapt is None else {"clip follows the quantile": claim.adapt}),
            "sigma": claim.sigma,
            "rate": plan.release.rate,
            "sampling": plan.release.sampling,
            "rounds": plan.release.times,
            "rounds begun": 0 if spent is None else spent.release.times,
            "epsilon spent at most": 0.0 if spent is None else spent.epsilon,
            "spent towards who knows who took part": 0.0 if spent is None else spent.known,
        }
    return made


def sign_report(key: PrivateKey, chain: bytes, values: Mapping[str, Any]) -> str:
    """The page, the coordinator's signature and its certificates, as JSON."""
    return sign_values(key, chain, values, _PURPOSE)


def open_report(signed: str, roots: bytes) -> dict[str, Any]:
    """The page's values. Raises ProtocolError unless a coordinator of its federation signed them."""
    values, signer = open_values(
        signed, roots, purpose=_PURPOSE, when="ended", most=LONGEST, what="signed report of a run"
    )
    if (signer.role, signer.federation) != ("coordinator", values.get("federation")):
        raise ProtocolError(f"{signer.uri} may not sign such reports: their federation's coordinator does")
    return values
