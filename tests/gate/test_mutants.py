"""Ten thousand mutated answers and frames: nobody crashes, none is let in, the model has the same bytes."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from atoll.control.gate.gate import Gate
from atoll.control.gate.gate_worker import Case, look
from atoll.control.gate.want import Want
from atoll.core.aggregate import fold
from atoll.core.edge import Answer
from atoll.core.errors import AtollError, ProtocolError
from atoll.core.update import Update
from atoll.wire.body import Checked, answer_message, answer_of, layout_of, read_answer
from atoll.wire.codec import decode, encode
from tests.gate.answers import CLIENTS, REQUEST, ROUNDS, RUN, Round, spool
from tests.gate.mutants import WAYS, mutant
from tests.laws.test_body import same

ANSWERS, FRAMES, RESEALED = 7000, 3000, 1000
AT_ONCE = 50
KINDS = list(ROUNDS)


async def served(gate: Gate, want: Want, head: bytes, path: Path) -> Answer | str:
    """What a server makes of an upload: an answer, or the reason why not."""
    try:
        return answer_of(await gate.check(want, head, path), path)
    except ProtocolError as error:
        return str(error)


def model(asked: Round, answers: list[Answer]) -> Update:
    """The model after a round of these answers."""
    partials = [fold(asked.rule, a.replies) if a.replies else a.partial for a in answers]
    total = partials[0]
    for partial in partials[1:]:
        total = asked.rule.merge(total, partial)
    return asked.rule.finish(total).update


@pytest.mark.slow
def test_wrong_answers_among_right_ones_change_nothing(tmp_path) -> None:
    """Each honest answer comes between mutants; what is let in makes the model of the honest ones alone."""
    rounds = {kind: Round(**ROUNDS[kind]) for kind in KINDS}
    alone = {kind: model(r, [r.answer()]) for kind, r in rounds.items() if kind not in ("sites", "notes")}
    ways: Counter[str] = Counter()

    async def body() -> None:
        gate = Gate()
        for start in range(0, ANSWERS, AT_ONCE):
            seeds = range(start, start + AT_ONCE)
            kind = KINDS[start // AT_ONCE % len(KINDS)]
            asked = rounds[kind]
            made = [mutant(seed, asked) for seed in seeds]
            ways.update(way for way, _ in made)
            sent = [message for _, message in made]
            sent.insert(AT_ONCE // 2, asked.message())
            paths = [tmp_path / str(i) for i in range(len(sent))]
            heads = [spool(message, path) for message, path in zip(sent, paths, strict=True)]
            came = await asyncio.gather(
                *(served(gate, asked.want(), head, path) for head, path in zip(heads, paths, strict=True))
            )
            let_in = [i for i, answer in enumerate(came) if isinstance(answer, Answer)]
            assert let_in == [AT_ONCE // 2], [(seeds[0] + i, made[i][0]) for i in let_in if i != AT_ONCE // 2]
            honest = came[AT_ONCE // 2]
            assert isinstance(honest, Answer)
            assert same(honest) == same(asked.answer())
            if kind in alone:
                assert model(asked, [honest]) == alone[kind]
            named = "the answer of bank-a to request 4 is refused: "
            assert all(reason.startswith(named) for reason in came if isinstance(reason, str))
        assert gate.struck == 0  # not one of them ended it
        await gate.close()

    asyncio.run(body())
    assert set(ways) == set(WAYS)
    assert min(ways.values()) > ANSWERS // 50


def test_frames_that_were_changed_on_the_way_are_refused() -> None:
    """One to three bytes, or a cut, or a piece twice: the checksums and the SHA-256 see it."""
    messages = [b"".join(encode(Round(**kind).message())) for kind in ROUNDS.values()]
    refused = 0
    for seed in range(FRAMES):
        draw = np.random.default_rng(seed)
        honest = messages[seed % len(messages)]
        data = bytearray(honest)
        match seed % 5:
            case 0 | 1 | 2:
                for place in draw.choice(len(data), seed % 5 + 1, replace=False):
                    data[place] ^= int(draw.integers(1, 256))
            case 3:
                del data[int(draw.integers(len(data))) :]
            case 4:
                place = int(draw.integers(len(data)))
                data[place:place] = data[max(place - 40, 0) : place] or b"x"
        try:
            decode(bytes(data))
        except ProtocolError:
            refused += 1
    assert refused == FRAMES


def test_noise_with_right_hashes_is_refused_or_an_answer_like_any_other(tmp_path) -> None:
    """Bytes changed before they were hashed: what is let in keeps every rule, so a fold takes it.

    A sender may always say another number of the right form; that is for robust rules.
    """
    let_in = 0
    for seed in range(RESEALED):
        draw = np.random.default_rng(seed)
        asked = Round(**ROUNDS[KINDS[seed % len(KINDS)]])
        path = tmp_path / "b"
        head = spool(asked.message(), path)
        data, top = bytearray(path.read_bytes()), bytearray(head)
        where = data if seed % 3 else top
        for place in draw.choice(len(where) if where is top else min(len(where), 600), 2, replace=False):
            where[place] ^= 1 << int(draw.integers(8))
        path.write_bytes(data)
        said = look(Case(seed, asked.want(), bytes(top), str(path), 0))
        assert not said.failed
        if said.values is None:
            assert said.refused
            continue
        let_in += 1
        answer = answer_of(Checked(said.values, said.sections, layout_of(asked.want().leaves)), path)
        again = answer_message(answer, run=RUN, request=REQUEST)
        assert look(Case(seed, asked.want(), spool(again, path), str(path), 0)).refused == ""
        if asked.form not in ("sites", "notes"):
            assert asked.bits or model(asked, [answer]).finite()
    assert 0 < let_in < RESEALED // 2


def test_control_without_the_gate_mutants_come_in_or_raise_what_no_server_expects() -> None:
    asked = Round()
    outcomes: Counter[str] = Counter()
    for seed in range(300):
        _, message = mutant(seed, asked)
        try:
            model(asked, [read_answer(message)])
            outcomes["in"] += 1
        except ProtocolError:
            outcomes["seen anyway"] += 1
        except (AtollError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            outcomes["crash"] += 1
    assert outcomes["in"] > 20
    assert outcomes["crash"] > 0


def test_a_mutant_is_known_by_its_seed() -> None:
    asked = Round()
    (way, one), (other, two) = mutant(3, asked), mutant(3, asked)
    assert way == other
    assert b"".join(encode(one)) == b"".join(encode(two))
    assert asked.answer().clients == CLIENTS
