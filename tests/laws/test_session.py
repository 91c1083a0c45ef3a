"""A session's law: whatever the net loses, repeats or reorders, every body arrives exactly once and
in order as long as something gets through in the end; and it never hands out what was not sent.
"""

from hypothesis import given
from hypothesis import strategies as st

from atoll.core.session import Packet, Session


class Net:
    """Two sessions and the packets between them, each of which may come at any time, or never."""

    def __init__(self):
        self.ends = {"a": Session(), "b": Session()}
        self.flying = {"a": [], "b": []}
        self.sent = {"a": [], "b": []}
        self.got = {"a": [], "b": []}

    def push(self, end):
        body = len(self.sent[end])
        self.sent[end].append(body)
        self.flying[end].append(self.ends[end].push(body))

    def arrive(self, end, index, *, keep):
        """One of the packets that `end` sent reaches the other side; `keep`: it may come again."""
        other = "b" if end == "a" else "a"
        if not self.flying[end]:
            return
        at = index % len(self.flying[end])
        packet = self.flying[end][at] if keep else self.flying[end].pop(at)
        self.got[other] += self.ends[other].arrived(packet)
        if packet.number:
            self.flying[other].append(self.ends[other].ack())

    def lose(self, end, index):
        if self.flying[end]:
            self.flying[end].pop(index % len(self.flying[end]))

    def resend(self, end):
        self.flying[end] += self.ends[end].unacked()


steps = st.tuples(
    st.sampled_from(["push", "arrive", "repeat", "lose", "resend"]), st.sampled_from("ab"), st.integers(0, 9)
)


def play(schedule):
    net = Net()
    for what, end, index in schedule:
        match what:
            case "push":
                net.push(end)
            case "lose":
                net.lose(end, index)
            case "resend":
                net.resend(end)
            case _:
                net.arrive(end, index, keep=what == "repeat")
        for got, sent in (("a", "b"), ("b", "a")):
            assert net.got[got] == net.sent[sent][: len(net.got[got])]
    return net


@given(st.lists(steps, max_size=80))
def test_bodies_arrive_once_and_in_order_on_any_net(schedule):
    play(schedule)


@given(st.lists(steps, max_size=60))
def test_once_packets_get_through_everything_arrives_and_nothing_is_kept(schedule):
    net = play(schedule)
    net.resend("a")
    net.resend("b")
    while net.flying["a"] or net.flying["b"]:
        net.arrive("a", 0, keep=False)
        net.arrive("b", 0, keep=False)
    assert net.got == {"a": net.sent["b"], "b": net.sent["a"]}
    assert not net.ends["a"].unacked() + net.ends["b"].unacked()


@given(st.permutations(range(6)))
def test_what_arrives_in_any_order_is_complete_without_being_sent_again(order):
    a, b = Session(), Session()
    packets = [a.push(i) for i in range(6)]
    assert [body for i in order for body in b.arrived(packets[i])] == list(range(6))
    a.arrived(b.ack())
    assert a.unacked() == []


@given(st.integers(1, 10**9), st.integers(1, 10**9))
def test_a_packet_that_acknowledges_more_than_was_sent_does_no_harm(number, seen):
    session = Session()
    session.push("one")
    session.arrived(Packet(number, seen, "x"))
    assert session.unacked() == []
    assert session.push("two").number == 2
    assert [p.body for p in session.unacked()] == ["two"]
