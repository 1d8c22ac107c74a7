"""HTTP/1.1 read in the one way that leaves no doubt; everything else raises Doubtful."""

import re
from dataclasses import dataclass, field


class Doubtful(Exception):
    """Two parsers could read this as two different things."""


class Cut(Exception):
    """The message has no end."""


Fields = list[tuple[bytes, bytes]]


@dataclass
class Message:
    line: bytes
    fields: Fields
    body: bytes = b""
    # length, chunked, close or none
    framing: str = "none"
    trailers: Fields = field(default_factory=list)

    def all(self, name: bytes) -> list[bytes]:
        return [value for key, value in self.fields if key.lower() == name]

    @property
    def status(self) -> int:
        return int(self.line.split(b" ")[1])


TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
HOST = re.compile(rb"([A-Za-z0-9._~-]+|\[[0-9a-fA-F:.]+\])(:[0-9]{0,5})?")


def requests(stream: bytes) -> tuple[list[Message], bytes]:
    """All complete requests of a connection, and the rest that is none."""
    found = []
    while stream:
        try:
            message, used = request(stream)
        except Cut:
            break
        found.append(message)
        stream = stream[used:]
    return found, stream


def request(stream: bytes) -> tuple[Message, int]:
    message, at = head(stream)
    line = re.fullmatch(TOKEN + rb" ([^\x00-\x20\x7f]+) HTTP/1\.([01])", message.line)
    if not line:
        raise Doubtful(f"request line {message.line[:60]!r}")
    hosts = message.all(b"host")
    if len(hosts) > 1 or (not hosts and line[2] == b"1"):
        raise Doubtful(f"{len(hosts)} Host fields")
    host = HOST.fullmatch(hosts[0]) if hosts else None
    if hosts and not (host and int((host[2] or b":")[1:] or b"0") < 65536):
        raise Doubtful(f"Host {hosts[0]!r}")
    target = line[1]
    absolute = re.fullmatch(rb"https?://([^/?#]*)([/?].*)?", target, re.I | re.S)
    if absolute and (not hosts or absolute[1].lower() != hosts[0].lower()):
        raise Doubtful("target and Host disagree")
    if not absolute and not target.startswith(b"/") and not (target == b"*" and message.line.startswith(b"OPTIONS ")):
        raise Doubtful(f"target {target[:60]!r}")
    if b"#" in target:
        raise Doubtful("a fragment")
    if line[2] == b"0" and message.all(b"transfer-encoding"):
        raise Doubtful("Transfer-Encoding in HTTP/1.0")
    return body(message, stream, at, framing(message))


def response(stream: bytes, method: bytes, ended: bool) -> tuple[list[Message], Message, bytes]:
    """The interim answers, the answer, and what came behind it."""
    interim = []
    while True:
        message, at = head(stream)
        if not re.fullmatch(rb"HTTP/1\.[01] [1-9][0-9][0-9] [\t\x20-\x7e\x80-\xff]*", message.line):
            raise Doubtful(f"status line {message.line[:60]!r}")
        if message.status >= 200 or message.status == 101:
            break
        interim.append(message)
        stream = stream[at:]
    kind = framing(message)
    if kind == "chunked" and message.line.startswith(b"HTTP/1.0"):
        raise Doubtful("Transfer-Encoding in HTTP/1.0")
    if message.status == 101 or method == b"HEAD" or message.status in (204, 304):
        message.framing = kind
        return interim, message, stream[at:]
    if kind == "none":
        if not ended:
            raise Cut
        message.body, message.framing = stream[at:], "close"
        return interim, message, b""
    message, used = body(message, stream, at, kind)
    return interim, message, stream[used:]


def head(stream: bytes) -> tuple[Message, int]:
    end = stream.find(b"\r\n\r\n")
    if end < 0:
        if re.search(rb"(?<!\r)\n", stream):
            raise Doubtful("a bare line feed")
        raise Cut
    lines = stream[:end].split(b"\r\n")
    return Message(lines[0], [one_field(line) for line in lines[1:]]), end + 4


def one_field(line: bytes) -> tuple[bytes, bytes]:
    found = re.fullmatch(rb"(" + TOKEN + rb"):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*?)[ \t]*", line)
    if not found:
        raise Doubtful(f"field {line[:60]!r}")
    if found[1].lower() in (b"transfer_encoding", b"content_length"):
        raise Doubtful(f"look-alike {line[:60]!r}")
    return found[1], found[2]


def framing(message: Message) -> str:
    lengths, codings = message.all(b"content-length"), message.all(b"transfer-encoding")
    if len(lengths) > 1 or any(not re.fullmatch(rb"0|[1-9][0-9]{0,17}", length) for length in lengths):
        raise Doubtful(f"Content-Length {lengths}")
    if len(codings) > 1 or any(coding.lower() != b"chunked" for coding in codings):
        raise Doubtful(f"Transfer-Encoding {codings}")
    if lengths and codings:
        raise Doubtful("Content-Length and Transfer-Encoding")
    return "length" if lengths else "chunked" if codings else "none"


def body(message: Message, stream: bytes, at: int, kind: str) -> tuple[Message, int]:
    message.framing = kind
    if kind == "length":
        end = at + int(message.all(b"content-length")[0])
        if len(stream) < end:
            raise Cut
        message.body = stream[at:end]
        return message, end
    if kind == "none":
        return message, at
    while True:
        size_end = stream.find(b"\n", at)
        if size_end < 0:
            raise Cut
        size = re.fullmatch(rb"([0-9a-fA-F]{1,16})(?:[ \t]*;[\t\x20-\x7e\x80-\xff]*)?\r\n", stream[at : size_end + 1])
        if not size:
            raise Doubtful(f"chunk size {stream[at : size_end + 1][:40]!r}")
        at, left = size_end + 1, int(size[1], 16)
        if left == 0:
            break
        if len(stream) < at + left + 2:
            raise Cut
        if stream[at + left : at + left + 2] != b"\r\n":
            raise Doubtful("a chunk without its end")
        message.body += stream[at : at + left]
        at += left + 2
    while not stream.startswith(b"\r\n", at):
        line_end = stream.find(b"\r\n", at)
        if line_end < 0:
            raise Cut
        message.trailers.append(one_field(stream[at:line_end]))
        at = line_end + 2
    return message, at + 2


def end_to_end(message: Message, sent: Message) -> Fields:
    """The fields that are not for one hop only, by what the message as sent names as such. Names keep their case; the order among
    equal names stays, and the order among different ones is nobody's."""
    hop = {b"connection", b"keep-alive", b"proxy-connection", b"upgrade", b"transfer-encoding"}
    kept = {b"content-length", b"host", b"x-forwarded-for", b"te", b"trailer", b"expect", b"authorization", b"cookie"}
    for line in sent.all(b"connection"):
        hop |= {name.strip().lower() for name in line.split(b",")} - kept
    found = [(name, value) for name, value in message.fields if name.lower() not in hop]
    return sorted(found, key=lambda one: one[0].lower())


def difference(sent: Message, got: Message, down: bool) -> str | None:
    """What a proxy has changed, in a few words, or None."""
    if sent.line != got.line and not (down and sent.line.replace(b"HTTP/1.0", b"HTTP/1.1") == got.line):
        return f"first line: {got.line[:70].decode('latin-1')}"
    if sent.body != got.body:
        return f"body: {len(got.body)} bytes of {len(sent.body)}"
    if sent.framing != got.framing and sent.framing != "close":
        return f"framing: {sent.framing} became {got.framing}"
    before, after = end_to_end(sent, sent), end_to_end(got, sent)
    if sent.framing == "close":
        after = [one for one in after if one[0].lower() != b"content-length"]
    if before != after:
        lost = [one for one in before if one not in after]
        new = [one for one in after if one not in before]
        return " ".join(filter(None, (shown("lost", lost), shown("new", new)))) or "order of equal names"
    lower = lambda fields: sorted((name.lower(), value) for name, value in fields)  # noqa: E731
    # A trailer's name has no case to keep: nobody reads it by a line's look.
    if lower(sent.trailers) != lower(got.trailers):
        return "trailers"
    return None


def shown(what: str, fields: Fields) -> str:
    if not fields:
        return ""
    first = b": ".join(fields[0])[:50].decode("latin-1")
    return f"{what} {first!r}" + (f" and {len(fields) - 1} more" if len(fields) > 1 else "")
