"""compress(): what it takes on which link, that it keeps to it, and what it may not stand beside."""

from dataclasses import replace

import numpy as np
import pytest

import atoll as at
from atoll.control.config import parse
from atoll.control.remote.restate import table as restated
from atoll.core.errors import CompositionError, ConfigError
from atoll.core.rng import Rng
from atoll.core.transform import Context, chain
from atoll.core.update import Update
from atoll.learn.algorithm import Algorithm
from atoll.learn.auto import LEAST, SHARE, How, auto, choose, chosen, compress, linked
from atoll.learn.compress import topk
from atoll.learn.quantise import int2, int4, int8
from atoll.learn.ring import ring
from atoll.learn.secure import secure_sum
from atoll.learn.server import mean
from atoll.privacy.dp import clip
from atoll.wire.coded import Coded

SLOW, FAST = 1.25e6, 1e9  # bytes a second


def update(size: int = 300_000, seed: int = 0) -> Update:
    """Most numbers small, as in training."""
    x = np.random.default_rng(seed).standard_t(3, size).astype(np.float32)
    return Update.of({"w": x})


def ctx(cohort: int = 10, round: int = 0) -> Context:
    return Context(Rng.of(5).at(round), round=round, population=cohort)


@pytest.mark.parametrize(
    ("how", "cohort", "bits"),
    [
        (How(FAST), 10, 0),
        (How(SLOW), 10, 2),
        (How(SLOW), 9, 4),
        (How(SLOW, mild=True), 10, 4),
        (How(SLOW, mild=True, hidden=True), 10, 4),
        (How(FAST, hidden=True), 10, 0),
        (How(30e6), 10, 8),  # 40 ms as it is, 10 in 8 bits: four save no 20 more
        (How(SLOW, speed=1e6), 10, 0),  # a device on which encoding takes longer than sending
    ],
)
def test_a_level_is_taken_where_it_pays(how: How, cohort: int, bits: int) -> None:
    assert choose(update(), how, cohort, Rng.of(1)) == bits


def test_little_is_left_as_it_is_on_any_link_that_is_not_slow_for_it() -> None:
    assert 4 * 5000 / SLOW < LEAST < 4 * 8000 / SLOW and SHARE == 0.1
    assert choose(update(5000), How(SLOW), 10, Rng.of(1)) == 0
    assert choose(update(5000), How(SLOW / 10), 10, Rng.of(1)) != 0


def test_zeros_pack_by_themselves() -> None:
    """Packing without loss is there anyway: what it saves, a lossy level does not."""
    x = np.zeros(300_000, np.float32)
    x[::10_000] = 1.0
    assert choose(Update.of({"w": x}), How(SLOW), 10, Rng.of(1)) == 0
    assert choose(Update.of({"w": x}), How(SLOW, hidden=True), 10, Rng.of(1)) == 2, "it is not looked at"


def test_the_first_choice_is_kept_whatever_comes() -> None:
    whole = chain(mean(), compress())
    slow, fast = linked(whole, SLOW, 1e9), linked(whole, FAST, 1e9)
    state = whole.start(update(), "out")
    assert chosen(whole, state) is None and chosen(whole, None) is None
    first, kept = slow.out(update(), state, ctx())
    assert isinstance(first, Coded) and first.code.bits == chosen(slow, kept) == 2
    later, still = fast.out(update(seed=1), kept, ctx(3, round=1))
    assert isinstance(later, Coded) and later.code.bits == 2 and still == kept
    plain, kept = fast.out(update(), state, ctx())
    assert plain == update() and not isinstance(plain, Coded) and chosen(fast, kept) == 0
    assert not isinstance(slow.out(update(seed=1), kept, ctx(round=1))[0], Coded)
    again, _ = slow.out(update(), state, ctx())
    assert isinstance(again, Coded) and again.packed.tobytes() == first.packed.tobytes()


def test_a_level_says_what_its_codec_says() -> None:
    out, _ = chain(mean(), compress()).out(update(), (None, _state(4)), ctx())
    same, _ = chain(mean(), int4()).out(update(), (None, None), ctx())
    assert out == same


def _state(bits: int) -> Update:
    return Update.of({"bits": np.array([bits], np.float32)})


def test_what_is_not_finite_is_passed_on_and_decides_nothing() -> None:
    bad = update()
    bad = Update(bad.layout, np.where(np.arange(bad.layout.size) == 7, np.nan, bad.buffer))
    whole = chain(mean(), compress())
    out, kept = whole.out(bad, whole.start(bad, "out"), ctx())
    assert np.isnan(out.buffer[7]) and chosen(whole, kept) is None


def test_rows_of_a_table_are_small_already() -> None:
    few = Update.of({"w": np.zeros((3, 2), np.float32)}).zeros()
    rows = {"w": (np.array([1]), np.ones((1, 2), np.float32))}
    sparse = Update(few.layout, few.buffer, rows=rows)  # type: ignore[arg-type]
    whole = chain(mean(), compress())
    assert whole.out(sparse, whole.start(few, "out"), ctx())[0] is sparse


@pytest.mark.parametrize(
    ("steps", "why"),
    [
        ([mean(), compress(), compress(uplink=1.0)], "stands twice: keep one"),
        ([mean(), topk(0.1), compress()], r"topk\(0.1\) codes them already: keep topk\(0.1\) where the job"),
        ([mean(), compress(), int8()], r"int8\(\) codes them already"),
        ([mean(), clip(1.0), compress()], r"put compress\(\) before clip"),
        ([mean(), compress(), ring(40)], r"whole numbers that ring\(40\) makes.*leave compress\(\) out"),
    ],
)
def test_what_it_may_not_stand_beside(steps: list, why: str) -> None:
    with pytest.raises(CompositionError, match=why):
        Algorithm("own", chain(*steps))
    with pytest.raises(ConfigError, match="uplink must be above 0 Mbit/s, got 0"):
        compress(uplink=0)


MLP = at.mlp(hidden=[256, 256], lr=0.2)


def job(**more: object) -> at.Job:
    return at.Job(MLP, cohort=at.sample(0.5), rounds=3, compression="auto", **more)  # type: ignore[arg-type]


def how(made: at.Job) -> How:
    found = auto(made.trained.chain)
    assert found is not None
    return found.how


def test_a_job_says_auto() -> None:
    assert how(job()) == How(SLOW)
    assert [str(s) for s in job(algorithm=at.fedadam(lr=0.1)).trained.chain.steps] == [
        "adam(lr=0.1)",
        "mean()",
        "compress()",
    ]
    assert how(job(algorithm=at.robust(at.median()))).mild, "mostly 0, a median of them is a bad guess"
    with pytest.raises(ConfigError, match=r"compression is .auto. or .none., got 'int8': .*small\(up=int4"):
        at.Job(MLP, compression="int8")  # type: ignore[arg-type]
    with pytest.raises(CompositionError, match=r"int2\(\) codes them already"):
        job(algorithm=at.small())
    with pytest.raises(CompositionError, match=r"that the exchange makes.*leave compress\(\) out"):
        job(exchange=secure_sum())
    with pytest.raises(CompositionError, match="clients of gossip send each other models"):
        job(algorithm=at.gossip())


def test_under_a_promise_the_choice_does_not_follow_the_update() -> None:
    private = job().private(epsilon=8.0, delta=1e-4, clip=1.0, sigma=5.0, population=20)
    found = how(private)
    assert found.hidden and found.mild
    sizes = set()
    for seed, factor in ((0, 1.0), (1, 0.0), (2, 1e-3)):
        x = update(seed=seed).scale(factor)
        out, state = private.trained.chain.out(x, private.trained.chain.start(x, "out"), ctx())
        assert chosen(private.trained.chain, state) == 4
        sizes.add(type(out))
    assert len(sizes) == 1
    with pytest.raises(CompositionError, match="noise of each client's own, where no compact form is left"):
        job().private(epsilon=8.0, delta=1e-4, clip=1.0, sigma=5.0, noise="local", population=20)


TABLE = {
    "rounds": 3,
    "data": {"name": "digits", "clients": 20},
    "learner": {"name": "mlp", "hidden": [256, 256], "lr": 0.2},
    "cohort": {"name": "sample", "fraction": 0.5},
}


def sent(run: at.Run) -> list[int]:
    return [entry["up"] for entry in run.history[1:]]


def test_a_job_file_with_the_key_sends_less_and_the_same_bytes_again() -> None:
    def played(**more: object) -> at.Run:
        file = parse({**TABLE, **more})
        return at.simulate(file.job, file.sites(), seed=7)

    small, again, whole = played(compression="auto"), played(compression="auto"), played()
    assert sent(small) == sent(again) and small.params == again.params
    assert max(sent(small)) < 0.1 * min(sent(whole))
    assert abs(small.metrics["accuracy"] - whole.metrics["accuracy"]) < 0.1
    assert restated(parse({**TABLE, "compression": "auto"}).job)["compression"] == "auto"
    assert "compression" not in restated(parse(TABLE).job), "members of older versions refuse keys"


def test_a_declared_uplink_is_what_a_simulation_goes_by() -> None:
    sites = parse(TABLE).sites()
    fast = replace(job(), compression="none", algorithm=at.small(up=compress(uplink=10_000.0)))
    whole = replace(job(), compression="none")
    assert sent(at.simulate(fast, sites, seed=7)) == sent(at.simulate(whole, sites, seed=7))


def test_levels_are_those_the_codecs_have() -> None:
    for bits, codec in ((8, int8()), (4, int4()), (2, int2())):
        out, _ = codec.out(update(2000), None, ctx())
        assert isinstance(out, Coded) and out.code.bits == bits
