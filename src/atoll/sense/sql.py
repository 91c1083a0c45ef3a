"""Rows of a database as readings: a query is asked again and again, for what lies behind its cursor.

How far it has come is kept in one commit with the readings: killed anywhere, it goes on at the next row.
Needs SQLAlchemy and the database's driver.
"""

from __future__ import annotations

import asyncio
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

from ..core.errors import ConfigError, StateError
from .folder import row
from .intake import Feed, stored
from .reading import Reading
from .source import Sql

_PART = 5000  # rows of one put


async def follow(settings: Sql, folder: Path, feed: Feed) -> None:
    """Take in what the query gives, until cancelled. Raises ConfigError, StateError where it cannot."""
    try:
        import sqlalchemy
    except ImportError:
        raise ConfigError("SQL needs SQLAlchemy: pip install 'atoll-fl[sql]'") from None
    url = settings.url or _url(folder / settings.url_file)
    if ":cursor" not in settings.query:
        raise ConfigError("the query asks for rows behind :cursor, as in ... WHERE id > :cursor ORDER BY id")
    try:
        engine = sqlalchemy.create_engine(url)
    except (sqlalchemy.exc.ArgumentError, ImportError):
        raise ConfigError("this is no database URL, or its driver is not installed") from None
    try:
        while True:
            at = await asyncio.to_thread(feed.store.place, _place(settings))
            rows = await asyncio.to_thread(_asked, engine, settings, settings.begin if at is None else at)
            for begin in range(0, len(rows), _PART):
                part = rows[begin : begin + _PART]
                own = feed.of is None  # a label's cursor may be its sequence
                readings = [_reading(cells, settings, feed.clock(), own=own) for cells in part]
                await stored(feed, readings, {_place(settings): part[-1][settings.cursor]})
            if not rows:
                await asyncio.sleep(settings.every)
    finally:
        engine.dispose()


def _asked(engine: Any, settings: Sql, cursor: Any) -> list[dict[str, Any]]:
    import sqlalchemy

    try:
        with engine.connect() as connection:
            rows = connection.execute(sqlalchemy.text(settings.query), {"cursor": cursor}).mappings().all()
    except sqlalchemy.exc.SQLAlchemyError as error:
        raise StateError(f"the database cannot be asked: {type(error).__name__}") from None
    if rows and settings.cursor not in rows[0]:
        raise ConfigError(f"the query gives no column {settings.cursor!r}")
    found = [{k: float(v) if isinstance(v, Decimal) else v for k, v in r.items()} for r in rows]
    for cells in found:
        cells[settings.cursor] = _plain(cells[settings.cursor])
    return found


def _reading(cells: dict[str, Any], settings: Sql, now: float, *, own: bool) -> Reading:
    """`own`: the cursor is none of its values."""
    without = {settings.cursor} - {settings.at, settings.id, settings.source} if own else ()
    values = {k: v for k, v in cells.items() if k not in without}
    otherwise = f"{settings.cursor}:{cells[settings.cursor]}"
    return row(values, settings, otherwise=otherwise, now=now, units=settings.units)


def _plain(value: Any) -> Any:
    return value if isinstance(value, (int, float, str)) else str(value)


def _place(settings: Sql) -> str:
    return json.dumps(["sql", settings.query, settings.cursor])


def _url(file: Path) -> str:
    try:
        return file.read_text("utf-8").strip()
    except OSError as error:
        raise ConfigError(f"the file with the database's URL cannot be read: {error}") from None
