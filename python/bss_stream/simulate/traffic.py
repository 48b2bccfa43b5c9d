"""Who sends what and when: arrivals, requests under way, time-outs, faults, and their counts.

Pure: time is an argument, randomness is handed in. `due` gives the messages to send now, `answer`
takes an echo; the same seed, times and answers give the same messages.
"""

from collections import deque
from itertools import accumulate
from random import Random
from typing import Final, NamedTuple

from msgspec.structs import asdict

from bss_stream.client.echo import Echo
from bss_stream.simulate.arm import ArmDecisions
from bss_stream.simulate.config import SimulationConfig
from bss_stream.simulate.garbage import KINDS, REASONS, Garbage, spoil
from bss_stream.simulate.life import SILENCE, SWAPS, Life, is_metered
from bss_stream.simulate.network import Network
from bss_stream.simulate.requests import Fault, Request
from bss_stream.simulate.rhythm import Arrivals, ConstantArrivals, RhythmArrivals
from bss_stream.simulate.riders import REPEATED, Channel, Kind, Phase, Rider
from bss_stream.simulate.tally import Plans, Tally, name_reasons

ATTEMPTS_MAX: Final = 3
JOINING_UNDER_WAY_MAX: Final = 1_000
"""Joining is closed loop: no more plans begin while so many requests are unanswered."""
BACKLOG_MAX: Final = 100_000
"""Arrivals that wait for a rider; what is past it counts as unserved."""
GARBAGE_REMEMBERED_MAX: Final = 10_000
_FITTING_TRIES: Final = 8

AFTER_RETRY: Final = frozenset(
    {
        "ok",
        "duplicate",
        "session_in_progress",
        "battery_mismatch",
        "rejected_transition",
        "payment_already_applied",
        "quota_exhausted",
        "rate_limited",
        "allocation_timed_out",
    }
)
"""What a retry may be told when the first attempt was handled and only its echo was lost."""


class Outgoing(NamedTuple):
    """A message to publish."""

    topic: str
    payload: bytes
    correlation: bytes


class Traffic:
    """All riders of a run. Times are microseconds on one steady clock; `wall_ms` is epoch ms."""

    def __init__(
        self, network: Network, arm: ArmDecisions, config: SimulationConfig, random: Random
    ) -> None:
        self._network = network
        self._arm = arm
        self._config = config
        self._random = random
        self._life = Life(network, arm, config, random)
        self.tally = Tally()
        self.done = 0
        self.stuck = 0
        self._terms_ends = list(accumulate(_weights(network, config)))
        self._faults = _thresholds(config)
        self._riders: list[Rider] = []
        self._signed = 0
        self._joining = 0
        self._vacant: list[int] = []
        """Places in `_riders` of those who have left."""
        self._ready: list[deque[Rider]] = [deque() for _ in network.markets]
        self._resting: list[deque[Rider]] = [deque() for _ in network.markets]
        self._resting_day = [-1] * len(network.markets)
        self._pending: dict[str, Request] = {}
        self._deadlines: deque[tuple[int, str]] = deque()
        """When each request is given up, by correlation id: answered ones need not stay whole."""
        self._garbage: dict[str, Garbage] = {}
        self._backlog: deque[tuple[int, int | None]] = deque()
        self._out: list[Outgoing] = []
        self._arrivals: Arrivals | None = None
        self._began_us: int | None = None
        self.swapping_since_us: int | None = None
        """When every plan had joined and arrivals began, None before."""
        self._stopped = False

    # What the caller asks.

    def due(self, now_us: int, wall_ms: int) -> list[Outgoing]:
        """Everything to send now, in order."""
        if self._began_us is None:
            self._began_us = now_us
        self._expire(now_us, wall_ms)
        if not self._stopped:
            self._join(now_us, wall_ms)
            self._wake_rested(wall_ms)
            self._arrive(now_us, wall_ms)
        return self.follow_ups()

    def follow_ups(self) -> list[Outgoing]:
        """What answers have called for since the last call."""
        out, self._out = self._out, []
        return out

    def answer(self, echo: Echo, now_us: int, wall_ms: int) -> None:
        """Take an echo."""
        reason = echo.reason()
        request = self._pending.get(echo.correlation_id)
        if request is None:
            self._answer_unknown(echo.correlation_id, reason)
            return
        self.tally.outcomes[reason] += 1
        duplicated = request.fault is Fault.DUPLICATE
        if duplicated and echo.is_repeat() and not request.repeat_answered:
            request.repeat_answered = True
            self.tally.fault_answered(str(Fault.DUPLICATE))
            if request.answered:
                del self._pending[request.correlation]
            return
        if request.answered:
            self.tally.repeated_echoes += 1
            return
        request.answered = True
        if duplicated and request.channel is Channel.SELF_SERVICE and not request.repeat_answered:
            # One echo answers a self-service request and its repeat while ARM is being asked.
            request.repeat_answered = True
            self.tally.fault_answered(str(Fault.DUPLICATE))
        if not duplicated or request.repeat_answered:
            del self._pending[request.correlation]
        self._measure(request, now_us)
        self._judge(request, reason)
        if request.kind in SWAPS and reason == "ok":
            self.tally.swaps += request.kind is not Kind.ISSUE
        self._finish(request, reason, echo, now_us, wall_ms)

    def stop(self) -> None:
        """No more arrivals and no more plans; what is under way goes on."""
        self._stopped = True
        self._backlog.clear()

    @property
    def under_way(self) -> int:
        """Requests without an echo yet."""
        return len(self._pending)

    @property
    def phase(self) -> str:
        """`joining`, `swapping` or `stopping`."""
        if self._stopped:
            return "stopping"
        return "joining" if self.swapping_since_us is None else "swapping"

    def late_us(self, now_us: int) -> int:
        """How long the oldest arrival that waits for a rider has waited."""
        return now_us - self._backlog[0][0] if self._backlog else 0

    def plans(self) -> Plans:
        """Where the riders are."""
        ready = sum(map(len, self._ready))
        resting = sum(map(len, self._resting))
        idle = ready + resting + len(self._vacant) + self.stuck + self._joining
        return Plans(
            joining=self._joining,
            ready=ready,
            busy=len(self._riders) - idle,
            resting=resting,
            done=self.done,
            stuck=self.stuck,
        )

    # Joining.

    def _join(self, now_us: int, wall_ms: int) -> None:
        config, began_us = self._config, self._began_us or 0
        allowed = int((now_us - began_us) * config.joining_rate / 1_000_000) + 1 - self._signed
        for _ in range(min(self._missing(), allowed)):
            if len(self._pending) >= JOINING_UNDER_WAY_MAX:
                break
            self._launch(self._sign(), now_us, now_us, wall_ms)
        if self.swapping_since_us is None and not self._joining and not self._missing():
            self.swapping_since_us = now_us
            # First issues overlapped with stock reports: now that all is quiet the counts agree.
            self._arm.recount_all()
            self._arrivals = self._begin_arrivals(now_us, wall_ms)

    def _missing(self) -> int:
        """Plans that have not begun to join; whoever leaves is replaced."""
        return self._config.plans - len(self._riders) + len(self._vacant)

    def _sign(self) -> Rider:
        rider = self._new_rider()
        self._joining += 1
        if self._vacant:
            rider.seat = self._vacant.pop()
            self._riders[rider.seat] = rider
        else:
            rider.seat = len(self._riders)
            self._riders.append(rider)
        return rider

    def _new_rider(self) -> Rider:
        draw = self._random.random() * self._terms_ends[-1]
        index = next(i for i, end in enumerate(self._terms_ends) if draw < end)
        terms = self._network.terms[index]
        fleet = self._random.choice(tuple(terms.places))
        self._signed += 1
        return Rider(self._signed, self._config.run, index, terms, fleet)

    def _begin_arrivals(self, now_us: int, wall_ms: int) -> Arrivals:
        config, markets = self._config, self._network.markets
        if config.rate is not None:
            return ConstantArrivals(config.rate, now_us)
        plans = [0] * len(markets)
        for rider in self._riders:
            plans[rider.terms.market] += 1
        return RhythmArrivals(
            [count * config.swaps_per_plan_day for count in plans],
            [market.offset_s(wall_ms) for market in markets],
            start_s=config.day_starts_at_hour * 3600,
            start_us=now_us,
            speed_up=config.speed_up,
            random=self._random,
        )

    # Arrivals.

    def _arrive(self, now_us: int, wall_ms: int) -> None:
        arrivals, backlog = self._arrivals, self._backlog
        if arrivals is None:
            return
        while arrivals.next_us <= now_us:
            intended_us = arrivals.next_us
            backlog.append((intended_us, arrivals.take()))
        while backlog:
            intended_us, market = backlog.popleft()
            if self._serve(intended_us, market, now_us, wall_ms):
                continue
            if self._pending and len(backlog) < BACKLOG_MAX:
                # Every rider waits for an echo: the arrival waits too, and its latency counts.
                backlog.appendleft((intended_us, market))
                break
            self.tally.unserved += 1

    def _serve(self, intended_us: int, market: int | None, now_us: int, wall_ms: int) -> bool:
        fault = self._draw_fault()
        if fault == "garbage":
            self._throw_garbage(wall_ms)
            return True
        rider = self._pick(market, fault)
        if rider is None:
            return False
        played = fault if isinstance(fault, Fault) and self._fits(rider, fault) else None
        rider.todo = (Kind.SWAP,)
        rider.channel = self._life.choose_channel()
        if played is None and rider.channel is Channel.STAFFED:
            identify = self._random.random() < self._config.identify_share
            rider.todo = (Kind.IDENTIFY, Kind.SWAP) if identify else rider.todo
        self._launch(rider, intended_us, now_us, wall_ms, played)
        return True

    def _draw_fault(self) -> Fault | str | None:
        draw = self._random.random()
        if draw >= self._faults[-1][0]:
            return None
        return next(fault for end, fault in self._faults if draw < end)

    def _pick(self, market: int | None, fault: Fault | str | None) -> Rider | None:
        """The rider who has waited longest, or one close behind who can play the fault."""
        if fault is Fault.OVER_RATE_LIMIT:
            for resting in self._resting if market is None else [self._resting[market]]:
                if resting:
                    return resting.popleft()
        ready = self._ready[market if market is not None else self._fullest()]
        if isinstance(fault, Fault):
            for _ in range(min(_FITTING_TRIES, len(ready))):
                if self._fits(ready[0], fault):
                    break
                ready.rotate(-1)
        return ready.popleft() if ready else None

    def _fullest(self) -> int:
        """Any market, in proportion to its ready riders."""
        draw = self._random.random() * sum(map(len, self._ready))
        for market, ready in enumerate(self._ready):
            draw -= len(ready)
            if draw < 0:
                return market
        return 0

    def _fits(self, rider: Rider, fault: Fault) -> bool:
        match fault:
            case Fault.EMPTY_STOCK:
                return self._life.stations.choose_dry(rider) is not None
            case Fault.EXHAUSTED_QUOTA:
                return any(is_metered(account) for account in rider.accounts)
            case Fault.OVER_RATE_LIMIT:
                return rider.at_rate_limit()
            case _:
                return True

    def _throw_garbage(self, wall_ms: int) -> None:
        garbage = self._random.choice(KINDS)
        rider = self._random.choice(self._riders)
        correlation = self._life.builder.correlation()
        spoiled = spoil(
            garbage,
            plan_id=rider.plan_id,
            station=next(iter(rider.terms.places.values()))[0],
            correlation=correlation,
            wall_ms=wall_ms,
            random=self._random,
        )
        self._out.append(Outgoing(spoiled.topic, spoiled.payload, correlation.encode()))
        self.tally.requests["garbage"] += 1
        self.tally.fault_sent(str(garbage), REASONS[garbage])
        self._garbage[correlation] = garbage
        if len(self._garbage) > GARBAGE_REMEMBERED_MAX:
            del self._garbage[next(iter(self._garbage))]

    # Requests.

    def _launch(
        self,
        rider: Rider,
        intended_us: int,
        now_us: int,
        wall_ms: int,
        fault: Fault | None = None,
    ) -> None:
        request = self._life.make(rider, intended_us, wall_ms, fault)
        if request is None:
            # No battery anywhere near: the rider turns back.
            self.tally.unserved += 1
            self._life.turn_back(rider)
            self._settle(rider, now_us, wall_ms)
            return
        if fault is not None:
            duplicated = fault is Fault.DUPLICATE
            request.copies = 2 if duplicated else 1
            self.tally.fault_sent(str(fault), REPEATED if duplicated else request.expected)
        self._pending[request.correlation] = request
        self._send(request, now_us)

    def _send(self, request: Request, now_us: int) -> None:
        request.deadline_us = now_us + self._config.answer_timeout_ms * 1_000
        self._deadlines.append((request.deadline_us, request.correlation))
        self.tally.requests[str(request.kind)] += request.copies
        message = Outgoing(request.topic, request.payload, request.correlation.encode())
        self._out.extend([message] * request.copies)

    def _expire(self, now_us: int, wall_ms: int) -> None:
        deadlines = self._deadlines
        while deadlines and deadlines[0][0] <= now_us:
            deadline_us, correlation = deadlines.popleft()
            request = self._pending.get(correlation)
            # A retry under the same id has a later deadline.
            if request is not None and request.deadline_us == deadline_us:
                self._time_out(request, now_us, wall_ms)

    def _time_out(self, request: Request, now_us: int, wall_ms: int) -> None:
        del self._pending[request.correlation]
        if request.answered:
            self._unexpected(request, name_reasons(REPEATED), SILENCE)
            return
        self.tally.timeouts += 1
        if request.attempt < ATTEMPTS_MAX:
            request.attempt += 1
            request.copies = 1
            request.fault = None if request.fault is Fault.DUPLICATE else request.fault
            if self._random.random() >= self._config.retry_same_id_share:
                _renumber(request, self._life.builder.correlation())
            self._pending[request.correlation] = request
            self._send(request, now_us)
            return
        request.answered = True
        self._unexpected(request, name_reasons(request.expected), SILENCE)
        self._finish(request, SILENCE, None, now_us, wall_ms)

    # Answers.

    def _answer_unknown(self, correlation: str, reason: str) -> None:
        garbage = self._garbage.pop(correlation, None)
        if garbage is None:
            self.tally.repeated_echoes += 1
            return
        self.tally.outcomes[reason] += 1
        if reason in REASONS[garbage]:
            self.tally.fault_answered(str(garbage))
        else:
            expected = name_reasons(REASONS[garbage])
            self.tally.unexpected(str(garbage), expected, reason, f"correlation_id {correlation}")

    def _measure(self, request: Request, now_us: int) -> None:
        latency_us = now_us - request.intended_us
        self.tally.latency(request.measured_as(), latency_us)
        if request.kind in SWAPS and request.kind is not Kind.ISSUE:
            self.tally.swap_latency.record(latency_us)

    def _judge(self, request: Request, reason: str) -> None:
        if reason in request.expected:
            if request.fault is not None and request.fault is not Fault.DUPLICATE:
                self.tally.fault_answered(str(request.fault))
            return
        if request.attempt > 1 and reason in AFTER_RETRY:
            return
        if reason == "allocation_timed_out" and request.rider.plan_id in self._arm.late:
            return
        self._unexpected(request, name_reasons(request.expected), reason)

    def _unexpected(self, request: Request, expected: str, got: str) -> None:
        detail = (
            f"plan_id {request.rider.plan_id}, correlation_id {request.correlation}, "
            f"template {request.rider.terms.template_id}, location {request.location or 'none'}"
        )
        kind = str(request.fault or request.kind)
        self.tally.unexpected(kind, expected, got, detail)

    def _finish(
        self, request: Request, reason: str, echo: Echo | None, now_us: int, wall_ms: int
    ) -> None:
        rider = request.rider
        for difference in self._life.finish(request, reason, echo, wall_ms):
            self._unexpected(request, "the rider's own count", "another")
            self.tally.note(f"plan_id {rider.plan_id}: {difference}")
        if request.kind in SWAPS:
            self._arm.late.discard(rider.plan_id)
        self._settle(rider, now_us, wall_ms)

    def _settle(self, rider: Rider, now_us: int, wall_ms: int) -> None:
        """Send the rider's next request, or put the rider where the next arrival finds them."""
        if rider.newcomer and rider.phase is not Phase.JOINING:
            rider.newcomer = False
            self._joining -= 1
        if rider.phase is Phase.DONE:
            self.done += 1
            self._vacant.append(rider.seat)
        elif rider.phase is Phase.STUCK:
            self.stuck += 1
        elif rider.todo:
            self._launch(rider, now_us, now_us, wall_ms)
        else:
            market = rider.terms.market
            rider.see_day(self._life.day(market, wall_ms))
            (self._resting if rider.at_rate_limit() else self._ready)[market].append(rider)

    def _wake_rested(self, wall_ms: int) -> None:
        """At a market's midnight every rider may swap again."""
        for market, resting in enumerate(self._resting):
            day = self._life.day(market, wall_ms)
            if day != self._resting_day[market]:
                self._resting_day[market] = day
                self._ready[market].extend(resting)
                resting.clear()


def _weights(network: Network, config: SimulationConfig) -> list[float]:
    if not config.templates:
        return [1.0] * len(network.terms)
    return [config.templates.get(terms.template_id, 0.0) for terms in network.terms]


def _thresholds(config: SimulationConfig) -> list[tuple[float, Fault | str]]:
    """The upper end of each fault's part of 0..1, ascending."""
    shares = asdict(config.faults)
    names: list[Fault | str] = [*Fault, "garbage"]
    ends = accumulate(shares[name] for name in names)
    return list(zip(ends, names, strict=True))


def _renumber(request: Request, correlation: str) -> None:
    """Give a retry a correlation id of its own; what it pays with stays the same receipt."""
    field = b'"correlation_id":"%b"'
    request.payload = request.payload.replace(
        field % request.correlation.encode(), field % correlation.encode(), 1
    )
    request.correlation = correlation
