"""`atoll privacy plan`: what it solves, for which unit and whose noise, and what it warns of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import atoll as at
from atoll.control.cli import main
from atoll.control.config import read
from atoll.privacy import accountant
from tests.exact.quadratic import Quadratic

JOB = """
rounds = 10
algorithm = "fedavgm"
learner = "softmax"
{more}

[data]
name = "digits"
clients = 5

[privacy]
epsilon = 4.0
delta = 1e-5
clip = 1.0
{promise}
"""
ROWS = 'unit = "example"\nrate = 0.1\npopulation = 60'


@pytest.fixture
def plan(capsys: pytest.CaptureFixture[str]) -> Any:
    def planned(*argv: str) -> dict[str, Any]:
        assert main(["privacy", "plan", *argv, "--json"]) == 0
        return dict(json.loads(capsys.readouterr().out))

    return planned


def test_of_single_rows_the_coordinator_knows_no_more_than_others(plan: Any) -> None:
    values = ("--delta", "1e-5", "--epsilon", "2", "--rate", "0.1", "--rounds", "60")
    clients, rows = plan(*values), plan(*values, "--unit", "example")
    assert clients["release"] == rows["release"]
    assert clients["known"] > 5 * clients["epsilon"]
    assert rows["known"] == rows["epsilon"] == clients["epsilon"]
    job = at.Job(Quadratic(), at.fedavgm(), rounds=60, sites=False)
    claim = job.private(epsilon=2.0, delta=1e-5, clip=1.0, unit="example", rate=0.1, population=1000)
    assert claim.privacy is not None
    assert claim.privacy.sigma == pytest.approx(rows["sigma"], rel=1e-3)


@pytest.mark.parametrize("noise", ["distributed", "local"])
def test_noise_of_the_clients_is_planned_as_jobs_have_it(plan: Any, noise: Any) -> None:
    found = plan("--delta", "1e-4", "--epsilon", "8", "--rounds", "4", "--noise", noise)
    job = at.Job(Quadratic(), at.fedavg(), rounds=4, sites=False)
    how = {"noise": "local"} if noise == "local" else {"exchange": at.secure_sum()}
    claim = job.private(epsilon=8.0, delta=1e-4, clip=1.0, **how).privacy
    assert claim is not None
    assert claim.noise == noise == found["release"]["noise"]
    assert claim.sigma == pytest.approx(found["sigma"], rel=1e-3)
    assert found["known"] == found["epsilon"]
    back = plan("--delta", "1e-4", "--sigma", str(found["sigma"]), "--rounds", "4", "--noise", noise)
    assert back["epsilon"] == pytest.approx(8.0, rel=1e-3)


def test_local_noise_of_all_is_in_the_sum(plan: Any) -> None:
    values = ("--delta", "1e-5", "--sigma", "4", "--rounds", "1", "--population", "100")
    assert plan(*values, "--rate", "1")["warnings"] == []
    (text,) = plan(*values, "--noise", "local")["warnings"]
    assert "100 members stand against noise of 40 of them" in text


def test_of_distributed_noise_it_says_what_each_adds_without_the_lost_and_the_colluders(plan: Any) -> None:
    values = ("--delta", "1e-5", "--epsilon", "4", "--rounds", "10", "--noise", "distributed")
    found, wary = (plan(*values, "--population", "30", *more) for more in ((), ("--colluders", "5")))
    assert plan(*values)["each"] is None  # of nobody knows how many
    for made, crew in ((found, 21), (wary, 16)):  # more than two thirds of 30 must stay
        assert made["each"] == pytest.approx(made["sigma"] / crew**0.5)
    hidden = at.secure_sum(least=12, colluders=5).width(
        at.Job(Quadratic(), rounds=10, sites=False)
        .private(epsilon=4.0, delta=1e-5, clip=1.0, exchange=at.secure_sum(least=12, colluders=5))
        .trained
    )
    assert hidden.noise is not None
    assert hidden.noise.sigma / hidden.noise.crew(30) ** 0.5 == pytest.approx(wary["each"], rel=1e-3)
    noise = [float(w["warnings"][0].split("noise of ")[1].split()[0]) for w in (found, wary)]
    for told, made in zip(noise, (found, wary), strict=True):
        assert told == pytest.approx(made["each"] * 30**0.5, rel=0.01)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--colluders", "2"), "--noise distributed"),
        (("--noise", "distributed", "--population", "100", "--colluders", "7"), "from 0 to 6, got 7"),
        (("--unit", "example", "--sampling", "fixed"), "--sampling poisson"),
        (("--noise", "local"), "leave --rate out"),
    ],
)
def test_what_does_not_fit_is_refused(
    more: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("--delta", "1e-5", "--epsilon", "2", "--rate", "0.1", "--rounds", "6")
    assert main(["privacy", "plan", *given, *more]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "promise", "unit", "population", "words"),
    [
        ("", "", "client", 5, "5 members stand against noise"),
        ("", ROWS, "example", 60, "6 members stand against noise"),
        ("", 'noise = "local"', "client", 5, "5 members stand against noise"),
        ('exchange = "secure_sum"', "", "client", 5, "5 members stand against noise"),
    ],
)
def test_a_job_files_unit_noise_and_population_bring_its_warnings(
    tmp_path: Path, plan: Any, more: str, promise: str, unit: str, population: int, words: str
) -> None:
    path = tmp_path / "job.toml"
    path.write_text(JOB.format(more=more, promise=promise))
    found, job = plan(str(path)), read(path).job
    assert (found["unit"], found["population"]) == (unit, population)
    assert found["sigma"] == pytest.approx(job.privacy.sigma)
    assert any(words in text for text in found["warnings"]), found["warnings"]
    assert plan(str(path), "--population", "100000")["warnings"] != found["warnings"]
    assert found["epsilon"] == accountant.epsilon([job.privacy.release(job.cohort, job.rounds)], 1e-5)
