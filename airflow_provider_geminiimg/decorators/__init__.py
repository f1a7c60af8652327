"""TaskFlow decorators: functions that say what to make."""
