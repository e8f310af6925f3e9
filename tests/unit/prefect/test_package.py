"""The package: its public names, and what importing it costs."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points

import rallypoint.prefect


def test_every_public_name_is_there():
    for name in rallypoint.prefect.__all__:
        assert getattr(rallypoint.prefect, name) is not None
    assert dir(rallypoint.prefect) == rallypoint.prefect.__all__


def test_tasks_import_no_framework_and_no_other_orchestrator():
    heavy = ["torch", "tensorflow", "ray", "pyspark", "dask", "distributed", "airflow"]
    code = (
        "import sys, rallypoint.prefect.tasks, rallypoint.prefect.reaper;"
        f"found = [name for name in {heavy} if name in sys.modules];"
        "assert not found, found"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_blocks_are_found_where_prefect_looks_for_them():
    from prefect.blocks.core import Block

    (found,) = entry_points(group="prefect.collections", name="rallypoint")
    module = found.load()
    blocks = {
        value.get_block_type_slug()
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Block) and value is not Block
    }
    assert blocks == {"rallypoint-store", "rallypoint-launcher", "rallypoint-ray-cluster", "rallypoint-ssh-hosts"}
