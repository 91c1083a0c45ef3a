"""3,000 sensors at 1 Hz through mosquitto into a node's store: is each there once, and what does it cost?

    python -m bench sense [--sensors 3000] [--seconds 60] [--json FILE]
    python -m bench.sense node FOLDER PORT          the node: store, feed, MQTT
    python -m bench.sense sensors PORT COUNT SECONDS

After a third of the time the broker is killed (-9) and started, after two thirds the node. Sensors publish at
QoS 1 by one connection, as a gateway does, and send their last seconds again when it was lost: a broker that
is killed has lost what it did not save, each second here. CPU is that of the node's processes, over all.
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
from collections.abc import Iterator
from contextlib import contextmanager
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

_STILL = 20  # seconds without a new reading after which none is expected
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

    with running(folder / "broker", ["allow_anonymous true"]) as broker, _ended() as started:
        node = _start("node", str(folder), str(broker.port))
        started.append(node)
        _line(node)
        time.sleep(1.0)  # it has subscribed
        crowd = _start("sensors", str(broker.port), str(sensors), str(seconds))
        started.append(crowd)
        _line(crowd)
        began, cpu, memory, done = time.perf_counter(), 0.0, 0.0, False
        process = psutil.Process(node.pid)
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
                    node.kill()
                    node.wait()
                    node = _start("node", str(folder), str(broker.port))
                    started.append(node)
                    process = psutil.Process(node.pid)
                    _line(node)
            done = crowd.poll() is not None
        sent = int(_line(crowd))
        last, still = -1, 0
        while (stored := _stored(folder)) < sent and still < _STILL:  # what is still on its way
            still = still + 1 if stored == last else 0
            last = stored
            time.sleep(1.0)
        took = time.perf_counter() - began
        cpu += cpu_seconds(process)
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


def _contract() -> Any:
    from atoll.data.contract import Contract

    column = {"low": -1e6, "high": 1e6}
    return Contract.of({"name": "plant", "columns": dict.fromkeys(COLUMNS, column)})


def _rules() -> Rules:
    made = _contract()
    return Rules(made.taken, COLUMNS, made.form, late=60.0, ahead=300.0, behind=86400.0)


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


async def _sensors(port: int, count: int, seconds: int) -> None:  # noqa: C901  one small client
    """Send what each says each second; after a loss, what is unacknowledged and the last seconds once more.

    MQTT 3.1.1 by hand: at this rate paho looks through all that is unacknowledged at each acknowledgement.
    """
    waiting: deque[tuple[int, bytes]] = deque()  # in the order of their packet ids
    recent: deque[list[bytes]] = deque(maxlen=LAST)
    number, began, base = 0, time.monotonic(), time.time()
    link: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    def publish(body: bytes) -> None:
        nonlocal number
        number = number % 65535 + 1
        size = len(body) + 2
        head = bytes([0x32]) + (bytes([size]) if size < 128 else bytes([size % 128 | 128, size // 128]))
        top = 2 + int.from_bytes(body[:2], "big")
        packet = head + body[:top] + number.to_bytes(2, "big") + body[top:]
        waiting.append((number, body))
        if link is not None and not link[1].is_closing():
            link[1].write(packet)

    async def acknowledged() -> None:
        nonlocal link
        while True:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(b"\x10\x13\x00\x04MQTT\x04\x02\x00\x00\x00\x07sensors")
                await reader.readexactly(4)
                link = reader, writer
                again = [body for _, body in waiting] + [body for lot in recent for body in lot]
                waiting.clear()
                for body in dict.fromkeys(again):
                    publish(body)
                while True:
                    packet = await reader.readexactly(4)
                    while waiting and waiting.popleft()[0] != int.from_bytes(packet[2:], "big"):
                        pass  # a broker acknowledges in order
            except (OSError, asyncio.IncompleteReadError):
                link = None
                await asyncio.sleep(0.2)

    hearing = asyncio.create_task(acknowledged())
    print("here", flush=True)
    for second in range(seconds):
        said = f'"at":{base + second:.3f},"id":{second}'
        recent.append([])
        for k in range(count):
            topic = f"plant/s{k}/data".encode()
            text = f'{{{said},"heat":{20 + k % 50},"load":{second},"speed":{k}}}'.encode()
            recent[-1].append(len(topic).to_bytes(2, "big") + topic + text)
            publish(recent[-1][-1])
            if not k % 100:
                await asyncio.sleep(max(0.0, began + second + k / count - time.monotonic()))
                while len(waiting) > 30_000:  # noqa: ASYNC110  packet ids are finite
                    await asyncio.sleep(0.05)
    while waiting:  # noqa: ASYNC110
        await asyncio.sleep(0.1)
    hearing.cancel()
    print(count * seconds, flush=True)


def _start(*words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "bench.sense", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603  ourselves


def _line(process: subprocess.Popen[str]) -> str:
    line = "" if process.stdout is None else process.stdout.readline().strip()
    if not line:
        raise RuntimeError("a process of the bench ended")
    return line


@contextmanager
def _ended() -> Iterator[list[subprocess.Popen[str]]]:
    """What is put into the list is ended with the block."""
    started: list[subprocess.Popen[str]] = []
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


if __name__ == "__main__":
    if sys.argv[1] == "node":
        asyncio.run(_node(Path(sys.argv[2]), int(sys.argv[3])))
    else:
        asyncio.run(_sensors(*map(int, sys.argv[2:])))
