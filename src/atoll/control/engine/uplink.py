"""A member's way up, the same for clients and edges: who it is, its parent, what it brings and fetches.

    folder/identity/   key, certificate, pinned root        made once, by a token
    folder/models/     the newest models it was asked to work with, by blob name
    folder/answers/    answers on their way: made once, sent until there is a receipt

An answer is on disk before the first byte of it leaves, so a member that is killed sends the rest of
it and trains nothing twice.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from importlib.metadata import version
from itertools import count, islice
from pathlib import Path
from typing import Any, TypeAlias, TypeVar
from urllib.parse import urlsplit

from ...core.errors import (
    AtollError,
    CodecError,
    ConfigError,
    Gone,
    IntegrityError,
    ProtocolError,
    Refused,
    StateError,
)
from ...learn.failure import reason
from ...privacy.keys import Current, Identity
from ...privacy.private import write_private
from ...privacy.token import Token
from ...privacy.vault import Vault
from ...transport.dial import Dial, Patience
from ...transport.frames import FrameFile, plain
from ...wire.failpoint import declare, hit
from ..settings import PLAIN, Client, Edge, authorities, login
from .outside import Outside
from .spoken import Spoiled

log = logging.getLogger("atoll.member")
_ASKED, _FETCHED = declare("uplink.asked"), declare("uplink.fetched")
_KEPT = declare("uplink.kept.before"), declare("uplink.kept.after")
USED = "token.sha256"  # beside an identity: of the token it was made by
_UPLOADED = declare("uplink.uploaded")
_FORGOTTEN = declare("uplink.forgotten.before"), declare("uplink.forgotten.after")
KEPT = 2  # models kept on disk
NAMED = 4  # of these, as those that a delta may start from
RENEW = 60.0  # seconds between two looks at the certificate's age, less for one that is good for minutes

T = TypeVar("T")
OnAsk: TypeAlias = Callable[[str, Mapping[str, Any], Path], Awaitable[None]]
OnLetter: TypeAlias = Callable[[str, Mapping[str, Any]], Awaitable[None]]
OnOver: TypeAlias = Callable[[str], Awaitable[None]]


def _age(path: Path) -> int:
    return path.stat().st_mtime_ns


async def _nothing(_ask: str) -> None:
    pass


class Uplink:
    """Joins a parent, takes asks, brings answers. `run` until it is refused for good or closed.

    `about()`: what the parent may know. `on_ask(ask, head, path)`: writes the answer to an ask as a file of
    frames. `on_letter`: every other letter. `on_over(ask)`: nobody waits for this ask's answer any more.
    `keep`: models that stay on disk. `restore`: as Dial's. `vault`: what seals answers, None for an edge's.
    """

    def __init__(
        self,
        settings: Client | Edge,
        about: Callable[[], Mapping[str, Any]],
        on_ask: OnAsk,
        on_letter: OnLetter,
        on_over: OnOver = _nothing,
        outside: Outside | None = None,
        restore: Callable[[Path, Path, Path], Awaitable[None]] | None = None,
        vault: Vault | None = None,
    ) -> None:
        self.outside = outside or Outside()
        self._read = plain if vault is None else vault.opened
        self._restore = restore
        self.settings = settings
        self.folder = Path(settings.folder)
        self.current: Current | None = None
        self.state = "starting"
        self.on_open: Callable[[], None] = lambda: None
        self._about = about
        self._on_ask = on_ask
        self._on_letter = on_letter
        self._on_over = on_over
        self._asks: dict[str, asyncio.Task[bool]] = {}
        self.keep = KEPT
        self._again: dict[str, Mapping[str, Any]] = {}  # letters of asks we were at already
        self._others: set[asyncio.Task[None]] = set()
        self.dial: Dial | None = None

    @property
    def identity(self) -> Identity:
        """Who we are, with the newest certificate."""
        if self.current is None:
            raise ConfigError("this member has not joined yet")
        return self.current()

    async def join(self) -> None:
        """Take up the identity on disk, or enrol with the token; waits for a parent that is not there yet.

        A token that is not the one of that identity is tried once: one that was revoked enrols so.
        Raises ConfigError without either, Refused where a parent says no for good, and what the first
        URL's answer was where none is a parent's.
        """
        place = self.folder / "identity"
        if not (place / "cert.pem").exists():
            if not self.settings.token or not self.settings.join:
                raise ConfigError("a member's first start needs a URL and a token: --join URL --token TOKEN")
            await self._enrol(place, Token.parse(self.settings.token))
        elif self.settings.token and self.settings.join:
            await self._enrol_anew(place, Token.parse(self.settings.token))
        self.current = Current(place)
        if self.settings.name not in {"", mine := self.identity.member.name}:
            raise ConfigError(
                f"{place} is {mine}'s, and the settings name {self.settings.name}: each member needs a folder"
                " of its own (--folder)"
            )

    async def _enrol_anew(self, place: Path, token: Token) -> None:
        used = place / USED
        if used.exists() and used.read_text("ascii").strip() == token.digest:
            return
        name = Current(place)().member.name  # a folder stays its member's
        for url in self.settings.join:
            try:
                await self._ask_in(url, place, token, name)
            except AtollError as error:
                log.warning("the new token was not taken: %s; going on as before", error)
            else:
                return

    async def _ask_in(self, url: str, place: Path, token: Token, name: str) -> None:
        from ...transport.enrol import enrol

        edge = isinstance(self.settings, Edge)
        await enrol(
            url,
            token,
            folder=place,
            role="edge" if edge else "client",
            name=name,
            hosts=self.settings.names if isinstance(self.settings, Edge) else (),
            proxy=self.settings.proxy or None,
            ca=authorities(self.settings),
            user=login(self.settings),
            now=time.time(),
        )
        write_private(place / USED, token.digest.encode())
        log.info("enrolled at %s", url)

    async def _enrol(self, place: Path, token: Token) -> None:
        wrong = dict[str, AtollError]()
        for tries in count():
            url = self.settings.join[tries % len(self.settings.join)]
            try:
                await self._ask_in(url, place, token, self.settings.name)
            except Refused:
                raise
            except AtollError as error:
                wrong.pop(url, None)
                if not isinstance(error, Gone):
                    wrong[url] = error
                if wrong.keys() >= set(self.settings.join):
                    raise wrong[self.settings.join[0]] from None
                log.warning("%s; trying again", error)
                await asyncio.sleep(min(3.0, 0.25 * 2 ** min(tries, 6)))
            else:
                return

    async def run(self) -> None:
        """Stay joined. Raises Refused or ProtocolError where every parent refuses for good."""
        (self.folder / "models").mkdir(parents=True, exist_ok=True)
        (self.folder / "answers").mkdir(parents=True, exist_ok=True)
        urls = self.settings.join or self.identity.urls
        plain = [url for url in urls if urlsplit(url).scheme in PLAIN]
        if plain and not self.settings.insecure:
            raise ConfigError(f"{plain[0]} has no TLS: write https://, or insecure = true", "$.join")
        assert self.current is not None  # noqa: S101  identity has been read above
        if self.identity.renew_due(time.time()):  # it may have been away for long
            await self._renewed(urls)
        renewing = asyncio.get_running_loop().create_task(self._renew(urls))
        try:
            while not await self._joined(urls):
                pass
        finally:
            renewing.cancel()
            self._again.clear()
            for task in (*self._asks.values(), *self._others):
                task.cancel()

    async def _joined(self, urls: tuple[str, ...]) -> bool:
        """Stay until we leave. False where a certificate had run out under us, and there is a new one."""
        assert self.current is not None  # noqa: S101  see run
        self.dial = Dial(
            urls,
            self.outside.link(self.current, self.settings),
            lambda: {"about": {"version": version("atoll-fl"), **self._about()}},
            on_letter=self._letter,
            on_open=self._opened,
            on_lost=self._lost,
            idle=lambda: not self._asks,
            patience=Patience(home=self.settings.home),
            draw=self.outside.draw(),
            clock=asyncio.get_running_loop().time,
            restore=self._restore,
        )
        ended = self.identity.member.until
        try:
            await self.dial.run()
        except (Refused, ProtocolError):
            if time.time() < ended or not (self.identity.member.until > ended or await self._renewed(urls)):
                raise
            return False
        return True

    @property
    def asks(self) -> list[str]:
        """What we are at now."""
        return list(self._asks)

    def busy(self, ask: str) -> bool:
        """Whether we are at this ask now."""
        return ask in self._asks

    async def close(self) -> None:
        """Say goodbye."""
        if self.dial is not None:
            await self.dial.close()

    def beside(self, job: Coroutine[Any, Any, None]) -> None:
        """Run it beside everything else, until it ends or the member does."""
        task = asyncio.get_running_loop().create_task(job)
        self._others.add(task)
        task.add_done_callback(self._others.discard)

    def send(self, kind: str, head: Mapping[str, Any]) -> None:
        """A letter to the parent."""
        if self.dial is not None:
            self.dial.send(kind, head)

    async def _opened(self, welcome: Mapping[str, Any], fresh: bool) -> None:  # noqa: FBT001  dial's contract
        self.state = "connected"
        self.on_open()

    async def _lost(self, reason: str) -> None:
        self.state = f"away: {reason}"

    async def _renew(self, urls: tuple[str, ...]) -> None:
        """A new certificate at half of the old one's life; a failure is tried again."""
        while True:
            mine = self.identity
            await asyncio.sleep(min(RENEW, (mine.member.until - mine.since) / 8))
            if self.identity.renew_due(time.time()) and await self._renewed(urls) and self.dial is not None:
                await self.dial.again()  # the connection that stands goes by the old one

    async def _renewed(self, urls: tuple[str, ...]) -> bool:
        """Whether one of our parents gave us a new certificate."""
        from ...transport.enrol import renew

        proxy, ca, user = self.settings.proxy or None, authorities(self.settings), login(self.settings)
        for url in urls:
            try:
                await renew(url, self.identity, proxy=proxy, ca=ca, user=user, now=time.time())
            except AtollError as error:
                log.warning("the certificate was not renewed: %s", error)
            else:
                return True
        return False

    # -- letters ----------------------------------------------------------------------------

    async def _letter(self, kind: str, head: Mapping[str, Any]) -> None:
        match kind:
            case "ask":
                ask = str(head.get("ask", ""))
                if ask in self._asks:
                    self._again[ask] = head
                else:
                    self._begin(ask, head)
            case "cancel":
                ask = str(head.get("ask", ""))
                self._again.pop(ask, None)
                if ask in self._asks:
                    self._asks[ask].cancel()
                await self._forget(ask)
            case _:
                await self._on_letter(kind, head)

    def _begin(self, ask: str, head: Mapping[str, Any]) -> None:
        task = asyncio.get_running_loop().create_task(self._answer(ask, head))
        self._asks[ask] = task
        task.add_done_callback(lambda task: self._ended(ask, head, task))

    def _ended(self, ask: str, head: Mapping[str, Any], task: asyncio.Task[bool]) -> None:
        """Try anew what was cancelled and then asked, or failed and was asked by another life since."""
        del self._asks[ask]
        again = self._again.pop(ask, None)
        if again is None:
            return
        if task.cancelled() or (not task.result() and again.get("life") != head.get("life")):
            self._begin(ask, again)

    async def _answer(self, ask: str, head: Mapping[str, Any]) -> bool:
        """From an ask to its receipt: True; whatever goes wrong is said to the parent, never silence.

        A parent that was restored from a backup refuses what it has not asked yet, and then asks it: so a
        failure is told to the life that asked.
        """
        wrong = await self._tried(ask, head)
        if wrong:
            self.send("refuse", {"ask": ask, "reason": wrong[-60_000:], "life": head.get("life", "")})
        await self._forget(ask)
        return not wrong

    async def _tried(self, ask: str, head: Mapping[str, Any]) -> str:
        """Why it failed; "" once there is a receipt."""
        try:
            path = self._answer_path(ask)
            hit(_ASKED)
            fresh = not (path.exists() and await self._whole(path))
            if fresh:
                hit(_KEPT[0])
                await self._on_ask(ask, head, path)
                hit(_KEPT[1])
            assert self.dial is not None  # noqa: S101  asks come through it
            name = f"{ask}.{self.identity.member.name}"
            await self.dial.upload(name, path, fresh=fresh, opened=self._read)
            hit(_UPLOADED)
        except Refused as error:
            log.info("%s: %s", ask, error)
            return str(error) or "refused"
        except Exception as error:  # noqa: BLE001  a bug reaches the operator with its traceback
            text = reason(error)
            log.warning("%s: %s", ask, text)
            return text
        return ""

    async def _whole(self, path: Path) -> bool:
        """Whether an answer of an earlier try is there; one that a power cut spoiled is made again."""

        def sound() -> bool:
            try:
                FrameFile.of(path, self._read).verify()
            except (FileNotFoundError, StateError, CodecError, IntegrityError):
                path.unlink(missing_ok=True)
                return False
            return True

        return await asyncio.to_thread(sound)

    @property
    def rate(self) -> float:
        """Bytes a second of the link; see Dial."""
        return self.dial.rate if self.dial is not None else 0.0

    async def using(self, blob: str, use: Callable[[Path, bool], Awaitable[T]]) -> T:
        """What `use(file, sound)` makes of a blob, fetched unless it is here. `sound`: it was verified now.

        Where `use` says that the file is Spoiled, it is fetched again.
        """
        here = self.model_path(blob).exists()
        path = await self.fetch(blob)
        try:
            return await use(path, not here)
        except Spoiled:
            path.unlink(missing_ok=True)
        return await use(await self.fetch(blob), True)

    async def fetch(self, blob: str) -> Path:
        """A blob's file; older ones go."""
        path = self.model_path(blob)
        if path.exists():
            path.touch()  # in use: others are older
        else:
            assert self.dial is not None  # noqa: S101  asks come through it
            await self.dial.download(blob, path, dict(islice(self.models(blob).items(), NAMED)))
            hit(_FETCHED)
            others = [other for other in path.parent.iterdir() if other != path]  # a clock may be set back
            for old in sorted(others, key=_age)[: 1 - self.keep]:  # now: another fetch may have ended
                old.unlink(missing_ok=True)
        return path

    def models(self, blob: str) -> dict[str, Path]:
        """The files of models that are here, but for this one, by their names; those used last come first."""
        folder = self.model_path(blob).parent
        found = [path for path in folder.iterdir() if len(path.name) == 64 and path.name != blob]
        return {path.name: path for path in sorted(found, key=_age, reverse=True)}

    def model_path(self, blob: str) -> Path:
        """Where a blob's file is, or would be. Raises ProtocolError for what is no blob's name."""
        if len(blob) != 64 or not set(blob) <= set("0123456789abcdef"):
            raise ProtocolError("a blob's name is 64 hexadecimal digits")
        return self.folder / "models" / blob

    def _answer_path(self, ask: str) -> Path:
        return self.folder / "answers" / hashlib.sha256(ask.encode()).hexdigest()

    async def _forget(self, ask: str) -> None:
        hit(_FORGOTTEN[0])
        self._answer_path(ask).unlink(missing_ok=True)
        hit(_FORGOTTEN[1])
        await self._on_over(ask)
