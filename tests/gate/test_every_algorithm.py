"""Whatever algorithm runs: its asks and answers pass wire and gate, and the model has the same bytes."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atoll.control.gate.want import ring_bits, want
from atoll.core import edge
from atoll.core.aggregate import Reply, Sum, fold
from atoll.core.edge import Answer, Task
from atoll.core.protocol import Party
from atoll.core.registry import build
from atoll.core.transform import chain
from atoll.core.update import Layout, Leaf, Update
from atoll.job import Job, Tree
from atoll.learn import rounds
from atoll.learn.algorithm import Algorithm, Roles
from atoll.learn.buffered import fedasync, fedbuff
from atoll.learn.compress import randomk, sign, topk
from atoll.learn.dense import mlp
from atoll.learn.encrypted import encrypted_sum
from atoll.learn.quantise import int2, int8
from atoll.learn.ring import ring
from atoll.learn.robust import Buckets, Gather
from atoll.learn.rotate import rotate
from atoll.learn.secure import secure_sum
from atoll.learn.select import sample
from atoll.learn.server import adam, mean
from atoll.privacy.dp import clip
from atoll.run import simulate
from atoll.wire.body import answer_message, answer_of, ask_head, params_message, params_of, task_of
from tests.exact.test_every_algorithm import DATA, NAMES
from tests.exact.test_every_algorithm import job as named
from tests.gate.answers import checked, median, verdict
from tests.laws.test_body import through
from tests.laws.test_exact import METHODS, SITES

LEARNER = mlp((8,), features=5, outputs=3, lr=0.1, batch_size=10)
OTHERS = {
    "adam": chain(adam(), mean(), clip(1.0)),
    "ring": chain(mean(), clip(1.0), ring(24, largest=1.0, total=2.0**10)),
    "topk": chain(mean(), topk(0.1)),
    "topk in 8 bits": chain(mean(), topk(0.1, bits=8), clip(1.0)),
    "randomk": chain(mean(), randomk(0.5, bits=4)),
    "sign": chain(mean(), sign()),
    "int8": chain(mean(), int8()),
    "int2, rotated": chain(mean(), rotate(), int2()),
    "median of int8": Algorithm("median of int8", chain(mean(), int8()), rule=Gather(median)),
    "median": Gather(median),
    "buckets": Buckets(3, median),
    "fedbuff": fedbuff(size=2),
    "fedasync": fedasync(),
}


class Wire:
    """Sends every task, every reply and every partial of a simulation through bytes and gate."""

    def __init__(self, job: Job, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.algorithm = job.trained
        self.paths = (folder / f"upload{n}" for n in count())  # replies stay views of their file
        self.forms: set[str] = set()
        self.task: Task | None = None
        inner, fold = rounds.client, edge.fold

        def client(local: Any) -> Any:
            answer = inner(local)

            async def wired(p: Party, task: Task) -> Answer:
                params = params_of(through(params_message(task.params)))
                self.task = task_of(ask_head(task), params)
                assert self.task == task
                return self.pass_on(task, await answer(p, self.task), whole=True)

            return wired

        def raw(rule: Any, replies: Any, into: Any = None) -> Any:
            assert self.task is not None
            answer = Answer(tuple(c for c, _ in replies), replies=tuple(replies))
            return fold(rule, self.pass_on(self.task, answer, whole=False).replies, into)

        patch.setattr(rounds, "client", client)
        patch.setattr(rounds, "ROLES", Roles(rounds.coordinator, client, apart=False))
        patch.setattr(edge, "fold", raw)

    def pass_on(self, task: Task, answer: Answer, *, whole: bool) -> Answer:
        rule = rounds._rule(self.algorithm, task) if task.want == "fit" else None
        exchange, points = self.algorithm.exchange, task.points
        bits = exchange.bits_of(self.algorithm, points) or ring_bits(self.algorithm.chain)
        asked = want(task, rule, member="m", run="r", request=task.round, edge=whole, bits=bits)
        most = task.points.max_weight if task.points else None
        message = answer_message(answer, run="r", request=task.round, most=most)
        path = next(self.paths)
        assert verdict(asked, message, path).refused == ""
        assert path.stat().st_size <= asked.size
        self.forms.add(message.head["form"])
        return answer_of(checked(message, path), path)


def jobs() -> dict[str, Job]:
    made = {name: named(name, cohort=sample(count=4)) for name in NAMES}
    for name, algorithm in OTHERS.items():
        made[name] = Job(LEARNER, algorithm, rounds=4, every=2)
    return made


JOBS = jobs()


@pytest.mark.parametrize("name", JOBS)
def test_the_model_is_that_of_a_simulation(name: str, tmp_path, monkeypatch) -> None:
    job = JOBS[name]
    if name not in ("fedbuff", "fedasync"):
        job = job.replace(topology=Tree((2,)))
    straight = simulate(job, DATA, seed=1)
    wire = Wire(job, tmp_path, monkeypatch)
    passed = simulate(job, DATA, seed=1)
    assert passed.params == straight.params
    assert passed.sites == straight.sites
    assert passed.history[-1].get("train") == straight.history[-1].get("train")
    gathered = dict.fromkeys(("median", "median of int8", "robust"), "gather")
    partial = {**gathered, "buckets": "buckets"}.get(name, "sum")
    assert wire.forms >= {"raw", partial, "sites"}


def test_the_steps_of_a_secure_sum_pass(tmp_path, monkeypatch) -> None:
    job = named("fedavg").replace(exchange=secure_sum(), topology=Tree((2,)))
    straight = simulate(job, DATA, seed=1)
    wire = Wire(job, tmp_path, monkeypatch)
    assert simulate(job, DATA, seed=1).params == straight.params
    assert wire.forms >= {"raw", "sum", "sites", "notes"}


def test_the_steps_of_an_encrypted_sum_pass(tmp_path, monkeypatch) -> None:
    pytest.importorskip("tenseal")
    job = named("fedavg").replace(exchange=encrypted_sum(), topology=Tree((2,)))
    straight = simulate(job, DATA, seed=1)
    wire = Wire(job, tmp_path, monkeypatch)
    assert simulate(job, DATA, seed=1).params == straight.params
    assert wire.forms >= {"raw", "sum", "sites", "notes"}


@pytest.mark.parametrize("exchange", ["secure_sum", "encrypted_sum"])
@pytest.mark.parametrize("topology", [Tree(), Tree((2,))], ids=["flat", "edges"])
def test_a_sum_of_drawn_places_passes(exchange: str, topology: Tree, tmp_path, monkeypatch) -> None:
    """At each round its own, in few numbers; edges add them as any."""
    if exchange == "encrypted_sum":
        pytest.importorskip("tenseal")
    algorithm = chain(mean(), randomk(0.2))
    job = Job(LEARNER, algorithm, rounds=3, exchange=build("exchange", {"name": exchange}), topology=topology)
    straight = simulate(job, DATA, seed=1)
    wire = Wire(job, tmp_path, monkeypatch)
    assert simulate(job, DATA, seed=1).params == straight.params
    assert wire.forms >= {"raw", "sum", "sites", "notes"}


def test_a_sum_of_drawn_places_takes_no_other_width(tmp_path, monkeypatch) -> None:
    """Neither every place nor one more nor one less nor those of another round, from a client or an edge."""
    job = Job(LEARNER, chain(mean(), randomk(0.2)), rounds=1, exchange=secure_sum())
    asked: list[Task] = []
    path = tmp_path / "forged"
    pass_on = Wire.pass_on

    def listening(self: Wire, task: Task, answer: Answer, *, whole: bool) -> Answer:
        asked.extend([task] if task.want == "fit" else [])
        return pass_on(self, task, answer, whole=whole)

    monkeypatch.setattr(Wire, "pass_on", listening)
    Wire(job, tmp_path, monkeypatch)
    simulate(job, DATA, seed=1)
    task = asked[0]
    assert task.points is not None
    leaves, plain = task.points.layout.leaves, task.params.layout
    size = plain.size
    bits = job.exchange.bits_of(job.trained, task.points)
    scale = job.exchange.scale(job.trained, 6, 1.0, size, 0)
    assert task.points.layout == scale.layout(plain)
    assert task.points.layout.size == scale.drawn.k + scale.digits == ceil(0.2 * size) + scale.digits
    (name, (n,)), *rest = leaves
    others = {
        "": leaves,
        "all places": (*plain.leaves, leaves[-1]),
        "one more": ((name, (n + 1,)), *rest),
        "one less": ((name, (n - 1,)), *rest),
        "another round's": replace(scale, drawn=scale.drawn._replace(key=1)).layout(plain).leaves,
        "no weight": leaves[:-1],
    }
    for whole in (False, True):
        rule = rounds._rule(job.trained, task)
        right = want(task, rule, member="m", run="r", request=0, edge=whole, bits=bits)
        for what, held in others.items():
            layout = Layout(tuple(Leaf(*leaf) for leaf in held))
            update = Update(layout, np.ones(layout.size, np.uint64), bits=bits)
            replies = tuple((c, Reply(update)) for c in task.clients)
            theirs = replace(task.points, layout=layout, exponents=(0,) * len(held))
            answer = Answer(task.clients, replies=replies)
            if whole:
                answer = Answer(task.clients, fold(Sum(theirs), replies))
            message = answer_message(answer, run="r", request=0, most=task.points.max_weight)
            said = verdict(right, message, path).refused
            assert bool(said) is bool(what), (what, said)


@pytest.mark.parametrize("name", METHODS)
def test_exact_sums_pass(name: str, tmp_path, monkeypatch) -> None:
    """Wide sums of other leaves than the model's."""
    straight = simulate(METHODS[name], SITES, seed=1)
    wire = Wire(METHODS[name], tmp_path, monkeypatch)
    assert simulate(METHODS[name], SITES, seed=1).params == straight.params
    assert wire.forms >= {"raw", "sum"}
