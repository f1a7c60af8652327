"""What work on the ledger needs of Airflow: its settings and its connections.

What must stay true: a connection is looked up once a piece of work, and one at a time: Airflow's channel to the
supervisor serves one caller at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

from airflow_provider_geminiimg import settings
from airflow_provider_geminiimg.core.execution.task_log import Logs, SteadyLogs
from airflow_provider_geminiimg.core.gateways.connection import GatewayConnection
from airflow_provider_geminiimg.core.http.transport import Transport
from airflow_provider_geminiimg.core.ledger.records import Ledger
from airflow_provider_geminiimg.core.purchase.context import PurchaseContext
from airflow_provider_geminiimg.core.storage import IMAGES, Files, join_uri, open_store
from airflow_provider_geminiimg.hooks.geminiimg import GeminiImageHook
from airflow_provider_geminiimg.hooks.object_stores import AIRFLOW_OPENERS


class Environment:
    """Root, files and connections, as ``[geminiimg]`` and Airflow's connections say.

    :param log: where to say what happens.
    """

    def __init__(self, log: Logs) -> None:
        self.log: Logs = SteadyLogs(log)
        self._connections: dict[str, GatewayConnection] = {}
        self.namespace = settings.namespace()
        self.root = settings.root()
        self.images = join_uri(self.root, IMAGES)
        allowed = settings.allowed_roots()
        self.ledger = Ledger(open_store(self.root, AIRFLOW_OPENERS))
        self.files = Files(
            AIRFLOW_OPENERS,
            allowed_roots=[*allowed, self.images] if allowed else [],
            root=self.root,
        )

    def connection(self, conn_id: str) -> GatewayConnection:
        """The checked connection.

        :raises BadRequestError: it is missing or wrong.
        :raises AuthenticationError: it has no API key.
        """
        if conn_id not in self._connections:
            self._connections[conn_id] = GeminiImageHook(conn_id).connection()
        return self._connections[conn_id]

    def limited(self, conn_id: str, requests_per_minute: int) -> GatewayConnection:
        """The connection, with another rate from now on."""
        connection = replace(self.connection(conn_id), requests_per_minute=requests_per_minute)
        self._connections[conn_id] = connection
        return connection

    @asynccontextmanager
    async def purchase_context(self) -> AsyncIterator[PurchaseContext]:
        """What an image's life needs, open until the context ends."""
        async with AsyncExitStack() as stack:
            transports: dict[str, Transport] = {}
            connecting = asyncio.Lock()

            async def connect(conn_id: str) -> Transport:
                async with connecting:
                    if conn_id not in transports:
                        connection = await asyncio.to_thread(self.connection, conn_id)
                        transports[conn_id] = await stack.enter_async_context(Transport(connection))
                return transports[conn_id]

            purchase_context = PurchaseContext(self.ledger, self.files, connect, self.log)
            stack.push_async_callback(purchase_context.budgets.close)
            yield purchase_context
