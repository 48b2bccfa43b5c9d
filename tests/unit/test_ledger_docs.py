"""docs/ledgers.md against the program: its kinds are the audit's, its example verifies a ledger."""

import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from bss_stream import topics
from bss_stream.ledger_kinds import RULES, Money, Rule
from bss_stream.sink.entry import LEDGER_NAMES, decode_row
from bss_stream.sink.sqlite import SqliteLedgerStore
from bss_stream.stories import Stage
from bss_stream.testing import Playground
from tests.ledger_chain import batch_of
from tests.scenarios import STORIES

PAGE = Path(__file__).parents[2] / "docs" / "ledgers.md"
MINUS = "\N{MINUS SIGN}"
_SIGNS = {"": 0, "+ units": 1, f"{MINUS} units": -1, "+ amount": 1, f"{MINUS} amount": -1}


def rows(heading: str) -> dict[str, list[str]]:
    """The cells behind the kind in the table below a line."""
    lines = PAGE.read_text(encoding="utf-8").split(f"{heading}\n", 1)[1].splitlines()
    table: dict[str, list[str]] = {}
    for line in lines[3:]:
        if not line.startswith("|"):
            return table
        kind, *cells = (cell.strip() for cell in line[1:-1].split("|"))
        table[kind.strip("`")] = cells
    return table


def test_the_page_has_every_kind_with_its_ledger() -> None:
    service, payment = rows("Service ledger:"), rows("Payment ledger:")
    assert service.keys() == {kind for kind, rule in RULES.items() if rule.ledger == "service"}
    of_payment = {kind for kind, rule in RULES.items() if rule.ledger == "payment"}
    assert payment.keys() == of_payment


@pytest.mark.parametrize("kind", sorted(set(rows("Service ledger:")) - {"quota_expired"}))
def test_the_page_and_the_audit_agree_on_what_a_kind_does(kind: str) -> None:
    _, used, held, quota, credit = rows("Service ledger:")[kind]
    rule = RULES[kind]
    assert (rule.used, rule.quota, rule.credit) == (_SIGNS[used], _SIGNS[quota], _SIGNS[credit])
    assert rule.takes_held_units == (held == f"{MINUS} held_units")
    if not rule.takes_held_units:
        assert rule.held == _SIGNS[held]


@pytest.mark.parametrize("kind", sorted(rows("Payment ledger:")))
def test_the_page_and_the_audit_agree_on_money(kind: str) -> None:
    _, credit, money = rows("Payment ledger:")[kind]
    rule: Rule = RULES[kind]
    assert (rule.credit, rule.money) == (_SIGNS[credit], Money(money))


def a_day() -> Playground:
    """A playground after the longest of the stories."""
    return Stage(STORIES.load("lifecycle/renewed_after_grace")).perform().play


def ledger_file(path: Path, play: Playground) -> Path:
    store = SqliteLedgerStore(path / "ledgers.db")
    store.open()
    entries = [record for record in play.produced if record.topic in topics.LEDGERS]
    store.write(batch_of(decode_row(LEDGER_NAMES[e.topic], e.value) for e in entries), {})
    store.close()
    return path / "ledgers.db"


def verify(file: Path) -> subprocess.CompletedProcess[str]:
    """Run the page's example."""
    [example] = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return subprocess.run(
        [sys.executable, "-c", example, str(file)], capture_output=True, text=True, check=False
    )


def test_the_example_verifies_a_ledger(tmp_path: Path) -> None:
    done = verify(ledger_file(tmp_path, a_day()))
    assert (done.stdout, done.stderr) == ("1 plans verified\n", "")


@pytest.mark.parametrize(
    ("sql", "complaint"),
    [
        (
            "UPDATE ledger_entries SET entry = replace(entry, '\"units\":1,', '\"units\":2,')"
            " WHERE seq = 7",
            "plan-nbi-1: 7 changed",
        ),
        ("DELETE FROM ledger_entries WHERE seq = 4", "an entry is missing before 5"),
    ],
)
def test_the_example_sees_what_was_tampered_with(tmp_path: Path, sql: str, complaint: str) -> None:
    file = ledger_file(tmp_path, a_day())
    with closing(sqlite3.connect(file)) as database, database:
        assert database.execute(sql).rowcount == 1
    done = verify(file)
    assert done.returncode != 0
    assert complaint in done.stderr


def test_the_stories_write_every_kind_and_no_other() -> None:
    written: set[str] = set()
    for name in STORIES.names:
        play = Stage(STORIES.load(name)).perform().play
        written |= {entry["kind"] for entry in play.entries()}
    assert written == RULES.keys()


def test_the_shell_line_hashes_an_entry() -> None:
    entry = a_day().ledger_bytes[-1].decode()
    [line] = re.findall(r"```sh\n(.*?)\n```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    done = subprocess.run(
        ["sh", "-c", line], env={"entry": entry, "PATH": "/usr/bin:/bin"}, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    assert f'"hash":"{done.stdout.split()[0]}"' in entry
