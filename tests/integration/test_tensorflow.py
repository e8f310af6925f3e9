"""TensorFlow as a stage: every strategy on real processes, what happens when one dies, and what a retry continues."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from datetime import timedelta

import pytest

from rallypoint import Function, Script, TensorFlowJob
from rallypoint.launchers.base import Phase
from rallypoint.spec.failure import Kind
from rallypoint.spec.gang import Gang, Macro, Role
from rallypoint.spec.shipment import ARCHIVE, archive
from rallypoint.stages.attempt import Request
from rallypoint.stages.engine import Engine
from rallypoint.stages.key import StageKey
from rallypoint.stages.rule import State

# Each process imports TensorFlow, which takes 12 to 19 s: a test has as many steps as its processes can show.
pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

INTERVAL = timedelta(seconds=0.2)
PATH = {"PYTHONPATH": f"{Macro.RUN_DIR}/{ARCHIVE}"}
SEVERAL = {"join_timeout": 120.0}  # seconds: on a busy machine a process may start late


async def watched(engine, started):
    return [update async for update in engine.watch(started.attempt, interval=INTERVAL)][-1]


async def run(engine, job, owner="try-1"):
    return await watched(engine, await engine.start(job, Request(owner=owner)))


async def succeeded(engine, job, owner):
    update = await run(engine, job, owner)
    assert update.outcome.state is State.SUCCEEDED, update.outcome.failure.render()
    return update


async def opened(engine, started, name):
    """Return the process id of a process, as soon as it has opened."""
    async for update in engine.watch(started.attempt, interval=timedelta(seconds=0.05)):
        assert update.outcome is None, update.outcome
        if name in update.view.processes:
            return update.view.processes[name].pid
    return None


@pytest.fixture
def stage_of(store, launcher):
    return lambda name: Engine(store, StageKey(("tensorflow", "r1", name)), launcher)


# A role that may lose processes, with nothing of TensorFlow ----------------------------------------------------------

KILLED = """
    import os, signal, sys, time
    from pathlib import Path
    if os.environ["RALLYPOINT_PROCESS"] in sys.argv[1:]:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(1)
"""


@pytest.mark.parametrize(
    ("killed", "reason", "tolerated"),
    [
        (["worker-0"], "completed", ["worker-0"]),
        (["ps-0"], "failed", []),
        (["worker-0", "worker-1"], "failed", None),
    ],
)
async def test_a_gang_goes_on_without_as_many_processes_as_a_role_may_lose(
    launcher, script, until, killed, reason, tolerated
):
    argv = (Macro.PYTHON, "-m", "rallypoint.worker", "script", script(KILLED), *killed)
    roles = (Role(name="worker", argv=argv, replicas=2, may_lose=1, env=PATH), Role(name="ps", argv=argv, env=PATH))
    gang = Gang(name="test", roles=roles, files={ARCHIVE: archive()})
    handle = await launcher.launch(gang, "rp-test-a1")

    async def ended():
        return (await launcher.poll(handle)).phase is Phase.ENDED

    await until(ended)
    status = await launcher.poll(handle)
    assert status.reason == reason
    if tolerated is not None:
        assert [end.name for end in status.processes if end.tolerated] == tolerated


# One process ----------------------------------------------------------------------------------------------------------

MIRRORED = """
def fit(strategy, epochs):
    import keras
    import numpy as np

    import rallypoint
    from rallypoint.frameworks.tensorflow import backup_and_restore, report_callback

    stage, seen = rallypoint.stage(), []

    class Epochs(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            seen.append(epoch)
            if epoch == 2 and stage.attempt == 1:
                raise FloatingPointError("the loss is not a number any more")

    with strategy.scope():
        model = keras.Sequential([keras.layers.Input((2,)), keras.layers.Dense(1)])
        model.compile("sgd", "mse", metrics=["mae"])
    callbacks = [backup_and_restore(), report_callback(), Epochs()]
    model.fit(np.ones((16, 2)), np.ones((16, 1)), batch_size=8, epochs=epochs, verbose=0, callbacks=callbacks)
    return {"replicas": strategy.num_replicas_in_sync, "kind": type(strategy).__name__, "epochs": seen}
"""


async def test_mirrored_trains_on_logical_devices_and_a_retry_of_fit_continues(engine, as_dag_file):
    call = Function(as_dag_file(MIRRORED, "training").fit, (), {"epochs": 4})
    job = TensorFlowJob(call, strategy="mirrored", logical_devices=2)
    failed = await run(engine, job)
    assert failed.outcome.failure.exception == "FloatingPointError"
    assert "worker-0 on" in failed.outcome.failure.headline
    assert "the loss is not a number any more" in failed.outcome.failure.render()
    assert failed.view.checkpoint["step"] == 2
    update = await succeeded(engine, job, "try-2")
    assert update.outcome.result == {"replicas": 2, "kind": "MirroredStrategy", "epochs": [2, 3]}
    assert (update.view.step, update.view.total, update.view.unit) == (4, 4, "epoch")
    assert {"loss", "mae"} <= set(update.outcome.metrics)


WHAT = """
def what(strategy):
    import os

    import tensorflow as tf

    from rallypoint.frameworks import tensorflow as here

    return {
        "default": strategy is tf.distribute.get_strategy(),
        "same": here.strategy() is strategy,
        "task": here.task().name,
        "config": "TF_CONFIG" in os.environ,
        "xla": [tf.config.optimizer.get_jit(), os.environ["XLA_FLAGS"]],
        "keras": tf.keras.Model.__module__.split(".")[0],
    }
"""

NEVER_RUNS = "raise SystemExit('the code has begun')"


async def test_what_a_job_lacks_is_said_at_its_start(stage_of, script, as_dag_file, until, jobs_left):
    """Three jobs at once: each mostly waits."""
    never = script(NEVER_RUNS)

    async def never_joins():
        engine = stage_of("joins")
        job = TensorFlowJob(Script(never), strategy="multi_worker_mirrored", workers=2, join_timeout=10)
        started = await engine.start(job, Request(owner="try-1"))
        os.kill(await opened(engine, started, "worker-1"), signal.SIGSTOP)
        # Nobody says anything until then: the stall timer waits for it.
        events = engine.store.local_path / engine.ledger.events_prefix(1) / "worker-0.jsonl"
        await until(lambda: events.exists() and events.stat().st_mtime > time.time() + 1)
        return (await watched(engine, started)).outcome

    flags = ["--xla_cpu_enable_fast_math=true", "--xla_cpu_multi_thread_eigen=true"]
    legacy = TensorFlowJob(
        Function(as_dag_file(WHAT, "asking").what), keras="legacy", jit_compile=True, xla_flags=flags
    )
    joins, tpu, default = await asyncio.gather(
        never_joins(),
        run(stage_of("tpu"), TensorFlowJob(Script(never), strategy="tpu")),
        succeeded(stage_of("default"), legacy, "try-1"),
    )
    assert default.outcome.result == {
        "default": True,
        "same": True,
        "task": "worker-0",
        "config": False,
        "xla": ["autoclustering", " ".join(flags)],
        "keras": "tf_keras",
    }

    assert tpu.outcome.failure.kind is Kind.USER
    assert tpu.outcome.failure.exception.endswith("NoTPUError")
    assert "expected a TPU that this host reaches" in tpu.outcome.failure.headline

    assert (joins.failure.process, joins.failure.kind) == ("worker-0", Kind.RETRYABLE)
    assert joins.failure.title == "a process did not join"
    assert joins.failure.message.startswith("worker-1 did not join within 10 s")
    assert jobs_left() == {}


# MultiWorkerMirroredStrategy ------------------------------------------------------------------------------------------

LOOP = """
    import json, os, signal, sys
    from pathlib import Path
    import keras
    import numpy as np
    import tensorflow as tf
    import rallypoint
    from rallypoint.frameworks.tensorflow import checkpoint_manager, strategy, task

    stage, mirrored = rallypoint.stage(), strategy()
    with mirrored.scope():
        model = keras.Sequential([keras.layers.Input((2,)), keras.layers.Dense(1, kernel_initializer="zeros")])
        optimizer = keras.optimizers.SGD(0.05)
        optimizer.build(model.trainable_variables)
    steps = tf.Variable(0, dtype=tf.int64)
    manager = checkpoint_manager(tf.train.Checkpoint(model=model, optimizer=optimizer, steps=steps))
    manager.restore_or_initialize()
    first = int(steps)
    with open(Path(sys.argv[1], task().name), "a") as file:
        file.write(f"{first}\\n")

    @tf.function
    def step():
        def replica():
            x = tf.fill((4, 2), float(stage.rank + 1))
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.square(model(x, training=True) - 1.0))
            gradients = tape.gradient(loss, model.trainable_variables)
            optimizer.apply(gradients, model.trainable_variables)
            return loss
        return mirrored.reduce("mean", mirrored.run(replica), axis=None)

    for number in range(first + 1, 5):
        loss = step()
        steps.assign(number)
        manager.save(checkpoint_number=number)
        stage.report(step=number, total=4, loss=float(loss))
        if number == 2 and stage.attempt == 1 and stage.rank == 1:
            print("worker 1 says its last words", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
    try:
        model.compile("sgd", "mse")
        model.fit(np.ones((8, 2)), np.ones((8, 1)), verbose=0)
        refused = ""
    except Exception as error:
        refused = f"{type(error).__name__}: {error}"
    weights = mirrored.gather(tf.expand_dims(tf.convert_to_tensor(model.trainable_variables[0]), 0), axis=0)
    stage.result({
        "first": first, "replicas": mirrored.num_replicas_in_sync, "refused": refused,
        "weights": weights.numpy().tolist(),
        "config": json.loads(os.environ["TF_CONFIG"]), "world": [stage.rank, stage.world_size],
    })
"""


async def test_a_worker_that_dies_ends_the_gang_and_the_retry_continues(engine, script, tmp_path, jobs_left):
    job = TensorFlowJob(
        Script(script(LOOP), [str(tmp_path)]),
        strategy="multi_worker_mirrored",
        workers=2,
        communication="ring",
        collective_timeout=120.0,
        **SEVERAL,
    )
    failure = (await run(engine, job)).outcome.failure
    assert (failure.process, failure.signal, failure.kind) == ("worker-1", "SIGKILL", Kind.RETRYABLE)
    assert failure.last_lines[-1:] == ("worker 1 says its last words",)
    assert jobs_left() == {}

    update = await succeeded(engine, job, "try-2")
    result = update.outcome.result
    assert (result["first"], result["replicas"], result["world"]) == (2, 2, [0, 2])
    assert [(tmp_path / f"worker-{rank}").read_text().split() for rank in (0, 1)] == [["0", "2"]] * 2
    assert result["weights"][0] == result["weights"][1] != [[0.0], [0.0]]  # the workers agree
    addresses = result["config"]["cluster"]["worker"]
    assert len(set(addresses)) == 2
    assert all(address.startswith("127.0.0.1:") for address in addresses)
    assert {name: process.exit_code for name, process in update.view.processes.items()} == {
        "worker-0": 0, "worker-1": 0,
    }  # fmt: skip
    # Keras 3 says early what to do instead.
    assert result["refused"].startswith("KerasFitError: Model.fit() of Keras 3 does not work")
    assert 'keras="legacy"' in result["refused"]


LEGACY = """
    import sys
    import tensorflow as tf
    import rallypoint
    from rallypoint.frameworks.tensorflow import backup_and_restore, report_callback, task

    stage, seen = rallypoint.stage(), []
    strategy = tf.distribute.MultiWorkerMirroredStrategy()  # as any script: TF_CONFIG says the rest

    class Epochs(tf.keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            seen.append(epoch)
            if epoch == 2 and stage.attempt == 1 and task().type == "worker":
                raise ArithmeticError("a bad batch")

    data = tf.data.Dataset.from_tensor_slices((tf.ones((16, 2)), tf.ones((16, 1)))).batch(8)
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    with strategy.scope():
        model = tf.keras.Sequential([tf.keras.layers.Dense(1, input_shape=(2,))])
        model.compile("sgd", "mse")
    model.fit(data.with_options(options), epochs=3, verbose=0,
              callbacks=[backup_and_restore(), report_callback(), Epochs()])
    keras = tf.keras.Model.__module__.split(".")[0]
    stage.result({"epochs": seen, "task": task().name, "world": stage.world_size, "keras": keras})
"""


async def test_legacy_keras_fits_with_a_chief_and_a_retry_continues(engine, script, jobs_left):
    job = TensorFlowJob(
        Script(script(LEGACY)), strategy="multi_worker_mirrored", chief=True, workers=1, keras="legacy", **SEVERAL
    )
    failure = (await run(engine, job)).outcome.failure
    assert (failure.process, failure.exception, failure.message) == ("worker-0", "ArithmeticError", "a bad batch")
    assert "raise ArithmeticError" in failure.render()
    assert jobs_left() == {}
    update = await succeeded(engine, job, "try-2")
    assert update.outcome.result == {"epochs": [2], "task": "chief-0", "world": 2, "keras": "tf_keras"}
    assert (update.view.step, update.view.total) == (3, 3)


# ParameterServerStrategy ----------------------------------------------------------------------------------------------

SERVED = """
    import json, os, sys, time
    from pathlib import Path
    import tensorflow as tf
    import rallypoint
    from rallypoint.frameworks.tensorflow import checkpoint_manager, strategy, task

    here = Path(sys.argv[1])
    if task().type == "evaluator":
        (here / "evaluator").write_text(os.environ["TF_CONFIG"])
        print("evaluating for ever", flush=True)
        while True:
            time.sleep(0.1)

    stage, served = rallypoint.stage(), strategy()
    coordinator = tf.distribute.coordinator.ClusterCoordinator(served)
    with served.scope():
        total = tf.Variable(0.0)
    manager = checkpoint_manager(tf.train.Checkpoint(total=total))
    manager.restore_or_initialize()
    first = float(total)

    @tf.function
    def step():
        served.run(lambda: total.assign_add(1.0))

    def ten_steps():
        for _ in range(10):
            coordinator.schedule(step)
        coordinator.join()
        manager.save(checkpoint_number=int(total))

    ten_steps()
    for killed in {1: ("worker-0", "ps-0"), 2: ("chief-0",)}.get(stage.attempt, ()):
        (here / "kill").write_text(killed)
        while (here / "kill").exists():
            time.sleep(0.05)
        ten_steps()
    stage.result({"first": first, "total": float(total), "config": json.loads(os.environ["TF_CONFIG"])})
"""


async def test_parameter_servers_do_without_a_worker_and_not_without_a_server_or_the_chief(
    engine, script, tmp_path, jobs_left
):
    job = TensorFlowJob(
        Script(script(SERVED), [str(tmp_path)]),
        strategy="parameter_server",
        workers=2,
        evaluator=True,
        evaluator_grace=0.5,
        **SEVERAL,
    )
    asked = tmp_path / "kill"

    async def run_killing(owner):
        """Return what was killed when the script asked for it, with the newest checkpoint then, and the failure."""
        started = await engine.start(job, Request(owner=owner))
        killed, update = {}, None
        async for update in engine.watch(started.attempt, interval=timedelta(seconds=0.05)):
            if asked.exists() and (name := asked.read_text()):
                killed[name] = update.view.checkpoint["name"]
                os.kill(update.view.processes[name].pid, signal.SIGKILL)
                asked.unlink()
        assert jobs_left() == {}
        return killed, update.outcome.failure

    killed, failure = await run_killing("try-1")
    assert killed == {"worker-0": "ckpt-10", "ps-0": "ckpt-20"}  # it went on without the worker
    assert (failure.process, failure.signal, failure.kind) == ("ps-0", "SIGKILL", Kind.RETRYABLE)
    killed, failure = await run_killing("try-2")
    assert killed == {"chief-0": "ckpt-30"}
    assert (failure.process, failure.signal, failure.kind) == ("chief-0", "SIGKILL", Kind.RETRYABLE)

    update = await succeeded(engine, job, "try-3")
    result = update.outcome.result
    assert (result["first"], result["total"]) == (30.0, 40.0)
    cluster = result["config"]["cluster"]
    assert {kind: len(addresses) for kind, addresses in cluster.items()} == {"chief": 1, "worker": 2, "ps": 1}
    assert result["config"]["task"] == {"type": "chief", "index": 0}
    evaluator = json.loads((tmp_path / "evaluator").read_text())
    assert (evaluator["cluster"], evaluator["task"]) == (cluster, {"type": "evaluator", "index": 0})
    # The servers and the evaluator, which has no end of its own, ended with the chief.
    exits = {name: process.exit_code for name, process in update.view.processes.items()}
    assert exits == dict.fromkeys(["chief-0", "worker-0", "worker-1", "ps-0", "evaluator-0"], 0)
    assert jobs_left() == {}
