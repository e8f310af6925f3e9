"""A search space as data: small constructors that the driver turns into Ray Tune's and Optuna's distributions."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, TypeAlias

from rallypoint.errors import InvalidJobError


@dataclass(frozen=True)
class Choice:
    """One of some values, each as likely as the others.

    Args:
        values: JSON values.
    """

    kind: ClassVar[str] = "choice"
    values: Sequence[Any]

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", _values(self.kind, self.values))


@dataclass(frozen=True)
class Grid:
    """Every one of some values; of several grids every combination.

    Args:
        values: JSON values.
    """

    kind: ClassVar[str] = "grid"
    values: Sequence[Any]

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", _values(self.kind, self.values))


@dataclass(frozen=True)
class Uniform:
    """A number between two others.

    Args:
        lower: The least value.
        upper: The upper bound.
        q: The step that values are rounded to; None for none.
        log: Whether the logarithm is uniform, which suits learning rates.
    """

    kind: ClassVar[str] = "uniform"
    lower: float
    upper: float
    q: float | None = None
    log: bool = False

    def __post_init__(self) -> None:
        name = "loguniform" if self.log else self.kind
        _range(name, self.lower, self.upper, self.q, log=self.log)


@dataclass(frozen=True)
class RandInt:
    """A whole number from `lower` to `upper` - 1.

    Args:
        lower: The least value.
        upper: One more than the largest.
        q: The step that values are rounded to; None for none.
        log: Whether the logarithm is uniform.
    """

    kind: ClassVar[str] = "randint"
    lower: int
    upper: int
    q: int | None = None
    log: bool = False

    def __post_init__(self) -> None:
        for name in ("lower", "upper", "q"):
            value: object = getattr(self, name)
            if (value is not None or name != "q") and (not isinstance(value, int) or isinstance(value, bool)):
                raise InvalidJobError(self.kind, name, got=value, expected="a whole number")
        _range(self.kind, self.lower, self.upper, self.q, log=self.log)


@dataclass(frozen=True)
class Normal:
    """A number of a normal distribution. Optuna has none: for ``search="random"``.

    Args:
        mean: Its mean.
        sd: Its standard deviation.
    """

    kind: ClassVar[str] = "normal"
    mean: float = 0.0
    sd: float = 1.0

    def __post_init__(self) -> None:
        if not (_finite(self.mean) and _finite(self.sd) and self.sd > 0):
            got = (self.mean, self.sd)
            raise InvalidJobError(self.kind, "sd", got=got, expected="numbers, with a standard deviation above 0")


Domain: TypeAlias = Choice | Grid | Uniform | RandInt | Normal
KINDS: dict[str, type[Domain]] = {each.kind: each for each in (Choice, Grid, Uniform, RandInt, Normal)}


def choice(values: Sequence[Any]) -> Choice:
    """Return a choice of one of some JSON values."""
    return Choice(values)


def grid(values: Sequence[Any]) -> Grid:
    """Return a grid: every one of some JSON values is tried."""
    return Grid(values)


def uniform(lower: float, upper: float, *, q: float | None = None) -> Uniform:
    """Return a number from `lower` to `upper`, in steps of `q` if there is one."""
    return Uniform(lower, upper, q)


def loguniform(lower: float, upper: float, *, q: float | None = None) -> Uniform:
    """Return a number from `lower` to `upper` whose logarithm is uniform."""
    return Uniform(lower, upper, q, log=True)


def randint(lower: int, upper: int, *, q: int | None = None) -> RandInt:
    """Return a whole number from `lower` to `upper` - 1, in steps of `q` if there is one."""
    return RandInt(lower, upper, q)


def lograndint(lower: int, upper: int) -> RandInt:
    """Return a whole number from `lower` to `upper` - 1 whose logarithm is uniform."""
    return RandInt(lower, upper, log=True)


def normal(mean: float = 0.0, sd: float = 1.0) -> Normal:
    """Return a number of a normal distribution."""
    return Normal(mean, sd)


def space_to_json(space: Mapping[str, Any]) -> dict[str, Any]:
    """Return a space as a JSON object: by parameter ``{"kind": …}``, or ``{"kind": "constant", "value": …}``."""
    return {name: domain_to_json(value) for name, value in space.items()}


def domain_to_json(value: Any) -> dict[str, Any]:
    """Return one parameter's domain as a JSON object."""
    if isinstance(value, Choice | Grid | Uniform | RandInt | Normal):
        found = {name: each for name, each in asdict(value).items() if each is not None}
        return {"kind": value.kind, **{k: list(v) if isinstance(v, tuple) else v for k, v in found.items()}}
    return {"kind": "constant", "value": value}


def domain_from_json(value: Mapping[str, Any]) -> Any:
    """Return the domain, or the constant, that `domain_to_json` described."""
    fields = dict(value)
    kind = fields.pop("kind")
    return fields["value"] if kind == "constant" else KINDS[kind](**fields)


def _values(kind: str, values: object) -> tuple[Any, ...]:
    if isinstance(values, str | Mapping) or not isinstance(values, Sequence) or not values:
        raise InvalidJobError(kind, "values", got=values, expected="a list of one or more JSON values")
    try:
        json.dumps(list(values), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InvalidJobError(kind, "values", got=values, expected=f"JSON values ({error})") from error
    return tuple(values)


def _range(kind: str, lower: float, upper: float, q: float | None, *, log: bool) -> None:
    if not (_finite(lower) and _finite(upper)) or lower >= upper:
        raise InvalidJobError(kind, "upper", got=(lower, upper), expected="two numbers, the first one smaller")
    if log and lower <= 0:
        raise InvalidJobError(kind, "lower", got=lower, expected="a number above 0, as it has a logarithm")
    if q is not None and not (_finite(q) and 0 < q <= upper - lower):
        raise InvalidJobError(kind, "q", got=q, expected="a step above 0 that fits between the bounds, or None")


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
