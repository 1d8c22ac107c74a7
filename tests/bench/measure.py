"""Runs the rows, all proxies in turn in every round, and gives every value that came out."""

import json
import re
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import machine
from proxies import HAPROXY, NGINX, SHIM, SPLICE, Process, Proxy

MEGA = 1_000_000


@dataclass(frozen=True)
class Effort:
    rounds: int
    seconds: float
    warm: float
    held: int
    big: int
    beside: int


FULL = Effort(rounds=5, seconds=2.5, warm=0.5, held=10_000, big=100 * MEGA, beside=10_000 * MEGA)
SMOKE = Effort(rounds=1, seconds=0.2, warm=0.1, held=200, big=10 * MEGA, beside=50 * MEGA)


def run(keys: list[str], rounds: int, effort: Effort, binaries: machine.Binaries, folder: Path):
    """The values by (key, proxy), and the shares of the proxies' core that other programs took meanwhile."""
    bench = Bench(effort, binaries, folder)
    try:
        for number in range(1, rounds + 1):
            began = time.monotonic()
            for group in GROUPS:
                wanted = [key for key in group.keys if key in keys]
                if wanted and (number <= group.rounds):
                    group.measure(bench, wanted, number)
            print(f"round {number} of {rounds}: {time.monotonic() - began:.0f} s", flush=True)
    finally:
        bench.stop()
    return bench.values, bench.others


class Bench:
    """Responder, proxies that stay up, and what was measured."""

    def __init__(self, effort: Effort, binaries: machine.Binaries, folder: Path):
        self.effort, self.binaries, self.folder = effort, binaries, folder
        self.values: dict[tuple[str, str], list[float]] = defaultdict(list)
        self.others: list[float] = []
        self.load_core, self.proxy_core = machine.cores()
        self.started = 0
        self.running: list = []
        self.unix = folder / "homeserver.sock"
        try:
            self.responder = self.serve("respond", "--listen", "127.0.0.1:0", "--unix", self.unix)
            doors = {
                SHIM: ("plain", "tls", "unix"),
                NGINX: ("plain", "tls", "unix"),
                HAPROXY: ("plain", "tls", "unix", "splice"),
            }
            self.proxies = {kind: self.proxy(kind, which) for kind, which in doors.items()}
        except BaseException:
            self.stop()
            raise

    def serve(self, *words) -> int:
        """Starts a server of load's on the load's core; its port."""
        process = Process(
            [self.binaries.load, *words], self.load_core, self.folder / "load.log", stdout=subprocess.PIPE
        )
        self.running.append(process)
        ready = process.child.stdout.readline().decode()
        return int(re.fullmatch(r"ready .*:(\d+)\n", ready)[1])

    def proxy(self, kind: str, doors=("plain",), responder: int | None = None, purpose: str = "speed") -> Proxy:
        self.started += 1
        proxy = Proxy(
            kind,
            self.folder / f"{kind}-{self.started}",
            responder or self.responder,
            self.unix,
            self.binaries.shim,
            doors,
            purpose,
        )
        self.running.append(proxy)
        return proxy.start()

    def stop(self) -> None:
        for running in reversed(self.running):
            running.stop()

    def load(self, *words) -> dict:
        """Runs load to its end on its core."""
        command = ["taskset", "-c", str(self.load_core), self.binaries.load, *words]
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            logs = "".join(log.read_text()[-1000:] for log in self.folder.glob("**/log"))
            sys.exit(f"{' '.join(str(word) for word in words)}\n{done.stderr}{logs}")
        return json.loads(done.stdout)

    def under_load(self, kind: str, how: str, door: str, *words) -> dict:
        """One window of load on a proxy that is up."""
        proxy = self.proxies[kind]
        got = self.load(
            how, "--to", proxy.address(door), "--pids", proxy.pids(door), "--core", self.proxy_core,
            "--seconds", self.effort.seconds, "--warm", self.effort.warm, *words,
        )  # fmt: skip
        # What the core did in user mode that the proxy did not.
        self.others.append((got["core_user"] - got["cpu_user"]) / got["seconds"])
        return got

    def note(self, key: str, who: str, value: float) -> None:
        self.values[key, who].append(value)
        print(f"  {key:14} {who:15} {value:10.3f}", flush=True)


def in_turn(number: int, kinds=(SHIM, NGINX, HAPROXY)):
    """Another one begins in every round."""
    at = number % len(kinds)
    return kinds[at:] + kinds[:at]


def cpu_per_request(got: dict) -> float:
    return got["cpu"] / got["requests"] * 1e6


def requests(how: str, door: str, *words):
    """Rows that are the proxy's CPU time divided by the requests."""

    def measure(bench: Bench, wanted: list[str], number: int) -> None:
        for kind in in_turn(number):
            bench.note(wanted[0], kind, cpu_per_request(bench.under_load(kind, how, door, *words)))

    return measure


def open_loop(bench: Bench, wanted: list[str], number: int) -> None:
    words = ("--seconds", bench.effort.seconds, "--warm", bench.effort.warm)
    direct = bench.load("open", "--to", f"127.0.0.1:{bench.responder}", *words)
    for kind in in_turn(number):
        got = bench.under_load(kind, "open", "plain")
        bench.note("open_loop", kind, cpu_per_request(got))
        bench.note("added_p50", kind, got["p50"] - direct["p50"])
    bench.note("added_p50", "direct", direct["p50"])


def bodies(direction: str, big: bool):
    """All that the proxy's core was busy with, per GB: soft interrupts are charged to nobody. Of the time in user mode only
    the proxy's own is taken, so that a neighbour's program does not count."""

    def measure(bench: Bench, wanted: list[str], number: int) -> None:
        size = bench.effort.big if big else MEGA
        words = ["--connections", 2 if big else 4]
        words += ["--target", f"/b/{size}"] if direction == "down" else ["--target", "/upload", "--up", size]
        for kind in in_turn(number, (SHIM, NGINX, HAPROXY, SPLICE)):
            base, door = (HAPROXY, "splice") if kind == SPLICE else (kind, "plain")
            got = bench.under_load(base, "closed", door, *words)
            busy = got["cpu_user"] + got["core_system"] + got["core_interrupts"]
            bench.note(wanted[0], kind, busy / (got["bytes"] / 1e9))

    return measure


def held(bench: Bench, wanted: list[str], number: int) -> None:
    count = machine.holdable(bench.effort.held)
    for kind in in_turn(number):
        proxy = bench.proxy(kind, purpose="crowd")
        got = bench.load(
            "hold", "--to", proxy.address("plain"), "--responder", f"127.0.0.1:{bench.responder}",
            "--connections", count, "--pids", proxy.pids("plain"),
        )  # fmt: skip
        proxy.stop()
        if got["answered"] != count:
            sys.exit(f"{kind}: of {count} held only {got['answered']} were answered")
        bench.note("held", kind, got["kb_each"])


def crowd(bench: Bench, wanted: list[str], number: int) -> None:
    count = machine.holdable(bench.effort.held)
    proxy = bench.proxy(SHIM, purpose="crowd")
    got = bench.load(
        "hold", "--to", proxy.address("plain"), "--responder", f"127.0.0.1:{bench.responder}",
        "--connections", count, "--pids", proxy.pids("plain"), "--up", bench.effort.beside,
    )  # fmt: skip
    proxy.stop()
    if got["answered"] != count:
        sys.exit(f"beside an upload only {got['answered']} of {count} held were answered")
    bench.note("crowd", SHIM, (got["resident_most"] - got["resident"]) / 1000)


def start_and_idle(bench: Bench, wanted: list[str], number: int) -> None:
    for kind in in_turn(number):
        # Once before, as after an installation: the shim has its CA then, and the files are in memory.
        proxy = bench.proxy(kind)
        load = ["open", "--to", proxy.address("plain"), "--rate", 100, "--seconds", 0.1, "--warm", 0]
        bench.load(*load)
        text = "".join(Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in proxy.pids("plain").split(","))
        sizes = [(name, int(size)) for name, size in re.findall(r"^(\w+): +(\d+) kB", text, re.M)]
        bench.note("idle_rss", kind, sum(size for name, size in sizes if name == "Rss") / 1000)
        bench.note("idle_private", kind, sum(size for name, size in sizes if name.startswith("Private_")) / 1000)
        proxy.stop()
        got = bench.load("start", "--to", proxy.address("plain"), "--core", bench.proxy_core, "--", *proxy.commands[0])
        bench.note("cold_start", kind, got["ms"])


def binary(bench: Bench, wanted: list[str], number: int) -> None:
    for kind, file in ((SHIM, bench.binaries.shim), (NGINX, shutil.which("nginx")), (HAPROXY, shutil.which("haproxy"))):
        bench.note("binary", kind, Path(file).stat().st_size / 1e6)


def intercepted(bench: Bench, wanted: list[str], number: int) -> None:
    if "intercepting" not in vars(bench):
        # The homeserver has to know the identity door and the shim the homeserver: the door's port is drawn first.
        port = machine.free_port()
        bench.intercepting = bench.proxy(SHIM, responder=port)
        bench.serve("homeserver", "--listen", f"127.0.0.1:{port}", "--identity", f"localhost:{bench.intercepting.identity}")
    proxy = bench.intercepting
    got = bench.load(
        "closed", "--to", proxy.address("plain"), "--pids", proxy.pids("plain"), "--core", bench.proxy_core,
        "--connections", 16, "--seconds", bench.effort.seconds, "--warm", bench.effort.warm, "--request-token",
    )  # fmt: skip
    bench.note("intercepted", SHIM, cpu_per_request(got))


@dataclass(frozen=True)
class Group:
    """Figures that one measurement gives, and how many rounds suffice."""

    keys: tuple[str, ...]
    measure: object
    rounds: int = 99


GROUPS = [
    Group(("small_get",), requests("closed", "plain")),
    Group(("small_put",), requests("closed", "plain", "--target", "/_matrix/client/r0/rooms/send", "--up", 1000)),
    Group(("open_loop", "added_p50"), open_loop),
    Group(("down_1m",), bodies("down", big=False)),
    Group(("up_1m",), bodies("up", big=False)),
    Group(("down_100m",), bodies("down", big=True)),
    Group(("up_100m",), bodies("up", big=True)),
    Group(("held",), held, rounds=3),
    Group(("crowd",), crowd, rounds=1),
    Group(("tls_handshake",), requests("handshakes", "tls")),
    Group(("tls_get",), requests("closed", "tls", "--tls")),
    Group(("unix_get",), requests("closed", "unix")),
    Group(("cold_start", "idle_rss", "idle_private"), start_and_idle),
    Group(("binary",), binary, rounds=1),
    Group(("intercepted",), intercepted),
]
