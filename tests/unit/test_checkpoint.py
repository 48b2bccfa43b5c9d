"""Checkpoints: whole or seen to be damaged, whatever happens to the file."""

from contextlib import closing
from pathlib import Path

import pytest

from bss_stream._engine import pack
from bss_stream.checkpoint import Changelog, CheckpointReader, CheckpointWriter, Header, misfit
from bss_stream.errors import CheckpointError
from bss_stream.log.protocol import Extent

PLANS, STATIONS = "bss.state.plan", "bss.state.station"
HEADER = Header(
    shard=1,
    partitions=4,
    changelogs=(Changelog(PLANS, "a1", 10), Changelog(STATIONS, "b2", 7)),
)
PAGES = [
    (PLANS, pack([(b"plan-1", b"one"), (b"plan-2", b"two")])),
    (PLANS, pack([(b"plan-3", b"three")])),
    (STATIONS, pack([(b"station-1", b"x" * 100)])),
]


def write(path: Path, header: Header = HEADER) -> None:
    writer = CheckpointWriter(path, header)
    for topic, data in PAGES:
        writer.page(topic, data)
    writer.finish()


def read(path: Path) -> list[tuple[str, bytes]]:
    with closing(CheckpointReader(path)) as reader:
        return list(reader.pages())


def files(path: Path) -> list[Path]:
    """All that is where the checkpoint is."""
    return list(path.parent.iterdir())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints" / "shard-1.checkpoint"


def test_what_was_written_is_read(path: Path) -> None:
    write(path)
    with closing(CheckpointReader(path)) as reader:
        assert reader.header == HEADER
    assert read(path) == PAGES


def test_any_changed_byte_is_seen(path: Path) -> None:
    write(path)
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x20]) + whole[at + 1 :])
        with pytest.raises(CheckpointError, match=r"shard-1\.checkpoint"):
            read(path)


def test_any_missing_end_is_seen(path: Path) -> None:
    write(path)
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match="is damaged at"):
            read(path)
    path.write_bytes(whole + b"x")
    with pytest.raises(CheckpointError, match="is damaged at its end"):
        read(path)


def test_pages_of_another_checkpoint_are_seen(path: Path) -> None:
    write(path, Header(shard=1, partitions=4, changelogs=HEADER.changelogs[::-1]))
    other = path.read_bytes().partition(b"\n")[2]
    write(path)
    path.write_bytes(path.read_bytes().partition(b"\n")[0] + b"\n" + other)
    with pytest.raises(CheckpointError, match="is damaged at page 0"):
        read(path)


def test_one_that_is_not_finished_leaves_the_old_one(path: Path) -> None:
    write(path)
    with closing(CheckpointWriter(path, HEADER)._file):
        # As by kill -9.
        assert read(path) == PAGES
    assert len(files(path)) == 2
    write(path)
    assert files(path) == [path]
    abandoned = CheckpointWriter(path, HEADER)
    abandoned.abandon()
    assert files(path) == [path]


def test_what_the_file_system_refuses_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot write the checkpoint"):
        CheckpointWriter(tmp_path / "file" / "shard-1.checkpoint", HEADER)
    with pytest.raises(CheckpointError, match=r"cannot read the checkpoint .*No such file"):
        CheckpointReader(tmp_path / "none")


@pytest.mark.parametrize(
    ("shard", "partitions", "plans", "stations", "why"),
    [
        (1, 4, Extent("a1", 0, 10), Extent("b2", 7, 9), ""),
        (2, 4, Extent("a1", 0, 10), Extent("b2", 0, 9), "it is of shard 1 of 4"),
        (1, 8, Extent("a1", 0, 10), Extent("b2", 0, 9), "it is of shard 1 of 4"),
        (1, 4, Extent("a2", 0, 10), Extent("b2", 0, 9), "it is of another bss.state.plan than"),
        (1, 4, Extent("a1", 0, 9), Extent("b2", 0, 9), "it goes to offset 10 of bss.state.plan"),
        (1, 4, Extent("a1", 0, 10), Extent("b2", 8, 9), "which has 8 to 9"),
    ],
)
def test_a_checkpoint_must_fit_the_changelogs(
    shard: int, partitions: int, plans: Extent, stations: Extent, why: str
) -> None:
    told = misfit(HEADER, shard, partitions, {PLANS: plans, STATIONS: stations})
    assert why in told
    assert bool(told) == bool(why)
