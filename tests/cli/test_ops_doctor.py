"""The doctor: each thing that can be wrong is planted, found, and comes with its remedy."""

import json
import shutil
import socket

import pytest

from atoll.control.engine.agent import QUARANTINED
from atoll.control.remote import doctor, doctor_network
from atoll.privacy.keys import Authority, Identity, new_key, request
from atoll.privacy.token import Token
from atoll.transport import link
from tests.api.conftest import hall, halls  # noqa: F401  fixtures
from tests.api.roots import server_pem
from tests.api.serving import served

NOW = 1_800_000_000.0


def levels(found) -> dict[str, str]:
    return {f.what: f.level for f in found}


def finding(found, what: str, level: str):
    (one,) = [f for f in found if (f.what, f.level) == (what, level)]
    assert one.remedy or level == "ok"
    return one


def test_all_is_well(hall, tmp_path) -> None:  # noqa: F811
    with served(hall) as url:
        found = doctor.examine(url, hall.token("viewer", "vera"), hall.office.folder)
    assert set(levels(found).values()) == {"ok"}
    whats = [f.what for f in found]
    assert whats == [
        *("python", "packages", "crypto", "disk", "schema", "proxy", "name", "way"),
        *("clock", "root", "certificate", "token", "versions", "health"),
    ]
    assert "lets in vera as viewer at reef" in finding(found, "token", "ok").found


def test_a_name_nobody_knows() -> None:
    found = doctor.examine("https://nowhere.invalid:8445", None)
    assert "DNS" in finding(found, "name", "bad").remedy
    assert "way" not in levels(found)


def test_a_member_in_quarantine_is_told_why(tmp_path) -> None:
    assert "standing" not in levels(doctor.examine(None, None, tmp_path))
    (tmp_path / QUARANTINED).write_text("site is quarantined since run r1: ...")
    found = finding(doctor.examine(None, None, tmp_path), "standing", "warn")
    assert found.found.startswith("site is quarantined") and "reinstate" in found.remedy


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    found = doctor.examine(f"https://127.0.0.1:{port}", None)
    assert "firewall" in finding(found, "way", "bad").remedy


def test_something_else_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        other.settimeout(0.2)
        found = doctor.examine(f"https://127.0.0.1:{other.getsockname()[1]}", None, timeout=0.2)
    assert "right URL" in finding(found, "server", "bad").remedy


def test_a_proxy_is_named(monkeypatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        address = f"127.0.0.1:{proxy.getsockname()[1]}"
        monkeypatch.setenv("https_proxy", f"http://user:kelp@{address}")
        monkeypatch.setenv("no_proxy", "left.out")
        found = doctor.examine("https://hub.example", None, timeout=0.2)
        assert f"through {address} with a user" in finding(found, "proxy", "ok").found
        assert "kelp" not in json.dumps([f.plain() for f in found])
        beside = doctor.examine("https://left.out", None, timeout=0.2)
        assert "left out" in finding(beside, "proxy", "ok").found


def test_another_federations_token(hall, halls) -> None:  # noqa: F811
    with served(hall) as url:
        found = doctor.examine(url, halls().token("admin"))
    assert "another federation" in finding(found, "root", "bad").remedy
    assert "token" not in levels(found)


def test_a_certificate_for_other_names(hall) -> None:  # noqa: F811
    with served(hall, pem=server_pem("reef", "elsewhere.example")) as url:
        found = doctor.examine(url, hall.token("admin"))
    assert "`names`" in finding(found, "certificate", "bad").remedy


def test_a_token_that_is_not_known_any_more(hall) -> None:  # noqa: F811
    with served(hall) as url:
        found = doctor.examine(url, str(Token(hall.office.fingerprint, bytes(32))))
        assert "administrator" in finding(found, "token", "bad").remedy
        broken = doctor.examine(url, "atoll1.half")
        assert finding(broken, "token", "bad")
        assert "--token" in finding(doctor.examine(url, None), "root", "warn").remedy


@pytest.mark.parametrize(("skew", "level"), [(120, "warn"), (-120, "warn"), (86400, "bad"), (30, "ok")])
def test_clocks(skew: float, level: str) -> None:
    found = doctor_network.clocks("Fri, 15 Jan 2027 08:00:00 GMT", NOW + skew)
    assert (found.what, found.level) == ("clock", level)
    assert level == "ok" or "NTP" in found.remedy


def test_older_and_newer_schemas(hall, tmp_path) -> None:  # noqa: F811
    import sqlite3
    from contextlib import closing

    place = tmp_path / "copy"
    place.mkdir()
    hall.store.close()
    shutil.copy(hall.office.folder / "atoll.db", place)
    for number, level in (("0000", "warn"), ("9999", "bad")):
        with closing(sqlite3.connect(place / "atoll.db")) as db, db:
            db.execute("UPDATE alembic_version SET version_num = ?", (number,))
        assert finding(doctor.examine(folder=place), "schema", level)
    (place / "atoll.db").write_bytes(b"no database at all")
    assert "restore" in finding(doctor.examine(folder=place), "schema", "bad").remedy


def test_a_store_elsewhere_is_found_by_the_settings(hall, tmp_path) -> None:  # noqa: F811
    hall.store.close()
    shutil.copy(hall.office.folder / "atoll.db", tmp_path / "other.db")
    place, etc = tmp_path / "state", tmp_path / "hub.toml"
    place.mkdir()
    etc.write_text(f'store = "sqlite:///{tmp_path}/other.db"\nrollout = "now"\n', encoding="utf-8")
    assert "schema" not in levels(doctor.examine(folder=place))
    assert finding(doctor.examine(folder=place, config=etc), "schema", "ok")
    etc.write_text('store = "postgresql://atoll:kelp@127.0.0.1:1/atoll"\n', encoding="utf-8")
    found = finding(doctor.examine(folder=place, config=etc), "schema", "bad")
    assert "PostgreSQL" in found.remedy and "kelp" not in found.found
    etc.write_text('store = "oracle://x/y"\n', encoding="utf-8")
    assert "PostgreSQL" in finding(doctor.examine(folder=place, config=etc), "schema", "bad").found
    assert finding(doctor.examine(config=tmp_path / "none.toml"), "settings", "bad")
    etc.write_text("nmae = 3\n", encoding="utf-8")
    assert "hub.toml" in finding(doctor.examine(folder=place, config=etc), "settings", "bad").found


def test_a_store_by_its_url(hall, tmp_path, atoll) -> None:  # noqa: F811
    hall.store.close()
    url = f"sqlite:///{hall.office.folder}/atoll.db"
    found = doctor.examine(store=url)
    assert levels(found) == {"python": "ok", "packages": "ok", "crypto": "ok", "disk": "ok", "schema": "ok"}
    missing = doctor.examine(store=f"sqlite:///{tmp_path}/none.db")
    assert "no database" in finding(missing, "store", "bad").found and "schema" not in levels(missing)
    assert not (tmp_path / "none.db").exists()
    assert finding(doctor.examine(store="oracle://x/y"), "store", "bad")
    away = doctor.examine(store="postgresql://atoll:kelp@127.0.0.1:1/atoll")
    assert "kelp" not in finding(away, "schema", "bad").found
    told = json.loads(atoll("doctor", "--store", url, "--json").out)["findings"]
    assert [f["what"] for f in told][-2:] == ["disk", "schema"]
    both = doctor.examine(folder=hall.office.folder, store=url)
    assert [f.what for f in both].count("schema") == 1


def test_how_a_far_coordinator_is(hall, monkeypatch) -> None:  # noqa: F811
    token = hall.token("viewer")
    usage = shutil.disk_usage(hall.office.folder)
    with served(hall) as url:

        def told():
            return doctor.examine(url, token)

        assert "GB free" in finding(told(), "health", "ok").found
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
        assert "read-only" in finding(told(), "health", "warn").remedy
        monkeypatch.setattr(hall.office, "busy", lambda: "the disk is full")
        assert "takes no work: the disk is full" in finding(told(), "health", "bad").found


def test_disk_and_modes(tmp_path, monkeypatch) -> None:
    assert finding(doctor.examine(folder=tmp_path / "none"), "folder", "bad")
    (tmp_path / "operator.json").write_text("{}")
    (tmp_path / "operator.json").chmod(0o644)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    found = doctor.examine(folder=tmp_path)
    assert "free some space" in finding(found, "disk", "warn").remedy
    assert "chmod 600" in finding(found, "private files", "bad").remedy
    (tmp_path / "operator.json").chmod(0o600)
    assert finding(doctor.examine(folder=tmp_path), "private files", "ok")


def test_identities(tmp_path) -> None:
    authority = Authority.new("reef", now=NOW)
    key = new_key()
    csr = request(key, "reef", "client", "north")
    chain = authority.sign(csr, role="client", name="north", now=NOW, hours=24)
    Identity(key, chain, authority.root).save(tmp_path / "identity")

    def at(now: float):
        return doctor.examine(folder=tmp_path, clock=lambda: now)

    assert "client/north" in finding(at(NOW), "identity", "ok").found
    assert "renewed by now" in finding(at(NOW + 20 * 3600), "identity", "warn").remedy
    assert "enrol again" in finding(at(NOW + 30 * 3600), "identity", "bad").remedy
    (tmp_path / "identity" / "cert.pem").write_text("no")
    assert finding(at(NOW), "identity", "bad")


def test_the_command(atoll, hall, tmp_path, monkeypatch) -> None:  # noqa: F811
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    said = atoll("doctor")
    assert said.code == 0
    assert "network is not looked at" in said.err
    with served(hall) as url:
        token = hall.token("viewer")
        said = atoll("doctor", "--url", url, "--token", token, "--folder", hall.office.folder, "--json")
        assert said.code == 0
        assert {f["level"] for f in json.loads(said.out)["findings"]} == {"ok"}
        assert token not in said.out
        assert "✓ 令牌" in atoll("doctor", "--url", url, "--token", token, "--lang", "zh").out
    said = atoll("doctor", "--url", url, "--token", token)
    assert said.code == 1
    assert "✗ way" in said.out


def test_a_members_own_doors(tmp_path, monkeypatch) -> None:
    import asyncio

    from tests.api.test_member_policy import doors

    async def main() -> None:
        async with doors(tmp_path / "hub") as found:
            url = found.servers.ports["listen"]
            member = tmp_path / "north"
            found.who["member"].save(member / "identity")

            def look(folder, **more):
                return asyncio.to_thread(doctor.examine, folder=folder, timeout=5.0, **more)

            def settings(text: str) -> None:
                (member / "client.toml").write_text(text, encoding="utf-8")

            settings(f'name = "north"\njoin = ["{url}"]\n')
            well = await look(member)
            assert {f.level for f in well} == {"ok"}
            assert [f.what for f in well][-8:] == [
                *("proxy", "name", "way", "clock", "root", "certificate", "versions", "way")
            ]
            monkeypatch.setattr(link, "PROTOCOL", (link.PROTOCOL[0] + 1, 0))
            older = finding(await look(member), "versions", "bad")
            assert "upgrade Atoll on 127.0.0.1" in older.found
            monkeypatch.undo()
            (tmp_path / "etc").mkdir()
            (member / "client.toml").rename(tmp_path / "etc" / "client.toml")
            apart = await look(member, config=tmp_path / "etc" / "client.toml")
            assert [f.what for f in apart] == [f.what for f in well]
            assert "proxy" not in levels(await look(member)), "control: the file says whom it joins"
            settings(f'name = "north"\njoin = ["{url.replace("127.0.0.1", "localhost")}"]\n')
            wrong = await look(member)
            assert "`names`" in finding(wrong, "certificate", "bad").remedy
            settings("name = 3")
            assert finding(await look(member), "settings", "bad")
            other = tmp_path / "other"
            other.mkdir()
            (other / "client.toml").write_text(
                f'join = ["{url}"]\ntoken = "{Token("0" * 64, bytes(32))}"\n', encoding="utf-8"
            )
            assert "another federation" in finding(await look(other), "root", "bad").remedy
            found.who["ended"].save(member / "identity")
            settings(f'join = ["{url}"]')
            ended = await look(member)
            assert finding(ended, "identity", "bad")
            assert finding(ended, "certificate", "bad")

    asyncio.run(main())
