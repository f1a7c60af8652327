"""What the provider does, without Airflow."""
