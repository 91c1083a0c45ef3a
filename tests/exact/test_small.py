"""Small updates and steps put together: where parts stand, what the model's steps are, and that it trains."""

import numpy as np
import pytest

from atoll.control.config import parse
from atoll.core.errors import CompositionError, ConfigError
from atoll.core.rng import Rng
from atoll.core.transform import Context, chain
from atoll.core.update import Update
from atoll.job import Job, tree
from atoll.learn.algorithm import Algorithm, fedadam
from atoll.learn.compress import topk
from atoll.learn.fednova import fednova
from atoll.learn.gossip import gossip
from atoll.learn.qfedavg import qfedavg
from atoll.learn.quantise import int2, int8
from atoll.learn.ring import ring
from atoll.learn.scaffold import scaffold
from atoll.learn.server import mean
from atoll.learn.small import small
from atoll.learn.thin import thin
from atoll.privacy.dp import clip
from atoll.run import simulate
from atoll.transport.delta import make, restore
from atoll.transport.frames import FrameFile
from atoll.wire.body import params_message
from atoll.wire.codec import encode
from tests.exact.quadratic import Bowl, Quadratic, Sites, optimum

CTX = Context(Rng.of(0))
SITES = Sites([Bowl([1.0, 4.0], [1.0, -2.0], rows=3), Bowl([3.0, 1.0], [-1.0, 2.0], rows=7)])


@pytest.mark.parametrize(
    ("made", "steps"),
    [
        (small(), ["mean()", "int2()"]),
        (small(fedadam(lr=0.1), int8(), thin(0.5)), ["thin(0.5)", "adam(lr=0.1)", "mean()", "int8()"]),
        (small(fednova()), ["int2()", "nova(0)", "mean()"]),
        (
            small(Algorithm("own", chain(mean(), clip(1.0), ring(40))), topk(0.5)),
            ["mean()", "topk(0.5)", "clip(1)", "ring(40)"],
        ),
    ],
    ids=lambda x: x.name if isinstance(x, Algorithm) else "",
)
def test_each_part_stands_where_it_belongs(made, steps) -> None:
    assert [str(t) for t in made.chain.steps] == steps


def test_a_job_file_names_the_parts() -> None:
    table = {
        "learner": {"name": "mlp", "hidden": [4]},
        "algorithm": {
            "name": "small",
            "of": {"name": "fedadam", "lr": 0.02},
            "up": {"name": "topk", "fraction": 0.1, "bits": 1},
            "down": "thin",
        },
    }
    chain = parse(table).job.trained.chain
    assert str(chain) == "chain(thin(0.05), adam(lr=0.02), mean(), topk(0.1, bits=1))"
    with pytest.raises(ConfigError, match=r"\$\.algorithm\.up"):
        parse({**table, "algorithm": {"name": "small", "up": {"name": "topk", "fraction": 2}}})


def test_parts_that_fit_neither_place_are_refused() -> None:
    with pytest.raises(CompositionError, match="takes a step on the mean"):
        small(up=thin())
    with pytest.raises(CompositionError, match="send each other models"):
        small(gossip())
    with pytest.raises(CompositionError, match="qfedavg appends a number"):
        small(qfedavg())
    with pytest.raises(CompositionError, match="both divide the sum"):
        small(up=mean())


def test_a_private_job_stays_compact_under_its_clip() -> None:
    job = Job(Quadratic(), small(up=int8()), rounds=1, sites=False)
    private = job.private(epsilon=8.0, delta=1e-4, clip=1.0, sigma=5.0)
    assert [t.name.partition("(")[0] for t in private.trained.chain.steps] == [
        "mean",
        "int8",
        "clip",
        "gaussian",
    ]


def test_thin_moves_only_the_largest_by_a_power_of_two_and_forgets_nothing() -> None:
    part = thin(0.25)
    delta = Update.of({"w": np.array([3.0, -1.0, 0.5, 0.25])})
    step, e = part.back(delta, part.start(delta, "back"), CTX)
    assert step["w"].tolist() == [4.0, 0.0, 0.0, 0.0]
    assert e["w"].tolist() == [-1.0, -1.0, 0.5, 0.25]
    step, e = part.back(delta.zeros(), e, CTX)
    assert step["w"].tolist() == [-1.0, 0.0, 0.0, 0.0]
    for odd in (np.nan, np.inf, 0.0):
        lost = Update.of({"w": np.full(4, odd)})
        step, after = part.back(lost, delta.zeros(), CTX)
        np.testing.assert_array_equal(step["w"], lost["w"])
        assert after == delta.zeros()
    with pytest.raises(ConfigError, match="fraction must be above 0"):
        thin(0.0)


@pytest.mark.parametrize(
    "algorithm", [small(up=int8(), down=thin(0.5)), chain(thin(0.5), mean())], ids=["both", "down"]
)
def test_thin_steps_reach_the_optimum(algorithm) -> None:
    job = Job(Quadratic(lr=0.01, steps=1), algorithm, rounds=1000, every=1000)
    run = simulate(job, SITES)
    np.testing.assert_allclose(run.params["w"], optimum(SITES, by_rows=True), atol=0.05)
    assert simulate(job.replace(topology=tree((2,))), SITES).params == run.params


def test_what_thin_keeps_back_outlives_a_kill(tmp_path) -> None:
    job = Job(Quadratic(lr=0.01, steps=1), small(up=topk(0.5), down=thin(0.5)), rounds=20)
    run = simulate(job, SITES)

    def cut(record) -> None:
        if record["round"] == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate(job, SITES, out=tmp_path, watch=cut)
    assert simulate(job, SITES, out=tmp_path, resume=True).params == run.params


def test_after_thin_steps_a_delta_is_a_fortieth_of_the_model_and_gives_the_same_bytes(tmp_path) -> None:
    rng = np.random.default_rng(0)
    like = Update.of({"w": rng.normal(size=(300, 200)).astype("f4") * 0.05})
    part, sizes = thin(0.05), {}
    for name, back in (("thin", part.back), ("plain", lambda d, e, ctx: (d, e))):
        old, e = like, part.start(like, "back")
        for k in range(3):
            delta = Update.of({"w": rng.normal(size=(300, 200)) * 1e-3})
            step, e = back(delta, e, Context(Rng.of(k)))
            new = Update(like.layout, (old.buffer + step.buffer).astype("f4"))
            paths = [tmp_path / f"{name}{i}" for i in range(4)]
            for path, params in zip(paths, (old, new), strict=False):
                path.write_bytes(b"".join(encode(params_message(params))))
            if made := make(FrameFile.of(paths[0]), FrameFile.of(paths[1]), paths[2]):
                restore(paths[0], paths[2], paths[3])
                assert paths[3].read_bytes() == paths[1].read_bytes()
            sizes[name] = paths[2 if made else 1].stat().st_size / paths[1].stat().st_size
            old = new
    assert sizes["thin"] < 0.03
    assert sizes["plain"] > 0.5  # control


def test_scaffold_sends_its_second_group_small_as_well() -> None:
    made = small(scaffold(), int8())
    run = simulate(Job(Quadratic(lr=0.01, steps=3), made, rounds=600, every=600), SITES)
    np.testing.assert_allclose(run.params["w"], optimum(SITES, by_rows=False), atol=0.05)
    assert int2().name in str(small(scaffold()).chain)
