"""What administrators do: tokens, the audit of events, backups, retention."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import select

from ...core.errors import ConfigError
from ...privacy.token import Token
from ..store import Store
from ..store.schema import tokens as kept
from . import desk
from .auth import ROLES
from .office import Office

Row = dict[str, Any]
SHOWN = 16  # digits of a digest that name a token: enough to tell them apart, of no use to enter


def holder(store: Store, now: float) -> Callable[[str], tuple[str, str] | None]:
    """`known(digest)`: whose operator token that is at `now`. Looking uses no member's token up."""

    def known(digest: str) -> tuple[str, str] | None:
        c = kept.c
        open_ = c.digest == digest, c.revoked.is_(False), c.until > now, c.role.in_(ROLES)
        rows = store.rows(select(c.digest, c.role, c.name).where(*open_))
        if len(rows) != 1 or not hmac.compare_digest(rows[0].digest, digest):
            return None
        return rows[0].role, rows[0].name

    return known


def tokens(store: Store) -> list[Row]:
    """Every token by the beginning of its digest: id, role, name, created, until, used, revoked."""
    rows = store.tokens()
    return [{"id": r["digest"][:SHOWN], **{k: v for k, v in r.items() if k != "digest"}} for r in rows]


def new_token(store: Store, office: Office, role: str, name: str, hours: float, actor: str) -> Row:
    """A token for one enrolment, or an operator's; only this answer ever holds it.

    Raises ConfigError for a member that is revoked.
    """
    if role not in ROLES and name in store.revoked():
        raise ConfigError(f"{name} is revoked: readmit it first (atoll node readmit {name})")
    made = Token.new(office.fingerprint, office.random)
    until = office.clock() + hours * 3600
    store.token_add(made.digest, role, name, until, actor)
    return {"id": made.digest[:SHOWN], "token": str(made), "role": role, "name": name, "until": until}


def forget(store: Store, id: str, actor: str) -> Row | None:
    """Make a token worthless, by the beginning of its digest; None where there is no such one."""
    if len(id) < SHOWN // 2 or not store.token_revoke(id, actor):
        return None
    return {"id": id, "revoked": True}


def model_path(store: Store, name: str, version: str, form: str = "safetensors") -> Path | None:
    """Where the bytes of a model's version are, in one of its forms; None where there is no such one."""
    found = desk.model(store, name, version)
    if found is None or form not in found["forms"]:
        return None
    path = store.blobs.path(found["forms"][form])
    return path if path.is_file() else None


def audit(store: Store, seen: str = "") -> Row:
    """Verify the chain: {ok, events, fault, seq, head}; `fault` names the first altered or missing row.

    `seen`: an end noted earlier, "number:hash", which the chain must still hold. Raises ConfigError for
    another form.
    """
    number, colon, noted = seen.partition(":")
    if seen and not (colon and number.isdecimal()):
        raise ConfigError(f"an end noted earlier is NUMBER:HASH as verify prints it, got {seen[:80]!r}")
    verdict = store.verify(head=(int(number), noted) if seen else None)
    seq, digest = store.head()
    return {
        "ok": verdict.ok,
        "events": verdict.events,
        "fault": verdict.fault,
        "seq": verdict.seq,
        "head": {"seq": seq, "hash": digest},
    }


def backup(store: Store, office: Office) -> Row:
    """Write backups/<time>.tar in the coordinator's folder."""
    stamp = datetime.fromtimestamp(office.clock(), UTC).strftime("%Y%m%dT%H%M%SZ")
    path = office.folder / "backups" / f"{stamp}.tar"
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    store.backup(path)
    return {"path": str(path), "bytes": _size(path)}


def prune(store: Store, keep_days: float, keep_runs: int) -> Row:
    """Forget ended runs and unneeded blobs."""
    done: Any = store.prune(keep_days, keep_runs)
    return done if isinstance(done, dict) else {"runs": done}


def _size(path: Path) -> int:
    return sum(p.stat().st_size for p in path.rglob("*")) if path.is_dir() else path.stat().st_size


def first(
    store: Store,
    fingerprint: str,
    now: float,
    random: Callable[[int], bytes],
    keep: Callable[[str], None] = lambda token: None,
) -> str | None:
    """The administrator's token of a federation's first start; None where an administrator has one.

    There is no default password: whoever starts the coordinator keeps this in a file of mode 0600, by
    `keep`, before it lets anybody in: killed in between, the next start makes another.
    """
    alive = (t for t in store.tokens() if t["role"] == "admin" and not t["revoked"] and t["until"] > now)
    if next(alive, None) is not None:
        return None
    made = Token.new(fingerprint, random)
    keep(str(made))
    store.token_add(made.digest, "admin", "admin", now + 366 * 86400.0, "first start")
    return str(made)
