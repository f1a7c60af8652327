"""What tests drive the package with: a real Airflow in this process, and the servers that stand for the outside."""

from importlib import metadata
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
REPOSITORY = TESTS.parent
AIRFLOW = tuple(int(part) for part in metadata.version("apache-airflow").split(".")[:2])
