"""Path segments for any text, and URIs parsed into their parts.

Invariants: different texts never share a segment. URIs are literal: a percent sign is a percent sign, so that it cannot
hide another character. ``..`` is refused. An address that another parser reads differently is refused if that parser
receives it: fsspec splits at ``::``, cuts at ``?`` and ``#`` and drops line breaks; web servers decode twice, cut at
``;`` and stop at null bytes.
"""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import unquote, unquote_to_bytes

from airflow_provider_geminiimg.core.validation.texts import refuse_lone_surrogates
from airflow_provider_geminiimg.exceptions import BadRequestError, scrub

WEB_SCHEMES = ("http", "https")
_LITERAL_SCHEMES = ("s3", "file")  # opened with bucket and key, or with the path, without further parsing
_SAME_SCHEME = {"s3a": "s3", "s3n": "s3", "local": "file", "gcs": "gs", "abfss": "abfs", "adl": "abfs"}
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*")  # no "::", which fsspec reads as a chain of file systems
CHAIN = "::"
"""fsspec, and everything built on it, reads this in a URI as a chain of file systems."""

_HOST = re.compile(r"[A-Za-z0-9._-]+(:[0-9]+)?")
_AZURE_HOST = ".core.windows.net"
_REREAD = {
    '"::"': re.compile(CHAIN),
    '"?" or "#"': re.compile(r"[?#]"),
    "a backslash": re.compile(r"\\"),
    "a control character": re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]"),
    "an empty part": re.compile(r"^/|//"),
    "a part of dots and spaces alone": re.compile(r"(^|/)[. ]+(/|$)"),
}
"""Patterns that file systems behind fsspec read differently, by their name in messages."""
_IN_ITS_FOLDER = ('"?" or "#"', "an empty part")  # those after which the other file is still in the named folder
_AFTER_NAME = re.compile("[;?#]")  # ends a part's name for a server that decodes the path before parsing it
_DECODED_AT_MOST = 5  # rounds of decoding; a path that still changes after them is refused
_ODD_ESCAPES = re.compile(rb"%u([0-9a-f]{4})|\xc0[\xae\xaf]|\xe0\x80[\xae\xaf]", re.IGNORECASE)
"""Escaped characters, and overlong encodings of a dot and a slash, which some servers decode."""

_ENCODED = re.compile(r"[^A-Za-z0-9_.~+:-]|:(?=:)|(?<=:):")
_MAX_SEGMENT = 120
_DIGEST = 32  # characters of the hash at the end of a cut segment
_CUT = re.compile(rf"=|[A-Za-z0-9_.~+:%-]{{{_MAX_SEGMENT - _DIGEST - 1}}}=[0-9a-f]{{{_DIGEST}}}")


def encode_segment(segment: str) -> str:
    """Encode any text as one path segment, with different segments for different texts.

    All characters except ``[A-Za-z0-9_.~+-]`` and a single ``:`` are percent-encoded, as are ``.`` and ``..``. A result
    of more than 120 bytes is cut and ends with ``=`` and a hash. The empty text becomes ``=``.

    :param segment: a DAG id, run id, task id or similar.
    """
    if segment in ("", ".", ".."):
        return segment.replace(".", "%2E") or "="
    encoded = _ENCODED.sub(lambda found: _percent(found.group()), segment)
    if len(encoded) <= _MAX_SEGMENT:
        return encoded
    digest = hashlib.sha256(segment.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGEST]
    return f"{encoded[: _MAX_SEGMENT - _DIGEST - 1]}={digest}"


def is_cut(text: str) -> bool:
    """Return whether `text` has the form of a cut or empty segment, which cannot be decoded."""
    return _CUT.fullmatch(text) is not None


def decode_segment(segment: str) -> str | None:
    """Return the text of a segment from `encode_segment`; ``None`` if it was cut."""
    try:
        text = unquote(segment, errors="surrogatepass")
    except UnicodeDecodeError:  # not written by this package
        return None
    return text if encode_segment(text) == segment else None


def _percent(text: str) -> str:
    return "".join(f"%{byte:02X}" for byte in text.encode("utf-8", "surrogatepass"))


def join_uri(directory: str, name: str) -> str:
    """Return the URI of `name` (which may contain ``/``) in the directory URI `directory`."""
    return f"{directory}{name}" if directory.endswith("/") else f"{directory}/{name}"


@dataclass(frozen=True)
class Location:
    """A parsed URI. `path` is absolute for files, otherwise the key within `bucket`."""

    scheme: str
    conn_id: str | None
    bucket: str
    path: str
    uri: str = field(repr=False)

    @property
    def file(self) -> str:
        """The path of a file, without doubled slashes."""
        return os.path.normpath(self.path)

    @property
    def shown(self) -> str:
        """The URI for messages: without a query, and without user and fragment of a web address."""
        if self.scheme == "file":
            return self.path
        conn = f"{self.conn_id}@" if self.conn_id and self.scheme not in WEB_SCHEMES else ""
        path = self.path if self.scheme == "s3" else self.path.partition("?")[0]
        if self.scheme in WEB_SCHEMES:
            path = path.partition("#")[0]  # browsers do not send it, and some hosts put secrets there
        return f"{self.scheme}://{conn}{self.bucket}/{path}"

    def segments(self) -> tuple[str, ...]:
        """The parts that are compared with `allowed_roots`: scheme, connection, bucket, and each part of the path."""
        if self.scheme == "file":
            return ("file", "", "", *(part for part in os.path.realpath(self.path).split("/") if part))
        path = self.path.partition("?")[0].partition("#")[0] if self.scheme in WEB_SCHEMES else self.path
        return (self.scheme, self.conn_id or "", self.bucket, *path.rstrip("/").split("/"))


def same_place(uri: str) -> str:
    """Return 64 hex digits that are equal for all notations of one place: with or without ``file://``, symbolic links,
    doubled slashes.

    The same bucket through two connections counts as two places.

    :raises BadRequestError: it is not a valid URI.
    """
    return hashlib.sha256("\n".join(locate(uri).segments()).encode("utf-8", "surrogatepass")).hexdigest()


def locate(uri: str, what: str = "uri", *, landed: bool = False) -> Location:
    """Parse a URI.

    :param landed: the address of a recorded image, which may come from a version with fewer restrictions. It is
        accepted if it cannot lead out of its folder.
    :raises BadRequestError: it is relative, has no bucket, or contains a password, ``..``, a null byte, a lone
        surrogate, or a part that another parser reads differently.
    """
    refuse_lone_surrogates(what, uri)
    scheme, rest = _scheme_and_rest(uri, what)
    authority = re.split("[/?#]" if scheme in WEB_SCHEMES else "/", rest, maxsplit=1)[0]
    path = rest[len(authority) :].removeprefix("/")
    conn_id, _, bucket = authority.rpartition("@")
    if scheme == "file":
        if authority not in ("", "localhost"):
            raise BadRequestError(f"{what}: a file URI has no host; write file:///folder/name (three slashes).")
        conn_id, bucket, path = "", "", f"/{path}"
    place = Location(scheme, conn_id or None, bucket.lower() if scheme in WEB_SCHEMES else bucket, path, uri)
    _refuse_ambiguous(place, authority, what)
    if scheme not in (*WEB_SCHEMES, *_LITERAL_SCHEMES):
        _refuse_rereading(place, what, _IN_ITS_FOLDER if landed else ())
    return place


def _scheme_and_rest(uri: str, what: str) -> tuple[str, str]:
    """Return the scheme, with aliases replaced, and the text after ``://``.

    :raises BadRequestError: it is neither a URI nor an absolute path.
    """
    is_path = uri.startswith("/") and not uri.startswith("//")  # web pages write //host/name?query
    scheme, separator, rest = ("file", "://", uri) if is_path else uri.partition("://")
    if not separator or not _SCHEME.fullmatch(scheme.lower()):
        raise BadRequestError(
            f"{what}: {scrub(uri.partition('?')[0][:4_000], limit=80)!r} is neither a URI nor an absolute path.",
            hint="Write it as s3://bucket/key, s3://conn_id@bucket/key, file:///folder/name, /folder/name, or (only "
            "for input images) https://host/name.",
        )
    return _SAME_SCHEME.get(scheme.lower(), scheme.lower()), rest


def _refuse_ambiguous(place: Location, authority: str, what: str) -> None:
    """Refuse a password, a missing bucket, a query in the bucket's place, and a path that leads out of its folder.

    :raises BadRequestError: the URI has one of these.
    """
    scheme, path = place.scheme, place.path
    if ":" in (place.conn_id or "") and scheme not in WEB_SCHEMES:
        raise BadRequestError(
            f"{what}: a {scheme}:// URI cannot contain a password.",
            hint=f"Put it into an Airflow connection, and use that connection: {scheme}://conn_id@bucket/key.",
        )
    if scheme != "file" and not place.bucket:
        raise BadRequestError(f"{what}: {place.shown} names no bucket.")
    if "?" in authority or "#" in authority:
        raise BadRequestError(f"{what}: a {scheme}:// URI contains a query where its bucket should be.")
    climbs = _climbs(path.partition("?")[0]) if scheme in WEB_SCHEMES else ".." in path.split("/") or "\0" in path
    if climbs:
        raise BadRequestError(f'{what}: {place.shown!r} contains ".." or a null byte, which are not allowed.')


def refuse_chain(uri: str, what: str) -> None:
    """Refuse ``::`` in a directory, because fsspec would open its files at another address.

    :raises BadRequestError: it contains ``::``.
    """
    if CHAIN in uri:
        raise BadRequestError(
            f'{what}: {scrub(locate(uri, what).shown, limit=200)!r} contains "::". Airflow\'s ObjectStoragePath '
            "reads this as a chain of file systems, and would open another file.",
            hint='Allowed: a directory without "::" in its name.',
        )


def _refuse_rereading(place: Location, what: str, but_for: Sequence[str]) -> None:
    """Refuse parts that Airflow's ``ObjectStoragePath``, or a file system behind it, would read differently.

    :param but_for: names of `_REREAD` that are accepted in this address.
    :raises BadRequestError: there is such a part.
    """
    shown = f"{what}: {scrub(place.shown, limit=200)!r}"
    if place.bucket.lower().endswith(_AZURE_HOST):
        raise BadRequestError(
            f"{shown} contains a storage account; Airflow expects the form connection@container.",
            hint=f"Write it as {place.scheme}://conn_id@container/folder; the connection contains the account.",
        )
    if not _HOST.fullmatch(place.bucket):
        raise BadRequestError(
            f"{shown}: {scrub(place.bucket, limit=80)!r} is not a bucket or host.",
            hint=f"Write it as {place.scheme}://bucket/key or {place.scheme}://conn_id@bucket/key.",
        )
    for held, found in _REREAD.items():
        if held in but_for:
            continue
        if found.search(place.path.removesuffix("/")) or found.search(place.conn_id or ""):
            raise BadRequestError(
                f"{shown} contains {held}, with which Airflow's ObjectStoragePath would open another file.",
                hint="Rename the file or folder. Only s3:// and disks accept all names.",
            )


def _climbs(path: str) -> bool:
    """Return whether some web server could find ``..`` or a null byte in a path.

    The path is decoded repeatedly, backslashes count as slashes, path parameters, control characters and spaces are
    ignored, and characters that look like a dot count as dots.
    """
    data = path.encode("utf-8", "surrogatepass")
    for _ in range(_DECODED_AT_MOST):
        text = unicodedata.normalize("NFKC", data.decode("utf-8", "replace")).replace("\\", "/")
        parts = ("".join(filter(str.isprintable, part)) for part in text.split("/"))
        if "\0" in text or any(_AFTER_NAME.split(part)[0].strip() == ".." for part in parts):
            return True
        before, data = data, _ODD_ESCAPES.sub(_unescaped, unquote_to_bytes(data))
        if data == before:
            return False
    return True


def _unescaped(found: re.Match[bytes]) -> bytes:
    if found[1]:
        return chr(int(found[1], 16)).encode("utf-8", "surrogatepass")
    return b"." if found[0].endswith(b"\xae") else b"/"
