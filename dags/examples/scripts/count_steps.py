"""Counts on a parameter server; runs in a stage, and alone under TensorFlow's default strategy."""

from __future__ import annotations

import argparse

import tensorflow as tf

import rallypoint
from rallypoint.frameworks.tensorflow import checkpoint_manager, strategy


def main() -> None:
    """Schedule steps on the workers, with a checkpoint after every ten."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=40)
    steps = parser.parse_args().steps
    stage, served = rallypoint.stage(), strategy()
    parallel = isinstance(served, tf.distribute.ParameterServerStrategy)
    coordinator = tf.distribute.coordinator.ClusterCoordinator(served) if parallel else None
    with served.scope():
        total = tf.Variable(0.0)
    manager = checkpoint_manager(tf.train.Checkpoint(total=total))
    manager.restore_or_initialize()

    @tf.function
    def step() -> None:
        served.run(lambda: total.assign_add(1.0))

    while (done := int(total)) < steps:
        for _ in range(min(10, steps - done)):
            coordinator.schedule(step) if coordinator else step()
        if coordinator:
            coordinator.join()
        manager.save(checkpoint_number=int(total))
        stage.report(step=int(total), total=steps)
    stage.result({"total": float(total)})


if __name__ == "__main__":
    main()
