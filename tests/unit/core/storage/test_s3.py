"""How requests to S3 are signed."""

from __future__ import annotations

import base64
import io
from typing import Any

import boto3
import pytest
from botocore.awsrequest import AWSResponse
from urllib3 import HTTPResponse

from airflow_provider_geminiimg.core.storage.base import sha256
from airflow_provider_geminiimg.core.storage.s3 import S3Driver


@pytest.mark.parametrize(("scheme", "signed"), [("https", "UNSIGNED-PAYLOAD"), ("http", sha256(b"data"))])
def test_over_tls_the_signature_covers_the_checksum_of_the_body_instead_of_another_hash(
    scheme: str, signed: str
) -> None:
    client: Any = boto3.client(
        "s3",
        endpoint_url=f"{scheme}://localhost:1",
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )
    sent: list[Any] = []

    def answer(request: Any, **_: Any) -> AWSResponse:
        sent.append(request)
        return AWSResponse(request.url, 200, {"ETag": '"1"'}, HTTPResponse(io.BytesIO(), preload_content=False))

    client.meta.events.register("before-send.s3", answer)
    S3Driver(lambda _: client, None, "bucket").put("key", b"data", "text/plain", sha256(b"data"))
    headers = {
        name: str(value, "ascii") if isinstance(value, bytes) else value for name, value in sent[0].headers.items()
    }
    assert headers["X-Amz-Content-SHA256"] == signed
    assert headers["x-amz-checksum-sha256"] == base64.b64encode(bytes.fromhex(sha256(b"data"))).decode()
    assert ";x-amz-checksum-sha256;" in headers["Authorization"]
