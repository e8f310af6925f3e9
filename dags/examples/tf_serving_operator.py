"""`TFServingDeployOperator`: a small model is trained, and becomes the next version of a model server's model.

The server is one of yours, such as ``tensorflow_model_server --rest_api_port=8501 --model_name=line
--model_base_path=/srv/models/line``; it has to see the base path.
"""

from __future__ import annotations

from typing import Any

from airflow.sdk import Param, dag

from rallypoint import TFServingProbe, TFServingSignature
from rallypoint.airflow.decorators import tensorflow_task
from rallypoint.airflow.operators import TFServingDeployOperator


@tensorflow_task(retries=1)
def train() -> dict[str, Any]:
    """Fit y = 2x, and keep the SavedModel."""
    import keras
    import numpy as np

    import rallypoint

    x = np.linspace(-1, 1, 256, dtype="float32").reshape(-1, 1)
    model = keras.Sequential([keras.layers.Input([1], name="x"), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.5), "mse")
    history = model.fit(x, 2 * x, epochs=50, verbose=0)
    stage = rallypoint.stage()
    return {"model": stage.save_artifact(model.export, name="line"), "loss": history.history["loss"][-1]}


@dag(
    schedule=None,
    tags=["rallypoint", "example"],
    doc_md=__doc__,
    params={
        "rest_url": Param("http://127.0.0.1:8501", type="string", description="The server's REST API"),
        "base_path": Param("/srv/models/line", type="string", description="The model's base path"),
    },
)
def example_tf_serving_operator() -> None:
    """Train, deploy, and ask the new version before it counts as deployed."""
    TFServingDeployOperator(
        task_id="deploy",
        model=train()["model"],
        name="line",
        base_path="{{ params.base_path }}",
        rest_url="{{ params.rest_url }}",
        signature=TFServingSignature(outputs={"output_0": ("float32", [None, 1])}),
        probe=TFServingProbe(
            body={"instances": [[1.0], [2.0]]}, expect={"predictions": [[2.0], [4.0]]}, tolerance=0.01
        ),
        keep_versions=2,
        deferrable=True,
        retries=1,
    )


example_tf_serving_operator()
