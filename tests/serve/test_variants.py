"""Variants of a model: int8 calibrated on local rows, measured here, refused where they lose too much."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import atoll as at
from atoll.core.errors import ConfigError, DataError, StateError
from atoll.data.examples import Examples
from atoll.serve import probe
from atoll.serve.model import Model
from atoll.serve.quantise import ROWS, chosen, quantise
from atoll.serve.variants import Figures, agreed, architecture, guess, int8, pick, profile, score

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def digits() -> Any:
    pytest.importorskip("sklearn")
    found = at.load_data("digits").train
    held = np.arange(len(found)) % 5 == 4
    return SimpleNamespace(train=found[~held], test=found[held])


@pytest.fixture(scope="module")
def net(digits: Any, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    half = digits.train[:700], digits.train[700:]
    data = at.Sites.of([(part.x, part.y) for part in half])
    run = at.simulate(at.Job(at.mlp((64,), lr=0.05), rounds=15), data, seed=1)
    path = run.export(tmp_path_factory.mktemp("net") / "net.onnx", digits.test.x[:2])
    return path.read_bytes()


def test_integers_lose_less_than_half_a_point_and_take_a_third_of_the_bytes(digits: Any, net: bytes) -> None:
    made = int8(net, digits.train.x, digits.test)
    fp32, few = Model(net), Model(made)
    assert score(fp32, digits.test) > 0.9
    assert 100 * (score(fp32, digits.test) - score(few, digits.test)) <= 0.5
    assert len(made) < 0.5 * len(net)
    assert (few.row, few.many, few.answers) == (fp32.row, fp32.many, fp32.answers)
    graph = onnx.load_from_string(made)
    assert {node.domain for node in graph.graph.node} <= {"", "ai.onnx"}
    assert any(i.data_type == onnx.TensorProto.INT8 for i in graph.graph.initializer)


def test_the_same_rows_give_the_same_bytes_and_no_row_stands_in_them(digits: Any, net: bytes) -> None:
    made = quantise(net, digits.train.x)
    assert made == quantise(net, digits.train.x)
    assert all(row.tobytes() not in made for row in chosen(digits.train.x))
    new = {i.name for i in onnx.load_from_string(made).graph.initializer}
    new -= {i.name for i in onnx.load_from_string(net).graph.initializer}
    assert all(name.endswith(("_scale", "_zero_point", "_quantized")) for name in new)


def test_control_a_calibration_that_ruins_the_model_is_refused(digits: Any, net: bytes) -> None:
    rows = np.array(digits.train.x[:100], np.float32)
    rows[0] *= 1e4  # a sensor that was broken once: every usual value falls into one step
    with pytest.raises(ConfigError, match=r"loses \d+\.\d\d points on \d+ held-out rows, more than 0.5"):
        int8(net, rows, digits.test)


def test_a_regression(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 5)).astype(np.float32)
    y = x @ rng.normal(size=5)
    run = at.simulate(at.Job(at.linear(lr=0.05), rounds=20), at.Sites.of([(x, y)]), seed=1)
    data = run.export(tmp_path / "line.onnx").read_bytes()
    held = Examples(x, y)
    assert score(Model(data), held) > 0.99
    assert score(Model(int8(data, x, held)), held) > 0.99


def convolution(rng: np.random.Generator) -> bytes:
    """Rows of 5 numbers through a convolution with BatchNorm, and a dense layer of 2 classes."""
    helper, tensor = onnx.helper, onnx.numpy_helper.from_array
    numbers = {
        "k": rng.normal(size=(8, 1, 3)),
        "w": rng.normal(size=(40, 2)),
        "b": rng.normal(size=2),
        "gain": rng.uniform(0.5, 2, 8),
        "shift": rng.normal(size=8),
        "mean": rng.normal(size=8),
        "var": rng.uniform(0.5, 2, 8),
    }
    stored = [tensor(value.astype(np.float32), name) for name, value in numbers.items()]
    stored.append(tensor(np.array([-1, 1, 5]), "shape"))
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["row"]),
        helper.make_node("Conv", ["row", "k"], ["c"], pads=[1, 1]),
        helper.make_node("BatchNormalization", ["c", "gain", "shift", "mean", "var"], ["n"]),
        helper.make_node("Relu", ["n"], ["r"]),
        helper.make_node("Flatten", ["r"], ["f"]),
        helper.make_node("Gemm", ["f", "w", "b"], ["out"]),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(nodes, "m", [value("x", 1, ["n", 5])], [value("out", 1, ["n", 2])], stored)
    opset = [helper.make_opsetid("", 17)]
    return bytes(helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString())


def test_convolutions_with_their_norm_folded_in() -> None:
    rng = np.random.default_rng(3)
    data, x = convolution(rng), rng.normal(size=(2000, 5)).astype(np.float32)
    held = Examples(x, Model(data).run(x)["out"].argmax(axis=1))
    made = int8(data, x[:200], held, most=2.0)  # random rows stand close to the border
    assert 0.98 < score(Model(made), held) < 1.0
    kinds = [node.op_type for node in onnx.load_from_string(made).graph.node]
    assert "BatchNormalization" not in kinds
    few = score(Model(quantise(data, x[:200], bits=7)), held)
    assert 0.9 < few < 1.0


def test_columns_of_very_different_sizes_are_scaled_before_they_become_integers(tmp_path: Path) -> None:
    """The scaling is in the graph, as a fitted pipeline is; control: without it the model is ruined."""
    rng, h = np.random.default_rng(2), onnx.helper
    size = np.array([1e4, 1.0, 1e-2, 1.0], np.float32)
    x = (rng.normal(size=(1500, 4)) * size).astype(np.float32)
    w = rng.normal(size=(4, 3)).astype(np.float32)
    value, tensor = h.make_tensor_value_info, onnx.numpy_helper.from_array

    def model(nodes: list[Any], numbers: dict[str, Any]) -> bytes:
        stored = [tensor(number, name) for name, number in numbers.items()]
        graph = h.make_graph(nodes, "m", [value("x", 1, ["n", 4])], [value("out", 1, ["n", 3])], stored)
        made = h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8)
        return bytes(made.SerializeToString())

    scaled = model(
        [h.make_node("Mul", ["x", "s"], ["z"]), h.make_node("MatMul", ["z", "w"], ["out"])],
        {"s": 1 / size, "w": w},
    )
    raw = model([h.make_node("MatMul", ["x", "w"], ["out"])], {"w": w / size[:, None]})
    held = Examples(x, Model(scaled).run(x)["out"].argmax(axis=1))
    assert score(Model(raw), held) > 0.999
    assert score(Model(quantise(scaled, x)), held) > 0.97
    assert score(Model(quantise(raw, x)), held) < 0.9


def test_agreement_stands_in_for_labels(net: bytes, digits: Any) -> None:
    held = agreed(net, digits.test.x)
    assert score(Model(net), held) == 1.0
    lost = 1 - score(Model(quantise(net, digits.train.x)), held)
    assert 0 <= lost < 0.02


def test_what_cannot_calibrate_is_said(net: bytes) -> None:
    for rows in (np.zeros((0, 64)), np.full((3, 64), np.nan), np.array(3.0)):
        with pytest.raises(DataError, match="rows of finite numbers"):
            quantise(net, rows)
    with pytest.raises(StateError, match="failed on rows of shape"):
        quantise(net, np.zeros((3, 5)))
    with pytest.raises(ConfigError, match="8 or 7 bits, got 4"):
        quantise(net, np.zeros((3, 64)), bits=4)
    with pytest.raises(StateError, match="not an ONNX model"):
        quantise(b"rubbish", np.zeros((3, 64)))
    assert len(chosen(np.zeros((10_000, 3)))) == ROWS


def test_each_variant_is_measured_and_one_that_loses_too_much_is_left_out(digits: Any, net: bytes) -> None:
    graph = onnx.load_from_string(net)
    for tensor in graph.graph.initializer:
        if tensor.name == "weight0":
            w = onnx.numpy_helper.to_array(tensor)
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.where(np.arange(64) < 40, 0, w), "weight0"))
    bad = graph.SerializeToString()
    held = Examples(np.asarray(digits.test.x, np.float32), digits.test.y)
    table = profile({"fp32": net, "int8": quantise(net, digits.train.x), "bad": bad}, held, runs=20)
    assert [f.name for f in table if f.provider == "CPUExecutionProvider"] == ["fp32", "int8"]
    assert all(0 < f.p50 <= f.p99 and f.memory > 0 for f in table)
    assert table[0].size == len(net)
    assert table[0].lost == 0 and table[0].score == score(Model(net), held)
    assert "bad" in [f.name for f in profile({"fp32": net, "bad": bad}, held, lost=100, runs=1)]


def test_a_model_that_does_not_run_is_told() -> None:
    with pytest.raises(StateError, match=r"does not run by CPUExecutionProvider: .*not an ONNX model"):
        probe.measure(b"rubbish", (3,))


def row(name: str, score: float, p50: float, **more: Any) -> Figures:
    values = {"lost": 100 * (0.95 - score), "size": 1000, "p99": 2 * p50, "memory": 10.0} | more
    return Figures(name, "CPUExecutionProvider", score=score, p50=p50, **values)


def test_the_quickest_of_the_best_within_the_limits() -> None:
    table = [row("fp32", 0.95, 4.0), row("int8", 0.947, 2.0, size=300), row("student", 0.93, 1.0, size=100)]
    assert pick(table).name == "int8"  # within half a point of the best, and quicker
    assert pick(table, p99=3.0).name == "student"
    assert pick(table, size=200).name == "student"
    assert pick(table, lost=0.1).name == "fp32"
    with pytest.raises(ConfigError, match=r"no variant keeps these limits; memory <= 5.0 leaves 0"):
        pick(table, memory=5.0, p99=3.0)


def test_the_table_of_devices_is_read_from_top_to_bottom(tmp_path: Path) -> None:
    names = [architecture(tops)["model"] for tops in (0, 0.99, 1, 4.9, 5, 300)]
    assert names == ["mobilenet_v3_small"] * 2 + ["efficientnet_b0"] * 2 + ["resnet18"] * 2
    own = tmp_path / "own.toml"
    own.write_text('[[device]]\nbelow = 2\nmodel = "mine"\n')
    assert architecture(1, own) == {"model": "mine"}
    with pytest.raises(ConfigError, match="no device for 3 TOPS"):
        architecture(3, own)
    own.write_text('[[device]]\nbelow = "a lot"\nmodel = "mine"\n')
    with pytest.raises(ConfigError, match=r"expected \[\[device\]\] tables"):
        architecture(1, own)


def test_a_model_names_its_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """From the rows it learnt from, through its file and what is made of that, to what people read."""
    from atoll.control.cli import main

    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 2))
    names = np.array(["mild\x1b[2J", "none", "severe"])
    y = names[np.digitize(x.sum(axis=1), [-1.0, 1.0])]
    for site, of in (("train", slice(0, 200)), ("site", slice(200, 300))):
        keep = [(a, b, c) for (a, b), c in zip(x[of], y[of], strict=True) if site == "train" or c != names[0]]
        lines = ["a,b,ill", *(f"{a:.4f},{b:.4f},{c}" for a, b, c in keep)]
        Path(f"{site}.csv").write_text("\n".join(lines))
    data = at.partition(at.load_data("train.csv", target="ill"), clients=2, holdout=0, seed=1)
    run = at.simulate(at.Job(at.softmax(lr=0.3), rounds=20), data, seed=1)
    path = run.export("ill.onnx")
    plain = dataclasses.replace(run, classes=()).export("plain.onnx")
    assert Model(path.read_bytes()).classes == tuple(names)
    assert Model(plain.read_bytes()).classes == ()
    assert path.read_bytes().startswith(plain.read_bytes())
    small = quantise(path.read_bytes(), data[0].x)
    assert Model(small).classes == tuple(names)
    Path("small.onnx").write_bytes(small)
    rows = ["--data", "site.csv", "--target", "ill", "--json"]  # of two classes, and it knows which
    assert main(["model", "profile", "ill.onnx", *rows]) == 0
    assert json.loads(capsys.readouterr().out)["variants"][0]["score"] > 0.8
    assert main(["model", "profile", "plain.onnx", *rows]) == 2
    assert "2 classes and the model tells 3 apart" in capsys.readouterr().err
    assert main(["model", "profile", "ill.onnx", *rows, "--classes", "none,severe,worse"]) == 0
    assert json.loads(capsys.readouterr().out)["variants"][0]["score"] < 0.5  # who says so is believed
    ask = ["predict", "train.csv", "--leave", "ill"]
    for model in ("ill.onnx", "small.onnx"):
        assert main([*ask, "--model", model]) == 0
        said = capsys.readouterr().out.splitlines()
        assert set(said) == {"mild?[2J", "none", "severe"}
        assert np.mean([a.replace("?", "\x1b") == b for a, b in zip(said, y[:200], strict=True)]) > 0.8
    assert main([*ask, "--model", "plain.onnx"]) == 0
    assert set(capsys.readouterr().out.split()) == {"0", "1", "2"}
    with at.serve(run, port=0, name="ill") as service:
        assert main([*ask, "--at", service.url, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
    assert found["classes"] == list(names) and set(found["predictions"]) == {0, 1, 2}


@pytest.mark.parametrize("text", ["", "[", '{"a": 1}', "[1]", "null", "[" * 100_000])
def test_names_of_classes_that_are_none(net: bytes, text: str) -> None:
    from atoll.wire.proto import piece

    assert Model(net + piece(14, piece(1, b"classes"), piece(2, text.encode()))).classes == ()


def test_what_tells_a_models_choice() -> None:
    z, label = np.array([[0.1, 0.9]]), np.array([1])
    assert guess({"label": label, "probabilities": z}) is label
    assert guess({"out": z}) is z
    assert guess({"label": np.array(["b"], object), "scores": z}) is z
    with pytest.raises(DataError, match="got 0 of x"):
        score(Model.__new__(Model), Examples(np.zeros((0, 2)), np.zeros(0)))


def test_by_command(digits: Any, net: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    from atoll.control.cli import main

    monkeypatch.chdir(tmp_path)
    Path("net.onnx").write_bytes(net)
    assert main(["model", "int8", "net.onnx", "--data", "digits", "--to", "small.onnx", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {"file": "small.onnx", "bytes": Path("small.onnx").stat().st_size, "was": len(net)}
    assert main(["model", "profile", "net.onnx", "small.onnx", "--data", "digits", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {one["name"] for one in found["variants"]} == {"net", "small"}
    assert found["best"] in found["variants"]
    rows = at.load_data("digits").train
    some = rows[rows.y > 0][:200]  # a site without zeros, whose file would number a one as the first class
    lines = [",".join([*(f"{v:g}" for v in x), str(y)]) for x, y in zip(some.x, some.y, strict=True)]
    Path("site.csv").write_text("\n".join([",".join([*rows.names, "kind"]), *lines]))
    measure = ["model", "profile", "net.onnx", "--data", "site.csv", "--target", "kind", "--json"]
    for more, why in (
        (("--classes", "1,2,3"), "6 of the 9 classes in site are not named"),
        (("--classes", "1,1"), "named twice"),
    ):
        assert main([*measure, *more]) == 2
        told = capsys.readouterr()
        assert told.out == "" and why in told.err
    for more in ((), ("--classes", "0,1,2,3,4,5,6,7,8,9")):
        assert main([*measure, *more]) == 0
        assert json.loads(capsys.readouterr().out)["variants"][0]["score"] > 0.9
    assert main(["model", "profile", "net.onnx", "--data", "digits", "--size", "1"]) == 2
    assert "size <= 1 leaves 0" in capsys.readouterr().err
    assert main(["model", "int8", "none.onnx", "--data", "digits", "--to", "s.onnx"]) == 2
    assert main(["model", "int8", "net.onnx", "--data", "digits", "--to", "s.onnx", "--lost", "-100"]) == 2
    assert not Path("s.onnx").exists()
