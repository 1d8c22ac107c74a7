"""HTTP/1.1 as both ends of the soak speak it, and what an ordinary request is answered."""

import asyncio
import hashlib
import json
import time
from dataclasses import dataclass

HEAD = (
    "HTTP/1.1 {status} {reason}\r\nServer: Synapse/1.3.1\r\nDate: Mon, 02 Sep 2019 10:00:00 GMT\r\n"
    "Content-Type: application/json\r\nCache-Control: no-cache, no-store, must-revalidate\r\n"
    "Access-Control-Allow-Origin: *\r\nContent-Length: {length}\r\n\r\n"
)
REASONS = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 429: "Too Many Requests", 500: "Internal Server Error"}
# A line that has been idle for longer is not used again: its other end may be closing it.
IDLE = 10


class Broken(Exception):
    """There was no connection, or it ended before the answer did."""


@dataclass(frozen=True)
class Message:
    first: str
    fields: dict[str, str]
    head: bytes
    body: bytes

    @property
    def status(self) -> int:
        return int(self.first.split(" ")[1])

    def json(self) -> dict:
        try:
            value = json.loads(self.body)
        except ValueError:
            return {}
        return value if isinstance(value, dict) else {}


async def receive(reader: asyncio.StreamReader) -> Message:
    head = await reader.readuntil(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
    if fields.get("transfer-encoding") == "chunked":
        body = bytearray()
        while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readuntil(b"\r\n")
    else:
        body = await reader.readexactly(int(fields.get("content-length", 0)))
    return Message(first, fields, head, bytes(body))


def answer(status: int, body: bytes) -> bytes:
    return HEAD.format(status=status, reason=REASONS.get(status, "?"), length=len(body)).encode() + body


def ordinary(target: str, sent: bytes) -> bytes:
    """What this request is answered, to the byte: as long as its target says, and made of all that came."""
    mark = hashlib.sha256(target.encode() + b"\0" + sent).hexdigest().encode()
    length = int(mark[:4], 16) % 20_000 + len(mark)
    return answer(200, (mark * (length // len(mark) + 1))[:length])


class Lines:
    """Kept-alive connections to one address."""

    def __init__(self, host: str, port: int, tls=None):
        self.host, self.port, self.tls = host, port, tls
        self.idle: list[tuple] = []

    async def ask(self, method: str, target: str, body: bytes = b"", fields: dict[str, str] | None = None, within: float = 60) -> Message:
        try:
            async with asyncio.timeout(within):
                return await self._ask(method, target, body, fields or {})
        except (OSError, asyncio.IncompleteReadError, TimeoutError, ValueError, IndexError) as error:
            raise Broken(f"{type(error).__name__} {error}") from error

    async def _ask(self, method: str, target: str, body: bytes, fields: dict[str, str]) -> Message:
        reader, writer = await self._line()
        try:
            fields = {"Host": f"{self.host}:{self.port}", "Content-Length": str(len(body)), **fields}
            head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
            writer.write(f"{method} {target} HTTP/1.1\r\n{head}\r\n".encode() + body)
            got = await receive(reader)
        except BaseException:
            writer.transport.abort()
            raise
        if got.fields.get("connection", "").lower() == "close":
            writer.close()
        else:
            self.idle.append((reader, writer, time.monotonic()))
        return got

    async def _line(self) -> tuple:
        while self.idle:
            reader, writer, since = self.idle.pop()
            if not reader.at_eof() and not writer.is_closing() and time.monotonic() - since < IDLE:
                return reader, writer
            writer.close()
        return await asyncio.open_connection(self.host, self.port, ssl=self.tls, limit=1 << 18)
