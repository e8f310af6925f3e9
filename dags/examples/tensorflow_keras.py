"""``@task.tensorflow`` with ``fit`` of Keras: a retry goes on after the last epoch, and curves go to TensorBoard.

A second task takes the SavedModel as a module of TensorFlow Hub; a handle such as
``https://tfhub.dev/google/nnlm-en-dim50/2`` is loaded in the same way, and kept in the store.
"""

from __future__ import annotations

from typing import Any

from airflow.sdk import dag, task

import rallypoint


@dag(schedule=None, tags=["rallypoint", "example"], doc_md=__doc__)
def example_tensorflow_keras() -> None:
    """Fit y = 2x + 1 on two devices of one process, and use the model elsewhere."""

    @task.tensorflow(strategy="mirrored", logical_devices=2, retries=1, deferrable=True)
    def fit(strategy: Any, epochs: int = 20) -> dict[str, Any]:
        import keras
        import numpy as np

        from rallypoint.frameworks.tensorflow import backup_and_restore, report_callback

        stage = rallypoint.stage()
        x = np.linspace(-1, 1, 512, dtype="float32").reshape(-1, 1)
        with strategy.scope():
            model = keras.Sequential([keras.layers.Input([1], name="x"), keras.layers.Dense(1)])
            model.compile(keras.optimizers.SGD(0.2), "mse")
        curves = keras.callbacks.TensorBoard(stage.tensorboard_dir)
        callbacks = [backup_and_restore(), report_callback(), curves]
        model.fit(x, 2 * x + 1, batch_size=64, epochs=epochs, verbose=0, callbacks=callbacks)
        uri = stage.save_artifact(lambda folder: model.export(folder, verbose=False), name="line")
        return {"model": uri, "loss": float(model.evaluate(x, 2 * x + 1, verbose=0))}

    @task.tensorflow(retries=1, deferrable=True)
    def reuse(model: str) -> dict[str, float]:
        import tensorflow as tf

        from rallypoint.frameworks.tensorflow import hub

        answer = hub.load(model).signatures["serving_default"](x=tf.constant([[3.0]]))
        return {"y": float(next(iter(answer.values()))[0, 0])}  # about 7

    reuse(fit()["model"])


example_tensorflow_keras()
