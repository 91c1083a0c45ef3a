"""3,000 sensors at 1 Hz through mosquitto into a node's store: is each reading there once, and what does it cost?

    python -m bench sense [--sensors 3000] [--seconds 60] [--json FILE]
    python -m bench.sense node FOLDER PORT          the node: store, feed, MQTT
    python -m bench.sense sensors PORT COUNT SECONDS

After a third of the time the broker is killed (-9) and started, after two thirds the node. Sensors publish at
QoS 1 by one connection, as a gateway does, and send their last seconds again when it was lost: a broker that
is killed has lost what it had in memory alone. CPU is that of the node's processes, over the whole time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter, deque
from pathlib import Path
from typing import Any

import psutil

from atoll.privacy.vault import Vault
from atoll.sense.intake import Feed
from atoll.sense.judge import Rules
from atoll.sense.mqtt import listen
from atoll.sense.source import Mqtt
from atoll.sense.store import Store

from .carry import cpu_seconds

LAST = 5  # seconds that sensors send again
COLUMNS = ("heat", "load", "speed")


def main(words: list[str]) -> int:
    """Print the counts; 1 where a reading is missing or there twice."""
    parser = argparse.ArgumentParser(prog="python -m bench sense", description=__doc__)
    parser.add_argument("--sensors", type=int, default=3000)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), asked.sensors, asked.seconds)
    for name, value in found.items():
        print(f"{name:12s} {value:g}")
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1) + "\n")
    return int(bool(found["missing"] or found["double"]))


def measure(folder: Path, sensors: int, seconds: int) -> dict[str, float]:
    """Counts of readings, CPU seconds a second of the node, its largest memory in MiB."""
    from tests.sense.broker import running

    with running(folder / "broker") as broker:
        nodes = [_start("node", str(folder), str(broker.port))]
        _line(nodes[-1])
        time.sleep(1.0)  # it has subscribed
        crowd = _start("sensors", str(broker.port), str(sensors), str(seconds))
        _line(crowd)
        began, cpu, memory, done = time.perf_counter(), 0.0, 0.0, False
        process = psutil.Process(nodes[-1].pid)
        acts = [(seconds / 3, "broker"), (2 * seconds / 3, "node")]
        while not done:
            time.sleep(0.5)
            memory = max(memory, process.memory_full_info().uss / 2**20)
            if acts and time.perf_counter() - began > acts[0][0]:
                if acts.pop(0)[1] == "broker":
                    broker.kill()
                    broker.start()
                else:
                    cpu += cpu_seconds(process)
                    _end(nodes[-1])
                    nodes.append(_start("node", str(folder), str(broker.port)))
                    process = psutil.Process(nodes[-1].pid)
                    _line(nodes[-1])
            done = crowd.poll() is not None
        sent = int(_line(crowd))
        took = time.perf_counter() - began
        last = -1
        while (stored := _stored(folder)) != last and stored < sent:  # what is still on its way
            last = stored
            time.sleep(3.0)
        cpu += cpu_seconds(process)
        _end(*nodes, crowd)
    ids = _ids(folder)
    with _store(folder) as store:
        counts = store.counts()
    return {
        "sensors": sensors,
        "seconds": round(took, 1),
        "sent": sent,
        "stored": counts["stored"],
        "missing": sent - len(ids),
        "double": sum(n - 1 for n in ids.values()),
        "repeated": counts["repeated"],
        "late": counts["late"],
        "aside": counts["aside"],
        "cpu": round(cpu / took, 3),
        "mib": round(memory, 1),
        "megabytes": round(counts["bytes"] / 1e6, 1),
    }


def _rules() -> Rules:
    def taken(values: Any, units: Any) -> tuple[list[Any], str]:
        return _CONTRACT.taken(values, units)

    return Rules(taken, COLUMNS, _CONTRACT.form, late=60.0, ahead=300.0, behind=86400.0)


def _contract() -> Any:
    from atoll.data.contract import Contract

    column = {"low": -1e6, "high": 1e6}
    return Contract.of({"name": "plant", "columns": dict.fromkeys(COLUMNS, column)})


_CONTRACT = _contract()


def _store(folder: Path, rules: Rules | None = None) -> Store:
    return Store.open(folder, "plant", Vault(bytes(32)), rules)


def _stored(folder: Path) -> int:
    with _store(folder) as store:
        return store.counts()["stored"]


def _ids(folder: Path) -> Counter[tuple[str, str]]:
    with _store(folder) as store:
        return Counter((r.source, r.id) for r in store.readings())


async def _node(folder: Path, port: int) -> None:
    feed = Feed(_store(folder, _rules()))
    said = Mqtt(url=f"mqtt://127.0.0.1:{port}", topic="plant/{source}/data")
    storing = asyncio.create_task(feed.run())
    print("here", flush=True)
    while not storing.done():
        try:
            await listen(said, folder, feed, "bench-node")
        except Exception as error:  # noqa: BLE001  the broker is killed
            print(error, file=sys.stderr)
            await asyncio.sleep(0.2)


def _sensors(port: int, count: int, seconds: int) -> None:
    """Send what each says each second; after a loss, the last seconds once more."""
    from paho.mqtt import client as paho
    from paho.mqtt.enums import CallbackAPIVersion

    client = paho.Client(CallbackAPIVersion.VERSION2)
    client.max_inflight_messages_set(65535)
    lost = 0

    def parted(*_: Any) -> None:
        nonlocal lost
        lost += 1

    client.on_disconnect = parted
    client.reconnect_delay_set(1, 1)
    client.connect("127.0.0.1", port)
    client.loop_start()
    print("here", flush=True)
    began, base = time.monotonic(), time.time()
    recent: deque[list[tuple[str, str]]] = deque(maxlen=LAST)
    known, out = 0, []
    for second in range(seconds):
        said = [
            (
                f"plant/s{k}/data",
                f'{{"at":{base + second:.3f},"id":{second},"heat":{20 + k % 50},"load":{second},"speed":{k}}}',
            )
            for k in range(count)
        ]
        recent.append(said)
        for k, (topic, text) in enumerate(said):
            out.append(client.publish(topic, text, qos=1))
            if not k % 100:
                time.sleep(max(0.0, began + second + k / count - time.monotonic()))
        if lost > known and client.is_connected():
            known = lost
            out += [client.publish(topic, text, qos=1) for lot in recent for topic, text in lot]
    for info in out:
        info.wait_for_publish(60)
    client.disconnect()
    client.loop_stop()
    print(count * seconds, flush=True)


def _start(*words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "bench.sense", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603  ourselves


def _line(process: subprocess.Popen[str]) -> str:
    line = "" if process.stdout is None else process.stdout.readline().strip()
    if not line:
        raise RuntimeError("a process of the bench ended")
    return line


def _end(*processes: subprocess.Popen[str]) -> None:
    for process in processes:
        process.kill()
        process.wait()


if __name__ == "__main__":
    if sys.argv[1] == "node":
        asyncio.run(_node(Path(sys.argv[2]), int(sys.argv[3])))
    else:
        _sensors(*map(int, sys.argv[2:]))
