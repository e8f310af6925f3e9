"""What a job asks of Ray beside its gang, and the request that submits both."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from rallypoint.errors import PreflightError
from rallypoint.launchers.placement import place
from rallypoint.launchers.ray_jobs.packages import Package, of_content, of_path, of_secret, unzip_files, zip_files
from rallypoint.spec.gang import Macro
from rallypoint.spec.shipment import ARCHIVE
from rallypoint.worker import ray_job

if TYPE_CHECKING:
    from rallypoint.launchers.ray_jobs.address import Address
    from rallypoint.spec.gang import Gang

NAME = "ray_jobs"  # what a gang's launcher options call this launcher
ATTEMPT, PROCESS, STORE = "rallypoint_attempt", "rallypoint_process", "rallypoint_store"  # in a job's metadata
FORBIDDEN = "rallypoint_forbidden"  # in the metadata of a job that only holds an id, so that none else starts
DEFAULT_GRACE = 20.0  # seconds
_STOP_MARGIN = 15  # seconds that Ray leaves the starter beyond the grace, to kill the rest and to publish its record
_URI = re.compile(r"^[a-z][a-z0-9+.-]+://")
_AMOUNTS = ("entrypoint_num_cpus", "entrypoint_num_gpus", "entrypoint_memory")


@dataclass(frozen=True, kw_only=True)
class Ask:
    """What a job asks of the cluster, by Ray's own names.

    Args:
        runtime_env: Ray's runtime environment. Local folders in ``working_dir`` and ``py_modules`` are uploaded. It is
            shown by the dashboard, so it may hold no secret.
        entrypoint_num_cpus: CPUs that are reserved for the job's own process; its resources' by default.
        entrypoint_num_gpus: GPUs, likewise.
        entrypoint_memory: Bytes, likewise.
        entrypoint_resources: Custom resources. Without any of these Ray runs the process on the head node.
        entrypoint_label_selector: Labels of the node, as Ray selects by them.
        metadata: Text that the dashboard shows with the job.
        stop_grace: Seconds between SIGTERM and SIGKILL when the job is stopped. Ray takes it with the job, not with
            the stop.
    """

    runtime_env: Mapping[str, Any] = field(default_factory=dict)
    entrypoint_num_cpus: float | None = None
    entrypoint_num_gpus: float | None = None
    entrypoint_memory: int | None = None
    entrypoint_resources: Mapping[str, float] = field(default_factory=dict)
    entrypoint_label_selector: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    stop_grace: float = DEFAULT_GRACE

    def __post_init__(self) -> None:
        runtime_env: object = self.runtime_env
        if not isinstance(runtime_env, Mapping) or not _is_json(runtime_env):
            raise _wrong("runtime_env", "an object, as Ray's runtime environments are")
        for name in ("working_dir", "env_vars", "py_modules", "excludes"):
            wanted = {"working_dir": str, "env_vars": Mapping}.get(name, list)
            given = self.runtime_env.get(name)
            if given is not None and not isinstance(given, wanted):
                raise _wrong(f"runtime_env[{name!r}]", wanted.__name__)
        for name in (*_AMOUNTS, "stop_grace"):
            amount = getattr(self, name)
            if amount is not None and (not _is_number(amount) or amount < 0):
                raise _wrong(name, "a number, 0 or more")
        for name, kind in (("entrypoint_resources", "numbers"), ("entrypoint_label_selector", "text")):
            values: object = getattr(self, name)
            fits = _is_number if kind == "numbers" else _is_text
            if not isinstance(values, Mapping) or not all(_is_text(key) and fits(values[key]) for key in values):
                raise _wrong(name, f"an object of {kind}")
        metadata: object = self.metadata
        if not isinstance(metadata, Mapping) or not all(map(_is_text, (*metadata, *metadata.values()))):
            raise _wrong("metadata", "an object of text")

    def with_options(self, options: Mapping[str, Any]) -> Ask:
        """Return the same with a job's own wishes, which come first; variables and metadata are joined.

        Raises:
            PreflightError: One of them is not known, or wrong.
        """
        if unknown := options.keys() - self.__dataclass_fields__.keys():
            raise _wrong(min(unknown), f"one of {', '.join(sorted(self.__dataclass_fields__))}")
        more = dict(options)
        replace(self, **more)  # what is joined below is then of the right type
        if isinstance(env := more.get("runtime_env"), Mapping):
            variables = {**(self.runtime_env.get("env_vars") or {}), **(env.get("env_vars") or {})}
            more["runtime_env"] = {**self.runtime_env, **env, **({"env_vars": variables} if variables else {})}
        if isinstance(metadata := more.get("metadata"), Mapping):
            more["metadata"] = {**self.metadata, **metadata}
        return replace(self, **more)


@dataclass(frozen=True)
class Submission:
    """A request, and the packages that have to be on the cluster before it is sent."""

    request: Mapping[str, Any]
    packages: tuple[Package, ...]


def submission(gang: Gang, attempt: str, ask: Ask, address: Address, *, mark: str | None = None) -> Submission:
    """Return what submits a gang as the job of that id. It reads and zips files: run it in a thread.

    Args:
        gang: The gang.
        attempt: Its attempt's id.
        ask: What it asks of the cluster.
        address: The cluster.
        mark: What tells the attempt's store from another one (`store_mark`).

    Raises:
        PreflightError: The gang has more than one process, or a local folder cannot be sent.
    """
    check_one_process(gang)
    # The starter fills in what is known on the node alone; ports are filled in by the supervisor, as everywhere.
    placed = place(gang, attempt=attempt, run_dir=Macro.RUN_DIR, python=Macro.PYTHON)
    secret = _secret_package(gang)
    spec = {
        "v": 1,
        "job": address.job_id(attempt),
        "processes": {**placed, "grace": ask.stop_grace},
        "files": sorted(gang.files),
        "secrets": secret.uri if secret else None,
    }
    files = {f"{ray_job.FILES}/{name}": data for name, data in gang.files.items()}
    files[ray_job.SPEC] = json.dumps(spec, sort_keys=True).encode()
    # Also unpacked: Ray puts the package on the path of every worker on every node, where it then can be imported.
    files |= unzip_files(gang.files[ARCHIVE]) if ARCHIVE in gang.files else {}
    own = [of_content(zip_files(files)), *([secret] if secret else [])]
    runtime_env, users = _runtime_env(ask.runtime_env)
    runtime_env["py_modules"] = [*(package.uri for package in own), *runtime_env.get("py_modules", [])]
    runtime_env["env_vars"] = {
        **(runtime_env.get("env_vars") or {}),
        "RAY_JOB_STOP_WAIT_TIME_S": str(int(ask.stop_grace) + _STOP_MARGIN),
    }
    role = gang.roles[0]
    request: dict[str, Any] = {
        "submission_id": address.job_id(attempt),
        # Ray runs it by a shell; `exec`, so that no shell stands between Ray's signals and the starter.
        "entrypoint": f"exec {shlex.join([gang.python or address.python, '-m', 'rallypoint.worker.ray_job'])}",
        "runtime_env": runtime_env,
        "metadata": {
            "job_name": gang.name,
            **ask.metadata,
            ATTEMPT: attempt,
            PROCESS: placed["processes"][0]["name"],
            **({STORE: mark} if mark else {}),
        },
    }
    amounts = {
        "entrypoint_num_cpus": _first(ask.entrypoint_num_cpus, role.resources.cpus),
        "entrypoint_num_gpus": _first(ask.entrypoint_num_gpus, role.resources.gpus or None),
        "entrypoint_memory": _first(ask.entrypoint_memory, role.resources.memory_bytes),
        "entrypoint_resources": dict(ask.entrypoint_resources) or None,
        "entrypoint_label_selector": dict(ask.entrypoint_label_selector) or None,
    }
    request |= {name: value for name, value in amounts.items() if value is not None}
    return Submission(request, (*own, *users))


def forbidding(job_id: str) -> dict[str, Any]:
    """Return the request of a job that takes an id and does nothing, so that no other of that id ever starts."""
    return {
        "submission_id": job_id,
        "entrypoint": "exec true",
        "metadata": {"job_name": "cancelled before its start", FORBIDDEN: "true"},
    }


def store_mark(store: str) -> str:
    """Return what tells two stores apart, whose stages may have equal keys and run on one cluster, by their URI."""
    return hashlib.sha256(store.encode()).hexdigest()[:16]


def check_one_process(gang: Gang) -> None:
    """Raise for a gang that is not one process.

    Raises:
        PreflightError: It is not.
    """
    count = sum(role.least for role in gang.roles)
    if count != 1:
        msg = (
            f"got a {gang.name} gang of {count} processes, expected one: a Ray job has one process, and spreads its "
            "work over the cluster by Ray itself (RayTrain, RayTune, ray.remote); run other gangs on another launcher"
        )
        raise PreflightError(msg)


def _secret_package(gang: Gang) -> Package | None:
    if not gang.secrets:
        return None
    values = {name: secret.reveal() for name, secret in gang.secrets.items()}
    return of_secret(zip_files({ray_job.SECRETS: json.dumps(values).encode()}))


def _runtime_env(given: Mapping[str, Any]) -> tuple[dict[str, Any], list[Package]]:
    env = {name: value for name, value in given.items() if value is not None}
    excludes = [str(pattern) for pattern in env.pop("excludes", [])]
    packages = []
    if (folder := env.get("working_dir")) and not _URI.match(folder):
        packages.append(of_path(folder, excludes=excludes))
        env["working_dir"] = packages[-1].uri
    modules = []
    for module in env.get("py_modules", []):
        if _URI.match(str(module)):
            modules.append(str(module))
        else:
            packages.append(of_path(str(module), excludes=excludes, parent=True))
            modules.append(packages[-1].uri)
    return {**env, "py_modules": modules}, packages


def _first(*values: float | None) -> float | None:
    return next((value for value in values if value is not None), None)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_json(value: object) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


def _wrong(name: str, expected: str) -> PreflightError:
    return PreflightError(f"got a wrong value for the option {name} of the launcher {NAME}, expected {expected}")
