"""The head of pg_dump's custom format: parse its header and table of contents (TOC).

The layout (``pg_backup_archiver.c``, ``pg_backup_custom.c``; archive versions 1.14 of clients 14 and 15, 1.15 of 16, 1.16 of 17
and 18): an int is a sign byte and four bytes, little endian; a string an int and so many bytes, -1 for NULL::

    head    "PGDMP" major minor revision intsize offsetsize format
            compression (1.15+: a byte, the method; before: an int, the level)
            seven ints (time of the dump), database, server's version, pg_dump's version, count of entries
    entry   id, has data (0, 1), catalog oid, oid, tag, kind, section, definition, drop, copy statement, schema, tablespace,
            1.14+: access method, 1.16+: kind of relation, owner, "false", ids it depends on … NULL, offset flag, offset

Strings are decoded by the dump's own encoding, which its first entry names. Lengths are bounded and numbers checked, so that a
damaged head raises and neither hangs nor fills the memory.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, Literal, NoReturn, TypeAlias

import attrs

from pgsnap import DumpError

__all__ = ["NO_DATA", "HeadParser", "Section", "Toc", "TocEntry", "damaged", "unpack_int"]

Section: TypeAlias = Literal["none", "pre-data", "data", "post-data"]

NO_DATA = 3
"""The offset flag of an entry that has no block; 1 (position unknown) and 2 (position known) have one."""

_MINORS = range(14, 17)
_METHODS = ("none", "gzip", "lz4", "zstd")
_FORMATS = {3: "tar", 5: "directory"}
_SECTIONS: tuple[Section, ...] = ("none", "pre-data", "data", "post-data")
_MAX_STRING = 256 << 20  # a definition; statistics of wide tables reach megabytes
_MAX_NAME = 64 << 10  # everything else; an identifier has 63 bytes, a function's tag its arguments
_MAX_NUMBER = 20  # an oid or a dump id in decimal

_CODECS = {
    "UTF8": "utf-8", "LATIN1": "iso8859-1", "LATIN2": "iso8859-2", "LATIN3": "iso8859-3", "LATIN4": "iso8859-4",
    "LATIN5": "iso8859-9", "LATIN6": "iso8859-10", "LATIN7": "iso8859-13", "LATIN8": "iso8859-14", "LATIN9": "iso8859-15",
    "LATIN10": "iso8859-16", "ISO_8859_5": "iso8859-5", "ISO_8859_6": "iso8859-6", "ISO_8859_7": "iso8859-7",
    "ISO_8859_8": "iso8859-8", "KOI8R": "koi8-r", "KOI8U": "koi8-u", "WIN866": "cp866", "WIN874": "cp874",
    "EUC_JP": "euc_jp", "EUC_CN": "gb2312", "EUC_KR": "euc_kr", "EUC_JIS_2004": "euc_jis_2004", "SJIS": "cp932", "BIG5": "big5",
    "GBK": "gbk", "GB18030": "gb18030", "UHC": "cp949", "JOHAB": "johab", "SHIFT_JIS_2004": "shift_jis_2004",
    **{f"WIN{page}": f"cp{page}" for page in range(1250, 1259)},
}  # fmt: skip


@attrs.frozen(kw_only=True)
class TocEntry:
    """One entry of the table of contents: an object, its data, or something said about it.

    ``desc`` is its kind (``TABLE``, ``TABLE DATA``, ``ACL`` …), ``tag`` its name, ``namespace`` its schema, ``tableoid`` and
    ``oid`` where the source's catalogs had it, ``copy`` the COPY statement of table data, ``relkind`` a letter (archives 1.16
    and later). Strings that were NULL in the archive are empty.
    """

    dump_id: int
    had_dumper: bool
    tableoid: int
    oid: int
    tag: str
    desc: str
    section: Section
    defn: str
    drop: str
    copy: str
    namespace: str
    tablespace: str
    tableam: str
    relkind: str
    owner: str
    dependencies: tuple[int, ...]
    offset_flag: int

    @property
    def has_data(self) -> bool:
        """Whether the archive holds a block for this entry."""
        return self.offset_flag != NO_DATA

    @property
    def title(self) -> str:
        """Kind, schema and name, for messages: ``TABLE DATA public.orders``."""
        return f"{self.desc} {self.namespace}.{self.tag}" if self.namespace else f"{self.desc} {self.tag}"


@attrs.frozen(kw_only=True)
class Toc:
    """The head of an archive.

    Args:
        version: The archive's, such as ``(1, 16, 0)``.
        compression: One of ``none``, ``gzip``, ``lz4``, ``zstd``.
        level: Its level where the archive tells (1.14 only; -1 is the default level).
        dbname: The database that was dumped.
        server_version: As pg_dump recorded it, such as ``18.6``.
        dump_version: pg_dump's own, likewise.
        encoding: The dump's, as PostgreSQL names it: ``UTF8``.
        entries: In the archive's order, which is the order of restoring.
        raw: The bytes of header and table of contents: what pg_restore needs to list.
    """

    version: tuple[int, int, int]
    compression: str
    level: int | None
    dbname: str
    server_version: str
    dump_version: str
    encoding: str
    entries: tuple[TocEntry, ...]
    raw: bytes = attrs.field(repr=False)

    def shared(self, text: str) -> str:
        """Return a name of a role or database, read from a statement of this archive, as it is on the server; see ``_shared``."""
        return _shared(text, _CODECS.get(self.encoding, "utf-8"))


def _shared(text: str, codec: str) -> str:
    """Undo the decoding of what is in PostgreSQL's shared catalogs: names of roles and databases, comments on databases.

    These have no encoding of their own: pg_dump gets the bytes as they were written from whatever database, mostly UTF-8, and
    puts them among strings in this database's encoding. So they are taken for UTF-8 where they can be.
    """
    if codec == "utf-8" or text.isascii():
        return text
    try:
        return text.encode(codec, "surrogateescape").decode("utf-8")
    except UnicodeError:
        return text


def damaged(offset: int, what: str) -> NoReturn:
    """Raise DumpError: what stands at ``offset`` is not what pg_dump writes."""
    raise DumpError(
        f"the dump is not whole: at byte {offset} {what}; it cannot be trusted, so take the dump again "
        "(pg_dump must write the custom format to a pipe)."
    )


# --- the head --------------------------------------------------------------------------------------------------------


class _Short(Exception):
    """The head needs to be at least ``args[0]`` bytes long before it is worth looking again."""


unpack_int: Callable[[bytes | bytearray, int], tuple[int, int]] = struct.Struct("<BI").unpack_from
"""Sign byte and magnitude at an offset."""


class HeadParser:
    """Gathers and parses header and TOC, one entry after the other; an entry that is not there yet is tried again."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.at = 0  # where the next thing to parse begins
        self.needed = 11
        self.part = "the header"
        self._codec = "utf-8"
        self._encoding = "UTF8"
        self._header: dict[str, Any] | None = None
        self._count = 0
        self._minor = 0
        self._offset_size = 8
        self._entries: list[TocEntry] = []
        self._ids: set[int] = set()
        self._names: dict[bytes, str] = {}

    def feed(self, chunk: bytes) -> Toc | None:
        """Take a chunk; return the Toc when it is complete. What follows it is in ``data`` from ``at`` on."""
        self.data += chunk
        if len(self.data) < self.needed:
            return None
        try:
            if self._header is None:
                self._header, self.at = self._parse_header()
                self.part = "the table of contents"
            while len(self._entries) < self._count:
                entry, self.at = self._parse_entry(self.at)
                self._entries.append(entry)
        except _Short as short:
            self.needed = short.args[0]
            return None
        try:
            self._header["dbname"].encode()
        except UnicodeEncodeError:  # it came before the encoding was known, and is not UTF-8
            self._header["dbname"] = self._decode(self._header["dbname"].encode("utf-8", "surrogateescape"))
        return Toc(
            **self._header,
            encoding=self._encoding,
            entries=tuple(self._entries),
            raw=bytes(memoryview(self.data)[: self.at]),
        )

    def _int(self, at: int) -> int:
        if at + 5 > len(self.data):
            raise _Short(at + 5)
        sign, value = unpack_int(self.data, at)
        if sign > 1:
            damaged(at, f"the sign of a number is {sign}, not 0 or 1")
        return -value if sign else value

    def _bytes(self, at: int, limit: int) -> tuple[bytes | None, int]:
        length = self._int(at)
        at += 5
        if length < 0:
            return None, at
        if length > limit:
            damaged(at - 5, f"a string of {length} bytes begins where at most {limit} can be")
        if at + length > len(self.data):
            raise _Short(at + length)
        return bytes(self.data[at : at + length]), at + length

    def _decode(self, raw: bytes) -> str:
        try:
            return raw.decode(self._codec, "surrogateescape")
        except UnicodeDecodeError:  # some codecs of two-byte encodings do not let every byte escape
            return raw.decode("utf-8", "surrogateescape")

    def _text(self, at: int) -> tuple[str, int]:
        raw, at = self._bytes(at, _MAX_STRING)
        return (self._decode(raw) if raw else ""), at

    def _name(self, at: int) -> tuple[str, int]:
        """A string that many entries share: kept once."""
        raw, at = self._bytes(at, _MAX_NAME)
        if not raw:
            return "", at
        name = self._names.get(raw)
        if name is None:
            name = self._names[raw] = self._decode(raw)
        return name, at

    def _number(self, at: int) -> tuple[int | None, int]:
        """A number written as a string; None where it is NULL."""
        raw, end = self._bytes(at, _MAX_NUMBER)
        if raw is None:
            return None, end
        if not raw.isdigit():
            damaged(at, f"stands {raw!r} where a number must be")
        return int(raw), end

    def _parse_header(self) -> tuple[dict[str, Any], int]:
        data = self.data
        if data[:5] != b"PGDMP":
            damaged(0, f"it begins with {bytes(data[:5])!r} and not with 'PGDMP' as the custom format does")
        major, minor, revision, int_size, self._offset_size, archive_format = data[5:11]
        if major != 1 or minor not in _MINORS:
            raise DumpError(
                f"the dump is an archive of version {major}.{minor}, and only versions 1.{_MINORS[0]} to 1.{_MINORS[-1]} "
                "(pg_dump 14 to 18) can be checked for being whole; upgrade pgsnap-postgres, use an older pg_dump that "
                'suits the server, or set format = "plain".'
            )
        if archive_format != 1:
            found = _FORMATS.get(archive_format, f"unknown ({archive_format})")
            damaged(10, f"the format is {found} where custom was expected")
        if int_size != 4 or self._offset_size not in (4, 8):
            damaged(8, f"numbers of {int_size} and offsets of {self._offset_size} bytes are announced, not of 4 and 8")
        self._minor = minor
        at = 11
        level: int | None = None
        if minor >= 15:
            if len(data) < 12:
                raise _Short(12)
            if data[11] >= len(_METHODS):
                damaged(11, f"the compression method is {data[11]}, which is unknown")
            compression = _METHODS[data[11]]
            at += 1
        else:
            level = self._int(at)
            compression = "gzip" if level else "none"
            at += 5
        for _ in range(7):
            self._int(at)
            at += 5
        dbname, at = self._name(at)
        server_version, at = self._name(at)
        dump_version, at = self._name(at)
        self._count = self._int(at)
        if self._count < 0:
            damaged(at, f"the table of contents is said to have {self._count} entries")
        values = {
            "version": (major, minor, revision),
            "compression": compression,
            "level": level,
            "dbname": dbname,
            "server_version": server_version,
            "dump_version": dump_version,
        }
        return values, at + 5

    def _parse_entry(self, start: int) -> tuple[TocEntry, int]:
        dump_id, had_dumper = self._int(start), self._int(start + 5)
        if dump_id < 1 or dump_id in self._ids:
            damaged(start, f"an entry has the id {dump_id}, which is none or was there before")
        if had_dumper not in (0, 1):
            damaged(start + 5, f"stands {had_dumper} where entry {dump_id} must say whether it has data")
        tableoid, at = self._number(start + 10)
        oid, at = self._number(at)
        tag, at = self._text(at)
        desc, at = self._name(at)
        section = self._int(at)
        if not desc or not 1 <= section <= len(_SECTIONS):
            damaged(at, f"entry {dump_id} has the kind {desc!r} and the section {section}")
        defn, at = self._text(at + 5)
        drop, at = self._text(at)
        copy, at = self._text(at)
        namespace, at = self._name(at)
        tablespace, at = self._name(at)
        tableam, at = self._name(at)
        relkind = ""
        if self._minor >= 16:
            letter = self._int(at)
            if not 0 <= letter < 128:
                damaged(at, f"entry {dump_id} has the relation kind {letter}")
            relkind = chr(letter) if letter else ""
            at += 5
        owner, at = self._name(at)
        _, at = self._name(at)  # "false": tables with OIDs are gone
        dependencies = []
        while True:
            other, at = self._number(at)
            if other is None:
                break
            dependencies.append(other)
        if at + 1 + self._offset_size > len(self.data):
            raise _Short(at + 1 + self._offset_size)
        flag = self.data[at]
        if flag not in (1, 2, NO_DATA) or (had_dumper and flag == NO_DATA):
            damaged(at, f"entry {dump_id} ({desc}) has the offset flag {flag}")
        if self._codec != "utf-8":
            owner = _shared(owner, self._codec)
            if desc.startswith("DATABASE") or tag.startswith("DATABASE "):
                tag, defn, drop = (_shared(text, self._codec) for text in (tag, defn, drop))
        entry = TocEntry(
            dump_id=dump_id,
            had_dumper=bool(had_dumper),
            tableoid=tableoid or 0,
            oid=oid or 0,
            tag=tag,
            desc=desc,
            section=_SECTIONS[section - 1],
            defn=defn,
            drop=drop,
            copy=copy,
            namespace=namespace,
            tablespace=tablespace,
            tableam=tableam,
            relkind=relkind,
            owner=owner,
            dependencies=tuple(dependencies),
            offset_flag=flag,
        )
        self._ids.add(dump_id)
        if desc == "ENCODING":  # the first entry of every archive: names after it are in this encoding
            self._encoding = defn.partition("'")[2].partition("'")[0] or "UTF8"
            self._codec = _CODECS.get(self._encoding, "utf-8")
        return entry, at + 1 + self._offset_size
