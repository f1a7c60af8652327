"""Adds the API key to requests.

What must stay true: the key is sent only to the API's own scheme, host and port; no other object, log or pickle
contains it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import NoReturn

import httpx

from airflow_provider_geminiimg.core.http.tls import origin_of


class KeyAuth(httpx.Auth):
    """Adds the key to a copy of the request, so that neither the call nor an error of it contains the key.

    :param headers: the headers with the key.
    :param base_url: base URL of the API.
    """

    def __init__(self, headers: Mapping[str, str], base_url: str) -> None:
        self._headers = headers
        api = httpx.URL(base_url)
        self._origin = origin_of(api)
        self._root = str(api.copy_with(raw_path=b"/"))

    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
        if key := self.headers(request.url):
            headers = request.headers.copy()
            headers.update(key)
            request = httpx.Request(
                request.method,
                request.url,
                headers=headers,
                stream=request.stream,
                extensions=request.extensions,
            )
        yield request

    def headers(self, url: httpx.URL | str) -> Mapping[str, str]:
        """The headers with the key if `url` is the API's, else none. A text is not parsed, for the speed of polls."""
        own = url.startswith(self._root) if isinstance(url, str) else origin_of(url) == self._origin
        return self._headers if own else {}

    def __reduce__(self) -> NoReturn:
        raise TypeError("This object contains an API key and cannot be pickled.")
