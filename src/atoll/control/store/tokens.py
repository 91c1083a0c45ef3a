"""Tokens, by the SHA-256 of their secret: the secret itself is never here.

A member's token (coordinator, edge, client) works once; again only for who used it, so that a
member whose answer was lost on the way may ask again. An operator's token stays until it runs out.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import insert, or_, select, update

from ...core.errors import MisuseError, StateError
from . import schema as t
from .database import Database, transition
from .plain import clean

MEMBERS = ("coordinator", "edge", "client")
OPERATORS = ("viewer", "operator", "admin")
_ADD, _USE, _REVOKE = transition("token_add"), transition("token_use"), transition("token_revoke")


class Tokens(Database):
    """The tokens of a store."""

    def token_add(self, digest: str, role: str, name: str, until: float, actor: str = "") -> None:
        """Let the token with this digest (64 hex digits) in until then, as `name` in `role`.

        Raises MisuseError for an unknown role, StateError if the token is there already.
        """
        if role not in MEMBERS + OPERATORS:
            raise MisuseError(f"a token's role is one of {', '.join(MEMBERS + OPERATORS)}, got {role!r}")
        with self.write(_ADD) as tx:
            if tx.run(select(t.tokens.c.role).where(t.tokens.c.digest == digest)).one_or_none():
                raise StateError("this token is there already: make a new one")
            row = {"digest": digest, "role": role, "name": name, "created": tx.now, "until": until}
            tx.run(insert(t.tokens), {**row, "used": None, "used_by": "", "revoked": False})
            body = {"role": role, "until": until, "token": digest}
            tx.event("token.added", body, node=name, actor=actor)

    def token_use(self, digest: str, now: float, by: str = "") -> tuple[str, str] | None:
        """(role, name) if the token lets in at `now`, None if not; a member's is used up by this.

        `by`: who uses it, such as the fingerprint of a key; a used token works again for the same.
        """
        found = self.rows(select(t.tokens.c.role, t.tokens.c.name).where(*_open(digest, now)))
        if not found:
            return None
        role, name = found[0].role, found[0].name
        if role in OPERATORS:  # each call of the API comes here: it writes nothing
            return role, name
        free = t.tokens.c.used.is_(None)
        again = (t.tokens.c.used_by == by) & (t.tokens.c.used_by != "")
        with self.write(_USE) as tx:
            change = update(t.tokens).where(*_open(digest, now), free)
            if tx.run(change.values(used=now, used_by=clean(by))).rowcount:
                tx.event("token.used", {"role": role, "token": digest, "by": clean(by)}, node=name)
                return role, name
            same = tx.run(select(t.tokens.c.role).where(*_open(digest, now), or_(free, again)))
            return (role, name) if same.one_or_none() else None

    def tokens(self) -> list[dict[str, Any]]:
        """{digest, role, name, created, until, used, used_by, revoked} of each, oldest first."""
        return [dict(row._mapping) for row in self.rows(select(t.tokens).order_by(t.tokens.c.created))]

    def token_revoke(self, digest: str, actor: str = "") -> bool:
        """Let a token in no more; the beginning of its digest is enough where only one has it.

        False if there is none, or several, or it is revoked already.
        """
        with self.write(_REVOKE) as tx:
            like = t.tokens.c.digest.startswith(digest, autoescape=True)
            found = tx.run(select(t.tokens).where(like, t.tokens.c.revoked.is_(False))).all()
            if len(found) != 1 or len(digest) < 8:
                return False
            change = update(t.tokens).where(t.tokens.c.digest == found[0].digest).values(revoked=True)
            tx.run(change)
            tx.event("token.revoked", {"token": found[0].digest}, node=found[0].name, actor=actor)
            return True


def _open(digest: str, now: float) -> tuple[Any, ...]:
    c = t.tokens.c
    return c.digest == digest, c.revoked.is_(False), c.until > now
