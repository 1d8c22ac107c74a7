"""What happened, and what may: everything that is lost or wrong is put down here with its reason."""

import json
import statistics
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

# After a fault has ended: connections come up again, what it held is let go.
SETTLING = 1.5


@dataclass
class Fault:
    """From when to when which kinds of requests may fail. One that is graceful spares what was on its way before."""

    name: str
    spoils: frozenset[str]
    graceful: bool = False
    settling: float = SETTLING
    begin: float = 0
    end: float | None = None

    def excuses(self, kind: str, began: float, ended: float) -> bool:
        over = self.end is not None and began > self.end + self.settling
        spared = self.graceful and began < self.begin - 0.1
        return kind in self.spoils and not over and not spared and ended >= self.begin


@dataclass
class Press:
    began: float
    to: str


@dataclass
class Ledger:
    unvalidated: float  # session.unvalidated_lifetime, seconds
    validated: float
    counts: Counter = field(default_factory=Counter)
    wrongs: Counter = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    pressed: dict[str, Press] = field(default_factory=dict)
    asked: dict[str, float] = field(default_factory=dict)  # client_secret -> when it was first sent, which is before its session began
    owners: dict[str, str] = field(default_factory=dict)  # sid -> the user that it is for
    completed: set[str] = field(default_factory=set)  # sids whose client was told of the success
    waits: list[float] = field(default_factory=list)

    def wrong(self, what: str, example: object) -> None:
        self.wrongs[what] += 1
        self.examples.setdefault(what, str(example))

    def failed(self, kind: str, began: float, why: object) -> None:
        """A request got no answer, or a 5xx. Is there a reason?"""
        ended = time.monotonic()
        reason = next((fault.name for fault in reversed(self.faults) if fault.excuses(kind, began, ended)), None)
        if reason:
            self.counts[f"{kind}: failed, {reason}"] += 1
        else:
            lately = ", ".join(f"{it.name} {began - it.begin:.1f} s before" for it in self.faults[-2:])
            self.wrong(f"{kind}: failed without a fault", f"{why} after {ended - began:.1f} s; {lately}")

    def may_be_expired(self, sid: str, secret: str, now: float) -> bool:
        """By rule a session can be gone now: its time, counted from the earliest that it can have begun, is over."""
        begin, lifetime = self.asked[secret], self.unvalidated
        if sid in self.pressed:
            begin, lifetime = self.pressed[sid].began, self.validated
        return now > begin + lifetime - 0.5

    def read_journal(self, journal: Path) -> None:
        """What the homeserver knows: whom the shim called validated, and who got what for it."""
        got = defaultdict(set)
        for line in journal.read_text().splitlines():
            entry = json.loads(line)
            sid = entry.get("sid")
            if sid is None:
                continue
            press = self.pressed.get(sid)
            if press is None:
                self.wrong("validated without a click", entry)
            elif press.to != entry["address"]:
                self.wrong("validated for another address", entry)
            if entry["what"] == "seen":
                self.counts["getValidated3pid said validated"] += 1
                continue
            got[sid].add((entry["what"], entry["user"], entry["address"]))
        for sid in self.completed - set(got):
            self.wrong("told of a success that the homeserver knows nothing of", sid)
        for sid, ends in got.items():
            self.counts["sids with a success at the homeserver"] += 1
            if len(ends) != 1:
                self.wrong("two successes with one sid", (sid, ends))
            elif self.owners.get(sid) not in {user for _, user, _ in ends}:
                self.wrong("somebody else's success", (sid, ends, self.owners.get(sid)))

    def report(self) -> str:
        lines = [f"  {count:8}  {what}" for what, count in sorted(self.counts.items())]
        if len(self.waits) > 1:
            cuts = statistics.quantiles(self.waits, n=100)
            lines.append(f"  requestToken, faults included: median {cuts[49] * 1000:.0f} ms, p99 {cuts[98] * 1000:.0f} ms")
        lines.append(f"  {sum(self.wrongs.values()):8}  lost or wrong")
        lines += [f"  WRONG {count} times: {what}: {self.examples[what]}" for what, count in self.wrongs.items()]
        return "\n".join(lines)


@dataclass
class Memory:
    """Resident memory of the shim, process by process."""

    samples: list[tuple[float, int, int]] = field(default_factory=list)  # when, pid, kB

    def look(self, pid: int) -> None:
        try:
            status = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            return
        for line in status.splitlines():
            if line.startswith("VmRSS:"):
                self.samples.append((time.monotonic(), pid, int(line.split()[1])))

    def slope(self, since: float) -> tuple[float, int, int]:
        """kB a minute from then on (Theil-Sen: the median of all slopes, which a single jump does not bend), the first and the last kB."""
        late = [(when, kb) for when, _, kb in self.samples if when >= since]
        late = late[:: max(1, len(late) // 400)]
        slopes = [(kb - before) / (when - then) for n, (then, before) in enumerate(late) for when, kb in late[n + 1 :]]
        if len(slopes) < 20:
            raise SystemExit("too short a time to see a slope of memory")
        return statistics.median(slopes) * 60, late[0][1], late[-1][1]
