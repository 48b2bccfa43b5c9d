"""docs/bounds.md against the program, and the limits against each other."""

import importlib
import re
from pathlib import Path

import msgspec

from bss_stream.bridge import PAYLOAD_BYTES_MAX, RAW_BYTES_MAX
from bss_stream.config import Bridge, Config
from bss_stream.log.embedded_store import CHUNK_BYTES_MAX
from bss_stream.log.kafka_client import RECORD_BYTES_MAX
from bss_stream.log.kafka_producer import ROUND_BYTES_MAX
from bss_stream.log.sqlite_file import READ_BYTES_MAX
from bss_stream.mqtt.messages import MqttSettings
from bss_stream.setup.compile import Limits

PAGE = Path(__file__).parents[2] / "docs" / "bounds.md"
UNITS = {"": 1, "KiB": 1024, "MiB": 1024 * 1024}
HEADER_BYTES_MAX = 16 * 1024
CONFIG = Config()


def value_of(name: str) -> int:
    """The value of `section.setting` or `file.py:CONSTANT`."""
    file, _, constant = name.partition(":")
    if constant:
        module = file.removesuffix(".py").replace("/", ".")
        found: int = getattr(importlib.import_module(f"bss_stream.{module}"), constant)
        return found
    section, _, setting = name.partition(".")
    default: int = getattr(getattr(CONFIG, section), setting)
    return default


def largest(setting: str) -> int:
    """The most that a setting of the bridge can be."""
    found = msgspec.inspect.type_info(Bridge)
    assert isinstance(found, msgspec.inspect.StructType)
    (field,) = [field.type for field in found.fields if field.name == setting]
    assert isinstance(field, msgspec.inspect.Metadata)
    assert isinstance(field.type, msgspec.inspect.IntType)
    assert field.type.le is not None
    return field.type.le


def amount(cell: str) -> int:
    number, _, unit = cell.partition(" ")
    return int(number.replace(",", "")) * UNITS[unit]


def test_every_row_tells_what_the_program_does() -> None:
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in PAGE.read_text(encoding="utf-8").splitlines()
        if re.match(r"\| [a-zA-Z]", line) and line.count("|") == 6
    ][1:]
    assert len(rows) > 10
    for _, what, records, size, names in rows:
        said = [amount(cell) for cell in (records, size) if cell]
        assert said == [value_of(name) for name in re.findall(r"`([^`]+)`", names)], what


def test_the_largest_batch_makes_a_chunk_that_the_log_takes() -> None:
    """One message more than the batch's limit may get in, and each record has a header."""
    size, records = largest("batch_bytes_max"), largest("batch_records_max")
    headers = records * 2 * 1024
    assert size + headers + MqttSettings(host="", client_id="").packet_bytes_max < CHUNK_BYTES_MAX


def test_a_payload_fits_wherever_it_passes() -> None:
    record = PAYLOAD_BYTES_MAX + HEADER_BYTES_MAX
    assert record <= RECORD_BYTES_MAX <= ROUND_BYTES_MAX
    assert record <= READ_BYTES_MAX < CHUNK_BYTES_MAX
    assert record <= MqttSettings(host="", client_id="").packet_bytes_max
    assert Limits().payload_bytes_max <= RAW_BYTES_MAX < PAYLOAD_BYTES_MAX
    assert CONFIG.bridge.buffer_bytes_max > record
