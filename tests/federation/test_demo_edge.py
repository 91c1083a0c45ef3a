"""The edge demo as a user runs it: broker, coordinator, edges and nodes are processes of their own."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from atoll.control import broker
from atoll.control.plant import EXCHANGED, LABEL, Plant, contract
from atoll.data.contract import Contract
from atoll.data.turbofan import SENSORS

needs_broker = pytest.mark.skipif(not broker.which(), reason="no MQTT broker: neither mosquitto nor amqtt")


@pytest.mark.slow
@needs_broker
def test_nodes_learn_serve_notice_renew_and_take_back(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "atoll", "demo-edge", "--folder", str(tmp_path / "edge"), "--generated"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=280)
    said = done.stdout
    assert done.returncode == 0, said + done.stderr
    assert "noticed by: client-1, client-3, client-5" in said
    assert "renewed by: client-1, client-3, client-5" in said
    assert re.search(r"client-\d: it is wrong more often by", said)
    assert re.search(r"[1-9]\d* requests meanwhile, 0 failed", said)
    rows = re.findall(r"(?m)^client-\d +([AB]) +(\d+) +([\d.]+) +([\d.]+) +([\d.]+) +(.+)$", said)
    assert len(rows) == 6
    for line, readings, first, exchanged, renewed, serves in rows:
        assert int(readings) > 1500
        if line == "A":
            assert float(exchanged) > 1.5 * float(first)
            assert float(renewed) < 0.7 * float(exchanged)
            assert serves.startswith("1 + own")
        else:
            assert first == exchanged == renewed
            assert serves == "1"
    text = b"".join(p.read_bytes() for p in (tmp_path / "edge" / "clients").rglob("sense/*"))
    assert b"engine-" not in text


def test_a_node_reads_its_own_topics_and_readings_keep_the_contract() -> None:
    words = iter(f"word-{i}" for i in range(99))
    plant = Plant.of(["a", "b"], words, generated=True)
    users = plant.users()
    assert users["a"].reads == ("line/a/#",)
    assert not users["a"].writes
    assert len({user.password for user in users.values()}) == 3
    made = Contract.of(contract())
    assert made.label == LABEL
    assert set(EXCHANGED) < set(SENSORS) == set(made.features)
    old, left, messages = plant.now("a", 40, np.random.default_rng(0))
    new, same, _ = plant.now("a", 40, np.random.default_rng(0), exchanged=True)
    assert np.array_equal(left, same)
    moved = [name for name, column in zip(SENSORS, (old != new).T, strict=True) if column.any()]
    assert moved == list(EXCHANGED)
    for topic, text in messages:
        assert topic.startswith("line/a/engine-")
        for reading in json.loads(text):
            assert made.taken(reading["values"], {})[1] == ""
