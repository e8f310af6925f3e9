"""A training on two workers of MultiWorkerMirroredStrategy that a test holds, and kills a worker of.

The file is not called ``tensorflow.py``: Airflow puts the folder of DAG files on the path, and it would be imported as
TensorFlow.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import dag, task

import rallypoint


def fit(strategy: Any, witness: str, steps: int = 6, hold_at: int = 3) -> dict[str, Any]:
    """Add up over the workers, with a checkpoint after each step; the first attempt waits before a step for a file."""
    import os
    import time

    import tensorflow as tf

    from rallypoint.frameworks.tensorflow import checkpoint_manager

    stage = rallypoint.stage()
    with strategy.scope():
        total = tf.Variable(0.0, aggregation=tf.VariableAggregation.MEAN)
        done = tf.Variable(0, dtype=tf.int64)
    manager = checkpoint_manager(tf.train.Checkpoint(total=total, done=done))
    manager.restore_or_initialize()
    first = int(done.numpy())
    with open(witness, "a", encoding="utf-8") as file:
        file.write(f"attempt {stage.attempt} rank {stage.rank} first {first}\n")

    @tf.function
    def step():
        def replica():
            total.assign_add(1.0)
            return tf.constant(1.0)

        return strategy.reduce("SUM", strategy.run(replica), axis=None)

    for number in range(first, steps):
        while number == hold_at and stage.attempt == 1 and not os.path.exists(f"{witness}.go"):
            time.sleep(0.1)
        replicas = float(step())
        done.assign(number + 1)
        manager.save(checkpoint_number=number + 1)
        stage.report(step=number + 1, total=steps, replicas=replicas)
    return {"first": first, "total": float(total.numpy()), "replicas": replicas, "attempt": stage.attempt}


@dag(schedule=None)
def multi_worker() -> None:
    """Fails retryable when a worker is lost, and goes on in its retry."""
    task.tensorflow(
        task_id="fit",
        strategy="multi_worker_mirrored",
        workers=2,
        retries=1,
        retry_delay=timedelta(seconds=1),
        deferrable=True,
    )(fit)("{{ dag_run.conf['witness'] }}")


multi_worker()
