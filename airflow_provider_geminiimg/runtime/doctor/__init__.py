"""The doctor: checks an installation, and says what to do about each finding. Buys nothing.

Invariants: a check writes nothing but a test object, which it removes. No finding holds a key, a password or a signed
link. A check that fails is a finding, and the others are still made.

In reading order:

- `findings`: the result of a check, and its table
- `exchange`: one HTTP exchange with a deadline
- `installation`: versions, packages, provider, plugin, settings
- `storage`: the root, its identity and clock, and the other URIs in use
- `network`: proxies and TLS
- `gateways`: connections, models, prices, the gateway's clock
- `limits`: limits of the connection beside those of Airflow
- `views`: the root as the API server and the triggerer see it
- `examination`: all checks
- `airflow_database`: what the command reads from Airflow's metadata database
- `command`: the command line
- `task`: a running doctor task
"""
