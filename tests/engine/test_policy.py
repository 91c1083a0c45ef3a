"""A site's own say, case by case; each refusal names what would do."""

from dataclasses import replace

import pytest

from atoll.control.engine.policy import Asked, inside, refusal
from atoll.control.settings import Policy
from atoll.core.errors import ConfigError

ASKED = Asked(job="digits", learner="mlp", algorithm="fedavg", cohort=5, rows=100, round=3, minute=600)


def test_the_default_allows_everything() -> None:
    assert refusal(Policy(), ASKED) == ""


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        (Policy(jobs=("heart*",)), "heart"),
        (Policy(learners=("linear",)), "linear"),
        (Policy(algorithms=("fedprox", "scaffold")), "fedprox, scaffold"),
        (Policy(algorithms=()), "none"),
        (Policy(min_cohort=6), "6"),
        (Policy(max_rows=99), "99"),
        (Policy(max_rounds=3), "3 rounds"),
        (Policy(hours="22:00-06:00"), "22:00 to 06:00"),
        (Policy(max_epsilon=2.0), "no privacy bound"),
        (Policy(crypto=("gm",)), "requires crypto gm, the job has intl"),
    ],
)
def test_each_rule_refuses_with_what_would_do(policy, words) -> None:
    assert words in refusal(policy, ASKED)


def test_rules_that_fit_allow() -> None:
    policy = Policy(
        jobs=("dig*",), learners=("mlp",), algorithms=("fed*",), min_cohort=5, max_rows=100, max_rounds=4,
        hours="08:00-18:00", max_epsilon=2.0,
    )  # fmt: skip
    assert refusal(policy, replace(ASKED, epsilon=2.0)) == ""
    assert "epsilon" in refusal(policy, replace(ASKED, epsilon=2.1))


def test_a_small_cohort_may_still_evaluate() -> None:
    assert refusal(Policy(min_cohort=6), replace(ASKED, evaluate=True)) == ""


@pytest.mark.parametrize(
    ("hours", "minute", "is_in"),
    [
        ("08:00-18:00", 480, True),
        ("08:00-18:00", 1080, False),
        ("22:00-06:00", 1439, True),
        ("22:00-06:00", 0, True),
        ("22:00-06:00", 360, False),
        ("00:00-24:00", 1439, True),
    ],
)
def test_hours(hours, minute, is_in) -> None:
    assert inside(hours, minute) is is_in


@pytest.mark.parametrize("hours", ["8", "08:00", "25:00-06:00", "08:61-09:00", "a-b"])
def test_other_forms_are_refused(hours) -> None:
    with pytest.raises(ConfigError, match=r"\$\.policy\.hours"):
        inside(hours, 0)
