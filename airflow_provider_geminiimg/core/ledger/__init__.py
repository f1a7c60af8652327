"""The ledger: records of everything that was paid for, and the other documents under the root.

In reading order:

- `layout`: builds and parses every key under the root
- `root_identity`: shows that a ledger was replaced or emptied
- `root_token`: whether two processes use the same root
- `open_index`: the records that have not ended, so that nobody has to read all of them
- `summaries`: counts and costs of DAG runs, so that nobody has to read their records
- `summary_parts`: the documents of the summaries
- `records`: one record for every submission that may have cost money
- `record`: the fields of a record
- `record_values`: the permitted values of a record
- `file_names`: file names, claimed before money is spent
- `fingerprint_index`: the record that has the image of a request
- `job_index`: the record that owns a job
- `caps`: which caps apply to a paid request, and its price
- `budget`: reserves the price from `max_cost` and from the budgets of a day and of a DAG run
- `account_limits`: leases of the rate and concurrency limits of an account
- `manifest`: the result of a task, and the sidecar file of an image
"""
