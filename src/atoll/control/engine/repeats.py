"""No update in two different sums: what a client has let be added up, and with whom.

If the same update stands in two sums and one member in only one of them, their difference is that member's
update. A job that is submitted again with the same seed asks for the same first updates, and a statistic for
the same numbers each time. So a client vouches for a list of survivors only if its update was in no other.

    folder/sums     a key, then 32 bytes a sum: what names the update, and who was in it

A record is on disk before the client vouches. The oldest go when there are too many.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path

from ...core.errors import PrivacyError
from ...privacy.private import write_private

_HALF = 16  # bytes of each name
_KEY = 32
MANY = 1 << 16  # sums remembered


class Repeats:
    """The sums of the client in `folder`. One process at a time writes."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "sums"
        data = self._path.read_bytes() if self._path.exists() else b""
        if len(data) < _KEY:
            data = secrets.token_bytes(_KEY)
            write_private(self._path, data)
        self._key = data[:_KEY]
        whole = range(_KEY, len(data) - 2 * _HALF + 1, 2 * _HALF)  # a record that was cut off is none
        self._seen = {data[i : i + _HALF]: data[i + _HALF : i + 2 * _HALF] for i in whole}
        self._end = _KEY + 2 * _HALF * len(whole)

    def vouch(self, update: bytes, members: Sequence[str]) -> None:
        """Note that `update`, by what names it, is added up with these members' and no others.

        Raises PrivacyError where it was in a sum with others before.
        """
        what, who = self._name(b"update", update), self._name(b"members", *(m.encode() for m in members))
        before = self._seen.get(what)
        if before == who:
            return
        if before is not None:
            raise PrivacyError(
                "this very update was in a sum with other members before, and the two sums' difference would"
                " show one member's: submit the job with another seed, or under a promise of privacy; where"
                " it fits a pipeline, with an earlier run's figures"
            )
        self._seen[what] = who
        if len(self._seen) > MANY:
            self._seen = dict(list(self._seen.items())[MANY // 2 :])
            write_private(self._path, self._key + b"".join(a + b for a, b in self._seen.items()))
            self._end = _KEY + 2 * _HALF * len(self._seen)
            return
        with self._path.open("r+b") as file:
            file.seek(self._end)
            file.write(what + who)
            file.flush()
            os.fsync(file.fileno())
        self._end += 2 * _HALF

    def _name(self, kind: bytes, *parts: bytes) -> bytes:
        made = blake2b(key=self._key, digest_size=_HALF, person=kind)
        for part in parts:
            made.update(len(part).to_bytes(4, "big") + part)
        return made.digest()
