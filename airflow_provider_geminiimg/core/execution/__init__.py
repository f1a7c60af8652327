"""How work runs: the helper thread, closed boundaries, bytes in memory, the task's log."""
