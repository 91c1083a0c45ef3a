"""Keys, certificates, signatures: one door to what proves who a member is.

    key = new_key(); csr = request(key, federation, role, name)      at the member: its key never leaves
    chain = Authority.open(folder).sign(csr, role=…, name=…, now=…)  at the coordinator
    identity = Identity(key, chain, roots).save(folder)              at the member again
    chain_member(chain, roots, now=…)                                whoever meets it

Role and name are what the authority says, never what a request asks for. certificate.py holds keys,
requests and checks, authority.py who signs, identity.py a member's files, models.py signed models.
"""

from .authority import BACKDATED, Authority
from .certificate import (
    ROLES,
    SERVERS,
    Member,
    PrivateKey,
    chain_member,
    fingerprint,
    hosts_of,
    key_name,
    key_pem,
    load_key,
    member_of,
    new_key,
    proven,
    read_request,
    request,
    sign,
    uri,
    verify,
)
from .identity import Current, Identity
from .models import newest, open_model, sign_model

__all__ = [
    "BACKDATED",
    "ROLES",
    "SERVERS",
    "Authority",
    "Current",
    "Identity",
    "Member",
    "PrivateKey",
    "chain_member",
    "fingerprint",
    "hosts_of",
    "key_name",
    "key_pem",
    "load_key",
    "member_of",
    "new_key",
    "newest",
    "open_model",
    "proven",
    "read_request",
    "request",
    "sign",
    "sign_model",
    "uri",
    "verify",
]
