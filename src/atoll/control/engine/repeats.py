"""No update in two different sums: what a client has let be added up, and with whom.

If the same update stands in two sums and one member in only one of them, their difference is that member's
update. A job that is submitted again with the same seed asks for the same first updates, and a statistic for
the same numbers each time. So a client vouches for a list of survivors only if its update was in no other.

    folder/runs/sums     a key, then 32 bytes a sum: what names the update, and who was in it

The file is sealed like its neighbours, by `vault`, and written whole: a record is on disk before the client
vouches. The oldest go when there are too many. An earlier version's lay in plain at folder/sums: that one is
read once, sealed, and removed.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path

from ...core.errors import PrivacyError
from ...privacy.vault import Vault

_HALF = 16  # bytes of each name
_KEY = 32
MANY = 1 << 16  # sums remembered


class Repeats:
    """The sums of the client in `folder`. One process at a time writes.

    Raises StateError where the file was changed, or another key sealed it.
    """

    def __init__(self, folder: Path, vault: Vault) -> None:
        self._path, self._vault = folder / "runs" / "sums", vault
        plain = folder / "sums"
        if not self._path.exists():
            data = plain.read_bytes() if plain.exists() else b""
            vault.write(self._path, data if len(data) >= _KEY else secrets.token_bytes(_KEY))
        plain.unlink(missing_ok=True)
        data = vault.read(self._path)
        self._key = data[:_KEY]
        whole = range(_KEY, len(data) - 2 * _HALF + 1, 2 * _HALF)  # of a plain file the last may be cut off
        self._seen = {data[i : i + _HALF]: data[i + _HALF : i + 2 * _HALF] for i in whole}

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
        seen = self._seen | {what: who}
        if len(seen) > MANY:
            seen = dict(list(seen.items())[MANY // 2 :])
        self._vault.write(self._path, self._key + b"".join(a + b for a, b in seen.items()))
        self._seen = seen

    def _name(self, kind: bytes, *parts: bytes) -> bytes:
        made = blake2b(key=self._key, digest_size=_HALF, person=kind)
        for part in parts:
            made.update(len(part).to_bytes(4, "big") + part)
        return made.digest()
