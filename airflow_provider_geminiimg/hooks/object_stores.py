"""Opens object stores with Airflow's connections and the storage backends of installed providers."""

from __future__ import annotations

import os
import threading
from typing import Any

from airflow.providers.common.compat.sdk import AirflowNotFoundException

from airflow_provider_geminiimg.core.storage import Openers
from airflow_provider_geminiimg.exceptions import BadRequestError

_CLIENTS: dict[tuple[int, str | None], Any] = {}
_CLIENTS_LOCK = threading.Lock()


def default_s3_client(conn_id: str | None) -> Any:
    """A boto3 S3 client, created once per process and connection. It respects `AWS_ENDPOINT_URL` and similar variables.

    A client without credentials is not reused, because boto3 does not search for credentials again.

    :param conn_id: an Airflow AWS connection, opened by the amazon provider with the connection's settings; ``None``:
        boto3's default credentials, a connect timeout of 10 s, a read timeout of 60 s, and standard retries.
    :raises BadRequestError: the connection does not exist, or the amazon provider is not installed.
    """
    slot = (os.getpid(), conn_id)  # sockets must not be shared with a forked process
    with _CLIENTS_LOCK:
        client = _CLIENTS.get(slot)
        if client is None:
            client, has_credentials = _plain_client() if conn_id is None else (_airflow_client(conn_id), True)
            if has_credentials:
                _CLIENTS[slot] = client
        return client


def _plain_client() -> tuple[Any, bool]:
    """A client with boto3's default credentials, and whether there are any."""
    import boto3
    from botocore.config import Config

    config = Config(connect_timeout=10, read_timeout=60, retries={"mode": "standard"}, max_pool_connections=32)
    session = boto3.session.Session()
    return session.client("s3", config=config), session.get_credentials() is not None


def _airflow_client(conn_id: str) -> Any:
    try:
        from airflow.providers.amazon.aws.hooks.s3 import S3Hook
    except ImportError as error:
        raise BadRequestError(
            f"s3://{conn_id}@… names an Airflow connection. This requires the amazon provider, which is not installed.",
            hint="Install apache-airflow-providers-amazon, or remove the connection from the URI.",
        ) from error
    hook = S3Hook(aws_conn_id=conn_id)
    try:
        hook.get_connection(conn_id)  # without this check S3Hook would use other credentials
    except AirflowNotFoundException as error:
        raise BadRequestError(
            f"s3://{conn_id}@… names the Airflow connection {conn_id!r}, which does not exist."
        ) from error
    return hook.get_conn()


def object_storage_path(uri: str, conn_id: str | None) -> Any:
    """Airflow's `ObjectStoragePath` for a URI.

    :param uri: the URI of a file or directory.
    :param conn_id: the Airflow connection to use; ``None``: the machine's own credentials.
    :raises ValueError: no installed provider supports the scheme of the URI.
    """
    from airflow.sdk import ObjectStoragePath

    return ObjectStoragePath(uri, conn_id=conn_id)


AIRFLOW_OPENERS = Openers(s3_client=default_s3_client, path=object_storage_path)
