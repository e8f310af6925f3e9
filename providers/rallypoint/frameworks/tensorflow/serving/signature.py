"""What a SavedModel takes and returns, read from its ``saved_model.pb``, and compared with what is expected."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

FILE = "saved_model.pb"
_TAG = "serve"  # of the graph that TensorFlow Serving loads
_HIDDEN = "__"  # the beginning of names that TensorFlow itself adds
_MAX_SHOWN = 1_000  # characters


class SignatureError(ValueError):
    """The model is none that can be served, or it takes or returns something else."""


def read_signatures(folder: str) -> dict[str, dict[str, Any]]:
    """Return the signatures of a SavedModel by name: ``{"inputs": {"x": {"dtype", "shape"}}, "outputs": …}``.

    The shape is a list with None for a size that is free, or None for any shape. TensorFlow is imported.

    Raises:
        SignatureError: The file is no SavedModel, or has nothing for serving.
    """
    tensorflow: Any = importlib.import_module("tensorflow")
    protos: Any = importlib.import_module("tensorflow.core.protobuf.saved_model_pb2")
    errors: Any = importlib.import_module("google.protobuf.message")
    path = Path(folder, FILE)
    model = protos.SavedModel()
    try:
        model.ParseFromString(path.read_bytes())
    except errors.DecodeError as error:
        msg = f"{path} cannot be read as a SavedModel ({error}): export the model again"
        raise SignatureError(msg) from error
    for graph in model.meta_graphs:
        if _TAG in graph.meta_info_def.tags:
            return {
                name: {
                    "inputs": _tensors(each.inputs, tensorflow),
                    "outputs": _tensors(each.outputs, tensorflow),
                    "method": each.method_name,
                }
                for name, each in graph.signature_def.items()
                if not name.startswith(_HIDDEN)
            }
    found = [sorted(graph.meta_info_def.tags) for graph in model.meta_graphs]
    msg = f"{path} has graphs with the tags {found}, expected one with {_TAG!r}: export the model for serving"
    raise SignatureError(msg)


def check(signatures: Mapping[str, Mapping[str, Any]], expected: Mapping[str, Any]) -> None:
    """Compare a model's signatures with the JSON of a `TFServingSignature`.

    Raises:
        SignatureError: They differ; the message says where.
    """
    name = expected["name"]
    if name not in signatures:
        have = ", ".join(sorted(signatures)) or "none"
        msg = f"the model has no signature {name!r}, it has: {have}; export it with signatures={{{name!r}: …}}"
        raise SignatureError(msg)
    found = signatures[name]
    faults = [
        fault
        for side in ("inputs", "outputs")
        if expected[side]
        for fault in _compare(side, found[side], expected[side])
    ]
    if faults:
        msg = f"the signature {name!r} differs: {'; '.join(faults)}"
        raise SignatureError(msg[:_MAX_SHOWN])


def _compare(side: str, found: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    if found.keys() != expected.keys():
        return [f"got the {side} {sorted(found)}, expected {sorted(expected)}"]
    return [
        f"{side[:-1]} {name!r} is {_shown(found[name])}, expected {_shown(expected[name])}"
        for name in sorted(expected)
        if not _fits(found[name], expected[name])
    ]


def _fits(found: Mapping[str, Any], expected: Mapping[str, Any]) -> bool:
    if found["dtype"] != expected["dtype"]:
        return False
    if expected["shape"] is None:
        return True
    if found["shape"] is None or len(found["shape"]) != len(expected["shape"]):
        return False
    return all(one == other for one, other in zip(found["shape"], expected["shape"], strict=True))


def _tensors(infos: Any, tensorflow: Any) -> dict[str, dict[str, Any]]:
    return {
        name: {
            "dtype": tensorflow.dtypes.as_dtype(info.dtype).name,
            "shape": None
            if info.tensor_shape.unknown_rank
            else [None if dim.size < 0 else dim.size for dim in info.tensor_shape.dim],
        }
        for name, info in infos.items()
    }


def _shown(tensor: Mapping[str, Any]) -> str:
    sizes = tensor["shape"]
    return str(tensor["dtype"]) + (
        "" if sizes is None else f"[{', '.join('?' if s is None else str(s) for s in sizes)}]"
    )
