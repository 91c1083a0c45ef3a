"""The simulated world itself: what its roles may rely on, whatever they say to each other."""

import subprocess
import sys

import pytest

from atoll.core.errors import DataError, Gone, MisuseError, ProtocolError
from atoll.core.rng import Rng
from atoll.simulate.faults import Crash, Partition, World, constant, lognormal, uniform
from atoll.simulate.world import Simulation

DAY = 86_400.0


def run(main, peers=None, world=None, seed=0, **watch):
    """Run `main` as the peer "main" among peers: a responder, or a role of its own."""
    sim = Simulation(world or World(), Rng.of(seed), **watch)
    sim.add("main", main=main)
    for name, (kind, role) in (peers or {}).items():
        sim.add(name, device=True, **{kind: role})
    return sim, sim.run("main")


async def echo(p, body):
    return await p.work(lambda: body)


# -- asks ---------------------------------------------------------------------------------------


def test_an_ask_folds_answers_as_they_come_and_names_who_did_not_answer():
    async def refuse(p, body):
        raise DataError("no rows here")

    async def main(p):
        return await p.ask(
            {"a": 1, "b": 2, "c": 3}, fold=lambda so_far, peer, body: [*(so_far or []), (peer, body)]
        )

    _, answers = run(main, {"a": ("answers", echo), "b": ("answers", refuse), "c": ("answers", echo)})
    assert answers.folded == [("a", 1), ("c", 3)]
    assert answers.replied == ("a", "c")
    assert answers.missing == {"b": "DataError: no rows here"}
    assert not answers.enough


def test_a_bug_at_a_peer_comes_back_as_its_traceback_never_as_silence():
    async def broken(p, body):
        return 1 / 0

    async def main(p):
        return await p.ask({"a": 1})

    _, answers = run(main, {"a": ("answers", broken)})
    assert "ZeroDivisionError" in answers.missing["a"]
    assert "in broken" in answers.missing["a"]


def test_an_answer_that_does_not_fit_is_set_aside_and_the_others_count():
    def fold(so_far, peer, body):
        if body < 0:
            raise ProtocolError("weights are at least 0")
        return (so_far or 0) + body

    async def main(p):
        return await p.ask({"a": 1, "b": -2, "c": 3}, fold=fold)

    _, answers = run(main, dict.fromkeys("abc", ("answers", echo)))
    assert answers.folded == 4
    assert answers.replied == ("a", "c")
    assert answers.missing == {"b": "ProtocolError: weights are at least 0"}
    assert not answers.enough


def test_an_ask_inside_an_answer_ends_in_time_to_tell_what_came():
    async def edge(p, body):
        answers = await p.ask({"quick": 1, "never": 1}, fold=lambda so_far, peer, body: peer)
        return answers.folded, p.now

    async def never(p, body):
        await p.sleep(DAY)

    async def main(p):
        return await p.ask({"edge": 0}, deadline=10.0, fold=lambda so_far, peer, body: body), p.now

    peers = {"edge": ("answers", edge), "quick": ("answers", echo), "never": ("answers", never)}
    _, (answers, now) = run(main, peers, World(delay=constant(0.1)))
    assert answers.folded == ("quick", pytest.approx(0.1 + 0.9 * 9.9))
    assert now < 10.0


def test_posts_come_back_in_order_of_arrival_each_with_its_number():
    async def slow(p, body):
        await p.sleep(body)
        return body

    async def main(p):
        numbers = {await p.post("a", seconds): seconds for seconds in (3.0, 1.0, 2.0)}
        numbers[await p.post("b", 0.5, deadline=0.25)] = None
        found = [await p.next() for _ in range(4)]
        return [(numbers[f.number], f.body, f.reason, f.peer) for f in found]

    _, found = run(main, {"a": ("answers", slow), "b": ("answers", slow)})
    assert found == [
        (None, None, "deadline", "b"),
        (1.0, 1.0, "", "a"),
        (2.0, 2.0, "", "a"),
        (3.0, 3.0, "", "a"),
    ]


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        (lambda p: p.ask({"q": 1}), "no 'q' in this world: choose from a, main"),
        (lambda p: p.ask({"a": 1}, quorum=2), "quorum of 2"),
        (lambda p: p.ask({"a": 1}, deadline=-1.0), "at least 0 seconds"),
        (lambda p: p.post("nobody", 1), "no 'nobody'"),
        (lambda p: p.send("nobody", "box", 1), "no 'nobody'"),
        (lambda p: p.recv("nobody", "box"), "no 'nobody'"),
        (lambda p: p.sleep(-1.0), "at least 0 seconds"),
    ],
)
def test_a_role_that_asks_wrongly_gets_the_error_where_it_asked_and_may_go_on(wrong, match):
    async def main(p):
        with pytest.raises(MisuseError, match=match):
            await wrong(p)
        return (await p.ask({"a": 7}, fold=lambda so_far, peer, body: body)).folded

    assert run(main, {"a": ("answers", echo)})[1] == 7


# -- mail ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
def test_mail_arrives_once_and_in_order_per_sender_and_box(seed):
    async def writer(p):
        for i in range(40):
            await p.send("main", "even" if i % 2 == 0 else "odd", (p.name, i))

    async def main(p):
        return {
            (peer, box): [(await p.recv(peer, box))[1] for _ in range(20)]
            for peer in "ab"
            for box in ("odd", "even")
        }

    world = World(delay=uniform(0, 3), loss=0.4, repeat=0.4, resend=2.0)
    _, got = run(main, {"a": ("main", writer), "b": ("main", writer)}, world, seed)
    for (_, box), numbers in got.items():
        assert numbers == list(range(0 if box == "even" else 1, 40, 2))


def test_mail_that_does_not_come_in_time_raises_gone_and_may_still_be_read_later():
    async def late(p):
        await p.sleep(5.0)
        await p.send("main", "box", "late")

    async def main(p):
        with pytest.raises(Gone, match="sent no 'box' in time"):
            await p.recv("a", "box", within=3.0)
        return p.now, await p.recv("a", "box"), p.now

    assert run(main, {"a": ("main", late)})[1] == (3.0, "late", 5.0)


def test_whoever_waits_for_mail_of_a_role_that_failed_learns_why():
    async def fails(p):
        await p.sleep(1.0)
        raise DataError("the columns differ")

    async def main(p):
        with pytest.raises(Gone, match="a stopped: the columns differ"):
            await p.recv("a", "box")
        with pytest.raises(Gone, match="a stopped"):
            await p.recv("a", "box")

    run(main, {"a": ("main", fails)})


def test_everybody_waiting_for_ever_is_an_error_that_says_who_and_why():
    async def fails(p):
        raise DataError("the columns differ")

    async def waits(p, body):
        await p.recv("main", "never")

    async def main(p):
        await p.ask({"b": 1})

    with pytest.raises(MisuseError, match=r"main waits .* nobody will send.*a stopped: the columns differ"):
        run(main, {"a": ("main", fails), "b": ("answers", waits)})


# -- crashes ------------------------------------------------------------------------------------


def test_an_answer_to_a_former_life_is_not_taken_for_an_answer_to_the_new_one():
    async def slow(p, body):
        await p.sleep(2.0)
        return body

    async def main(p):
        question = "first" if p.restored is None else "second"
        await p.checkpoint(question)
        return (await p.ask({"a": question}, fold=lambda so_far, peer, body: body)).folded

    world = World(crashes=(Crash("main", 1.0, 0.5),))
    assert run(main, {"a": ("answers", slow)}, world)[1] == "second"


def test_a_second_crash_while_down_is_no_second_life():
    lives = []

    async def main(p):
        lives.append(p.now)
        await p.sleep(10.0)
        return len(lives)

    world = World(crashes=(Crash("main", 1.0, 5.0), Crash("main", 2.0, 1.0)))
    assert run(main, world=world)[1] == 2
    assert lives == [0.0, 6.0]


def test_asks_wait_for_a_peer_that_is_down_and_fail_when_it_goes_down_under_them():
    async def main(p):
        first = await p.ask({"a": 1})
        second = await p.ask({"a": 2}, fold=lambda so_far, peer, body: body)
        return first.missing, second.folded, p.now

    world = World(compute=constant(1.0), crashes=(Crash("a", 0.5, 4.0),))
    missing, answer, now = run(main, {"a": ("answers", echo)}, world)[1]
    assert (missing, answer) == ({"a": "crashed"}, 2)
    assert now > 4.5


@pytest.mark.parametrize("seed", range(10))
def test_a_reader_learns_once_that_its_peer_crashed_and_can_send_again(seed):
    """Ping-pong that starts the exchange again whenever the connection broke."""

    async def pong(p):
        while True:
            await p.send("main", "pong", await p.recv("main", "ping"))

    async def main(p):
        gone = 0
        for i in range(30):
            while True:
                await p.send("a", "ping", i)
                try:
                    while await p.recv("a", "pong") != i:
                        pass
                    break
                except Gone:
                    gone += 1
            await p.sleep(0.5)
        return gone

    world = World(
        delay=uniform(0.0, 1.0), loss=0.2, crashes=tuple(Crash("a", at, 0.7) for at in (2.0, 5.0, 5.9, 20.0))
    )
    assert 1 <= run(main, {"a": ("main", pong)}, world, seed)[1] <= 4


def test_a_crash_while_nobody_was_waiting_is_learnt_at_the_next_recv_and_only_there():
    async def adder(p):
        total = 0
        while True:
            total += await p.recv("main", "add")
            if total == 3:
                await p.send("main", "total", total)

    async def main(p):
        await p.send("a", "add", 1)
        await p.sleep(2.0)  # a has the 1, crashes, and knows nothing of it
        await p.send("a", "add", 2)
        with pytest.raises(Gone, match="a crashed"):
            await p.recv("a", "total")
        await p.send("a", "add", 1)
        return await p.recv("a", "total")

    assert run(main, {"a": ("main", adder)}, World(crashes=(Crash("a", 1.0, 0.5),)))[1] == 3


@pytest.mark.parametrize(
    "world",
    [
        World(crashes=(Crash("clent1", 1.0),)),
        World(partitions=(Partition(frozenset({"clent1"}), 0.0, 1.0),)),
    ],
)
def test_faults_of_peers_that_are_not_there_are_refused(world):
    async def main(p):
        return None

    with pytest.raises(MisuseError, match="did you mean 'client1'"):
        run(main, {"client1": ("answers", echo)}, world)


# -- time ---------------------------------------------------------------------------------------


def test_long_loops_of_immediate_operations_take_neither_depth_nor_time():
    async def main(p):
        for i in range(20_000):
            await p.note(i)
            await p.work(lambda: None)
            await p.sleep(0.0)
            await p.post("a", i)
        return [(await p.next()).body for _ in range(20_000)], p.now

    bodies, now = run(main, {"a": ("answers", echo)})[1]
    assert bodies == list(range(20_000))
    assert now == 0.0


def test_nested_asks_many_levels_deep_return():
    async def down(p, body):
        if body == 0:
            return 0
        following = f"e{body - 1}"
        return 1 + (await p.ask({following: body - 1}, fold=lambda so_far, peer, got: got)).folded

    async def main(p):
        return (await p.ask({"e499": 499}, fold=lambda so_far, peer, got: got)).folded

    assert run(main, {f"e{i}": ("answers", down) for i in range(500)})[1] == 499


def test_work_takes_a_devices_own_time_or_a_share_of_it():
    async def half(p, body):
        await p.work(lambda: None, share=body)
        return p.now

    async def main(p):
        took = {}
        for share in (1.0, 0.5, 0.0):
            began = p.now
            took[share] = (await p.ask({"a": share}, fold=lambda so_far, peer, now: now)).folded - began
        return took

    took = run(main, {"a": ("answers", half)}, World(compute=lognormal(0, 1)))[1]
    assert took[0.0] == 0.0
    assert took[0.5] == pytest.approx(took[1.0] / 2)
    assert took[1.0] > 0.0


def test_bytes_are_counted_on_both_sides_and_take_their_time():
    async def main(p):
        return (await p.ask({"a": b"x" * 1000}, fold=lambda so_far, peer, body: body)).folded, p.now

    sim, (_, now) = run(main, {"a": ("answers", echo)}, World(bandwidth=500.0), size=len)
    assert now == pytest.approx(4.0)
    assert sim.net.sent == sim.net.received == {"main": 1000, "a": 1000}


TRACE = """
from atoll.core.rng import Rng
from atoll.simulate.faults import *
from atoll.simulate.world import Simulation
seen = []
crashes = Crash("main", 4.0), *(Crash(f"p{k}", 5.3) for k in range(4))
world = World(lognormal(0, 1), .2, uniform(0, 1), loss=.2, repeat=.2, dropout=.1, crashes=crashes)
sim = Simulation(world, Rng.of(3), on_note=lambda peer, record: seen.append(record))
async def answer(p, body): return await p.work(lambda: body)
async def main(p):
    for i in range(p.restored or 0, 6):
        a = await p.ask({f"p{k}": i for k in range(9)}, quorum=7, deadline=5.0)
        await p.note((i, a.replied, sorted(a.missing.items()), p.now))
        await p.checkpoint(i + 1)
sim.add("main", main=main)
for k in range(9): sim.add(f"p{k}", answers=answer, device=True)
sim.run("main")
print(seen)
"""


def test_the_trace_does_not_depend_on_the_interpreters_hash_seed():
    traces = {
        subprocess.run(
            [sys.executable, "-c", TRACE],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(traces) == 1
    assert "crashed" in traces.pop()
