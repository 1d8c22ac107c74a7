"""What became of a case: the same, changed, refused, or harm done."""

import re
from dataclasses import dataclass

from fidelity_cases import Case
from fidelity_parse import Cut, Doubtful, Message, difference, requests, response


@dataclass(frozen=True)
class Came:
    """What the homeserver got on each connection, and whether its end came; what the client got, and whether its end came."""

    up: list[tuple[bytes, bool]]
    down: bytes
    ended: bool


@dataclass(frozen=True)
class Outcome:
    # same, case (only names' case is changed), changed, refused, harm
    what: str
    why: str = ""

    def __str__(self) -> str:
        return f"{self.what} ({self.why})" if self.why else self.what

    def rank(self, case: Case) -> int:
        """More is better. Hostile bytes may be refused or made harmless, one as well as the other."""
        if case.group == "hostile":
            return 0 if self.what == "harm" else 1
        return ["harm", "refused", "changed", "case", "same"].index(self.what)


def answers_expected(case: Case) -> int:
    try:
        found, _rest = requests(case.request)
    except Doubtful:
        return 1
    return max(1, len(found)) if case.group == "well" else 1


def complete(case: Case, came: bytes, expected: int) -> bool:
    """Whether as many answers as expected have come to their ends."""
    try:
        for _ in range(expected):
            _interim, _answer, came = response(came, method(case), ended=False)
    except (Cut, Doubtful):
        return False
    return True


def method(case: Case) -> bytes:
    return case.request.split(b" ", 1)[0]


def judge(case: Case, came: Came) -> Outcome:
    everything = b"".join(stream for stream, _ in came.up) if case.way == "up" else came.down
    if case.must_not and re.search(case.must_not, everything):
        return Outcome("harm", f"{case.must_not.decode()} came through")
    if case.must and everything and not re.search(case.must, everything):
        return Outcome("harm", f"{case.must.decode()} was lost")
    if case.way == "down":
        return judge_answer(case, came)
    upwards = judge_requests(case, came)
    if case.way == "up" or upwards.what != "same":
        return upwards
    return judge_tunnel(case, came)


def judge_requests(case: Case, came: Came) -> Outcome:
    if not came.up:
        return Outcome("refused", status_of(came))
    got: list[Message] = []
    for stream, _ended in came.up:
        try:
            found, rest = requests(stream)
        except Doubtful as doubt:
            return Outcome("harm", f"the homeserver gets: {doubt}")
        got += found
        if rest and case.group != "hostile" and not (case.script == "upgrade" and rest == b"hello"):
            return Outcome("changed", f"the homeserver gets {len(rest)} bytes more")
    if any(b" /smuggled " in message.line for message in got):
        return Outcome("harm", "the smuggled request is one of its own")
    if case.script == "cut":
        return Outcome("harm", "the cut body is whole") if got else Outcome("changed", "it stays cut")
    if case.group == "hostile":
        return Outcome("changed", "one reading") if got else Outcome("refused", f"cut, {status_of(came)}")
    return compare(requests(case.meant or case.request)[0], got, came)


def compare(sent: list[Message], got: list[Message], came: Came) -> Outcome:
    if len(sent) != len(got):
        return Outcome("changed", f"{len(got)} requests of {len(sent)}; {status_of(came)}")
    # On several connections the order is not to be told.
    got = sorted(got, key=lambda message: [one.line for one in sent].index(message.line) if message.line in [one.line for one in sent] else 99)
    for before, after in zip(sent, got):
        changed = difference(before, after, down=False)
        if changed:
            return weigh(changed, before, after, down=False)
        if before.all(b"upgrade") and b"101" in came.down[:12] and before.all(b"upgrade") != after.all(b"upgrade"):
            return Outcome("changed", "Upgrade")
    if b"100-continue" in b"".join(sent[0].all(b"expect")) and sent[0].body and not came.down.startswith(b"HTTP/1.1 100"):
        return Outcome("changed", "no 100 came")
    if not re.search(rb"^HTTP/1\.[01] (200|101) ", came.down, re.M):
        return Outcome("changed", f"answered {status_of(came)}")
    return Outcome("same")


def weigh(changed: str, before: Message, after: Message, down: bool) -> Outcome:
    """Names in lower case are the lesser evil: HAProxy has no other."""
    fold = lambda message: Message(  # noqa: E731
        message.line, [(name.lower(), value) for name, value in message.fields], message.body, message.framing, message.trailers
    )
    return Outcome("changed", changed) if difference(fold(before), fold(after), down) else Outcome("case", "names in lower case")


def judge_answer(case: Case, came: Came) -> Outcome:
    if not came.down:
        return Outcome("refused", "closed" if came.ended else "no answer")
    try:
        interim, got, behind = response(came.down, method(case), came.ended)
    except Doubtful as doubt:
        return Outcome("harm", f"the client gets: {doubt}")
    except Cut:
        got = None
    try:
        meant_interim, sent, _rest = response(case.meant or case.answer, method(case), case.closes)
    except (Cut, Doubtful, IndexError, ValueError):
        # No answer that anybody could pass on whole.
        meant_interim, sent = [], None
    if got is None:
        if not came.ended:
            return Outcome("changed", "its end does not come")
        return Outcome("changed", "it is cut") if sent is None else Outcome("refused", "cut")
    if got.status in (400, 500, 502, 503, 504) and (sent is None or got.status != sent.status):
        return Outcome("refused", status_of(came))
    if case.group == "hostile":
        if got.status == 101:
            return Outcome("harm", "101 without an upgrade")
        if behind and not case.then:
            return Outcome("harm", f"{len(behind)} bytes behind the answer")
        if truncated(case):
            return Outcome("harm", "the cut answer is whole")
        return Outcome("changed", "one reading")
    changed = difference(sent, got, down=True)
    if changed:
        return weigh(changed, sent, got, down=True)
    if [one.line for one in interim] != [one.line for one in meant_interim]:
        return Outcome("changed", f"interim answers: {[one.status for one in interim]} of {[one.status for one in meant_interim]}")
    if behind:
        return Outcome("changed", f"{len(behind)} bytes behind the answer")
    return Outcome("same")


def truncated(case: Case) -> bool:
    try:
        response(case.answer, method(case), ended=case.closes)
    except Cut:
        return True
    except Doubtful:
        pass
    return False


def judge_tunnel(case: Case, came: Came) -> Outcome:
    """The 101 as it was sent, and everything that is said behind it."""
    _interim, got, behind = response(came.down, method(case), came.ended)
    _interim, sent, _behind = response(case.answer, method(case), True)
    changed = difference(sent, got, down=True)
    if changed:
        return weigh(changed, sent, got, down=True)
    if [value.lower() for value in got.all(b"upgrade")] != sent.all(b"upgrade"):
        return Outcome("changed", "Upgrade of the answer")
    if behind != b"[hi]HELLO[bye]":
        return Outcome("changed", f"the tunnel gave {behind[:40]!r}")
    return Outcome("same")


def status_of(came: Came) -> str:
    line = came.down.split(b"\r\n", 1)[0].decode("latin-1")
    found = re.match(r"HTTP/1\.[01] (\d+)", line)
    return found[1] if found else "closed" if came.ended else "no answer"
