"""Simulated riders, attendants, Odoo, stations and ARM: clients of the platform like any other."""

from bss_stream.simulate.config import (
    NO_FAULTS,
    ArmConfig,
    FaultShares,
    SimulationConfig,
    check_config,
)
from bss_stream.simulate.process import SimulatorProcess
from bss_stream.simulate.simulation import Simulation
from bss_stream.simulate.tally import (
    ArmCounts,
    FaultCount,
    Latency,
    Plans,
    Snapshot,
    StockLevel,
    Unexpected,
)

__all__ = [
    "NO_FAULTS",
    "ArmConfig",
    "ArmCounts",
    "FaultCount",
    "FaultShares",
    "Latency",
    "Plans",
    "Simulation",
    "SimulationConfig",
    "SimulatorProcess",
    "Snapshot",
    "StockLevel",
    "Unexpected",
    "check_config",
]
