"""Devices that answer with their replies as they are: whoever lifts them, the bytes are the same."""

from functools import partial

import numpy as np
import pytest

from atoll.core.aggregate import Reply, Sum, points
from atoll.core.edge import Answer, lifted, merge_answers
from atoll.core.errors import ProtocolError
from atoll.core.rng import Rng
from atoll.core.transform import chain
from atoll.core.update import Update
from atoll.job import Job, flat, tree
from atoll.learn.algorithm import fedadam
from atoll.learn.buffered import fedbuff
from atoll.learn.compress import topk
from atoll.learn.local import Local
from atoll.learn.quantise import int8
from atoll.learn.ring import ring
from atoll.learn.robust import Buckets, Gather
from atoll.learn.select import sample
from atoll.learn.server import mean
from atoll.run import simulate
from atoll.simulate.faults import World
from tests.worlds.cases import SLOW, Drift, clients


def median(U):
    return np.median(U, axis=0)


ALGORITHMS = {
    "fedadam": fedadam(lr=0.1),
    "ring": chain(mean(), ring(bits=60)),
    "topk": chain(mean(), topk(0.5)),
    "int8": chain(mean(), int8()),
    "median": Gather(median),
    "buckets": Buckets(3, median),
}


@pytest.mark.parametrize("shape", [flat(), tree((2,)), tree((2, 2))], ids=["flat", "edges", "three levels"])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_replies_lifted_above_give_the_bytes_of_replies_lifted_at_the_device(name, shape, monkeypatch):
    job = Job(Drift(), ALGORITHMS[name], rounds=4, cohort=sample(0.75), topology=shape)
    whole = simulate(job, clients(), 5)
    monkeypatch.setattr("atoll.run.Local", partial(Local, raw=True))
    for world in (None, World(**SLOW)):
        run = simulate(job, clients(), 5, world=world)
        assert run.params == whole.params
        assert run.sites == whole.sites
        assert run.traffic == whole.traffic


def test_a_lane_of_many_keeps_every_reply(monkeypatch):
    job = Job(Drift(), rounds=2)
    job.learner.chunk = 3
    whole = simulate(job, clients(), 5)
    monkeypatch.setattr("atoll.run.Local", partial(Local, raw=True))
    assert simulate(job, clients(), 5).params == whole.params


def test_a_buffer_takes_replies_too(monkeypatch):
    job = Job(Drift(), fedbuff(size=3, concurrency=4), rounds=5)
    whole = simulate(job, clients(), 5, world=World(**SLOW))
    monkeypatch.setattr("atoll.run.Local", partial(Local, raw=True))
    assert simulate(job, clients(), 5, world=World(**SLOW)).params == whole.params


def test_both_forms_merge_and_a_reply_that_does_not_fit_is_refused():
    like = Update.of({"w": np.ones(4, np.float32)})
    ours = Sum().at(points(like, 3), range(3), Rng.of(0))
    made = [(k, Reply(like.scale(k), 2.0, {"loss": k})) for k in range(3)]
    answers = [Answer((k,), failed={9: "late"}, sent=16, replies=(one,)) for k, one in enumerate(made)]
    flat = ours.finish(ours.lift_all(made))
    both = merge_answers(ours, lifted(ours, answers[0]), answers[1])
    both = merge_answers(ours, answers[2], both)
    assert (set(both.clients), both.sent, both.failed, both.replies) == ({0, 1, 2}, 48, {9: "late"}, ())
    assert ours.finish(both.partial).update == flat.update
    kept = merge_answers(None, answers[0], answers[1])
    assert (kept.clients, kept.partial, kept.replies) == ((0, 1), None, tuple(made[:2]))
    bad = Answer((0,), replies=((0, Reply(like.scale(np.inf))),))
    with pytest.raises(ProtocolError, match="client 0's update"):
        lifted(ours, bad)
