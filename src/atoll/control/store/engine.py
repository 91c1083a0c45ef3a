"""How a store's URL becomes a connection, with the settings its durability rests on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from ...core.errors import ConfigError

FILE = "atoll.db"
WAIT = 30.0  # seconds a process waits for another one's transaction
# Seconds, and one of milliseconds: after which a connection to PostgreSQL that says nothing is given up.
_ALIVE = {
    "connect_timeout": 10,
    "keepalives": 1,
    "keepalives_idle": 15,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}
_PRAGMAS = (
    f"busy_timeout={int(WAIT * 1000)}",
    "journal_mode=WAL",
    "synchronous=FULL",  # a commit is on disk before it returns
    "fullfsync=ON",  # macOS needs telling; others ignore it
    "checkpoint_fullfsync=ON",
    "foreign_keys=ON",
    "temp_store=MEMORY",
    "journal_size_limit=67108864",
)


def parse(url: str, folder: Path) -> URL:
    """The database a URL names; an empty one is `atoll.db` in the folder. Raises ConfigError."""
    if not url:
        return URL.create("sqlite", database=str(folder / FILE))
    try:
        made = make_url(url)
    except ArgumentError:
        raise ConfigError("the store's URL cannot be read: write sqlite:///FILE or postgresql://…") from None
    kind = made.drivername.partition("+")[0]
    if kind == "sqlite" and made.database and made.database != ":memory:":
        return made.set(drivername="sqlite")
    if kind in {"postgresql", "postgres"}:
        return made.set(drivername="postgresql+psycopg")
    raise ConfigError(
        f"a store is kept in an SQLite file or in PostgreSQL, not in {kind!r}:"
        " write sqlite:///FILE or postgresql://USER@HOST/NAME"
    )


def connect(url: str, folder: Path) -> Engine:
    """An engine; it connects when first used. Raises ConfigError for an unknown URL."""
    made = parse(url, folder)
    if made.drivername == "sqlite":
        engine = create_engine(made, connect_args={"timeout": WAIT, "check_same_thread": False})
        event.listen(engine, "connect", _settings)
        event.listen(engine, "begin", _begin)
        return engine
    try:
        alive = {name: value for name, value in _ALIVE.items() if name not in made.query}
        return create_engine(made, connect_args=alive)
    except (ImportError, NoSuchModuleError):
        raise ConfigError("PostgreSQL needs its driver: pip install 'atoll-fl[postgres]'") from None


def _settings(raw: Any, _record: Any) -> None:
    raw.isolation_level = None  # the driver begins no transactions of its own: _begin does
    for pragma in _PRAGMAS:
        raw.execute(f"PRAGMA {pragma}")


def _begin(conn: Connection) -> None:
    # A writer takes the lock at once: one that upgrades later may find that another came between.
    reads = conn.get_execution_options().get("atoll_read")
    conn.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")
