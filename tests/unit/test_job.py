"""A job is data: it can be checked, planned, fingerprinted and shown without starting or importing anything."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest

from rallypoint import DaskClusterClass, DaskJob, Function, Module, Resources, Script, TorchElastic
from rallypoint.errors import InvalidEntryError, InvalidJobError
from rallypoint.spec.gang import Macro, Secret
from rallypoint.spec.shipment import ARCHIVE, archive
from rallypoint.stages.rule import changed_parts

SCRIPT = "/jobs/train.py"


# Wrong values --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: TorchElastic(SCRIPT, nnodes="x"), "TorchElastic(nnodes=…): got 'x', expected a number or a range"),
        (lambda: TorchElastic(SCRIPT, nnodes="4:1"), "got '4:1', expected \"min:max\" with 1 ≤ min ≤ max"),
        (lambda: TorchElastic(SCRIPT, nnodes=0), "got 0, expected"),
        (lambda: TorchElastic(SCRIPT, nnodes="1:2:3"), 'write nnodes="2" for two nodes'),
        (
            lambda: TorchElastic(SCRIPT, nproc_per_node="two"),
            "(nproc_per_node=…): got 'two', expected a number above 0",
        ),
        (lambda: TorchElastic(SCRIPT, nproc_per_node=0), "(nproc_per_node=…): got 0, expected a number above 0"),
        (lambda: TorchElastic(SCRIPT, max_restarts=-1), "(max_restarts=…): got -1, expected 0 or more"),
        (lambda: TorchElastic(SCRIPT, max_restarts="many"), "(max_restarts=…): got 'many', expected a whole number"),
        (lambda: TorchElastic(SCRIPT, monitor_interval=0), "(monitor_interval=…): got 0, expected seconds above 0"),
        (lambda: TorchElastic(SCRIPT, rdzv_timeout=-1), "(rdzv_timeout=…): got -1, expected seconds above 0"),
        (lambda: TorchElastic(SCRIPT, rdzv_backend="zk"), "(rdzv_backend=…): got 'zk', expected one of c10d, etcd"),
        (lambda: TorchElastic(SCRIPT, start_method="thread"), "(start_method=…): got 'thread', expected one of spawn"),
        (lambda: TorchElastic(SCRIPT, keep_checkpoints=0), "(keep_checkpoints=…): got 0, expected 1 or more"),
        (lambda: TorchElastic(SCRIPT, stall_timeout=0), "(stall_timeout=…): got 0, expected seconds above 0, or None"),
        (lambda: TorchElastic(SCRIPT, env={"RALLYPOINT_X": "1"}), "got 'RALLYPOINT_X', expected a variable's name"),
        (lambda: TorchElastic(SCRIPT, env={"A=B": "1"}), "got 'A=B', expected a variable's name"),
        (lambda: TorchElastic(SCRIPT, env={"": "1"}), "got '', expected a variable's name"),
        (lambda: TorchElastic(SCRIPT, env={"A": 1}), "(env=…): got {'A': 1}, expected text"),
        (lambda: TorchElastic(SCRIPT, env={"A": "x\0y"}), "(env=…): got {'A': 'x\\x00y'}, expected text without NUL"),
        (
            lambda: TorchElastic(SCRIPT, env={"A": Macro.RUN_DIR}),
            "expected text without NUL and without ${rallypoint:…}",
        ),
        (lambda: TorchElastic(SCRIPT, secrets={"A": "x\0y"}), "(secrets=…): got 'A', expected a value without NUL"),
        (lambda: TorchElastic(SCRIPT, params={"a": object()}), "(params=…): got {'a': <object object"),
        (lambda: TorchElastic(SCRIPT, rdzv_endpoint=Macro.HOST), "(rdzv_endpoint=…)"),
        (lambda: TorchElastic(SCRIPT, rdzv_conf={"a": Macro.HOST}), "(rdzv_conf=…)"),
        (
            lambda: DaskJob(SCRIPT, cluster="10.0.0.5:8786"),
            "got '10.0.0.5:8786', expected a scheduler's address such as",
        ),
        (lambda: DaskJob(SCRIPT, cluster=f"tcp://{Macro.HOST}:1"), "(cluster=…): got"),
        (lambda: DaskJob(SCRIPT, connect_timeout=0), "(connect_timeout=…): got 0, expected seconds above 0"),
        (
            lambda: DaskClusterClass(cls="LocalCluster"),
            "DaskClusterClass(cls=…): got 'LocalCluster', expected a dotted path",
        ),
        (lambda: DaskClusterClass(cls="os; x.y"), "DaskClusterClass(cls=…)"),
        (lambda: DaskClusterClass(workers=0), "DaskClusterClass(workers=…): got 0, expected 1 or more"),
        (lambda: DaskClusterClass(workers=2, adaptive=(1, 2)), "expected 1 or more, without adaptive="),
        (lambda: DaskClusterClass(adaptive=(3, 1)), "DaskClusterClass(adaptive=…): got (3, 1), expected (min, max)"),
        (lambda: DaskClusterClass(kwargs={"x": object()}), "DaskClusterClass(kwargs=…): got {'x': <object"),
        (lambda: DaskClusterClass(kwargs={"x": Macro.RUN_DIR}), "DaskClusterClass(kwargs=…): got"),
        (lambda: Resources(cpus=0), "Resources(cpus=…): got 0, expected a number above 0, or None"),
        (lambda: Resources(gpus=-1), "Resources(gpus=…): got -1, expected 0 or more"),
        (lambda: Resources(memory="lots"), "Resources(memory=…): got 'lots', expected bytes or a size such as"),
        (lambda: Resources(memory="-1GiB"), "Resources(memory=…): got '-1GiB'"),
    ],
)
def test_a_wrong_value_says_what_was_got_and_expected(make, says):
    with pytest.raises(InvalidJobError) as raised:
        make()
    assert says in str(raised.value)


@pytest.mark.parametrize("entry", [3, None, object()])
def test_an_entry_that_is_none_is_refused_where_the_job_is_written(entry):
    with pytest.raises(InvalidEntryError, match="as the entry of a job"):
        TorchElastic(entry)


@pytest.mark.parametrize(
    ("memory", "size"),
    [(None, None), (512, 512), ("1024", 1024), ("1K", 1000), ("1Ki", 1024), ("1.5 GiB", 3 << 29), ("2gb", 2 * 10**9)],
)
def test_memory_is_read_as_people_write_it(memory, size):
    assert Resources(memory=memory).memory_bytes == size


@pytest.mark.parametrize(("nnodes", "nodes"), [("2", (2, 2)), (3, (3, 3)), ("1:4", (1, 4)), (" 2:2 ", (2, 2))])
def test_nnodes_is_read_as_torchrun_does(nnodes, nodes):
    assert TorchElastic(SCRIPT, nnodes=nnodes).nodes == nodes


def test_a_rendered_template_is_text_and_still_a_number():
    assert TorchElastic(SCRIPT, max_restarts="3").max_restarts == 3


# Planning ------------------------------------------------------------------------------------------------------------


def test_torch_compiles_to_torchruns_command_line():
    (role,) = TorchElastic(
        Script(SCRIPT, ["--lr", "0.1"]), nnodes="1:4", nproc_per_node=2, max_restarts=3, rdzv_timeout=60
    ).roles()
    assert (role.name, role.replicas, role.least, role.ports) == ("agent", 4, 1, ("rdzv",))
    assert role.argv == (
        Macro.PYTHON, "-m", "rallypoint.frameworks.torch.driver", "agent",
        "--nnodes=${rallypoint:nodes}", "--nproc-per-node=2", "--max-restarts=3", "--monitor-interval=0.1",
        "--start-method=spawn", "--rdzv-backend=c10d", "--rdzv-endpoint=${rallypoint:host}:${rallypoint:port.rdzv}",
        "--rdzv-id=${rallypoint:attempt}", "--rdzv-conf=is_host=first,join_timeout=60,timeout=60",
        "--local-addr=${rallypoint:address}",
        "-m", "rallypoint.frameworks.torch.driver", "rank", "script", SCRIPT, "--lr", "0.1",
    )  # fmt: skip


def test_an_own_rendezvous_needs_no_port():
    (role,) = TorchElastic(SCRIPT, rdzv_endpoint="etcd:2379", rdzv_backend="etcd-v2").roles()
    assert role.ports == ()
    assert "--rdzv-endpoint=etcd:2379" in role.argv


@pytest.mark.parametrize(
    ("job", "settings"),
    [
        (DaskJob(SCRIPT), {"local": {"cpus": None, "memory": None}}),
        (DaskJob(SCRIPT, resources=Resources(cpus=2, memory="1GiB")), {"local": {"cpus": 2, "memory": 1 << 30}}),
        (DaskJob(SCRIPT, cluster="tcp://10.0.0.5:8786"), {"address": "tcp://10.0.0.5:8786"}),
        (
            DaskJob(SCRIPT, cluster=DaskClusterClass(cls="a.B", kwargs={"queue": "q"}, adaptive=(1, 4))),
            {"cluster": {"cls": "a.B", "kwargs": {"queue": "q"}, "workers": None, "adaptive": [1, 4]}},
        ),
    ],
)
def test_dask_compiles_to_one_driver(job, settings):
    (role,) = job.roles()
    assert (role.name, role.replicas) == ("driver", 1)
    assert role.argv[:3] == (Macro.PYTHON, "-m", "rallypoint.frameworks.dask.driver")
    assert json.loads(role.argv[3]) == {"connect_timeout": 30, **settings}
    assert role.argv[4:] == ("script", SCRIPT)


def test_a_plan_names_what_its_place_must_have():
    gang = TorchElastic(SCRIPT, python="/venv/bin/python", stall_timeout=60).plan()
    assert (gang.requires, gang.needs_files, gang.pickled_by) == (("torch",), (SCRIPT,), None)
    assert (gang.python, gang.stall_timeout) == ("/venv/bin/python", 60)
    assert DaskJob(Function(textwrap.dedent)).plan().pickled_by == f"3.{sys.version_info[1]}"


def test_the_shipment_comes_first_on_the_path_and_the_users_own_path_stays():
    (role,) = DaskJob(Module("m"), env={"PYTHONPATH": "/mine"}).plan().roles
    assert role.env["PYTHONPATH"] == f"{Macro.RUN_DIR}/{ARCHIVE}{os.pathsep}/mine"


def test_a_functions_neighbours_are_on_its_path():
    (role,) = DaskJob(Function(textwrap.dedent)).plan().roles
    assert str(Path(__file__).parents[2] / "providers") in role.env["PYTHONPATH"].split(os.pathsep)


@pytest.mark.parametrize("secret", ["hunter2", Secret("hunter2")])
def test_a_secret_is_in_nothing_that_is_shown(secret):
    job = TorchElastic(SCRIPT, secrets={"TOKEN": secret})
    gang = job.plan()
    assert all("hunter2" not in text for text in (repr(job), str(job), json.dumps(gang.to_json()), repr(gang)))
    assert "hunter2" not in json.dumps(job.fingerprint())
    assert gang.secrets["TOKEN"].reveal() == "hunter2"


# The fingerprint -----------------------------------------------------------------------------------------------------


def work(features, epochs=3):
    return features, epochs


BASE = TorchElastic(Function(work, ("s3://features",), {"epochs": 3}), params={"lr": 0.1})


@pytest.mark.parametrize(
    "changes",
    [
        {"nnodes": "4"},
        {"nproc_per_node": 8},
        {"max_restarts": 5},
        {"resources": Resources(memory="64GiB")},
        {"env": {"DEBUG": "1"}},
        {"secrets": {"TOKEN": "x"}},
        {"python": "/other/python"},
        {"stall_timeout": None},
        {"keep_checkpoints": 9},
        {"rdzv_timeout": 1.0},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_how_it_runs_does_not_change_the_work(changes):
    assert dataclasses.replace(BASE, **changes).fingerprint() == BASE.fingerprint()


def test_the_code_does_not_change_the_work(monkeypatch):
    def fixed(features, epochs=3):
        return "the bug is fixed"

    monkeypatch.setattr(fixed, "__qualname__", "work")
    assert dataclasses.replace(BASE, entry=Function(fixed, ("s3://features",), {"epochs": 3})).fingerprint() == (
        BASE.fingerprint()
    )


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"entry": Function(work, ("s3://features",), {"epochs": 4})}, ("argument epochs changed",)),
        ({"entry": Function(work, ("s3://other",), {"epochs": 3})}, ("argument #1 changed",)),
        ({"entry": Function(work, ("s3://features",))}, ("argument epochs was removed",)),
        ({"params": {"lr": 0.2}}, ("param lr changed",)),
        ({"params": {"lr": 0.1, "momentum": 0.9}}, ("param momentum was added",)),
    ],
)
def test_what_it_works_on_changes_the_work_and_is_named(changes, parts):
    changed = dataclasses.replace(BASE, **changes)
    assert changed_parts(BASE.fingerprint(), changed.fingerprint()) == parts


def test_another_entry_is_other_work():
    one, other = TorchElastic("/jobs/a.py"), TorchElastic("/jobs/b.py")
    assert changed_parts(one.fingerprint(), other.fingerprint()) == (
        "entry changed (script /jobs/a.py → script /jobs/b.py)",
    )


def test_a_scripts_argument_is_named_by_its_place():
    one, other = DaskJob(Script(SCRIPT, ["--lr", "1"])), DaskJob(Script(SCRIPT, ["--lr", "2"]))
    assert changed_parts(one.fingerprint(), other.fingerprint()) == ("argument #2 changed",)


# What is shipped -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shipment(tmp_path_factory):
    path = tmp_path_factory.mktemp("shipment") / ARCHIVE
    path.write_bytes(archive())
    return path


def _bare(shipment, code):
    """Run code in a Python that has the standard library and the shipment, and nothing else."""
    lines = [f"import sys; sys.path.append({str(shipment)!r})", textwrap.dedent(code)]
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", "\n".join(lines)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_same_version_ships_the_same_bytes():
    archive.cache_clear()
    first = archive()
    archive.cache_clear()
    assert archive() == first


def test_the_shipment_has_no_orchestrator_and_no_engine():
    folders = {name.split("/")[1] for name in zipfile.ZipFile(io.BytesIO(archive())).namelist() if "rally" in name}
    assert folders <= {"__init__.py", "errors.py", "worker", "frameworks", "examples", "spec"}
    assert {"worker", "frameworks"} <= folders


WORKER = sorted(
    f"rallypoint.worker.{path.stem}"
    for path in (Path(__file__).parents[2] / "providers/rallypoint/worker").glob("[!_]*.py")
)


@pytest.mark.parametrize("module", ["rallypoint.worker", *WORKER])
def test_the_worker_needs_the_standard_library_and_itself(shipment, module):
    out = _bare(
        shipment,
        f"""
        import importlib
        before = set(sys.modules)
        importlib.import_module({module!r})
        new = {{name.partition(".")[0] for name in set(sys.modules) - before}}
        print(sorted(new - set(sys.stdlib_module_names)))
        print(sorted(name for name in sys.modules if name.startswith("rallypoint.") and "worker" not in name))
        """,
    )
    assert out.splitlines() == ["['rallypoint']", "[]"]


def test_user_code_finds_its_stage_in_the_shipment(shipment):
    out = _bare(shipment, "import rallypoint; print(rallypoint.stage().active, rallypoint.__file__)")
    assert out.split() == ["False", f"{shipment}/rallypoint/__init__.py"]


def test_cloudpickle_travels_with_it(shipment):
    assert _bare(shipment, "import cloudpickle; print(cloudpickle.__file__)").startswith(str(shipment))
