"""The plant of `atoll demo-edge`: engines on two lines that report to a broker (data/turbofan.py).

A message is a few readings of one engine, under line/NODE/ENGINE. The part of 125 cycles that an engine has
left is told with each reading, as a log of repairs would tell it later. On line A some sensors are exchanged
in the end: they read higher, as those of a worn engine do.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..core.errors import StateError
from ..data.turbofan import CAP, SENSORS, Life, lives, where
from ..privacy.private import write_private
from .broker import User
from .config import dump

LABEL = "left"
EXCHANGED = ("s4", "s11", "s15", "s21")
OFFSET = 0.8  # of the way from a new engine's level to a worn one's
SEEN = 0.6  # of a node's engines: run to failure before the federation begins
BURST = 5  # readings of a message
TOPIC = "line/{node}/{source}"
PASSWORD = "broker.password"  # a file of a node  # noqa: S105
MACHINES = "machines"  # who may write to the broker
SENT = 60.0  # seconds a broker may take

Send: TypeAlias = Callable[[Sequence[tuple[str, bytes]]], None]


def contract() -> dict[str, Any]:
    """What a reading is: 14 sensors with room beyond a worn engine's, and the part that is left."""
    columns: dict[str, Any] = {}
    for name, (new, worn, noise) in SENSORS.items():
        room = 1.5 * abs(worn - new) + 6 * noise
        columns[name] = {"low": min(new, worn) - room, "high": max(new, worn) + room}
    columns[LABEL] = {"low": 0.0, "high": 1.0, "missing": True}
    return {"name": "engines", "label": LABEL, "columns": columns}


@dataclass
class Plant:
    """`nodes`: by name, those of line A first. `real`: whether the engines are FD001's."""

    nodes: Sequence[str]
    password: str
    real: bool = False
    engines: dict[str, list[Life]] = field(default_factory=dict)
    passwords: dict[str, str] = field(default_factory=dict)
    _sent: int = 0

    @classmethod
    def of(cls, nodes: Sequence[str], secrets: Iterator[str], *, generated: bool | None = None) -> Plant:
        """Engines dealt to nodes in turn, and a password for everybody."""
        fleet = lives(generated=generated)
        made = cls(tuple(nodes), next(secrets), real=not generated and where() is not None)
        for at, node in enumerate(nodes):
            made.engines[node] = fleet[at :: len(nodes)]
            made.passwords[node] = next(secrets)
        return made

    def users(self) -> dict[str, User]:
        """Each node reads its own topics, and nobody else's; the machines write."""
        found = {node: User(self.passwords[node], reads=(f"line/{node}/#",)) for node in self.nodes}
        return {**found, MACHINES: User(self.password, writes=("line/#",))}

    def files(self, place: Path, port: int, version: str = "5") -> dict[str, Any]:
        """Put a node's files into its folder; its settings for them. `version`: of the broker's MQTT."""
        write_private(place / "engines.toml", dump(contract()).encode())
        write_private(place / PASSWORD, self.passwords[place.name].encode())
        mqtt = {
            "url": f"mqtt://127.0.0.1:{port}",
            "topic": TOPIC.replace("{node}", place.name),
            "version": version,
            "user": place.name,
            "password_file": PASSWORD,
        }
        return {
            "sources": {"engines": {"contract": "engines.toml", "mqtt": mqtt, "window": {"size": 100}}},
            "data": {"engines": {"source": "engines", "holdout": 0.2}},
        }

    def line_a(self, node: str) -> bool:
        """Whether its sensors are exchanged in the end."""
        return self.nodes.index(node) < len(self.nodes) // 2

    def past(self, node: str) -> Iterator[tuple[str, bytes]]:
        """All readings of the engines that have failed already, as messages."""
        for life in self.engines[node][: self._seen(node)]:
            left = np.minimum(life.remaining, CAP) / CAP
            for at in range(0, len(left), 10 * BURST):
                some = slice(at, at + 10 * BURST)
                yield self._message(node, life, life.sensors[some], left[some])

    def now(
        self, node: str, count: int, rng: np.random.Generator, *, exchanged: bool = False
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], list[tuple[str, bytes]]]:
        """So many readings of engines at work, at any age: rows (count, 14), what is left, the messages."""
        running = self.engines[node][self._seen(node) :]
        rows, left, messages = [], [], []
        for _ in range(0, count, BURST):
            life = running[int(rng.integers(len(running)))]
            at = int(rng.integers(len(life.sensors) - BURST))
            x = life.sensors[at : at + BURST] + (_offset() if exchanged and self.line_a(node) else 0.0)
            y = np.minimum(life.remaining[at : at + BURST], CAP) / CAP
            rows.append(x)
            left.append(y)
            messages.append(self._message(node, life, x, y))
        return np.concatenate(rows)[:count], np.concatenate(left)[:count], messages

    @contextmanager
    def speaking(self, port: int) -> Iterator[Send]:
        """The machines at the broker: `send(messages)` returns once it has them, or raises StateError.

        They stay for the whole block: a broker may not yet have passed on what it has acknowledged.
        """
        import paho.mqtt.client as mqtt
        from paho.mqtt.enums import CallbackAPIVersion

        client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=MACHINES)
        client.username_pw_set(MACHINES, self.password)
        client.max_inflight_messages_set(100)
        client.connect("127.0.0.1", port)
        client.loop_start()

        def send(messages: Sequence[tuple[str, bytes]]) -> None:
            sent = [client.publish(topic, text, qos=1) for topic, text in messages]
            until = time.monotonic() + SENT
            for one in sent:
                one.wait_for_publish(max(0.0, until - time.monotonic()))
                if not one.is_published():
                    raise StateError("the broker does not take what the machines say: see its log")

        try:
            yield send
        finally:
            client.disconnect()
            client.loop_stop()

    def _seen(self, node: str) -> int:
        return round(SEEN * len(self.engines[node]))

    def _message(
        self, node: str, life: Life, rows: NDArray[np.float64], left: NDArray[np.float64]
    ) -> tuple[str, bytes]:
        readings = []
        for x, y in zip(rows.tolist(), left.tolist(), strict=True):
            self._sent += 1
            values = {**dict(zip(SENSORS, x, strict=True)), LABEL: y}
            readings.append({"at": time.time(), "id": str(self._sent), "values": values})
        topic = TOPIC.replace("{node}", node).replace("{source}", f"engine-{life.unit:03d}")
        return topic, json.dumps(readings).encode()


def _offset() -> NDArray[np.float64]:
    """What exchanged sensors read beside the old ones."""
    return np.array([OFFSET * (w - n) * (name in EXCHANGED) for name, (n, w, _) in SENSORS.items()])
