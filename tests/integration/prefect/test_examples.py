"""The examples of `flows/examples` on a real server.

Of those that start several ranks or a Ray cluster, as the tests of these frameworks do, only the jobs are made here:
they were run by hand when they were written.
"""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[3] / "flows" / "examples"


@pytest.fixture
def example(monkeypatch):
    """Imports an example by its name."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module


@pytest.mark.e2e
@pytest.mark.engine
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("name", "check"),
    [
        ("python_job", {"vowels": {"Oslo": 2, "Quito": 3, "Rome": 2}, "sum": 7}.__eq__),
        ("dask_table", lambda made: made["workers"] > 0 and made["table"].startswith("file:///")),
        ("dask_cluster", {"total": sum(range(2000)), "workers": 2}.__eq__),
        ("spark_table", {"counts": [100] * 10}.__eq__),
        ("tensorflow_training", lambda made: made["replicas"] == 2 and 2.5 < made["weight"] < 3.5),
    ],
    ids=["python", "dask", "dask-cluster", "spark", "tensorflow"],
)
def test_an_example_runs(prefect, example, name, check):
    made = example(name).pipeline()
    assert check(made), made


@pytest.mark.parametrize(
    ("name", "task", "arguments", "kind"),
    [
        ("torch_training", "fit_line", (), "torch"),
        ("ray_cluster", "square", (3,), "ray"),
        ("ray_cluster", "mean", ([1, 2],), "ray-train"),
        ("ray_cluster", "descend", (2.0,), "ray-tune"),
    ],
)
def test_an_example_that_needs_more_makes_its_job(example, name, task, arguments, kind):
    job = getattr(example(name), task).job(*arguments)
    assert job.kind == kind
    assert job.plan().roles
