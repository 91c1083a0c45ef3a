"""Who is reached through whom, as reports come and go in any order."""

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.control.engine.coordinator import Coordinator
from atoll.control.engine.fleet import Fleet
from atoll.control.engine.homes import Homes
from atoll.core.errors import ConfigError

ROWS = {"data": {"heart": {"rows": 10}}}


def test_the_way_reported_last_counts_and_the_one_before_takes_over() -> None:
    fleet = Fleet()
    fleet.joined("edge-a", "edge", {"below": {"c": ROWS}})
    assert fleet.homes({"c": 0}) == {"edge-a": [0]}
    assert fleet.joined("c", "client", ROWS) == [("c", "edge-a")]
    assert fleet.homes({"c": 0}) == {"c": [0]}
    assert fleet.left("c") == [("c", "c")]
    assert fleet.homes({"c": 0}) == {"edge-a": [0]}
    assert fleet.below("edge-a", {}) == []
    assert fleet.homes({"c": 0}) == {"edge-a": [0]}, "remembered where it was last"
    assert fleet.homes({"c": 0}, here=True) == {}


def test_what_it_says_counts_by_the_way_it_came_last() -> None:
    fleet, rests = Fleet(), {"held": "it rests after work", "rule": "duty"}
    fleet.joined("edge-a", "edge", {"below": {"c": ROWS}})
    fleet.joined("c", "client", ROWS)
    fleet.told("c", rests)
    fleet.below("edge-a", {"c": ROWS})  # which has not noticed that it left
    assert fleet.held(["c"]) == fleet.resting(["c"]) == ["c"]
    fleet.left("c")
    assert fleet.held(["c"]) == []
    fleet.below("edge-a", {"c": {**ROWS, "power": rests}})
    assert fleet.resting(["c"]) == ["c"]
    fleet.left("edge-a")
    assert fleet.held(["c"]) == ["c"], "what was heard last is remembered"
    assert fleet.resting(["c"]) == [], "but nobody waits for it"


def test_homes_are_found_anew_when_the_fleet_has_changed() -> None:
    fleet = Fleet()
    homes = Homes(fleet, {"c": 0, "d": 1})
    assert dict(homes) == {"c": [0], "d": [1]}
    fleet.joined("edge-a", "edge", {"below": {"c": ROWS}})
    assert dict(homes) == {"edge-a": [0], "d": [1]}
    assert homes.again() == {"edge-a": [0]}
    fleet.joined("d", "client", ROWS)
    assert homes.again() == {"edge-a": [0], "d": [1]}
    fleet.told("d", {"held": "it runs on its battery"})
    assert dict(homes) == {"edge-a": [0]}


def test_an_edge_that_leaves_takes_its_clients_along() -> None:
    fleet = Fleet()
    fleet.joined("edge-a", "edge", {"below": {"c": ROWS, "d": ROWS}})
    fleet.left("edge-a")
    assert fleet.offering("heart") == {}
    assert not fleet.deserted("edge-a")
    moved = fleet.joined("edge-b", "edge", {"below": {"c": ROWS, "d": ROWS}})
    assert moved == [("c", "edge-a"), ("d", "edge-a")], "what edge-a was asked for them is asked anew"
    assert fleet.deserted("edge-a")


def test_who_is_drained_is_not_offered_nor_what_stands_below_it() -> None:
    fleet = Fleet()
    fleet.joined("edge-a", "edge", {"below": {"c": ROWS}})
    fleet.joined("d", "client", ROWS)
    assert set(fleet.offering("heart")) == {"c", "d"}
    assert set(fleet.offering("heart", without=["d"])) == {"c"}
    assert set(fleet.offering("heart", without=["edge-a"])) == {"d"}
    assert fleet.offering("other") == {}


def test_edges_below_edges_are_reported_with_their_parents() -> None:
    plant, cloud = Fleet(), Fleet()
    plant.joined("line", "edge", {"below": {"c": ROWS}})
    cloud.joined("plant", "edge", {"below": plant.reachable()})
    assert cloud.homes({"c": 0}) == {"plant": [0]}
    assert {n: s.parent for n, s in cloud.clients.items()} == {"plant": "", "line": "plant", "c": "line"}


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["join", "leave", "below"]), st.sampled_from("ab"), st.sets(st.sampled_from("xyz"))
    ),
    max_size=30,
)


@given(EVENTS)
def test_every_client_has_one_home_and_it_is_there_if_anybody_reports_it(events) -> None:
    fleet, told = Fleet(), {"a": set(), "b": set()}
    for what, edge, clients in events:
        if what == "join":
            fleet.joined(edge, "edge", {"below": dict.fromkeys(clients, ROWS)})
        elif what == "below":
            fleet.below(edge, dict.fromkeys(clients, ROWS))
        else:
            fleet.left(edge)
        told[edge] = set() if what == "leave" else clients
    homes = fleet.homes({"x": 0, "y": 1, "z": 2})
    assert sorted(c for ids in homes.values() for c in ids) == [0, 1, 2]
    for client in "xyz":
        ways = {edge for edge, below in told.items() if client in below}
        seen = fleet.clients.get(client)
        assert (seen is not None and seen.present) == bool(ways)
        if ways:
            assert seen.via in ways


def test_who_offers_which_suite_also_below_an_edge() -> None:
    fleet = Fleet()
    fleet.joined("a", "client", {**ROWS, "crypto": ["intl", "gm"]})
    fleet.joined("edge", "edge", {"below": {"b": {**ROWS, "crypto": ["gm"]}, "old": ROWS}})
    assert [fleet.offers(name) for name in ("a", "b", "old", "nobody")] == [
        ["intl", "gm"],
        ["gm"],
        ["intl"],
        ["intl"],
    ]


@pytest.mark.parametrize(("crypto", "told"), [("intl", ["b"]), ("gm", ["c", "d"]), ("sm9", None)])
def test_who_lacks_a_jobs_suite_is_named_in_its_log(crypto: str, told: list[str] | None) -> None:
    fleet, logs = Fleet(), []
    for name, suites in {"a": ["intl", "gm"], "b": ["gm"], "c": ["intl"], "d": []}.items():
        fleet.joined(name, "client", {**ROWS, "crypto": suites or ["intl"]})

    async def durable(write: Callable[[], Any]) -> Any:
        return write()

    store = SimpleNamespace(log_add=lambda *said: logs.append(said))
    node: Any = SimpleNamespace(host=SimpleNamespace(fleet=fleet, durable=durable), store=store)
    if told is None:
        with pytest.raises(ConfigError, match="no client offers crypto = 'sm9'"):
            asyncio.run(Coordinator._offered(node, "r1", crypto, "abcd"))
    else:
        asyncio.run(Coordinator._offered(node, "r1", crypto, "abcd"))
        assert [text.split()[0] for _, _, _, text in logs] == told
        assert all(f"takes no part in {crypto}" in text for _, _, _, text in logs)
