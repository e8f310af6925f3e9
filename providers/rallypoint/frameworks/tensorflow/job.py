"""The job of TensorFlow: the processes of one of the strategies of ``tf.distribute``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

from rallypoint.errors import InvalidJobError
from rallypoint.frameworks.tensorflow.cluster import CHIEF, EVALUATOR, SERVER, WORKER
from rallypoint.spec.failure import FailureRule, Kind
from rallypoint.spec.gang import Macro, Role, has_macro
from rallypoint.spec.job import Job
from rallypoint.spec.resources import Resources

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rallypoint.spec.gang import Gang

DEFAULT, MIRRORED, MULTI_WORKER = "default", "mirrored", "multi_worker_mirrored"
PARAMETER_SERVER, ON_TPU = "parameter_server", "tpu"
STRATEGIES = (DEFAULT, MIRRORED, MULTI_WORKER, PARAMETER_SERVER, ON_TPU)
_CLUSTERS = (MULTI_WORKER, PARAMETER_SERVER)  # those of several processes
_KERAS = ("3", "legacy")
_COMMUNICATIONS = ("auto", "ring", "nccl")
_RENDEZVOUS = "rendezvous"

FAILURE_RULES: tuple[FailureRule, ...] = (
    FailureRule(
        "a process did not join", Kind.RETRYABLE, "look at the log of the process that is named",
        exception=r"(^|\.)JoinTimeoutError$", retry_after=30,
    ),
    FailureRule(
        "the first process was lost", Kind.RETRYABLE, "look at the process that ended first", echo=True, retry_after=0,
        exception=r"(^|\.)LeaderLostError$",
    ),
    FailureRule(
        "there is no such device", Kind.USER, "correct gpus= or tpu=, or run the job where the device is",
        exception=r"(^|\.)(NoTPUError|DeviceError)$",
    ),
    FailureRule(
        "Keras 3 does not do this with several workers", Kind.USER, 'take keras="legacy" or a custom loop',
        exception=r"(^|\.)KerasFitError$",
    ),
    FailureRule(
        "TensorFlow does not write to this store", Kind.USER, "use stage().save_checkpoint(), or another store",
        exception=r"(^|\.)StoreNotWritableError$",
    ),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class CloudTPU:
    """Which TPU to connect to. It could not be run where Rallypoint is developed: there was no TPU.

    Args:
        name: The name of a Cloud TPU or its gRPC address; ``"local"`` for the one of the host, as on a TPU VM.
        zone: Its zone; the job's own by default.
        project: Its project; the job's own by default.

    Raises:
        InvalidJobError: A value is wrong.

    The parameters are those of ``tf.distribute.cluster_resolver.TPUClusterResolver``.
    """

    name: str = "local"
    zone: str | None = None
    project: str | None = None

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is not None and (not isinstance(value, str) or not value or has_macro(value)):
                raise InvalidJobError("CloudTPU", name, got=value, expected="a name, without ${rallypoint:…}")


@dataclass(frozen=True, kw_only=True)
class TensorFlowJob(Job):
    """TensorFlow under one of the strategies of ``tf.distribute``.

    A function gets the ready strategy through a parameter called ``strategy``; other code asks
    ``rallypoint.frameworks.tensorflow.strategy()`` or makes its own, for which ``TF_CONFIG`` is set in every process.
    Rank 0 (the chief, or the first worker where there is none) returns the result.

    ``multi_worker_mirrored``
        Every worker runs the code, and all end together. A worker that dies ends the attempt at once, and the retry
        continues from the last checkpoint.
    ``parameter_server``
        The chief runs the code; workers and parameter servers run TensorFlow's servers until the chief is done. The
        attempt goes on without a worker that dies, as long as there is another; without a parameter server or the
        chief it ends, and the retry continues from the last checkpoint.

    TensorFlow's servers listen on all interfaces of their hosts, without authentication or encryption: run several
    processes only in a network that is trusted. GPUs and TPUs could not be run where Rallypoint is developed.

    Args:
        strategy: ``"default"``, ``"mirrored"`` (the GPUs, or logical devices, of one host),
            ``"multi_worker_mirrored"``, ``"parameter_server"`` or ``"tpu"``.
        workers: How many workers, besides a chief; 2 by default for a strategy of several processes.
        chief: Whether one process is called the chief; a parameter server job always has one. Without one the first
            worker leads.
        parameter_servers: How many, for ``"parameter_server"``; 1 by default.
        evaluator: Whether a further process runs the code as the task ``evaluator``, which is in nobody's cluster.
        evaluator_grace: Seconds that the evaluator has for its own end once the others are done.
        gpus: How many GPUs each process gets; or the numbers of those that the processes of a host divide among
            themselves; None for all. The chief of a parameter server job and its servers get none.
        task_resources: What the processes of a type ask of their hosts instead of `resources`, such as
            ``{"ps": Resources(cpus=4, memory="64GiB")}``; the types are ``chief``, ``worker``, ``ps`` and
            ``evaluator``. Without it the chief and the servers of a parameter server job ask for no GPU.
        memory_growth: Whether TensorFlow takes a GPU's memory only as it needs it.
        logical_devices: For ``"mirrored"`` on a CPU: into how many devices to split it.
        keras: ``"3"``, or ``"legacy"`` for Keras 2 (the package ``tf-keras``). ``fit`` of Keras 3 does not work with
            ``"multi_worker_mirrored"``, and says so.
        communication: How workers of ``"multi_worker_mirrored"`` reduce: ``"auto"``, ``"ring"`` or ``"nccl"``.
        collective_timeout: Seconds after which a collective operation of ``"multi_worker_mirrored"`` fails; None waits
            until `stall_timeout`.
        join_timeout: Seconds that the first process waits for the others once it is there itself, with TensorFlow
            imported; the error names the ones that did not come. `stall_timeout` counts from when they have.
        tpu: The TPU, for ``"tpu"``.
        xla_flags: Flags of the XLA compiler, such as ``["--xla_cpu_enable_fast_math=true"]``.
        jit_compile: Whether to compile with XLA what is not marked for it (autoclustering).

    Raises:
        InvalidJobError: A value is wrong.

    The behaviour of the strategies is that of "Distributed training with TensorFlow" in TensorFlow's documentation.
    """

    kind: ClassVar[str] = "tensorflow"
    own_rules: ClassVar[tuple[FailureRule, ...]] = FAILURE_RULES
    requires: ClassVar[tuple[str, ...]] = ("tensorflow",)

    strategy: str = DEFAULT
    workers: int | str | None = None
    chief: bool | None = None
    parameter_servers: int | str | None = None
    evaluator: bool = False
    evaluator_grace: float = 30.0
    gpus: int | Sequence[int] | None = None
    task_resources: Mapping[str, Resources] = field(default_factory=dict)
    memory_growth: bool = True
    logical_devices: int | str | None = None
    keras: str = "3"
    communication: str = "auto"
    collective_timeout: float | None = None
    join_timeout: float = 300.0
    tpu: CloudTPU | None = None
    xla_flags: Sequence[str] = ()
    jit_compile: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "keras", str(self.keras))  # a template may have made it a number
        for name, options in (("strategy", STRATEGIES), ("keras", _KERAS), ("communication", _COMMUNICATIONS)):
            if getattr(self, name) not in options:
                raise self.invalid(name, getattr(self, name), f"one of {', '.join(options)}")
        for name in ("workers", "parameter_servers", "logical_devices"):
            object.__setattr__(self, name, self._count(name))
        self._check_processes()
        self._check_devices()
        for name in ("join_timeout", "evaluator_grace", "collective_timeout"):
            seconds: object = getattr(self, name)
            optional = name == "collective_timeout"
            if not (seconds is None and optional) and (not _is_number(seconds) or float(str(seconds)) <= 0):
                raise self.invalid(name, seconds, "seconds above 0" + (", or None" if optional else ""))

    def _count(self, name: str) -> int | None:
        """A rendered template is text."""
        value = getattr(self, name)
        if value is None:
            return None
        text = str(value).strip()
        if isinstance(value, bool) or not text.isdigit() or int(text) < 1:
            raise self.invalid(name, value, "1 or more, a whole number")
        return int(text)

    def _check_processes(self) -> None:
        several = " or ".join(repr(name) for name in _CLUSTERS)
        if self.strategy not in _CLUSTERS:
            for name in ("workers", "chief", "evaluator"):
                if getattr(self, name) not in (None, False, 1) or getattr(self, name) is True:
                    fix = f"take strategy={several}, or leave {name}= out"
                    raise self.invalid(name, getattr(self, name), f"one process for {self.strategy!r}", fix)
        if self.strategy == PARAMETER_SERVER and self.chief is False:
            raise self.invalid("chief", self.chief, "True or None: in a parameter server job the chief runs the code")
        if self.parameter_servers is not None and self.strategy != PARAMETER_SERVER:
            expected = f"None for {self.strategy!r}"
            raise self.invalid("parameter_servers", self.parameter_servers, expected, f"take {PARAMETER_SERVER!r}")
        types = self._sizes()
        asked: Any = self.task_resources
        if not isinstance(asked, Mapping) or not all(
            kind in types and isinstance(each, Resources) for kind, each in asked.items()
        ):
            raise self.invalid("task_resources", asked, f"Resources for one or more of {', '.join(types)}")

    def _check_devices(self) -> None:
        gpus: object = self.gpus
        numbers = list(gpus) if isinstance(gpus, list | tuple) else [gpus]
        good = all(isinstance(number, int) and not isinstance(number, bool) and number >= 0 for number in numbers)
        if gpus is not None and (not good or len(set(numbers)) < len(numbers)):
            raise self.invalid("gpus", gpus, "how many, or a list of different numbers from 0, or None for all")
        if self.logical_devices is not None and self.strategy != MIRRORED:
            raise self.invalid("logical_devices", self.logical_devices, f"None for {self.strategy!r}")
        tpu: object = self.tpu
        if tpu is not None and (self.strategy != ON_TPU or not isinstance(tpu, CloudTPU)):
            raise self.invalid("tpu", self.tpu, 'a CloudTPU, with strategy="tpu"')
        flags: Any = self.xla_flags
        if isinstance(flags, str) or not all(
            isinstance(flag, str) and flag.startswith("--") and " " not in flag and not has_macro(flag)
            for flag in flags
        ):
            raise self.invalid("xla_flags", flags, 'a list of flags, such as ["--xla_dump_to=/tmp/xla"]')
        if self.xla_flags and "XLA_FLAGS" in self.env:
            raise self.invalid("xla_flags", flags, "either xla_flags= or the variable XLA_FLAGS in env=")

    def _sizes(self) -> dict[str, int]:
        """How many processes of each type there are, the leader's type first."""
        if self.strategy not in _CLUSTERS:
            return {WORKER: 1}
        of_servers = self.strategy == PARAMETER_SERVER
        sizes = {CHIEF: 1} if self.chief or of_servers else {}
        sizes[WORKER] = int(self.workers or 2)
        if of_servers:
            sizes[SERVER] = int(self.parameter_servers or 1)
        return sizes | ({EVALUATOR: 1} if self.evaluator else {})

    def _asked(self, kind: str) -> Resources:
        """What a process of a type asks of its host."""
        if kind in self.task_resources:
            return self.task_resources[kind]
        without_gpu = self.strategy == PARAMETER_SERVER and kind in (CHIEF, SERVER)
        return replace(self.resources, gpus=0) if without_gpu else self.resources

    def settings(self) -> dict[str, Any]:
        """Return what the driver is told, as a JSON object."""
        names = [f"{kind}-{index}" for kind, count in self._sizes().items() for index in range(count)]
        trains = (CHIEF,) if self.strategy == PARAMETER_SERVER else (CHIEF, WORKER)
        return {
            "strategy": self.strategy,
            "members": names,
            "ranks": [name for name in names if name.rpartition("-")[0] in trains],
            "rendezvous": f"{Macro.HOST}:{Macro.port(_RENDEZVOUS)}" if len(names) > 1 else None,
            "join_timeout": self.join_timeout,
            "evaluator_grace": self.evaluator_grace,
            "gpus": self.gpus if self.gpus is None or isinstance(self.gpus, int) else list(self.gpus),
            "memory_growth": self.memory_growth,
            "logical_devices": self.logical_devices,
            "jit_compile": self.jit_compile,
            "keras": self.keras,
            "communication": self.communication,
            "collective_timeout": self.collective_timeout,
            "tpu": asdict(self.tpu or CloudTPU()),
        }

    def environment(self) -> dict[str, str]:
        """Return the variables of every process; those that the user gave come last."""
        own = {
            "TF_CPP_MIN_LOG_LEVEL": "2",
            "TF_USE_LEGACY_KERAS": "1" if self.keras == "legacy" else "0",
            "KERAS_BACKEND": "tensorflow",
            "TF_GRPC_REUSE_PORT": "1",  # a server takes the port that its process holds for it
        }
        flags = {"XLA_FLAGS": " ".join(self.xla_flags)} if self.xla_flags else {}
        return {**own, **flags, **self.env}

    def plan(self) -> Gang:
        """Return the gang; Keras 2 is a package of its own, and is looked for before the launch."""
        gang = super().plan()
        return replace(gang, requires=(*gang.requires, "tf_keras")) if self.keras == "legacy" else gang

    def roles(self) -> tuple[Role, ...]:
        """Return a role for each type of task."""
        sizes = self._sizes()
        argv = (
            Macro.PYTHON,
            "-m",
            "rallypoint.frameworks.tensorflow.driver",
            json.dumps(self.settings(), sort_keys=True),
            *self.code.command(),
        )
        first = next(iter(sizes))
        return tuple(
            Role(
                name=kind,
                replicas=count,
                argv=argv,
                env=self.environment(),
                ports=(_RENDEZVOUS,) if kind == first and sum(sizes.values()) > 1 else (),
                resources=self._asked(kind),
                # The coordinator gives a lost worker's work to the others.
                may_lose=count - 1 if self.strategy == PARAMETER_SERVER and kind == WORKER else 0,
            )
            for kind, count in sizes.items()
        )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
