"""The job of elastic PyTorch training: a gang of ``torchrun`` agents."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from rallypoint.spec.gang import Macro, Role, has_macro
from rallypoint.spec.job import Job

if TYPE_CHECKING:
    from collections.abc import Mapping

_NNODES = re.compile(r"^(\d+)(?::(\d+))?$")
_NPROC_WORDS = ("auto", "gpu", "cpu")
_START_METHODS = ("spawn", "fork", "forkserver")
_BACKENDS = ("c10d", "etcd", "etcd-v2", "static")
# The value of `is_host` that the driver turns into true on the first agent and into false on the others: torchrun would
# guess it from host names, which need not resolve.
HOSTED_BY_FIRST = "first"


@dataclass(frozen=True, kw_only=True)
class TorchElastic(Job):
    """Elastic PyTorch training: what ``torchrun`` runs, as a stage.

    There are two budgets of restarts. torchrun's (`max_restarts`) restarts the workers inside one attempt, in seconds,
    on the same hosts; the orchestrator's (``retries``) starts a new attempt when the agents themselves are lost or
    their budget is spent. Both continue from the last checkpoint.

    Args:
        nnodes: Nodes: ``"2"``, or an elastic range ``"1:4"``. On one machine the least number runs, on several hosts as
            many as there are: the training starts with those that come within `rdzv_timeout` and goes on with the least
            number if others are lost, which take up restarts of `max_restarts`.
        nproc_per_node: Workers per node: a number, ``"auto"``, ``"gpu"`` or ``"cpu"``.
        max_restarts: How often torchrun restarts the workers within one attempt.
        monitor_interval: Seconds between torchrun's looks at its workers.
        rdzv_backend: torchrun's rendezvous backend.
        rdzv_endpoint: Host and port of the rendezvous; by default a free port on the gang's first host.
        rdzv_conf: Further rendezvous settings, such as ``{"read_timeout": "60"}``.
        rdzv_timeout: Seconds that nodes wait for each other in a rendezvous.
        start_method: The `multiprocessing` start method that torchrun is given.

    Raises:
        InvalidJobError: A value is wrong.

    The parameters are those of "torchrun (Elastic Launch)" in the PyTorch documentation.
    """

    kind: ClassVar[str] = "torch"
    requires: ClassVar[tuple[str, ...]] = ("torch",)

    nnodes: str | int = "1"
    nproc_per_node: str | int = "auto"
    max_restarts: int | str = 0
    monitor_interval: float = 0.1
    rdzv_backend: str = "c10d"
    rdzv_endpoint: str | None = None
    rdzv_conf: Mapping[str, str] = field(default_factory=dict)
    rdzv_timeout: float = 600.0
    start_method: str = "spawn"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "max_restarts", self._number("max_restarts"))
        least, most = self.nodes
        if not 1 <= least <= most:
            raise self.invalid("nnodes", self.nnodes, '"min:max" with 1 ≤ min ≤ max')
        nproc = str(self.nproc_per_node)
        if nproc not in _NPROC_WORDS and not (nproc.isdigit() and int(nproc) > 0):
            raise self.invalid("nproc_per_node", self.nproc_per_node, 'a number above 0, "auto", "gpu" or "cpu"')
        if int(self.max_restarts) < 0:
            raise self.invalid("max_restarts", self.max_restarts, "0 or more")
        if self.monitor_interval <= 0:
            raise self.invalid("monitor_interval", self.monitor_interval, "seconds above 0")
        if self.rdzv_timeout <= 0:
            raise self.invalid("rdzv_timeout", self.rdzv_timeout, "seconds above 0")
        if self.rdzv_backend not in _BACKENDS:
            raise self.invalid("rdzv_backend", self.rdzv_backend, f"one of {', '.join(_BACKENDS)}")
        for name in ("rdzv_endpoint", "rdzv_conf"):
            if has_macro(str(getattr(self, name))):
                raise self.invalid(name, getattr(self, name), "text without ${rallypoint:…}")
        if self.start_method not in _START_METHODS:
            raise self.invalid("start_method", self.start_method, f"one of {', '.join(_START_METHODS)}")

    @property
    def nodes(self) -> tuple[int, int]:
        """The least and the largest number of nodes."""
        match = _NNODES.match(str(self.nnodes).strip())
        if not match:
            fix = 'write nnodes="2" for two nodes, nnodes="1:4" for one to four'
            raise self.invalid("nnodes", self.nnodes, 'a number or a range "min:max"', fix)
        least = int(match[1])
        return least, int(match[2]) if match[2] else least

    def _number(self, name: str) -> int:
        """A rendered template is text; ``torchrun`` takes text too."""
        value = str(getattr(self, name)).strip()
        if not value.lstrip("-").isdigit():
            raise self.invalid(name, value, "a whole number")
        return int(value)

    def roles(self) -> tuple[Role, ...]:
        """Return one role: an agent per node, which starts the ranks."""
        least, most = self.nodes
        conf = {"join_timeout": f"{self.rdzv_timeout:g}", "timeout": f"{self.rdzv_timeout:g}", **self.rdzv_conf}
        endpoint = self.rdzv_endpoint or f"{Macro.HOST}:{Macro.port('rdzv')}"
        if not self.rdzv_endpoint and self.rdzv_backend == "c10d":
            conf = {"is_host": HOSTED_BY_FIRST, **conf}
        agent = Role(
            name="agent",
            replicas=most,
            min_replicas=least,
            ports=() if self.rdzv_endpoint else ("rdzv",),
            env=dict(self.env),
            resources=self.resources,
            argv=(
                Macro.PYTHON,
                "-m",
                "rallypoint.frameworks.torch.driver",
                "agent",
                f"--nnodes={Macro.NODES}",
                f"--nproc-per-node={self.nproc_per_node}",
                f"--max-restarts={self.max_restarts}",
                f"--monitor-interval={self.monitor_interval:g}",
                f"--start-method={self.start_method}",
                f"--rdzv-backend={self.rdzv_backend}",
                f"--rdzv-endpoint={endpoint}",
                f"--rdzv-id={Macro.ATTEMPT}",
                f"--rdzv-conf={','.join(f'{key}={value}' for key, value in sorted(conf.items()))}",
                f"--local-addr={Macro.ADDRESS}",
                "-m",
                "rallypoint.frameworks.torch.driver",
                "rank",
                *self.code.command(),
            ),
        )
        return (agent,)
