"""One graph out of several that were exported together: what leads to some of its outputs, and no more."""

from __future__ import annotations

from collections.abc import Mapping

import onnx


def cut(model: onnx.ModelProto, gives: Mapping[str, str]) -> bytes:
    """The model that gives these outputs, under new names. It takes what it needs and keeps the order."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    wanted, nodes = {*gives}, []
    for node in reversed(graph.node):
        if wanted.intersection(node.output):
            nodes.append(node)
            wanted.update(node.input)
    held = {value.name for value in graph.initializer}
    mine = {name for node in nodes for name in (*node.input, *node.output)} | wanted
    keep = {
        "node": nodes[::-1],
        "initializer": [v for v in graph.initializer if v.name in mine],
        "input": [v for v in graph.input if v.name in mine],
        "output": [v for v in graph.output if v.name in gives],
        "value_info": [v for v in (*graph.value_info, *graph.output) if v.name in mine - held - {*gives}],
    }
    cut = onnx.GraphProto(name="plan")
    for field, values in keep.items():
        getattr(cut, field).extend(values)
    _renamed(cut, gives)
    graph.CopyFrom(cut)
    onnx.checker.check_model(made)
    return bytes(made.SerializeToString(deterministic=True))


def _renamed(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for value in graph.output:
        value.name = names[value.name]
