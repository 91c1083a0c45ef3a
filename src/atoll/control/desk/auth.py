"""Who may call what: three roles, one table, and nothing that is not in it.

Every route of the API has a line in POLICY with the least role that may call it. A route without
a line is refused, so that forgetting one locks a door and never opens it; a test walks all routes.
A caller is known by a bearer token made for an operator of this federation. The server keeps only
the token's SHA-256; what an attacker could learn from the time a comparison takes is of no use
without the preimage, and digests are compared in constant time all the same.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from ...core.errors import AtollError
from ...privacy.token import Token

ANYONE, VIEWER, OPERATOR, ADMIN = "anyone", "viewer", "operator", "admin"
ROLES = (VIEWER, OPERATOR, ADMIN)  # each may do what those before it may

POLICY: Mapping[tuple[str, str], str] = {
    # without a token: what holds no data of the federation
    ("GET", "/"): ANYONE,
    ("GET", "/page.css"): ANYONE,
    ("GET", "/page.js"): ANYONE,
    ("GET", "/draw.js"): ANYONE,
    ("GET", "/words.js"): ANYONE,
    ("GET", "/healthz"): ANYONE,
    ("GET", "/readyz"): ANYONE,
    ("GET", "/v1/root"): ANYONE,
    # to look
    ("GET", "/metrics"): VIEWER,
    ("GET", "/v1/openapi.json"): VIEWER,
    ("GET", "/v1/federation"): VIEWER,
    ("GET", "/v1/health"): VIEWER,
    ("GET", "/v1/overview"): VIEWER,
    ("GET", "/v1/events"): VIEWER,
    ("GET", "/v1/runs"): VIEWER,
    ("GET", "/v1/runs/{run}"): VIEWER,
    ("GET", "/v1/runs/{run}/history"): VIEWER,
    ("GET", "/v1/nodes"): VIEWER,
    ("GET", "/v1/models"): VIEWER,
    ("GET", "/v1/models/{name}/{version}"): VIEWER,
    ("GET", "/v1/rollouts/{name}"): VIEWER,
    # to work
    ("POST", "/v1/plans"): OPERATOR,
    ("POST", "/v1/runs"): OPERATOR,
    ("POST", "/v1/runs/{run}/stop"): OPERATOR,
    ("GET", "/v1/runs/{run}/logs"): OPERATOR,  # a traceback shows paths of a site
    ("GET", "/v1/logs"): OPERATOR,
    ("GET", "/v1/models/{name}/{version}/file"): OPERATOR,
    ("POST", "/v1/rollouts/{name}"): OPERATOR,
    ("POST", "/v1/rollouts/{name}/promote"): OPERATOR,
    ("POST", "/v1/rollouts/{name}/rollback"): OPERATOR,
    ("POST", "/v1/nodes/{name}/drain"): OPERATOR,
    # to decide who belongs to the federation, and about its records
    ("POST", "/v1/nodes/{name}/revoke"): ADMIN,
    ("POST", "/v1/nodes/{name}/readmit"): ADMIN,
    ("POST", "/v1/nodes/{name}/reinstate"): ADMIN,
    ("GET", "/v1/tokens"): ADMIN,
    ("POST", "/v1/tokens"): ADMIN,
    ("DELETE", "/v1/tokens/{token}"): ADMIN,
    ("GET", "/v1/audit"): ADMIN,
    ("POST", "/v1/backups"): ADMIN,
    ("POST", "/v1/prune"): ADMIN,
}

MEMBER, PROOF = "member", "proof"  # this federation's certificate; a token's secret or a key's signature
MEMBERS: Mapping[tuple[str, str], str] = {
    # what members find at a coordinator's or an edge's own doors; operators' tokens open none of them
    ("GET", "/v1/root"): ANYONE,
    ("GET", "/v1/ways"): ANYONE,
    ("GET", "/v1/"): ANYONE,  # which versions are spoken
    ("POST", "/v1/seal"): ANYONE,  # begins a signed session; each call in it then proves who it is
    ("POST", "/v1/enrol/key"): ANYONE,  # a signed key that a token's secret is sealed for
    ("POST", "/v1/enrol"): PROOF,
    ("POST", "/v1/renew"): PROOF,
    ("POST", "/v1/session"): MEMBER,
    ("GET", "/v1/ws"): MEMBER,
    ("HEAD", "/v1/uploads/{upload}"): MEMBER,
    ("PUT", "/v1/uploads/{upload}"): MEMBER,
    ("GET", "/v1/blobs/{blob}"): MEMBER,
    ("GET", "/v1/key"): MEMBER,  # of a server that answers rows, sealed for it alone
    ("POST", "/v1/joint"): MEMBER,
    ("GET", "/v1/top/key"): MEMBER,
    ("POST", "/v1/top/joint"): MEMBER,
    ("gRPC", "Session"): MEMBER,
    ("gRPC", "Offset"): MEMBER,
    ("gRPC", "Upload"): MEMBER,
    ("gRPC", "Download"): MEMBER,
}


@dataclass(frozen=True, slots=True)
class Caller:
    """Somebody with a good token: `name` and `role`."""

    name: str
    role: str


def allows(role: str, least: str) -> bool:
    """Whether `role` may call what asks for `least`; an unknown role may call nothing."""
    return least == ANYONE or (role in ROLES and least in ROLES and ROLES.index(role) >= ROLES.index(least))


Known: TypeAlias = Callable[[str], tuple[str, str] | None]


def bearer(header: str | None, fingerprint: str, known: Known) -> Caller | None:
    """The caller an Authorization header proves, or None.

    `known(digest)` is the (role, name) a token's digest was made for. A token of another
    federation names another root and is not even looked up; a member's token is no key to the API.
    """
    scheme, _, text = (header or "").partition(" ")
    if scheme.lower() != "bearer":
        return None
    try:
        token = Token.parse(text.strip())
    except AtollError:
        return None
    if not hmac.compare_digest(token.fingerprint.encode(), fingerprint.encode()):
        return None
    found = known(token.digest)
    return Caller(found[1], found[0]) if found and found[0] in ROLES else None
