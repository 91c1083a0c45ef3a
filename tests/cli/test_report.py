"""The report: one whole page, nothing loaded from elsewhere, every chart beside its numbers."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import atoll as at
from atoll import draw
from atoll.control import report
from atoll.serve.model import named
from atoll.simulate.folder import Folder

VOID = {"meta"}


class Page(HTMLParser):
    """Checks that tags nest; collects tags, attributes and text."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(markup)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def run(atoll, project: Path) -> Path:
    argv = ("--out", "a", "--baselines", "--set", 'name="<b>&machines"')
    assert atoll("simulate", "job.toml", *argv).code == 0
    return Path("a")


def test_the_page_is_whole_and_self_contained(run: Path) -> None:
    markup = (run / "report.html").read_text("utf-8")
    page = Page(markup)
    assert page.open == []
    assert not {"script", "link", "img", "iframe", "b"} & {tag for tag, _ in page.tags}
    assert not any(word in markup for word in ("http:", "https:", "url(", "@import", "src="))
    assert "<b>&machines" in page.text


def test_every_chart_has_a_name_and_its_numbers(run: Path) -> None:
    page = Page((run / "report.html").read_text("utf-8"))
    charts = [a for tag, a in page.tags if tag == "svg" and "aria-hidden" not in a]
    assert len(charts) == 5  # accuracy, loss, sites, bytes in each round, bytes so far
    assert all(a["role"] == "img" and a["aria-label"] for a in charts)
    assert sum(tag == "table" for tag, _ in page.tags) >= 6


def test_it_tells_what_the_run_was(run: Path) -> None:
    text = Page((run / "report.html").read_text("utf-8")).text
    metrics = Folder(run).history()[-1]["metrics"]
    assert f"{metrics['accuracy']:.4f}" in text
    for part in ("federated", "each site alone", "all data pooled", "site-north", "learner.epochs", "numpy"):
        assert part in text


def test_staleness_and_failures_are_shown_where_there_are_any(run: Path) -> None:
    assert "Staleness" not in report.page(report.Seen(run), str)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for record in lines[1:]:
        record |= {"ages": [2, 0, 1], "failed": {"3": "Traceback\n  deep\nValueError: bad <wolf>"}}
    (run / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in lines))
    text = Page(report.page(report.Seen(run), str)).text
    assert "Staleness" in text
    assert "ValueError: bad <wolf>" in text


def test_a_run_from_python_has_a_report_too(tmp_path: Path) -> None:
    sites = at.Sites.of([([[0.0], [1.0]], [0, 1]), ([[2.0], [3.0]], [1, 0])])
    at.simulate(at.Job(at.softmax(), rounds=2, name="mine"), sites, out=tmp_path / "a")
    page = Page(report.write(tmp_path / "a").read_text("utf-8"))
    assert "mine" in page.text
    assert page.open == []


def test_ticks_are_round_and_cover() -> None:
    assert draw.ticks(0.0, 1.0) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    for low, high in ((0.0, 0.0), (3.0, 3.0), (-1.0, 1e9), (0.61, 0.98), (-5.0, -2.0)):
        marks = draw.ticks(low, high)
        assert marks[0] <= low and marks[-1] >= high and 2 <= len(marks) <= 8


def test_numbers_that_are_none_are_left_out() -> None:
    nan = float("nan")
    assert "nan" not in draw.curves([draw.Line("a", [(0, 1.0), (1, nan), (2, 0.5)])], title="t", x="x")
    assert "nan" not in draw.dots([draw.Dots("a", [nan, 1.0], ["b", "c"], nan, nan)], title="t")
    assert draw.curves([draw.Line("a", [(0, nan)])], title="t", x="x") == ""
    assert draw.dots([], title="t") == draw.bars([], [], title="t", x="x") == ""


def test_a_run_is_one_line_at_the_prompt() -> None:
    sites = at.Sites.of([([[0.0], [1.0]], [0, 1])], tests=[([[0.0]], [0])])
    run = at.simulate(at.Job(at.softmax(), rounds=2), sites)
    accuracy = run.metrics["accuracy"]
    assert repr(run).startswith("Run(fedavg")
    assert "2 rounds, " in repr(run) and f"accuracy {accuracy:.4f}" in repr(run)
    assert len(repr(run)) < 100


def test_a_run_shows_itself_in_python(tmp_path: Path) -> None:
    sites = at.Sites.of([([[0.0], [1.0]], [0, 1])], tests=[([[0.0], [1.0]], [0, 1])])
    run = at.simulate(at.Job(at.softmax(), rounds=2, name="<x>"), sites)
    page = Page(run._repr_html_())
    assert page.open == [] and "<x>" in page.text and "accuracy" in page.text
    assert run.export(tmp_path / "model.safetensors").stat().st_size > 0
    for name in ("model.bin", "model"):
        with pytest.raises(at.ConfigError, match="export to"):
            run.export(tmp_path / name)


def test_a_learner_that_can_writes_itself_as_onnx(tmp_path: Path) -> None:
    class Writer:
        def init(self, rng):
            return {"w": np.zeros(1)}

        def fit(self, params, data, ctx):
            return at.Contribution({"w": np.ones(1)}, weight=1)

        def evaluate(self, params, data, ctx):
            return {}

        def export(self, params, path, example):
            path.write_text(f"{params['w']} {np.asarray(example).tolist()}")

    job = at.Job(Writer(), rounds=1)
    run = at.simulate(job, at.Sites.of([([[0.0], [1.0], [2.0]], [0, 1, 1])]))
    assert run.export(tmp_path / "a.onnx").read_bytes() == named(b"[1.] [[0.0], [1.0]]", ("0", "1"))
    assert run.export(tmp_path / "b.onnx", [[5.0]]).read_bytes() == named(b"[1.] [[5.0]]", ("0", "1"))
    with pytest.raises(at.ConfigError, match="needs some rows"):
        at.simulate(job, [0]).export(tmp_path / "c.onnx")


def test_a_run_plots_its_metrics() -> None:
    pytest.importorskip("matplotlib")
    sites = at.Sites.of([([[0.0], [1.0]], [0, 1])], tests=[([[0.0], [1.0]], [0, 1])])
    run = at.simulate(at.Job(at.softmax(), rounds=3), sites)
    titles = [axes.get_title() for axes in run.plot().axes]
    assert titles == ["accuracy", "loss"]
    assert list(run.plot().axes[0].lines[-1].get_xdata()) == [0, 1, 2, 3]


def test_suspects_are_shown_where_there_are_any(tmp_path: Path) -> None:
    sites = at.Sites.of([([[0.0], [1.0]], [0, 1])] * 3)
    at.simulate(at.Job(at.softmax(), rounds=4), sites, out=tmp_path / "a")
    assert "Suspects" not in report.page(report.Seen(tmp_path / "a"), str)
    file = tmp_path / "a" / "metrics.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    told = [([], [], 0.1), ([1], [], 0.7), ([1], [1], 0.91), ([1], [1], 0.91)]
    for record, (suspects, aside, score) in zip(lines[1:], told, strict=True):
        record |= {"suspects": suspects, "aside": aside, "scores": {"0": 0.0, "1": score}}
    file.write_text("".join(json.dumps(r) + "\n" for r in lines))
    rows = re.findall(r"<tr>(.*?)</tr>", report.page(report.Seen(tmp_path / "a"), str))
    (row,) = [row for row in rows if "0.91" in row]
    assert re.findall(r">([^<]+)<", row) == ["site 1", "0.91", "2", "2"]
