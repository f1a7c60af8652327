"""TaskFlow decorators: a function returns the request, the task makes the image."""
