"""Signed jobs: only a coordinator of this federation gives work, and nobody on the way can change it."""

import pytest

from atoll.control.engine.work import Work, opened, signed
from atoll.core.errors import ConfigError, ProtocolError
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
