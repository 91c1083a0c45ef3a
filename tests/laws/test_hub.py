"""The hub's laws, over any sequence of events: a request closes exactly once; replied ⊎ missing =
asked; late, duplicate and unknown replies have no effect.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.core.errors import MisuseError
from atoll.core.hub import Accept, Asked, Closed, Failed, Hub, Left, Replied, Send, Tick, Wake

PEERS = ["a", "b", "c", "d"]


@st.composite
def histories(draw):
    """(time, event) pairs in order of time; asks get growing ids, answers name any id and peer."""
    events, now, asked = [], 0.0, 0
    for kind in draw(
        st.lists(st.sampled_from(["ask", "reply", "reply", "reply", "fail", "left", "tick"]), max_size=40)
    ):
        now += draw(st.sampled_from([0.0, 0.5, 1.0]))
        request, peer = draw(st.integers(0, asked)), draw(st.sampled_from(PEERS))
        if kind == "ask":
            peers = draw(st.lists(st.sampled_from(PEERS), unique=True))
            quorum = draw(st.none() | st.integers(1, len(peers))) if peers else None
            events.append(
                (
                    now,
                    Asked(
                        asked, dict.fromkeys(peers, "?"), quorum, draw(st.sampled_from([None, 0.0, 1.0, 3.0]))
                    ),
                )
            )
            asked += 1
        else:
            events.append(
                (
                    now,
                    {
                        "reply": Replied(request, peer, "!"),
                        "fail": Failed(request, peer, "no"),
                        "left": Left(peer),
                        "tick": Tick(),
                    }[kind],
                )
            )
    return [*events, (now + 10.0, Tick()), *((now + 10.0, Left(peer)) for peer in PEERS)]


def play(events):
    """All asks, and the effects of each event."""
    hub = Hub()
    asks = {event.request: (now, event) for now, event in events if isinstance(event, Asked)}
    return asks, [(now, event, hub.handle(now, event)) for now, event in events], hub


@given(histories())
def test_every_request_closes_exactly_once(events):
    asks, played, hub = play(events)
    closed = [e.request for _, _, effects in played for e in effects if isinstance(e, Closed)]
    assert sorted(closed) == sorted(asks)
    assert hub.table() == {}


@given(histories())
def test_replied_and_missing_are_all_who_were_asked_and_nobody_is_in_both(events):
    asks, played, _ = play(events)
    for _, _, effects in played:
        for e in effects:
            if isinstance(e, Closed):
                assert sorted([*e.replied, *e.missing]) == sorted(asks[e.request][1].messages)


@given(histories())
def test_every_reply_that_counts_is_accepted_before_its_request_closes(events):
    _, played, _ = play(events)
    accepted, over = {}, set()
    for _, _, effects in played:
        for e in effects:
            if isinstance(e, Accept):
                assert e.request not in over
                accepted.setdefault(e.request, []).append(e.peer)
            if isinstance(e, Closed):
                over.add(e.request)
                assert list(e.replied) == accepted.get(e.request, [])


@given(histories())
def test_a_request_closes_at_its_quorum_or_deadline_and_not_before(events):
    asks, played, _ = play(events)
    for now, _, effects in played:
        for e in effects:
            if isinstance(e, Closed):
                began, ask = asks[e.request]
                quorum = len(ask.messages) if ask.quorum is None else ask.quorum
                late = ask.deadline is not None and now >= began + ask.deadline
                everybody = "deadline" not in e.missing.values() and "not needed" not in e.missing.values()
                assert e.enough == (len(e.replied) >= quorum)
                assert len(e.replied) <= quorum
                assert e.enough or late or everybody


@given(histories(), st.data())
def test_repeated_late_and_unknown_answers_have_no_effect(events, data):
    """Whatever was answered once may be answered again at any later time."""
    noisy, asked, answered = [], set(), [Replied(99, "a", "!"), Failed(99, "b", "no"), Replied(99, "nobody")]
    for now, event in events:
        noisy.append((now, event))
        if isinstance(event, Asked):
            asked.add(event.request)
        elif isinstance(event, (Replied, Failed)) and event.request in asked:
            answered.append(event)
        noisy += [(now, again) for again in data.draw(st.lists(st.sampled_from(answered), max_size=2))]
    calm = [effects for _, _, effects in play(events)[1] if effects]
    assert [effects for _, _, effects in play(noisy)[1] if effects] == calm


def test_an_ask_tells_everybody_when_it_ends_and_wakes_the_driver_then():
    effects = Hub().handle(5.0, Asked(0, {"a": 1, "b": 2}, None, 3.0))
    assert effects == [Send(0, "a", 1, 8.0), Send(0, "b", 2, 8.0), Wake(8.0)]


def test_it_closes_at_the_quorum_and_at_the_very_second_of_its_deadline():
    hub = Hub()
    hub.handle(0.0, Asked(0, {"a": 1, "b": 2, "c": 3}, 2, 4.0))
    assert hub.handle(1.0, Replied(0, "c")) == [Accept(0, "c", None)]
    over = Closed(0, ("c", "a"), {"b": "not needed"}, enough=True)
    assert hub.handle(2.0, Replied(0, "a")) == [Accept(0, "a", None), over]
    hub.handle(2.0, Asked(1, {"a": 1, "b": 2}, None, 4.0))
    assert hub.handle(5.9, Tick()) == []
    assert hub.handle(6.0, Tick()) == [Closed(1, (), {"a": "deadline", "b": "deadline"}, enough=False)]


def test_an_ask_of_nobody_is_over_at_once_and_enough():
    assert Hub().handle(0.0, Asked(0, {})) == [Closed(0, (), {}, enough=True)]


@pytest.mark.parametrize(
    "ask",
    [
        Asked(0, {"a": 1}, 2),
        Asked(0, {"a": 1}, 0),
        Asked(0, {"a": 1}, -1),
        Asked(0, {}, 1),
        Asked(0, {"a": 1}, None, -1.0),
        Asked(0, {"a": 1}, None, float("nan")),
    ],
)
def test_impossible_asks_are_refused_and_leave_nothing_open(ask):
    hub = Hub()
    with pytest.raises(MisuseError):
        hub.handle(0.0, ask)
    assert hub.table() == {}


def test_request_ids_grow():
    hub = Hub()
    hub.handle(0.0, Asked(3, {"a": 1}))
    with pytest.raises(MisuseError, match="3 came after 3"):
        hub.handle(0.0, Asked(3, {"a": 1}))
