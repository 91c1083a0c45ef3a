"""Every route × everyone who may try: the table of who may call what is complete, and it holds."""

import re
from pathlib import Path

import pytest
from starlette.routing import Route

from atoll.control.desk.auth import ANYONE, POLICY, ROLES, allows
from tests.api.conftest import finished

WHO = ("", "client", *ROLES, "other")
BODIES = {("POST", "/v1/tokens"): {"role": "client", "name": "site"}, ("POST", "/v1/prune"): {"keep_days": 1}}


def routes(app) -> set[tuple[str, str]]:
    """Every method and path the application answers, whatever kind of route it is."""
    found = set()
    for route in app.routes:
        assert isinstance(route, Route), f"{route} is no plain route: the guard would refuse it"
        found |= {(method, route.path) for method in route.methods}
    return found


def test_every_route_has_a_line_and_every_line_a_route(hall) -> None:
    assert routes(hall.guard.app) == set(POLICY)


def test_the_page_in_the_docs_is_the_policy() -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference" / "api.md").read_text("utf-8")
    listed = re.findall(r"(?m)^\| `(\w+) (/\S*)` \| (\w+) \|", page)
    assert {(method, path): role for method, path, role in listed} == POLICY


def test_control_a_route_without_a_line_is_seen_and_refused(hall) -> None:
    hall.guard.app.get("/v1/new")(lambda: {"secret": 1})
    assert routes(hall.guard.app) - set(POLICY) == {("GET", "/v1/new")}
    for role in ROLES:
        answer = hall.as_(role).get("/v1/new")
        assert answer.status_code == 403
        assert "no policy" in answer.json()["error"]["message"]


@pytest.mark.parametrize("who", WHO)
def test_route_by_role(hall, halls, who: str) -> None:
    run = finished(hall.store)
    hall.store.node_seen("site-a", "client", {})
    token = (
        halls().token("admin")
        if who == "other"
        else hall.token("client", "site-b")
        if who == "client"
        else ""
    )
    client = hall.as_(who if who in ROLES else "", token)
    wrong = []
    for method, template in sorted(POLICY):
        hall.now += 1000.0  # no rate in the way
        least = POLICY[method, template]
        path = template.replace("{run}", run).replace("{name}", "site-a").replace("{version}", "1")
        path = path.replace("{token}", "0" * 16)
        answer = client.request(method, path, json=BODIES.get((method, template)))
        may = allows(who, least) if who in ROLES else least == ANYONE
        refused = 401 if who not in ROLES else 403
        if (answer.status_code == refused) == may or (may and answer.status_code >= 500):
            wrong.append(f"{method} {template} as {who or 'nobody'}: {answer.status_code}")
    assert wrong == []


def test_a_members_token_is_no_key_and_is_not_used_up(hall) -> None:
    token = hall.token("client", "site-a")
    assert hall.as_(token=token).get("/v1/runs").status_code == 401
    (row,) = hall.store.tokens()
    assert row["used"] is None


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer x", "Basic YTpi", "Bearer atoll1.AAAA", "bearer ünï"]
)
def test_what_is_no_token_is_refused(hall, header: str) -> None:
    answer = hall.as_().get("/v1/runs", headers={"authorization": header.encode()})
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Bearer")


def test_a_revoked_and_an_old_token_are_refused(hall) -> None:
    gone, old = hall.token("admin", "ann"), hall.token("admin", "bob")
    first = hall.as_(token=gone)
    assert first.get("/v1/runs").status_code == 200
    for row in hall.as_("admin").get("/v1/tokens").json()["tokens"]:
        if row["name"] == "ann":
            hall.as_("admin").delete(f"/v1/tokens/{row['id']}")
    assert first.get("/v1/runs").status_code == 401
    hall.office.clock = lambda: 1e12
    assert hall.as_(token=old).get("/v1/runs").status_code == 401


def test_no_secret_is_kept_or_listed(hall) -> None:
    made = hall.as_("admin").post("/v1/tokens", json={"role": "edge", "name": "plant"}).json()
    secret = made["token"].partition(".")[2]
    listed = hall.as_("admin").get("/v1/tokens").text
    assert secret not in listed
    assert not any(len(word) == 64 for word in re.findall(r"[0-9a-f]+", listed)), (
        "whole digests are not shown"
    )
    events = hall.as_("viewer").get("/v1/events").text
    assert secret not in events


def test_control_the_matrix_covers_what_was_made() -> None:
    assert set(POLICY.values()) == {ANYONE, *ROLES}
