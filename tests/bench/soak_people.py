"""Everybody in front of the shim: who polls, who asks for something ordinary, and who has an address verified."""

import asyncio
import json
import random
import secrets
import time
from html import unescape
from re import findall
from urllib.parse import urlencode

from soak_ledger import Ledger, Press
from soak_mail import Mail, MailServer
from soak_wire import Broken, Lines, Message, ordinary

PREFIX = "/_matrix/client/r0/"
EMAIL = "m.login.email.identity"
JSON = {"Content-Type": "application/json"}
# Long enough for any restart; who has no answer then has lost something.
PATIENCE = 60


class Lost(Exception):
    """This verification cannot go on."""


class People:
    def __init__(self, port: int, ledger: Ledger, mails: MailServer, seed: int, accounts: list[tuple[str, str, str]]):
        self.lines = Lines("127.0.0.1", port)
        self.ledger, self.mails = ledger, mails
        self.random = random.Random(seed)
        self.accounts = accounts  # user, address, token: whoever is not in the middle of something
        self.open_polls = 0
        self.steps: dict[str, int] = {"validated": 0}
        self.over = asyncio.Event()

    # ---- everybody -----------------------------------------------------------
    async def once(self, kind: str, method: str, target: str, body: bytes = b"", fields: dict | None = None) -> Message | None:
        began = time.monotonic()
        try:
            got = await self.lines.ask(method, target, body, fields)
        except Broken as broken:
            self.ledger.failed(kind, began, broken)
            return None
        if got.status >= 500 or got.status == 429:
            self.ledger.failed(kind, began, got.first + " " + got.body[:200].decode("utf-8", "replace"))
            return None
        if kind == "requestToken":
            self.ledger.waits.append(time.monotonic() - began)
        return got

    async def until_answered(self, kind: str, method: str, target: str, body: bytes = b"", fields: dict | None = None) -> Message:
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            if got := await self.once(kind, method, target, body, fields):
                return got
            await asyncio.sleep(self.random.uniform(0.2, 0.6))
        self.ledger.wrong(f"{kind}: no answer in {PATIENCE} s", target)
        raise Lost

    def compare(self, kind: str, target: str, sent: bytes, got: Message) -> None:
        head = got.head.replace(b"connection: close\r\n", b"").replace(b"Connection: close\r\n", b"")
        if head + got.body == ordinary(target, sent):
            self.ledger.counts[f"{kind}: answered, equal to the byte"] += 1
        else:
            self.ledger.wrong(f"{kind}: another answer", (target, got.head))

    # ---- who polls -----------------------------------------------------------
    async def poll(self, number: int) -> None:
        await asyncio.sleep(number / 700)
        while not self.over.is_set():
            target = f"{PREFIX}sync?timeout={self.random.randrange(4000, 8000)}&since=s{number}_{self.random.randrange(1 << 32)}"
            self.open_polls += 1
            got = await self.once("poll", "GET", target, fields={"Authorization": f"Bearer poll{number}"})
            self.open_polls -= 1
            if got:
                self.compare("poll", target, b"", got)
            else:
                await asyncio.sleep(self.random.uniform(0.1, 1))

    # ---- ordinary load -------------------------------------------------------
    async def ask_ordinary(self) -> None:
        target = f"{PREFIX}rooms/!soak:localhost/messages?from={self.random.randrange(1 << 40)}"
        sent = self.random.randbytes(self.random.choice([0, 0, 0, 300, 30_000]))
        got = await self.once("ordinary", "PUT" if sent else "GET", target, sent, JSON if sent else None)
        if got:
            self.compare("ordinary", target, sent, got)

    # ---- who has an address verified -----------------------------------------
    async def verify(self, number: int) -> None:
        purpose = self.random.choice(["register", "register", "account/password", "account/3pid"])
        if purpose != "register" and not self.accounts:
            purpose = "register"
        account = self.accounts.pop(self.random.randrange(len(self.accounts))) if purpose != "register" else None
        self.ledger.counts["verifications begun"] += 1
        try:
            await Verification(self, number, purpose, account).run()
        except Lost:
            self.ledger.counts["verifications given up"] += 1
        if account:
            self.accounts.append(account)


class Verification:
    """One person, from requestToken to what it was for."""

    def __init__(self, people: People, number: int, purpose: str, account: tuple[str, str, str] | None):
        self.people, self.ledger, self.random = people, people.ledger, people.random
        self.purpose = purpose
        self.user = account[0] if account else f"user{number}"
        self.address = account[1] if purpose == "account/password" else f"person{number}@example.org"
        self.token = account[2] if account else ""
        self.never_clicks = self.random.random() < 0.1

    async def run(self) -> None:
        while True:
            await self.request_token()
            await self.refused_before_the_click()
            if self.never_clicks:
                return await self.look_only()
            await asyncio.sleep(self.random.uniform(0, 3))
            if await self.click():
                break
            self.ledger.counts["expired by rule, asked anew"] += 1
        self.people.steps["validated"] += 1
        try:
            await asyncio.sleep(self.random.uniform(0, 4))
            if await self.complete():
                await self.steal()
        finally:
            self.people.steps["validated"] -= 1

    async def request_token(self) -> None:
        self.secret = secrets.token_hex(16)
        self.ledger.asked[self.secret] = time.monotonic()
        body = json.dumps({"email": self.address, "client_secret": self.secret, "send_attempt": 1}).encode()
        while True:
            began = time.monotonic()
            got = await self.people.until_answered("requestToken", "POST", f"{PREFIX}{self.purpose}/email/requestToken", body, JSON)
            if got.status == 200:
                break
            if got.json().get("errcode") == "M_EMAIL_SEND_ERROR":  # a mail server that says 550
                self.ledger.failed("requestToken", began, got.body)
                await asyncio.sleep(0.5)
                continue
            self.ledger.wrong("requestToken: refused", (self.purpose, got.status, got.body))
            raise Lost
        self.sid = got.json()["sid"]
        self.ledger.owners[self.sid] = self.user
        mails = self.people.mails.of[self.sid]
        if not mails or any(mail.to != self.address for mail in mails):
            self.ledger.wrong("answered, and not mailed there", (self.sid, self.address, mails))
            raise Lost
        self.link = self.random.choice(mails).target

    async def complete_once(self, user: str) -> Message:
        creds = {"sid": self.sid, "client_secret": self.secret}
        auth = {"type": EMAIL, "threepid_creds": creds}
        bodies = {
            "register": {"username": user, "password": "soak", "auth": auth},
            "account/password": {"new_password": "soak" if user == self.user else "stolen", "auth": auth},
            "account/3pid": {"three_pid_creds": creds},
        }
        token = self.token if user == self.user else "thief"
        fields = {**JSON, "Authorization": f"Bearer {token}"} if self.purpose == "account/3pid" else JSON
        return await self.people.until_answered(
            "completion", "POST", PREFIX + self.purpose, json.dumps(bodies[self.purpose]).encode(), fields
        )

    def may_be_expired(self) -> bool:
        return self.ledger.may_be_expired(self.sid, self.secret, time.monotonic())

    async def refused_before_the_click(self) -> None:
        got = await self.complete_once(self.user)
        waiting = (400, "M_THREEPID_AUTH_FAILED") if self.purpose == "account/3pid" else (401, "M_UNAUTHORIZED")
        verdict = (got.status, got.json().get("errcode"))
        expired = verdict == (400, "M_THREEPID_AUTH_FAILED") and self.may_be_expired()
        if verdict == waiting or expired:
            self.ledger.counts["told to wait, before the click"] += 1
        else:
            self.ledger.wrong("before the click, not told to wait", (self.purpose, got.status, got.body))
            raise Lost

    async def look_only(self) -> None:
        """As a mail scanner does. Nobody presses; it must not become validated."""
        await self.people.until_answered("page", "GET", self.link)
        await asyncio.sleep(self.random.uniform(0, 3))
        await self.refused_before_the_click()
        self.ledger.counts["verifications that ended without a click, not validated"] += 1

    async def click(self) -> bool:
        """False: the link has expired, by rule."""
        page = await self.people.until_answered("page", "GET", self.link)
        if page.status != 200:
            if self.may_be_expired():
                return False
            self.ledger.wrong("a mailed link is unknown", (self.link, page.status))
            raise Lost
        inputs = findall(r'<input[^>]*?name="([^"]*)"[^>]*?value="([^"]*)"', page.body.decode())
        form = urlencode([(name, unescape(value)) for name, value in inputs]).encode()
        fields = {"Content-Type": "application/x-www-form-urlencoded", "Sec-Fetch-Site": "same-origin"}
        self.ledger.pressed[self.sid] = Press(time.monotonic(), self.address)
        done = await self.people.until_answered("page", "POST", self.link.split("?")[0], form, fields)
        if done.status == 200:
            return True
        if self.ledger.asked[self.secret] + self.ledger.unvalidated - 0.5 < time.monotonic():
            del self.ledger.pressed[self.sid]  # too late, by rule
            return False
        self.ledger.wrong("pressed, and not validated", (self.link, done.status))
        raise Lost

    async def complete(self) -> bool:
        got = await self.complete_once(self.user)
        # Done by an attempt whose answer was lost; the journal shows that it was this one's.
        again = self.purpose == "register" and got.json().get("errcode") in ("M_USER_IN_USE", "M_THREEPID_IN_USE")
        if got.status == 200 or again:
            self.ledger.counts["verifications completed"] += 1
            self.ledger.completed.add(self.sid)
            if got.status == 200 and self.purpose == "register":
                self.people.accounts.append((self.user, self.address, got.json()["access_token"]))
            return got.status == 200
        if self.may_be_expired():
            self.ledger.counts["validated, and expired by rule before the completion"] += 1
            return False
        self.ledger.wrong("validated, and not to be completed", (self.purpose, self.sid, got.status, got.body))
        raise Lost

    async def steal(self) -> None:
        """The sid has done what it was for: nobody else gets anything for it."""
        if self.random.random() > 0.2:
            return
        got = await self.complete_once(f"thief-{self.user}")
        verdict = (got.status, got.json().get("errcode"))
        if verdict == (400, "M_THREEPID_AUTH_FAILED"):
            self.ledger.counts["second uses refused"] += 1
        else:
            self.ledger.wrong("a second use was not refused", (self.purpose, self.sid, got.status, got.body))


async def look_at(people: People, mail: Mail, when: str) -> None:
    """Whatever became of its client's request, the link of a mail that was taken is known, or its time is over."""
    got = await people.until_answered("page", "GET", mail.target)
    now, ledger = time.monotonic(), people.ledger
    if got.status == 200 and mail.sid not in ledger.pressed and now > mail.taken + ledger.unvalidated + 2:
        ledger.wrong("a link lives longer than its lifetime", (mail, now - mail.taken))
    elif got.status == 200:
        ledger.counts[f"mails, {when}: link works"] += 1
    elif ledger.may_be_expired(mail.sid, mail.secret, now):
        ledger.counts[f"mails, {when}: expired by rule"] += 1
    else:
        ledger.wrong(f"a mailed link is unknown, {when}", (mail, got.status, now - mail.taken))


async def audit(people: People) -> None:
    """Every mail that was ever taken, once more."""
    slots = asyncio.Semaphore(16)

    async def look(mail: Mail) -> None:
        async with slots:
            await look_at(people, mail, "at the end")

    await asyncio.gather(*(look(mail) for mail in people.mails.taken))
