"""The live page: nothing from elsewhere, no markup from data, no secret in it; and it draws, in a browser."""

import re
import shutil
import subprocess
from importlib import resources
from pathlib import Path

import pytest

from atoll.control.desk.auth import ANYONE, POLICY
from atoll.control.desk.routes import PAGE
from tests.api.conftest import JOB, record
from tests.api.serving import served

WEB = {
    path: resources.files("atoll.control.desk").joinpath("web", name).read_text("utf-8")
    for path, (name, _) in PAGE.items()
}
MARKUP = re.compile(
    r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|createContextual"
)
ELSEWHERE = re.compile(r"""(?:src|href|url|from|import|fetch)\s*[=(]?\s*["'(`]\s*(?:https?:)?//""")
INLINE = re.compile(r"""<[^>]*\s(?:style|on\w+)\s*=""")


def faults(text: str) -> list[str]:
    return [m.group() for pattern in (MARKUP, ELSEWHERE, INLINE) for m in pattern.finditer(text)]


@pytest.mark.parametrize("path", sorted(WEB))
def test_nothing_from_elsewhere_and_no_markup_from_data(path: str) -> None:
    assert faults(WEB[path]) == []
    assert "localStorage" not in WEB[path]  # a token goes with its tab
    assert "cookie" not in WEB[path]


@pytest.mark.parametrize(
    "text",
    [
        "box.innerHTML = name",
        '<script src="https://cdn.example/x.js">',
        'import x from "//cdn.example/x.js"',
        "background:url(https://x.example/a.png)",
        '<p style="color:red">',
        '<img src="x" onerror="go()">',
    ],
)
def test_control_bad_pages_are_seen(text: str) -> None:
    assert faults(text)


def test_the_shell_holds_no_data_and_needs_no_token(hall) -> None:
    hall.store.submit(JOB, 1, "ann", name="secret-project")
    for path, (_, kind) in PAGE.items():
        assert POLICY["GET", path] == ANYONE
        answer = hall.as_().get(path)
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith(kind)
        assert "secret-project" not in answer.text


def test_every_word_of_the_page_has_its_chinese() -> None:
    known = set(re.findall(r'(?m)(?:^|, |\{)\s*(?:"([^"]+)"|(\w+)):\s', WEB["/words.js"]))
    known_words = {a or b for a, b in known}
    asked = {m for text in WEB.values() for m in re.findall(r'say\("([^"]+)"\)', text)}
    asked |= set(re.findall(r'data-say="([^"]+)"', WEB["/"]))
    assert len(asked) > 20
    assert asked - known_words == set()


@pytest.fixture(scope="module")
def browser() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if not found:
        pytest.skip("there is no chromium: the page is not drawn")
    return found


def drawn(browser: str, url: str, folder: Path) -> str:
    """The page's markup after its scripts have run for some seconds of the page's own time."""
    quiet = ["no-first-run", "disable-background-networking", "disable-component-update", "disable-sync"]
    options = [f"--{name}" for name in ("headless", "no-sandbox", "disable-gpu", *quiet)]
    options += [f"--user-data-dir={folder}", "--lang=en", "--virtual-time-budget=3000", "--dump-dom"]
    command = [browser, *options, url]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=120).stdout


@pytest.mark.slow
def test_in_a_browser_what_others_wrote_is_text(hall, browser, tmp_path) -> None:
    evil = "<script>document.title = 'owned'</script><img src=x onerror=\"document.title='owned'\">"
    run = hall.store.submit({**JOB, "name": evil}, 1, "ann", name=evil)
    hall.store.move(run, "running", frm=("queued",))
    for number in range(3):
        round = record(number)
        hall.store.journal(run).note(number, {**round, "failed": {"1": f"Traceback\nMemoryError: {evil}"}})
    lost = hall.store.submit(JOB, 1, "ann", name=evil)
    hall.store.move(lost, "failed", frm=("queued",), reason=f"QuorumError: {evil}")
    hall.store.node_seen("north", "client", {"parent": evil, "version": evil})
    hall.store.node_seen("plant", "edge", {})
    power = {"held": evil, "rule": "battery", "since": 900.0, "until": 1000.0}
    hall.store.node_seen("east", "client", {"power": power})
    waiting = {"since": 900.0, "of": 2, "held": 1, "rules": {"battery": 1, evil: 2}}
    hall.office.about = lambda _: {"names": {"0": "plant", "1": "north"}, "waiting": waiting}
    hall.live["plant"] = {"joint": {"asked": 9, "answered": 7, "passed": 2, "late": 0}}
    hall.live["north"] = {"phase": evil, "up": 2000, "down": 3000}
    with served(hall, pem=None) as url:
        page = drawn(browser, f"{url}/#{hall.token('viewer')}", tmp_path / "profile")
        door = drawn(browser, url, tmp_path / "other")
    assert "<title>owned</title>" not in page
    assert page.count("&lt;script&gt;") >= 4
    assert "<img" not in page
    assert "waiting: 1 of 2 hold back (battery 1, &lt;script" in page
    assert "holds back: battery, since " in page
    assert "rows asked 9, answered 7, passed on 2, too late 0" in page
    assert 'class="curve"' in page  # the chart is drawn
    assert 'class="site' in page  # and the ring
    assert "atoll1." not in page.replace("atoll1.…", "")  # the token is not in the page
    assert "north" in page
    assert "needs a token" in door
    assert "north" not in door
