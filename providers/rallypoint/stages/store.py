"""The store: a folder or a bucket that the orchestrator and the job both reach.

`Store` is the orchestrator's door to it. Everything is asynchronous, because ledger, event reader and engine run inside
the event loop of Airflow's triggerer; `obstore <https://developmentseed.org/obstore/>`_ does the I/O on threads of its
own. The job's side is `rallypoint.worker.storage`, which needs no package for a folder.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import threading
import uuid
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar
from urllib.parse import quote, unquote, urlsplit

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    GenericError,
    PermissionDeniedError,
    UnauthenticatedError,
    UnknownConfigurationKeyError,
)
from obstore.store import AzureStore, GCSStore, LocalStore, S3Store

from rallypoint.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

__all__ = ["Store"]

T = TypeVar("T")
_Backend: TypeAlias = AzureStore | GCSStore | LocalStore | S3Store
# Within the class, `list` is its method.
_Names: TypeAlias = list[str]
_Entries: TypeAlias = list[tuple[str, int]]

_EXPECTED: Final = (
    "file:///folder (or an absolute path), s3://bucket/prefix, gs://bucket/prefix or az://container/prefix"
)
_PROBE: Final = ".rallypoint-probe"
# Names an object's creator: see `Store.create`. No separators: stores disagree on which ones a metadata key may hold.
_CREATOR: Final = "rallypointcreator"
# An endpoint that is gone is reported within a minute, not within obstore's three.
_CLIENT: Final = {"connect_timeout": "5s", "timeout": "60s"}
_MAX_RETRIES: Final = 5
_RETRY_TIMEOUT: Final = timedelta(seconds=60)
_MAX_REASON: Final = 300
_SHORTEST_SECRET: Final = 4  # a shorter one is a placeholder, and would be found in every other word
_TRIES: Final = 3

_ABSENT = re.compile(r"<Code>(NoSuchKey|BlobNotFound)</Code>")
_NO_BUCKET = re.compile(r"<Code>(NoSuchBucket|ContainerNotFound)</Code>")
_PAST_THE_END = re.compile(r"Requested range was invalid|status code: 416|<Code>InvalidRange</Code>")
_REFUSED = re.compile(r"status code: 40[13]\b")
_CODE = re.compile(r"<Code>(\w+)</Code>")
_URL = re.compile(r"(https?://)(?:[^/\s@]*@)?([^\s?]*)(?:\?\S*)?")
_KEY_ID = re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{12,}\b")


@dataclass(frozen=True)
class _Scheme:
    """What one kind of bucket takes.

    Args:
        name: What its users call it.
        options: Option to the environment variable that obstore, and so a job, reads the same setting from.
        aliases: Other names of options.
        secrets: The options that must appear nowhere.
    """

    name: str
    options: Mapping[str, str]
    aliases: Mapping[str, str]
    secrets: frozenset[str]


_HTTP = "allow_http allow_invalid_certificates connect_timeout proxy_url timeout"


def _variables(prefix: str, options: str, **renamed: str) -> dict[str, str]:
    return {option: prefix + option.upper() for option in f"{options} {_HTTP}".split()} | renamed


_SCHEMES: Final = {
    "s3": _Scheme(
        "Amazon S3",
        _variables(
            "AWS_",
            "access_key_id checksum_algorithm container_authorization_token_file container_credentials_full_uri "
            "container_credentials_relative_uri disable_bulk_delete disable_tagging imdsv1_fallback metadata_endpoint "
            "region request_payer role_arn role_session_name s3_express secret_access_key server_side_encryption "
            "session_token skip_signature sse_bucket_key_enabled sse_customer_key_base64 sse_kms_key_id sts_endpoint "
            "unsigned_payload virtual_hosted_style_request web_identity_token_file",
            endpoint="AWS_ENDPOINT_URL",
        ),
        aliases={
            "default_region": "region",
            "endpoint_url": "endpoint",
            "region_name": "region",
            "role": "role_arn",
            "token": "session_token",
            "virtual_hosted_style": "virtual_hosted_style_request",
        },
        secrets=frozenset({"access_key_id", "secret_access_key", "session_token", "sse_customer_key_base64"}),
    ),
    "gs": _Scheme(
        "Google Cloud Storage",
        _variables(
            "GOOGLE_",
            "application_credentials base_url bearer_token service_account service_account_key skip_signature",
        ),
        aliases={"service_account_path": "service_account"},
        secrets=frozenset({"bearer_token", "service_account_key"}),
    ),
    "az": _Scheme(
        "Azure Blob Storage",
        _variables(
            "AZURE_STORAGE_",
            "account_key account_name authority_host client_id client_secret endpoint sas_key tenant_id token "
            "use_emulator",
        )
        | _variables(
            "AZURE_",
            "credential_type disable_tagging federated_token_file msi_endpoint msi_resource_id object_id "
            "skip_signature use_azure_cli",
        ),
        aliases={"access_key": "account_key", "sas_token": "sas_key"},
        secrets=frozenset({"account_key", "client_secret", "sas_key", "token"}),
    ),
}
# Where an endpoint may come from besides the options, strongest first.
_S3_ENDPOINTS: Final = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
# What boto3 reads and obstore does not: a job with boto3 finds credentials that are renewed by them.
_BOTO3_VARIABLES: Final = ("AWS_CONFIG_FILE", "AWS_PROFILE", "AWS_SHARED_CREDENTIALS_FILE")

_first_user: int | None = None


class Store:
    """A folder or a bucket prefix, read and written without blocking an event loop.

    One store may be used from several event loops, one after the other, and from several threads. Paths are relative,
    with ``/`` between their parts; they mean the same in every kind of store.

    Attributes:
        uri: The store's URI without a slash at its end.
        local_path: The folder of a ``file://`` store, None for a bucket.
    """

    uri: str
    local_path: Path | None

    def __init__(self, uri: str, *, local_path: Path | None, options: Mapping[str, str]) -> None:
        self.uri = uri
        self.local_path = local_path
        self._options = dict(options)
        self._scheme = uri.partition("://")[0]
        self._bucket, _, self._prefix = uri.partition("://")[2].partition("/")
        self._lock = threading.Lock()
        self._backend: _Backend | None = None
        self._boto3: Any = None
        self._seen = False

    def __repr__(self) -> str:
        return f"Store({self.uri!r})"

    @classmethod
    def open(cls, uri: str | os.PathLike[str], *, options: Mapping[str, str] | None = None) -> Store:
        """Open a store; nothing is read, written or connected to before the first operation.

        Args:
            uri: ``file:///folder`` or an absolute path, ``s3://bucket/prefix``, ``gs://bucket/prefix`` or
                ``az://container/prefix``.
            options: Settings and credentials of a bucket by obstore's names, with or without their ``aws_``,
                ``google_`` or ``azure_``, such as ``endpoint_url``. What is not given comes from the environment;
                credentials for S3 come from boto3's chain where boto3 is installed.

        Raises:
            StoreError: The URI or an option is not one of these.
        """
        text = os.fspath(uri)
        scheme, separator, rest = text.partition("://")
        if not separator or scheme == "file":
            return cls._open_folder(text, unquote(urlsplit(text).path) if separator else text, options or {})
        if scheme not in _SCHEMES:
            raise StoreError(f"got the store {_without_secrets(text)!r}, expected {_EXPECTED}; change its scheme")
        if "@" in rest.partition("/")[0] or "?" in rest:
            # The URI goes to logs, the ledger and rendered templates.
            raise StoreError(
                f"got a {scheme}:// store with a user or a query in its URI, expected {_EXPECTED}; "
                "give credentials and settings as options or in the environment"
            )
        bucket, _, prefix = rest.partition("/")
        prefix = prefix.strip("/")
        if not bucket or (prefix and _fault(prefix)):
            raise StoreError(
                f"got the store {text!r}, expected {_EXPECTED}; "
                + (f"its prefix {_fault(prefix)}" if bucket else "name a bucket")
            )
        uri = f"{scheme}://{bucket}/{prefix}" if prefix else f"{scheme}://{bucket}"
        return cls(uri, local_path=None, options=_checked_options(scheme, options or {}))

    @classmethod
    def _open_folder(cls, given: str, path: str, options: Mapping[str, str]) -> Store:
        if given.startswith("file://") and urlsplit(given).netloc not in {"", "localhost"}:
            raise StoreError(f"got the store {given!r}, expected file:///folder; write three slashes and a full path")
        if not path.startswith("/"):
            raise StoreError(
                f"got the store {given!r}, expected {_EXPECTED}; "
                "give the full path: the orchestrator's processes have different working directories"
            )
        if options:
            raise StoreError(
                f"got the options {', '.join(sorted(options))} for {given!r}, expected none: a folder has no options"
            )
        folder = Path(os.path.normpath("/" + path.lstrip("/")))
        return cls(f"file://{_quoted(str(folder))}".rstrip("/"), local_path=folder, options={})

    def child_uri(self, path: str) -> str:
        """Return the URI of what lies at ``path``."""
        path = _checked(path)
        return f"{self.uri}/{_quoted(path) if self.local_path else path}"

    async def create(self, path: str, data: bytes) -> bool:
        """Write an object unless there is one: of several callers, exactly one gets True.

        Returns:
            True if this call created the object, False if it was already there.

        Raises:
            StoreError: The store cannot be written.
        """
        path = _checked(path)
        creator = uuid.uuid4().hex
        attributes = None if self.local_path else {_CREATOR: creator}
        try:
            await self._put(path, lambda to: obstore.put_async(to, path, data, mode="create", attributes=attributes))
        except AlreadyExistsError:
            # A bucket may have kept the object although its answer was lost, and obstore then asked again: the object
            # that is in the way is this call's own.
            return not self.local_path and await self._creator(path) == creator
        return True

    async def put(self, path: str, data: bytes) -> None:
        """Write an object, replacing an older one: a reader gets one or the other, whole.

        Raises:
            StoreError: The store cannot be written.
        """
        path = _checked(path)
        await self._put(path, lambda to: obstore.put_async(to, path, data))

    async def get(self, path: str) -> bytes | None:
        """Return an object's content, None if it is absent.

        Raises:
            StoreError: The store cannot be read.
        """
        path = _checked(path)

        async def read(backend: _Backend) -> bytes:
            return bytes(await (await obstore.get_async(backend, path)).bytes_async())

        return await self._call("read", path, read, absent=None)

    async def size(self, path: str) -> int | None:
        """Return an object's size in bytes, None if it is absent.

        Raises:
            StoreError: The store cannot be read.
        """
        path = _checked(path)
        meta = await self._call("read", path, lambda backend: obstore.head_async(backend, path), absent=None)
        return None if meta is None else int(meta["size"])

    async def read_from(self, path: str, start: int, limit: int) -> bytes:
        """Return at most ``limit`` bytes of an object from the offset ``start`` on.

        Returns:
            The bytes; none at or after the end of the object, or if it is absent.

        Raises:
            StoreError: The store cannot be read.
        """
        path = _checked(path)
        if start < 0 or limit < 0:
            raise ValueError(f"read_from({path!r}): got start {start} and limit {limit}, expected 0 or more")
        if limit == 0:
            return b""

        async def read(backend: _Backend) -> bytes:
            try:
                part = await obstore.get_async(backend, path, options={"range": (start, start + limit)})
                return bytes(await part.bytes_async())
            except GenericError as error:
                if _PAST_THE_END.search(str(error)):
                    return b""
                raise

        return await self._call("read", path, read, absent=b"")

    async def list(self, prefix: str) -> _Entries:
        """Return path and size of every object below the folder ``prefix`` at any depth, sorted by path.

        Raises:
            StoreError: The store cannot be listed.
        """
        prefix = _checked_prefix(prefix)

        async def read(backend: _Backend) -> _Entries:
            found = await obstore.list(backend, prefix or None).collect_async()
            return sorted((meta["path"], meta["size"]) for meta in found)

        return await self._call("list", prefix, read, absent=[])

    async def children(self, prefix: str) -> _Names:
        """Return the names of the folders and objects directly below the folder ``prefix``, sorted.

        Raises:
            StoreError: The store cannot be listed.
        """
        prefix = _checked_prefix(prefix)

        async def read(backend: _Backend) -> _Names:
            found = await obstore.list_with_delimiter_async(backend, prefix or None)
            paths = [*found["common_prefixes"], *(meta["path"] for meta in found["objects"])]
            return sorted({PurePosixPath(path).name for path in paths})

        return await self._call("list", prefix, read, absent=[])

    async def delete(self, path: str) -> None:
        """Delete an object; an absent one is fine.

        Raises:
            StoreError: The store cannot be written.
        """
        path = _checked(path)
        await self._call("delete", path, lambda backend: obstore.delete_async(backend, path), absent=None)

    async def delete_tree(self, prefix: str) -> None:
        """Delete everything below the folder ``prefix``; an absent one is fine.

        Raises:
            StoreError: The store cannot be written.
        """
        prefix = _checked(prefix)
        if self.local_path:  # an emptied folder would stay in `children`
            folder = self.local_path / prefix
            await self._call("delete", prefix, lambda _: asyncio.to_thread(_remove_folder, folder))
            return
        for _ in range(_TRIES):  # somebody else may delete some of it meanwhile, which ends a request for many
            paths = [path for path, _ in await self.list(prefix)]
            if not paths:
                return
            await self._call("delete", prefix, partial(obstore.delete_async, paths=paths), absent=None)

    async def check(self) -> None:
        """Create, read back and delete a small object, to find now what would stop a stage later.

        Raises:
            StoreError: The store cannot be used, or it ignores the condition of a conditional write.
        """
        probe, data = f"{_PROBE}-{uuid.uuid4().hex}", b"rallypoint"
        try:
            created, again = await self.create(probe, data), await self.create(probe, data)
            found = await self.get(probe)
        finally:
            with suppress(StoreError):  # the first error says more
                await self.delete(probe)
        if found != data or not created:
            raise StoreError(
                f"the store {self.uri} did not return what was written to it a moment ago; "
                "expected a store that reads its own writes: use another one"
            )
        if again:
            raise StoreError(
                f"the store {self.uri} overwrote an object that was to be written only if absent; expected conditional "
                "writes (If-None-Match), without which a stage could run twice: update its server or use another store"
            )

    def job_env(self) -> dict[str, str]:
        """Return the environment variables with which a job opens the same bucket. They hold secrets.

        Credentials that are renewed (an instance's role, a web identity, single sign-on) are not copied, because they
        would expire within the job: the variables that they are found by are. The first call may read the credential
        chain if nothing was read from or written to the store before.

        Returns:
            The variables; none for a ``file://`` store.
        """
        if self.local_path:
            return {}
        scheme = _SCHEMES[self._scheme]
        honoured = {*scheme.options.values()}
        if self._scheme == "s3":
            honoured |= {*_S3_ENDPOINTS, *_BOTO3_VARIABLES, "AWS_DEFAULT_REGION"}
        env = {name: value for name, value in os.environ.items() if name in honoured}
        given = {scheme.options[option]: value for option, value in self._options.items()}
        if "AWS_ENDPOINT_URL" in given:
            env = {name: value for name, value in env.items() if name not in _S3_ENDPOINTS}
        if "AWS_ACCESS_KEY_ID" in given:
            env.pop("AWS_SESSION_TOKEN", None)
        env |= given
        if self._scheme == "s3":
            env |= self._boto3_env(env)
            if region := env.get("AWS_REGION") or env.get("AWS_DEFAULT_REGION"):
                env |= {"AWS_REGION": region, "AWS_DEFAULT_REGION": region}  # obstore's name and boto3's
            if self._endpoint().startswith("http://"):
                env["AWS_ALLOW_HTTP"] = "true"
        return env

    def _boto3_env(self, env: Mapping[str, str]) -> dict[str, str]:
        self._built()
        if self._boto3 is None:
            return {}
        found = {}
        if region := self._boto3.config.get("region"):
            found["AWS_REGION"] = env.get("AWS_REGION", region)
        if not hasattr(self._boto3.credentials, "refresh_needed"):
            keys = self._boto3.credentials.get_frozen_credentials()
            found |= {"AWS_ACCESS_KEY_ID": keys.access_key, "AWS_SECRET_ACCESS_KEY": keys.secret_key}
            if keys.token:
                found["AWS_SESSION_TOKEN"] = keys.token
        return found

    # The backend -----------------------------------------------------------------------------------------------------

    def _built(self) -> _Backend:
        """Return the backend, built by the first caller; blocks for as long as a credential chain takes."""
        global _first_user  # noqa: PLW0603 - obstore's threads are the process's, so is what is known of them
        with self._lock:
            if _first_user is None:
                _first_user = os.getpid()
            elif _first_user != os.getpid():
                raise StoreError(
                    f"the store {self.uri} was used before this process was forked, and its threads stayed behind: "
                    "an operation would wait for ever; expected a process of its own: start it with "
                    "multiprocessing's 'spawn' or as a new command"
                )
            if self._backend is None:
                try:
                    self._backend = self._build()
                except (BaseError, OSError, ValueError) as error:
                    raise self._error("open", "", error) from None
            return self._backend

    def _build(self) -> _Backend:
        if self.local_path:
            self.local_path.mkdir(parents=True, exist_ok=True)
            return LocalStore(self.local_path)
        config: dict[str, Any] = {**_CLIENT, **self._options}
        common: dict[str, Any] = {
            "prefix": self._prefix or None,
            "config": config,
            "retry_config": {"max_retries": _MAX_RETRIES, "retry_timeout": _RETRY_TIMEOUT},
        }
        if self._scheme == "gs":
            return GCSStore(self._bucket, **common)
        if self._scheme == "az":
            return AzureStore(self._bucket, **common)
        if self._endpoint().startswith("http://"):
            config["allow_http"] = "true"
        common["credential_provider"] = self._credentials(config)
        if "endpoint" in config and "AWS_ENDPOINT_URL_S3" in os.environ:
            # Else the variable would win over the option. An obstore that has no such setting does not read it either.
            with suppress(UnknownConfigurationKeyError):
                own = {**common, "config": {**config, "aws_endpoint_url_s3": config["endpoint"]}}
                return S3Store(self._bucket, **own)
        return S3Store(self._bucket, **common)

    def _endpoint(self) -> str:
        found = (os.environ.get(name, "") for name in _S3_ENDPOINTS)
        return self._options.get("endpoint") or next((endpoint for endpoint in found if endpoint), "")

    def _credentials(self, config: dict[str, Any]) -> Any:
        """Return what obstore asks for credentials, None for its own chain; takes explicit keys out of ``config``."""
        if "access_key_id" in config:
            # As configuration they would be joined by a session token of the environment, which is another identity's.
            keys = {
                "access_key_id": config.pop("access_key_id"),
                "secret_access_key": config.pop("secret_access_key"),
                "token": config.pop("session_token", None),
                "expires_at": None,
            }
            return lambda: keys
        anonymous = config.get("skip_signature", os.environ.get("AWS_SKIP_SIGNATURE", "")).lower() in {"true", "1"}
        if anonymous or "role_arn" in config or "web_identity_token_file" in config or find_spec("boto3") is None:
            return None
        from obstore.auth.boto3 import Boto3CredentialProvider  # noqa: PLC0415 - boto3 is slow to import and optional

        self._boto3 = Boto3CredentialProvider()
        return self._boto3

    async def _creator(self, path: str) -> str | None:
        async def read(backend: _Backend) -> str | None:
            return (await obstore.get_async(backend, path, options={"head": True})).attributes.get(_CREATOR)

        return await self._call("read", path, read, absent=None)

    async def _put(self, path: str, call: Callable[[_Backend], Awaitable[object]]) -> None:
        await self._call("write", path, call)
        if self.local_path:
            # What the ledger says before a launch must outlive a power failure after it.
            with suppress(FileNotFoundError):  # somebody deleted it meanwhile
                await asyncio.to_thread(_synchronise, self.local_path / path)

    async def _call(self, action: str, path: str, call: Callable[[_Backend], Awaitable[T]], **absent: T) -> T:
        """Run one operation; what obstore raises becomes a `StoreError`, or ``absent`` where that is given."""
        try:
            backend = self._backend if _first_user == os.getpid() else None
            if backend is None:
                backend = await asyncio.to_thread(self._built)
            result = await call(backend)
        except FileNotFoundError as error:
            if "absent" not in absent:
                raise self._error(action, path, error) from None
            await self._check_bucket(action, path, error)
            return absent["absent"]
        except AlreadyExistsError:
            raise
        except (BaseError, OSError, ValueError, NotImplementedError) as error:
            raise self._error(action, path, error) from None
        self._seen = True
        return result

    async def _check_bucket(self, action: str, path: str, error: FileNotFoundError) -> None:
        """Tell an absent object from an absent bucket, which a store may report alike."""
        if self.local_path:
            return
        if _NO_BUCKET.search(str(error)):
            raise self._error(action, path, error) from None
        if self._seen or _ABSENT.search(str(error)):
            return

        async def read(backend: _Backend) -> None:
            async for _ in obstore.list(backend, path or None, chunk_size=1):
                break

        await self._call("list", path, read)

    def _error(self, action: str, path: str, error: Exception) -> StoreError:
        target = f"{self.uri}/{path}" if path else self.uri
        text = str(error)
        where = f"cannot {action} {target}"
        if self.local_path:
            return StoreError(
                f"{where}: {_reason(text)}; expected a folder that this process (user id {os.getuid()}) can create and "
                f"write on this host: check {self.local_path}, or choose another store"
            )
        if "session.get_credentials" in text:
            return StoreError(
                f"{where}: got no AWS credentials from boto3; expected some in the options, the environment, a profile "
                "or the instance's role: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or skip_signature=true"
            )
        secrets = [self._options[option] for option in _SCHEMES[self._scheme].secrets if option in self._options]
        reason = _reason(text, secrets)
        if _NO_BUCKET.search(text):
            fix = f"expected the bucket {self._bucket!r} to exist: create it, or correct the store's URI"
        elif isinstance(error, PermissionDeniedError | UnauthenticatedError) or _REFUSED.search(text):
            fix = "expected credentials that may read, write, list and delete there: check them and the bucket's policy"
        elif "error sending request" in text or "HTTP error" in text:
            fix = "expected an endpoint that answers: check endpoint and region, and that this host reaches them"
        else:
            fix = "check the store's URI, options and permissions"
        return StoreError(f"{where}: {reason}; {fix}")


def _checked_options(scheme: str, options: Mapping[str, str]) -> dict[str, str]:
    known = _SCHEMES[scheme]
    prefixes = ("aws_", "google_", "azure_storage_", "azure_")
    checked = {}
    for given, value in options.items():
        name = given.lower()
        name = next((name.removeprefix(prefix) for prefix in prefixes if name.startswith(prefix)), name)
        name = known.aliases.get(name, name)
        if name not in known.options:
            raise StoreError(
                f"got the option {given!r} for an {scheme}:// store, expected options of {known.name}: "
                f"{', '.join(sorted(known.options))}; correct its name or leave it out"
            )
        if not isinstance(value, str):  # JSON of a connection holds booleans; the value itself may be a secret
            raise StoreError(
                f"got {type(value).__name__} for the option {given!r}, expected text; write it as 'true' or '30s'"
            )
        checked[name] = value
    if scheme == "s3" and ("access_key_id" in checked) != ("secret_access_key" in checked):
        raise StoreError(
            "got one of the options access_key_id and secret_access_key, expected both or neither; "
            "give the other one, or leave both out to use the environment's credentials"
        )
    return checked


def _fault(path: str) -> str:
    """Return what is wrong with a path, the empty string if nothing is."""
    parts = path.split("/")
    if not path or "" in parts:
        return "has an empty part"
    if "." in parts or ".." in parts:
        return "has a part '.' or '..'"
    if re.search(r"[\x00-\x1f\x7f]", path):
        return "has a control character"
    if any(re.search(r"#\d+$", part) for part in parts):
        return "has a part that ends in '#' and digits, which a folder keeps for files being written"
    if any(re.search(r"[A-Za-z][:|]$", part) for part in parts):
        return "has a part that ends like a drive letter, 'a:' or 'a|', which obstore takes for a folder"
    return ""


def _checked(path: str) -> str:
    if fault := _fault(path):
        raise ValueError(f"got the path {path!r}, which {fault}; expected names with '/' between them")
    return path


def _checked_prefix(prefix: str) -> str:
    prefix = prefix.removesuffix("/")
    return _checked(prefix) if prefix else prefix


def _quoted(path: str) -> str:
    return quote(path, safe="/:+=@,;!$&'()*~")


def _reason(text: str, secrets: Sequence[str] = ()) -> str:
    """Return the first line of an error of obstore, whose other lines may hold requests, and the server's code."""
    reason = text.strip().partition("\n")[0].partition("<?xml")[0].rstrip(" .:")
    code = _CODE.search(text)
    if code and code[1] not in reason:
        reason = f"{reason} ({code[1]})"
    return _without_secrets(reason, secrets)[:_MAX_REASON]


def _without_secrets(text: str, secrets: Sequence[str] = ()) -> str:
    for secret in secrets:
        if len(secret) >= _SHORTEST_SECRET:
            text = text.replace(secret, "***")
    text = re.sub(r"(://)[^/@\s]*@", r"\1***@", text)
    return _KEY_ID.sub("***", _URL.sub(r"\1\2", text))


def _synchronise(path: Path) -> None:
    for each in (path, path.parent):
        descriptor = os.open(each, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _remove_folder(folder: Path) -> None:
    for _ in range(_TRIES):  # a file that appears or goes meanwhile ends one round
        if not folder.is_dir() or folder.is_symlink():
            return
        shutil.rmtree(folder, ignore_errors=True)
    if folder.is_dir():
        shutil.rmtree(folder)
