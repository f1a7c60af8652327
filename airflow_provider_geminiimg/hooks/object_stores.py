"""Opens object stores with Airflow's connections and the storage backends of installed providers."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

from airflow.providers.common.compat.sdk import AirflowNotFoundException

from airflow_provider_geminiimg.core.storage import Openers
from airflow_provider_geminiimg.exceptions import BadRequestError

_CLIENTS: dict[tuple[int, str, str | None], Any] = {}
_CLIENTS_LOCK = threading.Lock()
CONNECTIONS = 32
"""Connections that a client keeps open, one for each thread of a batch. With fewer, each further request would make one
of its own, and log a warning."""
DEFAULT_AZURE_CONNECTION = "wasb_default"
"""Of the azure provider. A container does not name its account, so there is always a connection."""


def default_s3_client(conn_id: str | None) -> Any:
    """A boto3 S3 client, created once per process and connection. It respects `AWS_ENDPOINT_URL` and similar variables.

    A client without credentials is not reused, because boto3 does not search for credentials again.

    :param conn_id: an Airflow AWS connection, opened by the amazon provider with the connection's settings; ``None``:
        boto3's default credentials, a connect timeout of 10 s, a read timeout of 60 s, and standard retries.
    :raises BadRequestError: the connection does not exist, or the amazon provider is not installed.
    """
    return _cached("s3", conn_id, lambda: _plain_client() if conn_id is None else (_airflow_client(conn_id), True))


def _cached(scheme: str, conn_id: str | None, make: Callable[[], tuple[Any, bool]]) -> Any:
    """A client that is made once per process and connection.

    :param make: returns the client, and whether to cache it.
    """
    slot = (os.getpid(), scheme, conn_id)  # sockets must not be shared with a forked process
    with _CLIENTS_LOCK:
        client = _CLIENTS.get(slot)
        if client is None:
            client, lasts = make()
            if lasts:
                _CLIENTS[slot] = client
        return client


def _plain_client() -> tuple[Any, bool]:
    """A client with boto3's default credentials, and whether there are any."""
    import boto3
    from botocore.config import Config

    retries: Any = {"mode": "standard"}
    config = Config(connect_timeout=10, read_timeout=60, retries=retries, max_pool_connections=CONNECTIONS)
    session = boto3.session.Session()
    return session.client("s3", config=config), session.get_credentials() is not None


def _airflow_client(conn_id: str) -> Any:
    from botocore.config import Config

    with _needing("s3", conn_id, "amazon", "Install {package}, or remove the connection from the URI."):
        from airflow.providers.amazon.aws.hooks.s3 import S3Hook

        hook = S3Hook(aws_conn_id=conn_id)
        hook.get_connection(conn_id)  # without this check S3Hook would use other credentials
    own = hook.conn_config.botocore_config or Config()
    return hook.get_client_type(config=Config(max_pool_connections=CONNECTIONS).merge(own))


def default_google_client(conn_id: str | None) -> Any:
    """A `google.cloud.storage.Client`, created once per process and connection.

    :param conn_id: an Airflow connection of the google provider; ``None``: Google's application default credentials. It
        respects `STORAGE_EMULATOR_HOST`.
    :raises BadRequestError: the connection does not exist, or the google provider is not installed.
    """

    def make() -> Any:
        client = _plain_google() if conn_id is None else _airflow_google(conn_id)
        _widen(client._http)
        return client

    return _cached("gs", conn_id, lambda: (make(), True))


def _plain_google() -> Any:
    try:
        from google.cloud.storage import Client
    except ImportError as error:
        raise BadRequestError(
            "gs:// requires Google's storage client, which is not installed.",
            hint="Install airflow-provider-geminiimg[google].",
        ) from error
    # The project is used only for creating and listing buckets.
    return Client(project=os.environ.get("GOOGLE_CLOUD_PROJECT", "none"))


def _airflow_google(conn_id: str) -> Any:
    with _needing("gs", conn_id, "google", "Install airflow-provider-geminiimg[google]."):
        from airflow.providers.google.cloud.hooks.gcs import GCSHook

        hook = GCSHook(gcp_conn_id=conn_id)
    return hook.get_conn()


def default_azure_client(conn_id: str | None) -> Any:
    """An `azure.storage.blob.BlobServiceClient`, created once per process and connection.

    :param conn_id: an Airflow connection of the azure provider. Default: `DEFAULT_AZURE_CONNECTION`.
    :raises BadRequestError: the connection does not exist, or the azure provider is not installed.
    """

    def make() -> Any:
        client = _airflow_azure(conn_id or DEFAULT_AZURE_CONNECTION)
        transport = client._pipeline._transport
        transport.open()  # makes the session
        _widen(transport.session)
        return client

    return _cached("abfs", conn_id, lambda: (make(), True))


def _airflow_azure(conn_id: str) -> Any:
    with _needing("abfs", conn_id, "microsoft-azure", "Install airflow-provider-geminiimg[azure]."):
        from airflow.providers.microsoft.azure.hooks.wasb import WasbHook

        hook = WasbHook(wasb_conn_id=conn_id)
        hook.get_connection(conn_id)
    return hook.get_conn()


def _widen(session: Any) -> None:
    """Let a session of requests keep `CONNECTIONS` connections open."""
    for adapter in session.adapters.values():
        adapter.init_poolmanager(CONNECTIONS, CONNECTIONS)


@contextlib.contextmanager
def _needing(scheme: str, conn_id: str, provider: str, hint: str) -> Iterator[None]:
    """Convert a missing provider or connection into an error that says what to do."""
    package = f"apache-airflow-providers-{provider}"
    try:
        yield
    except ImportError as error:
        raise BadRequestError(
            f"{scheme}://{conn_id}@… names an Airflow connection. This requires the {provider} provider, which is not "
            "installed.",
            hint=hint.format(package=package),
        ) from error
    except AirflowNotFoundException as error:
        raise BadRequestError(
            f"{scheme}://{conn_id}@… names the Airflow connection {conn_id!r}, which does not exist."
        ) from error


def object_storage_path(uri: str, conn_id: str | None) -> Any:
    """Airflow's `ObjectStoragePath` for a URI.

    :param uri: the URI of a file or directory.
    :param conn_id: the Airflow connection to use; ``None``: the machine's own credentials.
    :raises ValueError: no installed provider supports the scheme of the URI.
    """
    from airflow.sdk import ObjectStoragePath

    return ObjectStoragePath(uri, conn_id=conn_id)


AIRFLOW_OPENERS = Openers(
    s3_client=default_s3_client,
    google_client=default_google_client,
    azure_client=default_azure_client,
    path=object_storage_path,
)
