"""Elastic PyTorch as a stage, on torchrun itself and gloo: it continues, and it says which rank failed first."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from rallypoint import Function, Script, TorchElastic
from rallypoint.spec.failure import Kind
from rallypoint.stages.attempt import Request
from rallypoint.stages.rule import State

pytestmark = pytest.mark.engine

INTERVAL = timedelta(seconds=0.1)

# Three epochs of data-parallel training. Epoch by epoch, rank 1 does what the second argument says at epoch 2.
TRAIN = """
    import os, signal, sys
    from pathlib import Path
    import torch
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel
    import rallypoint

    here, at_2 = Path(sys.argv[1]), sys.argv[2]
    stage = rallypoint.stage()
    dist.init_process_group("gloo")
    assert (stage.rank, stage.world_size) == (dist.get_rank(), dist.get_world_size())
    torch.manual_seed(0)
    model = DistributedDataParallel(torch.nn.Linear(2, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    start, checkpoint = 0, stage.latest_checkpoint()
    if checkpoint:
        saved = torch.load(Path(checkpoint, "model.pt"))
        model.module.load_state_dict(saved["model"])
        start = saved["epoch"]
    with open(here / f"rank-{stage.rank}", "a") as file:
        file.write(f"{start}\\n")
    for epoch in range(start + 1, 4):
        loss = model(torch.full((4, 2), float(stage.rank + 1))).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        state = {"epoch": epoch, "model": model.module.state_dict()}
        stage.save_checkpoint(lambda folder: torch.save(state, Path(folder, "model.pt")), step=epoch)
        stage.report(step=epoch, total=3, loss=loss.item())
        dist.barrier()
        first = stage.attempt == 1 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
        if epoch == 2 and stage.rank == 1 and first and at_2 == "killed":
            print("rank 1 says its last words", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
    ranks = torch.tensor([stage.rank + 1.0])
    dist.all_reduce(ranks)
    stage.result({"sum": ranks, "world": dist.get_world_size(), "from": start, "loss": loss.item()})
    dist.destroy_process_group()
"""


async def finish(engine, started):
    return [update async for update in engine.watch(started.attempt, interval=INTERVAL)][-1]


async def run(engine, job, owner="try-1"):
    return (await finish(engine, await engine.start(job, Request(owner=owner)))).outcome


def _starts(folder, rank):
    return [int(line) for line in (folder / f"rank-{rank}").read_text().split()]


async def test_two_ranks_train_together_and_rank_0_answers(engine, script, tmp_path):
    job = TorchElastic(Script(script(TRAIN), [str(tmp_path), "nothing"]), nproc_per_node=2)
    update = await finish(engine, await engine.start(job, Request(owner="try-1")))
    assert update.outcome.state is State.SUCCEEDED, update.outcome.failure.render()
    result = update.outcome.result
    assert (result["sum"], result["world"], result["from"]) == (3.0, 2, 0)
    assert set(update.view.processes) == {"agent-0", "rank-0.r0", "rank-1.r0"}
    assert {process.exit_code for process in update.view.processes.values()} == {0}
    assert (update.view.step, update.view.total, update.view.checkpoint["step"]) == (3, 3, 3)


async def test_a_killed_rank_is_named_and_the_retry_continues_from_the_checkpoint(engine, script, tmp_path, jobs_left):
    job = TorchElastic(Script(script(TRAIN), [str(tmp_path), "killed"]), nproc_per_node=2)
    failure = (await run(engine, job)).failure
    assert (failure.process, failure.signal, failure.kind) == ("rank 1", "SIGKILL", Kind.RETRYABLE)
    assert "rank 1 on" in failure.headline
    assert "SIGKILL" in failure.headline
    assert failure.last_lines[-1:] == ("rank 1 says its last words",)
    assert jobs_left() == {}
    outcome = await run(engine, job, "try-2")
    assert outcome.state is State.SUCCEEDED, outcome.failure.render()
    assert outcome.result["from"] == 2
    assert _starts(tmp_path, 0) == _starts(tmp_path, 1) == [0, 2]


async def test_torchruns_own_restart_recovers_within_one_attempt(engine, script, tmp_path):
    job = TorchElastic(Script(script(TRAIN), [str(tmp_path), "killed"]), nproc_per_node=2, max_restarts=1)
    update = await finish(engine, await engine.start(job, Request(owner="try-1")))
    assert update.outcome.state is State.SUCCEEDED, update.outcome.failure.render()
    assert update.outcome.result["from"] == 2
    assert await engine.ledger.numbers() == [1]
    assert {"rank-0.r1", "rank-1.r1"} <= set(update.view.processes)


async def test_an_import_error_in_the_script_is_a_user_error(engine, script):
    failure = (await run(engine, TorchElastic(script("import no_such_module"), nproc_per_node=2))).failure
    assert (failure.kind, failure.exception) == (Kind.USER, "ModuleNotFoundError")
    assert failure.process in ("rank 0", "rank 1")
    assert "no_such_module" in failure.headline
    assert "import no_such_module" in failure.render()


WAITS = """
    import os, select, sys
    from pathlib import Path
    Path(sys.argv[1], os.environ["RANK"] + ".waits").touch()
    select.select([os.open(Path(sys.argv[1], "go"), os.O_RDONLY | os.O_NONBLOCK)], [], [], 600)
"""


async def _waiting(engine, job, folder, until, ranks=2):
    started = await engine.start(job, Request(owner="try-1"))
    await until(lambda: len(list(folder.glob("*.waits"))) == ranks)
    return started


def _children(handle):
    supervisor = json.loads(Path(handle.details["run_dir"], "started.json").read_text())["pid"]
    pids = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
    return supervisor, [int(pid) for pid in pids]


async def test_a_killed_node_is_named(engine, script, gate, tmp_path, until, jobs_left):
    job = TorchElastic(Script(script(WAITS), [str(tmp_path)]), nnodes=2, nproc_per_node=1)
    started = await _waiting(engine, job, tmp_path, until)
    _, agents = _children(started.attempt.handle)
    os.kill(agents[1], signal.SIGKILL)
    failure = (await finish(engine, started)).outcome.failure
    assert (failure.process, failure.signal, failure.kind) == ("agent-1", "SIGKILL", Kind.RETRYABLE)
    assert jobs_left() == {}


async def test_a_host_that_shuts_down_is_no_fault_of_the_code(engine, script, gate, tmp_path, until, jobs_left):
    job = TorchElastic(Script(script(WAITS), [str(tmp_path)]), nproc_per_node=2)
    started = await _waiting(engine, job, tmp_path, until)
    supervisor, _ = _children(started.attempt.handle)
    os.kill(supervisor, signal.SIGTERM)
    outcome = (await finish(engine, started)).outcome
    assert outcome.state is State.FAILED
    assert outcome.failure.kind is Kind.RETRYABLE
    assert jobs_left() == {}


# In a Python that has torch and nothing of Rallypoint ----------------------------------------------------------------

DAG_FILE = """
EPOCHS = 4


def _saves(epoch):
    def write(folder):
        import torch

        torch.save({"epoch": epoch}, f"{folder}/state.pt")

    return write


def train(scale, *, offset=1):
    import importlib.util
    import sys

    import torch

    import rallypoint

    stage, start = rallypoint.stage(), 0
    if checkpoint := stage.latest_checkpoint():
        start = torch.load(f"{checkpoint}/state.pt")["epoch"]
    for epoch in range(start + 1, EPOCHS + 1):
        stage.save_checkpoint(_saves(epoch), step=epoch)
        if epoch == 2 and stage.attempt == 1:
            raise RuntimeError("the host is about to be lost")
    return {
        "value": torch.ones(1) * scale + offset,
        "from": start,
        "prefix": sys.prefix,
        "from_the_shipment": "rallypoint.zip" in rallypoint.__file__,
        "has_airflow": importlib.util.find_spec("airflow") is not None,
    }
"""


@pytest.fixture(scope="session")
def torch_only(tmp_path_factory):
    """A virtual environment that has torch and what torch needs."""
    folder = tmp_path_factory.mktemp("torch-only") / "venv"
    uv = Path(sys.executable).with_name("uv")
    links = os.environ.get("PIP_FIND_LINKS")
    source = ["--find-links", links] if links else ["--torch-backend", "cpu"]
    wanted = f"torch=={importlib.metadata.version('torch')}"
    python = folder / "bin" / "python"
    subprocess.run([uv, "venv", "-q", "--python", sys.executable, folder], check=True)
    subprocess.run([uv, "pip", "install", "-q", "--python", python, wanted, *source], check=True)
    absent = ["rallypoint", "airflow", "prefect", "cloudpickle", "obstore", "psutil"]
    code = f"import importlib.util as u; print([name for name in {absent} if u.find_spec(name)])"
    found = subprocess.run([python, "-I", "-c", code], check=True, capture_output=True, text=True).stdout
    assert found == "[]\n"
    return str(python)


@pytest.fixture
def dag_module(as_dag_file):
    return as_dag_file(DAG_FILE, "pipeline")


async def test_a_function_runs_and_continues_in_a_python_that_has_only_torch(engine, torch_only, dag_module):
    job = TorchElastic(Function(dag_module.train, (2,), {"offset": 3}), nproc_per_node=1, python=torch_only)
    failure = (await run(engine, job)).failure
    assert (failure.exception, failure.message) == ("RuntimeError", "the host is about to be lost")
    outcome = await run(engine, job, "try-2")
    assert outcome.state is State.SUCCEEDED, outcome.failure.render()
    assert outcome.result == {
        "value": 5.0,
        "from": 2,
        "prefix": str(Path(torch_only).parents[1]),
        "from_the_shipment": True,
        "has_airflow": False,
    }
