"""What a member does with asks that its parent takes back, in a life restored from a backup."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

import pytest

from atoll.control.engine.outside import Outside
from atoll.control.engine.uplink import Uplink
from atoll.control.settings import Client
from atoll.core.errors import AtollError, PrivacyError, ProtocolError, Refused
from atoll.privacy.keys import Authority
from atoll.privacy.token import Token
from atoll.transport.conformance import Desk, message
from atoll.transport.service import Limits, Service
from tests.wire.pki import NOW, member
from tests.wire.test_dial import Net, blob_file

LAB = Authority.new("lab", now=NOW)
ASK = "r0001.main.4"


def asked(blob: str, life: str) -> dict[str, Any]:
    return {"ask": ASK, "params": blob, "life": life}


class Restored(Desk):
    """It knows no blob until somebody has asked for one; then it asks for the same again."""

    def __init__(self, folder: Path, asks: int) -> None:
        super().__init__(folder)
        self.asks = asks
        self.service = Service(self, Limits(takeover=0.1))
        frames, _, self.name = message(3)
        self.known = blob_file(folder, frames)

    def blob(self, name: str, blob: str) -> Path | None:
        found = super().blob(name, blob)
        if found is None and self.asks:
            self.asks -= 1
            self.service.send(name, "ask", asked(blob, "restored"))
            self.blobs[blob] = self.known
        return found


@pytest.mark.parametrize("asks", [0, 1])
def test_what_is_asked_again_is_tried_again(tmp_path: Path, asks: int) -> None:
    """With `asks` = 0 nobody asks again: the control, and what a parent hears of any other failure."""

    async def answer(up: Uplink, head: Mapping[str, Any], to: Path) -> None:
        async def use(model: Path, _: bool) -> None:
            await asyncio.to_thread(shutil.copyfile, model, to)

        await up.using(str(head["params"]), use)

    async def run() -> list[tuple[Any, ...]]:
        net = Net()
        desk = Restored(tmp_path, asks)
        desk.expects[f"{ASK}.ann"] = 1 << 20
        net.services["https://hub"] = service = desk.service
        await service.start()
        member(LAB, "client", "ann").save(tmp_path / "ann" / "identity")
        outside = Outside(link=lambda *_: net.make, draw=lambda: Random(0))  # type: ignore[arg-type, return-value]
        settings = Client(folder=str(tmp_path / "ann"), name="ann", join=("https://hub",))
        up: Uplink = Uplink(
            settings,
            dict,
            lambda _, head, to: answer(up, head, to),
            lambda *_: asyncio.sleep(0),
            outside=outside,
        )
        await up.join()
        running = asyncio.ensure_future(up.run())
        await desk.until(lambda told: ("present", "ann") in told)
        service.send("ann", "ask", asked(desk.name, "first"))
        last = "uploaded" if asks else "letter"
        await desk.until(lambda told: any(what[0] == last for what in told))
        await up.close()
        await asyncio.wait([running])
        await service.close()
        return desk.told

    told = asyncio.run(run())
    refused = [(what[3]["life"], what[3]["reason"]) for what in told if what[2:3] == ("refuse",)]
    assert set(refused) <= {("first", "there is no such blob for this member")}
    assert asks or refused
    assert [what for what in told if what[0] == "uploaded"] == [("uploaded", "ann", f"{ASK}.ann")] * asks


def test_a_url_that_is_no_parents_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: dict[str, AtollError | None] = {"https://a": ProtocolError("another service"), "https://b": None}
    asked: list[str] = []

    async def enrol(url: str, *_: Any, **__: Any) -> None:
        asked.append(url)
        if (error := said[url]) is not None:
            raise error

    async def nothing(*_: Any) -> None:
        pass

    monkeypatch.setattr("atoll.transport.enrol.enrol", enrol)
    monkeypatch.setattr("asyncio.sleep", nothing)
    settings = Client(join=("https://a", "https://b"), name="bank-a")
    up = Uplink(settings, dict, nothing, nothing)
    token = Token("a" * 64, b"x" * 32)
    asyncio.run(up._enrol(tmp_path, token))
    assert asked == ["https://a", "https://b"]
    said["https://b"] = PrivacyError("not ours")
    with pytest.raises(ProtocolError, match="another service"):  # nobody else is left
        asyncio.run(up._enrol(tmp_path, token))
    said["https://a"] = Refused("this token was used")
    with pytest.raises(Refused):
        asyncio.run(up._enrol(tmp_path, token))
