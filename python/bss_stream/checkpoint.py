"""A shard's states in a local file: written aside, checked by sums, put in place as a whole.

A line that says what it is, pages of changelog records, and an end. Whatever a crash leaves is the
former file, or one that is seen to be damaged.
"""

import os
import struct
import sys
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from bss_stream.errors import CheckpointError
from bss_stream.log.protocol import Extent

VERSION: Final = 1
PAGE: Final = struct.Struct(">BII")
"""A page's topic (its index in the header, END for the end), its bytes, and their sum, which goes
on from the header's: a page of another file does not fit."""

END: Final = 0xFF
PAGE_BYTES_MAX: Final = 64 * 1024 * 1024
"""A larger page is damage. An entity's state is far smaller, and pages are closed past 4 MiB."""


class Changelog(msgspec.Struct, frozen=True):
    """How much of a changelog a checkpoint holds: all below `end` of this incarnation."""

    topic: str
    incarnation: str
    end: int


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """What a checkpoint is of."""

    version: int = VERSION
    shard: int
    partitions: int
    changelogs: tuple[Changelog, ...]


class CheckpointWriter:
    """A new checkpoint, which takes its place only at `finish`. Its calls block."""

    def __init__(self, path: Path, header: Header) -> None:
        """Begin beside the old one. Raises CheckpointError, as every call does."""
        self._path = path
        self._aside = path.with_suffix(f".{os.getpid()}.new")
        self._indices = {log.topic: index for index, log in enumerate(header.changelogs)}
        self._pages = 0
        line = msgspec.json.encode(header)
        self._sum = zlib.crc32(line)
        with _explained("write", self._aside):
            path.parent.mkdir(parents=True, exist_ok=True)
            for left_over in path.parent.glob(f"{path.stem}.*.new"):
                left_over.unlink(missing_ok=True)
            self._file: BinaryIO = self._aside.open("wb")
            self._file.write(b"%s %08x\n" % (line, self._sum))

    def page(self, topic: str, data: bytes) -> None:
        """Add changelog records."""
        with _explained("write", self._aside):
            self._write(self._indices[topic], data)

    def _write(self, index: int, data: bytes) -> None:
        self._file.write(PAGE.pack(index, len(data), zlib.crc32(data, self._sum)))
        self._file.write(data)
        self._pages += 1

    def finish(self) -> None:
        """Put the checkpoint in the old one's place, to survive a power cut."""
        with _explained("write", self._aside):
            self._write(END, self._pages.to_bytes(8, "big"))
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._aside.replace(self._path)
            _sync_directory(self._path.parent)

    def abandon(self) -> None:
        """Leave the old one as it is."""
        self._file.close()
        self._aside.unlink(missing_ok=True)


def _sync_directory(path: Path) -> None:
    """Have a new name in a directory survive a power cut."""
    if sys.platform == "win32":
        return  # which opens no directory, and keeps names itself
    directory = os.open(path, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


class CheckpointReader:
    """An opened checkpoint. Its calls block, and raise CheckpointError where it is damaged."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with _explained("read", path):
            self._file: BinaryIO = path.open("rb")
        try:
            self.header = self._header()
        except BaseException:
            self.close()
            raise

    def _header(self) -> Header:
        with _explained("read", self._path):
            line, _, told = self._file.readline(65_536).rstrip(b"\n").rpartition(b" ")
        self._sum = zlib.crc32(line)
        if told != b"%08x" % self._sum:
            raise self._damaged("its first line")
        try:
            header = msgspec.json.decode(line, type=Header)
        except msgspec.ValidationError as error:
            raise CheckpointError(f"checkpoint {self._path}: {error}") from error
        if header.version != VERSION:
            raise CheckpointError(
                f"checkpoint {self._path} has version {header.version}: expected {VERSION}"
            )
        return header

    def pages(self) -> Iterator[tuple[str, bytes]]:
        """Each page's topic and changelog records. Only once all have come is it known that the
        checkpoint is whole."""
        topics = [log.topic for log in self.header.changelogs]
        pages = 0
        while True:
            with _explained("read", self._path):
                head = self._file.read(PAGE.size)
                if len(head) < PAGE.size:
                    raise self._damaged("its end, which is missing")
                index, size, told = PAGE.unpack(head)
                data = self._file.read(size) if size <= PAGE_BYTES_MAX else b""
            if len(data) != size or zlib.crc32(data, self._sum) != told:
                raise self._damaged(f"page {pages}")
            if index == END:
                if int.from_bytes(data, "big") != pages or self._file.read(1):
                    raise self._damaged("its end")
                return
            if index >= len(topics):
                raise self._damaged(f"page {pages}")
            pages += 1
            yield topics[index], data

    def _damaged(self, where: str) -> CheckpointError:
        return CheckpointError(f"checkpoint {self._path} is damaged at {where}")

    def close(self) -> None:
        """Let the file go."""
        self._file.close()


def misfit(header: Header, shard: int, partitions: int, present: Mapping[str, Extent]) -> str:
    """Why a checkpoint is of no use for the changelogs that are there, by topic; or nothing."""
    if (header.shard, header.partitions) != (shard, partitions):
        return f"it is of shard {header.shard} of {header.partitions}"
    if {log.topic for log in header.changelogs} != present.keys():
        return f"it has {', '.join(log.topic for log in header.changelogs)}"
    for log in header.changelogs:
        incarnation, start, end = present[log.topic]
        if log.incarnation != incarnation:
            return f"it is of another {log.topic} than the one that is there now"
        if not start <= log.end <= end:
            return f"it goes to offset {log.end} of {log.topic}, which has {start} to {end}"
    return ""


@contextmanager
def _explained(doing: str, path: Path) -> Iterator[None]:
    """Raise what the file system raises as CheckpointError."""
    try:
        yield
    except OSError as error:
        why = error.strerror or error
        raise CheckpointError(f"cannot {doing} the checkpoint {path}: {why}") from error
