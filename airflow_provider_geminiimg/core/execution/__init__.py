"""Runs async code in a task: helper thread, error boundary, memory limit, log.

In reading order:

- `runner`: a helper thread with an event loop; the stop flag for paid requests
- `boundary`: turns any exception into an error of this package
- `byte_semaphore`: limits the bytes of images that one process holds
- `task_log`: a log whose failures never stop a purchase
"""
