"""The job of a search over the parameters of a training function, with Ray Tune."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

from rallypoint.frameworks.ray.job import RayDriverJob
from rallypoint.frameworks.ray.tune.schedulers import (
    Asha,
    HyperBand,
    MedianStopping,
    PopulationBased,
    Scheduler,
    scheduler_to_json,
)
from rallypoint.frameworks.ray.tune.space import (
    Choice,
    Domain,
    Grid,
    Normal,
    RandInt,
    Uniform,
    domain_to_json,
    space_to_json,
)
from rallypoint.spec.entry import Function
from rallypoint.spec.job import digest

SEARCHES = ("random", "grid", "optuna")
_DOMAIN = Choice | Grid | Uniform | RandInt | Normal
_SCHEDULER = Asha | HyperBand | MedianStopping | PopulationBased


@dataclass(frozen=True, kw_only=True)
class RayTune(RayDriverJob):
    """A search over the parameters of a training function with Ray Tune.

    Each trial calls the function with the arguments of the entry, and the sampled values as keyword arguments; a
    script or module gets them as ``--name=value``. It may be the very function that `TorchElastic` trains with: inside
    of a trial, ``rallypoint.stage()`` is the trial's own. ``report`` is a report of the trial (call it once per epoch,
    after ``save_checkpoint``), ``save_checkpoint`` and ``latest_checkpoint`` are the trial's checkpoints, and artifacts
    lie under the trial. ``ray.tune.report`` and ``ray.tune.get_checkpoint`` work as well.

    On a retry trials that have finished are not run again, and interrupted and failed ones go on from their
    checkpoints. The result is the best ``config``, its ``metrics``, what its trial returned (``returned``), its
    ``checkpoint``, and the number of ``trials`` by how they ended; artifacts are ``trials.csv``, ``trials.json``,
    ``trials.png`` and the checkpoint.

    Args:
        space: By parameter a domain (``rallypoint.search.loguniform(1e-4, 1e-1)``, ``choice``, ``uniform``,
            ``randint``, ``grid`` and so on), or a constant.
        metric: The reported metric to optimise; a trial's last value of it counts.
        mode: ``"min"`` or ``"max"``.
        num_samples: How many trials; with grids, how often each combination is tried. A retry with a larger number
            goes on with the difference.
        search: ``"random"``, ``"grid"`` (every domain is a grid) or ``"optuna"`` (TPE).
        scheduler: ``rallypoint.search.Asha(…)``, ``HyperBand``, ``MedianStopping`` or ``PopulationBased``; None lets
            every trial run to its end.
        points_to_evaluate: Values to begin with, such as those in use.
        seed: Of the search.
        max_concurrent_trials: Trials at a time; None for as many as there are resources.
        resources_per_trial: What each trial asks of Ray.
        reuse_actors: Whether a trial may run in the process of one that has ended, which saves the imports; what the
            code leaves behind in the process, such as a process group, the next trial finds.
        time_budget: Seconds after which every trial is stopped; each attempt has them anew.
        max_failures: How often a trial is started again after an error or a lost worker, within one attempt.
        max_failed_trials: With more failed trials the stage fails; by default it fails only if none has a result.

    Raises:
        InvalidJobError: A value is wrong.
    """

    kind: ClassVar[str] = "ray-tune"

    space: Mapping[str, Any] = field(default_factory=dict)
    metric: str = "loss"
    mode: str = "min"
    num_samples: int | str = 10
    search: str = "random"
    scheduler: Scheduler | None = None
    points_to_evaluate: Sequence[Mapping[str, Any]] = ()
    seed: int | str | None = None
    max_concurrent_trials: int | str | None = None
    resources_per_trial: Mapping[str, float] = field(default_factory=lambda: {"CPU": 1.0})
    reuse_actors: bool = False
    time_budget: float | str | None = None
    max_failures: int | str = 0
    max_failed_trials: int | str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        numbers = {
            "num_samples": self.whole("num_samples", 1),
            "seed": self.whole("seed", 0, none=True),
            "max_concurrent_trials": self.whole("max_concurrent_trials", 1, none=True),
            "max_failures": self.whole("max_failures", -1),
            "max_failed_trials": self.whole("max_failed_trials", 0, none=True),
            "time_budget": self.seconds("time_budget", none=True),
            "resources_per_trial": self.amounts("resources_per_trial"),
        }
        for name, value in numbers.items():
            object.__setattr__(self, name, value)
        metric: object = self.metric
        if not isinstance(metric, str) or not metric:
            raise self.invalid("metric", metric, "the name of a reported metric")
        if self.mode not in {"min", "max"}:
            raise self.invalid("mode", self.mode, '"min" or "max"')
        if self.search not in SEARCHES:
            raise self.invalid("search", self.search, f"one of {', '.join(SEARCHES)}")
        scheduler: object = self.scheduler
        if scheduler is not None and not isinstance(scheduler, _SCHEDULER):
            expected = "Asha(…), HyperBand(…), MedianStopping(…), PopulationBased(…) or None"
            raise self.invalid("scheduler", scheduler, expected)
        if not isinstance(self.reuse_actors, bool):
            raise self.invalid("reuse_actors", self.reuse_actors, "True or False")
        self._check_space()
        self._check_points()
        self._check_call()
        if self.address is None and self.resources.cpus is not None and self.resources.cpus < self.least_cpus():
            expected = f"{self.least_cpus():g} or more, which one trial asks of the Ray that is made for them"
            raise self.invalid("resources.cpus", self.resources.cpus, expected)

    def _check_space(self) -> None:
        given: object = self.space
        if not isinstance(given, Mapping) or not any(isinstance(each, _DOMAIN) for each in given.values()):
            expected = 'at least one domain by parameter, such as {"learning_rate": loguniform(1e-4, 1e-1)}'
            raise self.invalid("space", given, expected)
        constants = {name: each for name, each in given.items() if not isinstance(each, _DOMAIN)}
        try:
            json.dumps(constants, allow_nan=False)
        except (TypeError, ValueError) as error:
            fix = "use the domains of rallypoint.search, not Ray Tune's"
            raise self.invalid("space", constants, f"domains and JSON values ({error})", fix) from error
        if any(not isinstance(name, str) or not name for name in given):
            raise self.invalid("space", list(given), "names of parameters")
        domains = {name: each for name, each in given.items() if isinstance(each, _DOMAIN)}
        grids = [name for name, each in domains.items() if isinstance(each, Grid)]
        if self.search == "grid" and len(grids) < len(domains):
            others = sorted(domains.keys() - set(grids))
            raise self.invalid("space", others, 'grid([…]) for every parameter, with search="grid"')
        if self.search == "optuna" and (bad := [n for n, e in domains.items() if isinstance(e, Grid | Normal)]):
            raise self.invalid("space", bad, 'choice, uniform, loguniform or randint, with search="optuna"')
        if isinstance(self.scheduler, PopulationBased) and (
            unknown := sorted(self.scheduler.mutations.keys() - given.keys())
        ):
            raise self.invalid("scheduler", unknown, "mutations of parameters of the space")

    def _check_points(self) -> None:
        given: object = self.points_to_evaluate
        if not isinstance(given, list | tuple):
            raise self.invalid("points_to_evaluate", given, "a list of values by parameter")
        for point in given:
            if not isinstance(point, Mapping) or (unknown := point.keys() - self.space.keys()):
                got = point if not isinstance(point, Mapping) else sorted(unknown)
                raise self.invalid("points_to_evaluate", got, "values by parameter of the space")
        if given and self.search == "grid":
            raise self.invalid("points_to_evaluate", given, 'none with search="grid"')

    def _check_call(self) -> None:
        """Raise if the function cannot be called with the sampled values."""
        code = self.code
        if not isinstance(code, Function):
            return
        if both := sorted(self.space.keys() & code.kwargs.keys()):
            raise self.invalid("space", both, "parameters that the entry's arguments do not set")
        try:
            signature = inspect.signature(code.call)
        except (TypeError, ValueError):  # a callable without a signature
            return
        try:
            signature.bind(*code.args, **code.kwargs, **dict.fromkeys(self.space))
        except TypeError as error:
            expected = f"parameters of {code.name}{signature}"
            raise self.invalid("space", sorted(self.space), f"{expected} ({error})") from error

    @property
    def total(self) -> int:
        """How many trials there are."""
        grids = [len(each.values) for each in self.space.values() if isinstance(each, Grid)]
        return cast("int", self.num_samples) * math.prod(grids)

    def least_cpus(self) -> float:
        """Return the CPUs of one trial."""
        return max(1.0, self.resources_per_trial.get("CPU", 0.0))

    def fingerprint(self) -> dict[str, str]:
        """Return what makes two attempts the same work: the entry, its arguments, and what defines the search.

        Not in it: how many trials, how many at a time, on which resources and for how long. A retry that changes these
        goes on with what was found.
        """
        work = {
            "metric": self.metric,
            "mode": self.mode,
            "search": self.search,
            "scheduler": scheduler_to_json(self.scheduler),
            "seed": self.seed,
            "points_to_evaluate": [dict(point) for point in self.points_to_evaluate],
        }
        parts = super().fingerprint() | {name: digest(value) for name, value in work.items()}
        return parts | {f"space {name}": digest(domain_to_json(each)) for name, each in self.space.items()}

    def settings(self) -> dict[str, Any]:
        """Return what the driver has to know."""
        return {
            **super().settings(),
            "space": space_to_json(self.space),
            "metric": self.metric,
            "mode": self.mode,
            "num_samples": self.num_samples,
            "grid": self.total // cast("int", self.num_samples),
            "search": self.search,
            "scheduler": scheduler_to_json(self.scheduler),
            "points_to_evaluate": [dict(point) for point in self.points_to_evaluate],
            "seed": self.seed,
            "max_concurrent_trials": self.max_concurrent_trials,
            "resources_per_trial": dict(self.resources_per_trial),
            "reuse_actors": self.reuse_actors,
            "time_budget": self.time_budget,
            "max_failures": self.max_failures,
            "max_failed_trials": self.max_failed_trials,
            "num_to_keep": self.keep_checkpoints,
        }


__all__ = ["SEARCHES", "Domain", "RayTune"]
