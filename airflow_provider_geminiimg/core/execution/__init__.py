"""How work runs, whatever the work is.

In reading order:

- `runner`: a helper thread with an event loop; ends the buying when a task is killed
- `boundary`: whatever is raised inside goes on as an outcome
- `byte_semaphore`: how many bytes of images one process holds at once
- `task_log`: what a log line may not do
"""
