"""What a restored sweep takes over from the attempt before, and what not: Ray Tune's own objects, no cluster."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from rallypoint import search
from rallypoint.frameworks.ray.tune import searching
from rallypoint.frameworks.ray.tune.driver import _set_limits
from rallypoint.frameworks.ray.tune.space import domain_to_json

SPACE = {"rate": domain_to_json(search.uniform(0, 1))}


def algorithm(kind, most):
    settings = {
        "space": SPACE, "metric": "loss", "mode": "min", "search": kind, "seed": 1, "points_to_evaluate": [],
        "max_concurrent_trials": most,
    }  # fmt: skip
    return searching.search_algorithm(settings, searching.split(SPACE)[0], 1, [])


def generator(found, folder):
    """Return what Ray Tune makes of a search algorithm, and how often it gives out a trial at once."""
    from ray.tune.experiment import Experiment
    from ray.tune.search import SearchAlgorithm, SearchGenerator

    made = found if isinstance(found, SearchAlgorithm) else SearchGenerator(found)
    domains = searching.split(SPACE)[0] if made is found else {}
    config = {name: searching.ray_domain(each) for name, each in domains.items()}
    experiment = Experiment("tune-1-9", lambda config: None, config=config, num_samples=9, storage_path=str(folder))
    made.add_configurations([experiment])
    return made


def given_out(made):
    trials = []
    while (trial := made.next_trial()) is not None and len(trials) < 9:
        trials.append(trial)
    return trials


@pytest.mark.parametrize("kind", ["random", "optuna"])
@pytest.mark.parametrize(("before", "now", "more"), [(1, 3, 2), (3, 1, 0), (2, 2, 0)])
def test_a_restored_sweep_has_as_many_trials_at_a_time_as_this_attempt_says(tmp_path, kind, before, now, more):
    first = generator(algorithm(kind, before), tmp_path)
    running = given_out(first)
    assert len(running) == before
    first.save_to_dir(str(tmp_path), "session")
    unfinished = {trial.trial_id for trial in running}
    restored = searching.set_concurrency(algorithm(kind, before), now, unfinished)
    second = generator(restored, tmp_path)
    second.restore_from_dir(str(tmp_path))
    if kind == "random":  # it reads the record of the trials itself, and here there is none
        second._live_trials = unfinished
    assert len(given_out(second)) == more


def test_what_has_ended_since_the_search_saved_itself_does_not_count_as_running(tmp_path):
    first = generator(algorithm("optuna", 2), tmp_path)
    ended, runs = given_out(first)
    first.save_to_dir(str(tmp_path), "session")
    second = generator(searching.set_concurrency(algorithm("optuna", 2), 2, {runs.trial_id}), tmp_path)
    second.restore_from_dir(str(tmp_path))
    assert ended.trial_id != runs.trial_id
    assert len(given_out(second)) == 1


def test_what_was_given_out_since_the_search_saved_itself_is_not_given_out_again(tmp_path):
    first = generator(algorithm("random", None), tmp_path)
    before = [first.next_trial()]
    first.save_to_dir(str(tmp_path), "session")
    before += [first.next_trial(), first.next_trial()]
    ids = [trial.trial_id for trial in before]
    record = {"trial_data": [[json.dumps({"trial_id": each, "status": "RUNNING"}), "{}"] for each in ids]}
    (tmp_path / "experiment_state-session.json").write_text(json.dumps(record))
    second = generator(algorithm("random", None), tmp_path)
    second.restore_from_dir(str(tmp_path))
    after = [trial.trial_id for trial in given_out(second)]
    assert not set(after) & set(ids)
    assert len(after) == 9 - 3


def test_a_limit_can_be_given_to_a_search_that_had_none_and_taken_from_one_that_had(tmp_path):
    none = algorithm("optuna", None)
    assert not hasattr(none, "max_concurrent")
    assert searching.set_concurrency(none, 2).max_concurrent == 2
    assert type(searching.set_concurrency(algorithm("optuna", 2), None)) is type(none)


def test_a_restored_sweep_fails_at_as_many_failed_trials_as_this_attempt_says():
    from rallypoint.frameworks.ray.tune.watch import TooManyFailed

    inner = SimpleNamespace(
        _tune_config=SimpleNamespace(search_alg=algorithm("random", 1), max_concurrent_trials=None, time_budget_s=None),
        _run_config=SimpleNamespace(stop=TooManyFailed(0), failure_config=SimpleNamespace(max_failures=0)),
    )
    settings = {"max_concurrent_trials": 4, "max_failures": 2, "max_failed_trials": 5}
    _set_limits(SimpleNamespace(_local_tuner=inner), settings, 30.0, None)
    stop = inner._run_config.stop
    stop.seen = 5
    assert not stop.stop_all()
    stop.seen = 6
    assert stop.stop_all()
    assert (inner._run_config.failure_config.max_failures, inner._tune_config.time_budget_s) == (2, 30.0)
    assert inner._tune_config.search_alg.max_concurrent == 4
