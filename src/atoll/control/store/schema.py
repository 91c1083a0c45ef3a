"""The tables, one schema for SQLite and PostgreSQL; docs/reference/store.md is its page.

Times are seconds since 1970. JSON stands in text columns, in one form (keys sorted, ASCII), so that
equal values have equal bytes. Migrations write these tables; a test compares the two.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
)

REVISION = "0004"  # the newest migration: what a store must be at

schema = MetaData()


def _text(name: str, *, key: bool = False) -> Column[str]:
    return Column(name, Text, primary_key=key, nullable=False)


def _time(name: str, *, empty: bool = False) -> Column[float]:
    return Column(name, Double, nullable=empty)


# The end of the chain, one row: who adds to the chain holds it. `base`: where the kept part begins.
head = Table(
    "head",
    schema,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("seq", BigInteger, nullable=False),
    _text("hash"),
    Column("base_seq", BigInteger, nullable=False),
    _text("base_hash"),
)

events = Table(
    "events",
    schema,
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    _time("at"),
    _text("kind"),
    _text("run"),
    _text("node"),
    _text("actor"),
    _text("body"),
    _text("hash"),
    Index("events_run", "run", "seq"),
)

seals = Table(  # signatures of the chain's end at some moment
    "seals",
    schema,
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    _time("at"),
    _text("hash"),
    _text("signature"),
)

runs = Table(
    "runs",
    schema,
    _text("id", key=True),
    Column("number", BigInteger, nullable=False, unique=True),
    _text("name"),
    _text("state"),
    _text("job"),
    _text("seed"),  # text: a seed may have more than 63 bits
    _time("created"),
    _time("started", empty=True),
    _time("ended", empty=True),
    _text("reason"),
    Column("rounds", BigInteger, nullable=False),
    _text("holder"),
    _time("lease"),
    Index("runs_state", "state", "number"),
)

scopes = Table(  # a journal's last checkpoint
    "scopes",
    schema,
    _text("run", key=True),
    _text("scope", key=True),
    _text("state"),  # a blob
    Column("requests", BigInteger, nullable=False),
    Column("notes", BigInteger, nullable=False),
)

asks = Table(
    "asks",
    schema,
    _text("run", key=True),
    _text("scope", key=True),
    Column("request", BigInteger, primary_key=True, autoincrement=False),
    _text("detail"),
    Column("closed", BigInteger, nullable=False),  # 0 while open, then its event's: the order they closed in
    _text("replied"),
    _text("missing"),
)

answers = Table(
    "answers",
    schema,
    _text("run", key=True),
    _text("scope", key=True),
    Column("request", BigInteger, primary_key=True, autoincrement=False),
    _text("peer", key=True),
    Column("seq", BigInteger, nullable=False),  # its event's: the order they were recorded in
    Column("blob", Text, nullable=True),
    _text("reason"),
    _text("info"),
    ForeignKeyConstraint(
        ["run", "scope", "request"], ["asks.run", "asks.scope", "asks.request"], name="answers_of_asks"
    ),
)

notes = Table(
    "notes",
    schema,
    _text("run", key=True),
    _text("scope", key=True),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    _text("record"),
)

pins = Table(  # blobs somebody keeps by name, besides those that answers, checkpoints and models hold
    "pins",
    schema,
    _text("blob", key=True),
    _text("owner", key=True),
)

nodes = Table(
    "nodes",
    schema,
    _text("name", key=True),
    _text("role"),
    _text("parent"),
    _text("address"),
    _text("version"),
    _text("transport"),
    _text("info"),
    _time("first_seen"),
    _time("last_seen"),
    Column("online", Boolean, nullable=False),
    Column("drained", Boolean, nullable=False),
)

certificates = Table(
    "certificates",
    schema,
    _text("serial", key=True),  # text: up to 160 bits
    _text("name"),
    _text("role"),
    _time("until"),
    Column("revoked", Boolean, nullable=False),
    Index("certificates_name", "name"),
)

bans = Table("bans", schema, _text("name", key=True), _time("at"), _text("actor"))  # names revoked

records = Table(  # of members: what runs have shown of them
    "records",
    schema,
    _text("name", key=True),
    _text("record"),
    _time("score"),
    _text("run"),
    _time("at"),
    Column("quarantined", Boolean, nullable=False),
    Column("cleared", BigInteger, nullable=False),  # how often it was reinstated
)

tokens = Table(
    "tokens",
    schema,
    _text("digest", key=True),
    _text("role"),
    _text("name"),
    _time("created"),
    _time("until"),
    _time("used", empty=True),
    _text("used_by"),
    Column("revoked", Boolean, nullable=False),
)

receipts = Table(  # of budgets: what members have signed of their ledgers
    "receipts",
    schema,
    _text("node", key=True),
    _text("budget", key=True),
    Column("entries", BigInteger, nullable=False),
    _text("text"),
)

models = Table(
    "models",
    schema,
    _text("name"),
    Column("version", BigInteger, nullable=False),
    _text("run"),
    _text("blob"),
    _text("manifest"),
    _text("metrics"),
    _time("created"),
    PrimaryKeyConstraint("name", "version", name="models_pkey"),
)

orders = Table(  # about models: what members are to serve, and how it comes to them
    "orders",
    schema,
    _text("name", key=True),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("version", BigInteger, nullable=False),
    _text("kind"),
    _text("plan"),
    _text("manifest"),  # empty until it is signed
    _text("state"),
    Column("wave", BigInteger, nullable=False),
    _text("actor"),
    _text("reason"),
    _time("created"),
)

stages = Table(  # how far a member is with a model, as it said last
    "stages",
    schema,
    _text("node", key=True),
    _text("name", key=True),
    Column("version", BigInteger, nullable=False),
    Column("trial", BigInteger, nullable=False),
    _text("stage"),
    Column("number", BigInteger, nullable=False),
    _text("reason"),
    _text("figures"),
    _time("at"),
)

logs = Table(
    "logs",
    schema,
    # SQLite counts rows by itself only in an INTEGER column
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    _text("run"),
    _text("node"),
    _text("level"),
    _text("text"),
    _time("at"),
    Index("logs_run", "run", "id"),
)

# Room the store takes and gives back when it asks whether a full disk has space again.
probes = Table("probes", schema, Column("id", Integer, primary_key=True), _text("filler"))
