"""Where bytes are kept: the ledger's objects (`Store`) and the users' images (`Files`), on disk, S3 and elsewhere.

An image that was paid for is only as safe as the writes below it, so this is the one room that touches a disk or a
bucket. What must stay true:

- Only one of any number of writers creates an object. S3: ``If-None-Match: *``. Disk: a temporary file in the same
  folder, fsync, `os.link`. A later write names the version that it replaces.
- "Absent" is said only where the store said so. A refusal (403, EACCES) and a failure are `StorageError`.
- Ages come from the store's own clock: those of two workers may differ.
- An answer can get lost, and then the caller's own write comes back as "taken". So nothing outside calls `Store.create`
  or `Store.replace` itself: `create_or_read`, `replace_or_read` and `update` know their own writes again.
- Nothing here knows Airflow: what opens its connections is handed in (`Openers`).

In reading order:

- `base`: what every kind of storage has to do
- `uris`: names and addresses
- `cas`: create-or-read and update, which know a lost answer
- `local`: a disk
- `s3`: the ledger's objects on S3
- `s3_files`: users' files on S3
- `object_storage`: everything else that Airflow serves
- `files`: which kind serves a URI
- `write_checks`: whether a place takes what an image needs
"""

from __future__ import annotations

from airflow_provider_geminiimg.core.storage.base import Blob, Openers, Store
from airflow_provider_geminiimg.core.storage.cas import Stored, create_or_read, replace_or_read, update
from airflow_provider_geminiimg.core.storage.files import Files, State, open_store
from airflow_provider_geminiimg.core.storage.local import IMAGES, LocalStore
from airflow_provider_geminiimg.core.storage.s3 import S3Store
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
    "Files",
    "LocalStore",
    "Openers",
    "S3Store",
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
