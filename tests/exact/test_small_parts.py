"""Clipping, signs, the largest entries and rings, on numbers worked out by hand."""

import numpy as np
import pytest

from atoll.core.errors import ConfigError, MisuseError, ProtocolError
from atoll.core.rng import Rng
from atoll.core.transform import Context, chain
from atoll.core.update import Rows, Update
from atoll.job import Job
from atoll.learn.compress import sign, topk
from atoll.learn.ring import ring
from atoll.learn.server import mean
from atoll.privacy.dp import clip
from atoll.run import simulate
from tests.exact.quadratic import Bowl, Quadratic, Sites, optimum

CTX = Context(Rng.of(0))
V = Update.of({"w": np.array([3.0, -1.0, 0.0]), "b": np.array([-4.0])})
SITES = Sites([Bowl([1.0, 4.0], [1.0, -2.0], rows=3), Bowl([3.0, 1.0], [-1.0, 2.0], rows=7)])


def test_clip_by_hand() -> None:
    # 3-4-0-1: norm sqrt 26; to norm 1 each entry is divided by it
    sent, _ = clip(1.0).out(V, None, CTX)
    np.testing.assert_allclose(sent.buffer, np.array([3, -1, 0, -4]) / 26**0.5, rtol=2e-6)
    assert clip(5.1).out(V, None, CTX)[0] == V
    with pytest.raises(ConfigError, match="norm must be above 0"):
        clip(0.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_clip_leaves_a_diverged_update_for_the_aggregator_to_refuse(bad) -> None:
    sent, _ = clip(1.0).out(Update.of({"w": np.array([bad, 1.0])}), None, CTX)
    assert not sent.finite()


def test_sign_by_hand() -> None:
    # ||v||_1 / d = 8 / 4 = 2; what is kept back is added to the next update; a zero is positive
    part = sign()
    sent, e = part.out(V, part.start(V, "out"), CTX)
    assert sent.buffer.tolist() == [2.0, -2.0, 2.0, -2.0]
    assert e.buffer.tolist() == [1.0, 1.0, -2.0, -2.0]
    sent, _ = part.out(V.zeros(), e, CTX)
    assert sent.buffer.tolist() == [1.5, 1.5, -1.5, -1.5]


def test_topk_by_hand() -> None:
    part = topk(0.5)
    sent, e = part.out(V, part.start(V, "out"), CTX)
    assert sent.buffer.tolist() == [3.0, 0.0, 0.0, -4.0]
    assert e.buffer.tolist() == [0.0, -1.0, 0.0, 0.0]
    with pytest.raises(ConfigError, match="fraction must be above 0 and at most 1"):
        topk(0.0)


@pytest.mark.parametrize("part", [sign(), topk(0.5)], ids=str)
def test_a_diverged_client_is_seen_and_keeps_its_memory(part) -> None:
    bad = Update.of({"w": np.array([np.nan, 1.0])})
    memory = Update.of({"w": np.array([0.5, 0.5])})
    sent, after = part.out(bad, memory, CTX)
    assert not sent.finite()
    assert after == memory


@pytest.mark.parametrize("part", [sign(), topk(0.5), ring()], ids=str)
def test_sparse_rows_are_refused(part) -> None:
    sparse = Update(V.layout, V.buffer, rows={"t": Rows(np.array([1]), np.ones((1, 1)))})
    with pytest.raises(MisuseError, match=r"takes dense leaves, and \['t'\] came as sparse rows"):
        part.out(sparse, part.start(V, "out"), CTX)


def test_with_feedback_even_one_entry_in_two_reaches_the_optimum() -> None:
    # up to what the memories hold, a few times lr * gradient
    learner = Quadratic(lr=0.01, steps=1)
    for part in (topk(0.5), sign()):
        job = Job(learner, chain(mean(), part), rounds=1000, every=1000)
        found = simulate(job, SITES).params["w"]
        np.testing.assert_allclose(found, optimum(SITES, by_rows=True), atol=0.05)


def test_ring_by_hand() -> None:
    # 16 bits, sums up to 4 * 4: p = 16 - 2 - 4 = 10; 0.5 with weight 2 is 1024, -0.25 is -512 = 65024
    part = ring(16, largest=4.0, total=4.0)
    update = Update.of({"w": np.array([0.5, -0.25])})
    sent, _ = part.out(update, None, Context(Rng.of(0), weight=2.0))
    assert sent.bits == 16
    assert sent.buffer.tolist() == [1024, 65024]
    total, _ = part.back(sent + sent, None, Context(Rng.of(0), weight=4.0))
    assert total.buffer.tolist() == [2.0, -1.0]


def test_ring_gives_what_the_plain_sum_gives() -> None:
    plain = simulate(Job(Quadratic(), chain(mean()), rounds=5), SITES).params["w"]
    through = simulate(Job(Quadratic(), chain(mean(), ring(56, 16.0, 16.0)), rounds=5), SITES).params["w"]
    np.testing.assert_allclose(through, plain, rtol=0, atol=1e-12)


def test_ring_refuses_what_would_wrap_around() -> None:
    part = ring(16, largest=4.0, total=4.0)
    for bad in (4.1, np.nan, np.inf):
        with pytest.raises(ProtocolError, match="leaf 'w' is not finite or beyond largest=4"):
            part.out(Update.of({"w": np.array([bad])}), None, CTX)
    with pytest.raises(ProtocolError, match=r"the weights sum to 5, beyond ring\(total=4\)"):
        part.back(Update(V.layout, np.zeros(4, np.uint64), bits=16), None, Context(Rng.of(0), weight=5.0))
    with pytest.raises(ConfigError, match=r"in 8 bits with sums up to .* all round to 0"):
        ring(8)
    with pytest.raises(ConfigError, match="bits must be from 8 to 64"):
        ring(65)


def test_one_refused_contribution_leaves_the_others_in() -> None:
    # client 2 moves by more than the ring holds, or diverges; its lane's other clients still count
    for algorithm, bad in ((chain(mean(), ring(40, 16.0, 64.0)), 1e6), (chain(mean()), np.nan)):
        sites = Sites([*SITES, Bowl([1.0, 1.0], [bad, 0.0])])
        run = simulate(Job(Quadratic(), algorithm, rounds=3), sites)
        assert [r["clients"] for r in run.history[1:]] == [2, 2, 2]
        assert all("not finite or beyond" in r["failed"][2] for r in run.history[1:])
        plain = simulate(Job(Quadratic(), algorithm, rounds=3), SITES)
        np.testing.assert_allclose(run.params["w"], plain.params["w"], atol=1e-6)
