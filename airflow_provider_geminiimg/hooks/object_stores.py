"""Object stores, opened with what Airflow knows: its connections, and the providers that serve other stores."""

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
    """A boto3 S3 client, made once per process and connection. `AWS_ENDPOINT_URL` and the like are honoured.

    One that found no credentials never finds any, so it is not kept.

    :param conn_id: an Airflow AWS connection, opened by the amazon provider with that connection's own settings;
        ``None``: boto3's own chain, 10 s to connect, 60 s for an answer, standard retries.
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
    """A client, and whether it has credentials."""
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
            f"s3://{conn_id}@… names an Airflow connection, which needs the amazon provider; it is not installed.",
            hint="pip install apache-airflow-providers-amazon, or leave the connection out of the URI.",
        ) from error
    hook = S3Hook(aws_conn_id=conn_id)
    try:
        hook.get_connection(conn_id)  # S3Hook itself would go on with another identity
    except AirflowNotFoundException as error:
        raise BadRequestError(f"s3://{conn_id}@… names the Airflow connection {conn_id!r}: there is none.") from error
    return hook.get_conn()


def object_storage_path(uri: str, conn_id: str | None) -> Any:
    """Airflow's `ObjectStoragePath` of a URI.

    :param conn_id: the Airflow connection that opens it; ``None``: what the machine itself may do.
    :raises ValueError: no installed provider serves its scheme.
    """
    from airflow.sdk import ObjectStoragePath

    return ObjectStoragePath(uri, conn_id=conn_id)


AIRFLOW_OPENERS = Openers(s3_client=default_s3_client, path=object_storage_path)
