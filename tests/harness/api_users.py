"""Airflow's own REST API in this process, and users of every role."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from airflow.api_fastapi.app import create_app, get_auth_manager, purge_cached_app
from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser
from starlette.testclient import TestClient

from tests.harness.inprocess import Run

USERS = {"admin": "ADMIN", "ursula": "USER", "vera": "VIEWER", "norole": None}


class ApiUsers:
    """Asks and answers as one of `USERS`.

    :param server: the API server.
    """

    def __init__(self, server: TestClient) -> None:
        self._server = server

    def call(self, user: str, method: str, path: str, **kwargs: Any) -> Any:
        """The server's response to one request, with the user's token."""
        token = get_auth_manager().generate_jwt(SimpleAuthManagerUser(username=user, role=USERS[user]))
        return self._server.request(method, path, headers={"Authorization": f"Bearer {token}"}, **kwargs)

    def request(self, run: Run, task_id: str, user: str = "ursula", map_index: int = -1) -> dict[str, Any]:
        """What a waiting task asks, as Airflow tells its page."""
        said = self.call(user, "GET", _path(run, task_id, map_index))
        assert said.status_code == 200, said.text
        return dict(said.json())

    def answer(
        self, run: Run, task_id: str, *chosen: str, user: str = "ursula", map_index: int = -1, **params: Any
    ) -> Any:
        """The server's response to an answer: the options, and what was written into the form."""
        answer = {"chosen_options": list(chosen), "params_input": params}
        return self.call(user, "PATCH", _path(run, task_id, map_index), json=answer)


def _path(run: Run, task_id: str, map_index: int) -> str:
    return f"/api/v2/dags/{run.dag.dag_id}/dagRuns/{run.run_id}/taskInstances/{task_id}/{map_index}/hitlDetails"


@contextmanager
def serve_api_users() -> Iterator[ApiUsers]:
    """An API server with a login. The database of this session's Airflow must be there."""
    with pytest.MonkeyPatch.context() as patch:
        users = ",".join(f"{name}:{role or ''}" for name, role in USERS.items())
        patch.setenv("AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS", "False")
        patch.setenv("AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS", users)
        patch.setenv("AIRFLOW__API__SECRET_KEY", "s" * 32)
        patch.setenv("AIRFLOW__API_AUTH__JWT_SECRET", "j" * 64)
        purge_cached_app()
        yield ApiUsers(TestClient(create_app("core")))
    purge_cached_app()
