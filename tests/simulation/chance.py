"""What a seed decides, and how often it has decided on each fault."""

from collections import Counter
from hashlib import blake2b
from random import Random


class Chance:
    """The dice of one run, and its diary: the same seed gives the same digest."""

    def __init__(self, seed: int | str) -> None:
        self.random = Random(seed)
        self.calm = False
        """Once set, faults have stopped: only delays are drawn."""
        self.faults: Counter[str] = Counter()
        self._diary = blake2b(digest_size=16)

    @property
    def digest(self) -> str:
        """Of everything noted so far."""
        return self._diary.hexdigest()

    def note(self, now_s: float, what: str, data: bytes = b"") -> None:
        """Write something down that the outside can see."""
        self._diary.update(b"%r %b " % (now_s, what.encode()))
        self._diary.update(data)

    def strikes(self, fault: str, share: float) -> bool:
        """Whether a fault happens here; it is counted."""
        if self.calm or self.random.random() >= share:
            return False
        self.faults[fault] += 1
        return True

    def delay_s(self, typical_s: float) -> float:
        """How long something takes: mostly about `typical_s`, now and then far more."""
        draw = self.random.random()
        if not self.calm and draw < 0.02:
            return typical_s * self.random.uniform(5, 60)
        return typical_s * (0.2 + draw)
