"""Every night: remove what old attempts have left, such as logs and old generations of checkpoints."""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import dag, task


@dag(schedule="@daily", catchup=False, max_active_runs=1, tags=["rallypoint", "example"], doc_md=__doc__)
def example_prune() -> None:
    """Keep a month of everything, and what a retry could still need for ever."""

    @task(retries=2)
    def prune() -> int:
        from rallypoint.airflow.retention import prune_store

        # forget_stages=True also removes the stages of runs that nobody will clear any more.
        return prune_store(older_than=timedelta(days=30), keep_generations=2)

    prune()


example_prune()
