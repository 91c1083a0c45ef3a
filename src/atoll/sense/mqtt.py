"""Readings from an MQTT broker (OASIS, MQTT 5.0 or 3.1.1), at least once from it and once in the store.

A message is acknowledged (PUBACK) after its reading is on disk. The session is kept by the broker: what came
while this node was away is sent when it is back, and what was not acknowledged is sent again; the store knows
both by id or time. How many messages may be unacknowledged is said to the broker (Receive Maximum, in 5.0):
it holds the rest, so that a slow disk slows the broker and fills no memory here.

    topic = "plant/{source}/data"     plant/press-7/data speaks for press-7, and for nobody else

The broker says who may write to which topic. Here a message on a topic that does not match, or that names
another device than its topic, is set aside.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..core.errors import ConfigError, StateError
from .intake import Feed, stored
from .reading import Reading, parse
from .source import Mqtt

UNACKNOWLEDGED = 2000  # messages, at most 65,535
_FOREVER = 0xFFFFFFFF  # seconds: the session lasts until it is taken up again
_ALIVE = 30  # seconds


def devices(settings: Mqtt) -> tuple[str, Callable[[str], str]]:
    """What to subscribe to, and the device that a topic speaks for, "" for none. Raises ConfigError."""
    topic = settings.topic
    named = topic.count("{source}")
    if named != topic.split("/").count("{source}") or named + bool(settings.device) != 1:
        raise ConfigError('a level of the topic is {source}, as in "plant/{source}/data", or name a device')
    if {"+", "#"} & set(topic):
        raise ConfigError("a topic speaks for one device: no + and no #")
    filter_ = topic.replace("{source}", "+")
    pattern = re.compile(re.escape(topic).replace(re.escape("{source}"), "([^/+#]{1,200})"))

    def device(name: str) -> str:
        match = pattern.fullmatch(name)
        return "" if match is None else settings.device or match[1]

    return filter_, device


async def listen(settings: Mqtt, folder: Path, feed: Feed, session: str) -> None:
    """Take in what the broker sends, until cancelled; files are relative to `folder`.

    `session`: its name at the broker. Raises ConfigError for wrong settings, StateError where the broker
    refuses, ends the connection or cannot be reached.
    """
    filter_, device = devices(settings)
    link = _Link(_client(settings, folder, session), filter_)
    await link.connect(urlsplit(settings.url))
    try:
        while True:
            lot = [await link.inbox.get()]
            while not link.inbox.empty():
                lot.append(link.inbox.get_nowait())
            link.resume()
            messages = [m for m in lot if not isinstance(m, StateError)]
            if messages:
                await stored(feed, [r for m in messages for r in _read(m, device, feed, settings)])
                for message in messages:
                    link.client.ack(message.mid, message.qos)
            for error in lot:
                if isinstance(error, StateError):
                    raise error
    finally:
        link.close()


def _read(message: Any, device: Callable[[str], str], feed: Feed, settings: Mqtt) -> list[Reading]:
    now = feed.clock()
    try:
        topic = message.topic
    except UnicodeDecodeError:
        topic = ""
    source = device(topic)
    if not source:
        return [Reading("?", now, fault="it came on a topic that no device has here")]
    return parse(message.payload, now, source, settings.units)


def _client(settings: Mqtt, folder: Path, session: str) -> Any:
    try:
        from paho.mqtt import client as paho
        from paho.mqtt.enums import CallbackAPIVersion
    except ImportError:
        raise ConfigError("MQTT needs paho-mqtt: pip install 'atoll-fl[mqtt]'") from None
    kind: dict[str, Any] = {"protocol": paho.MQTTv5}
    if settings.version != "5":
        kind = {"protocol": paho.MQTTv311, "clean_session": False}
    client = paho.Client(CallbackAPIVersion.VERSION2, client_id=session, manual_ack=True, **kind)
    url = urlsplit(settings.url)
    if url.scheme not in ("mqtt", "mqtts") or not url.hostname:
        raise ConfigError(f"a broker's URL is mqtt://host or mqtts://host, got {settings.url!r}")
    try:
        if settings.user:
            file = settings.password_file
            word = (folder / file).read_text("utf-8").strip() if file else ""
            client.username_pw_set(settings.user, word)
        if url.scheme == "mqtts":
            context = ssl.create_default_context(cafile=str(folder / settings.ca) if settings.ca else None)
            if settings.certificate:
                key = str(folder / settings.key) if settings.key else None
                context.load_cert_chain(str(folder / settings.certificate), key)
            client.tls_set_context(context)
    except OSError as error:
        raise ConfigError(f"a file of the broker's settings cannot be read: {error}") from None
    return client


class _Link:
    """A connection: paho's client, its bytes moved by the event loop, so that no thread shares its state.

    `inbox`: messages, and last of all why it ended.
    """

    def __init__(self, client: Any, filter_: str) -> None:
        self.client = client
        self.inbox: asyncio.Queue[Any] = asyncio.Queue()
        self._filter = filter_
        self._came = 0
        self._loop = asyncio.get_running_loop()
        self._socket: Any = None
        self._timer: asyncio.TimerHandle | None = None
        self._held = False
        client.on_message, client.on_connect, client.on_disconnect = self._message, self._joined, self._parted

    async def connect(self, url: Any) -> None:
        """Dial, with the session that the broker kept. Raises StateError where it cannot be reached."""
        from paho.mqtt.enums import MQTTProtocolVersion
        from paho.mqtt.packettypes import PacketTypes
        from paho.mqtt.properties import Properties

        more: dict[str, Any] = {"keepalive": _ALIVE}
        if self.client.protocol == MQTTProtocolVersion.MQTTv5:
            properties: Any = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            properties.SessionExpiryInterval = _FOREVER
            properties.ReceiveMaximum = UNACKNOWLEDGED
            more |= {"clean_start": False, "properties": properties}
        port = url.port or (8883 if url.scheme == "mqtts" else 1883)
        try:
            await asyncio.to_thread(self.client.connect, url.hostname, port, **more)
        except (OSError, ValueError) as error:
            raise StateError(f"the broker cannot be reached: {error}") from None
        self._socket = self.client.socket()
        self._loop.add_reader(self._socket, self._read)
        self.client.on_socket_register_write = lambda *_: self._loop.add_writer(
            self._socket, self.client.loop_write
        )
        self.client.on_socket_unregister_write = lambda *_: self._loop.remove_writer(self._socket)
        self.client.on_socket_close = lambda *_: self._off()
        if self.client.want_write():
            self.client.loop_write()
        self._tick()

    def resume(self) -> None:
        """Read on, where a full inbox has stopped it."""
        if self._held and self._socket is not None:
            self._held = False
            self._loop.add_reader(self._socket, self._read)
            self._read()

    def close(self) -> None:
        """End it; what is not acknowledged is sent again to the next."""
        self.client.on_disconnect = None
        self.client.disconnect()
        self.client.loop_write()
        self._off()
        if self._timer is not None:
            self._timer.cancel()

    def _message(self, _: Any, __: Any, message: Any) -> None:
        self._came += 1
        if (
            message.qos or self.inbox.qsize() < UNACKNOWLEDGED
        ):  # nobody holds back what needs no acknowledgement
            self.inbox.put_nowait(message)

    def _joined(self, _: Any, __: Any, ___: Any, reason: Any, ____: Any) -> None:
        if reason.is_failure:
            self.inbox.put_nowait(StateError(f"the broker refuses this node: {reason}"))
        else:
            self.client.subscribe(self._filter, qos=1)

    def _parted(self, _: Any, __: Any, ___: Any, reason: Any, ____: Any) -> None:
        self.inbox.put_nowait(StateError(f"the broker ended the connection: {reason}"))

    def _read(self) -> None:
        """All that is there: paho reads one packet at a time."""
        more = True
        while more and self._socket is not None:
            if self.inbox.qsize() >= UNACKNOWLEDGED:  # brokers may send more than was asked for: TCP holds it
                self._loop.remove_reader(self._socket)
                self._held = True
                return
            before = self._came
            self.client.loop_read()
            pending = getattr(self._socket, "pending", None)  # TLS: bytes that no selector sees
            more = self._came > before or bool(pending and pending())

    def _off(self) -> None:
        if self._socket is not None and self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
        self._socket = None

    def _tick(self) -> None:
        self.client.loop_misc()
        self._timer = self._loop.call_later(1.0, self._tick)
