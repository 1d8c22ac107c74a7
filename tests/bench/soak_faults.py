"""The shim and its homeserver as processes, and what befalls them: one fault after another, drawn from the seed."""

import asyncio
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

from soak_ledger import Fault, Ledger
from soak_mail import FAILS, MailServer

HERE = Path(__file__).resolve().parent
# Longer than any long-poll: who was there before SIGTERM is answered.
GRACE = 12
MAIL_DEADLINE = 3
EVERYTHING = frozenset({"poll", "ordinary", "requestToken", "page", "completion"})
NEEDS_HOMESERVER = EVERYTHING - {"page"}

CONFIG = """
server_name = "soak.example"
public_base_url = "http://127.0.0.1:{clients}"
state_dir = "{folder}/state"
listen = {{ clients = ["127.0.0.1:{clients}"], identity = ["127.0.0.1:{identity}"], admin = ["127.0.0.1:{admin}"] }}
shutdown.grace = "{grace}s"
homeserver.url = "http://127.0.0.1:{homeserver}"
identity = {{ name = "localhost:{identity}", tls = {{ certificate = "{folder}/cert.pem", private_key = "{folder}/key.pem" }} }}
session = {{ unvalidated_lifetime = "{unvalidated}s", validated_lifetime = "{validated}s" }}
store = {store}
email = {{ transport = "smtp", host = "127.0.0.1", port = {mail}, tls = "none", from = "noreply@soak.example", deadline = "{deadline}s", max_connections = 16 }}
limits = {{ request_token_per_ip = "{limit}/1m", request_token_per_address = "1000/1m", email_total = "{limit}/1m", submit_token_per_ip = "{limit}/1m" }}
log = {{ level = "warn" }}
"""


class Parts:
    def __init__(self, folder: Path, shim: Path, ports: dict[str, int], settings: dict):
        self.folder, self.binary, self.ports, self.settings = folder, shim, ports, settings
        self.shim: subprocess.Popen | None = None
        self.homeserver: subprocess.Popen | None = None
        self.redis: subprocess.Popen | None = None
        self.limit = 100_000
        self.log = (folder / "shim.log").open("ab")
        self.homeserver_log = (folder / "homeserver.log").open("ab")
        self.configure()

    def configure(self, more: str = "") -> None:
        self.limit += 1  # a change, so that there is something to read again
        text = CONFIG.format(folder=self.folder, grace=GRACE, deadline=MAIL_DEADLINE, limit=self.limit, **self.ports, **self.settings)
        (self.folder / "shim.toml").write_text(text + more)

    async def start_shim(self) -> None:
        self.shim = subprocess.Popen([self.binary, "serve", "--config", self.folder / "shim.toml"], stderr=self.log, stdout=self.log)
        await self.answering("clients", self.shim)

    async def start_redis(self, port: int) -> None:
        program = ["redis-server", "--bind", "127.0.0.1", "--port", str(port), "--save", "", "--dir", str(self.folder)]
        self.redis = subprocess.Popen(program, stdout=subprocess.DEVNULL)
        self.ports["redis"] = port
        await self.answering("redis", self.redis)

    async def start_homeserver(self) -> None:
        program = [sys.executable, HERE / "soak_homeserver.py", str(self.ports["homeserver"]), self.folder / "journal"]
        identity = [f"localhost:{self.ports['identity']}", self.folder / "cert.pem"]
        self.homeserver = subprocess.Popen([*program, *identity], stderr=self.homeserver_log)
        await self.answering("homeserver", self.homeserver)

    async def answering(self, which: str, process: subprocess.Popen) -> None:
        end = time.monotonic() + 30
        while time.monotonic() < end and process.poll() is None:
            try:
                _reader, writer = await asyncio.open_connection("127.0.0.1", self.ports[which])
                writer.close()
                return
            except OSError:
                await asyncio.sleep(0.02)
        raise SystemExit(f"the {which} did not start: {(self.folder / 'shim.log').read_text()[-2000:]}")

    def stop(self) -> None:
        for process in (self.shim, self.homeserver, self.redis):
            if process:
                process.kill()
                process.wait()


class Faults:
    def __init__(self, parts: Parts, ledger: Ledger, mails: MailServer, steps: dict[str, int], seed: int, only: str = ""):
        self.parts, self.ledger, self.mails, self.steps = parts, ledger, mails, steps
        self.random = random.Random(seed)
        self.bag: list[str] = []
        self.last = ""
        self.only = only

    async def run(self, calm: float, end: float) -> None:
        """Until `end`; from `calm` on the shim itself is left alone, so that one process shows its memory."""
        while time.monotonic() < end:
            await asyncio.sleep(self.random.uniform(0.5, 2))
            restarts = time.monotonic() < calm
            # Every kind before any comes again.
            if not [kind for kind in self.bag if restarts or not kind.startswith("shim")]:
                kinds = ["shim killed", "shim killed", "shim terminated", "homeserver killed", "homeserver stopped"]
                self.bag = kinds + ["configuration read again", "faulty configuration"] + [f"mail server: {name}" for name in FAILS]
                self.bag = [kind for kind in self.bag if self.only in kind]
                self.random.shuffle(self.bag)
            # Every other one is the shim's own, so that also a minute has some of them.
            of_the_shim = restarts and not self.last.startswith("shim")
            kind = next((kind for kind in self.bag if kind.startswith("shim") == of_the_shim), None)
            kind = self.last = kind or next(kind for kind in self.bag if restarts or not kind.startswith("shim"))
            self.bag.remove(kind)
            self.ledger.counts[f"fault: {kind}"] += 1
            print(f"{time.strftime('%H:%M:%S')} {kind}", flush=True)
            await self.befall(kind)

    async def befall(self, kind: str) -> None:
        pause = self.random.uniform(0.2, 1.5)
        if kind == "shim killed":
            self.ledger.counts["validated, not completed when the shim was killed"] += self.steps["validated"]
            with self.fault(kind, EVERYTHING):
                self.parts.shim.kill()
                self.parts.shim.wait()
                await asyncio.sleep(pause)
                await self.parts.start_shim()
        elif kind == "shim terminated":
            with self.fault(kind, EVERYTHING, graceful=True):
                self.parts.shim.terminate()
                await self.ended()
                await self.parts.start_shim()
        elif kind == "homeserver killed":
            with self.fault(kind, NEEDS_HOMESERVER):
                self.parts.homeserver.kill()
                self.parts.homeserver.wait()
                await asyncio.sleep(pause)
                await self.parts.start_homeserver()
        elif kind == "homeserver stopped":  # nobody fails: everybody waits
            os.kill(self.parts.homeserver.pid, signal.SIGSTOP)
            await asyncio.sleep(pause)
            os.kill(self.parts.homeserver.pid, signal.SIGCONT)
        elif kind.startswith("mail server: "):
            with self.fault(kind, frozenset({"requestToken"}), settling=2 * MAIL_DEADLINE):
                self.mails.failing = kind.removeprefix("mail server: ")
                await asyncio.sleep(1 + pause)
                self.mails.failing = None
        else:  # nothing fails, whether it can be read or not
            self.parts.configure('unknown = "key"\n' if kind == "faulty configuration" else "")
            os.kill(self.parts.shim.pid, signal.SIGHUP)
            await asyncio.sleep(pause)
            self.parts.configure()

    def fault(self, name: str, spoils: frozenset[str], **more) -> "Lasting":
        return Lasting(self.ledger, Fault(name, spoils, **more))

    async def ended(self) -> None:
        shim, end = self.parts.shim, time.monotonic() + GRACE + 5
        while shim.poll() is None and time.monotonic() < end:
            await asyncio.sleep(0.05)
        if shim.poll() != 0:
            self.ledger.wrong("SIGTERM did not end it with 0", shim.poll())
            shim.kill()
            shim.wait()


class Lasting:
    def __init__(self, ledger: Ledger, fault: Fault):
        self.ledger, self.it = ledger, fault

    def __enter__(self) -> None:
        self.it.begin = time.monotonic()
        self.ledger.faults.append(self.it)

    def __exit__(self, *_: object) -> None:
        self.it.end = time.monotonic()


def raise_descriptors() -> None:
    """Both ends of every long-poll are the shim's."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
