"""The engine and the baseline on the same records: `pytest bench --benchmark-enable`."""

from collections.abc import Callable, Iterator

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.recording import BATCH_RECORDS, Call, Recording, baseline_calls, engine_calls, record

ROUNDS = 20


@pytest.fixture(scope="module")
def plans(pytestconfig: pytest.Config) -> int:
    """100,000, or just enough to see that everything runs where nothing is timed."""
    return 100_000 if pytestconfig.getoption("benchmark_enable") else 500


@pytest.fixture(scope="module")
def city(plans: int) -> Recording:
    """All plans in one partition."""
    return record(plans, ROUNDS)


@pytest.fixture(scope="module")
def two_shards(plans: int) -> Recording:
    """The same in two partitions, with both topics' share of each batch."""
    return record(plans, ROUNDS, partitions=2)


def run(benchmark: BenchmarkFixture, calls: Iterator[Call]) -> None:
    """Each round makes the next call."""
    pedantic: Callable[..., object] = benchmark.pedantic
    pedantic(lambda call: call(), setup=lambda: ((next(calls),), {}), rounds=ROUNDS)


@pytest.mark.benchmark(group="1,000 raw signals, 100,000 plans")
@pytest.mark.parametrize("how", [engine_calls, baseline_calls])
def test_signals(
    benchmark: BenchmarkFixture, city: Recording, how: Callable[..., Iterator[Call]]
) -> None:
    benchmark.extra_info["records"] = BATCH_RECORDS
    run(benchmark, how(city, city.traffic))


@pytest.mark.benchmark(group="1,000 records with all that follow, 100,000 plans")
@pytest.mark.parametrize("how", [engine_calls, baseline_calls])
def test_everything(
    benchmark: BenchmarkFixture, city: Recording, how: Callable[..., Iterator[Call]]
) -> None:
    benchmark.extra_info["records"] = BATCH_RECORDS
    run(benchmark, how(city, city.everything))


@pytest.mark.benchmark(group="two shards, 100,000 plans")
@pytest.mark.parametrize("threads", [1, 2])
def test_two_shards(benchmark: BenchmarkFixture, two_shards: Recording, threads: int) -> None:
    run(benchmark, engine_calls(two_shards, two_shards.traffic, threads=threads))
