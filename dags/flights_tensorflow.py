"""Flight delays in TensorFlow: the data and the network of `flights`, with MultiWorkerMirroredStrategy.

The network of PyTorch is trained on the same rows, so that the last task shows both and a logistic regression side by
side.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import Param, dag, task

from rallypoint.examples import flights as stages


@dag(
    schedule=None,
    render_template_as_native_obj=True,  # the numbers of the form below stay numbers
    tags=["rallypoint", "example"],
    doc_md=__doc__,
    params={
        "epochs": Param(6, type="integer", minimum=1, description="Passes over the training months"),
        "workers": Param(2, type="integer", minimum=1, description="Processes of each distributed training"),
        "batch_size": Param(
            4096, type="integer", minimum=1, description="Rows a step, over all processes; less for a small fraction"
        ),
        "fraction": Param(1.0, type="number", exclusiveMinimum=0, maximum=1, description="Share of the flights to use"),
    },
)
def flights_tensorflow() -> None:
    """Predict which flights arrive more than 15 minutes late."""
    retry: dict[str, Any] = {"retries": 1, "retry_delay": timedelta(seconds=5), "deferrable": True}

    preprocess = task.dask(task_id="preprocess", **retry)(stages.preprocess)
    train = task.tensorflow(
        task_id="train_tensorflow", strategy="multi_worker_mirrored", workers="{{ params.workers }}", **retry
    )(stages.train_tensorflow)
    train_torch = task.torch(task_id="train_torch", nproc_per_node="{{ params.workers }}", **retry)(stages.train)
    compare = task.python_job(task_id="compare", deferrable=True)(stages.compare_tensorflow)

    data = preprocess(fraction="{{ params.fraction }}")
    settings = {"epochs": "{{ params.epochs }}", "batch_size": "{{ params.batch_size }}"}
    trained = train(data["train"], data["test"], **settings)
    beside = train_torch(data["train"], **settings)
    compare(trained, beside["model"], data["train"], data["test"])


flights_tensorflow()
