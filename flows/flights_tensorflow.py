"""Flight delays in TensorFlow as a Prefect flow: the pipeline of `dags/flights_tensorflow.py`, over the same functions.

``python flows/flights_tensorflow.py`` serves it as a deployment without a schedule; ``prefect deployment run
flights-tensorflow/by-hand`` or the UI starts it. The network of PyTorch is trained on the same rows, so that the last
task shows both and a logistic regression side by side. Retrying a failed run returns what had succeeded, and continues
what had not.
"""

from __future__ import annotations

from typing import Any

from prefect import flow, serve

from rallypoint.examples import flights as stages
from rallypoint.prefect import dask_task, python_task, reaper_deployment, tensorflow_task, torch_task

preprocess = dask_task(name="preprocess", retries=1)(stages.preprocess)
train = tensorflow_task(name="train-tensorflow", strategy="multi_worker_mirrored", retries=1)(stages.train_tensorflow)
train_torch = torch_task(name="train-torch", retries=1)(stages.train)
compare = python_task(name="compare")(stages.compare_tensorflow)


@flow(name="flights-tensorflow")
def flights_tensorflow(
    fraction: float = 1.0, epochs: int = 6, batch_size: int = 4096, workers: int = 2
) -> dict[str, Any]:
    """Predict which flights arrive more than 15 minutes late.

    Args:
        fraction: Share of the flights to use.
        epochs: Passes over the training months.
        batch_size: Rows a step, over all processes; less for a small fraction.
        workers: Processes of each distributed training.

    Returns:
        The metrics on the test months, of ``tensorflow``, ``torch`` and the ``baseline``.
    """
    data = preprocess(fraction=fraction)
    trained = train.with_options(workers=workers)(data["train"], data["test"], epochs=epochs, batch_size=batch_size)
    beside = train_torch.with_options(nproc_per_node=workers)(data["train"], epochs=epochs, batch_size=batch_size)
    return compare(trained, beside["model"], data["train"], data["test"])


if __name__ == "__main__":
    serve(flights_tensorflow.to_deployment("by-hand"), reaper_deployment())
