"""An event loop whose time, order and threads are a seed's: nothing here waits for anything real.

Callbacks that are ready run one at a time in an order that the seed draws; time stands still until
nothing is ready, and then jumps to the next timer. What asyncio would give a thread runs on the
loop. Every callback belongs to the simulated process in whose context it was made, if any: it never
runs once that process is dead, and waits while it is frozen.
"""

import asyncio
import contextvars
import gc
import heapq
import itertools
import sys
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any, Final, TypeVar, TypeVarTuple, Unpack

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

STEPS_MAX: Final = 2_000_000
"""What no run comes near: a loop that spins for ever fails here."""

_AWAITS_MAX: Final = 20
"""In the `finally` blocks of one coroutine."""

Ready = tuple[asyncio.Handle, contextvars.Context]
"""A callback and the context that it runs in."""

Connect = Callable[[Callable[[], asyncio.BaseProtocol]], Coroutine[Any, Any, asyncio.Transport]]
"""Opens a simulated connection to whatever there is to connect to."""


class SimulatedProcess:
    """What can be killed or frozen as a whole: a name, and the callbacks made in its context."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.alive = True
        self.frozen = False
        self.fuse: int | None = None
        """Callbacks until it is killed, wherever that is; None for never."""
        self.on_killed: list[Callable[[], None]] = []
        """What the rest of the world notices, such as connections that break."""
        self.waiting: list[Ready] = []
        """What has become ready while it is frozen."""

    def kill(self) -> None:
        """End it without a word. Its memory stays, so that nothing of it is run by its disposal."""
        if self.alive:
            self.alive = False
            for notice in self.on_killed:
                notice()


PROCESS: Final[contextvars.ContextVar[SimulatedProcess]] = contextvars.ContextVar("process")

WORLD: Final = contextvars.Context()
"""The context of what outlives every process: servers, networks, clients."""


class SimulatedLoop(asyncio.AbstractEventLoop):
    """One run's loop. `run` drives a coroutine to its end."""

    def __init__(self, random: Random, *, disorder: float, connect: Connect | None = None) -> None:
        """`disorder` is the share of steps that take any ready callback instead of the oldest."""
        self.steps = 0
        self.connect = connect
        self.tasks: list[asyncio.Task[Any]] = []
        """Every task ever made: an abandoned one must not be finalized in mid-run."""
        self.unhandled: list[dict[str, Any]] = []
        """What nobody has taken care of, from processes that were alive."""
        self._random = random
        self._disorder = disorder
        self._now_s = 0.0
        self._ready: list[Ready] = []
        self._timers: list[tuple[float, int, asyncio.TimerHandle, contextvars.Context]] = []
        self._numbers = itertools.count()

    # Running.

    def run(self, main: Coroutine[Any, Any, T]) -> T:
        """The result of `main`, in the world's context."""
        asyncio._set_running_loop(self)
        # When it collects is nobody's choice, and what it finalizes may call back.
        gc.disable()
        try:
            task: asyncio.Task[T] = self.create_task(main, context=WORLD.copy())
            while not task.done():
                self._step()
            return task.result()
        finally:
            gc.enable()
            asyncio._set_running_loop(None)

    def _step(self) -> None:
        self.steps += 1
        if self.steps > STEPS_MAX:
            raise AssertionError(f"no end after {STEPS_MAX} callbacks, at {self._now_s:.3f} s")
        if not self._ready:
            self._pass_time()
        last = len(self._ready) - 1
        draw = last and self._random.random() < self._disorder
        handle, context = self._ready.pop(self._random.randint(0, last) if draw else 0)
        if handle.cancelled():
            return
        process = context.get(PROCESS)
        if process is None or self._may_run(process, (handle, context)):
            handle._run()

    def _may_run(self, process: SimulatedProcess, ready: Ready) -> bool:
        if process.alive and process.fuse is not None:
            process.fuse -= 1
            if process.fuse <= 0:
                process.kill()
        if process.alive and process.frozen:
            process.waiting.append(ready)
            return False
        return process.alive

    def thaw(self, process: SimulatedProcess) -> None:
        """Let a frozen process go on, with all that has become ready meanwhile."""
        process.frozen = False
        waiting, process.waiting = process.waiting, []
        self._ready += waiting

    def _pass_time(self) -> None:
        if not self._timers:
            raise AssertionError("nothing is ready and nothing is timed: a deadlock")
        self._now_s = max(self._now_s, self._timers[0][0])
        while self._timers and self._timers[0][0] <= self._now_s:
            _, _, handle, context = heapq.heappop(self._timers)
            self._ready.append((handle, context))

    # What asyncio asks of a loop.

    def time(self) -> float:
        return self._now_s

    def call_soon(
        self,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: contextvars.Context | None = None,
    ) -> asyncio.Handle:
        context = contextvars.copy_context() if context is None else context
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append((handle, context))
        return handle

    def call_at(
        self,
        when: float,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        context = contextvars.copy_context() if context is None else context
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        heapq.heappush(self._timers, (when, next(self._numbers), handle, context))
        return handle

    def call_later(
        self,
        delay: float,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        return self.call_at(self._now_s + max(0.0, delay), callback, *args, context=context)

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Nothing to do: it is passed over when its time comes."""

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(
        self,
        coro: Any,
        *,
        name: str | None = None,
        context: contextvars.Context | None = None,
    ) -> asyncio.Task[Any]:
        task = asyncio.Task(coro, loop=self, name=name, context=context)
        self.tasks.append(task)
        return task

    def run_in_executor(
        self, executor: object, func: Callable[[Unpack[Ts]], T], *args: *Ts
    ) -> asyncio.Future[T]:
        """Call it on the loop, now or a little later: a thread has no memory of its own."""
        future: asyncio.Future[T] = self.create_future()

        def call() -> None:
            try:
                result = func(*args)
            except Exception as error:  # noqa: BLE001 (whoever waits gets it, as from a thread)
                if not future.cancelled():
                    future.set_exception(error)
            else:
                if not future.cancelled():
                    future.set_result(result)

        if self._random.random() < self._disorder:
            self.call_later(self._random.random() * 0.01, call)
        else:
            self.call_soon(call)
        return future

    async def create_connection(self, protocol_factory: Any, *args: Any, **kwargs: Any) -> Any:
        if self.connect is None:
            raise ConnectionRefusedError("there is nothing to connect to")
        transport = await self.connect(protocol_factory)
        return transport, transport.get_protocol()

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        process = PROCESS.get(None)
        if process is None or process.alive:
            self.unhandled.append(context)

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def dispose(self) -> None:
        """Unwind everything that nobody will ever finish, outside of any loop and without a word.

        Left to the garbage collector, the `finally` blocks of the dead would run within another
        run's loop.
        """
        hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
        try:
            for task in self.tasks:
                task._log_destroy_pending = False  # type: ignore[attr-defined]
                if not task.done():
                    _unwind(task.get_coro())
            self.tasks.clear()
            self._ready.clear()
            self._timers.clear()
            gc.collect()
        finally:
            sys.unraisablehook = hook


def _unwind(coroutine: Any) -> None:
    """Close a coroutine, whatever its `finally` blocks still wait for."""
    for _ in range(_AWAITS_MAX):
        try:
            coroutine.close()
        except (Exception, asyncio.CancelledError):  # noqa: BLE001 (nobody is there to be told)
            continue
        return
