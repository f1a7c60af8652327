"""What the package costs, side by side with what a user would otherwise write: ``make bench``.

Peers live here alone; the package never imports them. One module for each benchmark, with ``run(quick) -> list[Row]``.

What must stay true: every figure is the median of repeated runs; a peer is measured in the same run, on the same
sandbox, in a process of its own; what is measured are the real parts, never a copy of them.
"""

# Name of the module -> what it measures. The order is that of the table and of the docs.
BENCHMARKS = {
    "poll": "CPU of one poll, with 1,000 jobs in flight in one event loop",
    "triggerer": "5,000 triggers in one trigger runner: gaps of its event loop, and memory",
    "detection": "polls of an image, and the time from done to known",
    "parse": "what a DAG file pays for importing the operators",
    "batch": "a batch of 1,000 images, beside a simulation that costs nothing",
    "end_to_end": "200 images in one Airflow, beside mapped tasks",
    "landing": "200 images of 8 MB from the gateway into S3, 16 at a time",
    "reuse": "a batch all of whose images have landed before",
    "growth": "what a batch of 100, 1,000 and 10,000 images costs",
}
