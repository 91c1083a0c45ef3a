"""No code reaches Python's own object formats or runs text: by syntax tree, in all shipped files."""

import ast

import pytest

from tests.house.sources import PACKAGE, ROOT, python_files, tree

MODULES = {"_pickle", "cPickle", "cloudpickle", "dill", "jsonpickle", "marshal", "pickle", "shelve"}
RUNS_TEXT = {"eval", "exec", "compile", "builtins.eval", "builtins.exec", "builtins.compile"}
LOADS_OBJECTS = {
    *("joblib.load", "torch.load", "torch.jit.load", "torch.serialization.load"),
    *("yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load", "yaml.unsafe_load_all"),
}
IMPORTS_BY_NAME = {"importlib.import_module", "__import__", "builtins.__import__"}
METHODS = {"read_pickle", "to_pickle"}  # of data frames


def forbidden(module: ast.Module) -> list[str]:
    """`line: what` for each import or call that could run what a file or a peer sent."""
    names = aliases(module)
    found = [f"{line}: import {name}" for line, name in imported(module) if name.split(".")[0] in MODULES]
    found += [f"{line}: import {name}" for line, name in imported(module) if name in LOADS_OBJECTS]
    for call in (node for node in ast.walk(module) if isinstance(node, ast.Call)):
        name = dotted(call.func, names)
        if name in RUNS_TEXT | LOADS_OBJECTS or name.rpartition(".")[2] in METHODS:
            found.append(f"{call.lineno}: {name}()")
        if name in IMPORTS_BY_NAME and not (call.args and isinstance(call.args[0], ast.Constant)):
            found.append(f"{call.lineno}: {name}() of a name that is not written there")
        if any(k.arg == "allow_pickle" and not off(k) for k in call.keywords):
            found.append(f"{call.lineno}: allow_pickle")
    return found


def off(keyword: ast.keyword) -> bool:
    return isinstance(keyword.value, ast.Constant) and keyword.value.value is False


def imported(module: ast.Module) -> list[tuple[int, str]]:
    found = []
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found += [(node.lineno, f"{node.module}.{alias.name}") for alias in node.names]
    return found


def aliases(module: ast.Module) -> dict[str, str]:
    """What each imported name stands for: `np` is `numpy`, `load` may be `torch.load`."""
    names = {}
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            names |= {a.asname: a.name for a in node.names if a.asname}
        elif isinstance(node, ast.ImportFrom):
            names |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    return names


def dotted(node: ast.expr, names: dict[str, str]) -> str:
    """`t.load` after `import torch as t` is `torch.load`; `.name` where the object is unknown."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value, names)}.{node.attr}"
    return ""


SHIPPED = python_files(PACKAGE, ROOT / "examples", ROOT / "bench")


def test_nothing_unpickles_or_runs_text() -> None:
    assert len(SHIPPED) > 5
    assert {str(f): bad for f in SHIPPED if (bad := forbidden(tree(f)))} == {}


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "def f():\n    from pickle import loads",
        "import dill as safe",
        "import marshal, shelve",
        "import joblib\njoblib.load(path)",
        "from joblib import load",
        "import torch\ntorch.load(path, weights_only=True)",
        "import torch as t\nt.load(path)",
        "from torch import load as read\nread(path)",
        "import yaml\nyaml.load(text)",
        "from yaml import unsafe_load",
        "import numpy as np\nnp.load(path, allow_pickle=True)",
        "import numpy as np\nnp.load(path, allow_pickle=trusted)",
        "import pandas as pd\npd.read_pickle(path)",
        "frame.to_pickle(path)",
        "eval(text)",
        "exec(text)",
        "compile(text, 'x', 'exec')",
        "import builtins\nbuiltins.eval(text)",
        "import importlib\nimportlib.import_module(name)",
        "from importlib import import_module\nimport_module(f'atoll.{x}')",
        "__import__(name)",
    ],
)
def test_control_each_planted_call_is_found(code: str) -> None:
    assert forbidden(ast.parse(code))


@pytest.mark.parametrize(
    "code",
    [
        "model.eval()",
        "import re\nre.compile('a')",
        "import numpy as np\nnp.load(path, allow_pickle=False)",
        "import yaml\nyaml.safe_load(text)",
        "import json\njson.load(file)",
        "for plug in entry_points(group='atoll.parts'):\n    plug.load()",
        "import importlib\nimportlib.import_module('torch')",
    ],
)
def test_control_innocent_calls_pass(code: str) -> None:
    assert forbidden(ast.parse(code)) == []
