"""What the command reads from Airflow's metadata database, which tasks can't reach."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from airflow_provider_geminiimg import settings
from airflow_provider_geminiimg.exceptions import BadRequestError
from airflow_provider_geminiimg.runtime.doctor.findings import UnavailableError
from airflow_provider_geminiimg.runtime.doctor.limits import UNLIMITED
from airflow_provider_geminiimg.runtime.root_variable import RootVariable


class StoredRoot:
    """Airflow's copy of the identity of the root, for reading only."""

    def __init__(self) -> None:
        self.name = RootVariable(settings.root()).name

    def read(self) -> str | None:
        """The stored text; ``None`` if there is none.

        :raises UnavailableError: the database can't be read.
        """
        from airflow.models import Variable
        from sqlalchemy import select

        stored = _asked(lambda session: session.scalar(select(Variable).where(Variable.key == self.name)))
        return None if stored is None else str(stored.get_val())

    def write(self, value: str) -> None:
        raise AssertionError("the doctor writes no Variable")


def pool_slots(name: str) -> int:
    """Return the number of slots of a pool.

    :raises BadRequestError: there is no such pool.
    :raises UnavailableError: the database can't be read.
    """
    from airflow.models import Pool

    pool = _asked(lambda session: Pool.get_pool(name, session=session))
    if pool is None:
        raise BadRequestError(
            f"There is no pool {name!r}, so its tasks never run.", hint=f"Run airflow pools set {name} SLOTS ''."
        )
    return int(pool.slots) if pool.slots >= 0 else UNLIMITED  # -1


def _asked(question: Callable[[Any], Any]) -> Any:
    """Ask the database.

    :param question: uses a session of SQLAlchemy.
    """
    from airflow.utils.session import create_session

    try:
        with create_session() as session:
            return question(session)
    except Exception as error:
        raise UnavailableError(
            f"Airflow's metadata database can't be read from here ({type(error).__name__}).",
            "Run the doctor where the scheduler or the API server runs, or as a task of GeminiImageDoctorOperator.",
        ) from None
