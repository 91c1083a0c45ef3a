"""A real broker: each reading once whoever is killed, acknowledged when stored, a device for itself alone."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from msgspec import structs

from atoll.core.errors import ConfigError, StateError
from atoll.privacy.keys import Authority, key_pem
from atoll.sense.intake import Feed, Intake
from atoll.sense.mqtt import devices, listen
from atoll.sense.source import Mqtt
from atoll.sense.store import Store
from atoll.wire import failpoint
from tests.sense import broker as brokers
from tests.sense.life import join
from tests.sense.plant import NOW, rules, vault
from tests.wire.pki import member

needs_broker = pytest.mark.skipif(bool(brokers.missing()), reason=brokers.missing() or "there is one")
TOPIC, LABELS = "plant/{source}/data", "plant/{source}/label"


@pytest.fixture
def broker(tmp_path) -> Iterator[brokers.Broker]:
    with brokers.running(tmp_path / "broker") as made:
        yield made


def settings(broker: brokers.Broker, **over) -> Mqtt:
    return Mqtt(**{"url": f"mqtt://127.0.0.1:{broker.port}", "topic": TOPIC} | over)


@asynccontextmanager
async def node(path: Path, said: Mqtt):
    """A node that listens, to labels of windows too; gone in order at the end."""
    store = Store.open(path, "press", vault(), rules(), join=join(final=0.0))
    feed = Feed(store, clock=lambda: NOW, pause=0.0)
    told = Feed(store, clock=lambda: NOW, pause=0.0, of=feed)
    labels = structs.replace(said, topic=LABELS)
    ways = [
        ("press", lambda: listen(said, path, feed, "node")),
        ("press labels", lambda: listen(labels, path, told, "node-labels")),
    ]
    intake = Intake({"press": feed, "press labels": told}, ways)
    intake.start()
    try:
        yield feed
    finally:
        await intake.stop()


def word(file: str) -> dict[str, str]:
    return {"user": "node", "password_file": file}


class Devices:
    """What the presses say, at QoS 1; `send` returns once the broker has it."""

    def __init__(self, port: int, user: str = "", word: str = "", ca: str = "") -> None:
        from paho.mqtt import client as paho
        from paho.mqtt.enums import CallbackAPIVersion

        self.client = paho.Client(CallbackAPIVersion.VERSION2)
        if user:
            self.client.username_pw_set(user, word)
        if ca:
            self.client.tls_set(ca)
        here = threading.Event()
        self.client.on_connect = lambda *_: here.set()
        self.client.connect("localhost" if ca else "127.0.0.1", port)
        self.client.loop_start()
        assert here.wait(30)

    def send(self, *said: tuple[str, object]) -> None:
        for topic, values in said:
            text = values if isinstance(values, bytes) else json.dumps(values)
            self.client.publish(topic, text, qos=1).wait_for_publish(30)

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


@pytest.fixture
def presses(broker) -> Iterator[Devices]:
    made = Devices(broker.port)
    yield made
    made.close()


def says(i: int, device: str = "press-7", **over) -> tuple[str, object]:
    return f"plant/{device}/data", {
        "at": NOW + i,
        "id": i,
        "heat": 20 + i % 90,
        "load": i,
        "state": "run",
    } | over


def tells(i: int, device: str = "press-7", **over) -> tuple[str, object]:
    return f"plant/{device}/label", {"id": i, "fails": i % 3 == 0, "sequence": 1} | over


async def until(what) -> None:
    while not what():  # noqa: ASYNC110  what a broker does
        await asyncio.sleep(0.01)


def ids(path: Path) -> list[int]:
    with Store.open(path, "press", vault()) as store:
        return [int(r.id) for r in store.readings()]


async def subscribed(path: Path, said: Mqtt) -> None:
    """Make the node known to the broker, which keeps for it from then on."""
    async with node(path, said):
        await until(lambda: _known(path))


def _known(path: Path) -> bool:
    saved = path / "broker" / "mosquitto.db"
    kept = saved.read_bytes() if saved.exists() else b""
    return b"plant/+/data" in kept and b"plant/+/label" in kept


@needs_broker
@pytest.mark.parametrize("version", ["5", "3.1.1"])
def test_what_a_broker_kept_while_the_node_was_away_is_stored(version, broker, presses, tmp_path) -> None:
    async def main() -> None:
        await subscribed(tmp_path, settings(broker, version=version))
        await asyncio.to_thread(presses.send, *(says(i) for i in range(200)))
        async with node(tmp_path, settings(broker, version=version)) as feed:
            await until(lambda: feed.counts()["stored"] == 200)
            await asyncio.to_thread(presses.send, *(says(i) for i in range(195, 205)))
            await until(lambda: feed.counts()["stored"] == 205)
            assert feed.counts()["repeated"] == 5

    asyncio.run(main())
    assert ids(tmp_path) == list(range(205))


@needs_broker
def test_a_device_speaks_for_itself_alone(broker, presses, tmp_path) -> None:
    async def main() -> None:
        async with node(tmp_path, settings(broker)) as feed:
            await until(lambda: _known(tmp_path))
            spoofed = says(1, source="press-8")
            sent = [spoofed, says(2), ("plant/press-9/data", b"\xff no json"), says(3, heat=999)]
            await asyncio.to_thread(presses.send, *sent)
            await until(lambda: feed.counts()["aside"] == 3)
            assert [(r.source, r.id) for r in feed.store.readings()] == [("press-7", "2")]
            assert [(a.source, a.reason) for a in feed.store.aside()] == [
                ("press-7", "it speaks for another device"),
                ("press-9", "this is no JSON"),
                ("press-7", "column 'heat' lies outside -40 to 150"),
            ]

    asyncio.run(main())


@needs_broker
def test_a_full_disk_leaves_messages_unacknowledged_until_it_heals(broker, presses, tmp_path) -> None:
    async def main() -> None:
        async with node(tmp_path, settings(broker)) as feed:
            await until(lambda: _known(tmp_path))
            failpoint.arm("sense.stored.before:1:full")
            try:
                await asyncio.to_thread(presses.send, *(says(i) for i in range(5)))
                await until(lambda: feed.trouble)
                await until(lambda: feed.counts()["stored"] == 5 and not feed.trouble)
            finally:
                failpoint.arm("")

    asyncio.run(main())
    assert sorted(ids(tmp_path)) == list(range(5))


@needs_broker
@pytest.mark.parametrize("name", ["sense.stored.before:2", "sense.stored.after:2"])
def test_a_node_is_killed_and_each_reading_is_there_once(name, broker, presses, tmp_path) -> None:
    asyncio.run(subscribed(tmp_path, settings(broker)))
    command = [sys.executable, "-m", "tests.sense.life", str(tmp_path), f"mqtt:{broker.port}"]
    env = os.environ | {failpoint.VARIABLE: f"{name}:kill"}
    process = subprocess.Popen(command, env=env)
    try:
        n = 0
        while process.poll() is None:
            presses.send(says(n))
            n += 1
        assert process.returncode == -signal.SIGKILL
    finally:
        process.kill()
        process.wait()
    presses.send(*(says(i) for i in range(n, n + 20)))

    async def main() -> None:
        async with node(tmp_path, settings(broker)) as feed:
            await until(lambda: feed.counts()["stored"] == n + 20)

    asyncio.run(main())
    assert sorted(ids(tmp_path)) == list(range(n + 20))


@needs_broker
def test_labels_come_later_over_a_broker_and_each_is_heard_once(broker, presses, tmp_path) -> None:
    asyncio.run(subscribed(tmp_path, settings(broker)))
    command = [sys.executable, "-m", "tests.sense.life", str(tmp_path), f"mqtt:{broker.port}"]
    process = subprocess.Popen(command, env=os.environ | {failpoint.VARIABLE: "sense.labelled.after:2:kill"})
    try:
        presses.send(*(says(i) for i in range(20)), *(tells(i) for i in range(10, 25)))
        n = 25
        while process.poll() is None:
            presses.send(says(n), tells(n))
            n += 1
        assert process.returncode == -signal.SIGKILL
    finally:
        process.kill()
        process.wait()
    presses.send(*(says(i) for i in range(20, 25)), *(tells(i) for i in (*range(20), *range(8))))
    wrong = [tells(3, "press-7", source="press-8"), tells(4, fails="perhaps"), tells(3, "press-9")]
    presses.send(*wrong, tells(5, fails=True, sequence=2), tells(5, fails=False, sequence=1))

    async def main() -> None:
        async with node(tmp_path, settings(broker)) as feed:
            await until(lambda: feed.counts()["labelled"] == n and feed.counts()["labels_aside"] == 2)
            await until(lambda: feed.counts()["labels_corrected"] == 1)
            _, windows = await asyncio.to_thread(feed.store.due, 3, 0, 10_000)
            counts = feed.counts()
            assert (counts["labels"], counts["labels_waiting"], counts["stored"]) == (n + 1, 1, n)
        found = {int(w[-1].id): ([int(r.id) for r in w], w[-1].cells[3]) for w in windows}
        assert len(found) == len(windows)
        assert found == {i: ([i - 2, i - 1, i], float(i % 3 == 0 or i == 5)) for i in range(2, n)}

    asyncio.run(main())


@needs_broker
def test_the_broker_is_killed_and_what_devices_send_again_is_there_once(broker, presses, tmp_path) -> None:
    async def main() -> None:
        async with node(tmp_path, settings(broker)) as feed:
            await until(lambda: _known(tmp_path))
            await asyncio.to_thread(presses.send, *(says(i) for i in range(50)))
            await asyncio.to_thread(broker.kill)
            await asyncio.to_thread(broker.start)
            again = await asyncio.to_thread(Devices, broker.port)
            # what a broker had only in memory is lost with it: devices send their last seconds again
            await asyncio.to_thread(again.send, *(says(i) for i in range(80)))
            await until(lambda: feed.counts()["stored"] == 80)
            await asyncio.to_thread(again.close)

    asyncio.run(main())
    assert sorted(ids(tmp_path)) == list(range(80))


@needs_broker
def test_a_password_is_read_from_a_file(tmp_path) -> None:
    file = tmp_path / "broker" / "passwords"
    file.parent.mkdir()
    tool = Path("/usr/bin/mosquitto_passwd")
    if not tool.exists():
        pytest.skip("mosquitto_passwd is not installed")
    subprocess.run([tool, "-b", "-c", file, "node", "word"], check=True, capture_output=True)
    lines = ["allow_anonymous false", "autosave_on_changes true", f"password_file {file}"]
    with brokers.running(tmp_path / "broker", lines) as broker:
        (tmp_path / "right").write_text("word\n")
        (tmp_path / "wrong").write_text("words\n")
        presses = Devices(broker.port, "node", "word")

        async def main() -> None:
            with pytest.raises(Exception, match="refuses this node"):
                await listen(settings(broker, **word("wrong")), tmp_path, None, "n")
            async with node(tmp_path, settings(broker, **word("right"))) as feed:
                await until(lambda: _known(tmp_path))
                await asyncio.to_thread(presses.send, says(1))
                await until(lambda: feed.counts()["stored"] == 1)

        asyncio.run(main())
        presses.close()


def test_topics_say_who_speaks() -> None:
    filter_, device = devices(Mqtt(url="", topic=TOPIC))
    assert filter_ == "plant/+/data"
    assert device("plant/press-7/data") == "press-7"
    for other in ("plant/press-7/data/x", "plant//data", "plant/a/b/data", "$SYS/x", "PLANT/a/data", ""):
        assert device(other) == ""
    filter_, device = devices(Mqtt(url="", topic="line/heat", device="oven"))
    assert (filter_, device("line/heat"), device("line/other")) == ("line/heat", "oven", "")
    for topic in ("plant/+/data", "plant/#", "plant/x{source}/data", "{source}/{source}", "plant/data", ""):
        with pytest.raises(ConfigError, match=r"topic"):
            devices(Mqtt(url="", topic=topic))
    with pytest.raises(ConfigError, match="name a device"):
        devices(Mqtt(url="", topic=TOPIC, device="press-7"))


def test_wrong_settings_are_told(tmp_path) -> None:
    for said, words in (
        (Mqtt(url="http://hub", topic=TOPIC), "mqtt://host"),
        (Mqtt(url="mqtt://hub", topic=TOPIC, **word("gone")), "cannot be read"),
        (Mqtt(url="mqtts://hub", topic=TOPIC, ca="gone"), "cannot be read"),
    ):
        with pytest.raises(ConfigError, match=words), suppress(ImportError):
            asyncio.run(listen(said, tmp_path, None, "n"))


@needs_broker
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # paho leaves a refused socket
def test_messages_come_over_tls_from_a_broker_that_is_known(tmp_path) -> None:
    authority = Authority.new("plant", now=time.time())
    hub = member(authority, "coordinator", "broker", hosts=("127.0.0.1", "localhost"))
    folder = tmp_path / "broker"
    folder.mkdir()
    (folder / "key.pem").write_bytes(key_pem(hub.key))
    (folder / "chain.pem").write_bytes(hub.chain)
    (folder / "ca.pem").write_bytes(authority.root)
    lines = [*brokers.OPEN, f"certfile {folder}/chain.pem", f"keyfile {folder}/key.pem"]
    with brokers.running(folder, lines) as broker:
        over = {"url": f"mqtts://localhost:{broker.port}"}

        async def main() -> None:
            with pytest.raises(StateError, match=r"cannot be reached: .*certificate verify failed"):
                await listen(settings(broker, **over), tmp_path, None, "n")
            async with node(tmp_path, settings(broker, **over, ca="broker/ca.pem")) as feed:
                await until(lambda: _known(tmp_path))
                many = await asyncio.to_thread(Devices, broker.port, ca=str(folder / "ca.pem"))
                await asyncio.to_thread(many.send, *(says(i) for i in range(100)))
                await until(lambda: feed.counts()["stored"] == 100)
                await asyncio.to_thread(many.close)

        asyncio.run(main())
