"""Schedulers of Ray Tune as data: which trials are stopped early, or go on with another's state.

Time is counted in reports of the trial (Ray Tune's ``training_iteration``), so that it means the same on any machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, TypeAlias

from rallypoint.errors import InvalidJobError
from rallypoint.frameworks.ray.tune.space import Domain, Grid, domain_to_json

_REDUCTION = 2  # the least that leaves fewer trials
_HALF = 0.5


@dataclass(frozen=True, kw_only=True)
class Asha:
    """Asynchronous successive halving: at each rung only the best trials go on. After Li et al., 2018.

    Args:
        max_t: After how many reports no more trials are stopped, such as the epochs of the training: those that get so
            far run to their own end, and so save their model and return.
        grace_period: Reports that every trial may make.
        reduction_factor: One of so many trials goes on at each rung.
        brackets: How many brackets, each with another grace period.
    """

    kind: ClassVar[str] = "asha"
    max_t: int = 100
    grace_period: int = 1
    reduction_factor: float = 4
    brackets: int = 1

    def __post_init__(self) -> None:
        _whole(self, "grace_period")
        _whole(self, "brackets")
        _whole(self, "max_t", least=self.grace_period)
        _factor(self)


@dataclass(frozen=True, kw_only=True)
class HyperBand:
    """HyperBand, synchronously: trials wait for those of their bracket. After Li et al., 2017.

    Trials are paused, so they have to save checkpoints.

    Args:
        max_t: After how many reports no more trials are stopped, such as the epochs of the training: those that get so
            far run to their own end, and so save their model and return.
        reduction_factor: One of so many trials goes on at each rung.
    """

    kind: ClassVar[str] = "hyperband"
    max_t: int = 81
    reduction_factor: float = 3

    def __post_init__(self) -> None:
        _whole(self, "max_t")
        _factor(self)


@dataclass(frozen=True, kw_only=True)
class MedianStopping:
    """Stops a trial whose best result is worse than the median of the others' means. After Golovin et al., 2017.

    Args:
        grace_period: Reports that every trial may make.
        min_samples_required: Trials whose results there must be for a median.
    """

    kind: ClassVar[str] = "median_stopping"
    grace_period: int = 1
    min_samples_required: int = 3

    def __post_init__(self) -> None:
        _whole(self, "grace_period")
        _whole(self, "min_samples_required")


@dataclass(frozen=True, kw_only=True)
class PopulationBased:
    """Population-based training: bad trials go on from good ones' checkpoints, with changed parameters.

    After Jaderberg et al., 2017. Trials have to save checkpoints.

    Args:
        mutations: The parameters that change, each with its domain.
        perturbation_interval: Reports between two changes.
        quantile_fraction: The share of trials that are bad, and of those that are good.
        resample_probability: How likely a parameter is drawn anew instead of being scaled.
    """

    kind: ClassVar[str] = "population_based"
    mutations: Mapping[str, Domain] = field(default_factory=dict)
    perturbation_interval: int = 5
    quantile_fraction: float = 0.25
    resample_probability: float = 0.25

    def __post_init__(self) -> None:
        _whole(self, "perturbation_interval")
        given: object = self.mutations
        if not isinstance(given, Mapping) or not given or any(isinstance(each, Grid) for each in given.values()):
            raise InvalidJobError("PopulationBased", "mutations", got=given, expected="domains by parameter, no grid")
        for name, most in (("quantile_fraction", _HALF), ("resample_probability", 1.0)):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not 0 <= value <= most:
                raise InvalidJobError("PopulationBased", name, got=value, expected=f"a number from 0 to {most:g}")


Scheduler: TypeAlias = Asha | HyperBand | MedianStopping | PopulationBased


def scheduler_to_json(scheduler: Scheduler | None) -> dict[str, Any] | None:
    """Return a scheduler as a JSON object; None for none."""
    if scheduler is None:
        return None
    if isinstance(scheduler, PopulationBased):
        fields: dict[str, Any] = {name: getattr(scheduler, name) for name in scheduler.__dataclass_fields__}
        fields["mutations"] = {name: domain_to_json(each) for name, each in scheduler.mutations.items()}
    else:
        fields = asdict(scheduler)
    return {"kind": scheduler.kind, **fields}


def _whole(scheduler: object, name: str, least: int = 1) -> None:
    value = getattr(scheduler, name)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        expected = f"a whole number of reports, {least} or more"
        raise InvalidJobError(type(scheduler).__name__, name, got=value, expected=expected)


def _factor(scheduler: Asha | HyperBand) -> None:
    value: object = scheduler.reduction_factor
    if not isinstance(value, int | float) or isinstance(value, bool) or value < _REDUCTION:
        expected = f"{_REDUCTION} or more"
        raise InvalidJobError(type(scheduler).__name__, "reduction_factor", got=value, expected=expected)
