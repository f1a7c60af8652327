"""Many images: rows, plan, executor, summary."""
