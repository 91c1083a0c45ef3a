"""Roll-outs: orders about models, numbered for each name, and how far each member is.

    rollout   some members first, then all; open until it is done, back or replaced by another order
    promote   everybody serves this version         rollback   everybody goes back to this version

An order is written down first and signed after, by who holds the key; until then it goes to nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import func, insert, select, update

from . import schema as t
from .database import Tx, transition
from .models import Models
from .plain import canonical, clean, digest, parsed
from .upsert import insert_or_set

_ADD, _SIGNED = transition("order_add"), transition("order_signed")
_WAVE, _ENDED = transition("order_wave"), transition("order_ended")
_STAGED = transition("staged")
_SAID = ("version", "trial", "stage", "number", "reason")


class Rollouts(Models):
    """Orders and stages of a store."""

    def order_add(
        self, name: str, version: int, kind: str, plan: Mapping[str, Any], actor: str = "", reason: str = ""
    ) -> int:
        """A new order; its number, one more than the last about that name. One that was open is replaced."""
        with self.write(_ADD) as tx:
            o = t.orders.c
            for number in tx.run(select(o.number).where(o.name == name, o.state == "open")).scalars().all():
                self._end(tx, name, number, "replaced", reason, actor)
            number = (tx.run(select(func.max(o.number)).where(o.name == name)).scalar() or 0) + 1
            row = {"name": name, "number": number, "version": version, "kind": kind, "wave": 0}
            row |= {"plan": canonical(dict(plan)), "manifest": "", "actor": clean(actor)}
            row |= {"state": "open" if kind == "rollout" else "done", "reason": clean(reason)}
            tx.run(insert(t.orders), {**row, "created": tx.now})
            body = {"model": name, "order": number, "version": version, "plan": digest(str(row["plan"]))}
            tx.event(f"order.{kind}", {**body, "reason": row["reason"]}, actor=actor)
            return number

    def order_signed(self, name: str, number: int, sign: Callable[[], bytes]) -> bool:
        """Sign an order, once; False where it is signed."""
        with self.write(_SIGNED) as tx:
            o = t.orders.c
            change = update(t.orders).where(o.name == name, o.number == number, o.manifest == "")
            text = sign().decode()
            if not tx.run(change.values(manifest=text)).rowcount:
                return False
            tx.event("order.signed", {"model": name, "order": number, "manifest": digest(text)})
            return True

    def order_wave(self, name: str, number: int, wave: int) -> bool:
        """An open roll-out goes on to its next members; False where it has."""
        with self.write(_WAVE) as tx:
            o = t.orders.c
            change = update(t.orders).where(
                o.name == name, o.number == number, o.state == "open", o.wave < wave
            )
            if not tx.run(change.values(wave=wave)).rowcount:
                return False
            tx.event("order.wave", {"model": name, "order": number, "wave": wave})
            return True

    def order_ended(self, name: str, number: int, state: str, reason: str = "", actor: str = "") -> bool:
        """An open roll-out is over: done, back or replaced; False where it is."""
        with self.write(_ENDED) as tx:
            return self._end(tx, name, number, state, reason, actor)

    def _end(self, tx: Tx, name: str, number: int, state: str, reason: str, actor: str) -> bool:
        o = t.orders.c
        change = update(t.orders).where(o.name == name, o.number == number, o.state == "open")
        if not tx.run(change.values(state=state)).rowcount:
            return False
        body = {"model": name, "order": number, "state": state, "reason": clean(reason)}
        tx.event("order.ended", body, actor=actor)
        return True

    def orders(self, name: str | None = None) -> list[dict[str, Any]]:
        """{name, number, version, kind, plan, manifest, state, wave, actor, reason, created} of each."""
        found = select(t.orders).order_by(t.orders.c.name, t.orders.c.number)
        rows = self.rows(found if name is None else found.where(t.orders.c.name == name))
        return [{**row._mapping, "plan": parsed(row.plan), "manifest": row.manifest.encode()} for row in rows]

    def staged(self, node: str, name: str, said: Mapping[str, Any]) -> bool:
        """How far a member is with a model: version, trial, stage, number, reason, figures.

        False where it said the same before; new figures alone are no change of state.
        """
        now_is = {key: said[key] for key in _SAID} | {"reason": clean(str(said["reason"]))}
        figures = canonical(dict(said.get("figures", {})))
        with self.write(_STAGED) as tx:
            s = t.stages.c
            before = tx.run(select(t.stages).where(s.node == node, s.name == name)).one_or_none()
            same = before is not None and all(before._mapping[key] == v for key, v in now_is.items())
            if same and figures == "{}":
                return False
            row = {"node": node, "name": name, **now_is, "figures": figures, "at": tx.now}
            tx.run(insert_or_set(t.stages, self.dialect, *_SAID, "figures", "at"), row)
            if not same:
                tx.event("stage", {"model": name, **now_is}, node=node)
            return not same

    def stages(self, name: str | None = None) -> list[dict[str, Any]]:
        """{node, name, version, trial, stage, number, reason, figures, at} of each."""
        found = select(t.stages).order_by(t.stages.c.name, t.stages.c.node)
        rows = self.rows(found if name is None else found.where(t.stages.c.name == name))
        return [{**row._mapping, "figures": parsed(row.figures)} for row in rows]

    def everybodys(self, name: str) -> list[dict[str, Any]]:
        """What all members were to serve, oldest first: {version, number, created, manifest, blob, tune} of
        models that were given to all at once (number 0), and of orders to all.
        """
        models = {m["version"]: m for m in self.models(name) if m["metrics"].get("onnx")}
        found = [{**m, "number": 0} for m in models.values() if b'"order"' not in m["manifest"]]
        found += [
            {**models[o["version"]], **{k: o[k] for k in ("number", "created", "manifest")}}
            for o in self.orders(name)
            if o["kind"] != "rollout" and o["manifest"] and o["version"] in models
        ]
        kept = ("version", "number", "created", "manifest")
        return [
            {**{k: m[k] for k in kept}, "blob": m["metrics"]["onnx"], "tune": m["metrics"].get("tune", "")}
            for m in sorted(found, key=lambda m: (m["created"], m["number"]))
        ]
