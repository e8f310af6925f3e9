"""TensorFlow: every strategy of ``tf.distribute`` as a stage, and what code in the job may ask for.

========================  ==========================================================================================
``strategy()``            the strategy that the job asks for, made once; TensorFlow's default one outside of a job
``task()``                what this process is: ``Task("worker", 1)``
``backup_and_restore()``  a Keras callback: a retry goes on after the last epoch that was saved
``report_callback()``     a Keras callback: metrics and progress, live in the orchestrator
``checkpoint_manager()``  a ``tf.train.CheckpointManager`` on the stage's checkpoints, for custom loops
========================  ==========================================================================================

Importing this package loads no TensorFlow: the names are loaded when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rallypoint.frameworks.tensorflow.callbacks import backup_and_restore, report_callback
    from rallypoint.frameworks.tensorflow.checkpoints import checkpoint_manager
    from rallypoint.frameworks.tensorflow.session import strategy, task

_HOMES = {
    "backup_and_restore": "rallypoint.frameworks.tensorflow.callbacks",
    "checkpoint_manager": "rallypoint.frameworks.tensorflow.checkpoints",
    "report_callback": "rallypoint.frameworks.tensorflow.callbacks",
    "strategy": "rallypoint.frameworks.tensorflow.session",
    "task": "rallypoint.frameworks.tensorflow.session",
}

__all__ = ["backup_and_restore", "checkpoint_manager", "report_callback", "strategy", "task"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        msg = f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}"
        raise AttributeError(msg)
    return getattr(import_module(_HOMES[name]), name)
