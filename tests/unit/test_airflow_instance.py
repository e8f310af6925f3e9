"""The private Airflow of the demo and the tests."""

from __future__ import annotations

from airflow_instance import AirflowInstance
from sqlalchemy import create_engine, text


def test_its_database_is_waited_for_while_another_component_writes(tmp_path):
    environment = AirflowInstance(tmp_path, tmp_path / "dags").env
    with create_engine(environment["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"]).connect() as connection:
        assert connection.execute(text("PRAGMA busy_timeout")).scalar() == 120_000  # milliseconds
    assert (tmp_path / "airflow.db").exists()
