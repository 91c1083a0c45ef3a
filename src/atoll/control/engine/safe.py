"""The key of what a client keeps on disk, and where its owner's key comes from.

    folder/store.key   the key of its files (privacy/vault.py), 0600; in plain, or sealed by the owner's key

The owner's key, 32 bytes or 64 hexadecimal digits, is never written here. It is the first of these that there
is: what `store.key_command` prints, the file `store.key_file`, $ATOLL_STORE_KEY, the credential
atoll-store-key that systemd hands over. Without any the folder's own key lies beside its files: that keeps
them apart from copies of them, and from nobody who reads the folder.

Files of an earlier version lie in plain: they are sealed before store.key takes its name, and later ones that
are not sealed are refused, as somebody else's.
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...core.errors import ConfigError, ProtocolError, StateError
from ...privacy.hazmat.suite import KEY, suite_of, usable
from ...privacy.private import write_private
from ...privacy.vault import MAGIC, Vault, sealed
from ...wire.files import Files
from ..settings import Client, Store

NAME = "store.key"
VARIABLE = "ATOLL_STORE_KEY"
CREDENTIAL = "atoll-store-key"
_KINDS = ("runs/*.secrets", "runs/*.coins", "runs/*.state", "answers/*")
_ALL = (*_KINDS, "runs/sums", "budgets/*.ledger")
_WAIT = 60  # seconds for a command that prints a key


def opened(settings: Client) -> Vault:
    """The vault of a client's folder, made at its first start.

    Raises ConfigError where the owner's key is missing or no key, StateError where it is another one: nothing
    in the folder is changed then.
    """
    store, folder = settings.store, Path(settings.folder)
    if store.crypto not in usable():
        raise ConfigError(
            f"this installation has no crypto {store.crypto!r}: see atoll doctor", "$.store.crypto"
        )
    owner, path = _owner(store), folder / NAME
    making = path.with_name(f"{NAME}.new")
    found = path if path.exists() else making
    if found.exists():
        key, plain = _read(found, owner)
        if plain and owner:
            _write(found, key, owner, store)
    else:
        _nothing_sealed(folder)
        key = secrets.token_bytes(KEY)
        _write(making, key, owner, store)
    vault = Vault(key, suite_of(store.crypto))
    if not path.exists():
        for plain_file in _files(folder):
            _seal(vault, plain_file)
        for part in (*folder.glob("runs/.*.part"), *folder.glob("answers/*.part")):  # what a kill has left
            part.unlink()
        Files().replace(making, path)
    return vault


def rekeyed(settings: Client, owner: bytes | None) -> None:
    """Seal the folder's key by another key of its owner, or by none; files stay as they are."""
    vault = opened(settings)
    _write(Path(settings.folder) / NAME, vault.key, owner, settings.store)


def _key_of(data: bytes, where: str) -> bytes:
    """A key as its owner hands it over. Raises ConfigError for anything else."""
    text = data.strip()
    if len(text) == 2 * KEY:
        try:
            return bytes.fromhex(text.decode("ascii"))
        except ValueError:
            pass
    if len(data) == KEY:
        return data
    raise ConfigError(
        f"{where} gives no key: expected {KEY} bytes or {2 * KEY} hexadecimal digits, as openssl rand -hex 32"
        f" prints them, got {len(data)} bytes",
        "$.store",
    )


def _owner(store: Store) -> bytes | None:
    if store.key_command:
        return _key_of(_printed(store.key_command), f"the command {shlex.join(store.key_command)}")
    if store.key_file:
        return key_in(Path(store.key_file))
    if given := os.environ.get(VARIABLE, ""):
        return _key_of(given.encode(), f"${VARIABLE}")
    credential = Path(os.environ.get("CREDENTIALS_DIRECTORY", "")) / CREDENTIAL
    return key_in(credential) if credential.is_absolute() and credential.exists() else None


def key_in(path: Path) -> bytes:
    """The key in a file. Raises ConfigError where there is none."""
    try:
        return _key_of(path.read_bytes(), str(path))
    except OSError as error:
        raise ConfigError(f"the key of this client's files cannot be read: {error}", "$.store") from None


def _printed(command: tuple[str, ...]) -> bytes:
    try:
        done = subprocess.run(command, capture_output=True, check=False, timeout=_WAIT)  # noqa: S603  the owner's own
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"{shlex.join(command)} gave no key: {error}", "$.store.key_command") from None
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()[-500:]
        raise ConfigError(
            f"{shlex.join(command)} gave no key, it ended with {done.returncode}: {said}",
            "$.store.key_command",
        )
    return done.stdout


def _read(path: Path, owner: bytes | None) -> tuple[bytes, bool]:
    """The folder's key, and whether it lay there in plain."""
    try:
        found = json.loads(path.read_bytes())
        plain, key = found["crypto"] is None, bytes.fromhex(found["key"])
        suite, salt = None if plain else suite_of(str(found["crypto"])), bytes.fromhex(found["salt"])
    except (OSError, ValueError, KeyError, TypeError, ConfigError) as error:
        raise StateError(f"{path} is damaged ({error}): restore it, all this client keeps needs it") from None
    if suite is None:
        return key, True
    if owner is None:
        raise ConfigError(
            f"{path} is sealed by its owner's key: give it by store.key_file or store.key_command in"
            f" client.toml, ${VARIABLE}, or systemd's credential {CREDENTIAL}",
            "$.store",
        )
    try:
        return suite.unsealed(suite.derived(owner, "atoll store 1", suite.name, salt), key), False
    except ProtocolError:
        raise StateError(
            f"this is not the key that {path} is sealed by: give the right one. Nothing was changed"
        ) from None


def _write(path: Path, key: bytes, owner: bytes | None, store: Store) -> None:
    salt, values = secrets.token_bytes(KEY), dict[str, Any](crypto=None)
    if owner is not None:
        suite = suite_of(store.crypto)
        values["crypto"] = suite.name
        key = suite.sealed(suite.derived(owner, "atoll store 1", suite.name, salt), key)
    write_private(path, json.dumps({**values, "salt": salt.hex(), "key": key.hex()}).encode())


def _files(folder: Path) -> Iterator[Path]:
    for kind in _KINDS:
        yield from (path for path in sorted(folder.glob(kind)) if path.suffix != ".part")


def _nothing_sealed(folder: Path) -> None:
    for path in (path for kind in _ALL for path in folder.glob(kind) if path.suffix != ".part"):
        with path.open("rb") as file:
            if file.read(len(MAGIC)) == MAGIC:
                raise StateError(
                    f"{folder / NAME} is missing, and {path.name} needs it: restore it, or remove the folders"
                    " runs, answers and budgets to begin anew"
                )


def _seal(vault: Vault, path: Path) -> None:
    """Seal a file that lies there in plain."""
    data = path.read_bytes()
    if not sealed(data):
        vault.write(path, data)
