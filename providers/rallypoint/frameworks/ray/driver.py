"""Inside the job: connects to Ray, or makes one for the attempt, and runs what the job asks with it."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import secrets
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rallypoint.frameworks.cluster.addresses import wait_for
from rallypoint.frameworks.ray import environment
from rallypoint.frameworks.ray.address import AUTO
from rallypoint.frameworks.ray.failures import ClusterUnreachableError, causes
from rallypoint.worker import context, process
from rallypoint.worker.entry import run_entry

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_LOOPBACK = "127.0.0.1"
_TEMP = "rp-driver-"  # <_TEMP><pid>-…: Ray's files of a driver
_LONGEST = 24  # characters of a temporary folder below which Ray's sockets still have names of at most 107 bytes


def main(argv: list[str]) -> int:
    """Run ``SETTINGS KIND WHERE ARG…``, where the settings are the JSON of `RayDriverJob.settings`."""
    settings = json.loads(argv[0])
    name = os.environ.get(context.PROCESS, "driver-0")
    return process.run(lambda: _run(settings, argv[1:]), name=name, explain=causes)


def _run(settings: Mapping[str, Any], entry: list[str]) -> Any:
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")  # read when ray.train is imported, here and in workers
    with connected(settings):
        if settings["job"] == "ray-train":
            from rallypoint.frameworks.ray.train.driver import train

            return train(settings, entry)
        if settings["job"] == "ray-tune":
            from rallypoint.frameworks.ray.tune.driver import tune

            return tune(settings, entry)
        return run_entry(entry)


@contextlib.contextmanager
def connected(settings: Mapping[str, Any]) -> Iterator[None]:
    """Connect to the cluster, or make a Ray for this attempt, which is gone afterwards.

    Raises:
        ClusterUnreachableError: Nothing answers at the address.
    """
    with contextlib.ExitStack() as stack:
        made = _join(settings) if "address" in settings else stack.enter_context(_local(settings["local"]))
        import ray

        stack.callback(ray.shutdown)
        url = getattr(made, "dashboard_url", None)
        if url:
            process.writer().write("link", name="Ray dashboard", url=url if "://" in url else f"http://{url}")
        yield


def _join(settings: Mapping[str, Any]) -> Any:
    address = settings["address"]
    timeout = settings["connect_timeout"]
    if address != AUTO and not wait_for([address], timeout):  # Ray's own wait says nothing for a minute
        msg = (
            f"got the Ray address {address}, at which nothing answered within {timeout:g} s: start the cluster, "
            "correct address=, or leave it out for a local Ray"
        )
        raise ClusterUnreachableError(msg)
    if sys.platform == "linux" and address.startswith(_LOOPBACK):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # see `_local`
    import ray

    wanted = environment.variables([*settings["env"], "GLOO_SOCKET_IFNAME", "RAY_TRAIN_V2_ENABLED"], os.environ)
    try:
        return ray.init(
            address=address,
            runtime_env={"worker_process_setup_hook": environment.setup_hook(wanted)},
            logging_level=logging.WARNING,
        )
    except ConnectionError as error:
        msg = (
            f"got the Ray address {address!r}, to which no connection could be made from {context.host()} ({error}): "
            "start a node of the cluster on this host, correct address=, or leave it out for a local Ray"
        )
        raise ClusterUnreachableError(msg) from error


@contextlib.contextmanager
def _local(asked: Mapping[str, Any]) -> Iterator[Any]:
    # Only processes that know the token may use this Ray, and it listens on the loopback interface alone; Ray would
    # otherwise leave a token in the user's home, which changes every later cluster of that user.
    os.environ.update({
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # Ray's name for "more than this host"
    })  # fmt: skip
    os.environ.pop("RAY_ADDRESS", None)
    if sys.platform == "linux":
        # A host name may resolve to loopback while gloo's first interface does not: the process group then hangs in
        # its set-up without a word.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    import ray

    cpus = asked["cpus"] or max(os.cpu_count() or 1, asked["least_cpus"])
    store: Any = {"object_store_memory": max(100 << 20, int(asked["memory"] * 0.3))} if asked["memory"] else {}
    folder = _temp_folder()
    try:
        made: Any = ray.init(
            address="local",
            num_cpus=max(1, math.ceil(cpus)),
            num_gpus=asked["gpus"] or None,
            include_dashboard=asked["dashboard"],
            dashboard_host=_LOOPBACK,
            dashboard_port=0,
            _temp_dir=folder,
            logging_level=logging.WARNING,
            **store,
        )
        os.environ["RAY_ADDRESS"] = made.address_info["address"]  # for a script's `ray.init()` and what it starts
        yield made
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def _temp_folder() -> str:
    """Make a folder whose path is short, and remove those of drivers that were killed."""
    root = tempfile.gettempdir() if len(tempfile.gettempdir()) <= _LONGEST else "/tmp"  # noqa: S108 - made by mkdtemp
    for old in Path(root).glob(f"{_TEMP}*"):
        pid = old.name.removeprefix(_TEMP).partition("-")[0]
        with contextlib.suppress(OSError):
            if pid.isdigit() and old.stat().st_uid == os.getuid() and not Path(f"/proc/{pid}").exists():
                shutil.rmtree(old, ignore_errors=True)
    return tempfile.mkdtemp(prefix=f"{_TEMP}{os.getpid()}-", dir=root)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
