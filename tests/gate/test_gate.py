"""The gate's process: it looks at answers one by one, and dies of them alone."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atoll.control.gate.gate import COMMAND, Gate
from atoll.core.errors import ProtocolError, StateError
from atoll.core.metrics import Mean
from atoll.wire import wire_pb2 as pb
from atoll.wire.body import answer_message, answer_of
from tests.gate.answers import CLIENTS, ROUNDS, RUN, Round, forged, opened, spool
from tests.gate.faulty_worker import BOMB, HANG, KILL, LEAK, NONSENSE, SLOW, WRITE
from tests.laws.test_body import same

FAULTY = (sys.executable, str(Path(__file__).with_name("faulty_worker.py")))


def run(body: Callable[[Gate], Awaitable[Any]], **more: Any) -> Any:
    """Run the body with a gate, which is closed after it."""

    async def whole() -> Any:
        gate = Gate(**more)
        try:
            return await body(gate)
        finally:
            await gate.close()

    return asyncio.run(whole())


async def outcome(waiting: Awaitable[Any]) -> str:
    """Nothing for an answer let in, else the reason."""
    try:
        await waiting
    except ProtocolError as error:
        return str(error)
    return ""


def test_answers_of_every_form_come_through_one_process(tmp_path) -> None:
    rounds = [Round(**kind) for kind in ROUNDS.values()]

    async def body(gate: Gate) -> None:
        heads = [(r, spool(r.message(), tmp_path / str(i)), tmp_path / str(i)) for i, r in enumerate(rounds)]
        every = await asyncio.gather(*(gate.check(r.want(), head, path) for r, head, path in heads))
        for (r, _, path), checked in zip(heads, every, strict=True):
            assert same(answer_of(checked, path)) == same(r.answer())
        assert gate.started == 1

    run(body)


def test_a_refusal_names_the_member_and_the_reason(tmp_path) -> None:
    asked = Round()
    said = opened(asked.message())
    said.replies[2].weight = -1.0
    head = spool(forged(asked.message(), said), tmp_path / "b")
    reason = run(lambda gate: outcome(gate.check(asked.want(), head, tmp_path / "b")))
    assert reason == (
        "the answer of bank-a to request 4 is refused: client 3's weight is not a number from 0 to 64"
    )


def deep(levels: int) -> bytes:
    """A head whose one value is a list in a list in a list ..."""
    inner = b""
    for _ in range(levels):
        inner = (
            b"\x32" + varint(len(inner) + 1 + len(varint(len(inner)))) + b"\x0a" + varint(len(inner)) + inner
        )
    entry = b"\x0a\x01x\x12" + varint(len(inner)) + inner
    return b"\x0a\x06answer\x12" + varint(len(entry)) + entry


def varint(n: int) -> bytes:
    out = b""
    while n > 127:
        out, n = out + bytes([n & 127 | 128]), n >> 7
    return out + bytes([n])


def wide(items: int) -> bytes:
    """A head with a list of that many empty values, two bytes each."""
    inner = b"\x32" + varint(2 * items) + b"\x0a\x00" * items
    entry = b"\x0a\x01x\x12" + varint(len(inner)) + inner
    return b"\x0a\x06answer\x12" + varint(len(entry)) + entry


def sealed(head: bytes) -> bytes:
    """With the hash of an empty buffer."""
    return head + b"\x32\x20" + sha256().digest()


def huge(shape: list[int], dtype: int = pb.F4, size: int = 0) -> bytes:
    head = pb.Head(kind="answer", size=size, sha256=sha256().digest())
    head.arrays.append(pb.Array(name="0", dtype=dtype, shape=shape))
    return head.SerializeToString(deterministic=True)


BOMBS = {
    "deep": sealed(deep(2000)),
    "as deep as protobuf goes": sealed(deep(45)),
    "wide": sealed(wide(500_000)),
    "many arrays": sealed(b"\x0a\x06answer" + b"\x1a\x00" * 500_000),
    "huge": huge([1 << 60]),
    "huge together": huge([1 << 32, 1 << 32]),
    "huge and 0": huge([1 << 60, 0]),
    "many dimensions": huge([1] * 50_000),
    "size without arrays": pb.Head(kind="answer", size=1 << 40, sha256=bytes(32)).SerializeToString(),
    "no such type": huge([4], 77, 64),
    "not utf-8": sealed(b"\x0a\x06answ\xff\xfe"),
    "unknown field": sealed(b"\x0a\x06answer\x7a\x04abcd"),
    "longer than it needs": b"\x0a\x86\x00answer\x32\x20" + sha256().digest(),
    "no hash": b"\x0a\x06answer",
    "empty": b"",
    "noise": bytes(range(256)) * 16,
}


def test_bombs_are_refused_and_the_process_lives(tmp_path) -> None:
    asked = Round()
    (tmp_path / "empty").touch()
    honest = spool(asked.message(), tmp_path / "honest")

    async def body(gate: Gate) -> dict[str, str]:
        reasons = {}
        for name, head in BOMBS.items():
            reasons[name] = await outcome(gate.check(asked.want(), head, tmp_path / "empty"))
        assert await outcome(gate.check(asked.want(), honest, tmp_path / "honest")) == ""
        assert gate.started == 1
        return reasons

    reasons = run(body)
    assert [name for name, reason in reasons.items() if not reason] == []
    assert "values, 2 deep" in reasons["wide"]
    assert "dimensions" in reasons["huge"]


def test_a_bomb_among_the_plain_values_is_refused_and_the_process_lives(tmp_path) -> None:
    """As large as plain values may be at all, made of the smallest there are."""
    asked = Round()
    items = (asked.want().text - 200) // 2
    inner = sealed(wide(items).replace(b"\x0a\x06answer", b"\x0a\x06values", 1))
    message = forged(asked.message(), values=np.frombuffer(inner, np.uint8))
    head = spool(message, tmp_path / "b")

    async def body(gate: Gate) -> None:
        assert "plain values" in await outcome(gate.check(asked.want(), head, tmp_path / "b"))
        assert gate.started == 1

    run(body)


def test_control_such_a_head_is_small_and_its_contents_are_not() -> None:
    """1 MB of head is half a million values: read by a server itself, they are its memory."""
    assert len(BOMBS["wide"]) < 1 << 20
    head = pb.Head.FromString(BOMBS["wide"])
    assert len(head.values[0].value.list.items) == 500_000


def test_an_answer_longer_or_shorter_than_its_head_says_is_refused(tmp_path) -> None:
    asked = Round()
    head = spool(asked.message(), tmp_path / "b")
    data = (tmp_path / "b").read_bytes()

    async def body(gate: Gate) -> None:
        for size in (0, 64, len(data) - 64, len(data) - 1, len(data) + 1):
            (tmp_path / "c").write_bytes((data + b"\x00")[:size])
            assert "announces" in await outcome(gate.check(asked.want(), head, tmp_path / "c"))
        gap = asked.message().arrays["values"].size  # where the padding of the first section begins
        (tmp_path / "c").write_bytes(data[:gap] + b"\x01" + data[gap + 1 :])
        assert "zeros between" in await outcome(gate.check(asked.want(), head, tmp_path / "c"))
        with pytest.raises(StateError, match="not on the disk"):
            await gate.check(asked.want(), head, tmp_path / "gone")

    run(body)


def test_an_answer_of_another_size_than_the_model_is_refused_by_its_head(tmp_path) -> None:
    asked, larger = Round(), Round(n=400_000)
    head = spool(larger.message(CLIENTS[:1]), tmp_path / "b")
    assert (tmp_path / "b").stat().st_size > asked.want().size
    reason = run(lambda gate: outcome(gate.check(asked.want(), head, tmp_path / "b")))
    assert "numbers" in reason or "bytes" in reason


def faulty(asked: Round, request: int, path: Path) -> Any:
    """An honest answer to a request that the faulty worker stumbles over."""
    message = answer_message(asked.answer(), run=RUN, request=request)
    return asked.want(request=request), spool(message, path), path


def test_a_memory_bomb_is_refused_within_the_limit(tmp_path) -> None:
    asked = Round()

    async def body(gate: Gate) -> None:
        want, head, path = faulty(asked, BOMB, tmp_path / "b")
        assert "more memory" in await outcome(gate.check(want, head, path))
        want, head, path = faulty(asked, 7, tmp_path / "c")
        assert await outcome(gate.check(want, head, path)) == ""
        assert gate.started == 1

    if not Path("/proc/self/statm").exists():
        pytest.skip("this system has no limit of address space to test")
    run(body, command=FAULTY)


def test_control_without_the_limit_the_bomb_goes_off() -> None:
    code = "held = [bytearray(64 << 20) for _ in range(8)]; print(sum(map(len, held)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == 512 << 20


@pytest.mark.parametrize("fault", [KILL, NONSENSE, HANG], ids=["kill", "nonsense", "hang"])
def test_what_ends_the_process_twice_is_quarantined_and_others_do_not_suffer(fault: int, tmp_path) -> None:
    asked, kept = Round(), tmp_path / "kept"
    bad = faulty(asked, fault, tmp_path / "bad")
    good = [faulty(asked, 7 + i, tmp_path / f"good{i}") for i in range(6)]

    async def body(gate: Gate) -> None:
        order = [*good[:3], bad, *good[3:]]
        reasons = await asyncio.gather(*(outcome(gate.check(*one)) for one in order))
        assert reasons[:3] + reasons[4:] == [""] * 6
        assert "bank-a" in reasons[3]
        assert "twice it ended the process" in reasons[3]
        assert (gate.started, gate.struck) == (3, 2)
        assert await outcome(gate.check(*good[0])) == ""
        assert gate.started == 3

    run(body, command=FAULTY, kept=kept, patience=2.0)
    name = f"bank-a-{fault}-{sha256(bad[1]).hexdigest()[:16]}"
    assert sorted(p.name for p in kept.iterdir()) == [name, f"{name}.head"]
    assert (kept / name).read_bytes() == bad[2].read_bytes()
    assert (kept / f"{name}.head").read_bytes() == bad[1]


def test_few_are_kept(tmp_path) -> None:
    asked, kept = Round(), tmp_path / "kept"
    kept.mkdir()
    for i in range(16):
        (kept / f"{i}.head").touch()
    bad = faulty(asked, KILL, tmp_path / "bad")
    reason = run(lambda gate: outcome(gate.check(*bad)), command=FAULTY, kept=kept)
    assert "quarantine" in reason
    assert len(list(kept.iterdir())) == 16


def test_a_long_look_with_signs_of_life_is_no_hang(tmp_path) -> None:
    slow = faulty(Round(), SLOW, tmp_path / "b")
    assert run(lambda gate: outcome(gate.check(*slow)), command=FAULTY, patience=1.5) == ""


def test_the_process_can_write_no_file(tmp_path) -> None:
    case = faulty(Round(), WRITE, tmp_path / "b")
    assert "cannot write" in run(lambda gate: outcome(gate.check(*case)), command=FAULTY)
    assert not (tmp_path / "written").exists() or not (tmp_path / "written").stat().st_size


def test_a_larger_answer_gets_a_larger_process(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("atoll.control.gate.gate._ROOM", 32 << 20)
    small, large = Round(), Round(n=2_000_000)
    heads = []
    for name, r in (("small", small), ("large", large)):
        heads.append((r, spool(r.message(CLIENTS[:1]), tmp_path / name), tmp_path / name))

    async def body(gate: Gate) -> None:
        first, second = (gate.check(r.want(), head, path) for r, head, path in heads)
        await first
        await second
        assert gate.started == 2
        assert await outcome(gate.check(heads[0][0].want(), *heads[0][1:])) == ""
        assert gate.started == 2

    run(body)


def test_a_process_that_leaks_is_replaced_between_two_answers(tmp_path) -> None:
    one = faulty(Round(), LEAK, tmp_path / "b")

    async def body(gate: Gate) -> None:
        reasons = await asyncio.gather(*(outcome(gate.check(*one)) for _ in range(12)))
        assert reasons == [""] * 12
        assert gate.started > 2

    if not Path("/proc/self/statm").exists():
        pytest.skip("this system does not say how much a process holds")
    run(body, command=FAULTY)


def test_one_who_stops_waiting_does_not_hold_up_the_others(tmp_path) -> None:
    asked = Round()
    ones = [faulty(asked, i, tmp_path / str(i)) for i in range(3)]

    async def body(gate: Gate) -> None:
        tasks = [asyncio.ensure_future(gate.check(*one)) for one in ones]
        await asyncio.wait(tasks[:1], timeout=0)
        tasks[1].cancel()
        done = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(done[1], asyncio.CancelledError)
        assert not isinstance(done[0], BaseException)
        assert not isinstance(done[2], BaseException)

    run(body)


@pytest.mark.parametrize(
    ("command", "match"),
    [
        ((sys.executable, "-c", "raise SystemExit('no such module')"), "does not start: no such module"),
        ((sys.executable, "-c", "pass"), "does not start"),
        (("/no/such/python",), "does not start"),
    ],
)
def test_a_process_that_does_not_start_is_no_fault_of_the_client(command, match: str, tmp_path) -> None:
    one = faulty(Round(), 1, tmp_path / "b")

    async def body(gate: Gate) -> None:
        for _ in range(2):  # it is tried anew each time
            with pytest.raises(StateError, match=match):
                await gate.check(*one)

    run(body, command=command)


def test_a_closed_gate_says_so(tmp_path) -> None:
    one = faulty(Round(), HANG, tmp_path / "b")

    async def body(gate: Gate) -> None:
        waiting = asyncio.ensure_future(gate.check(*one))
        await asyncio.wait([waiting], timeout=0)
        await gate.close()
        with pytest.raises(StateError, match="closed"):
            await waiting
        with pytest.raises(StateError, match="closed"):
            await gate.check(*one)

    run(body, command=FAULTY)


def test_it_may_be_started_before_the_first_answer(tmp_path) -> None:
    one = faulty(Round(), 1, tmp_path / "b")

    async def body(gate: Gate) -> None:
        gate.start()
        assert await outcome(gate.check(*one)) == ""
        assert gate.started == 1

    run(body)
    run(lambda gate: asyncio.sleep(0, gate.start()))  # and closed again without one


def test_the_process_loads_little() -> None:
    code = "import atoll.control.gate.gate_worker, sys; print(*{m.partition('.')[0] for m in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (
        set(done.stdout.split()) & {"grpc", "aiohttp", "sqlalchemy", "cryptography", "fastapi", "torch"}
        == set()
    )
    assert COMMAND[1:] == ("-m", "atoll.control.gate.gate_worker")


def test_metrics_keep_their_kind_on_the_way_through(tmp_path) -> None:
    asked = Round(form="sites")
    head = spool(asked.message(), tmp_path / "b")
    checked = run(lambda gate: gate.check(asked.want(), head, tmp_path / "b"))
    assert answer_of(checked, tmp_path / "b").partial[2]["loss"] == Mean(1.0, 10)
