"""`TorchElasticOperator` on SSH hosts: it goes on without a host that is lost, and with one that comes back.

The connection ``hosts`` is of Airflow's own type *ssh*: its hosts are ``gpu1,gpu2``, and its extra is
``{"root": "/var/lib/rallypoint/runs"}``. The store has to be one that the hosts reach.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import dag

from rallypoint.airflow.operators import TorchElasticOperator


@dag(schedule=None, tags=["rallypoint", "example"], doc_md=__doc__)
def example_torch_hosts() -> None:
    """Train a line with DistributedDataParallel on one host or two, whichever are there."""
    TorchElasticOperator(
        task_id="train",
        launcher_conn_id="hosts",
        script="/opt/ml/fit_line.py",  # on the hosts
        args=["--epochs", "3"],
        nnodes="1:2",
        nproc_per_node=1,
        max_restarts=10,  # each loss of a host takes one
        rdzv_conf={"last_call_timeout": "10"},  # how long the first hosts wait for further ones
        retries=2,  # the host of the rendezvous was lost: a new attempt at once, on those that answer
        retry_delay=timedelta(seconds=5),
        stall_timeout=600,
        deferrable=True,
    )


example_torch_hosts()
