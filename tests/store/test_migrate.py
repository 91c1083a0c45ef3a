"""Migrations: the same tables as the schema's, old or new wherever they are cut, newer ones refused."""

import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, inspect, text

from atoll.control.remote import doctor
from atoll.control.store import Store, schema
from atoll.control.store.engine import connect
from atoll.control.store.migrate import VERSIONS, migrate, revision
from atoll.control.store.restore import restore
from atoll.core.errors import StateError
from atoll.wire.files import Files
from tests.store.conftest import Run, Urls

NEXT = '''"""A change that moves data: a new table, filled from another, a column dropped."""

import sqlalchemy as sa
from alembic import op

revision = "9999"
down_revision = "LAST"


def upgrade():
    op.create_table("titles", sa.Column("run", sa.Text, primary_key=True), sa.Column("title", sa.Text))
    op.execute("INSERT INTO titles (run, title) SELECT id, name FROM runs")
    op.add_column("runs", sa.Column("colour", sa.Text, server_default="blue"))
    op.execute("UPDATE runs SET colour = 'red'")
    with op.batch_alter_table("runs") as batch:
        batch.drop_column("name")
'''.replace("LAST", schema.REVISION)
STEPS = 8  # at least as many statements as the change takes


@pytest.fixture
def versions(tmp_path: Path) -> Path:
    folder = tmp_path / "versions"
    folder.mkdir()
    (folder / "v9999_next.py").write_text(NEXT)
    return folder


def look(engine: Engine) -> tuple[str, set[str], bool, list[tuple[str, ...]]]:
    """Revision, columns of `runs`, whether the new table is there, its rows."""
    with engine.execution_options(atoll_read=True).connect() as conn, conn.begin():
        found = inspect(conn)
        there = found.has_table("titles")
        rows = [tuple(row) for row in conn.execute(text("SELECT run, title FROM titles"))] if there else []
        return revision(conn), {c["name"] for c in found.get_columns("runs")}, there, rows


def test_migrations_write_the_tables_of_the_schema(url: str, tmp_path: Path) -> None:
    with Store.open(url, tmp_path) as store, store.engine.connect() as conn:
        assert compare_metadata(MigrationContext.configure(conn), schema.schema) == []
        assert revision(conn) == schema.REVISION


def test_a_newer_store_is_refused_and_left_alone(url: str, tmp_path: Path, versions: Path) -> None:
    with Store.open(url, tmp_path) as store:
        store.submit({}, 0, "ann", name="first")
        migrate(store.engine, to="9999", versions=[*VERSIONS, versions])
        after = look(store.engine)
    with pytest.raises(StateError, match=rf"schema 9999, newer than the {schema.REVISION} .* upgrade Atoll"):
        Store.open(url, tmp_path)
    engine = connect(url, tmp_path)
    assert look(engine) == after
    engine.dispose()


def test_the_doctor_sees_the_schema_and_changes_nothing(url: str, tmp_path: Path) -> None:
    (tmp_path / "coordinator.toml").write_text(f'store = "{url}"\n', encoding="utf-8")

    def seen(url: str = "") -> str:
        if url:
            (found,) = [one for one in doctor.examine(store=url) if one.what == "schema"]
            return found.level
        (found,) = [one for one in doctor.examine(folder=tmp_path) if one.what == "schema"]
        return found.level

    engine = connect(url, tmp_path)
    with Store.open(url, tmp_path):
        assert seen() == "ok"
    for number, level in (("0000", "warn"), ("9999", "bad")):
        with engine.connect() as conn, conn.begin():
            conn.execute(text("UPDATE alembic_version SET version_num = :n"), {"n": number})
        assert [seen(), seen(), seen(url)] == [level, level, level]
    engine.dispose()


def test_the_doctor_sees_whether_a_database_takes_writes(
    postgres_database: Callable[[], str], tmp_path: Path
) -> None:
    url = postgres_database()
    Store.open(url, tmp_path).close()

    def seen() -> dict[str, str]:
        return {one.what: one.level for one in doctor.examine(store=url)}

    assert (seen()["store"], seen()["schema"]) == ("ok", "ok")
    engine = connect(url, tmp_path)
    with engine.connect() as conn, conn.begin():
        conn.execute(text(f"ALTER DATABASE {engine.url.database} SET default_transaction_read_only = on"))
    engine.dispose()
    assert (seen()["store"], seen()["schema"]) == ("bad", "ok")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked here, which needs POSIX")
@pytest.mark.parametrize(
    ("urls", "name"),
    [
        (kind, f"store.migrate.{name}")
        for kind in ("sqlite", "postgresql")
        for name in (*(f"step:{n}" for n in range(1, STEPS + 1)), "before_commit:1", "after_commit:1")
    ],
    indirect=["urls"],
)
def test_killed_half_way_it_is_old_or_new(
    name: str, urls: Urls, place: Path, run: Run, versions: Path
) -> None:
    url = urls("db")
    with Store.open(url, place) as store:
        known = store.submit({}, 0, "ann", name="first")
        old = look(store.engine)
    status = run("migrate", url, place, 0, f"{name}:kill", versions=str(versions))
    assert status == (-9 if status else 0)  # a change of fewer statements ends well
    engine = connect(url, place)
    new = ("9999", old[1] - {"name"} | {"colour"}, True, [(known, "first")])
    committed = "after" in name or status == 0
    assert look(engine) == (new if committed else old)
    assert run("migrate", url, place, 0, versions=str(versions)) == 0
    assert look(engine) == new
    with engine.connect() as conn, conn.begin():
        assert conn.execute(text("SELECT colour FROM runs")).scalars().all() == ["red"]
    engine.dispose()


def test_control_each_statement_is_a_place_to_be_killed_at(place: Path, run: Run, versions: Path) -> None:
    Store.open("", place).close()
    assert run("migrate", "", place, 0, "store.migrate.step:5:kill", versions=str(versions)) == -9


def test_an_older_backup_is_brought_to_the_present_schema(
    url: str, tmp_path: Path, versions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store.open("", tmp_path / "old") as store:
        run = store.submit({}, 0, "ann", name="first")
        store.backup(tmp_path / "backup.tar")
    later = partial(migrate, versions=[*VERSIONS, versions])
    monkeypatch.setattr("atoll.control.store.restore.migrate", lambda engine, to="9999": later(engine, to=to))
    restore(tmp_path / "backup.tar", url, tmp_path / "new", clock=time.time, files=Files(), random=os.urandom)
    engine = connect(url, tmp_path / "new")
    found = look(engine)
    engine.dispose()
    assert found[0] == "9999"
    assert found[3] == [(run, "first")]
