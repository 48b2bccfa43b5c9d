"""What a simulation can be told: every share, rate and limit, with its unit and its bounds."""

from typing import Annotated, Final

from msgspec import Meta, Struct, to_builtins

from bss_stream.validation import Faults, convert

Share = Annotated[float, Meta(ge=0.0, le=1.0, description="a share from 0 to 1")]
Millis = Annotated[int, Meta(ge=0, le=86_400_000, description="milliseconds, 0 to 86400000")]
RunId = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9]{0,16}\Z",
        description="up to 16 letters and digits, empty to derive it from the seed",
    ),
]

PLANS_MAX: Final = 1_000_000


class ArmConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the simulated Asset Resource Manager and its stations behave."""

    recharge_ms: Millis = 3_600_000
    """From empty to full on a shelf; 0 has every battery full at once."""
    rest_ms: Millis = 2_000
    """A returned battery is not given out again before, unless nothing else is left."""
    shelf_batteries: (
        Annotated[int, Meta(ge=1, le=100_000, description="batteries, 1 to 100000")] | None
    ) = None
    """Batteries that each shelf starts with and is refilled to; None for what the setup says."""
    restock_share: Share = 0.4
    """A shelf is refilled when it falls to this share of what it is refilled to."""
    slow_share: Share = 0.0
    """Allocations that are answered late, after `slow_ms_min` to `slow_ms_max`."""
    slow_ms_min: Millis = 2_000
    slow_ms_max: Millis = 12_000
    lost_share: Share = 0.0
    """Allocations whose first answer is never sent; the retry of the command is answered."""
    answers_max: Annotated[
        int, Meta(ge=1_000, le=10_000_000, description="answers, 1000 to 10000000")
    ] = 50_000
    """Answers kept for repeated commands; the oldest goes first."""


class FaultShares(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The share of arrivals that each fault takes; together at most 1."""

    wrong_station: Share = 0.01
    exhausted_quota: Share = 0.005
    empty_stock: Share = 0.005
    over_rate_limit: Share = 0.005
    duplicate: Share = 0.01
    garbage: Share = 0.01


NO_FAULTS: Final = FaultShares(
    wrong_station=0, exhausted_quota=0, empty_stock=0, over_rate_limit=0, duplicate=0, garbage=0
)


class SimulationConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One run: the same configuration gives the same requests as long as the answers are equal."""

    seed: int = 1
    run_id: RunId = ""
    """Part of every plan, battery and correlation id, so that runs on one log do not collide."""
    plans: Annotated[int, Meta(ge=1, le=PLANS_MAX, description=f"plans, 1 to {PLANS_MAX}")] = 1_000
    templates: dict[str, Annotated[float, Meta(gt=0, description="a weight above 0")]] = {}
    """Weight of each template among the plans; empty takes every template evenly."""
    rate: (
        Annotated[float, Meta(gt=0, le=100_000, description="swaps a second, above 0, or null")]
        | None
    ) = None
    """Constant arrivals in swaps a second; None has them follow the daily rhythm."""
    speed_up: Annotated[
        float, Meta(ge=1, le=86_400, description="simulated seconds a second, 1 to 86400")
    ] = 1.0
    """How fast the simulated day of the rhythm passes; 1440 is a day a minute."""
    day_starts_at_hour: Annotated[
        float, Meta(ge=0, lt=24, description="hour of the day in UTC, 0 to 24")
    ] = 3.0
    swaps_per_plan_day: Annotated[
        float, Meta(gt=0, le=1000, description="swaps a plan and simulated day, above 0")
    ] = 1.5
    staffed_share: Share = 0.6
    """Swaps at staffed stations; the others are self-service."""
    identify_share: Share = 0.1
    """Staffed swaps that the attendant begins with identify_customer."""
    swaps_per_plan: Annotated[int, Meta(ge=0, description="swaps, 0 for no end")] = 0
    """After so many swaps a rider cancels and returns the battery."""
    cancel_share: Share = 0.0
    """Swaps after which a rider cancels."""
    renew_share: Share = 0.3
    """Riders who meet an exhausted quota and renew instead of topping up."""
    joining_rate: Annotated[
        float, Meta(gt=0, le=100_000, description="plans a second, above 0")
    ] = 500.0
    """How many plans begin to join in a second, before the first swap."""
    answer_timeout_ms: Annotated[
        int, Meta(ge=100, le=600_000, description="milliseconds, 100 to 600000")
    ] = 30_000
    retry_same_id_share: Share = 0.5
    """Retries that repeat the correlation id; the others take a new one."""
    qos: Annotated[int, Meta(ge=0, le=1, description="0 or 1")] = 1
    tick_ms: Annotated[int, Meta(ge=1, le=100, description="milliseconds, 1 to 100")] = 2
    """Requests that fall due within a tick are published together."""
    arm: ArmConfig = ArmConfig()
    faults: FaultShares = FaultShares()

    @property
    def run(self) -> str:
        """The run's id."""
        return self.run_id or f"s{self.seed % 10**12}"


def check_config(config: SimulationConfig) -> None:
    """Refuse a configuration out of bounds. Raises ConfigError with every fault."""
    faults = Faults()
    convert(to_builtins(config), SimulationConfig, faults, "simulation")
    shares = to_builtins(config.faults)
    if sum(shares.values()) > 1:
        faults.add("simulation", "$.faults", f"{shares}: expected shares of at most 1 together")
    if config.arm.slow_ms_min > config.arm.slow_ms_max:
        faults.add(
            "simulation",
            "$.arm.slow_ms_min",
            f"{config.arm.slow_ms_min}: expected at most slow_ms_max, {config.arm.slow_ms_max}",
        )
    faults.raise_if_any()
