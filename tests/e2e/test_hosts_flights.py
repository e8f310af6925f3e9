"""The example pipeline where its run's conf says: the unchanged DAG, on two hosts that are reached by SSH."""

from __future__ import annotations

import json
import sys

import pytest

from rallypoint.worker.ports import free_ports

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200)]

STAGES = ("preprocess", "train", "ray_cluster", "tune", "evaluate", "serve", "smoke")


@pytest.fixture
def hosts(airflow, network, tmp_path):
    """The id of a connection of Airflow's own type ``ssh``."""
    extra = {
        "root": str(tmp_path / "runs"),
        "python": sys.executable,
        "known_hosts": str(network.known_hosts),
        "key_file": str(network.key),
    }
    addresses = ",".join(host.address for host in network.hosts)
    body = {"connection_id": "hosts", "conn_type": "ssh", "host": addresses, "login": "root"}
    airflow.api.request("POST", "/connections", json={**body, "extra": json.dumps(extra)})
    return "hosts"


def test_a_runs_conf_chooses_where_all_of_its_stages_run(airflow, hosts):
    conf = {"fraction": 0.1, "epochs": 2, "processes": 2, "trials": 1, "serve_port": free_ports(1)[0]}
    with airflow.alone("flights", {**conf, "launcher": hosts}) as run:
        airflow.api.wait_for_run("flights", run, timeout=1000)
    for stage in STAGES:
        launchers = {attempt.entry.record.launcher for attempt in airflow.attempts("flights", run, stage)}
        assert all(launcher.startswith("ssh://10.77.0.11,10.77.0.12?") for launcher in launchers), stage
        assert len(launchers) == 1
    ranks = airflow.attempts("flights", run, "train")[0].view.last_round
    assert [rank.world_size for rank in ranks] == [2, 2]
    assert airflow.api.xcom("flights", run, "smoke")["rows"] == 100
