"""`atoll pki` and `atoll token`, as one types them."""

import argparse
import json
import time
from pathlib import Path
from typing import Any, Self

import pytest

from atoll.control import cli_pki
from atoll.control.text import Texts
from atoll.core.errors import ConfigError
from atoll.privacy.keys import Authority, fingerprint, key_pem


class Federation:
    """A coordinator's API that remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.asked.append(("closed",))

    def token(self, role: str, name: str, hours: float) -> str:
        self.asked.append((role, name, hours))
        return "atoll1.secret"

    def tokens(self) -> list[dict[str, Any]]:
        rest = {"role": "client", "name": "bank-a"}
        later = time.time() + 1000
        return [
            {"id": "a", "until": later, "used": None, "revoked": False, **rest},
            {"id": "b", "until": later, "used": 1.0, "revoked": False, **rest},
            {"id": "c", "until": 1.0, "used": None, "revoked": False, **rest},
            {"id": "d", "until": 1.0, "used": None, "revoked": True, **rest},
        ]

    def forget(self, id: str) -> dict[str, Any]:
        self.asked.append((id,))
        return {"id": id, "revoked": True}


def run(*words: str, fed: Any = None, lang: str = "en") -> int:
    say = Texts(lang)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true")
    commands: Any = argparse.ArgumentParser().add_subparsers()
    top = commands  # `command` as cli.py gives it

    def command(name: str, go: Any, text: str, inside: Any = commands, *more: Any) -> Any:
        made = inside.add_parser(name, help=say(text), parents=[common, *more])
        made.set_defaults(run=go)
        return made

    far = argparse.ArgumentParser(add_help=False)
    cli_pki.register(top, command, say, far, lambda _: fed)
    args = commands.choices[words[0]].parse_args(words[1:])
    code: int = args.run(args, say)
    return code


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_init_and_show_say_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("pki", "init", "--federation", "lagoon", "--json") == 0
    made = json.loads(capsys.readouterr().out)
    assert made["federation"] == "lagoon"
    assert made["fingerprint"] == Authority.open(Path("pki/authority")).fingerprint
    assert run("pki", "show") == 0
    assert f"fingerprint: {made['fingerprint']}" in capsys.readouterr().out
    assert run("pki", "show", lang="zh") == 0
    assert "指纹" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="there is an authority"):
        run("pki", "init")


def test_the_root_apart(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("pki", "init", "--root-apart", "safe", "--json") == 0
    made = json.loads(capsys.readouterr().out)
    assert made["authority_ends"] < made["root_ends"]
    assert Authority.open(Path("safe")).fingerprint == made["fingerprint"]


def test_adopt_a_companys(capsys: pytest.CaptureFixture[str]) -> None:
    root = Authority.new("company", now=time.time())
    below = root.delegate(now=time.time())
    Path("root.pem").write_bytes(root.root)
    Path("chain.pem").write_bytes(below.chain)
    Path("key.pem").write_bytes(key_pem(below._key))
    files = ["--root", "root.pem", "--chain", "chain.pem", "--key", "key.pem"]
    assert run("pki", "adopt", "hub/pki", "--federation", "lagoon", *files, "--json") == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["federation"], made["fingerprint"]) == ("lagoon", fingerprint(root.root))
    with pytest.raises(ConfigError, match=r"none\.pem cannot be read"):
        run("pki", "adopt", "x", "--root", "none.pem", "--key", "key.pem")


def test_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    fed = Federation()
    assert run("token", "create", "--role", "client", "--name", "bank-a", fed=fed) == 0
    assert capsys.readouterr().out == "atoll1.secret\n"
    assert run("token", "list", fed=fed) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line.split()[3] for line in lines] == ["open", "used", "ended", "revoked"]
    assert run("token", "list", "--json", fed=fed) == 0
    assert len(json.loads(capsys.readouterr().out)["tokens"]) == 4
    assert run("token", "revoke", "a", fed=fed) == 0
    assert fed.asked == [
        ("client", "bank-a", 72.0),
        ("closed",),
        ("closed",),
        ("closed",),
        ("a",),
        ("closed",),
    ]
