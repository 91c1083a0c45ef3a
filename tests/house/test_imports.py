"""Who may import whom: everything stands on core, siblings stay apart, heavy libraries stay inside."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.house.sources import PACKAGE, imports, is_stdlib, module_name, python_files, tree

ALGORITHMS = {"learn", "vertical", "recommend", "data", "adapt", "serve", "sense"}
DRIVERS = {"transport", "simulate"}
BELOW = {"core", "privacy", "wire"}
TOP = {"job", "run", "baselines", "statistics", "estimators", "attack", "draw", "notebook"}

MAY_IMPORT: dict[str, set[str]] = {
    "core": set(),
    "privacy": {"core", "wire"},  # failpoints
    "wire": {"core"},
    **dict.fromkeys(ALGORITHMS | DRIVERS, BELOW),
    "testing": BELOW | {"transport"},  # its suites stand beside the contracts
    "job": BELOW | ALGORITHMS,  # values: it names algorithms, and no driver
    "__main__": {"control"},
    "names": BELOW | ALGORITHMS | DRIVERS | TOP | {"control"},  # it names everything
    "draw": set(),  # charts: standard library only
    "notebook": BELOW | ALGORITHMS | {"draw"},
    "run": BELOW | ALGORITHMS | DRIVERS | {"job", "notebook"},  # the one file that knows both
    "baselines": BELOW | ALGORITHMS | {"job", "run"},
    "statistics": BELOW | ALGORITHMS | {"job", "run"},
    "estimators": BELOW | ALGORITHMS | {"job", "run", "statistics"},
    "attack": BELOW | ALGORITHMS | {"job", "run"},
    "control": BELOW | ALGORITHMS | DRIVERS | TOP | {"testing"},
}
# Within control/: what its packages may import of each other, and what of the modules above them.
WITHIN: dict[str, set[str]] = {
    "store": set(),
    "gate": set(),
    "desk": {"store"},
    "remote": {"store"},
    "engine": {"store", "gate", "desk"},
}
ABOVE = {"config", "pinning", "pipes", "settings"}
BASE = {"numpy", "msgspec", "google", "safetensors", "isal"}  # what a module may import at its top
CORE_BASE = ("numpy", "msgspec", "google.protobuf")
HEAVY = {"torch", "pandas", "scipy", "sklearn", "matplotlib", "onnx", "onnxscript", "onnxruntime", "polars"}
CORE_LINES = 1600  # about 1,500: one sitting
# The inner modules of an adapter, as in adapt/torch_net.py: imported only inside functions of adapt/torch.py,
# so they may name their library at the top. That nothing else loads them is tested below.
# So are what the command line shows with rich, and scikit-learn's doors, which subclass its classes.
INSIDE = re.compile(r"atoll\.(adapt\.(torch|sklearn|onnx|xgboost)_\w+|control\.show|estimators(\.\w+)?)")


# Whoever serves or dials needs these: their modules name them at the top, `import atoll` loads none of them.
SERVICE = {
    *("aiohttp", "alembic", "cryptography", "fastapi", "grpc", "prometheus_client"),
    *("psutil", "pydantic", "sqlalchemy", "starlette", "uvicorn", "yarl", "zstandard"),
}
SERVING = re.compile(
    r"atoll\.(control(\.\w+)*|transport\.\w+|privacy\.(authority|certificate|encrypted_sum|hazmat\.\w+|identity|keys|models|roster|secure_sum|token)|serve(\.\w+)+|sense(\.\w+)*)"
)


def part_of(dotted: str) -> str:
    """`atoll.learn.robust` belongs to `learn`; `atoll` itself to the empty part."""
    return [*dotted.split("."), ""][1]


def within(module: ast.Module, name: str, *, is_package: bool = False) -> list[str]:
    """The imports between the packages of control/ that point the wrong way."""
    head, own = "atoll.control.", name.split(".")[2:3]
    if not name.startswith(head) or own[0] not in WITHIN:
        return []
    return [
        f"{name}:{line} imports {dotted}"
        for line, dotted in imports(module, name, is_package=is_package)
        if dotted.startswith(head) and dotted.split(".")[2] not in WITHIN[own[0]] | ABOVE | {own[0]}
    ]


def directions(module: ast.Module, name: str, *, is_package: bool = False) -> list[str]:
    """The imports of this module that point the wrong way."""
    own = part_of(name)
    if not own:
        return []  # atoll/__init__.py names everything
    if own not in MAY_IMPORT:
        return [f"{name}: give {own!r} a place in MAY_IMPORT"]
    return [
        f"{name}:{line} imports {dotted}"
        for line, dotted in imports(module, name, is_package=is_package)
        if dotted.split(".")[0] == "atoll" and part_of(dotted) not in MAY_IMPORT[own] | {own}
    ]


def at_top(module: ast.Module) -> Iterator[ast.stmt]:
    """The statements that run on import: not in functions, not under TYPE_CHECKING."""
    todo: list[ast.AST] = [module]
    while todo:
        node = todo.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            todo.extend(node.orelse)
            continue
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node
        todo.extend(ast.iter_child_nodes(node))


def heavy(module: ast.Module, name: str, *, is_package: bool = False) -> list[str]:
    """Imports of other libraries that run when this module is imported."""
    if INSIDE.fullmatch(name):
        return []
    free = BASE | {"atoll"} | (SERVICE if SERVING.fullmatch(name) else set())
    return [
        f"{name}:{line} imports {dotted} at its top"
        for node in at_top(module)
        for line, dotted in imports(node, name, is_package=is_package)
        if dotted.split(".")[0] not in free and not is_stdlib(dotted)
    ]


def impure(module: ast.Module, name: str) -> list[str]:
    """Imports that core may not have, wherever they stand."""
    return [
        f"{name}:{line} imports {dotted}"
        for line, dotted in imports(module, name, is_package=name == "atoll.core")
        if not is_stdlib(dotted) and not dotted.startswith((*CORE_BASE, "atoll.core"))
    ]


def code_lines(module: ast.Module) -> int:
    """Lines that hold code: no blank lines, comments or docstrings."""
    lines: set[int] = set()
    for node in ast.walk(module):
        if hasattr(node, "lineno") and not _is_text(node):
            lines |= {node.lineno, node.end_lineno}
    return len(lines)


def _is_text(node: ast.AST) -> bool:
    """A docstring, or the constant in it: only text can span lines and be a statement."""
    value = node.value if isinstance(node, ast.Expr) else node
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


FILES = python_files(PACKAGE)


def test_imports_point_one_way() -> None:
    assert [bad for f in FILES for bad in _checked(directions, f)] == []
    assert [bad for f in FILES for bad in _checked(within, f)] == []


def test_heavy_libraries_are_imported_inside_functions() -> None:
    assert [bad for f in FILES for bad in _checked(heavy, f)] == []


def test_core_is_pure() -> None:
    core = python_files(PACKAGE / "core")
    assert len(core) > 3
    assert [bad for f in core for bad in impure(tree(f), module_name(f))] == []


def test_core_can_be_read_in_one_sitting() -> None:
    assert 0 < sum(code_lines(tree(f)) for f in python_files(PACKAGE / "core")) <= CORE_LINES


def _checked(check, path) -> list[str]:
    return check(tree(path), module_name(path), is_package=path.stem == "__init__")


def test_control_wrong_directions_between_packages_are_seen() -> None:
    assert within(ast.parse("from ..engine import edge"), "atoll.control.gate.want")
    assert within(ast.parse("from .. import cli"), "atoll.control.engine.agent")
    assert not within(ast.parse("from ..store.store import Store"), "atoll.control.engine.host")
    assert not within(ast.parse("from .engine import edge"), "atoll.control.cli")


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("atoll.core.hub", "from atoll.learn import local"),
        ("atoll.core.hub", "from ..learn import local"),
        ("atoll.core.hub", "from .. import learn"),
        ("atoll.core.hub", "def f():\n    import atoll.simulate.world"),
        ("atoll.learn.rounds", "from atoll.simulate.world import World"),
        ("atoll.learn.rounds", "from ..vertical.align import align"),
        ("atoll.simulate.world", "from ..transport import drive"),
        ("atoll.simulate.world", "from ..learn.rounds import fedavg"),
        ("atoll.privacy.dp", "from ..learn.local import fit"),
        ("atoll.job", "from .run import simulate"),
        ("atoll.run", "from .control.store import Store"),
        ("atoll.core.hub", "from atoll import Job"),
        ("atoll.novelty", "import json"),
    ],
)
def test_control_wrong_directions_are_seen(name: str, code: str) -> None:
    assert directions(ast.parse(code), name)


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("atoll.learn.rounds", "from ..core.update import Update\nfrom . import local\nimport numpy"),
        ("atoll.learn.rounds", "from ..privacy import dp"),
        ("atoll.run", "from .simulate import world\nfrom .learn import rounds\nfrom .job import Job"),
        ("atoll.control.cli", "from .. import run"),
        ("atoll", "from .control import cli"),
    ],
)
def test_control_right_directions_pass(name: str, code: str) -> None:
    assert directions(ast.parse(code), name, is_package=name == "atoll") == []


def test_control_heavy_and_impure_imports_are_seen() -> None:
    assert heavy(ast.parse("import torch"), "atoll.adapt.torch")
    assert heavy(ast.parse("class A:\n    from scipy.stats import norm"), "atoll.learn.local")
    assert heavy(ast.parse("try:\n    import rich\nexcept ImportError:\n    pass"), "atoll.run")
    assert not heavy(ast.parse("def f():\n    import torch"), "atoll.adapt.torch")
    assert not heavy(ast.parse("import torch"), "atoll.adapt.torch_net")
    assert heavy(ast.parse("import torch"), "atoll.learn.torch_net")
    assert not heavy(ast.parse("if TYPE_CHECKING:\n    import torch"), "atoll.adapt.torch")
    assert impure(ast.parse("def f():\n    import torch"), "atoll.core.hub")
    assert impure(ast.parse("import google.cloud"), "atoll.core.hub")
    assert code_lines(ast.parse('"""Doc\n\nstring."""\n\n# why\nx = 1\n')) == 1


def loaded_by(code: str) -> set[str]:
    """Top-level modules in a fresh interpreter after `code`."""
    code += "\nimport sys; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return set(done.stdout.split())


def test_importing_atoll_stays_light() -> None:
    loaded = loaded_by("import atoll")
    assert "atoll" in loaded
    assert loaded & (HEAVY | SERVICE | {"pyarrow", "rich", "typer"}) == set()


def test_importing_every_module_loads_no_heavy_library() -> None:
    names = [module_name(f) for f in FILES if f.stem != "__main__"]
    code = "\n".join(f"import {name}" for name in names if not INSIDE.fullmatch(name))
    assert loaded_by(code) & (HEAVY | {"pyarrow", "rich", "typer"}) == set()


CLIENT = """
from atoll.control import cli
cli.main(["version"])  # every command is in the parser
import atoll.control.engine.agent, atoll.control.engine.resting, atoll.control.engine.sensing
import atoll.sense.folder, atoll.sense.intake, atoll.transport.https_link
"""
SERVING_CLIENT = f"{CLIENT}import atoll.control.engine.serving, atoll.control.engine.watch"
PREDICTOR = "import atoll.control.engine.predictor"
UNUSED = "import sys; assert not {'atoll.job', 'atoll.run', 'numpy.random'} & sys.modules.keys()"


def test_a_client_that_waits_stays_small() -> None:
    assert loaded_by(CLIENT) & (HEAVY | {"fastapi", "grpc", "numpy", "rich", "sqlalchemy"}) == set()


def test_a_client_that_serves_and_watches_loads_nothing_that_learns() -> None:
    assert "numpy" in loaded_by(f"{SERVING_CLIENT}\n{UNUSED}")


def test_the_process_that_serves_loads_nothing_that_learns_or_joins() -> None:
    loaded = loaded_by(f"{PREDICTOR}\n{UNUSED}")
    assert loaded & (HEAVY | {"fastapi", "grpc", "rich", "sqlalchemy"}) == set()


LEARNS = """
import sys
from pathlib import Path
from atoll.control.engine.learner import Learning
from atoll.control import config
from atoll.data.load import load_data
Path("rows.csv").write_text("a,b\\n1,x\\n2,y\\n")
load_data(Path("rows.csv"), target="b")
config.parse({"name": "j", "data": {"name": "d"}, "rounds": 2, "learner": {"name": "mlp", "hidden": [4]},
              "algorithm": {"name": "fedavg"}, "cohort": {"name": "sample", "count": 2}})
"""


def test_the_process_that_learns_loads_the_parts_it_needs(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("rows"))
    needed = LEARNS.replace("import sys", "import sys, atoll.learn.dense", 1)
    loaded_by(f"{needed}assert 'atoll.names' not in sys.modules")
    loaded_by(f"{LEARNS}assert 'atoll.names' in sys.modules")  # control: nobody has loaded that learner


def test_the_process_that_learns_has_no_event_loop() -> None:
    loaded = loaded_by("import atoll.control.engine.learner, atoll.names")
    assert loaded & (HEAVY | {"aiohttp", "asyncio", "grpc", "ssl"}) == set()


def test_control_a_loaded_library_is_seen() -> None:
    assert "rich" in loaded_by("import atoll, rich.console")
