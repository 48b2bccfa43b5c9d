"""Dead letters: what could not be processed, why, its bytes, and the way back for some."""

import logging
import re
from collections.abc import Sequence
from typing import Any, Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from bss_stream import dead_letters
from bss_stream._engine import reasons
from bss_stream.console import forms
from bss_stream.console.access import Session, is_form_of
from bss_stream.console.context import Context
from bss_stream.dead_letters import Filter, Order, Rules, Standing, Verdict
from bss_stream.dead_letters.letters import Place, printable

logger = logging.getLogger(__name__)

LIMITS: Final = (100, 500, 1_000)
NOTE_LENGTH_MAX: Final = 200
_ID: Final = re.compile(r"([0-9]{1,9})-([0-9]{1,18})")


class Letters:
    """The list, one letter, and its replay."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._explained = {code: message for code, message, _, _ in reasons()}

    @property
    def routes(self) -> list[Route]:
        return [
            Route("/dead-letters", self.page),
            Route("/dead-letters/{letter}", self.letter),
            Route("/dead-letters/{letter}/replay", self.replay, methods=["POST"]),
        ]

    async def page(self, request: Request) -> Response:
        reason, entity = forms.asked(request, "reason"), forms.asked(request, "entity")
        limit = forms.asked(request, "limit")
        shown_max = int(limit) if limit in map(str, LIMITS) else LIMITS[0]
        wanted = Filter(
            reasons=frozenset((reason,)) if reason else frozenset(), entity=entity or None
        )
        async with self._context.open_log() as log:
            every = await dead_letters.newest(log, Filter(entity=entity or None), self._rules(), 1)
            listing = await dead_letters.newest(log, wanted, self._rules(), shown_max)
        return self._context.renderer.page(
            "letters.html",
            request.scope,
            verdicts=listing.verdicts[::-1],
            total=listing.reasons.total(),
            reasons=every.reasons.most_common(),
            explained=self._explained,
            reason=reason,
            entity=entity,
            limit=shown_max,
            limits=LIMITS,
            Standing=Standing,
        )

    async def letter(self, request: Request) -> Response:
        place = _place(request)
        verdict, raw, trail = await self._read(place)
        text = printable(raw)
        return self._context.renderer.page(
            "letter.html",
            request.scope,
            verdict=verdict,
            explained=self._explained.get(verdict.letter.body.reason, ""),
            raw=_hex(raw) if text is None else text,
            is_text=text is not None,
            trail=trail,
            can_replay=verdict.standing is Standing.KEPT,
            fault=forms.asked(request, "fault"),
            note_length_max=NOTE_LENGTH_MAX,
        )

    async def _read(self, place: Place) -> tuple[Verdict, bytes, Sequence[Any]]:
        """The letter as it stands now, its bytes, and the records of its replays."""
        async with self._context.open_log() as log:
            if place[0] >= log.partitions:
                raise HTTPException(404, "There is no such dead letter.")
            wanted = Filter(places=frozenset((place,)))
            found = [one async for one in dead_letters.letters(log, place[0], wanted)]
            if not found:
                raise HTTPException(404, "There is no such dead letter.")
            replayed = Filter(reasons=frozenset((dead_letters.REPLAYED,)))
            trail = [
                one
                async for one in dead_letters.letters(log, place[0], replayed)
                if one.body.offset == place[1]
            ]
            judgement = await dead_letters.judged(log, wanted, self._rules())
        return judgement.verdicts[0], found[0].body.raw, trail

    async def replay(self, request: Request) -> Response:
        place = _place(request)
        session: Session | None = request.scope["state"]["session"]
        fields = await forms.form(request)
        if session is None or not is_form_of(session, fields.get("csrf", "")):
            raise HTTPException(403, "This form was not made for your session: open it again.")
        back = f"/dead-letters/{place[0]}-{place[1]}"
        if fields.get("confirm") != "yes":
            return RedirectResponse(f"{back}?fault=unconfirmed", 303)
        note = " ".join(fields.get("note", "").split())[:NOTE_LENGTH_MAX]
        order = Order(
            wanted=Filter(places=frozenset((place,))),
            again=False,
            limit=1,
            note=f"console: {note}" if note else "console",
        )
        judgement = await self._context.replay(order)
        done = any(one.why == dead_letters.NOW for one in judgement.verdicts)
        outcome = "replayed" if done else "left as it is"
        logger.warning("dead letter %d-%d was %s by session %s", *place, outcome, session.id[:8])
        return RedirectResponse(back if done else f"{back}?fault=left", 303)

    def _rules(self) -> Rules:
        return Rules.present(self._context.clock_ms())


def _place(request: Request) -> Place:
    found = _ID.fullmatch(request.path_params["letter"])
    if found is None:
        raise HTTPException(404, "There is no such dead letter.")
    return int(found[1]), int(found[2])


def _hex(raw: bytes) -> str:
    """Offsets, bytes, and what of them is text, sixteen a line."""
    lines = []
    for start in range(0, len(raw), 16):
        row = raw[start : start + 16]
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
        lines.append(f"{start:06x}  {row.hex(' '):<47}  {text}")
    return "\n".join(lines)
