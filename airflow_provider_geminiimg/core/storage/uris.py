"""Names and addresses: path segments for any text, and URIs taken apart.

What must stay true: different texts never share a segment; URIs are taken literally (a percent sign is a percent sign,
so that nothing can hide behind one), and ``..`` is refused. An address that another parser could read in another way is
refused where that other parser gets it: fsspec chains file systems at ``::``, cuts at ``?`` and ``#`` and drops line
breaks; web servers decode twice, cut at ``;`` and stop at null bytes.
"""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, unquote_to_bytes

from airflow_provider_geminiimg.core.validation.texts import refuse_lone_surrogates
from airflow_provider_geminiimg.exceptions import BadRequestError, scrub

WEB_SCHEMES = ("http", "https")
_LITERAL_SCHEMES = ("s3", "file")  # what opens them gets bucket and key, or the path, and parses nothing
_SAME_SCHEME = {"s3a": "s3", "s3n": "s3", "local": "file", "gcs": "gs", "abfss": "abfs", "adl": "abfs"}
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*")  # no "::": fsspec would take it for one file system inside another
CHAIN = "::"
"""Where fsspec, and all that is built on it, takes a URI for one file system inside another."""

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
"""What file systems behind fsspec read in ways of their own, by what a message calls it."""
_IN_ITS_FOLDER = ('"?" or "#"', "an empty part")  # of these: whatever is read instead lies in the folder that is named
_AFTER_NAME = re.compile("[;?#]")  # ends a part's name, for a server that takes the path apart after decoding it
_DECODED_AT_MOST = 5  # times; what still changes then is made to deceive
_ODD_ESCAPES = re.compile(rb"%u([0-9a-f]{4})|\xc0[\xae\xaf]|\xe0\x80[\xae\xaf]", re.IGNORECASE)
"""Of characters, and overlong ones of a dot and a slash, as some servers decode them."""

_ENCODED = re.compile(r"[^A-Za-z0-9_.~+:-]|:(?=:)|(?<=:):")
_MAX_SEGMENT = 120
_DIGEST = 32  # characters of the hash at the end of what was cut
_CUT = re.compile(rf"=|[A-Za-z0-9_.~+:%-]{{{_MAX_SEGMENT - _DIGEST - 1}}}=[0-9a-f]{{{_DIGEST}}}")


def encode_segment(segment: str) -> str:
    """One path segment for any text, a different one for every different text.

    All but ``[A-Za-z0-9_.~+-]`` and single ``:`` is percent-encoded, as are ``.`` and ``..``; what gets longer than
    120 bytes is cut and ends in ``=`` and a hash; the empty text is ``=`` alone.

    :param segment: a DAG id, run id, task id or the like.
    """
    if segment in ("", ".", ".."):
        return segment.replace(".", "%2E") or "="
    encoded = _ENCODED.sub(lambda found: _percent(found.group()), segment)
    if len(encoded) <= _MAX_SEGMENT:
        return encoded
    digest = hashlib.sha256(segment.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGEST]
    return f"{encoded[: _MAX_SEGMENT - _DIGEST - 1]}={digest}"


def is_cut(text: str) -> bool:
    """Whether `text` looks like a segment that does not say what it stands for, because that was too long, or empty."""
    return _CUT.fullmatch(text) is not None


def decode_segment(segment: str) -> str | None:
    """The text that `encode_segment` made this of; ``None`` where that is not known, because it was cut."""
    try:
        text = unquote(segment, errors="surrogatepass")
    except UnicodeDecodeError:  # not by us
        return None
    return text if encode_segment(text) == segment else None


def _percent(text: str) -> str:
    return "".join(f"%{byte:02X}" for byte in text.encode("utf-8", "surrogatepass"))


def join_uri(directory: str, name: str) -> str:
    """The URI of `name` (which may hold ``/``) in the directory URI `directory`."""
    return f"{directory}{name}" if directory.endswith("/") else f"{directory}/{name}"


@dataclass(frozen=True)
class Location:
    """A URI taken apart. `path` is absolute for files, else the key within `bucket`."""

    scheme: str
    conn_id: str | None
    bucket: str
    path: str
    uri: str = field(repr=False)

    @property
    def file(self) -> Path:
        """The path of a file."""
        return Path(self.path)

    @property
    def shown(self) -> str:
        """The URI as a message may repeat it: without a query, and without user and fragment of a web address."""
        if self.scheme == "file":
            return self.path
        conn = f"{self.conn_id}@" if self.conn_id and self.scheme not in WEB_SCHEMES else ""
        path = self.path if self.scheme == "s3" else self.path.partition("?")[0]
        if self.scheme in WEB_SCHEMES:
            path = path.partition("#")[0]  # browsers keep it to themselves, and some hosts put secrets there
        return f"{self.scheme}://{conn}{self.bucket}/{path}"

    def segments(self) -> tuple[str, ...]:
        """What `allowed_roots` are compared by: scheme, connection, bucket, and each part of the path."""
        if self.scheme == "file":
            return ("file", "", "", *(part for part in os.path.realpath(self.path).split("/") if part))
        path = self.path.partition("?")[0].partition("#")[0] if self.scheme in WEB_SCHEMES else self.path
        return (self.scheme, self.conn_id or "", self.bucket, *path.rstrip("/").split("/"))


def same_place(uri: str) -> str:
    """64 hex digits that every spelling of one place has: ``file://`` or not, through symbolic links, doubled slashes.

    One bucket by way of two connections is two places here.

    :raises BadRequestError: it is no URI.
    """
    return hashlib.sha256("\n".join(locate(uri).segments()).encode("utf-8", "surrogatepass")).hexdigest()


def locate(uri: str, what: str = "uri", *, landed: bool = False) -> Location:
    """Take a URI apart.

    :param landed: an image is on record there. Versions that took more addresses may have written it: one of these is
        no error where it can't lead out of its folder.
    :raises BadRequestError: it is relative, has no bucket, or holds a password, ``..``, a null byte, half a character,
        or what another parser of such addresses reads in another way.
    """
    refuse_lone_surrogates(what, uri)
    scheme, rest = _scheme_and_rest(uri, what)
    authority = re.split("[/?#]" if scheme in WEB_SCHEMES else "/", rest, maxsplit=1)[0]
    path = rest[len(authority) :].removeprefix("/")
    conn_id, _, bucket = authority.rpartition("@")
    if scheme == "file":
        if authority not in ("", "localhost"):
            raise BadRequestError(f"{what}: a file URI names no host; write file:///folder/name (three slashes).")
        conn_id, bucket, path = "", "", f"/{path}"
    place = Location(scheme, conn_id or None, bucket.lower() if scheme in WEB_SCHEMES else bucket, path, uri)
    _refuse_ambiguous(place, authority, what)
    if scheme not in (*WEB_SCHEMES, *_LITERAL_SCHEMES):
        _refuse_rereading(place, what, _IN_ITS_FOLDER if landed else ())
    return place


def _scheme_and_rest(uri: str, what: str) -> tuple[str, str]:
    """The scheme, by its one name, and what follows ``://``.

    :raises BadRequestError: it is neither a URI nor an absolute path.
    """
    is_path = uri.startswith("/") and not uri.startswith("//")  # web pages write //host/name?query
    scheme, separator, rest = ("file", "://", uri) if is_path else uri.partition("://")
    if not separator or not _SCHEME.fullmatch(scheme.lower()):
        raise BadRequestError(
            f"{what}: {scrub(uri.partition('?')[0][:4_000], limit=80)!r} is neither a URI nor an absolute path.",
            hint="Write it as s3://bucket/key, s3://conn_id@bucket/key, file:///folder/name, /folder/name, or (only a "
            "image that goes in) https://host/name.",
        )
    return _SAME_SCHEME.get(scheme.lower(), scheme.lower()), rest


def _refuse_ambiguous(place: Location, authority: str, what: str) -> None:
    """Refuse a password, a missing bucket, a query in the bucket's place, and a path that leads out of its folder.

    :raises BadRequestError: there is such a thing.
    """
    scheme, path = place.scheme, place.path
    if ":" in (place.conn_id or "") and scheme not in WEB_SCHEMES:
        raise BadRequestError(
            f"{what}: {scheme}:// URIs take no password.",
            hint=f"Put it into an Airflow connection, and name that one: {scheme}://conn_id@bucket/key.",
        )
    if scheme != "file" and not place.bucket:
        raise BadRequestError(f"{what}: {place.shown} names no bucket.")
    if "?" in authority or "#" in authority:
        raise BadRequestError(f"{what}: a {scheme}:// URI holds a query where its bucket should be.")
    climbs = _climbs(path.partition("?")[0]) if scheme in WEB_SCHEMES else ".." in path.split("/") or "\0" in path
    if climbs:
        raise BadRequestError(f'{what}: {place.shown!r} holds ".." or a null byte, which no path may.')


def refuse_chain(uri: str, what: str) -> None:
    """Refuse ``::`` in an address below which files get theirs: whoever opens one through fsspec ends up elsewhere.

    :raises BadRequestError: it holds one.
    """
    if CHAIN in uri:
        raise BadRequestError(
            f'{what}: {scrub(locate(uri, what).shown, limit=200)!r} holds "::", which ObjectStoragePath takes for one '
            "file system inside another: whoever opens it there gets another file.",
            hint='Allowed: a directory without "::" in its name.',
        )


def _refuse_rereading(place: Location, what: str, but_for: Sequence[str]) -> None:
    """Refuse what Airflow's ``ObjectStoragePath``, or a file system behind it, would read in another way than this.

    :param but_for: what of `_REREAD` an address may hold all the same.
    :raises BadRequestError: there is such a thing.
    """
    shown = f"{what}: {scrub(place.shown, limit=200)!r}"
    if place.bucket.lower().endswith(_AZURE_HOST):
        raise BadRequestError(
            f"{shown} names a storage account where Airflow takes a container, and a container where it takes a "
            "connection.",
            hint=f"Write it as {place.scheme}://conn_id@container/folder: the connection names the account.",
        )
    if not _HOST.fullmatch(place.bucket):
        raise BadRequestError(
            f"{shown}: {scrub(place.bucket, limit=80)!r} is no bucket or host.",
            hint=f"Write it as {place.scheme}://bucket/key or {place.scheme}://conn_id@bucket/key.",
        )
    for held, found in _REREAD.items():
        if held in but_for:
            continue
        if found.search(place.path.removesuffix("/")) or found.search(place.conn_id or ""):
            raise BadRequestError(
                f"{shown} holds {held}, with which Airflow's ObjectStoragePath would open another file.",
                hint="Rename what it names. Only on s3:// and on disks are names taken as they are.",
            )


def _climbs(path: str) -> bool:
    """Whether some web server would find a ``..`` or a null byte in a path: decoded as often as it can be, with
    backslashes for slashes, without path parameters, control characters and spaces, and with each look-alike of a dot.
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
