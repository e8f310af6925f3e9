"""What the sweep looks for: the settings of `train`, by the ROC-AUC on the days that no trial was trained on."""

from __future__ import annotations

from typing import Any, Final

from rallypoint.frameworks.ray.tune import search

SWEEP: Final[dict[str, Any]] = {
    "space": {
        "learning_rate": search.loguniform(1e-3, 1e-2),
        "width": search.choice([96, 192, 384]),
        "depth": search.randint(1, 4),
        "dropout": search.uniform(0.05, 0.4),
    },
    "metric": "val_auc",
    "mode": "max",
    "search": "optuna",
    "scheduler": search.Asha(max_t=6, grace_period=1, reduction_factor=3),
    "points_to_evaluate": [{"learning_rate": 3e-3, "width": 192, "depth": 2, "dropout": 0.2}],
    "seed": 0,
    "max_concurrent_trials": 2,
    "reuse_actors": True,
}
"""Options of `rallypoint.RayTune`, ``@task.ray_tune`` and ``@ray_tune_task``. A trial reports once per epoch."""
