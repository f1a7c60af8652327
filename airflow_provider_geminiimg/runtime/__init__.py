"""The running tasks: Airflow's context in, calls into `core`, results out.

Invariant: parsing a DAG imports nothing from here. An operator imports its module when it starts to run, so that an
import error comes before money is spent.

In reading order:

- `environment`: settings and connections of Airflow
- `task_run`: one try of a task instance
- `task_state`: the task's entries in Airflow's task state store
- `root_variable`: the identity of the root in Airflow
- `errors`: how an error leaves a task
- `image_task`, `batch_task`, `sensor_task`, `collect_task`: one module per kind of task
- `wide_batch_task`: the three kinds of tasks of a batch that several workers make
- `returned_request`: the saved request of a decorated function
- `command_line`: what the commands share
- `jobs_command`: ``python -m airflow_provider_geminiimg jobs``
- `spend_command`: ``python -m airflow_provider_geminiimg spend``
- `doctor`: checks an installation
"""
