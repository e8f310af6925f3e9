"""``@tensorflow_task``: a function on two workers; its parameter ``strategy`` is the ready strategy.

Run it with ``python flows/examples/tensorflow_training.py``.
"""

# ruff: noqa: PLC0415 - frameworks are imported in the job, not while the file is read

from __future__ import annotations

from typing import Any

from prefect import flow

import rallypoint
from rallypoint.prefect import tensorflow_task


@tensorflow_task(strategy="multi_worker_mirrored", workers=2, retries=1)
def fit_line(strategy: Any, steps: int = 100) -> dict[str, Any]:
    """Fit a line with a loop of its own; a retry continues from the last checkpoint."""
    import tensorflow as tf

    from rallypoint.frameworks.tensorflow import checkpoint_manager

    stage = rallypoint.stage()
    with strategy.scope():
        weight = tf.Variable(0.0, aggregation=tf.VariableAggregation.MEAN)  # updates are averaged over workers
        done = tf.Variable(0, dtype=tf.int64)
    manager = checkpoint_manager(tf.train.Checkpoint(weight=weight, done=done))
    manager.restore_or_initialize()

    @tf.function(autograph=False)  # there is no control flow to translate
    def step() -> Any:
        def replica() -> Any:
            x = tf.random.uniform([64])
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean((weight * x - 3 * x) ** 2)
            weight.assign_sub(0.5 * tape.gradient(loss, weight))
            return loss

        return strategy.reduce("MEAN", strategy.run(replica), axis=None)

    for number in range(int(done.numpy()), steps):
        loss = step()
        if (number + 1) % 25 == 0:
            done.assign(number + 1)
            manager.save(checkpoint_number=number + 1)
            stage.report(step=number + 1, total=steps, loss=float(loss))
    return {"weight": float(weight.numpy()), "replicas": strategy.num_replicas_in_sync}


@flow(name="example-tensorflow")
def pipeline(steps: int = 100) -> dict[str, Any]:
    """Train."""
    return fit_line(steps=steps)


if __name__ == "__main__":
    print(pipeline())  # noqa: T201 - for who runs it
