"""What each process of a federation is told: TOML files with values, checked, every key by its path.

coordinator.toml, edge.toml and client.toml hold the same keys as these records; options of the command
line go over them. Paths in a file are relative to the file.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

import msgspec

from ..core.errors import ConfigError
from ..core.registry import nearest
from ..privacy.hazmat.suite import Crypto
from ..privacy.orders import Gates
from ..sense.source import NEWEST, Source
from ..serve import egress
from ..serve.drift.event import Limits
from ..serve.quota import Amount, Quota
from ..serve.terms import Terms
from ..serve.timetable import Cron, Hours
from ..serve.triggers import Rules

PLAIN = ("http", "grpc", "ws")  # schemes without TLS
Transport: TypeAlias = Literal["auto", "grpc", "https", "websocket"]  # "auto": see transport/open.py
S = TypeVar("S", bound=msgspec.Struct)
_PATHS = ("folder", "parts", "ca", "root")  # relative to the file they stand in


class Policy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a site lets run on it; a job beyond it is refused by the site itself, with the reason.

    `jobs`, `learners`, `algorithms`: names allowed, with * and ? as in file names. `min_cohort`: fewest
    members a round may have. `max_rows`: rows one round may train on. `max_rounds`: rounds of one run.
    `hours`: "22:00-06:00", local time, "" for always. `max_epsilon`: privacy loss in all, None for any.
    `secure_sum`: only jobs that show nobody a single update. `crypto`: the suites that may hide them.
    `plans`: whether networks may learn here that others have written, as signed graphs; `plan_mb`: memory
    that one may take, in MiB; `plan_seconds`: what one step of it may take.
    """

    jobs: tuple[str, ...] = ("*",)
    learners: tuple[str, ...] = ("*",)
    algorithms: tuple[str, ...] = ("*",)
    min_cohort: int = 1
    max_rows: int | None = None
    max_rounds: int | None = None
    hours: str = ""
    max_epsilon: float | None = None
    secure_sum: bool = False
    crypto: tuple[Crypto, ...] = ("intl", "gm")
    plans: bool = False
    plan_mb: int = 512
    plan_seconds: float = 60.0


class Power(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When a client holds back, to spare its battery, its link or itself; it says so, and is not asked.

    `mains`: it works on mains only. `battery`: smallest charge from 0 to 1 while it is not on mains.
    `temperature`: °C of the hottest sensor, None for any. `metered_bytes`: bytes a day over a metered link, 0
    for none, None for any; `link`: whether it is metered, "auto" asks NetworkManager. `duty`: share of the
    time it may work; it rests after each task. `every`: seconds between two looks. `watts`: what the machine
    draws at work, for an estimate of energy where nothing measures it.
    """

    mains: bool = False
    battery: float = 0.0
    temperature: float | None = None
    metered_bytes: int | None = None
    link: Literal["auto", "metered", "free"] = "auto"
    duty: float = 1.0
    every: float = 30.0
    watts: float = 0.0


class Watch(Limits, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a client watches for drift. `source`: whose windows. `model`: the served model that answers
    them, "" for the only one. `data`: the data set of that source as whose rows they are built, where these
    are windows of one device; "" for readings. The rest: serve/drift/event.py.
    """

    source: str
    model: str = ""
    data: str = ""


class Renew(Rules, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How a client renews what it watches: when (serve/triggers.py), within what in a `quota`, and on what
    terms (serve/terms.py) a new model wins.

    `recent`: rows that are kept to learn from. `held`: the share of them, the newest, that models are
    compared on. `passes`: trainings, at most, and `reach` in (0, 1]: how far the new model goes the way
    they went. `watts`: what one busy core draws, an estimate. `run`: what a federated run that this client
    asks for is taken to cost.
    """

    quota: Quota = Quota()
    terms: Terms = Terms()
    recent: int = 5000
    held: float = 0.2
    passes: int = 2
    reach: float = 0.5
    watts: float = 10.0
    run: Amount = Amount()


class Store(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a client's own files are encrypted. `crypto`: the suite of new ones. `key_file`, `key_command`:
    where the key is that they are sealed by, or what prints it; without, see control/engine/safe.py.
    """

    crypto: Crypto = "intl"
    key_file: str = ""
    key_command: tuple[str, ...] = ()


class Login(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who a client is to the broker of an mqtts+sealed:// URL, "" where that asks nobody."""

    user: str = ""
    password: str = ""


class Gateway(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A gateway between a broker and a server: docs/howto/mqtt-nodes.md.

    `name`: as it stands in members' URLs. `broker`: mqtts://host:port, mqtt:// on this machine only; `user`,
    `password`: who it is there; `ca`: a PEM file that vouches for it, "" for the system's authorities.
    `to`: the coordinator's or edge's https:// URL; `root`: a PEM file of the federation's root, by which that
    server is recognised. Without it nobody is recognised on the way there: members check all the same.
    `calls`: how many one member may have under way.
    """

    name: str = "gateway"
    broker: str = ""
    user: str = ""
    password: str = ""
    ca: str = ""
    to: str = ""
    root: str = ""
    calls: int = 16


class Rollout(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a version comes to the members. `nodes`: whose turn is first, else a `first` part of them, one at
    least; all others follow once those serve it. At each: `shadow`: requests it is compared on before it
    answers any; `canary`: share of requests it answers then; `gates`: what takes it back; `stay`: seconds at
    least in each stage; `hold`: wait there until it is promoted. `back`: once this part of members has taken
    it back, all do.
    """

    nodes: tuple[str, ...] = ()
    first: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.25
    shadow: Annotated[int, msgspec.Meta(ge=0, le=10**9)] = 200
    canary: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.1
    gates: Gates = Gates()
    stay: Annotated[float, msgspec.Meta(ge=0, le=366 * 86400.0)] = 0.0
    hold: bool = False
    back: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.25


RolledOut: TypeAlias = Literal["now", "held", "staged"] | Rollout


class Rerun(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A federated run that members' watches may start. `job`: a job file, relative to the folder. `nodes`: so
    many must ask about the newest version. `pause`: seconds since the last run of that name.
    """

    job: str
    nodes: Annotated[int, msgspec.Meta(ge=1)] = 1
    pause: Annotated[float, msgspec.Meta(ge=0)] = 3600.0


class Server(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A coordinator: where it keeps its state, and where members and operators reach it.

    `listen`: members over HTTPS and WebSocket, and enrolment; `grpc`: members over gRPC, "" for none;
    `api`: operators. Port 0 takes a free one; the ports found stand in `ports.json`. `names`: further
    host names or addresses for the certificate. `store`: a database URL, SQLite in the folder by default.
    `patience`: seconds a member may be away before a round goes on without it; `edge_patience`: an edge.
    `rollout`: how models of finished runs come to members: "now" all at once, "held" until `atoll model
    rollout`, "staged" or a Rollout; a job may say otherwise. `renew`: by a model's name, the run that members
    may start who notice drift. `models`: ONNX files by name, which answer rows that members are unsure of.
    Members behind a proxy that ends TLS come by https+sealed:// URLs, each call signed.
    `insecure`: no TLS, for tests on loopback only.
    """

    folder: str = "."
    name: str = "coordinator"
    federation: str = "atoll"
    listen: str = "127.0.0.1:8443"
    grpc: str = "127.0.0.1:8444"
    api: str = "127.0.0.1:8445"
    names: tuple[str, ...] = ("localhost",)
    store: str = ""
    patience: float = 60.0
    edge_patience: float = 10.0
    heartbeat: float = 25.0
    hours: float = 24.0
    keep_days: float = 30.0
    rollout: RolledOut = "now"
    renew: dict[str, Rerun] = {}
    models: dict[str, str] = {}
    insecure: bool = False


class Edge(Server, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An edge: a server to its children, a member to its parents.

    `name`: "" for the token's. `join`: its parents' URLs, the preferred first; `token` only until it is
    enrolled, or a new one to enrol again. `home`: seconds between two looks whether the preferred parent is
    there again. `ca`: a PEM file that vouches for the proxy of https+sealed:// and wss+sealed:// URLs, "" for
    the system's authorities. `joint`: whom it asks about rows of its children that its own `models` are
    unsure of, its parents by default, and what may leave it for that (serve/egress.py).
    """

    name: str = ""
    join: tuple[str, ...] = ()
    token: str = ""
    transport: Transport = "auto"
    proxy: str = ""
    ca: str = ""
    api: str = ""
    home: float = 60.0
    joint: egress.Settings = egress.Settings()


class Client(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A client: whom it joins, the data it holds, what it allows.

    `join`: URLs of an edge or the coordinator, the preferred first. `data`: by the name that jobs use,
    each a table of `train` (a file or a built-in name), `target`, and if wanted `test` or `holdout`.
    `predict`: 127.0.0.1:port of its prediction service, "" for none; no address that others reach.
    `int8`: the data set on whose rows models are made 8-bit integers before they are served, "" to serve
    them as they come. `joint`: the larger model
    that the service asks about rows it is unsure of, and what may leave for that (serve/egress.py). `parts`:
    a Python file of this site's own that registers learners, rules or transforms. `home`, `ca`: as for an
    edge. `linger`: seconds without an ask after which the process that learns ends; its memory is free, and
    the next ask starts another. `quiet`: seconds without a request or a window after which the process that
    serves ends until there is one; 0: the client serves in its own process, always.
    `power`: when it holds back. `store`: how what it keeps on disk is encrypted. `broker`: who it is there,
    where it joins by one; `ca` then vouches for the broker. `sources`: readings it takes in, by name; a data
    set of `source = NAME` is what is stored of one. `watch`: what it watches for drift, and `renew` how it
    renews that; None for not at all.
    `insecure`: it may dial http://, grpc:// or ws:// on this machine, for tests that record what is said;
    it has enrolled over TLS before.
    """

    folder: str = "."
    name: str = ""
    join: tuple[str, ...] = ()
    token: str = ""
    transport: Transport = "auto"
    proxy: str = ""
    ca: str = ""
    data: dict[str, dict[str, Any]] = {}
    sources: dict[str, Source] = {}
    policy: Policy = Policy()
    power: Power = Power()
    predict: str = ""
    int8: str = ""
    joint: egress.Settings = egress.Settings()
    parts: str = ""
    home: float = 60.0
    linger: float = 20.0
    quiet: float = 300.0
    store: Store = Store()
    watch: Watch | None = None
    renew: Renew | None = None
    broker: Login = Login()
    insecure: bool = False


FILES: dict[type[msgspec.Struct], str] = {
    Server: "coordinator.toml",
    Edge: "edge.toml",
    Client: "client.toml",
}


def authorities(settings: Client | Edge) -> Path | None:
    """Who vouches for the proxy or broker in between; None for the system's."""
    return Path(settings.ca) if settings.ca else None


def login(settings: Client | Edge) -> tuple[str, str] | None:
    """A client's user and password at its broker."""
    broker = getattr(settings, "broker", None)
    return (broker.user, broker.password) if broker else None


def watched(settings: Client) -> None:
    """Raises ConfigError where what is to be watched is not there, or renewing it makes no sense."""
    assert settings.watch is not None  # noqa: S101  the caller's
    source = settings.watch.source
    if source not in settings.sources:
        raise ConfigError(
            f"there is no source {source!r}: {nearest(source, settings.sources)}", "$.watch.source"
        )
    if (data := settings.watch.data) and settings.data.get(data, {}).get("source") != source:
        raise ConfigError(f"there is no data set {data!r} of {source!r}", "$.watch.data")
    newest, size = histories(settings), settings.sources[source].window.size
    if newest and not 0 < size <= newest:
        raise ConfigError(
            "rows are windows of a size: give the source window = { size = ... }, at most `newest`",
            "$.watch.data",
        )
    if not settings.predict:
        raise ConfigError('what is watched is served: give predict = "127.0.0.1:8470"', "$.predict")
    if (renew := settings.renew) is not None:
        Hours.of(renew.blackout)
        if renew.cron:
            Cron.of(renew.cron)
        for name, value, most in (("held", renew.held, 0.9), ("reach", renew.reach, 1.0)):
            if not 0 < value <= most:
                raise ConfigError(f"{name} is above 0, at most {most:g}, got {value}", f"$.renew.{name}")


def rests(settings: Client) -> bool:
    """Whether what serves is a process of its own, that ends while nobody asks. Where it would have to make
    anew what is not on disk it is not: models in integers, windows of devices, the count of rows sent up.
    """
    kept = not settings.int8 and settings.joint.send == "nothing"
    return settings.quiet > 0 and kept and not histories(settings) and os.name == "posix"


def histories(settings: Client) -> int:
    """Among how many of the newest readings a watched row's are; 0 where a row is a reading."""
    table = {} if settings.watch is None else settings.data.get(settings.watch.data, {})
    newest = table.get("newest", NEWEST)
    if not isinstance(newest, int) or newest < 1:
        raise ConfigError("newest is a number of readings, from 1", "$.watch.data")
    return newest if table.get("windows") else 0


def beside(folder: Path | str | None, kind: type[msgspec.Struct]) -> Path | None:
    """The settings file in a member's folder, by default the current one; None where there is none."""
    path = Path(folder or "") / FILES[kind]
    return path if path.exists() else None


def _table(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"there is no file {path}: name one, or give the options on the command line"
        ) from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None


def read(path: Path, kind: type[S], **over: Any) -> S:
    """The settings in a file, with the values of `over` that are not None on top.

    Raises ConfigError with the file and the path of what is wrong in it.
    """
    table = _table(path)
    if "folder" in kind.__struct_fields__:
        table.setdefault("folder", ".")
    for key in _PATHS:
        if isinstance(table.get(key), str) and table[key]:
            table[key] = str(path.parent / table[key])
    if isinstance(table.get("models"), dict):
        table["models"] = {name: str(path.parent / str(file)) for name, file in table["models"].items()}
    for key in egress.FILES:
        if isinstance(table.get("joint"), dict) and table["joint"].get(key):
            table["joint"][key] = str(path.parent / str(table["joint"][key]))
    if isinstance(table.get("store"), dict) and (file := table["store"].get("key_file")):
        table["store"]["key_file"] = str(path.parent / str(file))
    return make(kind, {**table, **{k: v for k, v in over.items() if v is not None}}, str(path))


def make(kind: type[S], table: dict[str, Any], where: str = "") -> S:
    """The settings of a table. Raises ConfigError with the path of a wrong key or value."""
    known = kind.__struct_fields__
    for key in table:
        if key not in known:
            raise ConfigError(f"{where}: unknown key {key!r}: {nearest(key, known)}", f"$.{key}")
    try:
        return msgspec.convert(table, kind)
    except msgspec.ValidationError as error:
        text, _, path = str(error).partition(" - at `")
        raise ConfigError(f"{where}: {text}".removeprefix(": "), path.rstrip("`") or "$") from None


def address(text: str, path: str) -> tuple[str, int]:
    """host and port of "host:port", "[::1]:port" or ":port" (every address)."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"expected host:port, as in 127.0.0.1:8443, got {text!r}", path)
    return host.strip("[]") or "0.0.0.0", int(port)  # noqa: S104  it is what ":port" asks for


def answers_at(settings: Client) -> tuple[str, int]:
    """Where a client's prediction service listens. Raises ConfigError for an address that others reach."""
    from .pinning import loopback

    host, port = address(settings.predict, "$.predict")
    if not loopback(host):
        raise ConfigError(
            f"{settings.predict} can be reached from other machines, and has no TLS and no token: write "
            f'predict = "127.0.0.1:{port}"; `atoll serve --tls … --token-file …` answers other machines',
            "$.predict",
        )
    return host, port


def rollout(value: Any, path: str = "$.rollout") -> Rollout | None:
    """The plan that a setting stands for: "now", "held", "staged" or a table; None for the first two.

    Raises ConfigError with the path of what is wrong.
    """
    if value in ("now", "held"):
        return None
    if isinstance(value, Rollout):
        return value
    try:
        return msgspec.convert({} if value == "staged" else value, Rollout)
    except msgspec.ValidationError as error:
        text, _, inner = str(error).partition(" - at `$")
        what = 'expected "now", "held", "staged" or a table' if isinstance(value, str) else text
        raise ConfigError(what, path + inner.rstrip("`")) from None
