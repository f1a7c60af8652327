"""Settings and connections of Airflow, for all code that uses the ledger.

Invariant: each connection is read once per `Environment`, and one at a time, because Airflow's channel to the
supervisor serves one caller at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

from airflow_provider_geminiimg import settings
from airflow_provider_geminiimg._compat import warn_if_untested
from airflow_provider_geminiimg.core.execution.task_log import Logs, SteadyLogs
from airflow_provider_geminiimg.core.gateways.connection import GatewayConnection
from airflow_provider_geminiimg.core.http.transport import Transport
from airflow_provider_geminiimg.core.ledger.account_limits import account_limits
from airflow_provider_geminiimg.core.ledger.records import Ledger
from airflow_provider_geminiimg.core.ledger.root_identity import RootCheck
from airflow_provider_geminiimg.core.purchase.context import PurchaseContext
from airflow_provider_geminiimg.core.storage import IMAGES, Files, join_uri, open_store
from airflow_provider_geminiimg.hooks.geminiimg import GeminiImageHook
from airflow_provider_geminiimg.hooks.object_stores import AIRFLOW_OPENERS


class Environment:
    """Root, files and connections, from the configuration section ``[geminiimg]`` and Airflow's connections.

    :param log: the logger of the task or command.
    """

    def __init__(self, log: Logs) -> None:
        warn_if_untested()
        self.log: Logs = SteadyLogs(log)
        self._connections: dict[str, GatewayConnection] = {}
        self._accounts: dict[str, GatewayConnection] = {}  # of `limited` connections, with their own limits
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

        :raises BadRequestError: the connection is missing or wrong.
        :raises AuthenticationError: the connection has no API key.
        """
        if conn_id not in self._connections:
            self._connections[conn_id] = GeminiImageHook(conn_id).connection()
        return self._connections[conn_id]

    def limited(self, conn_id: str, requests_per_minute: int) -> GatewayConnection:
        """The connection with another rate limit of this process, also for later calls of `connection`."""
        self._accounts[conn_id] = self.connection(conn_id)
        connection = replace(self._accounts[conn_id], requests_per_minute=requests_per_minute)
        self._connections[conn_id] = connection
        return connection

    def root_check(self) -> RootCheck | None:
        """The check of the root before a purchase; ``None`` for commands, which buy nothing."""
        return None

    @asynccontextmanager
    async def purchase_context(self) -> AsyncIterator[PurchaseContext]:
        """What a purchase needs from outside; its HTTP clients stay open until the context manager exits."""
        async with AsyncExitStack() as stack:
            transports: dict[str, Transport] = {}
            connecting = asyncio.Lock()

            async def connect(conn_id: str) -> Transport:
                async with connecting:
                    if conn_id not in transports:
                        connection = await asyncio.to_thread(self.connection, conn_id)
                        account = self._accounts.get(conn_id, connection)
                        shared = account_limits(self.ledger.store, self.namespace, account)
                        transport = Transport(connection, account=shared)
                        transports[conn_id] = await stack.enter_async_context(transport)
                return transports[conn_id]

            purchase_context = PurchaseContext(self.ledger, self.files, connect, self.log, root_check=self.root_check())
            stack.push_async_callback(purchase_context.budgets.close)
            yield purchase_context
