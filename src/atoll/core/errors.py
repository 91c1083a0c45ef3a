"""Every error Atoll raises, in one tree.

    AtollError
    ├─ ConfigError            the job or file is wrong, before anything runs; carries a $.path
    │  └─ CompositionError    these parts do not fit; says which, and the order that would
    ├─ MisuseError            our caller broke a contract
    ├─ PeerError              a peer could not or would not; rounds tolerate it
    │  ├─ Refused             it answered no, with its reason
    │  ├─ Gone                it stopped answering
    │  └─ QuorumError         too few answered in time
    ├─ ProtocolError          a peer broke the rules: never retried, set aside
    │  ├─ CodecError          the bytes are not a message
    │  └─ IntegrityError      the bytes are not the ones that were sent
    ├─ PrivacyError           a promise would break: never retried, never downgraded
    ├─ DataError              local data do not match the contract; carries no values
    └─ StateError             stored state is missing, newer or damaged

A message says what was expected, what came and what to do. It never carries a private value.
"""

from __future__ import annotations


class AtollError(Exception):
    """Base of every error raised on purpose; catch it to catch them all."""


class ConfigError(AtollError):
    """The job or a file is wrong; raised before anything runs.

    `path` names the place, as in `$.cohort.size`; it is empty where there is no file.
    """

    def __init__(self, message: str, path: str = "") -> None:
        self.path = path
        super().__init__(f"{path}: {message}" if path else message)


class CompositionError(ConfigError):
    """Two parts do not fit together; the message names both and the order that would."""


class MisuseError(AtollError):
    """The caller broke a contract of this library: a wrong shape, a negative weight."""


class PeerError(AtollError):
    """A peer could not or would not answer; a round tolerates it up to its quorum."""


class Refused(PeerError):  # noqa: N818  it is an answer, and reads as one
    """A peer answered no; the message is its reason."""


class Gone(PeerError):  # noqa: N818
    """A peer stopped answering or left."""


class QuorumError(PeerError):
    """Fewer peers than the quorum answered before the deadline."""


class ProtocolError(AtollError):
    """A peer broke the rules; it is set aside and never asked again for this."""


class CodecError(ProtocolError):
    """The bytes are not a well-formed message within its limits."""


class IntegrityError(ProtocolError):
    """A checksum or hash says the bytes are not those that were sent."""


class PrivacyError(AtollError):
    """A privacy promise would break; nothing falls back to a weaker one."""


class DataError(AtollError):
    """Local data do not match what the job expects; the message names columns, never values."""


class StateError(AtollError):
    """Stored state is missing, damaged or from a newer version."""
