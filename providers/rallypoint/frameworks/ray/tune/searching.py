"""Turns a search as data into Ray Tune's and Optuna's own objects."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rallypoint.frameworks.ray.tune.space import Choice, Grid, Normal, RandInt, Uniform, domain_from_json
from rallypoint.frameworks.ray.tune.watch import DONE, FAILED

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

_TIME = "training_iteration"


def ray_domain(value: Any) -> Any:
    """Return a domain of ours as Ray Tune's."""
    tune = importlib.import_module("ray.tune")
    if isinstance(value, Grid):
        return tune.grid_search(list(value.values))
    if isinstance(value, Choice):
        return tune.choice(list(value.values))
    if isinstance(value, Normal):
        return tune.randn(value.mean, value.sd)
    bounds = (value.lower, value.upper)
    name = ("log" if value.log else "") + ("randint" if isinstance(value, RandInt) else "uniform")
    if value.q is None:
        return getattr(tune, name)(*bounds)
    return getattr(tune, f"q{name}")(*bounds, value.q)


def optuna_distribution(value: Any) -> Any:
    """Return a domain of ours as Optuna's."""
    distributions = importlib.import_module("optuna.distributions")
    if isinstance(value, Choice):
        return distributions.CategoricalDistribution(list(value.values))
    if isinstance(value, RandInt):
        step = 1 if value.log else value.q or 1
        return distributions.IntDistribution(value.lower, value.upper - 1, log=value.log, step=step)
    return distributions.FloatDistribution(value.lower, value.upper, log=value.log, step=None if value.log else value.q)


def search_algorithm(
    settings: Mapping[str, Any],
    domains: Mapping[str, Any],
    sweep: int,
    known: Sequence[tuple[Mapping[str, Any], float]],
) -> Any:
    """Return the search algorithm.

    Args:
        settings: The job's.
        domains: The domains, as ours.
        sweep: The number of this sweep of the stage, from 1: a later one draws other values.
        known: What earlier sweeps found: values, and the metric that came of them.
    """
    seed = None if settings["seed"] is None else settings["seed"] + sweep - 1
    points = [dict(point) for point in settings["points_to_evaluate"]] if sweep == 1 else []
    if settings["search"] != "optuna":
        limit = settings["max_concurrent_trials"] or 0
        return _variants()(points_to_evaluate=points or None, random_state=seed, max_concurrent=limit)
    module = importlib.import_module("ray.tune.search.optuna")
    space = {name: optuna_distribution(value) for name, value in domains.items()}
    learned: dict[str, Any] = {"points_to_evaluate": points} if points else {}
    if known:
        learned = {
            "points_to_evaluate": [{name: config[name] for name in domains} for config, _ in known],
            "evaluated_rewards": [value for _, value in known],
        }
    search = module.OptunaSearch(space=space, metric=settings["metric"], mode=settings["mode"], seed=seed, **learned)
    return limited(search, settings["max_concurrent_trials"])


def _variants() -> Any:
    """Return Ray Tune's generator of random values and grids, mended for a restored sweep.

    What it saved of itself may be older than the record of the trials. Trials that have ended since would count as
    running for ever, and with `max_concurrent_trials` no other would start; those that it has given out since, it would
    give out again. And how many may run is what this attempt says, not the first one.
    """
    base: Any = importlib.import_module("ray.tune.search.basic_variant").BasicVariantGenerator

    class Variants(base):  # type: ignore[misc]  # Ray is untyped
        max_concurrent: int

        def restore_from_dir(self, dirpath: str) -> None:
            most = self.max_concurrent
            super().restore_from_dir(dirpath)
            self.max_concurrent = most
            self._live_trials = unfinished_trials(Path(dirpath))
            known = {trial["trial_id"] for trial in _recorded(Path(dirpath))}
            for variants in self._iterators:
                while f"{variants.uuid_prefix}{variants.counter:05d}" in known:
                    next(variants)

    return Variants


def limited(search: Any, most: int | None, unfinished: Collection[str] | None = None) -> Any:
    """Return a search algorithm that has at most so many trials at a time, also when it goes on where another was.

    Args:
        search: Ray Tune's search algorithm, limited or not.
        most: How many; None for any number.
        unfinished: The ids of the trials of a restored sweep that have no end, where they are known: others that the
            algorithm takes for running have ended since it saved itself.
    """
    base: Any = importlib.import_module("ray.tune.search").ConcurrencyLimiter
    inner = search.searcher if isinstance(search, base) else search

    class Limited(base):  # type: ignore[misc]  # Ray is untyped
        def set_state(self, state: dict[str, Any]) -> None:
            super().set_state(state)
            self.max_concurrent = most
            if unfinished is not None:
                self.live_trials: set[str] = self.live_trials & set(unfinished)

    return Limited(inner, most) if most else inner


def set_concurrency(search: Any, most: int | None, unfinished: Collection[str] | None = None) -> Any:
    """Return a sweep's search algorithm, about to be restored, with the limit of this attempt; see `limited`."""
    if isinstance(search, importlib.import_module("ray.tune.search.basic_variant").BasicVariantGenerator):
        search.max_concurrent = most or 0
        return search
    return limited(search, most, unfinished)


def unfinished_trials(sweep: Path) -> set[str]:
    """Return the ids of the trials that the newest record of a sweep shows without an end."""
    return {trial["trial_id"] for trial in _recorded(sweep) if trial["status"] not in {DONE, FAILED}}


def _recorded(sweep: Path) -> list[dict[str, Any]]:
    """Return the trials of the newest record of a sweep."""
    records = sorted(sweep.glob("experiment_state*.json"), key=lambda path: path.name)
    data = json.loads(records[-1].read_text(encoding="utf-8"))["trial_data"] if records else []
    return [json.loads(state) for state, _ in data]


def scheduler(settings: Mapping[str, Any] | None) -> Any:
    """Return Ray Tune's scheduler; None for none."""
    if settings is None:
        return None
    fields = dict(settings)
    kind = fields.pop("kind")
    schedulers = importlib.import_module("ray.tune.schedulers")
    if kind == "asha":
        return schedulers.ASHAScheduler(time_attr=_TIME, stop_last_trials=False, **fields)
    if kind == "hyperband":
        return schedulers.HyperBandScheduler(time_attr=_TIME, stop_last_trials=False, **fields)
    if kind == "median_stopping":
        return schedulers.MedianStoppingRule(time_attr=_TIME, **fields)
    mutations = {name: _mutation(domain_from_json(each)) for name, each in fields.pop("mutations").items()}
    return schedulers.PopulationBasedTraining(time_attr=_TIME, hyperparam_mutations=mutations, **fields)


def _mutation(value: Any) -> Any:
    """Return a domain as one to change values in: of a choice Ray takes the neighbours, if it is given as a list.

    A value of any other domain it multiplies, by which a number would leave the choices and a text would fail.
    """
    return list(value.values) if isinstance(value, Choice) else ray_domain(value)


def split(space: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the domains and the constants of a space that `space_to_json` described."""
    values = {name: domain_from_json(each) for name, each in space.items()}
    kinds = Choice | Grid | Normal | RandInt | Uniform
    domains = {name: each for name, each in values.items() if isinstance(each, kinds)}
    return domains, {name: each for name, each in values.items() if name not in domains}
