"""`atoll predict`: rows from a file to a service or a model; wrong rows, files and services."""

import io
import json
import math
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from atoll.control.remote.rest import Rest
from atoll.control.remote.sdk import Federation
from atoll.core.errors import ConfigError, DataError
from atoll.privacy.token import Token

CSV = "load,heat,fails\n1,2,yes\n3,4.5,no\n"


@pytest.fixture
def service():
    """A prediction service that adds up each row, and keeps what it was sent."""
    seen = []

    class Service(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            seen.append((self.path, body))
            wide = len(body["rows"][0]) != 2
            answer = {"error": {"kind": "DataError", "message": "expected 2 numbers a row, got 3"}}
            if not wide:
                sums = [sum(row) for row in body["rows"]]
                answer = {"predictions": sums, "model": {"name": "heart", "version": 3}}
            data = json.dumps(answer).encode()
            self.send_response(422 if wide else 200)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Service)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", seen
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def rows(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.csv").write_text(CSV, encoding="utf-8")


def test_by_a_clients_service(atoll, service) -> None:
    url, seen = service
    said = atoll("predict", "rows.csv", "--leave", "fails", "--at", url)
    assert (said.code, said.out) == (0, "3\n7.5\n")
    assert "2 rows, model heart version 3" in said.err
    assert seen == [("/v1/predict", {"rows": [[1.0, 2.0], [3.0, 4.5]]})]
    plain = json.loads(atoll("predict", "rows.csv", "--leave", "fails", "--at", url, "--json").out)
    assert plain == {"predictions": [3.0, 7.5], "model": {"name": "heart", "version": 3}}


def test_the_same_from_python(service) -> None:
    url, seen = service
    fed = Federation(Rest("https://hub.example:8445", Token("0" * 64, bytes(32))))
    known = {"predictions": [3.0, 7.5], "model": {"name": "heart", "version": 3}}
    assert fed.predict("rows.csv", at=url, leave=["fails"]) == known
    assert fed.predict(np.array([[1, 2], [3, 4.5]]), at=url) == known
    assert seen[0] == seen[1] == ("/v1/predict", {"rows": [[1.0, 2.0], [3.0, 4.5]]})
    for wrong in ([1.0, 2.0], [], [[1.0, math.nan]], [["yes"]], [[1.0], [1.0, 2.0]]):
        with pytest.raises(DataError, match="rows of finite numbers"):
            fed.predict(wrong, at=url)
    for both in ({}, {"at": url, "model": "m.onnx"}):
        with pytest.raises(ConfigError, match="give one"):
            fed.predict([[1.0]], **both)
    with pytest.raises(ConfigError, match=r"none\.onnx|onnxruntime"):
        fed.predict([[1.0]], model="none.onnx")


def test_many_rows_go_in_pieces_over_one_connection(atoll, service) -> None:
    url, seen = service
    Path("rows.csv").write_text("a,b\n" + "1,2\n" * 600, encoding="utf-8")
    plain = json.loads(atoll("predict", "rows.csv", "--at", url, "--json").out)
    assert plain["predictions"] == [3.0] * 600
    assert [len(body["rows"]) for _, body in seen] == [256, 256, 88]


def test_standard_input(atoll, service, monkeypatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("a,b\n1,1\n"))
    assert atoll("predict", "-", "--at", service[0]).out == "2\n"


def test_by_a_model_here(atoll) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    h = onnx.helper
    weight = onnx.numpy_helper.from_array(np.array([[1.0], [10.0]], np.float32), "w")
    graph = h.make_graph(
        [h.make_node("MatMul", ["x", "w"], ["y"])],
        "sum",
        [h.make_tensor_value_info("x", 1, ["n", 2])],
        [h.make_tensor_value_info("y", 1, ["n", 1])],
        [weight],
    )
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, "sum.onnx")
    said = atoll("predict", "rows.csv", "--leave", "fails", "--model", "sum.onnx")
    assert (said.code, said.out) == (0, "21\n48\n")
    Path("wide.csv").write_text("a,b,c\n1,2,3\n", encoding="utf-8")
    wrong = atoll("predict", "wide.csv", "--model", "sum.onnx")
    assert wrong.code == 2
    assert "rows of 3 numbers" in wrong.err
    Path("junk.onnx").write_bytes(b"junk")
    assert atoll("predict", "rows.csv", "--leave", "fails", "--model", "junk.onnx").code == 2
    assert atoll("predict", "rows.csv", "--leave", "fails", "--model", "none.onnx").code == 2


@pytest.mark.parametrize(
    ("text", "argv", "says"),
    [
        (CSV, [], "line 2, column 'fails'"),
        (CSV, ["--leave", "pressure"], "no column 'pressure'"),
        ("a,b\n", [], "no rows"),
        ("", [], "no rows"),
        ("a,b\n1\n", [], "column 'b'"),
        ("a,b\n1,nan\n", [], "column 'b'"),
        ("a,b\n1,1e999\n", [], "column 'b'"),
    ],
)
def test_rows_that_are_none_name_line_and_column_but_no_cell(atoll, service, text, argv, says) -> None:
    Path("rows.csv").write_text(text, encoding="utf-8")
    said = atoll("predict", "rows.csv", "--at", service[0], *argv)
    assert said.code == 2
    assert says in said.err
    assert "yes" not in said.err


def test_services_that_are_none(atoll, service) -> None:
    Path("wide.csv").write_text("a,b,c\n1,2,3\n", encoding="utf-8")
    said = atoll("predict", "wide.csv", "--at", service[0])
    assert said.code == 1
    assert "expected 2 numbers a row" in said.err
    Path("wide.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    assert "no prediction service answers" in atoll("predict", "wide.csv", "--at", "http://127.0.0.1:1").err
    assert "in the clear" in atoll("predict", "wide.csv", "--at", "http://192.0.2.1:9000").err
    assert "give one" in atoll("predict", "wide.csv").err
    assert atoll("predict", "wide.csv", "--at", "ftp://x").code == 2
