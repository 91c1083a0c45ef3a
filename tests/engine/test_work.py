"""Signed jobs: only a coordinator of this federation gives work, and nobody on the way can change it."""

import numpy as np
import pytest

from atoll.control.engine import fitting
from atoll.control.engine.work import Work, opened, signed
from atoll.core.errors import CodecError, ConfigError, ProtocolError, Refused
from atoll.privacy.keys import Authority
from tests.wire.pki import NOW, member

TABLE = {"rounds": 2, "data": {"name": "heart"}, "learner": {"name": "softmax"}}
VALUES = {
    "run": "r1", "table": TABLE, "seed": 7, "data": "heart", "features": 3, "outputs": 2,
    "classes": ["no", "yes"], "federation": "test",
}  # fmt: skip


@pytest.fixture(scope="module")
def authority():
    return Authority.new("test", now=NOW)


def letter(identity, **changes):
    return signed({**VALUES, **changes}, identity)


def test_a_signed_job_is_what_it_was(authority) -> None:
    work = opened(letter(member(authority, "coordinator", "hub")), authority.root, "test", now=NOW)
    assert (work.run, work.data, work.seed, work.classes) == ("r1", "heart", 7, ("no", "yes"))
    assert work.job.rounds == 2
    assert (work.learner.features, work.learner.outputs) == (3, 2)


def test_an_edge_cannot_give_work(authority) -> None:
    with pytest.raises(ProtocolError, match="by edge a"):
        opened(letter(member(authority, "edge", "a")), authority.root, "test", now=NOW)


def test_changed_on_the_way(authority) -> None:
    sent = letter(member(authority, "coordinator", "hub"))
    changed = {**sent, "text": sent["text"].replace(b'"seed":7', b'"seed":8')}
    assert changed["text"] != sent["text"]
    with pytest.raises(ProtocolError):
        opened(changed, authority.root, "test", now=NOW)


def test_of_another_federation(authority) -> None:
    other = Authority.new("test", now=NOW)
    with pytest.raises(ProtocolError):
        opened(letter(member(other, "coordinator", "hub")), authority.root, "test", now=NOW)
    mine = member(authority, "coordinator", "hub")
    with pytest.raises(ProtocolError, match="another federation"):
        opened(letter(mine, federation="other"), authority.root, "test", now=NOW)


@pytest.mark.parametrize("lack", ["text", "signature", "chain"])
def test_without_a_part(authority, lack) -> None:
    sent = letter(member(authority, "coordinator", "hub"))
    del sent[lack]
    with pytest.raises(ProtocolError, match="signed job"):
        opened(sent, authority.root, "test", now=NOW)


def test_a_part_that_is_not_installed_is_named() -> None:
    import json

    work = Work(json.dumps({**VALUES, "table": {**TABLE, "learner": {"name": "oracle"}}}).encode())
    with pytest.raises(ConfigError, match="oracle"):
        work.job  # noqa: B018


def test_a_pipeline_without_figures_asks_for_them_and_with_them_trains(authority) -> None:
    columns = {"age": {"missing": True}, "flow": {"low": 0.0}, "sick": {"kind": "flag"}}
    contract = {"name": "heart", "label": "sick", "columns": columns}
    data = {"name": "heart", "contract": contract, "pipeline": {"fill": "median"}}
    table = {**TABLE, "data": data, "exchange": {"name": "secure_sum", "least": 3}}
    identity = member(authority, "coordinator", "hub")
    work = opened(letter(identity, table=table, features=2), authority.root, "test", now=NOW)
    assert (work.fits, work.name, work.pipeline) == (True, "r1.fit", None)
    assert (work.learner.columns, work.job.rounds, work.job.sites) == (2, 10, False)
    assert (work.job.exchange.bits, work.job.exchange.least, work.job.max_weight) == (64, 3, 1.0)

    made = work.file.recipe.made(work.file.contract, [40.0, 5.0], [10.0, 2.0], [39.0, 4.0])
    trains = opened(
        letter(identity, table=fitting.frozen(table, made), features=2), authority.root, "test", now=NOW
    )
    assert (trains.fits, trains.name, trains.pipeline) == (False, "r1", made)
    assert (trains.job.rounds, trains.job.exchange.bits) == (2, None)  # its own, by what is summed
    assert made.rows([[50.0, 3.0], [float("nan"), 9.0]]) == pytest.approx(
        np.array([[1.0, -1.0], [-0.1, 2.0]]), abs=1e-6
    )


def test_who_has_no_part_in_the_figures_is_told_with_the_reason() -> None:
    names = {0: "north", 1: "south", 2: "west"}
    records = [{"failed": {"1": "no contract"}}, {"failed": {}}]
    assert fitting.left_out(records, (0,), names) == {
        "south": "no contract",
        "west": "it held back by its own policy",
    }


def test_a_plan_is_the_one_that_the_jobs_signature_names() -> None:
    from atoll.adapt.plan import Plan
    from atoll.control.engine import plans
    from atoll.control.settings import Policy
    from atoll.wire.codec import Message
    from tests.serve.plans import FILE

    plan = Plan.read(FILE.read_bytes())
    message = Message("plan", {}, {"plan": plans.carried(plan)})
    assert plans.held(message, plan.sha256, Policy()).sha256 == plan.sha256
    with pytest.raises(Refused, match="names another plan"):
        plans.held(message, "0" * 64, Policy())
    changed = Message("plan", {}, {"plan": plans.carried(plan)[:-1]})
    with pytest.raises(Refused, match="does not run the job's plan"):
        plans.held(changed, plan.sha256, Policy())
    with pytest.raises(CodecError, match="beside the job"):
        plans.held(Message("plan", {}, {}), plan.sha256, Policy())
