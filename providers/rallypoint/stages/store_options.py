"""A bucket's settings: which there are, where they come from, and how a job gets the same ones.

A setting goes by the environment variable that obstore reads it from. Users may give it as an option instead, by
obstore's own names.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

from obstore.exceptions import UnknownConfigurationKeyError
from obstore.store import AzureStore, GCSStore, S3Store

from rallypoint.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Mapping

# An endpoint that is gone is reported within a minute, not within obstore's three.
_CONNECT_TIMEOUT: Final = "5s"
_TIMEOUT: Final = "60s"
_MAX_RETRIES: Final = 5
_RETRY_TIMEOUT: Final = timedelta(seconds=60)

_HTTP: Final = "allow_http allow_invalid_certificates connect_timeout proxy_url timeout"


def _variables(prefix: str, options: str) -> dict[str, str]:
    return {option: prefix + option.upper() for option in options.split()}


# Scheme -> option -> variable.
VARIABLES: Final[Mapping[str, Mapping[str, str]]] = {
    "s3": _variables(
        "AWS_",
        "access_key_id checksum_algorithm container_authorization_token_file container_credentials_full_uri "
        "container_credentials_relative_uri disable_bulk_delete disable_tagging endpoint_url imdsv1_fallback "
        "metadata_endpoint region request_payer role_arn role_session_name s3_express secret_access_key "
        "server_side_encryption session_token skip_signature sse_bucket_key_enabled sse_customer_key_base64 "
        f"sse_kms_key_id sts_endpoint unsigned_payload virtual_hosted_style_request web_identity_token_file {_HTTP}",
    ),
    "gs": _variables(
        "GOOGLE_",
        "application_credentials base_url bearer_token service_account service_account_key skip_signature " + _HTTP,
    ),
    "az": _variables(
        "AZURE_STORAGE_",
        "account_key account_name authority_host client_id client_secret endpoint sas_key tenant_id token use_emulator",
    )
    | _variables(
        "AZURE_",
        "credential_type disable_tagging federated_token_file msi_endpoint msi_resource_id object_id skip_signature "
        f"use_azure_cli {_HTTP}",
    ),
}
_PREFIXES: Final = ("aws_", "google_", "azure_storage_", "azure_")
_ALIASES: Final = {
    "access_key": "account_key",
    "default_region": "region",
    "endpoint": "endpoint_url",
    "region_name": "region",
    "role": "role_arn",
    "sas_token": "sas_key",
    "service_account_path": "service_account",
    "token": "session_token",
    "virtual_hosted_style": "virtual_hosted_style_request",
}
# Where an endpoint may come from besides the options, strongest first.
_S3_ENDPOINTS: Final = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
# What boto3 reads and obstore does not: a job with boto3 finds credentials that are renewed by them.
_BOTO3: Final = ("AWS_CONFIG_FILE", "AWS_DEFAULT_REGION", "AWS_PROFILE", "AWS_SHARED_CREDENTIALS_FILE")


@dataclass(frozen=True)
class Bucket:
    """A bucket and the settings that open it.

    Args:
        scheme: ``s3``, ``gs`` or ``az``.
        name: The bucket's, or container's, name.
        prefix: The folder in it, without slashes around it; the empty string for all of it.
        settings: Variable to value, of the options that were given. They hold secrets.
    """

    scheme: str
    name: str
    prefix: str
    settings: Mapping[str, str] = field(repr=False)

    def connect(self) -> AzureStore | GCSStore | S3Store:
        """Return obstore's store; looking for credentials may block.

        Raises:
            BaseError: A setting's value is wrong.
            ValueError: There are no credentials.
        """
        known = VARIABLES[self.scheme]
        config = {known["connect_timeout"]: _CONNECT_TIMEOUT, known["timeout"]: _TIMEOUT, **self.settings}
        common: dict[str, Any] = {
            "prefix": self.prefix or None,
            "config": config,
            "retry_config": {"max_retries": _MAX_RETRIES, "retry_timeout": _RETRY_TIMEOUT},
        }
        if self.scheme == "gs":
            return GCSStore(self.name, **common)
        if self.scheme == "az":
            return AzureStore(self.name, **common)
        if self._plain_http:
            config["AWS_ALLOW_HTTP"] = "true"
        if "AWS_ACCESS_KEY_ID" in config:
            # As configuration they would be joined by a session token of the environment, which is another identity's.
            keys = {
                "access_key_id": config.pop("AWS_ACCESS_KEY_ID"),
                "secret_access_key": config.pop("AWS_SECRET_ACCESS_KEY"),
                "token": config.pop("AWS_SESSION_TOKEN", None),
                "expires_at": None,
            }
            common["credential_provider"] = lambda: keys
        else:
            common["credential_provider"] = self._boto3
        if "AWS_ENDPOINT_URL" in config and "AWS_ENDPOINT_URL_S3" in os.environ:
            # Else the variable would win over the option. An obstore that has no such setting does not read it either.
            with suppress(UnknownConfigurationKeyError):
                own = {**config, "AWS_ENDPOINT_URL_S3": config["AWS_ENDPOINT_URL"]}
                return S3Store(self.name, **common | {"config": own})
        return S3Store(self.name, **common)

    def job_env(self) -> dict[str, str]:
        """Return the variables with which a job opens the same bucket. They hold secrets.

        Raises:
            ValueError: There are no credentials.
        """
        names = {*VARIABLES[self.scheme].values()}
        if self.scheme == "s3":
            names |= {*_S3_ENDPOINTS, *_BOTO3}
        if "AWS_ENDPOINT_URL" in self.settings:
            names -= {*_S3_ENDPOINTS}
        if "AWS_ACCESS_KEY_ID" in self.settings:
            names.remove("AWS_SESSION_TOKEN")
        env = {name: value for name, value in os.environ.items() if name in names} | dict(self.settings)
        if self.scheme == "s3":
            env |= self._found_keys()
            if region := env.get("AWS_REGION") or env.get("AWS_DEFAULT_REGION") or self._found_region():
                env |= {"AWS_REGION": region, "AWS_DEFAULT_REGION": region}  # obstore's name and boto3's
            if self._plain_http:
                env["AWS_ALLOW_HTTP"] = "true"
        return env

    @property
    def _plain_http(self) -> bool:
        found = [self.settings.get("AWS_ENDPOINT_URL"), *(os.environ.get(name) for name in _S3_ENDPOINTS)]
        return next((endpoint for endpoint in found if endpoint), "").startswith("http://")

    @cached_property
    def _boto3(self) -> Any:
        """What boto3's chain found; None where obstore looks for credentials itself."""
        anonymous = (self.settings.get("AWS_SKIP_SIGNATURE") or os.environ.get("AWS_SKIP_SIGNATURE", "")).lower()
        given = {"AWS_ACCESS_KEY_ID", "AWS_ROLE_ARN", "AWS_WEB_IDENTITY_TOKEN_FILE"} & self.settings.keys()
        if given or anonymous in {"true", "1"} or find_spec("boto3") is None:
            return None
        from obstore.auth.boto3 import Boto3CredentialProvider  # noqa: PLC0415 - boto3 is slow to import and optional

        return Boto3CredentialProvider()

    def _found_keys(self) -> dict[str, str]:
        """Return the keys that boto3 found; none where they are renewed, and would expire within the job."""
        if self._boto3 is None or hasattr(self._boto3.credentials, "refresh_needed"):
            return {}
        keys = self._boto3.credentials.get_frozen_credentials()
        found = {"AWS_ACCESS_KEY_ID": keys.access_key, "AWS_SECRET_ACCESS_KEY": keys.secret_key}
        return found | ({"AWS_SESSION_TOKEN": keys.token} if keys.token else {})

    def _found_region(self) -> str | None:
        return self._boto3.config.get("region") if self._boto3 else None


def checked_options(scheme: str, options: Mapping[str, str]) -> dict[str, str]:
    """Return options as settings.

    Raises:
        StoreError: One of them is not an option of the scheme, or no text, or half of a key.
    """
    known, checked = VARIABLES[scheme], {}
    for given, value in options.items():
        name = given.lower()
        name = next((name.removeprefix(prefix) for prefix in _PREFIXES if name.startswith(prefix)), name)
        variable = known.get(name) or known.get(_ALIASES.get(name, ""))
        if variable is None:
            raise StoreError(
                f"got the option {given!r} for an {scheme}:// store, expected {', '.join(sorted(known))}; "
                "correct its name or leave it out"
            )
        if not isinstance(value, str):  # JSON of a connection holds booleans; the value itself may be a secret
            raise StoreError(
                f"got {type(value).__name__} for the option {given!r}, expected text; write it as 'true' or '30s'"
            )
        checked[variable] = value
    if ("AWS_ACCESS_KEY_ID" in checked) != ("AWS_SECRET_ACCESS_KEY" in checked):
        raise StoreError(
            "got one of the options access_key_id and secret_access_key, expected both or neither; "
            "give the other one, or leave both out to use the environment's credentials"
        )
    return checked
