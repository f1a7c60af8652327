"""Storage: the ledger's objects (`Store`) and the users' files (`Files`), on disk, S3 and other stores.

This is the only package that accesses disks and buckets. Invariants:

- Only one of several concurrent writers creates an object. A bucket: ``If-None-Match: *``, or the
  same by another name. Disk: a temporary file in the same
  folder, fsync, `os.link`. A later write names the version that it replaces.
- "Absent" is reported only if the store confirms it. A refusal (403, EACCES) and a failure are `StorageError`.
- Ages come from the store's own clock, because the clocks of two workers may differ.
- The answer of a write can be lost, and then the caller's own write looks like another writer's. Therefore other
  packages do not call `Store.create` or `Store.replace` directly: `create_or_read`, `replace_or_read` and `update`
  recognise their own writes.
- Nothing here depends on Airflow: the functions that open connections are passed in (`Openers`).

In reading order:

- `base`: the interfaces of all kinds of storage
- `uris`: path segments and URIs
- `cas`: create-or-read and update, which handle lost answers
- `folders`: folders on disk
- `disk`: files on disk
- `local`: disk
- `drivers`: the interface of a bucket
- `s3`, `gcs`, `azure_blobs`: S3, Google Cloud Storage, Azure Blob Storage
- `bucket_store`: the ledger's objects in a bucket
- `bucket_files`: users' files in a bucket
- `object_storage`: all other stores that Airflow supports
- `files`: selects the storage for a URI
- `write_checks`: tests whether a directory accepts an image
"""

from __future__ import annotations

from airflow_provider_geminiimg.core.storage.base import Blob, Openers, Store
from airflow_provider_geminiimg.core.storage.cas import Expected, Stored, create_or_read, replace_or_read, update
from airflow_provider_geminiimg.core.storage.files import Files, State, open_store
from airflow_provider_geminiimg.core.storage.local import IMAGES, LocalStore
from airflow_provider_geminiimg.core.storage.uris import (
    WEB_SCHEMES,
    decode_segment,
    encode_segment,
    is_cut,
    join_uri,
    locate,
    same_place,
)

__all__ = [
    "IMAGES",
    "WEB_SCHEMES",
    "Blob",
    "Expected",
    "Files",
    "LocalStore",
    "Openers",
    "State",
    "Store",
    "Stored",
    "create_or_read",
    "decode_segment",
    "encode_segment",
    "is_cut",
    "join_uri",
    "locate",
    "open_store",
    "replace_or_read",
    "same_place",
    "update",
]
