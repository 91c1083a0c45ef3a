"""Enrolment where somebody reads along: the secret is for the token's federation, and for one request."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from atoll.core.errors import IntegrityError, PrivacyError, ProtocolError
from atoll.privacy.keys import new_key, request
from atoll.transport.enrol import enrol
from atoll.transport.entry import routes
from atoll.transport.letterbox import Letterbox, sealed
from tests.wire.pki import NOW, member
from tests.wire.test_enrol import HUB, IMPOSTOR, OTHER, OURS, Hub

SECRET = bytes(range(32))
NONCE = "ab" * 16
CSR = request(new_key(), "any", "client", "any", ())


@pytest.mark.parametrize("scheme", ["https+sealed", "https"], ids=["sealed", "control"])
def test_who_reads_along_sees_the_secret_only_where_it_is_not_sealed(tmp_path: Path, scheme: str) -> None:
    async def main() -> None:
        hub = Hub()
        doors = routes(hub.registrar, urls=(), clock=hub.clock, identity=lambda: HUB)
        async with hub.open(HUB, *doors):
            token = hub.token()
            ca = tmp_path / "ca.pem"
            ca.write_bytes(OURS.root)
            url = f"{scheme}{hub.url.removeprefix('https')}"
            made = await enrol(url, token, folder=tmp_path, proxy="", ca=ca, now=NOW)
        assert made.member.name == "bank-a"
        bodies = b"".join(body for _, body in hub.heard)
        assert (token.secret.hex().encode() in bodies) == (scheme == "https")

    asyncio.run(main())


def test_another_federation_is_told_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        ours, theirs = Hub(), Hub(OTHER)
        doors = routes(theirs.registrar, urls=(), clock=theirs.clock, identity=lambda: IMPOSTOR)
        async with theirs.open(IMPOSTOR, *doors):
            ca = tmp_path / "ca.pem"
            ca.write_bytes(OTHER.root)
            url = f"https+sealed{theirs.url.removeprefix('https')}"
            with pytest.raises(PrivacyError, match="Nothing was sent"):
                await enrol(url, ours.token(), folder=tmp_path, proxy="", ca=ca, now=NOW)
        assert [path for path, _ in theirs.heard] == ["/v1/root"]

    asyncio.run(main())


def box(who: Any = HUB) -> tuple[Letterbox, dict[str, str]]:
    made = Letterbox(lambda: who)
    return made, made.shown({"nonce": NONCE})


def test_it_opens_for_the_server_that_showed_the_key_and_for_this_request() -> None:
    letterbox, shown = box()
    body = sealed(shown, NONCE, OURS.root, SECRET, CSR, now=NOW)
    assert letterbox.opened(body) == SECRET
    other = request(new_key(), "any", "client", "any", ()).decode()
    for changed in ({"csr": other}, {"box": "AAAA"}, {"key": shown["key"]}, {"box": 5}):
        with pytest.raises(ProtocolError):
            letterbox.opened({**body, **changed})
    with pytest.raises(ProtocolError):
        box()[0].opened(body)


@pytest.mark.parametrize(
    ("who", "change", "error"),
    [
        (HUB, {"signature": "AAAA"}, IntegrityError),
        (HUB, {"key": "A" * 43 + "="}, IntegrityError),
        (HUB, {"chain": "nothing"}, ProtocolError),
        (HUB, {"key": None}, ProtocolError),
        (IMPOSTOR, {}, ProtocolError),
        (member(OURS, "client", "ann"), {}, ProtocolError),
    ],
)
def test_a_key_that_no_server_of_it_showed_gets_no_secret(who: Any, change: Any, error: Any) -> None:
    shown = {**box(who)[1], **change}
    with pytest.raises(error):
        sealed(shown, NONCE, OURS.root, SECRET, CSR, now=NOW)
    with pytest.raises(IntegrityError):
        sealed(box()[1], "cd" * 16, OURS.root, SECRET, CSR, now=NOW)


def test_strange_questions_get_no_key() -> None:
    for asked in ({}, {"nonce": 5}, {"nonce": "x"}):
        with pytest.raises(ProtocolError):
            box()[0].shown(asked)
