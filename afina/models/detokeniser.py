"""An answer's text while its tokens come: given away as soon as nothing of it can change any more.

Held back are bytes that are no whole character yet, and text that may be the beginning of a stop string.
"""

import sys
from collections.abc import Sequence

from afina.models.tokenizer import Tokenizer

_REPLACED = "\ufffd"  # what a tokenizer writes for bytes that are no character


class Detokeniser:
    """Takes the tokens of one answer, one by one, and gives its text in pieces.

    Joined, the pieces are the text of all tokens, cut before the first stop string. `stopped_by` is that string, as
    soon as it is complete; of several that are complete at the same token, the one that begins first. Special tokens
    have no text.

    Example: the stop string is "END". After "12 E" the text given away is "12 ", after "12 EN" nothing more; then
    "OUGH" gives "ENOUGH", and "D" would have ended the answer.

    Cost: a token decodes itself and the few before it, however long the answer is.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self._decode, self._stop = tokenizer.decode_part, [string for string in stop if string]
        self._longest = max(map(len, self._stop), default=0)
        self._ids: list[int] = []
        self._begin, self._read = 0, 0  # tokens from which on, and up to which, the text is known
        self._parts: list[str] = []  # of the text that is known
        self._known = self._given = 0  # characters: of it, and of what was given away
        self._held = ""  # known and not given away
        self._ends: list[int] = []  # of each token not given away yet, where its text ends
        self.stopped_by: str | None = None
        self._is_over = False

    def add(self, token: int, may_stop: bool = True) -> None:
        """The next token. Without `may_stop` no stop string ends in its text."""
        self._ids.append(token)
        now, start = self._decode(self._ids[self._begin :]), self._known
        whole = not now.endswith(_REPLACED)
        if whole and (new := self._new(now)):
            self._begin, self._read = self._read, len(self._ids)
            self._append(new, may_stop)
        cut = self.stopped_by is not None and start >= self._known
        self._ends.append(sys.maxsize if cut else self._known + (not whole))

    def end(self) -> None:
        """There are no more tokens: what is held back is text, bytes that are no character included."""
        if not self._is_over and self.stopped_by is None:
            self._append(self._new(self._decode(self._ids[self._begin :])), may_stop=True)
        self._is_over = True

    def take(self) -> tuple[str, int]:
        """What can be given away now: text, and how many tokens are behind it, the first of those not given away.
        Tokens whose text lies behind the cut never are."""
        keep = 0 if self._is_over or self.stopped_by is not None else self._may_begin_a_stop()
        text, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        self._given += len(text)
        if self._is_over and self.stopped_by is None:
            tokens, self._ends = len(self._ends), []
            return text, tokens
        return text, self._released()

    @property
    def text(self) -> str:
        """All that is known of the answer, given away or not."""
        return "".join(self._parts)[: self._known]

    def _new(self, now: str) -> str:
        """What is new in the text `now` of the tokens from `_begin` on. Decoded alone, tokens may have other spaces."""
        before = self._decode(self._ids[self._begin : self._read])
        return now[len(before) :] if now.startswith(before) else self._decode(self._ids[self._read :])

    def _append(self, new: str, may_stop: bool) -> None:
        self._parts.append(new)
        self._known += len(new)
        since = max(0, len(self._held) - self._longest + 1)
        self._held += new
        found = [(at, string) for string in self._stop if (at := self._held.find(string, since)) >= 0]
        if found and may_stop:
            at, self.stopped_by = min(found, key=lambda each: each[0])
            self._known -= len(self._held) - at
            self._held = self._held[:at]

    def _may_begin_a_stop(self) -> int:
        """How many of the last characters are the beginning of a stop string."""
        for n in range(min(self._longest - 1, len(self._held)), 0, -1):
            if any(string.startswith(self._held[-n:]) for string in self._stop):
                return n
        return 0

    def _released(self) -> int:
        n = 0
        while n < len(self._ends) and self._ends[n] <= self._given:
            n += 1
        del self._ends[:n]
        return n
