"""Flows on the task runners of prefect-dask and prefect-ray, in a file of their own: only they load these packages."""

from __future__ import annotations

import os
import secrets

from pipelines import note_process, train
from prefect import flow, serve
from prefect_dask import DaskTaskRunner
from prefect_ray import RayTaskRunner

DASK = DaskTaskRunner(cluster_kwargs={"n_workers": 1, "threads_per_worker": 1, "dashboard_address": None})
RAY = RayTaskRunner(init_kwargs={"num_cpus": 1, "include_dashboard": False, "object_store_memory": 100 << 20})

# Without a token given, `ray.init` writes one to ~/.ray, and every later Ray of this user asks for it.
os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


@flow(name="dask-pipeline", task_runner=DASK)
def dask_pipeline(folder: str):
    note_process(folder)
    return train.submit(folder, "data").result()


@flow(name="ray-pipeline", task_runner=RAY)
def ray_pipeline(folder: str):
    note_process(folder)
    return train.submit(folder, "data").result()


if __name__ == "__main__":
    serve(dask_pipeline.to_deployment("test"), ray_pipeline.to_deployment("test"))
