"""Settings of Hadoop's S3A file system, through which Spark reads and writes ``s3a://`` paths.

Pure data: what may be shown, and what may not. Hadoop's own connector (the package ``org.apache.hadoop:hadoop-aws``) is
not part of Spark's distributions, so nothing of this has been run against a real S3 by Rallypoint's tests: they hold
that each property is the one that the documentation of Hadoop 3.5 names, and that no secret is shown.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rallypoint.errors import InvalidJobError
from rallypoint.spec.gang import Secret

PROVIDERS = {
    "keys": "org.apache.hadoop.fs.s3a.SimpleAWSCredentialsProvider",
    "session": "org.apache.hadoop.fs.s3a.TemporaryAWSCredentialsProvider",
    "role": "org.apache.hadoop.fs.s3a.auth.AssumedRoleCredentialProvider",
    "anonymous": "org.apache.hadoop.fs.s3a.AnonymousAWSCredentialsProvider",
    "environment": "software.amazon.awssdk.auth.credentials.EnvironmentVariableCredentialsProvider",
    "web_identity": "software.amazon.awssdk.auth.credentials.WebIdentityTokenFileCredentialsProvider",
    "instance": "org.apache.hadoop.fs.s3a.auth.IAMInstanceCredentialsProvider",
    "profile": "org.apache.hadoop.fs.s3a.auth.ProfileAWSCredentialsProvider",
}
"""Hadoop's credential providers by a short name."""

VARIABLES = {"access_key": "S3A_ACCESS_KEY", "secret_key": "S3A_SECRET_KEY", "session_token": "S3A_SESSION_TOKEN"}
_PROPERTIES = {"access_key": "access.key", "secret_key": "secret.key", "session_token": "session.token"}
_FROM_CHAIN = ("keys", "session", "role")  # which follow from what is given
# Where a role is assumed without keys of its own: what the hosts have, in the order of Hadoop's own default.
_HOSTS_OWN = ("environment", "web_identity", "instance")
_BUCKET = re.compile(r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$")
_ROLE = re.compile(r"^arn:[\w-]+:iam::\d{12}:role/\S+$")
_DURATION = re.compile(r"^\d+(s|m|h)$")
_PREFIX = "spark.hadoop.fs.s3a."
_CONNECTOR = re.compile(r"hadoop-(aws|cloud)")


@dataclass(frozen=True, kw_only=True)
class S3A:
    """How Spark reaches S3, or a store that speaks its protocol.

    Without keys and without `credentials`, Hadoop's own chain finds them where Spark runs: environment, then the
    instance's or container's role. The secrets are an environment variable of the job each, from which its driver
    writes Spark's properties in a file that only its user can read.

    Args:
        endpoint: The address of the service, such as ``"https://minio.example.com:9000"``; Amazon's own by default.
        region: Such as ``"eu-central-1"``.
        path_style: Whether buckets stand in the path instead of the host name; needed by most stores but Amazon's.
        ssl: Whether to use TLS where the endpoint says no scheme.
        access_key: An access key, with its `secret_key`.
        secret_key: The secret of the access key.
        session_token: The token of temporary keys.
        credentials: How to find credentials where there are no keys: a name in `PROVIDERS`, or a provider's class.
        role_arn: A role to assume, with the keys or with what the hosts have.
        role_session: The name of the session of that role.
        external_id: What the role's account asks for.
        role_duration: How long a session of it lasts, such as ``"30m"``.
        sts_endpoint: Where roles are assumed, such as ``"sts.eu-central-1.amazonaws.com"``; needs `sts_region`.
        sts_region: The region of it.
        bucket: The one bucket that all this is for; every bucket by default.
        options: Further settings by their names after ``fs.s3a.``, such as ``{"connection.maximum": 200}``.

    Raises:
        InvalidJobError: A value is wrong.
    """

    endpoint: str | None = None
    region: str | None = None
    path_style: bool | None = None
    ssl: bool | None = None
    access_key: str | None = field(default=None, repr=False)
    secret_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)
    credentials: str | None = None
    role_arn: str | None = None
    role_session: str | None = None
    external_id: str | None = None
    role_duration: str | None = None
    sts_endpoint: str | None = None
    sts_region: str | None = None
    bucket: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if bool(self.access_key) != bool(self.secret_key):
            there, missing = ("access_key", "secret_key") if self.access_key else ("secret_key", "access_key")
            raise self._wrong(missing, None, f"it beside {there}=, which is given")
        if self.session_token and not self.access_key:
            raise self._wrong("access_key", None, "the temporary key that session_token= belongs to")
        if self.credentials and self.access_key:
            raise self._wrong("credentials", self.credentials, "nothing beside access_key=, which are credentials")
        known = self.credentials is None or self.credentials in PROVIDERS or "." in self.credentials
        if not known or self.credentials in _FROM_CHAIN:
            names = ", ".join(repr(name) for name in PROVIDERS if name not in _FROM_CHAIN)
            raise self._wrong("credentials", self.credentials, f"{names}, a provider's class, or None")
        self._check_endpoint()
        self._check_role()
        if self.bucket is not None and not _BUCKET.match(self.bucket):
            raise self._wrong("bucket", self.bucket, "a bucket's name, without s3a:// and without a path")
        for name in self.options:
            if name.startswith(("fs.", "spark.")) or re.search(r"(access|secret)\.key$|session\.token$", name):
                raise self._wrong("options", name, 'names after "fs.s3a." that are no key or token')

    def _check_endpoint(self) -> None:
        if self.endpoint is None:
            return
        parts = urlsplit(self.endpoint if "://" in self.endpoint else f"//{self.endpoint}")
        if not parts.hostname or parts.username or parts.scheme not in {"", "http", "https"} or " " in self.endpoint:
            # The address is not shown: somebody may have written a password into it.
            expected = 'host, host:port, or a URL such as "https://minio.example.com:9000", without user and password'
            raise self._wrong("endpoint", "an address of another form", expected)

    def _check_role(self) -> None:
        if self.role_arn is None:
            for name in ("role_session", "external_id", "role_duration", "sts_endpoint"):
                if getattr(self, name) is not None:
                    raise self._wrong(name, getattr(self, name), "nothing without role_arn=")
            return
        if not _ROLE.match(self.role_arn):
            raise self._wrong("role_arn", self.role_arn, '"arn:aws:iam::<12 digits>:role/<name>"')
        if self.role_duration is not None and not _DURATION.match(self.role_duration):
            raise self._wrong("role_duration", self.role_duration, 'a time such as "30m", "900s" or "1h"')
        if self.sts_endpoint is not None and self.sts_region is None:
            raise self._wrong("sts_region", None, "the region of sts_endpoint=")
        if self.session_token:
            raise self._wrong("session_token", "a token", "no token beside role_arn=: a role needs lasting keys")

    def conf(self) -> dict[str, str]:
        """Return the Spark properties that anybody may see: for a job's ``conf=``."""
        given: dict[str, Any] = {
            "endpoint": self.endpoint,
            "endpoint.region": self.region,
            "path.style.access": self.path_style,
            "connection.ssl.enabled": self.ssl,
            **self._providers(),
            **self.options,
        }
        # Endpoint, region and credentials may differ by bucket; a bucket's own settings come before those of all.
        return {self._property(name): _text(value) for name, value in given.items() if value is not None}

    def secret_conf(self) -> dict[str, str]:
        """Return, by Spark property, the variable that holds its secret: for a job's ``secret_conf=``."""
        return {self._property(_PROPERTIES[name]): self._variable(name) for name in _PROPERTIES if getattr(self, name)}

    def secrets(self) -> dict[str, Secret]:
        """Return the values of these variables: for a job's ``secrets=``."""
        return {self._variable(name): Secret(getattr(self, name)) for name in _PROPERTIES if getattr(self, name)}

    def _providers(self) -> dict[str, Any]:
        own = "session" if self.session_token else "keys" if self.access_key else None
        base = PROVIDERS[own] if own else PROVIDERS.get(self.credentials or "", self.credentials)
        if self.role_arn is None:
            return {"aws.credentials.provider": base}
        return {
            "aws.credentials.provider": PROVIDERS["role"],
            "assumed.role.arn": self.role_arn,
            "assumed.role.session.name": self.role_session,
            "assumed.role.external.id": self.external_id,
            "assumed.role.session.duration": self.role_duration,
            "assumed.role.sts.endpoint": self.sts_endpoint,
            "assumed.role.sts.endpoint.region": self.sts_region or self.region,
            "assumed.role.credentials.provider": base or ",".join(PROVIDERS[name] for name in _HOSTS_OWN),
        }

    def _property(self, name: str) -> str:
        return f"{_PREFIX}bucket.{self.bucket}.{name}" if self.bucket else f"{_PREFIX}{name}"

    def _variable(self, name: str) -> str:
        # One for each bucket: a job may have several.
        return f"{VARIABLES[name]}_{re.sub(r'[^A-Z0-9]', '_', self.bucket.upper())}" if self.bucket else VARIABLES[name]

    def _wrong(self, name: str, got: object, expected: str) -> InvalidJobError:
        return InvalidJobError("S3A", name, got=got, expected=expected)


def s3a_of_aws(login: str | None, password: str | None, extra: Mapping[str, Any], *, bucket: str | None = None) -> S3A:
    """Return the settings that an ``aws`` connection stands for, in the fields that Airflow documents for it.

    A connection without keys, or none at all, leaves the credentials to the hosts that Spark runs on. What boto3 would
    find on *this* host is not copied: static keys would travel, and temporary ones would end before the job.

    Args:
        login: The access key.
        password: Its secret.
        extra: The connection's JSON: ``region_name``, ``endpoint_url`` (also in ``service_config`` of ``s3``),
            ``aws_session_token``, ``profile_name``, ``role_arn``, ``assume_role_kwargs`` with ``RoleSessionName``,
            ``ExternalId`` and ``DurationSeconds``, and ``config_kwargs`` with botocore's ``s3.addressing_style`` and
            ``signature_version`` ``unsigned``.
        bucket: The one bucket that they are for.

    Raises:
        InvalidJobError: A field is wrong, or means what S3A has no setting for.
    """
    service = _mapping(_mapping(extra, "service_config"), "s3")
    config = _mapping(extra, "config_kwargs")
    role = _mapping(extra, "assume_role_kwargs")
    arn = extra.get("role_arn") or None
    method = extra.get("assume_role_method") or "assume_role"
    if arn and method != "assume_role":
        expected = "'assume_role'; for web identity, leave role_arn out: the hosts' own token names the role"
        raise InvalidJobError("S3A", "assume_role_method", got=method, expected=expected)
    endpoint = service.get("endpoint_url") or extra.get("endpoint_url") or extra.get("host") or None
    style = _mapping(config, "s3").get("addressing_style")
    unsigned = config.get("signature_version") == "unsigned"
    duration = role.get("DurationSeconds")
    profile = extra.get("profile_name") or None
    named = "profile" if profile and not login else "anonymous" if unsigned else None
    return S3A(
        endpoint=endpoint,
        region=extra.get("region_name") or None,
        # Without a style of its own, a store that is not Amazon's is taken to have no host name for each bucket.
        path_style=style == "path" if style in {"path", "virtual"} else True if _foreign(endpoint) else None,
        access_key=login or None,
        secret_key=password or None,
        session_token=extra.get("aws_session_token") or None,
        credentials=None if login else named,
        role_arn=arn,
        role_session=(role.get("RoleSessionName") or "rallypoint") if arn else None,
        external_id=role.get("ExternalId") if arn else None,
        role_duration=f"{int(duration)}s" if arn and duration else None,
        bucket=bucket,
        options={"auth.profile.name": profile} if named == "profile" else {},
    )


def s3a_of_aws_credentials(block: Any, *, bucket: str | None = None) -> S3A:
    """Return the settings that an ``AwsCredentials`` (or ``MinIOCredentials``) block of prefect-aws stands for.

    Args:
        block: The block, as it was loaded. Only its documented fields are read: keys, session token, profile, region,
            and in ``aws_client_parameters`` the endpoint and botocore's config.
        bucket: The one bucket that they are for.

    Raises:
        InvalidJobError: A field is wrong.
    """

    def read(*names: str) -> Any:
        found: Any = next((value for name in names if (value := getattr(block, name, None))), "") or None
        return found.get_secret_value() if hasattr(found, "get_secret_value") else found

    client = getattr(block, "aws_client_parameters", None)
    extra = {
        "aws_session_token": read("aws_session_token"),
        "profile_name": read("profile_name"),
        "region_name": read("region_name"),
        "endpoint_url": getattr(client, "endpoint_url", None),
        "config_kwargs": getattr(client, "config", None),
    }
    login = read("aws_access_key_id", "minio_root_user")
    return s3a_of_aws(login, read("aws_secret_access_key", "minio_root_password"), extra, bucket=bucket)


# Before Spark starts ----------------------------------------------------------------------------------------------


class S3AMissingError(RuntimeError):
    """The job reads ``s3a://`` paths, and Hadoop's connector for them is not there."""


def require_s3a(conf: Mapping[str, str], spark_home: str, *, also: Iterable[str] = ()) -> None:
    """Make sure that Hadoop's S3A connector will be on Spark's class path, if the job is to use it.

    Args:
        conf: Spark's properties: whether one is of S3A, and what jars and packages there are.
        spark_home: The Spark distribution on this host.
        also: The names of further properties, whose values are secret.

    Raises:
        S3AMissingError: It will not.
    """
    if not any(name.startswith(_PREFIX) for name in (*conf, *also)) or _has_connector(conf, spark_home):
        return
    raise S3AMissingError(missing_connector(spark_home))


def missing_connector(spark_home: str) -> str:
    """Return what to say where the connector is missing: which package it is, and how to add it."""
    package = f"org.apache.hadoop:hadoop-aws:{hadoop_version(spark_home) or '<the version of Hadoop in Spark>'}"
    return (
        f"got s3a:// settings, and the class org.apache.hadoop.fs.s3a.S3AFileSystem not found; expected {package}: add "
        f'packages=["{package}"] to the job, which fetches it from Maven, or jars=["/path/hadoop-aws-….jar", '
        '"/path/bundle-….jar"] with its AWS SDK, or put both into the folder "jars" of the Spark distribution'
    )


def hadoop_version(spark_home: str) -> str | None:
    """Return the version of Hadoop that a Spark distribution holds: the connector must be of the same."""
    names = sorted(path.name for path in (Path(spark_home) / "jars").glob("hadoop-client-api-*.jar"))
    match = re.match(r"hadoop-client-api-(\d[\w.-]*)\.jar$", names[-1]) if names else None
    return match[1] if match else None


def _has_connector(conf: Mapping[str, str], spark_home: str) -> bool:
    named = ",".join(conf.get(key, "") for key in ("spark.jars.packages", "spark.jars"))
    if _CONNECTOR.search(named):
        return True
    # What a class path of the user's own holds is only known where it lies.
    if any(conf.get(f"spark.{where}.extraClassPath") for where in ("driver", "executor")):
        return True
    # As is what a build of Spark without Hadoop takes from the Hadoop beside it.
    if os.environ.get("SPARK_DIST_CLASSPATH") or any((Path(spark_home) / "jars").glob("hadoop-aws-*.jar")):
        return True
    defaults = Path(os.environ.get("SPARK_CONF_DIR") or Path(spark_home) / "conf") / "spark-defaults.conf"
    return defaults.is_file() and bool(_CONNECTOR.search(defaults.read_text(encoding="utf-8", errors="replace")))


def _foreign(endpoint: str | None) -> bool:
    return bool(endpoint) and "amazonaws.com" not in str(endpoint)


def _mapping(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = values.get(name) or {}
    if not isinstance(found, Mapping):
        raise InvalidJobError("S3A", name, got=type(found).__name__, expected="a JSON object in the connection's extra")
    return found


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
