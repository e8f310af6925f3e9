"""What torch's rendezvous does with an agent that joins late: why `TORCH_DISABLE_SHARE_RDZV_TCP_STORE` is set.

A test of torch, not of Rallypoint. Where the first case fails with a newer torch, an agent that stays rank 0 publishes
its address for every round, and `rallypoint.frameworks.torch.driver` may set the variable no more.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.engine

# One agent trains alone, another one joins: the first one's handler is asked for the next round, as torchrun does.
JOIN = """
import json, os, threading, time
from datetime import timedelta

from torch.distributed import TCPStore
from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import C10dRendezvousBackend
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import DynamicRendezvousHandler, RendezvousTimeout

PATIENCE = timedelta(seconds=5)


def agent(store):
    limits = RendezvousTimeout(last_call=timedelta(seconds=0.2))
    backend = C10dRendezvousBackend(store, "run")
    return DynamicRendezvousHandler.from_backend(
        "run", store, backend, 1, 2, local_addr="127.0.0.1", timeout=limits, keep_alive_interval=1
    )


def join():
    try:
        info = late.next_rendezvous()
        said["late"] = {"rank": info.rank, "world": info.world_size, "port": info.bootstrap_store_info.master_port}
    except Exception as error:
        said["late"] = {"error": f"{type(error).__name__}: {error}"}


said = {}
server = TCPStore("127.0.0.1", 0, is_master=True, timeout=PATIENCE)
first = agent(server)
late = agent(TCPStore("127.0.0.1", server.port, is_master=False, timeout=PATIENCE))
said["alone"] = first.next_rendezvous().world_size
thread = threading.Thread(target=join)
thread.start()
while not first.num_nodes_waiting():
    time.sleep(0.05)
info = first.next_rendezvous()
said["first"] = {"rank": info.rank, "world": info.world_size, "port": info.bootstrap_store_info.master_port}
thread.join()
print(json.dumps(said), flush=True)
os._exit(0)  # what was asked is answered: torch's own threads may abort an orderly end
"""


@pytest.fixture
def joined(script):
    """Returns what the two agents said, with or without the variable."""

    def run(**more):
        kept = {name: value for name, value in os.environ.items() if name != "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"}
        command = [sys.executable, script(JOIN)]
        done = subprocess.run(command, env={**kept, **more}, capture_output=True, text=True, timeout=240, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run


def test_without_the_variable_a_late_agent_waits_in_vain_for_the_address_of_the_first(joined):
    said = joined()
    assert said["alone"] == 1
    assert "MASTER_ADDR" in said["late"].get("error", ""), (
        "torch no longer needs TORCH_DISABLE_SHARE_RDZV_TCP_STORE: drop it in rallypoint.frameworks.torch.driver, "
        f"unless pytorch#135712 still does; the agents said {said}"
    )


def test_with_it_both_agents_have_the_same_address(joined):
    said = joined(TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1")
    assert said["alone"] == 1
    assert (said["first"]["rank"], said["late"]["rank"]) == (0, 1)
    assert said["first"]["world"] == said["late"]["world"] == 2
    assert said["first"]["port"] == said["late"]["port"]
