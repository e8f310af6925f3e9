"""``@task.tensorflow``: a function of the DAG file on two workers; its parameter ``strategy`` is the ready strategy."""

from __future__ import annotations

from typing import Any

from airflow.sdk import dag, task

import rallypoint


@dag(schedule=None, tags=["rallypoint", "example"], doc_md=__doc__)
def example_tensorflow_decorator() -> None:
    """Fit a line with a custom loop under MultiWorkerMirroredStrategy; a retry continues from the last checkpoint."""

    @task.tensorflow(strategy="multi_worker_mirrored", workers=2, retries=1, deferrable=True)
    def fit_line(strategy: Any, steps: int = 100) -> dict[str, Any]:
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

        for number in range(int(done), steps):
            loss = step()
            if (number + 1) % 25 == 0:
                done.assign(number + 1)
                manager.save(checkpoint_number=number + 1)
                stage.report(step=number + 1, total=steps, loss=float(loss))
        return {"weight": float(weight), "replicas": strategy.num_replicas_in_sync}

    @task
    def check(result: dict[str, Any]) -> None:
        print(f"{result['replicas']} replicas found the weight {result['weight']:.3f}")

    check(fit_line(steps=100))


example_tensorflow_decorator()
