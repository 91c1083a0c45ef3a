"""A model in two: first layers for the node, the rest for upstream, so that features leave and rows do not.

Features are no secret: a row can often be drawn from them, the better the earlier the cut. They are smaller
than rows where the network has narrowed, and what leaves is still sealed (joint.py).
"""

from __future__ import annotations

from ..core.errors import ConfigError
from .model import Model


def cut(data: bytes, tensor: str) -> tuple[bytes, bytes]:
    """The head, from the model's input to the value `tensor`, and the tail from there to its answers.

    Raises ConfigError without the onnx package, or where no such value stands between all of the input and
    the answers; StateError for bytes that are no model.
    """
    model = Model(data)
    try:
        import onnx
        from onnx.utils import Extractor
    except ImportError:
        raise ConfigError("cutting a model needs the onnx package: pip install 'atoll-fl[export]'") from None
    graph = onnx.load_from_string(data)
    names = [name for node in graph.graph.node for name in node.output if name not in model.answers]
    if tensor not in names:
        raise ConfigError(f"the model has no value {tensor!r} to cut at; it has {', '.join(names[:30])}")
    extractor = Extractor(onnx.shape_inference.infer_shapes(graph))
    try:
        head = extractor.extract_model([model.input], [tensor])
        tail = extractor.extract_model([tensor], list(model.answers))
        onnx.checker.check_model(tail, full_check=True)
    except (ValueError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        raise ConfigError(
            f"{tensor!r} does not part the model: something passes beside it; cut where all goes through one"
        ) from None
    return bytes(head.SerializeToString()), bytes(tail.SerializeToString())
