"""The net of a simulated world: sessions between peers, over packets that are late, lost or doubled.

Each pair of peers has a session (core/session.py), so what they send arrives once and in order
while both live. When one dies its connections are gone, with all packets that were on their way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..core.session import Packet, Session
from .faults import World

Schedule = Callable[[float, Callable[[], None]], None]


class Net:
    """`send` puts a letter on its way; `deliver(receiver, sender, letter)` is called when it is there.

    `luck`: what decides about packets. `after(seconds, act)`: the world's clock; `now()` reads it.
    `size(letter)`: its bytes. `sent`, `received`: bytes by peer, those of repeated packets too.
    """

    def __init__(
        self,
        world: World,
        luck: np.random.Generator,
        now: Callable[[], float],
        after: Schedule,
        size: Callable[[Any], int],
        deliver: Callable[[str, str, Any], None],
    ) -> None:
        self.sent: dict[str, int] = {}
        self.received: dict[str, int] = {}
        self._world = world
        self._luck = luck
        self._now = now
        self._after = after
        self._size = size
        self._deliver = deliver
        self._sessions: dict[tuple[str, str], Session] = {}  # one's own half towards the other
        self._watched: set[tuple[str, str]] = set()
        self._lives: dict[str, int] = {}  # how often it died
        self._down: set[str] = set()
        # only where packets can vanish does it take acknowledgements
        self._lossy = bool(world.loss or world.partitions or world.crashes)

    def send(self, sender: str, receiver: str, letter: Any) -> None:
        """Send a letter; it arrives once and in order, or one of the two dies."""
        ends = sender, receiver
        session = self._session(ends)
        self._transmit(ends, session.push(letter))
        if self._lossy and ends not in self._watched:
            self._watched.add(ends)
            self._watch(ends, session)

    def fall(self, name: str) -> list[str]:
        """A peer dies, and its connections with it; who was connected to it."""
        self._down.add(name)
        self._lives[name] = self._lives.get(name, 0) + 1
        gone = [ends for ends in self._sessions if name in ends]
        for ends in gone:
            del self._sessions[ends]
            self._watched.discard(ends)
        return [mine for mine, other in gone if other == name]

    def rise(self, name: str) -> None:
        """A peer can be reached again."""
        self._down.discard(name)

    def _session(self, ends: tuple[str, str]) -> Session:
        session = self._sessions.get(ends)
        if session is None:
            session = self._sessions[ends] = Session()
        return session

    def _watch(self, ends: tuple[str, str], session: Session) -> None:
        """Send again what is not acknowledged after a while."""

        def again() -> None:
            if self._sessions.get(ends) is not session:
                return  # one side has died: the connection is gone
            packets = session.unacked()
            for packet in packets:
                self._transmit(ends, packet)
            if packets:
                self._watch(ends, session)
            else:
                self._watched.discard(ends)

        self._after(self._world.resend, again)

    def _transmit(self, ends: tuple[str, str], packet: Packet) -> None:
        sender, receiver = ends
        w, luck = self._world, self._luck
        size = self._size(packet.body) if packet.body is not None else 0
        self.sent[sender] = self.sent.get(sender, 0) + size
        lives = self._lives.get(sender), self._lives.get(receiver)
        copies = 1 + (w.repeat > 0 and luck.random() < w.repeat)
        for _ in range(copies):
            if not ((w.loss and luck.random() < w.loss) or (w.partitions and self._cut(ends))):
                wait = w.delay.draw(luck) + (size / w.bandwidth if w.bandwidth else 0.0)
                self._after(wait, lambda: self._arrive(ends, packet, size, lives))

    def _cut(self, ends: tuple[str, str]) -> bool:
        now, (a, b) = self._now(), ends
        return any(
            c.start <= now < c.stop and (a in c.peers) != (b in c.peers) for c in self._world.partitions
        )

    def _arrive(self, ends: tuple[str, str], packet: Packet, size: int, lives: tuple[Any, Any]) -> None:
        sender, receiver = ends
        if receiver in self._down or lives != (self._lives.get(sender), self._lives.get(receiver)):
            return  # the connection it came on is gone
        self.received[receiver] = self.received.get(receiver, 0) + size
        session = self._session((receiver, sender))
        letters = session.arrived(packet)
        if packet.number and self._lossy:
            self._transmit((receiver, sender), session.ack())
        for letter in letters:
            self._deliver(receiver, sender, letter)
