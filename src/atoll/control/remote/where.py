"""Where a federation's API is and by which token: given, in the environment, or in a file of its owner's.

    --url, --token     else    $ATOLL_URL, $ATOLL_TOKEN     else    operator.json

operator.json ({"url": ..., "token": ...}, mode 0600) is looked for in the current folder, in the one
`atoll up` uses, and in the configuration folder of the user. In a coordinator's own folder, admin.json
of its first start does as well.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from ...core.errors import ConfigError, PrivacyError, StateError
from ...privacy.private import write_private

FILE = "operator.json"
FIRST = "admin.json"  # what a coordinator writes at its first start
UP = "federation"  # the folder of `atoll up`


class Where(NamedTuple):
    """`url` of the API and the bearer `token`, as text."""

    url: str
    token: str


def where(url: str | None = None, token: str | None = None, env: Mapping[str, str] = os.environ) -> Where:
    """The URL and token to use. Raises ConfigError where there are none, PrivacyError for an open file."""
    url, token = url or env.get("ATOLL_URL"), token or env.get("ATOLL_TOKEN")
    if url and token:
        return Where(url, token)
    for path in places(env):
        if path.is_file():
            kept = read(path)
            if url in (None, kept.url):
                return Where(kept.url, token or kept.token)
    missing = "token (--token, or $ATOLL_TOKEN)" if url else "URL of the API (--url, or $ATOLL_URL)"
    raise ConfigError(f"give the {missing}, or both in {FILE}; a coordinator's first start writes {FIRST}")


def places(env: Mapping[str, str] = os.environ) -> tuple[Path, ...]:
    """Where operator.json is looked for, in order."""
    home = env.get("XDG_CONFIG_HOME") or Path(env.get("HOME", "~")).expanduser() / ".config"
    return Path(FILE), Path(FIRST), Path(UP, FILE), Path(home, "atoll", FILE)


def read(path: Path) -> Where:
    """The URL and token of a file. Raises PrivacyError where others may read it, StateError for nonsense."""
    if os.name == "posix" and path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise PrivacyError(f"others can read the token in {path}: chmod 600 {path}, and make a new token")
    try:
        found = json.loads(path.read_text("utf-8"))
        return Where(str(found["url"]), str(found["token"]))
    except (OSError, ValueError, KeyError, TypeError):
        raise StateError(f'{path} is damaged: expected {{"url": ..., "token": ...}}') from None


def write(path: Path, found: Where) -> None:
    """Keep them in a file that only its owner can read, from its first byte."""
    write_private(path, f"{json.dumps(found._asdict(), indent=2)}\n".encode())
