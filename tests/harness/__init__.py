"""What tests drive the package with: a real Airflow in this process, and the servers that stand for the outside."""
