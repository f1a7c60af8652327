"""Benchmarks of the package, compared with code that a user might write instead: ``make bench``.

Each benchmark is a module with ``run(quick) -> list[Row]``. The compared code ("peers") exists here only; the package
never imports it.

Invariants: every figure is the median of repeated runs. A peer is measured in the same run, with the same sandbox, in
its own process. The benchmarks measure the real code, never a copy.
"""

# Name of the module -> description, in the order of the table and of the docs.
BENCHMARKS = {
    "poll": "CPU of one poll, with 1,000 jobs in flight in one event loop",
    "triggerer": "5,000 triggers in one trigger runner: gaps of its event loop, and memory",
    "detection": "polls of an image, and the time from done to known",
    "parse": "CPU for importing the operators in a DAG file",
    "batch": "a batch of 1,000 images, compared with a simulation without any cost",
    "end_to_end": "1,000 images in one Airflow, compared with mapped tasks",
    "landing": "200 images of 8 MB from the gateway into S3, 16 at a time",
    "reuse": "a batch whose images are all stored already",
    "stores": "the operations of a store, on each kind of store",
    "limits": "four processes at one rate limit, and what a lease costs",
    "collect": "a collect of ten open records among 1,000 to 100,000 that have ended",
    "purge": "a purge of 1,000 and 10,000 old records, compared with deleting without reading",
    "plan": "the plan and the merge of a wide batch with 1,000 to 100,000 rows",
    "gallery": "a page, the totals and a jump in a run of 1,000 to 100,000 images",
    "ledger": "a ledger of a million records: a collect, and the totals of the run",
    "growth": "the cost of a batch of 100, 1,000 and 10,000 images",
}
