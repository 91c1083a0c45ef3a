"""The members of a federation from Python: what `atoll coordinator`, `edge` and `client` run.

    at.run_client("https://hub:8443", token="atoll1.…", name="bank-a", data={"heart": dataset})

Each runs until it is interrupted or told to stop, and returns then. Values left out are those of the
settings files; see control/settings.py for what each means.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...core.errors import ConfigError, DataError
from ...data import Dataset, Examples, partition
from ..settings import Client, Edge, Policy, Server, make
from . import agent, coordinator, edge
from .datasets import Held
from .process import until_stopped


def run_coordinator(folder: str | Path = ".", **values: Any) -> None:
    """Run a coordinator whose state is in `folder`: listen, grpc, api, store, federation and more.

    Its first start writes an operator's token into `admin.json` there, readable by its owner only.
    Raises ConfigError for a wrong value or an address that cannot be had, StateError for damaged state.
    """
    node = coordinator.Coordinator(_settings(Server, folder, values))
    until_stopped(node.serve, node.close, folder)


def run_edge(join: str | Sequence[str], folder: str | Path = ".", **values: Any) -> None:
    """Run an edge below the server at `join` (the preferred first): token, name, listen, grpc and more.

    Raises as `run_coordinator`, and Refused or PrivacyError where every parent refuses for good.
    """
    node = edge.EdgeNode(_settings(Edge, folder, {**values, "join": _urls(join)}))
    until_stopped(node.serve, node.close, folder)


def run_client(
    join: str | Sequence[str],
    data: Mapping[str, Any],
    folder: str | Path = ".",
    *,
    policy: Policy | None = None,
    **values: Any,
) -> None:
    """Run a client beside its data: token, name, transport, proxy, predict and more.

    `data`: by the name that jobs use, each a Dataset (at.load_data, at.arrays), Examples, a pair (x, y),
    or a table as in client.toml. A fifth of the rows of what brings no test rows is kept to test on.
    `policy`: what this site allows. Raises as `run_edge`, and DataError for rows that cannot be trained on.
    """
    tables = {name: dict(found) for name, found in data.items() if isinstance(found, Mapping)}
    own = {name: _held(name, found) for name, found in data.items() if name not in tables}
    settings = _settings(Client, folder, {**values, "join": _urls(join), "data": tables})
    if policy is not None:
        settings = type(settings)(
            **{**{f: getattr(settings, f) for f in settings.__struct_fields__}, "policy": policy}
        )
    node = agent.Agent(settings, held=own)
    until_stopped(node.serve, node.uplink.close, folder)


def _settings(kind: Any, folder: str | Path, values: Mapping[str, Any]) -> Any:
    return make(kind, {"folder": str(folder), **values}, "these values")


def _urls(join: str | Sequence[str]) -> list[str]:
    return [join] if isinstance(join, str) else list(join)


def _held(name: str, found: Any) -> Held:
    """Rows that are in memory already."""
    if isinstance(found, tuple) and len(found) == 2:
        found = Examples(*found)
    if isinstance(found, Examples):
        found = Dataset(name, found, task="regression" if found.y.dtype.kind == "f" else "classes")
    if not isinstance(found, Dataset):
        raise ConfigError(
            f"data is a Dataset, Examples, (x, y) or a table of settings, got {type(found).__name__}",
            f"$.data.{name}",
        )
    sites = partition(found, clients=1)
    try:
        sites.check()
    except DataError as error:
        raise DataError(f"data set {name!r}: {error}") from None
    test = sites.tests[0] if sites.tests else found.test
    return Held(sites[0], test, tuple(found.classes), tuple(found.features))
