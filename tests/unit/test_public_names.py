"""The public names are few, resolve, and cost nothing to import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import rallypoint

PACKAGE = Path(rallypoint.__file__).parent
HEAVY = {
    *("airflow", "prefect"),
    *("boto3", "dask", "distributed", "numpy", "pandas", "pyarrow", "pyspark", "ray", "sklearn", "tensorflow", "torch"),
}
CHEAP = ("spec/[!_]*.py", "frameworks/*/job.py", "frameworks/*/driver.py", "launchers/[!_]*.py", "stages/[!_]*.py")
MODULES = sorted(path.relative_to(PACKAGE.parent).with_suffix("") for glob in CHEAP for path in PACKAGE.glob(glob))
LIGHT = ["rallypoint", "rallypoint.errors", *(".".join(module.parts) for module in MODULES)]


@pytest.mark.parametrize("name", rallypoint.__all__)
def test_every_public_name_is_there(name):
    assert getattr(rallypoint, name) is not None


def test_the_public_names_are_these():
    assert sorted(rallypoint.__all__) == rallypoint.__all__ == dir(rallypoint)
    assert rallypoint.__all__ == [
        "CloudTPU", "DaskCluster", "DaskClusterClass", "DaskJob", "FailureRule", "Function", "Hive", "Jar", "Kind",
        "Module", "PythonJob",
        "RallypointError", "RayCluster", "RayJob", "RayServe", "RayServeRollback", "RayServeUndeploy", "RayTrain",
        "RayTune", "RayWorkers", "Resources", "Script", "ServeProbe", "SparkCluster", "SparkConnectServer",
        "SparkJob", "SparkMLPipeline", "SparkWorkers", "Stage", "StageFailedError", "TFServingDeploy",
        "TFServingProbe", "TFServingSignature", "TensorFlowJob", "TorchElastic", "__version__", "search", "stage",
    ]  # fmt: skip


def test_a_name_that_is_not_there_lists_those_that_are():
    with pytest.raises(AttributeError, match=r"module 'rallypoint' has no attribute 'TorchJob'; it has .*TorchElastic"):
        rallypoint.TorchJob  # noqa: B018


@pytest.mark.parametrize("module", LIGHT)
def test_importing_it_imports_no_framework_and_no_orchestrator(module):
    code = f"import sys, {module}; print(*sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
