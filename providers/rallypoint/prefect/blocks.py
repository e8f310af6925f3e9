"""Blocks: a store and a launcher that are configured once, in Prefect.

``prefect block register -m rallypoint.prefect.blocks`` shows them in the UI; ``.save()`` does so too. Nothing heavy is
imported here: servers and workers load this module through the entry point ``prefect.collections``.
"""

from __future__ import annotations

from typing import Any, ClassVar
from urllib.parse import urlsplit

from prefect.blocks.core import Block
from prefect.types import SecretDict  # noqa: TC002 - pydantic reads it
from pydantic import Field, SecretStr, field_validator

from rallypoint.errors import LaunchError, StoreError
from rallypoint.launchers.ssh.address import Address

_DOCS = "https://docs.prefect.io/latest/develop/blocks"


class RallypointStore(Block):
    """Where stages keep their record, checkpoints and artifacts: a folder or bucket that flows and jobs both reach.

    Args:
        uri: ``file:///folder``, ``s3://bucket/prefix``, ``gs://bucket/prefix`` or ``az://container/prefix``.
        options: Settings and credentials of a bucket by obstore's names, such as ``endpoint_url`` or
            ``secret_access_key``.
        credentials: The block of prefect-aws with the credentials of an ``s3://`` store: ``aws-credentials/NAME`` or
            ``minio-credentials/NAME``.
    """

    _block_type_name = "Rallypoint Store"
    _block_type_slug = "rallypoint-store"
    _documentation_url: ClassVar[Any] = _DOCS
    _description = "A folder or bucket where Rallypoint keeps stages' records, checkpoints and artifacts."

    uri: str = Field(description="file:///folder, s3://bucket/prefix, gs://bucket/prefix or az://container/prefix")
    options: SecretDict | None = Field(
        default=None, description="Settings and credentials of a bucket by obstore's names, such as endpoint_url"
    )
    # A reference, not a nested block: prefect-aws is optional, and the type would be another one where it is missing.
    credentials: str | None = Field(
        default=None,
        description="A block of prefect-aws for an s3:// store: aws-credentials/NAME or minio-credentials/NAME",
    )

    @field_validator("uri")
    @classmethod
    def _is_store(cls, value: str) -> str:
        if "://" not in value and not value.startswith("/"):
            msg = f"got {value!r}, expected file:///folder, s3://bucket/prefix, gs://… or az://…"
            raise ValueError(msg)
        return value

    async def store_options(self) -> dict[str, str]:
        """Return what `rallypoint.stages.store.Store.open` takes. It holds secrets.

        Raises:
            StoreError: There is no such credentials block, or it is of a kind that is not known.
        """
        found: dict[str, str] = {}
        if self.credentials:
            try:
                found = credentials_options(await Block.aload(self.credentials))
            except ValueError as error:
                msg = (
                    f"got the credentials {self.credentials!r}, expected the name of a block, aws-credentials/NAME: "
                    f"{(str(error).splitlines() or [''])[0]}"
                )
                raise StoreError(msg) from None
        given = self.options.get_secret_value() if self.options else {}
        return found | {name: str(value) for name, value in given.items()}


class RallypointLauncher(Block):
    """Where stages' jobs run.

    Args:
        uri: The launcher's URI, such as ``local:///var/lib/rallypoint/runs``.
        python: The interpreter that jobs get by default.
    """

    _block_type_name = "Rallypoint Launcher"
    _block_type_slug = "rallypoint-launcher"
    _documentation_url: ClassVar[Any] = _DOCS
    _description = "Where Rallypoint starts the jobs of stages: this machine or a cluster."

    uri: str = Field(description="The launcher's URI, such as local:///var/lib/rallypoint/runs")
    python: str | None = Field(default=None, description="The interpreter that jobs get by default")

    @field_validator("uri")
    @classmethod
    def _is_launcher(cls, value: str) -> str:
        if "://" not in value:
            msg = f"got {value!r}, expected a launcher's URI such as local:///var/lib/rallypoint/runs"
            raise ValueError(msg)
        return value

    def launcher_options(self) -> dict[str, Any]:
        """Return what the launcher takes beside its URI."""
        return {}


class RallypointRayCluster(Block):
    """A Ray cluster as the place where stages' jobs run, by the Jobs API of its dashboard.

    Args:
        url: The dashboard's address, such as ``http://ray-head:8265``.
        token: The token of a Ray with ``RAY_AUTH_MODE=token``, or a proxy's; sent as ``Authorization: Bearer …``.
        headers: Further HTTP headers.
        verify: Whether the certificate is checked against the system's authorities.
        ca_file: A file or folder of authorities to check it against instead.
        python: The nodes' interpreter.
        options: Further options of the launcher, such as ``runtime_env`` and ``entrypoint_num_cpus``.
    """

    _block_type_name = "Rallypoint Ray Cluster"
    _block_type_slug = "rallypoint-ray-cluster"
    _documentation_url: ClassVar[Any] = _DOCS
    _description = "A Ray cluster where Rallypoint starts the jobs of stages, by its Jobs API."

    url: str = Field(description="The dashboard's address, such as http://ray-head:8265")
    token: SecretStr | None = Field(default=None, description="Sent as 'Authorization: Bearer …'")
    headers: SecretDict | None = Field(default=None, description="Further HTTP headers")
    verify: bool = Field(default=True, description="Check the certificate")
    ca_file: str | None = Field(default=None, description="A file or folder of certificate authorities")
    python: str | None = Field(default=None, description="The nodes' interpreter")
    options: dict[str, Any] = Field(default_factory=dict, description="Further options, such as runtime_env")

    @field_validator("url")
    @classmethod
    def _is_dashboard(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in {"http", "https"} or not parts.hostname or "@" in parts.netloc:
            msg = "expected the address of a Ray dashboard, such as http://ray-head:8265; a token is a field of its own"
            raise ValueError(msg)
        return value

    @property
    def uri(self) -> str:
        """The launcher's URI."""
        scheme, _, rest = self.url.rstrip("/").partition("://")
        return f"ray-jobs{'+https' if scheme == 'https' else ''}://{rest}"

    def launcher_options(self) -> dict[str, Any]:
        """Return what the launcher takes beside its URI. It holds secrets."""
        given: dict[str, Any] = {**self.options, "verify": (self.ca_file or True) if self.verify else False}
        if self.token:
            given["token"] = self.token.get_secret_value()
        if self.headers:
            given["headers"] = {name: str(value) for name, value in self.headers.get_secret_value().items()}
        return given


class RallypointSSHHosts(Block):
    """Hosts that are reached by SSH as the place where stages' jobs run.

    Args:
        uri: ``ssh://user@host1,host2?root=/var/lib/rallypoint/runs``, without any secret.
        password: The password.
        private_key: The text of a private key.
        passphrase: Of the private key.
        host_keys: The hosts' keys as the text of a ``known_hosts`` file; ``~/.ssh/known_hosts`` by default.
        options: Further options of the launcher, such as ``hosts`` (more about hosts by their names).
    """

    _block_type_name = "Rallypoint SSH Hosts"
    _block_type_slug = "rallypoint-ssh-hosts"
    _documentation_url: ClassVar[Any] = _DOCS
    _description = "Hosts that are reached by SSH, where Rallypoint starts the jobs of stages."

    uri: str = Field(description="ssh://user@host1,host2?root=/var/lib/rallypoint/runs, without any secret")
    password: SecretStr | None = Field(default=None, description="The password")
    private_key: SecretStr | None = Field(default=None, description="The text of a private key")
    passphrase: SecretStr | None = Field(default=None, description="The passphrase of the private key")
    host_keys: str | None = Field(default=None, description="The hosts' keys as the text of a known_hosts file")
    python: str | None = Field(default=None, description="The hosts' interpreter")
    options: dict[str, Any] = Field(default_factory=dict, description="Further options, such as hosts")

    @field_validator("uri")
    @classmethod
    def _is_hosts(cls, value: str) -> str:
        try:
            return Address.from_uri(value).uri
        except LaunchError as error:
            raise ValueError(str(error)) from None

    def launcher_options(self) -> dict[str, Any]:
        """Return what the launcher takes beside its URI. It holds secrets."""
        secrets = {name: getattr(self, name) for name in ("password", "private_key", "passphrase")}
        given = {name: value.get_secret_value() for name, value in secrets.items() if value is not None}
        return {**self.options, **given, **({"host_keys": self.host_keys} if self.host_keys else {})}


def credentials_options(block: Any) -> dict[str, str]:
    """Return a credentials block of prefect-aws as options of an ``s3://`` store.

    Raises:
        StoreError: It is of another kind, or names a profile.
    """
    names = {
        "access_key_id": ("aws_access_key_id", "minio_root_user"),
        "secret_access_key": ("aws_secret_access_key", "minio_root_password"),
        "session_token": ("aws_session_token",),
        "region": ("region_name",),
    }
    if not any(hasattr(block, field) for field in names["access_key_id"]):
        msg = (
            f"got a {type(block).__name__} block as the store's credentials, expected AwsCredentials or "
            "MinIOCredentials of prefect-aws; give other settings as options"
        )
        raise StoreError(msg)
    if getattr(block, "profile_name", None):
        msg = (
            "got credentials with a profile_name, which the job's host may not know: give keys, or leave the "
            "credentials out and let boto3's chain (AWS_PROFILE, instance role) find them"
        )
        raise StoreError(msg)
    found = {}
    for option, fields in names.items():
        value = next((v for v in (getattr(block, field, None) for field in fields) if v), None)
        if value:
            found[option] = str(value.get_secret_value() if isinstance(value, SecretStr) else value)
    endpoint = getattr(getattr(block, "aws_client_parameters", None), "endpoint_url", None)
    return found | ({"endpoint_url": str(endpoint)} if endpoint else {})
