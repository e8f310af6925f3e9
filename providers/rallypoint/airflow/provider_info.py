"""What this package tells Airflow about itself."""

from __future__ import annotations

from typing import Any

_TEXT = {"type": ["string", "null"]}


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
        "hooks": [{"integration-name": "Rallypoint", "python-modules": ["rallypoint.airflow.hooks"]}],
        "triggers": [{"integration-name": "Rallypoint", "python-modules": ["rallypoint.airflow.triggers"]}],
        "task-decorators": [
            {"name": "torch", "class-name": "rallypoint.airflow.decorators.torch_task"},
            {"name": "dask", "class-name": "rallypoint.airflow.decorators.dask_task"},
        ],
        "extra-links": ["rallypoint.airflow.links.StageLink", "rallypoint.airflow.links.DaskDashboardLink"],
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
                    "python": {
                        "label": "Python of the jobs",
                        "description": "An interpreter on the launcher's hosts; Rallypoint need not be installed there",
                        "schema": _TEXT,
                    },
                },
            }
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
                },
            }
        },
    }
