"""The job of TensorFlow Serving: deploy a SavedModel as the next version of a model."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import urlsplit

from rallypoint.errors import InvalidJobError
from rallypoint.spec.entry import Module
from rallypoint.spec.failure import FailureRule, Kind
from rallypoint.spec.gang import Macro, Role, has_macro
from rallypoint.spec.job import Job, digest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rallypoint.spec.gang import Gang

SETTINGS = "tf_serving.json"  # in the attempt's folder: what the driver is to do
DRIVER = "rallypoint.frameworks.tensorflow.serving.driver"
HEADERS = "TF_SERVING_HEADERS"  # a secret: a JSON object of HTTP headers, for a proxy before the server
PREDICT = "tensorflow/serving/predict"  # the method that the REST API's :predict runs

_NAME = re.compile(r"^[^/:\s?#%]+$")
_LABEL = re.compile(r"^[A-Za-z0-9_.-]+$")
_PLACES = ("/", "file:///", "s3://", "gs://", "az://")
_KERAS = ("3", "legacy")

FAILURE_RULES = (
    FailureRule(
        "the model does not have the expected signature", Kind.USER, "compare the model with signature=, correct one",
        exception=r"(^|\.)SignatureError$",
    ),
    FailureRule(
        "the model did not answer as expected", Kind.USER, "compare the answer with probe=, correct one of them",
        exception=r"(^|\.)ProbeMismatchError$",
    ),
    FailureRule(
        "there is no such model", Kind.USER, "correct model=: a SavedModel's folder, or a Keras model's file",
        exception=r"(^|\.)NoModelError$",
    ),
    FailureRule(
        "the server's config file does not fit", Kind.USER, "correct config_file=, or the file, as the message says",
        exception=r"(^|\.)ConfigFileError$",
    ),
    FailureRule(
        "the server refuses", Kind.USER, "correct rest_url= or name=, or start the server with this model",
        exception=r"(^|\.)RefusedError$",
    ),
    FailureRule(
        "the server does not answer", Kind.RETRYABLE, "start the server, or correct rest_url=",
        exception=r"(^|\.)UnreachableError$", retry_after=30,
    ),
    FailureRule(
        "the server did not load the version", Kind.UNKNOWN, "read the server's message and its log",
        exception=r"(^|\.)(NotAvailableError|LabelError)$",
    ),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TFServingSignature:
    """What a SavedModel has to take and return, before anything is copied.

    Args:
        name: The signature's name.
        inputs: By name a data type such as ``"float32"``, or a pair of a data type and a shape, such as
            ``("float32", [None, 10])``. Empty for any inputs.
        outputs: Likewise.

    Raises:
        InvalidJobError: A value is wrong.
    """

    name: str = "serving_default"
    inputs: Mapping[str, Any] = field(default_factory=dict)
    outputs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        name: object = self.name
        if not isinstance(name, str) or not name:
            raise InvalidJobError("TFServingSignature", "name", got=self.name, expected="a signature's name")
        for side in ("inputs", "outputs"):
            tensors: object = getattr(self, side)
            expected = 'a dict such as {"x": ("float32", [None, 10])}'
            if not isinstance(tensors, dict):
                raise InvalidJobError("TFServingSignature", side, got=tensors, expected=expected)
            for tensor in tensors.values():
                kind, shape = _tensor(tensor)
                good = shape is None or (
                    isinstance(shape, list | tuple)
                    and all(size is None or (isinstance(size, int) and size >= 0) for size in shape)
                )
                if not isinstance(kind, str) or not kind or not good:
                    raise InvalidJobError("TFServingSignature", side, got=tensors, expected=expected)

    def to_json(self) -> dict[str, Any]:
        """Return the signature as a JSON object."""

        def tensors(given: Mapping[str, Any]) -> dict[str, Any]:
            pairs = {name: _tensor(tensor) for name, tensor in given.items()}
            return {
                name: {"dtype": kind, "shape": None if shape is None else list(shape)}
                for name, (kind, shape) in pairs.items()
            }

        return {"name": self.name, "inputs": tensors(self.inputs), "outputs": tensors(self.outputs)}


@dataclass(frozen=True, kw_only=True)
class TFServingProbe:
    """One request that the new version has to answer before its deploy counts as done.

    Args:
        body: The JSON of the REST API's ``:predict``, such as ``{"instances": [[1.0, 2.0]]}``.
        expect: The answer's JSON, such as ``{"predictions": [[3.0]]}``; None takes any answer with status 200. Keys
            that are not named are not looked at.
        tolerance: How far numbers may be from the expected ones.
        timeout: Seconds until it has to answer.

    Raises:
        InvalidJobError: A value is wrong.
    """

    body: Mapping[str, Any]
    expect: Any = None
    tolerance: float = 1e-5
    timeout: float = 60.0

    def __post_init__(self) -> None:
        def invalid(name: str, expected: str) -> InvalidJobError:
            return InvalidJobError("TFServingProbe", name, got=getattr(self, name), expected=expected)

        body: object = self.body
        if not isinstance(body, dict) or ("instances" in body) == ("inputs" in body):
            raise invalid("body", 'a dict with either "instances" or "inputs"')
        for name in ("body", "expect"):
            try:
                json.dumps(getattr(self, name))
            except (TypeError, ValueError) as error:
                raise invalid(name, f"JSON ({error})") from error
        if self.tolerance < 0:
            raise invalid("tolerance", "0 or more")
        if self.timeout <= 0:
            raise invalid("timeout", "seconds above 0")

    def to_json(self) -> dict[str, Any]:
        """Return the probe as a JSON object."""
        return {"body": self.body, "expect": self.expect, "tolerance": self.tolerance, "timeout": self.timeout}


@dataclass(frozen=True, kw_only=True)
class TFServingDeploy(Job):
    """Deploys a SavedModel to a running TensorFlow Serving as the next version of a model.

    The model's signature is checked before anything is copied. Then it is put under the base path, whole or not at
    all; the server has to report the version ``AVAILABLE``, and to answer the `probe`; then `labels` are set and old
    versions pruned. On a failure the version is taken away again, so that the server goes back to the one before, and
    the stage fails when that one is ``AVAILABLE``. A retry goes on with the version that an earlier attempt put there.

    The result is ``{"name", "version", "path", "url", "labels", "pruned"}``.

    In a bucket nothing is renamed: ``saved_model.pb`` is uploaded last, and a server that looks meanwhile cannot load
    the version and tries again, by default after a minute (``--load_retry_interval_micros``). Let the timeout allow it.

    Labels are set in the server's model config file, which holds what it serves: the server's RPC for it takes the
    place of the whole config, and none reads it. So the server has to run with ``--model_config_file``, in a folder
    that both see (a single file that is mounted into a container is not seen to be replaced), and with
    ``--model_config_file_poll_wait_seconds``. A server refuses its whole config for one label of a version that it
    does not serve: where labels are used, let the model's version policy keep several versions, such as
    ``latest { num_versions: 2 }``, so that a label always has one to name.

    Args:
        model: A SavedModel's folder, or a Keras model's file (``.keras``, ``.h5``) to be exported: a path, or a URI
            such as a stage's artifact.
        name: The model's name on the server.
        base_path: The model's base path, with a folder per version: a path, ``file://``, ``s3://``, ``gs://`` or
            ``az://``. The bucket's credentials are the store's.
        rest_url: The address of the server's REST API, such as ``"http://127.0.0.1:8501"``.
        signature: What the model has to take and return; by default it has to have a ``serving_default``.
        probe: A request that the version has to answer.
        labels: Version labels that are to name this version once it answers, such as ``("stable",)``.
        config_file: The server's model config file, for labels: a path or a URI.
        keep_versions: How many versions to keep, with the new one; None keeps all. What a label names is kept.
        timeout: Seconds until the version has to be available, and again for labels.
        rollback_timeout: Seconds until the previous version has to be available again after a failure.
        poll_interval: Seconds between two looks at the server.
        keras: The Keras that exports a Keras model: ``"3"`` or ``"legacy"``.
        ca_file: A file of certificate authorities for a server behind ``https://``; the system's by default.
        entry: Not given: the driver is Rallypoint's own.

    Raises:
        InvalidJobError: A value is wrong.

    For a proxy that asks for a login, give ``secrets={"TF_SERVING_HEADERS": '{"Authorization": "…"}'}``.
    The layout is that of "Serving Models" in the TensorFlow documentation.
    """

    kind: ClassVar[str] = "tf-serving"
    own_rules: ClassVar[tuple[FailureRule, ...]] = FAILURE_RULES
    requires: ClassVar[tuple[str, ...]] = ("tensorflow",)

    entry: Any = field(default=Module(DRIVER), init=False, repr=False)
    model: str
    name: str
    base_path: str
    rest_url: str
    signature: TFServingSignature | Mapping[str, Any] = field(default_factory=TFServingSignature)
    probe: TFServingProbe | Mapping[str, Any] | None = None
    labels: Sequence[str] = ()
    config_file: str | None = None
    keep_versions: int | None = 3
    timeout: float = 600.0
    rollback_timeout: float = 300.0
    poll_interval: float = 0.5
    keras: str = "3"
    ca_file: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "keras", str(self.keras))  # a template may have made it a number
        for field_name in ("model", "base_path", "config_file"):
            self._check_place(field_name)
        name: object = self.name
        if not isinstance(name, str) or not _NAME.match(name):
            raise self.invalid("name", name, "a model's name, without '/', ':', '?', '#', '%' and spaces")
        self._check_url()
        self._check_parts()
        self._check_labels()
        self._check_numbers()
        if self.keras not in _KERAS:
            raise self.invalid("keras", self.keras, '"3" or "legacy"')

    def _check_parts(self) -> None:
        for parameter, kind in (("signature", TFServingSignature), ("probe", TFServingProbe)):
            given: object = getattr(self, parameter)
            if isinstance(given, dict):
                try:
                    object.__setattr__(self, parameter, kind(**given))
                except TypeError as error:
                    raise self.invalid(parameter, given, f"the fields of {kind.__name__} ({error})") from error
            elif not isinstance(given, kind) and not (given is None and parameter == "probe"):
                raise self.invalid(parameter, given, f"a {kind.__name__}, or a dict of its fields")

    def _check_labels(self) -> None:
        labels: object = self.labels
        good = isinstance(labels, list | tuple) and all(isinstance(one, str) and _LABEL.match(one) for one in labels)
        if not good:
            raise self.invalid("labels", labels, 'a list of labels, such as ("stable",)')
        if labels and self.config_file is None:
            raise self.invalid("labels", labels, "config_file= as well: labels stand in the server's model config file")

    def _check_numbers(self) -> None:
        kept: object = self.keep_versions
        if kept is not None and (isinstance(kept, bool) or not isinstance(kept, int) or kept < 1):
            raise self.invalid("keep_versions", kept, "1 or more, a whole number, or None to keep all")
        for seconds in ("timeout", "rollback_timeout", "poll_interval"):
            value: object = getattr(self, seconds)
            if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
                raise self.invalid(seconds, value, "seconds above 0")

    def _check_place(self, field_name: str) -> None:
        value: object = getattr(self, field_name)
        if value is None and field_name == "config_file":
            return
        if not isinstance(value, str) or not value.startswith(_PLACES) or has_macro(value):
            raise self.invalid(field_name, value, "a full path, or a URI: file:///…, s3://…, gs://… or az://…")

    def _check_url(self) -> None:
        given: object = self.rest_url
        parts = urlsplit(given) if isinstance(given, str) else None
        try:
            good = parts is not None and parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            good = False
        if not good or parts is None:
            raise self.invalid("rest_url", given, 'an address such as "http://127.0.0.1:8501"')
        if "@" in parts.netloc or parts.query or parts.fragment:
            fix = f"give secrets={{{HEADERS!r}: …}}"
            raise self.invalid("rest_url", f"{parts.scheme}://…", "an address without user, password and query", fix)

    def roles(self) -> tuple[Role, ...]:
        """Return one role: the driver."""
        argv = (Macro.PYTHON, "-m", DRIVER, f"{Macro.RUN_DIR}/{SETTINGS}")
        # TensorFlow reads a file here, and exports a model at the most: no GPU is taken from a training.
        quiet = {"TF_CPP_MIN_LOG_LEVEL": "2", "CUDA_VISIBLE_DEVICES": "-1"}
        quiet |= {"TF_USE_LEGACY_KERAS": "1"} if self.keras == "legacy" else {}
        return (Role(name="driver", argv=argv, env=quiet | dict(self.env), resources=self.resources),)

    def plan(self) -> Gang:
        """Return the gang; what it is to do is in a file of the attempt's folder."""
        return super().plan().with_more(files={SETTINGS: json.dumps(self.settings(), sort_keys=True).encode()})

    def settings(self) -> dict[str, Any]:
        """Return what the driver is to do, as JSON without secrets."""
        return {
            "v": 1,
            "model": self.model,
            "name": self.name,
            "base_path": self.base_path.rstrip("/"),
            "rest_url": self.rest_url.rstrip("/"),
            "signature": self.signature.to_json() if isinstance(self.signature, TFServingSignature) else None,
            "probe": self.probe.to_json() if isinstance(self.probe, TFServingProbe) else None,
            "labels": list(self.labels),
            "config_file": self.config_file,
            "keep_versions": self.keep_versions,
            "timeout": self.timeout,
            "rollback_timeout": self.rollback_timeout,
            "poll_interval": self.poll_interval,
            "ca_file": self.ca_file,
        }

    def fingerprint(self) -> dict[str, str]:
        """Return what makes two attempts the same work: the model, and where it is to be served, as digests."""
        parts = {name: digest(self.settings()[name]) for name in ("model", "base_path", "labels")}
        return {"entry": f"tf serving {self.name}", **parts}


def _tensor(given: Any) -> tuple[Any, Any]:
    """Return the data type and the shape of a tensor as a user writes it."""
    pair = 2
    if isinstance(given, dict):  # what `to_json` made
        return given.get("dtype"), given.get("shape")
    return (given[0], given[1]) if isinstance(given, list | tuple) and len(given) == pair else (given, None)
