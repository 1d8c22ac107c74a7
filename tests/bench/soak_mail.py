"""A mail server for the soak, which keeps every mail that it has taken, and fails as it is told to."""

import asyncio
import email
import email.policy
import re
import time
from collections import defaultdict
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit

# Ways to fail: what is said at which moment, None for nothing any more, and whether the connection stays open then.
FAILS = {
    "busy": ("greeting", b"421 too busy\r\n"),
    "later": ("RCPT", b"450 try again later\r\n"),
    "disk": ("dot", b"452 no room\r\n"),
    "never": ("RCPT", b"550 no such user\r\n"),
    "cut": ("DATA", None),
    "cut at the end": ("dot", None),
    "hanging": ("greeting", b""),
    "hanging at the end": ("dot", b""),
    # The one that is cruel: the mail is taken, and nobody learns of it.
    "lost 250": ("taken", None),
}


@dataclass
class Mail:
    to: str
    sid: str
    secret: str  # the client's
    target: str  # path and query of its link
    taken: float


class MailServer:
    def __init__(self) -> None:
        self.taken: list[Mail] = []
        self.of: dict[str, list[Mail]] = defaultdict(list)  # by sid
        self.unread = 0
        self.failing: str | None = None
        self.on_mail = lambda mail: None

    async def start(self) -> int:
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=1 << 18)
        return self.server.sockets[0].getsockname()[1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._dialogue(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _dialogue(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to = ""

        async def say(moment: str, usual: bytes) -> bool:
            at, said = FAILS.get(self.failing or "", ("", b""))
            if at != moment:
                writer.write(usual)
                return True
            if said is None:
                writer.transport.abort()
            elif said:
                writer.write(said)
                return True
            else:  # until the other side leaves
                await reader.read()
            return False

        if not await say("greeting", b"220 soak\r\n"):
            return
        while line := (await reader.readline()).decode("latin-1").strip():
            verb = line.split(" ")[0].upper()
            if verb == "QUIT":
                writer.write(b"221 bye\r\n")
                return
            if verb == "RCPT":
                to = line.partition("<")[2].partition(">")[0]
            usual = {"EHLO": b"250-soak\r\n250 8BITMIME\r\n", "DATA": b"354 go on\r\n"}.get(verb, b"250 ok\r\n")
            if not await say(verb, usual):
                return
            if verb != "DATA":
                continue
            raw = await reader.readuntil(b"\r\n.\r\n")
            at, said = FAILS.get(self.failing or "", ("", b""))
            if at != "dot":
                self._take(to, raw[:-3].replace(b"\r\n..", b"\r\n."))
            if not await say("taken" if at == "taken" else "dot", b"250 taken\r\n"):
                return

    def _take(self, to: str, raw: bytes) -> None:
        text = email.message_from_bytes(raw, policy=email.policy.default).get_body(("plain",)).get_content()
        links = re.findall(r"https?://\S+", text)
        if len(links) != 1:
            self.unread += 1
            return
        url = urlsplit(links[0])
        query = parse_qs(url.query)
        mail = Mail(to, query["sid"][0], query["client_secret"][0], f"{url.path}?{url.query}", time.monotonic())
        self.taken.append(mail)
        self.on_mail(mail)
        self.of[mail.sid].append(mail)
