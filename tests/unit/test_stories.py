"""Story files: what repeats, what a user is told of a file that cannot be played."""

from pathlib import Path

import pytest

from bss_stream.errors import ConfigError
from bss_stream.stories import Library, Stage, Step
from bss_stream.stories.repeat import each_time
from bss_stream.stories.times import duration_ms, epoch_ms, rfc3339

SYNC = "emit/odo/subscription/plan/plan-nbi-1/sync"


def written(tmp_path: Path, **stories: str) -> Library:
    for name, text in stories.items():
        head = f'title = "{name}"\nstory = "..."\n'
        (tmp_path / f"{name}.toml").write_text(head + text, encoding="utf-8")
    return Library([tmp_path])


def fault_of(library: Library, name: str) -> str:
    with pytest.raises(ConfigError) as caught:
        Stage(library.load(name)).perform()
    [fault] = caught.value.faults
    return fault


def test_a_repeated_step_has_its_number_in_every_text() -> None:
    step = Step(
        say="Swap {n}",
        repeat=3,
        id="swap-{n}",
        data={"old": ["bat-{n}"], "new": "bat-{n+1}"},
        plan={"plan-{n-1}": {"used": 1}},
    )
    second = list(each_time(step))[1]
    assert (second.id, second.repeat) == ("swap-2", 1)
    assert second.data == {"old": ["bat-2"], "new": "bat-3"}
    assert second.plan == {"plan-1": {"used": 1}}


def test_a_step_taken_once_keeps_its_texts() -> None:
    step = Step(say="once", id="swap-{n}")
    assert list(each_time(step)) == [step]


def test_a_fault_of_a_repeated_step_says_which_time(tmp_path: Path) -> None:
    library = written(
        tmp_path,
        much=f"""
        [[step]]
        say = "Each is refused"
        repeat = 2
        send = "{SYNC}"
        id = "sync-{{n}}"
        data.action = "SYNC_ODOO_SUBSCRIPTION"
        dead_letter = [{{reason = "missing_field"}}]
        [[step.echo]]
        topic = "echo/odo/subscription/plan/plan-nbi-1/sync"
        success = false
        signals = ["VALIDATION_FAILED"]
        reason = "missing_field"
        correlation_id = "sync-1"
        """,
    )
    head, time, line, *_ = Stage(library.load("much")).perform().faults
    assert head == "much, step 1: Each is refused"
    assert time == "    time 2 of 2:"
    assert 'correlation_id: expected "sync-1", found "sync-2"' in line


def test_a_story_goes_on_from_one_in_another_directory(tmp_path: Path) -> None:
    for folder, text in (("ours", ""), ("theirs", 'after = "ours"\n')):
        (tmp_path / folder).mkdir()
        head = f'title = "t"\nstory = "s"\n{text}[[step]]\nsay = "{folder}"\n'
        (tmp_path / folder / f"{folder}.toml").write_text(head, encoding="utf-8")
    library = Library([tmp_path / "ours", tmp_path / "theirs"])
    assert library.names == ["ours", "theirs"]
    assert [step.say for step in library.load("theirs").before] == ["ours"]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[[step]]\n", "Object missing required field `say` - at `$.step[0]`"),
        ("step = []\nrepeat = 2\n", "Object contains unknown field `repeat`"),
        ("step = []\nafter = 'gone'\n", "after 'gone': there is no such story"),
        ("step = []\nafter = 'it'\n", "goes on from itself by way of it"),
        (
            "[[step]]\nsay = 'x'\nagain = 'swap-1'\n",
            "step 'x': again 'swap-1': was not sent before",
        ),
        ("[setup.templates.none]\n[[step]]\nsay = 'x'\n", "setup.templates.none: the set-up"),
        (
            "[setup.templates.template-nairobi-basic]\nservices.none.x = 1\n[[step]]\nsay = 'x'\n",
            "setup.templates.template-nairobi-basic.services.none: expected one of service-",
        ),
        ("[[step]]\nsay = 'x'\nrepeat = 0\n", "Expected `int` >= 1 - at `$.step[0].repeat`"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_name(
    tmp_path: Path, text: str, complaint: str
) -> None:
    fault = fault_of(written(tmp_path, it=text), "it")
    assert fault.startswith(f"{tmp_path / 'it.toml'}: ")
    assert complaint in fault


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("wait = '3 days'\n", "it, step 1: '3 days' is no duration: expected such as 3d 12h"),
        ("until = '2026-11-24'\n", "it, step 1: '2026-11-24' has no zone"),
        ("send = 'a/b'\nraw = '{}'\n", "it, step 1: topic 'a/b': no row of the topic table"),
        ("send = 'a/b'\ndata.x = 1\n", "it, step 1: topic 'a/b': no row of the topic table"),
    ],
)
def test_a_step_that_cannot_be_played_is_named(tmp_path: Path, text: str, complaint: str) -> None:
    library = written(tmp_path, it=f"[[step]]\nsay = 'x'\n{text}")
    assert fault_of(library, "it").startswith(complaint)


def test_a_set_up_that_the_engine_refuses_is_a_fault_of_the_story(tmp_path: Path) -> None:
    text = "[setup.limits]\nnesting_max = 'deep'\n[[step]]\nsay = 'x'\n"
    assert fault_of(written(tmp_path, it=text), "it").startswith("it: ")


def test_a_directory_must_have_stories_and_a_name_stands_for_one(tmp_path: Path) -> None:
    one, other, empty = (tmp_path / name for name in ("one", "other", "empty"))
    for folder in (one, other, empty):
        folder.mkdir()
    for folder in (one, other):
        (folder / "a.toml").write_text("title = 't'\nstory = 's'\nstep = []\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        Library([one, other, empty])
    assert caught.value.faults == [
        f"{other / 'a.toml'}: {one / 'a.toml'} is called a, too",
        f"{empty}: has no story files, expected *.toml",
    ]


def test_times() -> None:
    assert duration_ms("-1d 2h 3min 4s 5ms") == -93_784_005
    assert epoch_ms("2026-11-24T06:00:00Z") == 1_795_500_000_000
    assert rfc3339(1_795_500_000_001) == "2026-11-24T06:00:00.001Z"
