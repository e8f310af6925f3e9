"""A small server that speaks TensorFlow Serving's APIs and really loads and runs SavedModels with TensorFlow.

It stands in for ``tensorflow_model_server``, which cannot be installed here. Over REST: the status of a model, a
version, a label, and ``:predict`` in rows and columns. Over gRPC, with the published messages of
``tensorflow-serving-api``: ``PredictionService.Predict`` and ``ModelService.GetModelStatus``. Further the version
policies ``latest`` and ``all``, the model config file with labels, its two polls, and base paths in S3. Like the real
one it loads the new version before it unloads the old one, refuses a config with a label of a version that is not
available, and keeps the state of versions that are gone.

Run as ``python tf_serving_server.py PORT_FILE (--model NAME BASE_PATH | --config FILE) [--hold FILE]``; the file then
has the ports of REST and of gRPC. While the file of ``--hold`` is there, it looks at nothing.
"""

from __future__ import annotations

import argparse
import http.server
import json
import os
import re
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

POLL = 0.1  # seconds

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")


class Folder:
    """A base path on this host."""

    def __init__(self, path: str) -> None:
        self.path = path

    def versions(self) -> list[int]:
        return sorted(int(each.name) for each in Path(self.path).glob("*") if each.name.isdigit())

    def fetch(self, version: int) -> str:
        return f"{self.path}/{version}"


class S3:
    """A base path in a bucket, read with a client of its own. The real server's file systems read it in place."""

    def __init__(self, uri: str) -> None:
        import boto3

        self.client = boto3.client("s3")
        self.bucket, _, self.prefix = uri.removeprefix("s3://").partition("/")

    def keys(self) -> list[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=f"{self.prefix}/")
        found = [entry["Key"] for page in pages for entry in page.get("Contents", [])]
        return [key.removeprefix(f"{self.prefix}/") for key in found]

    def versions(self) -> list[int]:
        return sorted({int(key.partition("/")[0]) for key in self.keys() if re.match(r"\d+/", key)})

    def fetch(self, version: int) -> str:
        folder = tempfile.mkdtemp()
        for key in self.keys():
            if key.startswith(f"{version}/"):
                target = Path(folder, key)
                target.parent.mkdir(parents=True, exist_ok=True)
                self.client.download_file(self.bucket, f"{self.prefix}/{key}", str(target))
        return f"{folder}/{version}"


class Model:
    """One served model: its versions' states, and what is loaded."""

    def __init__(self, name: str, base_path: str) -> None:
        self.name = name
        self.base = S3(base_path) if base_path.startswith("s3://") else Folder(base_path)
        self.serves_all = False
        self.loaded: dict[int, object] = {}
        self.states: dict[int, tuple[str, str, str]] = {}
        self.labels: dict[str, int] = {}

    def look(self) -> None:
        import tensorflow as tf

        found = self.base.versions()
        aspired = found if self.serves_all else found[-1:]
        for version in aspired:
            if version not in self.loaded and self.states.get(version, ("",))[0] != "LOADING":
                self.states[version] = ("LOADING", "OK", "")
                folder = self.base.fetch(version)
                if isinstance(self.base, S3) and not Path(folder, "saved_model.pb").exists():
                    del self.states[version]  # not whole yet: the real one tries again later, too
                    continue
                try:
                    self.loaded[version] = tf.saved_model.load(folder)
                    self.states[version] = ("AVAILABLE", "OK", "")
                except Exception as error:  # noqa: BLE001 - whatever a model raises is its state
                    self.states[version] = ("END", "UNKNOWN", str(error)[:300])
                    self.loaded[version] = None
        for version in [each for each in self.loaded if each not in aspired]:
            if self.loaded.pop(version) is not None:
                self.states[version] = ("END", "OK", "")

    def newest(self) -> int:
        return max((version for version, each in self.loaded.items() if each is not None), default=0)

    def run(self, version: int, signature: str, given: dict[str, object]) -> dict[str, object]:
        """Return the output tensors by name."""
        import tensorflow as tf

        function = self.loaded[version].signatures[signature or "serving_default"]
        specs = function.structured_input_signature[1]
        return function(**{name: tf.constant(value, specs[name].dtype) for name, value in given.items()})

    def predict(self, version: int, request: dict) -> dict:
        rows = "instances" in request
        given = request["instances"] if rows else request["inputs"]
        signature = request.get("signature_name", "serving_default")
        if rows and given and isinstance(given[0], dict):
            given = {name: [row[name] for row in given] for name in given[0]}
        if not isinstance(given, dict):
            (only,) = self.loaded[version].signatures[signature].structured_input_signature[1]
            given = {only: given}
        values = {name: tensor.numpy().tolist() for name, tensor in self.run(version, signature, given).items()}
        if len(values) == 1:
            return {"predictions" if rows else "outputs": next(iter(values.values()))}
        if rows:
            return {"predictions": [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]}
        return {"outputs": values}


class ModelServer:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.models: dict[str, Model] = {}
        self.config = self.refused = ""
        if options.model:
            self.models[options.model[0]] = Model(*options.model)

    def run(self) -> None:
        while True:
            if not (self.options.hold and Path(self.options.hold).exists()):
                if self.options.config:
                    self.read_config()
                for model in list(self.models.values()):
                    model.look()
            time.sleep(POLL)

    def read_config(self) -> None:
        """Go by the model config file. It is read with expressions of its own, not with what wrote it."""
        text = Path(self.options.config).read_text()
        if text == self.config:
            return
        listed = {}
        for block in re.split(r"\bconfig\s*\{", re.sub(r"#.*", "", text))[1:]:
            name = re.search(r"name:\s*['\"]([^'\"]+)", block)[1]
            path = re.search(r"base_path:\s*['\"]([^'\"]+)", block)[1]
            pairs = re.findall(r"version_labels\s*\{\s*key:\s*['\"]([^'\"]+)['\"],?\s*value:\s*(\d+)\s*\}", block)
            serves_all = re.search(r"model_version_policy\s*\{\s*all\b", block) is not None
            listed[name] = (path, serves_all, {label: int(version) for label, version in pairs})
        for name, (path, serves_all, labels) in listed.items():
            model = self.models.setdefault(name, Model(name, path))
            model.serves_all = serves_all
            model.look()
            wrong = [label for label, version in labels.items() if model.loaded.get(version) is None]
            if wrong:
                if text != self.refused:
                    sys.stderr.write(f"refused labels {wrong} of {name}, whose versions are not available\n")
                self.refused = text
                return  # the whole config, as the real one
            model.labels = labels
        for name in self.models.keys() - listed.keys():
            del self.models[name]
        self.config = text


class Handler(http.server.BaseHTTPRequestHandler):
    server: http.server.ThreadingHTTPServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        model, version, _ = self.target()
        if model is None:
            return
        wanted = [version] if version is not None else sorted(model.states, reverse=True)
        if not wanted or any(each not in model.states for each in wanted):
            self.answer(404, {"error": f"Could not find any versions of model {model.name}"})
            return
        statuses = [
            {"version": str(each), "state": state, "status": {"error_code": code, "error_message": message}}
            for each in wanted
            for state, code, message in [model.states[each]]
        ]
        self.answer(200, {"model_version_status": statuses})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        model, version, verb = self.target()
        if model is None:
            return
        version = model.newest() if version is None else version
        if verb != "predict" or model.loaded.get(version) is None:
            self.answer(404, {"error": f"Servable not found for request: Specific({model.name}, {version})"})
            return
        try:
            self.answer(200, model.predict(version, json.loads(body)))
        except Exception as error:  # noqa: BLE001 - whatever a request raises is its answer
            self.answer(400, {"error": str(error)[:500]})

    def target(self) -> tuple[Model | None, int | None, str]:
        """Return the model, version and verb of a request; no model if it was answered."""
        match = re.fullmatch(r"/v1/models/([^/:]+)(?:/versions/(\d+)|/labels/([^/:]+))?(?::(\w+))?", self.path)
        model = self.server.models.models.get(match[1]) if match else None
        if model is None:
            self.answer(404, {"error": f"Could not find any versions of model {match[1] if match else ''}"})
            return None, None, ""
        if match[3] and match[3] not in model.labels:
            self.answer(404, {"error": f"Unrecognized servable version label: {match[3]}"})
            return None, None, ""
        return model, model.labels[match[3]] if match[3] else int(match[2]) if match[2] else None, match[4] or ""

    def answer(self, status: int, value: dict) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


def serve_grpc(models: dict[str, Model]) -> tuple[object, int]:
    """Answer over gRPC; return the server, which ends when nobody holds it, and its port."""
    import grpc
    import tensorflow as tf
    from tensorflow_serving.apis import get_model_status_pb2, model_service_pb2_grpc, predict_pb2
    from tensorflow_serving.apis import prediction_service_pb2_grpc as prediction_service

    def target(spec, context) -> tuple[Model, int | None]:
        """Return the model of a request, and the version if it names one, by number or by label."""
        model = models.get(spec.name)
        if model is None:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Servable not found for request: Latest({spec.name})")
        chosen = spec.WhichOneof("version_choice")
        if chosen == "version_label" and spec.version_label not in model.labels:
            context.abort(
                grpc.StatusCode.FAILED_PRECONDITION, f"Unrecognized servable version label: {spec.version_label}"
            )
        numbers = {"version": spec.version.value, "version_label": model.labels.get(spec.version_label)}
        return model, numbers.get(chosen or "")

    class Prediction(prediction_service.PredictionServiceServicer):
        def Predict(self, request, context):  # noqa: N802 - gRPC's name
            model, number = target(request.model_spec, context)
            number = model.newest() if number is None else number
            if model.loaded.get(number) is None:
                context.abort(
                    grpc.StatusCode.NOT_FOUND, f"Servable not found for request: Specific({model.name}, {number})"
                )
            signature = request.model_spec.signature_name or "serving_default"
            given = {name: tf.make_ndarray(tensor) for name, tensor in request.inputs.items()}
            answer = predict_pb2.PredictResponse()
            answer.model_spec.name, answer.model_spec.signature_name = model.name, signature
            answer.model_spec.version.value = number
            for name, tensor in model.run(number, signature, given).items():
                answer.outputs[name].CopyFrom(tf.make_tensor_proto(tensor))
            return answer

    class Status(model_service_pb2_grpc.ModelServiceServicer):
        def GetModelStatus(self, request, context):  # noqa: N802 - gRPC's name
            model, number = target(request.model_spec, context)
            answer = get_model_status_pb2.GetModelStatusResponse()
            for each in [number] if number is not None else sorted(model.states, reverse=True):
                state, code, message = model.states[each]
                status = answer.model_version_status.add(version=each)
                status.state = get_model_status_pb2.ModelVersionStatus.State.Value(state)
                status.status.error_code, status.status.error_message = (0 if code == "OK" else 2), message
            return answer

    server = grpc.server(ThreadPoolExecutor(4))
    prediction_service.add_PredictionServiceServicer_to_server(Prediction(), server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(Status(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return server, port


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("port_file")
    parser.add_argument("--model", nargs=2)
    parser.add_argument("--config")
    parser.add_argument("--hold")
    options = parser.parse_args()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.models = ModelServer(options)
    _grpc, grpc_port = serve_grpc(server.models.models)
    threading.Thread(target=server.models.run, daemon=True).start()
    draft = Path(f"{options.port_file}.new")
    draft.write_text(f"{server.server_address[1]} {grpc_port}")
    draft.rename(options.port_file)
    server.serve_forever()


if __name__ == "__main__":
    main()
