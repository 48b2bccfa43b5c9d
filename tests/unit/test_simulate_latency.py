"""The latency histogram keeps its promised precision over its whole range."""

from hdrh.histogram import HdrHistogram  # type: ignore[import-untyped]
from hypothesis import given
from hypothesis import strategies as st

from bss_stream.simulate.latency import LatencyRecorder

LATENCIES = st.lists(st.integers(0, 2**36 - 1), min_size=1, max_size=200)


def recorder_of(latencies: list[int]) -> LatencyRecorder:
    recorder = LatencyRecorder()
    for latency in latencies:
        recorder.record(latency)
    return recorder


@given(LATENCIES, st.sampled_from([0.0, 1.0, 50.0, 90.0, 99.0, 99.9, 100.0]))
def test_a_percentile_is_at_most_one_64th_above_the_recorded_value(
    latencies: list[int], percent: float
) -> None:
    ordered = sorted(latencies)
    rank = max(1, -int(-len(ordered) * percent // 100))
    exact = ordered[rank - 1]
    told = recorder_of(latencies).percentile_us(percent)
    assert exact <= told <= exact + exact // 64


@given(LATENCIES, LATENCIES)
def test_adding_recorders_is_recording_everything_in_one(one: list[int], other: list[int]) -> None:
    added = recorder_of(one)
    added.add(recorder_of(other))
    both = recorder_of(one + other)
    assert (added.count, added.max_us) == (both.count, both.max_us)
    for percent in (1.0, 50.0, 99.0):
        assert added.percentile_us(percent) == both.percentile_us(percent)


def test_what_lies_outside_the_range_counts_at_its_end() -> None:
    recorder = recorder_of([-5, 2**40])
    assert recorder.percentile_us(50) == 0
    assert recorder.max_us == 2**36 - 1


def test_nothing_recorded_is_nothing() -> None:
    assert LatencyRecorder().percentile_us(99) == 0


@given(LATENCIES, st.sampled_from([50.0, 99.0, 99.9]))
def test_percentiles_are_those_of_hdr_histogram(latencies: list[int], percent: float) -> None:
    """To the precision of both: a hundredth of its two digits, a 64th of ours."""
    histogram = HdrHistogram(1, 2**36, 2)
    for latency in latencies:
        histogram.record_value(latency)
    theirs = histogram.get_value_at_percentile(percent)
    ours = recorder_of(latencies).percentile_us(percent)
    assert abs(ours - theirs) <= theirs / 64 + theirs / 100 + 1
