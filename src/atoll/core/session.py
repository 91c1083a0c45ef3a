"""A session between two peers: every body arrives once and in order over a net that loses,
repeats and reorders packets. Sans-IO: packets go in, packets and bodies come out.

    push(body) -> packet           number it and keep it until it is acknowledged
    arrived(packet) -> bodies      those now in order; duplicates and early ones give none
    unacked() -> packets           what to send again

Each packet carries the highest number received in order, so acknowledgements ride along.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Packet:
    """`number` from 1, 0 for a bare acknowledgement; `seen`: all up to it have arrived."""

    number: int
    seen: int
    body: Any = None


class Session:
    """One side's half: what it sent and is not yet known to have arrived, what came early."""

    def __init__(self) -> None:
        self._sent: dict[int, Any] = {}
        self._early: dict[int, Any] = {}
        self._number = 0
        self._known = 0
        self._seen = 0

    def push(self, body: Any) -> Packet:
        """The packet that carries `body`; it is kept until acknowledged."""
        self._number += 1
        self._sent[self._number] = body
        return Packet(self._number, self._seen, body)

    def arrived(self, packet: Packet) -> list[Any]:
        """Take a packet in; the bodies that are now complete up to here, in order."""
        while self._known < min(packet.seen, self._number):
            self._known += 1
            del self._sent[self._known]
        if packet.number > self._seen:
            self._early[packet.number] = packet.body
        ready = []
        while self._seen + 1 in self._early:
            self._seen += 1
            ready.append(self._early.pop(self._seen))
        return ready

    def ack(self) -> Packet:
        """A packet that only says what has arrived."""
        return Packet(0, self._seen)

    def unacked(self) -> list[Packet]:
        """Everything to send again, oldest first."""
        return [Packet(number, self._seen, body) for number, body in self._sent.items()]
