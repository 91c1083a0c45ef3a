"""Nodes: who was seen, where, with which certificates; who takes no more work; who is out.

To revoke a name is to refuse it, and every certificate it holds. `readmit` lets the name enrol
again; its old certificates stay refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import bindparam, insert, select, update

from . import schema as t
from .database import Database, transition
from .plain import canonical, clean, digest, parsed
from .tokens import MEMBERS
from .upsert import insert_new

_LIVE = ("parent", "address", "version", "transport")
_SEEN, _GONE, _DRAIN = transition("node_seen"), transition("node_gone"), transition("drain")
_REVOKE, _READMIT = transition("revoke"), transition("readmit")
_CERTIFICATE, _NOTICED = transition("certificate_add"), transition("noticed")
_NODE = select(t.nodes).where(t.nodes.c.name == bindparam("n"))
_NODES = (
    select(t.nodes, t.records.c.score, t.records.c.quarantined)
    .outerjoin(t.records, t.records.c.name == t.nodes.c.name)
    .order_by(t.nodes.c.name)
)
_STILL = update(t.nodes).where(t.nodes.c.name == bindparam("n")).values(last_seen=bindparam("now"))


class Nodes(Database):
    """The nodes of a store."""

    def node_seen(self, name: str, role: str, info: Mapping[str, Any]) -> None:
        """A node is here; `info` may hold parent, address, version, transport, and more of its own."""
        name, role = clean(name), clean(role)
        live = {key: clean(str(info.get(key) or "")) for key in _LIVE}
        rest = canonical({key: value for key, value in info.items() if key not in _LIVE})
        now_is = {"role": role, **live, "info": rest, "online": True}
        with self.write(_SEEN) as tx:
            before = tx.run(_NODE, {"n": name}).one_or_none()
            if before is not None and all(before._mapping[key] == v for key, v in now_is.items()):
                tx.run(_STILL, {"n": name, "now": tx.now})  # a sign of life is no change of state
                return
            if before is None:
                first = {"name": name, "first_seen": tx.now, "last_seen": tx.now, "drained": False}
                tx.run(insert(t.nodes), {**first, **now_is})
            else:
                change = update(t.nodes).where(t.nodes.c.name == name)
                tx.run(change.values(**now_is, last_seen=tx.now))
            tx.event("node.seen", {"role": role, **live, "info": digest(rest)}, node=name)

    def node_gone(self, name: str, reason: str = "") -> bool:
        """A node's session ended; False if it was not online."""
        with self.write(_GONE) as tx:
            change = update(t.nodes).where(t.nodes.c.name == name, t.nodes.c.online.is_(True))
            if not tx.run(change.values(online=False, last_seen=tx.now)).rowcount:
                return False
            tx.event("node.gone", {"reason": clean(reason)}, node=name)
            return True

    def nodes(self) -> list[dict[str, Any]]:
        """Every node by name: {name, role, parent, address, version, transport, info, first_seen,
        last_seen, online, drained, revoked, quarantined, score}; `score` as of the last run that saw what it
        sent, None before.
        """
        with self.read() as conn:
            out = set(conn.execute(select(t.bans.c.name)).scalars())
            found = conn.execute(_NODES).all()
        return [
            {
                **row._mapping,
                "info": parsed(row.info),
                "revoked": row.name in out,
                "quarantined": bool(row.quarantined),
            }
            for row in found
        ]

    def drain(self, name: str, on: bool, actor: str = "") -> bool:  # noqa: FBT001  drain(name, on) reads well
        """Give a node no more work, or work again; False if there is no such node or it is so already."""
        with self.write(_DRAIN) as tx:
            change = update(t.nodes).where(t.nodes.c.name == name, t.nodes.c.drained.is_(not on))
            if not tx.run(change.values(drained=on)).rowcount:
                return False
            tx.event("node.drained" if on else "node.undrained", {}, node=name, actor=actor)
            return True

    def noticed(self, name: str, number: int, kind: str, body: Mapping[str, Any]) -> bool:
        """What a node noticed or did about it, by its own number; False for one that was told before."""
        with self.write(_NOTICED) as tx:
            e = t.events.c
            last = select(e.body).where(e.node == name, e.kind.like("watch.%")).order_by(e.seq.desc())
            before = tx.run(last.limit(1)).scalar()
            if before is not None and parsed(before)["number"] >= number:
                return False
            tx.event(f"watch.{clean(kind, 32)}", {**body, "number": number}, node=name)
            return True

    def certificate_add(self, serial: int, name: str, role: str, until: float) -> None:
        """A certificate was signed for a node; `until`: the end of its validity."""
        with self.write(_CERTIFICATE) as tx:
            row = {"serial": str(serial), "name": name, "role": role, "until": until, "revoked": False}
            if tx.run(insert_new(t.certificates, self.dialect), row).rowcount:
                tx.event("certificate", {"serial": str(serial), "role": role, "until": until}, node=name)

    def certificates(self, name: str = "") -> list[dict[str, Any]]:
        """{serial, name, role, until, revoked} of every certificate, or of one name's."""
        found = select(t.certificates).order_by(t.certificates.c.until)
        rows = self.rows(found.where(t.certificates.c.name == name) if name else found)
        return [{**row._mapping, "serial": int(row.serial)} for row in rows]

    def revoke(self, name: str, actor: str = "") -> bool:
        """Refuse this name, its certificates and its tokens from now on; False if it is refused already."""
        with self.write(_REVOKE) as tx:
            row = {"name": name, "at": tx.now, "actor": clean(actor)}
            new = tx.run(insert_new(t.bans, self.dialect), row).rowcount
            certificates = t.certificates.c
            change = update(t.certificates).where(certificates.name == name, certificates.revoked.is_(False))
            serials = tx.run(change.values(revoked=True).returning(certificates.serial)).scalars().all()
            held = t.tokens.c.name == name, t.tokens.c.role.in_(MEMBERS), t.tokens.c.revoked.is_(False)
            lost = update(t.tokens).where(*held).values(revoked=True).returning(t.tokens.c.digest)
            tokens = tx.run(lost).scalars().all()
            if new or serials:
                tx.event("node.revoked", {"serials": sorted(serials)}, node=name, actor=actor)
            for token in sorted(tokens):
                tx.event("token.revoked", {"token": token}, node=name, actor=actor)
            return bool(new)

    def readmit(self, name: str, actor: str = "") -> bool:
        """Let a revoked name enrol again, its old certificates aside; False if it is not revoked."""
        with self.write(_READMIT) as tx:
            if not tx.run(t.bans.delete().where(t.bans.c.name == name)).rowcount:
                return False
            tx.event("node.readmitted", {}, node=name, actor=actor)
            return True

    def revoked(self) -> frozenset[str | int]:
        """What is refused: names as text, serials of certificates that have not run out as numbers."""
        certificates = t.certificates.c
        serials = select(certificates.serial).where(
            certificates.revoked.is_(True), certificates.until > self.clock() - 86400.0
        )
        with self.read() as conn:
            names = conn.execute(select(t.bans.c.name)).scalars().all()
            return frozenset(names) | {int(serial) for serial in conn.execute(serials).scalars()}
