"""A failpoint that no run reaches would be one that no test kills at."""

import ast
import os

import pytest

import atoll.control.engine.agent
import atoll.control.engine.coordinator
import atoll.control.engine.edge
import atoll.control.engine.learner  # noqa: F401  they declare what they reach
from atoll.wire import failpoint
from tests.federation.kills import Case, Sweep
from tests.house.sources import PACKAGE, python_files, tree

pytestmark = pytest.mark.skipif(
    not hasattr(os, "pidfd_open"), reason="processes are waited for by descriptors, which needs Linux"
)
ELSEWHERE = (  # reached in tests of their own
    *("store.", "files.", "sense.", "shelf.", "watch.", "fitting."),
    "simulate.",  # tests/cli/test_killed.py
)
STEPS = {"fsync", "fdatasync", "link", "rename", "replace"}
WITHOUT = {  # steps on the disk with no failpoint in their file: what a kill there leaves
    "control/engine/parcels.py": "not synced and not relied on: who finds it damaged makes it again",
    "transport/fetch.py": "not synced and not relied on: fetching goes on from the part that lies there",
    "transport/receive.py": "not synced and not relied on: an upload whose pieces do not fit is sent again",
}


def test_a_run_reaches_every_failpoint_and_may_die_there() -> None:
    with Sweep() as sweep:
        reached = {name for hits in sweep.hits.values() for found in hits.values() for name in found}
        declared = {name for name in failpoint.NAMES if not name.startswith(ELSEWHERE)}
        assert declared - reached == set()
        for case in (
            Case("coordinator", "store.token_add.after_commit", 1, 2, first=True),
            Case("learner", "learning.kept.after", 1, 2),
        ):
            assert sweep.kill(case).broken == []


def steps(module: ast.Module) -> list[str]:
    """Calls that sync a file or give one a name: `os.…`, and `path.replace(new)`, which has one argument."""
    return [
        ast.unparse(node)
        for node in ast.walk(module)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in STEPS
        and (
            ast.unparse(node.func.value) == "os"
            or (len(node.args) == 1 and not node.keywords and not isinstance(node.args[0], ast.Lambda))
        )
    ]


def test_every_sync_and_rename_has_a_failpoint_or_a_reason_for_none() -> None:
    found = {
        file.relative_to(PACKAGE).as_posix()
        for file in python_files(PACKAGE)
        if steps(tree(file)) and "hit(" not in file.read_text("utf-8")
    }
    assert found == set(WITHOUT)


def test_control_a_bare_sync_or_rename_is_seen() -> None:
    assert len(steps(ast.parse("os.fsync(1)\npart.replace(path)\nos.link(a, b)"))) == 3
    assert steps(ast.parse("text.replace('a', 'b')\nparams.rename(lambda n: n)\nreplace(a, b=1)")) == []
