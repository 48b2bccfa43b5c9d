"""A typed client of the platform, for a station, an app, or a test.

    async with PlatformClient(settings, Actor(type="customer", id="cust-1")) as platform:
        outcome = await platform.swap("plan-nbi-1", CustomerBinding("station-nbi-003"))
        match outcome:
            case Accepted(metadata=Issued(asset_id=battery)):
                print("take", battery)
            case Refused(reason=reason, action_required=action):
                print(reason, action)

What is asked is in `bss_stream.contract.requests` and `.queries`, what is told in `.echoes`.
"""

from bss_stream.client.client import ATTEMPTS, TIMEOUT_S, PlatformClient
from bss_stream.client.outcome import Accepted, Outcome, Refused
from bss_stream.contract.fields import Reason
from bss_stream.contract.requests import Actor

__all__ = [
    "ATTEMPTS",
    "TIMEOUT_S",
    "Accepted",
    "Actor",
    "Outcome",
    "PlatformClient",
    "Reason",
    "Refused",
]
