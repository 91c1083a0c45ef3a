"""The durable driver: killed at every record it writes, it ends with the bytes of the undisturbed run."""

import asyncio
import itertools
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest

import atoll as at
from atoll.job import prepare
from tests.drive.parts import Disk, federation
from tests.federation.virtual import Killed, run

DATA = at.partition(at.load_data("wine"), clients=5, by=at.dirichlet(1.0), seed=1)
JOBS = {
    "fedavg": at.Job(at.softmax(lr=0.1), rounds=3),
    "fedadam": at.Job(at.softmax(lr=0.1), at.fedadam(), cohort=at.sample(0.6), rounds=3),
    "early": at.Job(at.softmax(lr=0.1), rounds=5, stop=at.early("loss", patience=1)),
    "scaffold": at.Job(at.softmax(lr=0.1), at.scaffold(), rounds=3),
    "median": at.Job(at.softmax(lr=0.1), at.Gather(lambda u: np.median(u, axis=0)), rounds=2),
    "robust": at.Job(at.softmax(lr=0.1), at.robust(at.recommended(1), momentum=0.5), rounds=3),
    "choice": at.Job(at.softmax(lr=0.1), cohort=at.power_of_choice(2, 4), rounds=2),
}


def finish(job, disk, *, seed=3, luck=0, lose=0.0):
    """Run to the end, restarting after each kill; the last progress and the lives it took."""
    lives = 0
    while True:
        lives += 1
        try:
            return run(_life(job, disk, seed, np.random.default_rng([luck, lives]), lose)), lives
        except Killed:
            continue


async def _life(job, disk, seed, dice, lose):
    drive, _ = federation(job, DATA, seed, disk, dice, lose)
    return await drive.run()


class Watched(Disk):
    """Refuses a request that closes twice."""

    def closed(self, request, replied, missing):
        super().closed(request, replied, missing)
        assert request not in self.seen
        self.seen.add(request)

    def __init__(self, before):
        super().__init__(before=before)
        self.seen = set()


def bomb(at_call):
    """Dies at the n-th record, once."""
    seen = 0

    def before(what):
        nonlocal seen
        seen += 1
        if seen == at_call:
            raise Killed(what)

    return before


@pytest.mark.parametrize("name", JOBS)
def test_a_drive_gives_the_bytes_of_the_simulation(name):
    job = JOBS[name]
    progress, _ = finish(job, Disk())
    sim = at.simulate(job, DATA, seed=3)
    best = progress.best[2] if progress.best else progress.params
    served = getattr(prepare(job, DATA), "served", lambda params: params)
    assert served(best).buffer.tobytes() == sim.params.buffer.tobytes()


@pytest.mark.parametrize("name", JOBS)
def test_killed_at_every_record_it_ends_with_the_same_bytes(name):
    job = JOBS[name]
    calls = []
    whole, _ = finish(job, Disk(before=calls.append))
    for n in range(1, len(calls) + 1):
        disk = Disk(before=bomb(n))
        progress, lives = finish(job, disk, luck=n)
        assert lives == 2, (n, calls[n - 1])
        assert progress.params.buffer.tobytes() == whole.params.buffer.tobytes(), (n, calls[n - 1])
        assert [r["round"] for _, r in sorted(disk.noted.items())] == list(range(whole.round + 1))


def test_killed_again_and_again():
    job = JOBS["fedadam"]
    whole, _ = finish(job, Disk())
    dice = np.random.default_rng(5)

    def before(what):
        if dice.random() < 0.2:
            raise Killed(what)

    progress, lives = finish(job, Disk(before=before))
    assert lives > 5
    assert progress.params.buffer.tobytes() == whole.params.buffer.tobytes()


def test_an_overselected_round_keeps_its_cohort_over_a_kill():
    """Who answered first is luck; once a round closed, a restart must not choose anew."""
    job = at.Job(at.softmax(lr=0.1), cohort=at.sample(count=2, over=2.0), rounds=3)
    calls = []
    finish(job, Disk(before=calls.append))
    for n in range(1, len(calls) + 1):
        progress, _ = finish(job, Watched(before=bomb(n)), luck=7 + n)
        assert progress.round == 3


def test_fedbuff_resumes():
    job = at.Job(at.softmax(lr=0.1), at.fedbuff(size=2), cohort=at.sample(0.6), rounds=4)
    calls = []
    finish(job, Disk(before=calls.append))
    for n in range(1, len(calls) + 1):
        progress, _ = finish(job, Watched(before=bomb(n)), luck=n)
        assert progress.round == 4


def test_refusals_count_as_missing():
    progress, _ = finish(JOBS["fedavg"], Disk(), lose=0.3)
    assert progress.round == 3


def test_letters_between_members_are_refused_with_what_to_do():

    async def main(p):
        await p.send("client1", "hello", 1)

    async def life():
        drive, _ = federation(JOBS["fedavg"], DATA, 3, Disk(), np.random.default_rng(0))
        drive._main = main
        await drive.run()

    with pytest.raises(at.MisuseError, match="answer a coordinator"):
        run(life())


def test_cancelling_withdraws_what_was_asked():
    async def life():
        drive, peers = federation(JOBS["fedavg"], DATA, 3, Disk(), np.random.default_rng(0))
        task = asyncio.ensure_future(drive.run())
        await asyncio.sleep(0.01)
        assert drive.table()
        before = len(peers.counted)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait(peers.tasks.values())
        assert len(peers.counted) == before < 5

    run(life())


class Batched(Disk):
    """It tells how many answers each transaction held."""

    def __init__(self) -> None:
        super().__init__(before=self._came)
        self.together = []
        self.open = False

    @contextmanager
    def batch(self):
        self.together.append(0)
        self.open = True
        yield
        self.open = False

    def _came(self, what):
        if what == "answered" and self.open:
            self.together[-1] += 1


@pytest.mark.parametrize(("apart", "together"), [(0.001, 5), (1.0, 0)])
def test_answers_that_come_within_a_moment_are_recorded_together(apart, together):
    """With a second between them they are not: the control."""
    waits = (apart * k for k in itertools.count(1))
    dice = SimpleNamespace(exponential=lambda _: next(waits), random=lambda: 1.0)
    disk = Batched()

    async def main():
        drive, _ = federation(JOBS["fedavg"].replace(rounds=1, sites=False), DATA, 3, disk, dice)
        return await drive.run()

    assert len(run(main()).used) == 5
    assert max(disk.together, default=0) == together
