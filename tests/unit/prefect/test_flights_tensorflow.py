"""The example's flow of TensorFlow, as a flow run would load it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

FLOW = Path(__file__).resolve().parents[3] / "flows" / "flights_tensorflow.py"


def test_it_loads_without_a_framework_and_asks_for_what_the_dag_asks_for():
    code = (
        "import json, runpy, sys; flow = runpy.run_path(sys.argv[1])['flights_tensorflow']; "
        "loaded = sorted({'tensorflow', 'keras', 'dask', 'airflow'} & set(sys.modules)); "
        "print(json.dumps([loaded, flow.name, {key: p['default'] for key, p in flow.parameters.properties.items()}]))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(FLOW)], capture_output=True, text=True, check=True)
    loaded, name, parameters = json.loads(done.stdout.splitlines()[-1])
    assert (loaded, name) == ([], "flights-tensorflow")
    assert parameters == {"fraction": 1.0, "epochs": 6, "batch_size": 4096, "workers": 2}


def test_a_call_becomes_workers_that_train_and_a_process_that_compares():
    import runpy

    flow = runpy.run_path(str(FLOW))
    train = flow["train"].with_options(workers=3).job("file:///train", "file:///test", epochs=2, batch_size=64)
    (role,) = train.roles()
    assert (train.strategy, role.name, role.replicas) == ("multi_worker_mirrored", "worker", 3)
    assert {"epochs": 2, "batch_size": 64}.items() <= train.code.arguments().items()
    assert flow["train"].retries == flow["preprocess"].retries == 1
