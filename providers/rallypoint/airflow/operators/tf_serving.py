"""TensorFlow Serving as a task: deploy a SavedModel as the next version of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from rallypoint.airflow.operators.base import StageOperator
from rallypoint.airflow.place import resolve_secrets
from rallypoint.airflow.rendering import is_rendered_later, rendered_object
from rallypoint.frameworks.tensorflow.serving.job import TFServingDeploy, TFServingProbe, TFServingSignature

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from airflow.sdk.definitions.xcom_arg import XComArg

_LATER = {"model": "/later", "name": "later", "base_path": "/later", "rest_url": "http://checked-later:8501"}


class TFServingDeployOperator(StageOperator):
    """Deploys a SavedModel to TensorFlow Serving: the new version serves and answers, or the one before does.

    The parameters are those of `rallypoint.TFServingDeploy`; everything else is `StageOperator`'s, of which ``script``,
    ``module`` and ``python_callable`` are not taken. Headers for a proxy before the server are given by reference, as
    ``secrets={"TF_SERVING_HEADERS": "variable:serving_headers"}``.

    Args:
        model: A SavedModel's folder or a Keras model's file: a path or a URI, such as what a training task returned.
        name: The model's name on the server.
        base_path: The model's base path, a folder or a bucket's URI.
        rest_url: The address of the server's REST API.
        signature: What the model has to take and return.
        probe: A request that the version has to answer.
        labels: Version labels that are to name this version.
        config_file: The server's model config file, for labels.
        keep_versions: How many versions to keep; None keeps all.
        timeout: Seconds until the version has to be available.
        rollback_timeout: Seconds until the previous version has to be available again after a failure.
        keras: The Keras that exports a Keras model: ``"3"`` or ``"legacy"``.
        ca_file: A file of certificate authorities for a server behind ``https://``.
        **kwargs: `StageOperator`'s.

    Returns:
        ``{"name", "version", "path", "url", "labels", "pruned"}``, as XCom.
    """

    job_class = TFServingDeploy

    template_fields: Sequence[str] = ("env", "python", "uses", "job_options", "launcher_conn_id")
    template_fields_renderers: ClassVar[dict[str, str]] = {"env": "json", "job_options": "json"}
    ui_color = "#f4e6d8"

    def __init__(  # noqa: PLR0913 - one keyword per thing that a user may set
        self,
        *,
        model: str | XComArg,
        name: str,
        base_path: str,
        rest_url: str,
        signature: TFServingSignature | Mapping[str, Any] | None = None,
        probe: TFServingProbe | Mapping[str, Any] | None = None,
        labels: Sequence[str] = (),
        config_file: str | None = None,
        keep_versions: int | None = 3,
        timeout: float = 600.0,
        rollback_timeout: float = 300.0,
        keras: str = "3",
        ca_file: str | None = None,
        **kwargs: Any,
    ) -> None:
        options = {
            "model": model, "name": name, "base_path": base_path, "rest_url": rest_url,
            "signature": signature.to_json() if isinstance(signature, TFServingSignature) else signature or {},
            "probe": probe.to_json() if isinstance(probe, TFServingProbe) else probe,
            "labels": labels, "config_file": config_file, "keep_versions": keep_versions, "timeout": timeout,
            "rollback_timeout": rollback_timeout, "keras": keras, "ca_file": ca_file,
        }  # fmt: skip
        super().__init__(module="rallypoint.serving", job_options=options, **kwargs)

    def _check_job(self, options: Mapping[str, Any], env: Mapping[str, str]) -> None:
        known = {name: value for name, value in options.items() if not is_rendered_later(value)}
        TFServingDeploy(
            **{**_LATER, **known},
            secrets=dict.fromkeys(self.secrets, ""),
            stall_timeout=self.stall_timeout,
            env=env,
        )

    def job(self) -> TFServingDeploy:
        """Return the job, from the rendered fields.

        Raises:
            InvalidJobError: A rendered value is wrong.
        """
        return TFServingDeploy(
            **self.job_options,
            secrets=resolve_secrets(self.secrets),
            params=self.job_params,
            env={key: str(value) for key, value in self.env.items()},
            python=self.python,
            resources=self.job_resources,
            stall_timeout=self.stall_timeout,
            failure_rules=self.failure_rules,
            uses=[rendered_object(each) for each in self.uses],
        )
