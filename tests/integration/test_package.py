"""The wheel, as a user installs it: in an empty virtual environment, with the extras that the README names."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
UV = Path(sys.executable).parent / "uv"

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)], check=True
    )
    (built,) = out.glob("rallypoint-*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory) -> Path:
    """An interpreter with nothing but the wheel and what it asks for."""
    folder = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    interpreter = folder / "bin" / "python"
    links = os.environ.get("PIP_FIND_LINKS")
    source = ["--find-links", links] if links else ["--torch-backend", "cpu"]
    constraints = ["--constraint", str(ROOT / "constraints.txt")]
    what = f"{wheel}[airflow,torch,dask]"
    subprocess.run(
        [str(UV), "pip", "install", "-q", "--python", str(interpreter), *constraints, *source, what], check=True
    )
    return interpreter


def run(python: Path, *words: str, **variables: str) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run(
        [str(python), *words],
        capture_output=True,
        text=True,
        check=True,
        env=environment | variables,
        cwd=python.parent,
    )
    return done.stdout


def test_the_wheel_holds_the_types_the_templates_and_the_licence(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert "rallypoint/py.typed" in names
    assert "rallypoint/airflow/templates/stage.html" in names
    assert any(name.endswith("LICENSE") for name in names)
    assert not [name for name in names if not name.startswith(("rallypoint/", "rallypoint-"))]


def test_airflow_finds_the_installed_provider(python, tmp_path):
    code = (
        "import json; from airflow.providers_manager import ProvidersManager as P; m = P(); "
        "print(json.dumps([m.providers['rallypoint'].version, 'rallypoint' in m.hooks, "
        "'extra__rallypoint__store' in m.connection_form_widgets, "
        "sorted(n for n, _ in m.taskflow_decorators.items() if n in ('torch', 'dask'))]))"
    )
    out = run(python, "-c", code, AIRFLOW_HOME=str(tmp_path))
    assert json.loads(out.splitlines()[-1]) == ["0.1.0", True, True, ["dask", "torch"]]


def test_the_installed_command_plans_and_runs_a_job_of_each_framework(python, tmp_path):
    command = python.with_name("rallypoint")
    (tmp_path / "train.py").write_text(
        "import rallypoint, torch\nrallypoint.stage().result({'sum': torch.ones(3).sum()})\n"
    )
    (tmp_path / "count.py").write_text(
        "import rallypoint\nfrom distributed import Client\n"
        "rallypoint.stage().result({'sum': Client().submit(sum, [1, 2]).result()})\n"
    )
    (tmp_path / "jobs.py").write_text(
        "from rallypoint import DaskJob, Resources, Script, TorchElastic\n"
        f"train = TorchElastic(Script({str(tmp_path / 'train.py')!r}), nproc_per_node=1)\n"
        f"count = DaskJob(Script({str(tmp_path / 'count.py')!r}), resources=Resources(cpus=1))\n"
    )
    store = f"file://{tmp_path}/store"
    assert "agent" in run(command, "plan", f"{tmp_path}/jobs.py:train", RALLYPOINT_STORE=store)
    for name in ("train", "count"):
        out = run(command, "run", f"{tmp_path}/jobs.py:{name}", RALLYPOINT_STORE=store)
        assert json.loads(out) == {"sum": 3}
