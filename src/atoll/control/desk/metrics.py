"""Figures for Prometheus, read from the store when they are asked for: nothing is counted twice or lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.registry import Collector

from ..store import STATES, Store
from . import desk
from .office import Office
from .told import told

RULES = ("hours", "mains", "battery", "temperature", "metered_bytes", "duty")  # of engine/power.py


def scrape(store: Store, office: Office) -> bytes:
    """The figures in Prometheus's text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Figures(store, office))
    return generate_latest(registry)


class _Figures(Collector):
    """`collect()` is what the registry calls."""

    def __init__(self, store: Store, office: Office) -> None:
        self._store, self._office = store, office

    def collect(self) -> Iterator[Any]:
        now, store = self._office.clock(), self._store
        nodes = desk.nodes(store, self._office.live(), now)
        health = store.health()
        yield InfoMetricFamily("atoll", "This coordinator", {"version": version("atoll-fl")})
        states = Counter(r["state"] for r in store.runs())
        yield _gauge("atoll_runs", "Runs by state", ("state",), (((s,), states[s]) for s in STATES))
        seen = Counter((n["role"], n["state"]) for n in nodes)
        yield _gauge("atoll_nodes", "Members by role and state", ("role", "state"), seen.items())
        out = sum(bool(n["quarantined"]) for n in nodes)
        yield _gauge("atoll_nodes_quarantined", "Members that no run asks", (), [((), out)])
        holding = Counter(n["holds"]["rule"] for n in nodes if n["holds"])
        text = "Members that hold back by a rule of their own"
        yield _gauge("atoll_nodes_holding_back", text, ("rule",), (((r,), holding[r]) for r in RULES))
        active = desk.active(store)
        waits = {r["id"]: self._office.about(r["id"]).get("waiting") for r in active}
        since = (((run,), now - told["since"]) for run, told in waits.items() if told)
        text = "Seconds that a run has waited for clients that it may ask"
        yield _gauge("atoll_run_waiting_seconds", text, ("run",), since)
        suspects = (((r["id"],), len(told(store, r["id"]).suspects)) for r in active)
        yield _gauge("atoll_run_suspects", "Clients that seem to lie by now", ("run",), suspects)
        yield _gauge("atoll_run_round", "Rounds done", ("run",), (((r["id"],), r["round"]) for r in active))
        yield _gauge("atoll_run_rounds", "Rounds to do", ("run",), (((r["id"],), r["of"]) for r in active))
        metrics = (((r["id"], r["metric"]), r["value"]) for r in active if r["value"] is not None)
        yield _gauge("atoll_run_metric", "The main metric of the last evaluation", ("run", "metric"), metrics)
        yield _gauge("atoll_store_writable", "1 while the store takes writes", (), [((), health["ok"])])
        yield _gauge("atoll_disk_free_bytes", "Free bytes on the store's disk", (), [((), health["free"])])
        watches = [(n["name"], n["live"]["watch"]) for n in nodes if n["live"].get("watch")]
        text = "How much of what a member's watch sees is not as it was, 0 to 1"
        scores = [((name, w["model"]), w["score"]) for name, w in watches]
        yield _gauge("atoll_node_drift", text, ("node", "model"), scores)
        text = "Columns, answers and errors of which a member's watch says that they changed"
        counts = [((name, w["model"]), len(w["raised"])) for name, w in watches]
        yield _gauge("atoll_node_drift_raised", text, ("node", "model"), counts)
        text = "Rows of their children that edges were asked for, and what became of them"
        joint = {n["name"]: n["live"].get("joint") or {} for n in nodes}
        rows = (((name, what), count) for name, told in joint.items() for what, count in told.items())
        yield _gauge("atoll_edge_rows", text, ("node", "what"), rows)
        events = CounterMetricFamily("atoll_events", "Events in the chained log")
        events.add_metric([], store.head()[0])
        yield events
        until = self._office.until()
        if until is not None:
            text = "Seconds until the API's certificate ends"
            yield _gauge("atoll_certificate_seconds", text, (), [((), until - now)])


def _gauge(name: str, text: str, labels: tuple[str, ...], values: Iterable[Any]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=labels)
    for label, value in values:
        family.add_metric(list(label), float(value))
    return family
