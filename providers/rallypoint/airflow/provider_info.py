"""What this package tells Airflow about itself."""

from __future__ import annotations

from typing import Any

_TEXT = {"type": ["string", "null"]}
_OBJECT = 'A JSON object, such as {"X-Name": "value"}'
_RAY: dict[str, Any] = {
    "connection-type": "ray",
    "hook-class-name": "rallypoint.airflow.ray_hook.RayHook",
    "hook-name": "Ray cluster (Rallypoint)",
    "ui-field-behaviour": {
        "hidden-fields": ["login"],
        "relabeling": {"host": "Host of the dashboard", "schema": "http or https", "password": "Token"},
        "placeholders": {"host": "ray-head", "port": "8265", "schema": "http"},
    },
    "conn-fields": {
        "verify": {
            "label": "Certificate authority",
            "description": "The path of a file that the dashboard's certificate is checked against; empty for the "
            "system's authorities, false to check nothing",
            "schema": _TEXT,
        },
        "headers": {"label": "Headers", "description": _OBJECT, "schema": {**_TEXT, "format": "password"}},
        "cookies": {"label": "Cookies", "description": _OBJECT, "schema": {**_TEXT, "format": "password"}},
        "dashboard_url": {
            "label": "Dashboard in a browser",
            "description": "Its address for people, if it is another one",
            "schema": _TEXT,
        },
        "runtime_env": {
            "label": "Runtime environment of the jobs",
            "description": "Ray's runtime environment, a JSON object without secrets; a job's own comes first",
            "schema": _TEXT,
        },
        "python": {"label": "Python of the nodes", "description": "python by default", "schema": _TEXT},
        "namespace": {
            "label": "Namespace",
            "description": "Appended to the ids of jobs, where two orchestrators share the cluster, such as staging",
            "schema": _TEXT,
        },
    },
}
_SLURM: dict[str, Any] = {
    "connection-type": "slurm",
    "hook-class-name": "rallypoint.airflow.slurm_hook.SlurmHook",
    "hook-name": "Slurm (Rallypoint)",
    "ui-field-behaviour": {
        "hidden-fields": ["login", "port", "schema"],
        "relabeling": {"host": "Partition", "password": "Password of the login node"},
        "placeholders": {"host": "gpu"},
    },
    "conn-fields": {
        name: {"label": label, "description": description, "schema": _TEXT}
        for name, label, description in (
            ("root", "Shared folder", "An absolute path that workers, triggerers and all nodes see, for runs and logs"),
            ("python", "Python of the jobs", "An interpreter on the nodes; Rallypoint need not be installed there"),
            ("account", "Account", "Who pays for the jobs"),
            ("qos", "Quality of service", "The cluster's default if left empty"),
            ("time", "Time limit", "Minutes, or hours:minutes:seconds, or days-hours, such as 12:00:00"),
            ("constraint", "Constraint", "Features of the nodes, such as a100"),
            ("gres", "Generic resources of a node", "Such as gpu:a100:4; else what the processes ask for"),
            ("nodes", "Nodes", "A number, or a range for elastic jobs, such as 2-8; else one for each process"),
            ("reservation", "Reservation", "The name of a reservation"),
            ("requeue", "Runs", "How often a job may go back into the queue and continue; 10 if left empty"),
            ("warning", "Warning", "Seconds before the time limit at which a job saves its state; 120 if left empty"),
            ("setup", "Set-up", "A file that the batch script reads first, such as one that loads modules"),
            ("sbatch", "Further options of sbatch", "Such as --licenses=matlab --mail-type=FAIL"),
            ("conf", "slurm.conf", "Its path, where it is not the machine's own"),
            ("login", "Login node", "Where Slurm's commands run, such as user@login1; this machine if left empty"),
            ("login_python", "Python of the login node", "python3 if left empty"),
            ("known_hosts", "Known hosts", "The file with the login node's key; ~/.ssh/known_hosts if left empty"),
        )
    },
}


def get_provider_info() -> dict[str, Any]:
    """Return the provider's description, as ``airflow/provider_info.schema.json`` wants it."""
    return {
        "package-name": "rallypoint",
        "name": "Rallypoint",
        "description": "Distributed ML jobs as stages: a retry continues the job, and nothing runs twice.",
        "integrations": [
            {
                "integration-name": "Rallypoint",
                "external-doc-url": "https://pypi.org/project/rallypoint/",
                "tags": ["software"],
            }
        ],
        "operators": [{"integration-name": "Rallypoint", "python-modules": ["rallypoint.airflow.operators"]}],
        "hooks": [
            {
                "integration-name": "Rallypoint",
                "python-modules": [
                    "rallypoint.airflow.hooks",
                    "rallypoint.airflow.ray_hook",
                    "rallypoint.airflow.slurm_hook",
                ],
            }
        ],
        "triggers": [{"integration-name": "Rallypoint", "python-modules": ["rallypoint.airflow.triggers"]}],
        "task-decorators": [
            {"name": "python_job", "class-name": "rallypoint.airflow.decorators.python_job_task"},
            {"name": "torch", "class-name": "rallypoint.airflow.decorators.torch_task"},
            {"name": "dask", "class-name": "rallypoint.airflow.decorators.dask_task"},
            {"name": "spark", "class-name": "rallypoint.airflow.decorators.spark_task"},
            {"name": "tensorflow", "class-name": "rallypoint.airflow.decorators.tensorflow_task"},
            {"name": "ray", "class-name": "rallypoint.airflow.decorators.ray_task"},
            {"name": "ray_train", "class-name": "rallypoint.airflow.decorators.ray_train_task"},
            {"name": "ray_tune", "class-name": "rallypoint.airflow.decorators.ray_tune_task"},
        ],
        "extra-links": [
            "rallypoint.airflow.links.StageLink",
            "rallypoint.airflow.links.DaskDashboardLink",
            "rallypoint.airflow.links.RayDashboardLink",
            "rallypoint.airflow.links.RayServeLink",
            "rallypoint.airflow.links.RayJobLink",
            "rallypoint.airflow.links.SparkUILink",
            "rallypoint.airflow.links.SparkHistoryLink",
            "rallypoint.airflow.links.TensorBoardLink",
        ],
        "plugins": [{"name": "rallypoint", "plugin-class": "rallypoint.airflow.plugin.RallypointPlugin"}],
        "connection-types": [
            {
                "connection-type": "rallypoint",
                "hook-class-name": "rallypoint.airflow.hooks.RallypointHook",
                "hook-name": "Rallypoint",
                "ui-field-behaviour": {
                    "hidden-fields": ["host", "schema", "login", "password", "port"],
                    "relabeling": {},
                    "placeholders": {},
                },
                "conn-fields": {
                    "store": {
                        "label": "Store",
                        "description": "A folder or bucket that workers, triggerers and jobs all reach, such as "
                        "file:///mnt/rallypoint or s3://bucket/rallypoint",
                        "schema": _TEXT,
                    },
                    "aws_conn_id": {
                        "label": "AWS connection of the store",
                        "description": "For an s3:// store; left empty, boto3's own chain finds the credentials",
                        "schema": _TEXT,
                    },
                    "launcher": {
                        "label": "Launcher",
                        "description": "Where jobs run, such as local:///mnt/rallypoint/runs",
                        "schema": _TEXT,
                    },
                    "launcher_conn_id": {
                        "label": "Connection of the launcher",
                        "description": "Instead of a launcher: the id of a connection that says where jobs run, such "
                        "as one of the type Ray",
                        "schema": _TEXT,
                    },
                    "python": {
                        "label": "Python of the jobs",
                        "description": "An interpreter on the launcher's hosts; Rallypoint need not be installed there",
                        "schema": _TEXT,
                    },
                },
            },
            _RAY,
            _SLURM,
        ],
        "config": {
            "rallypoint": {
                "description": "Where Rallypoint keeps its record and runs jobs, for tasks without a connection.",
                "options": {
                    "store": {
                        "description": "A folder or bucket that workers, triggerers and jobs all reach.",
                        "version_added": "0.1.0",
                        "type": "string",
                        "example": "s3://bucket/rallypoint",
                        "default": "",
                    },
                    "launcher": {
                        "description": "Where jobs run.",
                        "version_added": "0.1.0",
                        "type": "string",
                        "example": "local:///var/lib/rallypoint/runs",
                        "default": "",
                    },
                    "tensorboard_url": {
                        "description": "A TensorBoard that somebody runs on the store (its --logdir), for the links of "
                        "tasks; left empty, they lead to the stage's page.",
                        "version_added": "0.1.0",
                        "type": "string",
                        "example": "https://tensorboard.example.com",
                        "default": "",
                    },
                },
            }
        },
    }
