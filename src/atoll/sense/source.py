"""Where a client's readings come from and how long they stay: one table of its settings, `[sources.NAME]`.

    [sources.press]
    contract = "press.toml"
    mqtt = { url = "mqtts://broker:8883", topic = "plant/{source}/data", user = "node", password_file = "pw" }
    window = { size = 300, step = 100 }      or { seconds = 60 }

A source may have several ways in, and a store of its own.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from ..core.errors import ConfigError

NEWEST = 100_000  # readings, of which the windows of devices are made unless settings say otherwise


class Folder(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Files that appear in `path`: CSV, Parquet, pictures in folders named by their label.

    `at`, `id`, `source`: the columns that hold a row's time, its id and its device. `device`: whose rows
    they are where no column says it. `units`: of columns, unless a title says it: "heat [degF]". `every`:
    seconds between two looks. `keep`: files go to done/ when they are stored; else they are deleted.
    """

    path: str
    at: str = "at"
    id: str = "id"
    source: str = "source"
    device: str = ""
    units: dict[str, str] = {}
    every: float = 1.0
    keep: bool = True


class Sql(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Rows of a database, by a SQLAlchemy URL, asked again and again.

    `query`: with `:cursor` in it, in the order of the column `cursor`, as in SELECT * FROM log WHERE id >
    :cursor ORDER BY id LIMIT 1000. `begin`: the cursor's first value. `url_file`: holds the URL, where it has
    a password. The rest as for a folder.
    """

    query: str
    cursor: str
    url: str = ""
    url_file: str = ""
    begin: int | float | str = 0
    at: str = "at"
    id: str = "id"
    source: str = "source"
    device: str = ""
    units: dict[str, str] = {}
    every: float = 10.0


class Push(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """POST /readings with a token. `listen`: host:port; another machine's only with `certificate` and `key`.

    `token_file`: a token a line; "press-7 TOKEN" lets its holder speak for that device alone.
    """

    token_file: str
    listen: str = "127.0.0.1:8460"
    certificate: str = ""
    key: str = ""
    units: dict[str, str] = {}


class Mqtt(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Messages of a broker, acknowledged once they are stored.

    `url`: mqtt://host:port or mqtts://. `version`: of MQTT, where a broker knows the older one only.
    `topic`: {source} stands for the device's name; or name it by `device`. `ca`, `certificate`, `key`: PEM
    files.
    `id`: of the session that the broker keeps; by default the client's and the source's names.
    """

    url: str
    topic: str
    version: Literal["5", "3.1.1"] = "5"
    device: str = ""
    user: str = ""
    password_file: str = ""
    ca: str = ""
    certificate: str = ""
    key: str = ""
    id: str = ""
    units: dict[str, str] = {}


class Span(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A window: `size` readings, a new one each `step` (by default `size`); or `seconds` by their own time.

    A window of time closes once the newest reading is `late` seconds past its end.
    """

    size: int = 0
    step: int = 0
    seconds: float = 0.0


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One source. `contract`: its file. `late`: seconds that a reading may be older than the newest of its
    device; by default 60 for `mqtt` and `push`, any for the rest. `ahead`, `behind`: seconds its clock may be
    off; by default 300 and, for `mqtt` and `push`, 30 days. `quota`: bytes on disk. `days`: kept so long.
    `queue`: readings in memory, at most.
    """

    contract: str
    folder: Folder | None = None
    sql: Sql | None = None
    push: Push | None = None
    mqtt: Mqtt | None = None
    window: Span = Span(size=100)
    late: float | None = None
    ahead: float = 300.0
    behind: float | None = None
    quota: int = 1_000_000_000
    days: float = 30.0
    queue: int = 20_000

    def __post_init__(self) -> None:
        span = self.window
        if bool(span.size) == bool(span.seconds) or span.size < 0 or span.seconds < 0:
            raise ConfigError("a window has a size in readings, or seconds: one of them", "$.window")
        if span.step < 0 or span.step > span.size:
            raise ConfigError("the step of a window is at most its size", "$.window.step")
        for key in ("quota", "days", "queue"):
            if getattr(self, key) <= 0:
                raise ConfigError("expected a number above 0", f"$.{key}")

    @property
    def live(self) -> bool:
        """Whether devices speak to it now, and no files or tables of long ago."""
        return self.mqtt is not None or self.push is not None
