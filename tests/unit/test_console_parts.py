"""Parts of the console on their own: sessions, drawings, maps and figures."""

import math
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bss_stream import diagram, topics
from bss_stream._engine import pack
from bss_stream.config import Config, Console
from bss_stream.console import drawing, forms
from bss_stream.console.access import (
    ADDRESSES_MAX,
    FAILURE_WINDOW_MS,
    FAILURES_MAX,
    FAILURES_OF_ALL_MAX,
    Access,
    is_form_of,
)
from bss_stream.console.figures import RATE_S, Figures
from bss_stream.console.map import APART, MARGIN, middle, plane, regions
from bss_stream.errors import ConfigError
from bss_stream.frames import DeadLetter, encode_dead_letter
from bss_stream.log.protocol import Fetched
from bss_stream.setup import load_setup
from bss_stream.setup.documents import LocationFile
from bss_stream.testing import Playground
from bss_stream.validation import Secret
from tests.rider_story import hand_over, paid_plan

TOKEN = Secret("a-token-that-nobody-guesses")
SESSION_MS = 3_600_000


class Clock:
    """Set by hand."""

    def __init__(self) -> None:
        self.now_ms = 1_795_500_000_000

    def __call__(self) -> int:
        return self.now_ms


def entered(access: Access) -> str:
    cookie = access.log_in(TOKEN.reveal(), "here")
    assert cookie is not None
    return cookie


def test_a_session_lasts_its_time() -> None:
    clock = Clock()
    access = Access(TOKEN, SESSION_MS, clock)
    cookie = entered(access)
    session = access.session(cookie)
    assert session is not None
    assert is_form_of(session, session.csrf)
    assert not is_form_of(session, "é" * 64)
    clock.now_ms += SESSION_MS - 1
    assert access.session(cookie) == session
    clock.now_ms += 1
    assert access.session(cookie) is None


def test_a_session_outlives_a_restart_and_not_another_token() -> None:
    clock = Clock()
    cookie = entered(Access(TOKEN, SESSION_MS, clock))
    assert Access(TOKEN, SESSION_MS, clock).session(cookie) is not None
    assert Access(Secret("another-token-altogether"), SESSION_MS, clock).session(cookie) is None
    assert Access(None, SESSION_MS, clock).session(cookie) is None


def test_sessions_have_forms_of_their_own() -> None:
    access = Access(TOKEN, SESSION_MS, Clock())
    one, other = (access.session(entered(access)) for _ in range(2))
    assert one is not None
    assert other is not None
    assert not is_form_of(one, other.csrf)


@given(st.data())
def test_no_changed_cookie_is_a_session(data: st.DataObject) -> None:
    access = Access(TOKEN, SESSION_MS, Clock())
    cookie = entered(access)
    at = data.draw(st.integers(0, len(cookie) - 1))
    letter = data.draw(st.characters().filter(lambda one: one != cookie[at]))
    assert access.session(cookie[:at] + letter + cookie[at + 1 :]) is None
    assert access.session(data.draw(st.text())) is None


def test_nobody_logs_in_without_a_token() -> None:
    access = Access(None, SESSION_MS, Clock())
    assert access.log_in("", "here") is None
    key_of_no_token = Access(Secret(""), SESSION_MS, Clock())
    assert access.session(key_of_no_token.log_in("", "here")) is None


def test_who_guesses_waits_and_others_do_not() -> None:
    clock = Clock()
    access = Access(TOKEN, SESSION_MS, clock)
    for _ in range(FAILURES_MAX):
        assert access.wait_ms("there") == 0
        assert access.log_in("wrong", "there") is None
        clock.now_ms += 1_000
    assert access.wait_ms("there") == FAILURE_WINDOW_MS - FAILURES_MAX * 1_000
    assert access.wait_ms("here") == 0
    clock.now_ms += access.wait_ms("there")
    assert access.wait_ms("there") == 0


def test_many_who_guess_wait_together_and_take_no_room() -> None:
    access = Access(TOKEN, SESSION_MS, Clock())
    for number in range(FAILURES_OF_ALL_MAX):
        access.log_in("wrong", f"there-{number}")
    assert access.wait_ms("here") == FAILURE_WINDOW_MS
    for number in range(2 * ADDRESSES_MAX):
        access.log_in("wrong", f"there-{number}")
    assert len(access._failures) <= ADDRESSES_MAX


@given(st.text())
def test_a_login_stays_here(text: str) -> None:
    path = forms.local_path(text)
    assert path[0] == "/"
    assert path[:2] not in ("//", "/\\")
    assert path.isprintable()


@pytest.mark.parametrize(
    ("console", "fault"),
    [
        ('host = "0.0.0.0"', "$.console.token_file: not set"),
        ('host = "0.0.0.0"\ntoken_file = "/t"', "must not travel in the clear"),
        ('token = "0123456789abcdef"\ntoken_file = "/t"', "expected one of them"),
        ('cert_file = "/c"', "cert_file and key_file together"),
        ('dsn_file = "/dsn"', "as $.console.dsn_file is set"),
    ],
)
def test_settings_that_would_let_others_in(
    console: str, fault: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.mktemp("config") / "bss.toml"
    file.write_text(f"[console]\n{console}\n")
    with pytest.raises(ConfigError) as caught:
        Config.load(file, {})
    assert fault in str(caught.value)
    assert "0123456789abcdef" not in str(caught.value)


def test_a_short_token_is_none() -> None:
    config = Config(console=Console(token=Secret("short")))
    with pytest.raises(ConfigError, match=r"\$\.console\.token: .* expected") as caught:
        config.console_token()
    assert "'short'" not in str(caught.value)


# Drawings.

MODELS = [diagram.read(one.raw) for one in load_setup().models if one.kind == "plan"]
CYCLES = [
    pytest.param(name, cycle, id=f"{one.model}-{name}")
    for one in MODELS
    for name, cycle in one.cycles.items()
]


@pytest.mark.parametrize(("name", "cycle"), CYCLES)
def test_a_cycle_is_drawn_whole(name: str, cycle: diagram.Cycle) -> None:
    for current in cycle.states:
        svg = ElementTree.fromstring(str(drawing.draw(name, cycle, current.name)))
        groups = list(svg.iter("g"))
        states = [one for one in groups if one.attrib["class"].split()[0] == "state"]
        names = [next(one.iter("text")).text for one in states]
        assert names == [state.name for state in cycle.states]
        (lit,) = (one for one in states if "current" in one.attrib["class"])
        assert next(lit.iter("text")).text == current.name
        told = {title.text for title in svg.iter("title")}
        for step in cycle.transitions:
            assert any(step.signal in (text or "") for text in told), step
        leading = [one for one in groups if one.attrib["class"] == "edge next"]
        targets = {one.target for one in cycle.transitions if one.source == current.name}
        assert len(leading) == len(targets - {current.name})
        assert current.name in svg.attrib["aria-label"]


@pytest.mark.parametrize(("name", "cycle"), CYCLES)
def test_lines_stay_within_the_drawing(name: str, cycle: diagram.Cycle) -> None:
    svg = ElementTree.fromstring(str(drawing.draw(name, cycle, None)))
    width, height = float(svg.attrib["width"]), float(svg.attrib["height"])
    for polygon in svg.iter("polygon"):
        for point in polygon.attrib["points"].split():
            x, y = map(float, point.split(","))
            assert 0 <= x <= width
            assert 0 <= y <= height


PLACES = [
    (station.latitude, station.longitude)
    for market in load_setup().markets
    for document in market.documents(LocationFile)
    for station in document.stations
]


def test_markets_far_apart_are_drawings_of_their_own() -> None:
    found = regions(PLACES)
    assert sorted(number for region in found for number in region) == list(range(len(PLACES)))
    assert [len(region) for region in found] == sorted(map(len, found), reverse=True)
    assert len(found) == 3  # Nairobi, Mombasa, Lomé.
    for region in found:
        drawn = plane([PLACES[number] for number in region])
        spots = drawn.spots
        apart = [math.dist(a, b) for at, a in enumerate(spots) for b in spots[:at]]
        # Circles of 13: they may touch, and never cover a number.
        assert min(apart) > 0.8 * APART
        assert all(MARGIN <= spot.x <= drawn.width - MARGIN for spot in spots)
        assert all(MARGIN <= spot.y <= drawn.height - MARGIN for spot in spots)
        assert 0 <= middle([PLACES[number] for number in region]) < len(region)


@given(st.lists(st.tuples(st.floats(-80, 80), st.floats(-180, 180)), max_size=12))
def test_any_places_have_spots(places: list[tuple[float, float]]) -> None:
    drawn = plane(places)
    assert len(drawn.spots) == len(places)
    assert all(0 <= spot.x <= drawn.width and 0 <= spot.y <= drawn.height for spot in drawn.spots)


# Figures.


def taken(figures: Figures, play: Playground, topic: str) -> int:
    found = [(one.key, one.value) for one in play.produced if one.topic == topic]
    if found:
        figures.take(Fetched(topic, 0, range(len(found)), pack(found), len(found)))
    return len(found)


def test_figures_count_what_went_by() -> None:
    play = Playground()
    paid_plan(play)
    hand_over(play, None, "bat-1", 1.5)
    hand_over(play, "bat-1", "bat-2", 2.25)
    hand_over(play, "bat-7", "bat-3", 1.0)  # Not the plan's battery.
    clock = Clock()
    clock.now_ms = play.now_ms + 250
    figures = Figures(clock)
    entries = sum(taken(figures, play, topic) for topic in topics.LEDGERS)
    sent = taken(figures, play, topics.OUTBOX)
    letter = DeadLetter("bad_key", "t", -1, -1, clock.now_ms, "why", b"raw")
    value = encode_dead_letter(letter)
    figures.take(Fetched(topics.DEAD_LETTER, 0, [0], pack([(b"k", value)]), 1))
    figures.take(Fetched(topics.SIGNALS_PLAN, 0, range(7), b"", 7))
    clock.now_ms += 1_000
    told = figures.snapshot()
    swaps = {entry["source"] for entry in play.entries() if entry["kind"] == "quota_used"}
    assert told["totals"]["entries"] == entries
    assert told["totals"]["swaps"] == len(swaps) > 0
    assert told["totals"]["letters"] == 1
    assert told["totals"]["signals"] == 7
    assert told["rates"]["signals"] == 7 / RATE_S
    assert told["series"]["signals"][-1] == 7
    outcomes = dict(told["outcomes"])
    assert sum(outcomes.values()) == told["totals"]["echoes"] == len(play.echoes) <= sent
    reasons = [echo["data"]["metadata"]["reason"] for echo in play.echoes]
    assert outcomes == {one: reasons.count(one) for one in reasons}
    assert told["events"][0]["what"] == "bad_key"
    assert told["events"][0]["letter"] == "0-0"
    assert figures.newest_recorded_ms is not None


def test_figures_forget() -> None:
    clock = Clock()
    figures = Figures(clock)
    for _ in range(1_000):
        figures.take(Fetched(topics.SIGNALS_PLAN, 0, range(3), b"", 3))
        clock.now_ms += 1_000
    told = figures.snapshot()
    assert told["totals"]["signals"] == 3_000
    assert set(told["series"]["signals"]) == {3}
    assert told["rates"]["signals"] == 3.0
    assert len(figures._seconds) <= 300
