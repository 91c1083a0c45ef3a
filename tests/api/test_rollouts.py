"""Roll-outs over REST, from Python and by commands: what is ordered, what is refused, who serves what."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

import atoll as at
from atoll.core.errors import ConfigError, MisuseError
from tests.api.conftest import finished, hall  # noqa: F401  the fixture
from tests.cli.conftest import atoll  # noqa: F401  the fixture
from tests.cli.test_ops import far  # noqa: F401  the fixture


def versions(store: Any, many: int) -> None:
    """Models of one name: the first is for all, later ones are held."""
    run = finished(store)
    for version in range(1, many + 1):
        held = b'{"order": {"stage": "held"}}' if version > 1 else b"{}"
        blob = store.blobs.put(f"model {version}".encode())
        store.model_add(run, "heart", blob, held, {"onnx": blob})


def sign(store: Any) -> None:
    """What the coordinator does."""
    for order in store.orders():
        store.order_signed(order["name"], order["number"], lambda: b'{"order": {}}')


@pytest.fixture
def fed(far: Any) -> Any:  # noqa: F811
    versions(far.store, 3)
    far.store.node_seen("north", "client", {})
    with at.connect(far.url, far.token("operator", "olga")) as made:
        yield made


def test_an_order_is_written_down_with_who_asked_and_why(fed: Any, far: Any) -> None:  # noqa: F811
    found = fed.rollout("heart", 2, nodes=["north"], canary=0.2, gates={"drift": None}, reason="spring")
    assert (found["serves"], found["trial"]) == (1, 2)
    (order,) = found["orders"]
    assert (order["kind"], order["state"], order["actor"], order["reason"]) == (
        "rollout",
        "open",
        "olga",
        "spring",
    )
    assert order["plan"]["gates"]["drift"] is None and order["plan"]["gates"]["error"] == 0.02
    assert (order["plan"]["nodes"], order["plan"]["canary"]) == (["north"], 0.2)
    sign(far.store)
    assert fed.promote("heart", reason="good")["orders"][0]["version"] == 2
    sign(far.store)
    assert fed.stages("heart")["serves"] == 2
    assert [o["state"] for o in fed.stages("heart")["orders"]] == ["done", "replaced"]
    back = fed.rollback("heart", reason="scrap")
    assert (back["orders"][0]["version"], back["orders"][0]["kind"]) == (1, "rollback")
    sign(far.store)
    events = [
        (e["kind"], e["actor"]) for e in fed.events()[0] if e["kind"].startswith("order.") and e["actor"]
    ]
    assert [kind for kind, _ in events if kind != "order.ended"] == [
        "order.rollout",
        "order.promote",
        "order.rollback",
    ]
    assert {actor for _, actor in events} == {"olga"}


def test_what_makes_no_sense_is_refused_with_what_to_do(fed: Any, far: Any) -> None:  # noqa: F811
    with pytest.raises(MisuseError, match="all members are to serve heart 1 already"):
        fed.rollout("heart", 1)
    with pytest.raises(MisuseError, match=r"no member is called 'nord'.*north"):
        fed.rollout("heart", 2, nodes=["nord"])
    with pytest.raises(ConfigError, match=r"\$\.plan\.canary"):
        fed.rollout("heart", 2, canary=2)
    with pytest.raises(ConfigError, match=r"\$\.plan.*colour"):
        fed.rollout("heart", 2, colour="red")
    with pytest.raises(MisuseError, match="nothing is being rolled out"):
        fed.promote("heart")
    with pytest.raises(MisuseError, match="the first that members serve"):
        fed.rollback("heart", reason="?")
    with pytest.raises(MisuseError, match="there is no heart 9"):
        fed.rollback("heart", 9, reason="?")
    for name, call in (("none", fed.stages), ("none", fed.promote), ("none", fed.rollout)):
        with pytest.raises(MisuseError, match="no such model"):
            call(name)
    fed.rollout("heart")
    sign(far.store)
    fed.promote("heart")
    sign(far.store)
    with pytest.raises(MisuseError, match="heart 3 is newer: atoll model rollback heart --to 2 goes back"):
        fed.rollout("heart", 2)
    assert len(far.store.orders()) == 2


def test_by_commands(fed: Any, far: Any, atoll: Any) -> None:  # noqa: F811
    said = atoll(
        "model", "rollout", "heart", "2", "--canary", "0.2", "--gate", "drift=off", "error=0.1", "least=9"
    )
    assert "heart 2 is being rolled out" in said.out and "atoll model show heart" in said.out
    plan = far.store.orders()[0]["plan"]
    assert (plan["canary"], plan["gates"]["drift"], plan["gates"]["error"], plan["gates"]["least"]) == (
        0.2,
        None,
        0.1,
        9,
    )
    assert atoll("model", "rollout", "heart", "3", "--gate", "error").code == 2
    report = {
        "version": 1,
        "trial": 2,
        "stage": "canary",
        "number": 1,
        "reason": "",
        "figures": {"compared": 7},
    }
    far.store.staged("north", "heart", report)
    shown = atoll("model", "show", "heart")
    assert (
        re.search(r"north +1 +2 +canary +compared 7", shown.out)
        and "last order: rollout 2, open" in shown.out
    )
    assert json.loads(atoll("model", "show", "heart", "--json").out)["rollout"]["trial"] == 2
    assert "heart 1 (2 canary)" in atoll("node", "list").out
    assert "金丝雀" in atoll("node", "list", "--lang", "zh").out
    assert "heart 2 is for all members" in atoll("model", "promote", "heart").out
    assert atoll("model", "rollback", "heart").code == 2  # it needs a reason
    sign(far.store)
    said = atoll("model", "rollback", "heart", "--reason", "scrap", "--to", "1")
    assert "heart 1 is for all members" in said.out
