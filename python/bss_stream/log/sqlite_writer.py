"""The embedded log's one writer: everything that arrives during a commit shares the next one.

The thread owns the only writing connection. Requests are checked before they become SQL, so one
that fails never takes another with it; what SQLite itself refuses (a full disk) fails the whole
commit, and nothing of it is kept.
"""

import asyncio
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Final

from bss_stream.errors import FencedError, LogError
from bss_stream.log.sqlite_file import Row, log_error
from bss_stream.log.sqlite_upkeep import Trim, Upkeep

COMMIT_BYTES_MAX: Final = 8 * 1024 * 1024
COMMIT_REQUESTS_MAX: Final = 1024
UPKEEP_IDLE_S: Final = 1.0
UPKEEP_PAUSE_S: Final = 0.02
"""Between two steps of upkeep under way, so that it never takes more than a part of the time."""

_ROWS_MAX: Final = 500
_CHUNK: Final = (
    "INSERT INTO chunk"
    " (stream, last_offset, base_offset, records, appended_ms, offsets, data) VALUES "
)
_COMMITTED: Final = "INSERT OR REPLACE INTO committed (group_name, stream, next_offset) VALUES "

_log = logging.getLogger(__name__)

Future = asyncio.Future[None]


class Part:
    """Records for one stream."""

    __slots__ = ("data", "records", "stream")

    def __init__(self, stream: int, records: int, data: bytes) -> None:
        self.stream = stream
        self.records = records
        self.data = data


@dataclass(slots=True)
class Write:
    """Records and offsets that are kept together or not at all."""

    future: Future
    parts: Sequence[Part] = ()
    offsets: dict[tuple[str, int], int] = field(default_factory=dict)
    producer: tuple[str, int] | None = None


@dataclass(slots=True)
class Register:
    """Make a group known, from the start of the streams on that it has no offset of."""

    future: Future
    group: str
    streams: Sequence[int]


@dataclass(slots=True)
class Fence:
    """Take a transactional id: the next epoch, which `epoch` then holds."""

    future: Future
    transactional_id: str
    epoch: int = 0


@dataclass(slots=True)
class Tidy:
    """Do all the upkeep there is now."""

    future: Future


Request = Write | Register | Fence | Tidy


@dataclass(slots=True)
class Commit:
    """What a commit changed, and who waits for it."""

    rows: list[tuple[int, Row]] = field(default_factory=list)
    records: list[int] = field(default_factory=list)
    offsets: dict[tuple[str, int], int] = field(default_factory=dict)
    epochs: dict[str, int] = field(default_factory=dict)
    trims: list[Trim] = field(default_factory=list)
    answers: list[tuple[Future, Exception | None]] = field(default_factory=list)


@dataclass(slots=True)
class State:
    """What the file holds, as the writer knows it: changed only after a commit."""

    starts: dict[int, int]
    ends: dict[int, int]
    offsets: dict[tuple[str, int], int]
    epochs: dict[str, int]


@cache
def _values(statement: str, rows: int, columns: int) -> str:
    row = f"({','.join('?' * columns)})"
    return statement + ",".join([row] * rows)


class Writer:
    """The thread; `deliver` gets each commit on the event loop, after it is durable."""

    def __init__(
        self,
        path: Path,
        connection: sqlite3.Connection,
        state: State,
        upkeep: Upkeep,
        clock_ms: Callable[[], int],
        deliver: Callable[[Commit], None],
    ) -> None:
        self._path = path
        self._connection = connection
        self._state = state
        self._upkeep = upkeep
        self._clock_ms = clock_ms
        self._deliver = deliver
        self._loop = asyncio.get_running_loop()
        self._queue: SimpleQueue[Request | None] = SimpleQueue()
        self._steps: Generator[Trim | None] | None = None
        self._upkeep_due_s = time.monotonic() + UPKEEP_IDLE_S
        self._thread = threading.Thread(target=self._run, name="bss-log-writer", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> None:
        """Hand over a request; its future is answered on the event loop."""
        self._queue.put(request)

    def stop(self) -> None:
        """Finish what was submitted, then end the thread. Blocks: call it off the loop."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        running = True
        while running:
            requests, running = self._next_requests()
            if requests:
                self._answer(requests)
            if running and time.monotonic() >= self._upkeep_due_s:
                self._tend()

    def _next_requests(self) -> tuple[list[Request], bool]:
        requests: list[Request] = []
        size = 0
        try:
            first = self._queue.get(timeout=max(0.0, self._upkeep_due_s - time.monotonic()))
            while first is not None:
                requests.append(first)
                if isinstance(first, Write):
                    size += sum(len(part.data) for part in first.parts)
                if size >= COMMIT_BYTES_MAX or len(requests) >= COMMIT_REQUESTS_MAX:
                    return requests, True
                first = self._queue.get_nowait()
        except Empty:
            return requests, True
        return requests, False

    def _answer(self, requests: Sequence[Request]) -> None:
        commit = Commit()
        try:
            ends = dict(self._state.ends)
            for request in requests:
                if not _tidies(request):
                    commit.answers.append((request.future, self._add(request, commit, ends)))
            self._write(commit)
        except sqlite3.Error as error:
            commit = _refused(requests, commit, log_error(self._path, "write to", error))
        except Exception as error:  # noqa: BLE001 - a dead writer would leave every caller waiting
            failure = LogError(f"cannot write to the log {self._path}: {error!r}")
            commit = _refused(requests, commit, failure)
        else:
            self._state.ends = ends
            self._state.offsets.update(commit.offsets)
            self._state.epochs.update(commit.epochs)
            # After the rest: a group that registers in this commit counts already.
            commit.answers += (
                (request.future, self._tidy(commit)) for request in requests if _tidies(request)
            )
        self._send(commit)

    def _add(
        self, request: Request, commit: Commit, ends: dict[int, int]
    ) -> FencedError | LogError | None:
        """Make a request part of a commit, or say why it cannot be."""
        match request:
            case Write(producer=producer):
                if producer is not None and (refused := self._fenced(*producer, commit)):
                    return refused
                for part in request.parts:
                    base = ends[part.stream]
                    ends[part.stream] = base + part.records
                    row = Row(base, base + part.records - 1, None, part.data)
                    commit.rows.append((part.stream, row))
                    commit.records.append(part.records)
                commit.offsets.update(request.offsets)
            case Register():
                for stream in request.streams:
                    key = (request.group, stream)
                    if key not in self._state.offsets:
                        commit.offsets.setdefault(key, self._state.starts[stream])
            case Fence(transactional_id=name):
                request.epoch = 1 + commit.epochs.get(name, self._state.epochs.get(name, 0))
                commit.epochs[name] = request.epoch
        return None

    def _fenced(self, name: str, epoch: int, commit: Commit) -> FencedError | None:
        newest = commit.epochs.get(name, self._state.epochs.get(name, 0))
        return None if epoch == newest else fenced(name, epoch, newest)

    def _write(self, commit: Commit) -> None:
        if not (commit.rows or commit.offsets or commit.epochs):
            return
        now_ms = self._clock_ms()
        execute = self._connection.execute
        execute("BEGIN IMMEDIATE")
        try:
            values: list[object] = []
            for (stream, row), records in zip(commit.rows, commit.records, strict=True):
                base, last, _, data = row
                values += (stream, last, base, records, now_ms, None, data)
            self._insert(_CHUNK, 7, values)
            self._insert(
                _COMMITTED,
                3,
                [item for (key, next_) in commit.offsets.items() for item in (*key, next_)],
            )
            for epoch in commit.epochs.items():
                execute("INSERT OR REPLACE INTO producer VALUES (?, ?)", epoch)
            execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                execute("ROLLBACK")
            raise

    def _insert(self, statement: str, columns: int, values: list[object]) -> None:
        # One statement for many rows: each call lets the GIL go and has to win it back.
        for start in range(0, len(values), _ROWS_MAX * columns):
            some = values[start : start + _ROWS_MAX * columns]
            self._connection.execute(_values(statement, len(some) // columns, columns), some)

    def _send(self, commit: Commit) -> None:
        with suppress(RuntimeError):  # The loop is closed: nobody waits any more.
            self._loop.call_soon_threadsafe(self._deliver, commit)

    def _tend(self) -> None:
        """One bounded step of upkeep; a failure is reported and the next round tries again."""
        if self._steps is None:
            self._steps = self._upkeep.steps(self._state)
        commit = Commit()
        try:
            self._note(next(self._steps), commit)
            self._send(commit)
            self._upkeep_due_s = time.monotonic() + UPKEEP_PAUSE_S
            return
        except StopIteration:
            pass
        except (sqlite3.Error, ValueError) as error:
            _log.error("%s", self._upkeep_error(error))
        self._steps = None
        self._upkeep_due_s = time.monotonic() + UPKEEP_IDLE_S

    def _tidy(self, commit: Commit) -> LogError | None:
        self._steps = None
        try:
            for trim in self._upkeep.steps(self._state):
                self._note(trim, commit)
        except (sqlite3.Error, ValueError) as error:
            return self._upkeep_error(error)
        return None

    def _note(self, trim: Trim | None, commit: Commit) -> None:
        if trim is not None:
            self._state.starts[trim.stream] = trim.start
            commit.trims.append(trim)

    def _upkeep_error(self, error: sqlite3.Error | ValueError) -> LogError:
        if isinstance(error, sqlite3.Error):
            return log_error(self._path, "compact or trim", error)
        return LogError(f"cannot compact the log {self._path}: a chunk is damaged: {error}")


def _tidies(request: Request) -> bool:
    return isinstance(request, Tidy)


def _refused(requests: Sequence[Request], commit: Commit, error: LogError) -> Commit:
    """The answers to requests of which none was kept."""
    told = {id(future): failure for future, failure in commit.answers}
    refused = Commit()
    for request in requests:
        refused.answers.append((request.future, told.get(id(request.future)) or error))
    return refused


def fenced(transactional_id: str, epoch: int, newest: int) -> FencedError:
    """What a producer is told once a newer one has its id."""
    return FencedError(
        f"transactional id {transactional_id} is at epoch {newest} and this producer has "
        f"{epoch}: another owner has taken over, drop the shard"
    )
