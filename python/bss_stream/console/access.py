"""Who may see and do what: one token, sessions in a signed cookie, and a limit on guesses.

Without a token the console is for whoever is on this machine, and changes nothing.
"""

import hashlib
import hmac
import secrets
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, NamedTuple

from bss_stream.validation import Secret

COOKIE: Final = "bss_console"
FAILURES_MAX: Final = 5
"""Wrong tokens from one address in FAILURE_WINDOW_MS; then it has to wait."""
FAILURES_OF_ALL_MAX: Final = 50
"""From all addresses together: there may be many of them behind one who guesses."""
FAILURE_WINDOW_MS: Final = 60_000
ADDRESSES_MAX: Final = 1_024
"""Addresses that are remembered, those that failed last."""
REVOKED_MAX: Final = 4_096
_EVERYBODY: Final = ""


class Session(NamedTuple):
    """Somebody who has logged in."""

    id: str
    expires_ms: int
    csrf: str
    """What a form of this session has to bring back."""


class Access:
    """Checks tokens and sessions. Sessions outlive a restart; another token ends them all."""

    def __init__(self, token: Secret | None, session_ms: int, clock_ms: Callable[[], int]) -> None:
        self._token = token
        self.session_ms = session_ms
        """How long a login lasts."""
        self._clock_ms = clock_ms
        revealed = b"" if token is None else token.reveal().encode()
        self._key = hmac.digest(revealed, b"bss_stream console session", hashlib.sha256)
        self._failures: OrderedDict[str, list[int]] = OrderedDict()
        self._revoked: OrderedDict[str, int] = OrderedDict()

    @property
    def has_token(self) -> bool:
        """Whether one has to log in, and so whether anything can be changed."""
        return self._token is not None

    def wait_ms(self, address: str) -> int:
        """How long an address has to wait before its next guess; 0 if it may guess now."""
        now_ms = self._clock_ms()
        waits = [0]
        for name, allowed in ((address, FAILURES_MAX), (_EVERYBODY, FAILURES_OF_ALL_MAX)):
            failures = self._recent(name, now_ms)
            if len(failures) >= allowed:
                waits.append(failures[-allowed] + FAILURE_WINDOW_MS - now_ms)
        return max(waits)

    def log_in(self, guess: str, address: str) -> str | None:
        """The cookie of a new session, None for a wrong token. Ask `wait_ms` before."""
        if self._token is not None and hmac.compare_digest(
            guess.encode(), self._token.reveal().encode()
        ):
            expires_ms = self._clock_ms() + self.session_ms
            body = f"{secrets.token_urlsafe(18)}.{expires_ms}"
            return f"{body}.{self._sign('session', body)}"
        for name, allowed in ((address, FAILURES_MAX), (_EVERYBODY, FAILURES_OF_ALL_MAX)):
            failures = self._recent(name, self._clock_ms())
            self._failures[name] = [*failures, self._clock_ms()][-allowed:]
            self._failures.move_to_end(name)
        while len(self._failures) > ADDRESSES_MAX:
            self._failures.popitem(last=False)
        return None

    def session(self, cookie: str | None) -> Session | None:
        """The session that a cookie proves, None if it proves none any more."""
        body, _, signature = (cookie or "").rpartition(".")
        if not hmac.compare_digest(signature.encode(), self._sign("session", body).encode()):
            return None
        session_id, _, expires = body.partition(".")
        expires_ms = int(expires)
        if not self.has_token or expires_ms <= self._clock_ms() or session_id in self._revoked:
            return None
        return Session(session_id, expires_ms, self._sign("csrf", session_id))

    def log_out(self, session: Session) -> None:
        """End a session before its time."""
        self._revoked[session.id] = session.expires_ms
        while len(self._revoked) > REVOKED_MAX:
            self._revoked.popitem(last=False)

    def _recent(self, name: str, now_ms: int) -> list[int]:
        return [at for at in self._failures.get(name, ()) if now_ms - at < FAILURE_WINDOW_MS]

    def _sign(self, purpose: str, text: str) -> str:
        return hmac.digest(self._key, f"{purpose}:{text}".encode(), hashlib.sha256).hex()


def is_form_of(session: Session, csrf: str) -> bool:
    """Whether a form was made for this session."""
    return hmac.compare_digest(session.csrf.encode(), csrf.encode())
