"""Inside the job: starts Ray Train's trainer, and says what it answered."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rallypoint.frameworks.ray.storage import open_ray_storage
from rallypoint.frameworks.ray.train import snapshot
from rallypoint.frameworks.ray.train.worker import Payload, Rounds
from rallypoint.worker.stage import stage

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

RUN = "train"  # the run's name: the same for every attempt of a generation, by which Ray Train finds its checkpoints


def train(settings: Mapping[str, Any], entry: list[str]) -> Any:
    """Train, from the last checkpoint of the generation if there is one.

    Returns:
        What the entry returned on rank 0, or else the last metrics and the URI of the last checkpoint; None if the
        code has set the stage's result itself.
    """
    import ray
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig

    from rallypoint.frameworks.ray.train.reports import controller_reports

    storage = open_ray_storage(stage().data_uri)
    if storage.is_folder:
        snapshot.mend(Path(storage.path, RUN))
    here = ray.get_runtime_context().get_node_id()
    affinity = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(here, soft=False)
    on_this_node: Any = {"num_cpus": 0, "scheduling_strategy": affinity}
    rounds: Any = ray.remote(**on_this_node)(Rounds).remote()
    scaling = dict(settings["scaling"])
    if isinstance(scaling["num_workers"], list):
        scaling["num_workers"] = tuple(scaling["num_workers"])
    run_config = RunConfig(
        name=RUN,
        storage_path=storage.path,
        storage_filesystem=storage.filesystem,
        failure_config=_known(FailureConfig, settings["failure"]),
        checkpoint_config=_known(CheckpointConfig, settings["checkpoint"]),
        callbacks=[controller_reports(storage)],
    )
    loop = _loop(Payload.of(entry, rounds))
    trainer = _trainer(settings["trainer"])(loop, scaling_config=_known(ScalingConfig, scaling), run_config=run_config)
    result = trainer.fit()
    answer: Any = getattr(result, "return_value", None) or ray.get(rounds.answer.remote()) or {}
    if answer.get("said"):
        return None
    if answer.get("value") is not None:
        return answer["value"]
    checkpoint = storage.child_uri(result.checkpoint.path) if result.checkpoint else None
    return {"metrics": result.metrics, "checkpoint": checkpoint}


def _loop(payload: Payload) -> Callable[[], Any]:
    def train_loop_per_worker() -> Any:
        return payload.run()

    return train_loop_per_worker


def _trainer(name: str) -> Any:
    if name == "torch":
        from ray.train.torch import TorchTrainer

        return TorchTrainer
    if name == "tensorflow":
        from ray.train.tensorflow import TensorflowTrainer

        return TensorflowTrainer
    from ray.train.xgboost import XGBoostTrainer

    return XGBoostTrainer


def _known(config: type[Any], values: Mapping[str, Any]) -> Any:
    """Return a config of Ray Train from what it knows: an older one lacks the newest fields, whose default is -1."""
    names = {field.name for field in dataclasses.fields(config)}
    unknown = {name: value for name, value in values.items() if name not in names and value not in {None, -1}}
    if unknown:
        import ray

        msg = f"got {unknown}, which the {config.__name__} of Ray {ray.__version__} does not know: install a newer Ray"
        raise TypeError(msg)
    return config(**{name: value for name, value in values.items() if name in names})
