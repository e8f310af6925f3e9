"""Stages of torch in a real Airflow: what a user sees, clears and kills. More of both: `test_airflow_plain_stages`."""

from __future__ import annotations

import json
import os
import signal
import sys

import httpx
import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(420)]


def test_a_deferred_stage_shows_what_it_does_while_it_waits(airflow, witness):
    def streamed() -> str | None:
        log = airflow.api.log("deferred", run, "train") if airflow.attempts("deferred", run, "train") else ""
        return log if "progress: step 1/4 loss=1" in log and "[rank-0.r0] epoch 1 of 4" in log else None

    with airflow.told(witness, "hold"):
        run = airflow.start("deferred", {"witness": str(witness), "epochs": 4})
        log = airflow.api.wait_until(streamed, "the first epoch in the task log", timeout=120)
        assert airflow.api.task_instance("deferred", run, "train").state == "deferred"
        assert "first attempt" in log
        # The attempt and the link are known while the job runs, and the page shows it.
        attempt = airflow.api.xcom("deferred", run, "train", key="rallypoint_attempt")
        assert attempt["attempt"] == airflow.attempts("deferred", run, "train")[0].entry.record.id
        links = airflow.api.links("deferred", run, "train")
        assert set(links) == {"Rallypoint stage", "TensorBoard"}
        page = httpx.get(airflow.instance.url + links["Rallypoint stage"], timeout=30).text
        assert "running" in page
        assert "step 1/4" in page
    airflow.api.wait_for_run("deferred", run, timeout=120)
    assert airflow.api.xcom("deferred", run, "train") == {"first": 0, "epochs": 4, "attempt": 1}
    assert "[rank-0.r0] epoch 4 of 4" in airflow.api.log("deferred", run, "train")
    assert witness.read_text().splitlines() == ["attempt 1 rank 0 first 0"]


def test_clearing_a_failed_stage_continues_from_its_last_checkpoint(airflow, witness):
    fail = witness.with_name(f"{witness.name}.fail")
    fail.touch()
    run = airflow.start("deferred", {"witness": str(witness)})
    airflow.api.wait_for_run("deferred", run, state="failed", timeout=120)
    log = airflow.api.log("deferred", run, "train")
    assert "rank 0 on" in log
    assert "RuntimeError: the file says to fail" in log
    assert "what to do:" in log
    fail.unlink()
    airflow.api.clear("deferred", run, ["train"])
    airflow.api.wait_for_run("deferred", run, timeout=120)
    assert airflow.api.xcom("deferred", run, "train") == {"first": 3, "epochs": 6, "attempt": 2}
    assert "continuing from its last checkpoint" in airflow.api.log("deferred", run, "train")
    assert witness.read_text().splitlines() == ["attempt 1 rank 0 first 0", "attempt 2 rank 0 first 3"]


def test_a_killed_worker_leads_to_reattachment_with_one_job_and_its_result(airflow, witness):
    with airflow.told(witness, "hold"):
        run = airflow.start("synchronous", {"witness": str(witness)})
        airflow.wait_for_step("synchronous", run, "train", 1)
        task = airflow.api.task_instance("synchronous", run, "train")
        process = airflow.instance.task_process(task.id)
        for victim in (process.parent(), process):
            os.kill(victim.pid, signal.SIGKILL)

        def reattached() -> bool | None:
            again = airflow.api.task_instance("synchronous", run, "train").try_number == 2
            return (again and "reattached" in airflow.api.log("synchronous", run, "train", 2)) or None

        airflow.api.wait_until(reattached, "the second try to find the job", timeout=240)
    airflow.api.wait_for_run("synchronous", run, timeout=120)
    assert airflow.api.xcom("synchronous", run, "train") == {"first": 0, "epochs": 6, "attempt": 1}
    assert witness.read_text().splitlines() == ["attempt 1 rank 0 first 0"]


def test_a_mistake_in_a_job_is_an_import_error_of_the_dag_file(airflow):
    errors = airflow.api.wait_until(
        lambda: next((text for file, text in airflow.api.import_errors().items() if "broken" in file), None),
        "the import error of broken.py",
        timeout=60,
    )
    assert "TorchElastic(nnodes=…): got '4:1', expected" in errors


@pytest.mark.parametrize(
    ("extra", "status", "words"),
    [
        ({"store": "{home}/another-store"}, True, "can be written"),
        ({"store": "ftp://somewhere/else"}, False, "expected file://"),
        ({"store": "/proc/no/such"}, False, "/proc/no/such"),
        ({"launcher": "teleport://x"}, False, "got the launcher 'teleport://x', expected one of"),
        ({"python": "/nowhere/python"}, False, "got python='/nowhere/python', expected the path of"),
        ({"python": "{python}"}, True, "python={python} answers (Python 3."),
    ],
)
def test_the_test_button_of_a_connection_tells_whether_it_works(airflow, extra, status, words):
    known = {"home": airflow.instance.home, "python": sys.executable}
    extra = {name: value.format(**known) for name, value in extra.items()}
    body = {"connection_id": "rallypoint_test", "conn_type": "rallypoint", "extra": json.dumps(extra)}
    answer = airflow.api.request("POST", "/connections/test", json=body)
    assert answer["status"] is status
    assert words.format(**known) in answer["message"]
