"""Jobs that promise privacy: clients send bounded updates and nothing else, the server adds the noise."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import atoll as at
from atoll.control import config
from atoll.core.errors import CompositionError, ConfigError, MisuseError, PrivacyError
from atoll.core.transform import transform
from atoll.core.update import Update
from atoll.privacy import dp, noise
from atoll.privacy.claim import Claim

SECRET = bytes(32)
PROMISE = {"epsilon": 8.0, "delta": 1e-4, "clip": 1.0}


class Shift:
    """Answers with a fixed change, larger for later clients; says a metric."""

    def init(self, rng):
        return {"w": np.zeros(500)}

    def fit(self, params, data, ctx):
        if data == "broken":
            raise ValueError("cell 3 holds 17.5")
        return at.Contribution({"w": np.full(500, float(data))}, weight=7.0, metrics={"secret": 1.0})

    def evaluate(self, params, data, ctx):
        return {"w": float(params["w"][0])}


def job(**values) -> at.Job:
    return at.Job(Shift(), **{"cohort": at.everyone(), "rounds": 1, "sites": False, **values})


def test_one_round_is_the_clipped_sum_with_its_noise_over_a_fixed_number() -> None:
    private = job().private(**PROMISE)
    run = at.simulate(private, [1.0, 2.0, 3.0, 4.0], seed=3)
    assert private.privacy is not None
    sum_ = 4 * dp.SLACK / np.sqrt(500)  # every update is longer than the clip
    rest = (run.params["w"] * 4 - sum_) / private.privacy.sigma
    assert abs(rest.mean()) < 0.2 and 0.85 < rest.std() < 1.15
    clipped = at.Algorithm("clipped", at.chain(at.mean(over=4), at.clip(1.0)), weigh="equal")
    plain = at.simulate(job(algorithm=clipped), [1.0, 2.0, 3.0, 4.0], seed=3)
    assert np.allclose(plain.params["w"] * 4, sum_, rtol=1e-6), "control: without noise it is the sum itself"


def test_nothing_else_leaves_a_client() -> None:
    run = at.simulate(job().private(**PROMISE), [1.0, 2.0, "broken"], seed=3)
    record = run.history[-1]
    assert record["train"] == {} and "sites" not in record
    assert record["failed"] == {2: "ValueError"}, "no traceback: it may quote a cell"
    open_ = at.simulate(job(), [1.0, 2.0, "broken"], seed=3).history[-1]
    assert open_["train"] == {"secret": 1.0} and "17.5" in open_["failed"][2], "control"


def test_weights_of_rows_do_not_count() -> None:
    assert job().private(**PROMISE).trained.weigh == "equal"


def test_the_same_sum_has_the_same_noise_and_another_sum_another() -> None:
    one, other = Update.of({"w": np.arange(5.0)}), Update.of({"w": np.arange(5.0) + 1e-12})
    key = dp.sum_key(SECRET, 3, (1, 2), one)
    assert key == dp.sum_key(SECRET, 3, (2, 1), one) and len(key) == noise.KEY
    for changed in (
        dp.sum_key(SECRET, 4, (1, 2), one),
        dp.sum_key(SECRET, 3, (1, 3), one),
        dp.sum_key(SECRET, 3, (1, 2), other),
        dp.sum_key(bytes(31) + b"\1", 3, (1, 2), one),
    ):
        assert changed != key
    with pytest.raises(MisuseError, match="secret"):
        dp.sum_key(b"", 3, (1, 2), one)


def test_who_is_drawn_is_no_business_of_the_jobs_seed() -> None:
    found = {tuple(dp.cohort_stream(bytes([k]) * 32, 0).generator().random(3)) for k in range(20)}
    assert len(found) == 20
    assert dp.cohort_stream(SECRET, 0) != dp.cohort_stream(SECRET, 1)


def test_clients_are_not_told_how_many_were_drawn() -> None:
    seen = []

    class Asked(Shift):
        def fit(self, params, data, ctx):
            return super().fit(params, data, ctx)

    original = at.fedavg().rule.at

    def at_(self, points, cohort, key):
        seen.append((points.cohort, tuple(cohort)))
        return original(points, cohort, key)

    private = dataclasses.replace(job(cohort=at.poisson(0.5), rounds=6), learner=Asked()).private(**PROMISE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(at.fedavg().rule), "at", at_)
        at.simulate(private, [1.0] * 40, seed=1)
    assert set(seen) == {(40, tuple(range(20)))}, "the same in every round, whoever was drawn"


def test_what_a_promise_costs_is_known_before() -> None:
    private = job(cohort=at.poisson(0.1), rounds=60).private(epsilon=2.0, delta=1e-5, clip=0.5)
    assert private.privacy is not None
    assert private.privacy.sigma == pytest.approx(1.8606, rel=1e-3)
    assert 1.99 < private.epsilon().epsilon <= 2.0 < private.epsilon().known
    assert (
        str(private.trained.chain)
        == f"chain(mean(share=0.1), clip(0.5), gaussian({private.privacy.sigma:g}))"
    )


def test_a_server_optimiser_stays() -> None:
    private = job(algorithm=at.fedadam(lr=0.1)).private(**PROMISE)
    assert [str(part).partition("(")[0] for part in private.trained.chain.steps] == [
        "adam",
        "mean",
        "clip",
        "gaussian",
    ]
    assert np.isfinite(at.simulate(private, [1.0] * 5, seed=1).params["w"]).all()


def test_the_same_run_twice() -> None:
    private = job(cohort=at.poisson(0.5), rounds=4).private(**PROMISE)
    data = [float(k) for k in range(10)]
    one, two = (at.simulate(private, data, seed=5) for _ in range(2))
    assert np.array_equal(one.params["w"], two.params["w"])
    assert not np.array_equal(one.params["w"], at.simulate(private, data, seed=6).params["w"])


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda: at.chain(at.mean(over=4), at.gaussian(1.0)), r"put clip\(...\) before"),
        (lambda: at.chain(at.mean(), at.clip(1.0), at.gaussian(1.0)), r"how many came.*mean\(over"),
        (lambda: at.chain(at.mean(over=4), at.gaussian(1.0), at.clip(1.0)), r"put clip\(...\) before"),
        (lambda: at.chain(at.mean(over=4), at.clip(1.0), at.gaussian(1.0), at.gaussian(1.0)), "twice"),
        (
            lambda: at.chain(at.mean(over=4), at.clip(1.0), at.topk(0.1), at.gaussian(1.0)),
            r"put topk\(0.1\) before",
        ),
        (
            lambda: at.chain(
                at.mean(over=4),
                at.clip(1.0),
                transform("tenfold", lambda u, s, c: (u.scale(10.0), s)),
                at.gaussian(1.0),
            ),
            "put tenfold before it",
        ),
        (
            lambda: at.Algorithm("x", at.chain(at.mean(over=4), at.clip(1.0), at.gaussian(1.0))),
            'weigh="equal"',
        ),
        (
            lambda: at.Algorithm(
                "x",
                at.chain(at.mean(over=4), at.clip(1.0), at.gaussian(1.0)),
                weigh="equal",
                rule=at.Gather(lambda u: np.median(u, axis=0)),
            ),
            "sized for a sum",
        ),
        (at.fednova, "no bound covers"),
        (lambda: at.chain(at.mean(), at.clip(1.0)), "both bound updates"),
        (lambda: at.fedbuff(size=2), "rounds of its own"),
    ],
)
def test_what_noise_would_not_cover_is_refused(made, words: str) -> None:
    with pytest.raises(CompositionError, match=words):
        job(algorithm=made()).private(**PROMISE).trained  # noqa: B018


@pytest.mark.parametrize(
    ("values", "promise", "error", "words"),
    [
        ({}, {"clip": 0.0}, ConfigError, r"\$\.privacy\.clip"),
        ({}, {"delta": 1.0}, ConfigError, r"\$\.privacy\.delta"),
        ({}, {"epsilon": -1.0}, ConfigError, r"\$\.privacy\.epsilon"),
        ({}, {"unit": "row"}, ConfigError, r"\$\.privacy\.unit"),
        ({}, {"population": 100, "delta": 0.02}, ConfigError, "not below 1/100"),
        ({"rounds": 30}, {"sigma": 0.3}, PrivacyError, "claims epsilon 8"),
        ({"cohort": at.power_of_choice(2, 3)}, {}, ConfigError, r"\$\.cohort.*poisson"),
        ({"cohort": at.sample(0.5, over=1.5)}, {}, ConfigError, "without `over`"),
        ({"cohort": at.sample(0.5, by="size")}, {}, ConfigError, 'by="uniform"'),
        ({"cohort": at.sample(0.5)}, {}, ConfigError, "give population"),
    ],
)
def test_promises_that_cannot_be_kept_are_refused(values, promise, error, words: str) -> None:
    with pytest.raises(error, match=words):
        job(**values).private(**{**PROMISE, **promise})


def test_a_chain_with_noise_does_not_let_sites_say_how_they_do() -> None:
    chain = at.chain(at.mean(over=4), at.clip(1.0), at.gaussian(1.0))
    with pytest.raises(ConfigError, match=r"\$\.sites"):
        at.Job(Shift(), chain, sites=True)


def test_a_sample_of_fixed_size_with_its_population() -> None:
    private = job(cohort=at.sample(0.5), rounds=5).private(**PROMISE, population=10)
    assert 7.9 < private.epsilon().epsilon <= 8.0
    assert np.isfinite(at.simulate(private, [1.0] * 10, seed=1).params["w"]).all()


def test_a_job_that_promises_nothing_costs_nothing_one_could_name() -> None:
    with pytest.raises(ConfigError, match="promises no privacy"):
        job().epsilon()


FILE = {
    "rounds": 5,
    "learner": "softmax",
    "cohort": {"name": "poisson", "rate": 0.5},
    "data": {"name": "digits"},
    "privacy": {"epsilon": 8.0, "delta": 1e-4, "clip": 1.0},
}


def test_a_job_file_says_the_same() -> None:
    made = config.parse(FILE).job
    assert made.privacy is not None and made.sites is False
    assert made.privacy.sigma == job(cohort=at.poisson(0.5), rounds=5).private(**PROMISE).privacy.sigma
    told = {**FILE, "privacy": made.privacy.values()}
    assert config.parse(told).job.privacy == made.privacy, "with its sigma nothing is solved again"


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("yes", "a table"),
        ({"epsilon": 8.0, "delta": 1e-4}, r"\$\.privacy\.clip"),
        ({"epsilon": 8.0, "delta": 1e-4, "clip": 1.0, "noises": 1.0}, "unknown key 'noises'"),
        ({"epsilon": "8", "delta": 1e-4, "clip": 1.0}, r"\$\.privacy\.epsilon"),
    ],
)
def test_a_job_file_that_promises_nonsense(table, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        config.parse({**FILE, "privacy": table})


def test_a_claim_is_true_or_said_to_be_false() -> None:
    true = Claim(8.0, 1e-4, 1.0, 5.0)
    assert true.check(at.everyone(), 5).epsilon < 8.0
    with pytest.raises(PrivacyError, match="leave sigma out"):
        Claim(0.1, 1e-4, 1.0, 5.0).check(at.everyone(), 5)


def test_a_promise_is_held_against_the_clients_there_are() -> None:
    fixed = job(cohort=at.sample(0.5), rounds=5).private(**PROMISE, population=10)
    with pytest.raises(PrivacyError, match="give population = 8"):
        at.simulate(fixed, [1.0] * 8, seed=1)
    loose = job().private(epsilon=8.0, delta=0.2, clip=1.0)
    with pytest.raises(PrivacyError, match="not below 1/5"):
        at.simulate(loose, [1.0] * 5, seed=1)
