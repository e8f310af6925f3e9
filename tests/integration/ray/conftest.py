"""One real Ray head for all of these tests; what a test needs beside it, it starts itself."""

from __future__ import annotations

import pytest
from ray_head import RayHead


@pytest.fixture(scope="package")
def ray_head():
    """A Ray cluster on this machine: see `RayHead` for its addresses, and for `add_node`."""
    with RayHead(num_cpus=4) as cluster:
        yield cluster
    assert not cluster.left(), "processes of the Ray cluster outlived the tests"
