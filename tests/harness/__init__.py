"""What tests drive the package with: a real Airflow in this process, and the servers that stand for the outside."""

from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
REPOSITORY = TESTS.parent
