"""What has been paid for, and what else is kept under the root.

In reading order:

- `layout`: where everything lies: each key is built and taken apart here
- `records`: one record for every submission that may have cost money
- `record_values`: what the values of a record may be
- `file_names`: names of files, claimed before money is spent
- `fingerprint_index`: which record has the image of a request
- `job_index`: which record a job belongs to
- `budget`: what may be spent
- `manifest`: what a task returns, and the sidecar beside an image
"""
