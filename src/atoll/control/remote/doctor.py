"""`atoll doctor`: looks for what keeps a member or an operator from working, each finding with its remedy.

It checks what is there to check: always versions and the proxy; with a URL the name, the way, the
certificate, the clock and the other side's version; with a token whether it is let in, and how the
coordinator's store is; with a folder the disk, the modes of private files, the identity in it and the
schema of a store, in SQLite or PostgreSQL; with a store's URL the same of that. It changes nothing.
"""

from __future__ import annotations

import json
import os
import platform
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from ...core.errors import AtollError, ConfigError
from ...privacy.hazmat.suite import SUITES, usable
from ..settings import FILES, beside, read
from .doctor_member import doors
from .doctor_network import network
from .doctor_store import disk, elsewhere, schema
from .finding import Finding, span

PRIVATE = ("key.pem", "authority.key.pem", "operator.json", "admin.json", "store.key")


def examine(
    url: str | None = None,
    token: str | None = None,
    folder: Path | None = None,
    config: Path | None = None,
    *,
    store: str = "",
    timeout: float = 10.0,
    clock: Callable[[], float] = time.time,
) -> list[Finding]:
    """All findings, in the order one would look for a cause.

    `config`: the settings of who works in `folder`, where they lie elsewhere. `store`: the URL of a
    coordinator's database, looked at in place of the one that the settings name.
    """
    found, wrong = [*_versions()], []
    settings: Any = None
    try:
        settings = _settings(folder, config)
    except ConfigError as error:
        wrong = [Finding("settings", "bad", str(error), "correct the file")]
    if folder is None and settings is not None:
        folder = Path(settings.folder)
    if folder is not None:
        found += _folder(folder, None if store else getattr(settings, "store", ""), clock())
    if store:
        found += elsewhere(store)
    found += wrong
    if folder is not None and not wrong:
        found += doors(folder, settings, timeout, clock)
    if url is not None:
        found += [*network(url, token, timeout, clock)]
    return found


def _settings(folder: Path | None, config: Path | None) -> Any:
    """What the file named, or the one in the folder, says; None where there is none. Raises ConfigError."""
    kinds = [*FILES]
    if config is None:
        if folder is None:
            return None
        kinds = [kind for kind in FILES if beside(folder, kind)]
        return read(folder / FILES[kinds[0]], kinds[0]) if kinds else None
    kinds = [kind for kind in FILES if FILES[kind] == config.name] or kinds
    for kind in kinds[:-1]:
        with suppress(ConfigError):
            return read(config, kind)
    return read(config, kinds[-1])


def _versions() -> Iterator[Finding]:
    here = platform.python_version()
    yield Finding("python", "ok", f"Python {here} on {platform.system()} {platform.machine()}")
    missing, seen = [], 0
    for line in requires("atoll-fl") or ():
        name = line.split(";")[0].strip()
        if "extra ==" in line:
            continue
        try:
            version(name.partition(">")[0].partition("=")[0].partition("[")[0].strip())
            seen += 1
        except PackageNotFoundError:
            missing.append(name)
    if missing:
        remedy = "pip install --upgrade atoll-fl"
        yield Finding("packages", "bad", f"not installed: {', '.join(missing)}", remedy)
    else:
        yield Finding("packages", "ok", f"atoll {version('atoll-fl')} and the {seen} packages it needs")
        yield _crypto()


def _crypto() -> Finding:
    able = [suite for suite in SUITES.values() if suite.name in usable()]
    text = "; ".join(f"{suite.name} ({suite.says})" for suite in able)
    lacking = [name for name in SUITES if name not in usable()]
    if not lacking:
        return Finding("crypto", "ok", text)
    remedy = "no job with it can run here: install a cryptography whose OpenSSL has SM3 and SM4"
    return Finding("crypto", "warn", f"{text}; not {', '.join(lacking)}", remedy)


# -- a folder -----------------------------------------------------------------------------------


def _folder(folder: Path, store: Any, now: float) -> Iterator[Finding]:
    if not folder.is_dir():
        yield Finding(
            "folder", "bad", f"there is no folder {folder}", "name the member's or coordinator's own"
        )
        return
    yield from disk(folder)
    yield from _modes(folder)
    for place in sorted({p.parent for p in folder.rglob("cert.pem")}):
        yield _identity(place, now)
    if (folder / "store.key").exists():
        yield _store_key(folder / "store.key")
    if isinstance(store, str):  # a server's; a client has none
        yield from schema(folder, store)
    if (note := folder / "quarantined.txt").exists():  # engine/agent.py leaves it
        remedy = "look at this site's data and software, then ask an administrator to reinstate it"
        yield Finding("standing", "warn", note.read_text("utf-8"), remedy)


def _modes(folder: Path) -> Iterator[Finding]:
    if os.name != "posix":
        return
    private = [p for p in sorted(folder.rglob("*")) if p.name in PRIVATE]
    open_ = [p for p in private if p.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO)]
    for path in open_:
        remedy = f"chmod 600 {path}, and renew what is in it: others may have read it"
        yield Finding("private files", "bad", f"others can read {path}", remedy)
    if private and not open_:
        yield Finding("private files", "ok", f"{len(private)} keys and tokens, readable by their owner only")


def _identity(place: Path, now: float) -> Finding:
    from ...privacy.keys import Identity, chain_member

    try:
        identity = Identity.open(place)
        chain_member(identity.chain, identity.roots, now=now)
    except AtollError as error:
        remedy = "enrol again with a new token (atoll token create)"
        return Finding("identity", "bad", f"{place}: {error}", remedy)
    left = identity.member.until - now
    text = f"{identity.member.uri}, certified for another {span(left)}"
    if identity.renew_due(now) and left < (identity.member.until - identity.since) / 4:
        remedy = "it should have been renewed by now: see that the member runs and reaches its server"
        return Finding("identity", "warn", text, remedy)
    return Finding("identity", "ok", text)


def _store_key(path: Path) -> Finding:
    """Whether who copies the folder can read a client's files (engine/safe.py)."""
    try:
        crypto = json.loads(path.read_bytes())["crypto"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        remedy = "restore it from a backup: what this client keeps needs it"
        return Finding("store key", "bad", f"{path} is damaged: {error}", remedy)
    if crypto is None:
        return Finding("store key", "ok", "it lies beside what it encrypts: store.key_file keeps it apart")
    return Finding("store key", "ok", f"sealed by its owner's, with {crypto}")
