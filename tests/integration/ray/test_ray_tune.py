"""Ray Tune as a stage, on Ray itself: trials that have finished are not run again, and failures are named."""

from __future__ import annotations

import csv
import json
import os
import signal
from datetime import timedelta
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from rallypoint import Function, RayTune, search
from rallypoint.spec.failure import Kind
from rallypoint.spec.resources import Resources
from rallypoint.stages.attempt import Request
from rallypoint.stages.engine import Engine
from rallypoint.stages.key import StageKey
from rallypoint.stages.rule import Resume, State
from rallypoint.stages.store import Store

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

INTERVAL = timedelta(seconds=0.1)
DEADLINE = 240.0  # seconds that a Ray may take to start on a busy machine


async def finish(engine, started):
    return [update async for update in engine.watch(started.attempt, interval=INTERVAL)][-1]


async def run(engine, job, owner="try-1"):
    return await finish(engine, await engine.start(job, Request(owner=owner)))


def entry(call, *args, **kwargs):
    return Function(call, args, kwargs, by_value=True)


def path_of(uri):
    return Path(unquote(urlsplit(uri).path))


def train(folder, epochs=3, *, width, rate=0.1, hold=False):
    """Learn nothing: the loss is a function of the parameters and the epoch. Each start and epoch leaves a line."""
    import time
    from pathlib import Path

    import rallypoint

    stage, start = rallypoint.stage(), 0
    assert (stage.rank, stage.world_size, stage.active) == (0, 1, True)
    if checkpoint := stage.latest_checkpoint():
        start = int(Path(checkpoint, "epoch").read_text())
    with Path(folder, "starts").open("a") as file:
        file.write(f"{width} {start}\n")
    if width == 13 and not Path(folder, "mended").exists():
        raise ZeroDivisionError(f"a width of {width}")
    for epoch in range(start + 1, epochs + 1):
        if hold and width == 3 and epoch == 3 and start == 0:
            Path(folder, "waits").touch()
        while hold and width == 3 and epoch == 3 and Path(folder, "hold").exists():
            time.sleep(0.05)
        stage.save_checkpoint(lambda target, epoch=epoch: Path(target, "epoch").write_text(str(epoch)), step=epoch)
        stage.report(step=epoch, total=epochs, loss=(width + rate) / epoch)
    model = stage.save_artifact(lambda target: Path(target, "width").write_text(str(width)), name="model")
    return {"model": model, "width": width}


def reports_with_ray(*, width):
    import ray.tune

    ray.tune.report({"loss": float(width)})


def trains_among_others(folder, trials, *, width):
    """Train as soon as every trial of a population has started, so that they can be compared."""
    import time
    from pathlib import Path

    import rallypoint

    stage, start = rallypoint.stage(), 0
    if checkpoint := stage.latest_checkpoint():
        start = int(Path(checkpoint, "epoch").read_text())
    with Path(folder, "starts").open("a") as file:
        file.write(f"{width} {start}\n")
    while len(Path(folder, "starts").read_text().splitlines()) < trials:
        time.sleep(0.05)
    for epoch in range(start + 1, 9):
        time.sleep(0.3)
        stage.save_checkpoint(lambda target, epoch=epoch: Path(target, "epoch").write_text(str(epoch)), step=epoch)
        stage.report(step=epoch, loss=width / epoch)


def reports_for_ever(*, width):
    import time

    import rallypoint

    while True:
        rallypoint.stage().report(loss=float(width))
        time.sleep(0.1)


def starts(folder):
    return [tuple(map(int, line.split())) for line in Path(folder, "starts").read_text().splitlines()]


def _recorded(folder, mark):
    """Whether the sweep's record is newer than a mark by the time that it may be late."""
    records = list(folder.glob("store/stages/**/experiment_state*.json"))
    return mark.exists() and any(path.stat().st_mtime > mark.stat().st_mtime + 3 for path in records)


async def test_a_search_finds_the_best_and_bears_a_trial_that_fails(engine, ray_head, tmp_path):
    job = RayTune(
        entry(train, str(tmp_path), epochs=4),
        space={"width": search.choice([1, 5, 13]), "rate": search.loguniform(1e-3, 1e-1)},
        num_samples=6,
        search="optuna",
        scheduler=search.Asha(max_t=4, grace_period=1, reduction_factor=2),
        points_to_evaluate=[{"width": 1, "rate": 0.01}, {"width": 13, "rate": 0.01}, {"width": 5, "rate": 0.01}],
        seed=3,
        max_concurrent_trials=1,
        reuse_actors=True,
        address=ray_head.address,
    )
    update = await run(engine, job)
    assert update.outcome.state is State.SUCCEEDED, update.outcome.failure.render()
    result, trials = update.outcome.result, update.outcome.result["trials"]
    assert result["config"]["width"] == 1
    assert result["metrics"]["loss"] == pytest.approx((1 + result["config"]["rate"]) / 4)
    assert path_of(result["checkpoint"]).joinpath("epoch").read_text() == "4"
    assert path_of(result["returned"]["model"]).joinpath("width").read_text() == "1"
    assert trials["total"] == 6
    assert trials["failed"] >= 1
    assert trials["stopped"] >= 1  # by ASHA
    rows = list(csv.DictReader(path_of(result["table"]).read_text().splitlines()))
    assert len(rows) == 6
    assert {row["status"] for row in rows} == {"finished", "stopped", "failed"}
    assert any(row["error"] == "ZeroDivisionError: a width of 13" for row in rows)
    assert path_of(result["picture"]).read_bytes().startswith(b"\x89PNG")
    assert {artifact["name"] for artifact in update.outcome.artifacts} == {
        *("trials.csv", "trials.json", "trials.png", "checkpoint")
    }
    assert (update.view.step, update.view.total, update.view.unit) == (6, 6, "trial")
    assert update.view.metrics["best_width"] == 1


@pytest.mark.parametrize(
    ("scheduler", "most"),
    [
        (search.HyperBand(max_t=4, reduction_factor=2), None),
        (search.MedianStopping(grace_period=1, min_samples_required=1), 1),
    ],
    ids=["hyperband", "median stopping"],
)
async def test_a_scheduler_ends_bad_trials_early(engine, ray_head, tmp_path, scheduler, most):
    job = RayTune(
        entry(train, str(tmp_path), epochs=4),
        space={"width": search.grid(list(range(1, 11)))},
        num_samples=1,
        scheduler=scheduler,
        max_concurrent_trials=most,
        reuse_actors=True,
        address=ray_head.address,
    )
    update = await run(engine, job)
    assert update.outcome.state is State.SUCCEEDED, update.outcome.failure.render()
    result = update.outcome.result
    assert (result["config"]["width"], result["trials"]["total"], result["trials"]["failed"]) == (1, 10, 0)
    assert result["trials"]["stopped"] >= 1


async def test_in_population_based_training_a_bad_trial_goes_on_with_a_good_ones_checkpoint(engine, ray_head, tmp_path):
    job = RayTune(
        entry(trains_among_others, str(tmp_path), 4),
        space={"width": search.grid([1, 5, 7, 9])},
        num_samples=1,
        scheduler=search.PopulationBased(mutations={"width": search.choice([1, 2])}, perturbation_interval=1),
        address=ray_head.address,
    )
    update = await run(engine, job)
    assert update.outcome.state is State.SUCCEEDED, update.outcome.failure.render()
    assert update.outcome.result["trials"] == {"total": 4, "finished": 4, "stopped": 0, "failed": 0}
    assert any(start for _, start in starts(tmp_path))
    table = json.loads(path_of(update.outcome.result["table"]).with_name("trials.json").read_text())
    widths = {trial["config"]["width"] for trial in table["trials"]}
    assert 9 not in widths  # the worst
    assert widths <= {1, 2, 5, 7}  # of a choice no other value is made


async def test_a_time_budget_ends_the_trials_and_the_best_so_far_is_the_result(engine, ray_head):
    for budget in (20, 80, 320):  # seconds: on a busy machine no trial starts within the first
        job = RayTune(
            entry(reports_for_ever), space={"width": search.grid([2, 1])}, num_samples=1, time_budget=budget,
            address=ray_head.address,
        )  # fmt: skip
        update = await finish(engine, await engine.start(job, Request(owner=f"try-{budget}", resume=Resume.NEVER)))
        if update.outcome.failure is None or update.outcome.failure.title != "no trial has a result":
            break
    assert update.outcome.state is State.SUCCEEDED, update.outcome.failure.render()
    assert update.outcome.result["config"] == {"width": update.outcome.result["metrics"]["loss"]}
    assert update.outcome.result["trials"] == {"total": 2, "finished": 0, "stopped": 2, "failed": 0}


async def test_a_retry_runs_no_finished_trial_again_and_continues_the_interrupted_one(
    engine, tmp_path, until, jobs_left
):
    (tmp_path / "hold").touch()
    options = {
        "space": {"width": search.grid([1, 2, 3, 4]), "hold": True},
        "search": "grid",
        "reuse_actors": True,
        "dashboard": False,
        "resources": Resources(cpus=2),
    }
    job = RayTune(entry(train, str(tmp_path)), num_samples=1, max_concurrent_trials=1, **options)
    started = await engine.start(job, Request(owner="try-1"))
    # Ray Tune's record is written a second or two later; what is not in it, a kill loses.
    await until(lambda: _recorded(tmp_path, tmp_path / "waits"), deadline=DEADLINE)
    assert starts(tmp_path) == [(1, 0), (2, 0), (3, 0)]
    driver = next(pid for pid, line in jobs_left().items() if "frameworks.ray.driver" in line)
    os.kill(driver, signal.SIGKILL)
    assert (await finish(engine, started)).outcome.failure.kind is Kind.RETRYABLE
    assert jobs_left() == {}
    # Who asks for more on a retry gets the difference, also of trials at a time: the fingerprint is the same.
    more = RayTune(entry(train, str(tmp_path)), num_samples=2, max_concurrent_trials=2, **options)
    assert more.fingerprint() == job.fingerprint()
    started = await engine.start(more, Request(owner="try-2"))
    await until(lambda: {(3, 2), (4, 0)} <= set(starts(tmp_path)), deadline=DEADLINE)  # the first of them is held
    (tmp_path / "hold").unlink()
    update = await finish(engine, started)
    assert update.outcome.state is State.SUCCEEDED, update.outcome.failure.render()
    first = starts(tmp_path)[:5]
    assert first[:3] == [(1, 0), (2, 0), (3, 0)]
    assert (3, 2) in first  # the interrupted one goes on after its second epoch
    assert (4, 0) in first
    assert sorted(starts(tmp_path)[5:]) == [(1, 0), (2, 0), (3, 0), (4, 0)]
    assert update.outcome.result["trials"] == {"total": 8, "finished": 8, "stopped": 0, "failed": 0}
    assert update.outcome.result["config"] == {"width": 1, "hold": True}


async def test_a_retry_of_a_sweep_in_a_bucket_runs_only_what_failed(launcher, ray_head, tmp_path, s3_store_uri):
    uri, options = s3_store_uri
    engine = Engine(Store.open(uri, options=options), StageKey(("bucket", "r1", "tune")), launcher)
    job = RayTune(
        entry(train, str(tmp_path)),
        space={"width": search.grid([1, 13])}, search="grid", num_samples=1, max_failed_trials=0,
        max_concurrent_trials=1, address=ray_head.address,
    )  # fmt: skip
    failure = (await run(engine, job)).outcome.failure
    assert failure.exception == "ZeroDivisionError"
    (tmp_path / "mended").touch()
    update = await run(engine, job, "try-2")
    assert update.outcome.state is State.SUCCEEDED, update.outcome.failure.render()
    assert starts(tmp_path) == [(1, 0), (13, 0), (13, 0)]
    result = update.outcome.result
    assert (result["config"], result["trials"]["finished"]) == ({"width": 1}, 2)
    assert all(result[name].startswith(f"{uri}/") for name in ("checkpoint", "table", "picture"))


async def test_if_every_trial_fails_the_first_one_is_named_with_its_traceback(engine, ray_head, tmp_path):
    job = RayTune(
        entry(train, str(tmp_path)),
        space={"width": search.grid([13]), "rate": 0.5},
        num_samples=2,
        address=ray_head.address,
    )
    failure = (await run(engine, job)).outcome.failure
    assert failure.process.startswith("trial-")
    assert failure.exception == "ZeroDivisionError"
    assert "a width of 13 (trial " in failure.message
    assert "width=13" in failure.message
    assert 'raise ZeroDivisionError(f"a width of {width}")' in failure.traceback
    assert any("2 of 2 trials failed" in other for other in failure.others)


async def test_a_metric_that_nobody_reports_is_named(engine, ray_head):
    job = RayTune(
        entry(reports_with_ray), space={"width": search.uniform(0, 1)}, num_samples=1, metric="accuracy", mode="max",
        address=ray_head.address,
    )  # fmt: skip
    failure = (await run(engine, job)).outcome.failure
    assert failure.kind is Kind.USER
    assert "'accuracy'" in failure.headline or "accuracy" in failure.message


async def test_a_script_gets_its_parameters_as_words_and_ray_tunes_own_calls_work(engine, ray_head, script):
    code = """
        import argparse
        import ray.tune
        import rallypoint
        parser = argparse.ArgumentParser()
        parser.add_argument("--rate", type=float)
        parser.add_argument("--epochs", type=int)
        given = parser.parse_args()
        for epoch in range(given.epochs):
            ray.tune.report({"loss": given.rate / (epoch + 1)})
        rallypoint.stage().result({"rate": given.rate})
    """
    job = RayTune(
        script(code), space={"rate": search.grid([0.5, 0.25]), "epochs": 2}, search="grid", num_samples=1,
        address=ray_head.address,
    )  # fmt: skip
    update = await run(engine, job)
    assert update.outcome.state is State.SUCCEEDED, update.outcome.failure.render()
    result = update.outcome.result
    assert (result["config"], result["metrics"]["loss"], result["returned"]) == (
        {"rate": 0.25, "epochs": 2},
        0.125,
        {"rate": 0.25},
    )
    table = json.loads(path_of(result["table"]).with_name("trials.json").read_text())
    assert [trial["config"]["rate"] for trial in table["trials"]] == [0.5, 0.25]
