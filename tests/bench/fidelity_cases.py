"""The cases: what is sent, and what a proxy may make of it.

well: has to arrive the same. odd: legal or tolerated, and read differently by different people; nearer is better. hostile: is refused,
or what arrives has one reading only and is not what the sender was after.
"""

from dataclasses import dataclass

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
HOST = b"Host: example.org\r\n"
# A trusted proxy's word, so that nobody has to add it.
FOR = b"X-Forwarded-For: 203.0.113.9\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
# What a smuggler wants the homeserver to see as a request of its own.
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: example.org\r\nX-Forwarded-For: 127.0.0.1\r\n\r\n"


@dataclass(frozen=True)
class Case:
    group: str
    # up: the request is compared, down: the answer, both.
    way: str
    name: str
    request: bytes
    answer: bytes = OK
    # The homeserver closes behind its answer.
    closes: bool = False
    # plain; half: the client shuts its sending side; cut: it is gone; early: the head is answered; continue; upgrade
    script: str = "plain"
    # What it is compared with, when that is not what was sent.
    meant: bytes = b""
    # Pieces of the request and of the answer that leave one by one.
    split: int = 0
    # Regular expressions over all that the other side receives, if it receives anything.
    must_not: bytes = b""
    must: bytes = b""
    # Behind the answer, on the same connection.
    then: bytes = b""

    def pieces(self) -> list[bytes]:
        return cut(self.answer, self.split if self.way == "down" else 0)


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)] if size else [data]


def request(line: bytes, fields: bytes = b"", body: bytes = b"", host: bytes = HOST) -> bytes:
    return line + b"\r\n" + host + FOR + fields + b"\r\n" + body


def get(fields: bytes = b"", target: bytes = b"/path") -> bytes:
    return request(b"GET " + target + b" HTTP/1.1", fields)


def post(fields: bytes, body: bytes = b"", method: bytes = b"POST") -> bytes:
    return request(method + b" /path HTTP/1.1", fields, body)


def sized(body: bytes, method: bytes = b"POST", fields: bytes = b"") -> bytes:
    return post(fields + b"Content-Length: %d\r\n" % len(body), body, method)


def answer(fields: bytes = b"", body: bytes = b"{}", status: bytes = b"200 OK") -> bytes:
    return b"HTTP/1.1 " + status + b"\r\n" + fields + b"Content-Length: %d\r\n\r\n" % len(body) + body


def up(group: str, name: str, sent: bytes, **more) -> Case:
    return Case(group, "up", name, sent, **more)


def down(group: str, name: str, came: bytes, method: bytes = b"GET", **more) -> Case:
    body = b"Content-Length: 0\r\n" if method in (b"POST", b"PUT") else b""
    return Case(group, "down", name, request(method + b" /path HTTP/1.1", body), came, **more)


def repeated(name: bytes, count: int) -> bytes:
    return b"".join(b"%s-%d: %d\r\n" % (name, n, n) for n in range(count))


def well_targets() -> list[Case]:
    targets = """/ /path //double//slash /a/./b/../c /%2f%2F%2e%65 /a;p=1;q /a? /a??b=c? /a?b=c&b=d&=&& /a?x=%ZZ&y=+%20 /a//
        /_matrix/client/r0/rooms/!abc:example.org/send/m.room.message/m1.2 /_matrix/client/r0/directory/room/%23a%3Aexample.org
        /_matrix/media/r0/download/example.org/aB-_c?allow_remote=false /_matrix/identity/api/v1 /:80/@x/~y/$z/'()*,
        /_matrix/client/r0/sync?since=s1_2_3&timeout=30000&filter=%7B%22a%22%3A1%7D /_matrix/client/versions/ /.. /%00 /%0d%0aX:1
        /_matrix/client/r0/user/%40a%3Ab/filter /_matrix/key/v2/server/ed25519:auto /_synapse/admin/v1/users/@a:b /.well-known/matrix/client
        /_matrix/federation/v1/send/1?x=http://a/b /%E2%82%AC /a%20b /a+b /a=b&c /index.html /a?x=/../y /%7Euser /-_.~ /a?'single'""".split()
    cases = [up("well", f"target {target}", get(target=target.encode())) for target in targets]
    long = b"/long/" + b"x" * 6000
    cases += [up("well", "target of 6 kB", get(target=long)), up("well", "query of 6 kB", get(target=b"/q?" + long))]
    for method in "GET HEAD OPTIONS DELETE PUT POST PATCH PROPFIND M-SEARCH REPORT".split():
        fields = b"Content-Length: 0\r\n" if method in ("PUT", "POST", "PATCH") else b""
        cases.append(up("well", f"method {method}", request(method.encode() + b" /path HTTP/1.1", fields)))
    return cases


def well_fields() -> list[Case]:
    fields = {
        "names of every case": b"X-One: 1\r\nx-two: 2\r\nX-tHrEe: 3\r\nETAG: 4\r\n",
        "well-known names of odd case": b"ACCEPT: */*\r\nuser-agent: me\r\nAUTHorization: Bearer x\r\n",
        "equal names": b"X-Same: 1\r\nX-Same: 2\r\nX-Same: 1\r\n",
        "equal names of different case": b"X-Same: 1\r\nx-same: 2\r\nX-SAME: 3\r\n",
        "equal names apart": b"X-A: 1\r\nX-B: 2\r\nX-A: 3\r\nX-B: 4\r\n",
        "two cookies": b"Cookie: a=1\r\nCookie: b=2\r\n",
        "an empty value": b"X-Empty:\r\nX-Next: 1\r\n",
        "Latin-1 in a value": b"X-Latin: \xe9\xfc\r\n",
        "UTF-8 in a value": "X-Utf: äß€\r\n".encode(),
        "a tab in a value": b"X-Tab: a\tb\r\n",
        "blanks inside a value": b"X-Blank: a  b   c\r\n",
        "quotes and commas": b'X-List: "a, b", c;q=0.1, "\\""\r\n',
        "CORS": b"Origin: https://app.example.org\r\nAccess-Control-Request-Method: PUT\r\nAccess-Control-Request-Headers: a, b\r\n",
        "an access token": b"Authorization: Bearer MDAxOGxvY2F0aW9uIGxvY2FsaG9zdAo=\r\n",
        "federation's signature": b'Authorization: X-Matrix origin=a.b,key="ed25519:1",sig="abc/+="\r\n',
        "ranges and conditions": b'Range: bytes=0-1\r\nIf-None-Match: "x", W/"y"\r\nIf-Modified-Since: Mon, 02 Sep 2019 10:00:00 GMT\r\n',
        "content negotiation": b"Accept-Encoding: gzip, deflate, br\r\nAccept-Language: de;q=0.9, en\r\n",
        "tracing": b"traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\ntracestate: a=b\r\n",
        "Forwarded": b"Forwarded: for=192.0.2.1\r\nX-Forwarded-Host: a.b\r\nX-Forwarded-Proto: https\r\nX-Real-IP: 192.0.2.2\r\n",
        "Via and Max-Forwards": b"Via: 1.1 somebody\r\nMax-Forwards: 3\r\n",
        "a name with every sign": b"X!#$%&'*+.^`|~9: 1\r\n",
        "an underscore in a name": b"X_Under_Score: 1\r\n",
        "a dot in a name": b"X.Dot: 1\r\n",
        "90 fields": repeated(b"X-Field", 90),
        "a field of 7 kB": b"X-Large: " + b"x" * 7000 + b"\r\n",
        "four fields of 3 kB": b"".join(b"X-Large-%d: " % n + b"x" * 3000 + b"\r\n" for n in range(4)),
        "Pragma and Cache-Control": b"Pragma: no-cache\r\nCache-Control: no-cache, max-age=0\r\n",
        "TE: trailers": b"TE: trailers\r\nConnection: TE\r\n",
        "Connection: keep-alive": b"Connection: keep-alive\r\n",
        "Connection: close": b"Connection: close\r\n",
    }
    cases = [up("well", f"fields: {name}", get(lines)) for name, lines in fields.items()]
    for host in ("example.org:8448", "a.b-c_d", "[::1]:8008", "192.0.2.1", "EXAMPLE.org"):
        cases.append(up("well", f"Host: {host}", request(b"GET / HTTP/1.1", host=f"Host: {host}\r\n".encode())))
    return cases


def well_bodies() -> list[Case]:
    every = bytes(range(256))
    cases = [
        up("well", "body of 5 bytes", sized(b"hello")),
        up("well", "body of 0 bytes", sized(b"")),
        up("well", "body with every byte", sized(every * 4)),
        up("well", "body that looks like a request", sized(SMUGGLED)),
        up("well", "body of 300 kB", sized(every * 1200)),
        up("well", "body of 5 MB", sized(every * 20000)),
        up("well", "JSON by PUT", sized(b'{"msgtype":"m.text","body":"\xc3\xa4"}', b"PUT", b"Content-Type: application/json\r\n")),
        up("well", "gzip", sized(b"\x1f\x8b\x08\0", b"PUT", b"Content-Encoding: gzip\r\n")),
        up("well", "DELETE with a body", sized(b"{}", b"DELETE")),
        up("well", "OPTIONS with a body", sized(b"x", b"OPTIONS")),
        up("well", "multipart", sized(b"--b\r\n\r\nx\r\n--b--\r\n", b"POST", b"Content-Type: multipart/form-data; boundary=b\r\n")),
        up("well", "a name in lower case: content-length", post(b"content-length: 2\r\n", b"{}")),
        up("well", "one chunk", post(CHUNKED, b"5\r\nhello\r\n0\r\n\r\n")),
        up("well", "many chunks", post(CHUNKED, b"".join(b"%x\r\n%s\r\n" % (n, every[:n]) for n in range(1, 60)) + b"0\r\n\r\n")),
        up("well", "no chunk at all", post(CHUNKED, b"0\r\n\r\n")),
        up("well", "a chunk of 200 kB", post(CHUNKED, b"%x\r\n" % (256 * 800) + every * 800 + b"\r\n0\r\n\r\n")),
        up("well", "chunked PUT", post(CHUNKED, b"2\r\n{}\r\n0\r\n\r\n", b"PUT")),
        up("well", "sizes in capitals, with leading zeros", post(CHUNKED, b"000A\r\n0123456789\r\n0\r\n\r\n")),
        up("well", "announced trailers", post(b"Trailer: X-Sum\r\n" + CHUNKED, b"2\r\nhi\r\n0\r\nX-Sum: 1\r\n\r\n")),
        up("well", "two trailers", post(b"Trailer: X-A, X-B\r\n" + CHUNKED, b"2\r\nhi\r\n0\r\nX-A: 1\r\nX-B: 2\r\n\r\n")),
        up("well", "a request byte by byte", sized(b"hello"), split=1),
        up("well", "chunks byte by byte", post(CHUNKED, b"5\r\nhello\r\n0\r\n\r\n"), split=1),
        up("well", "two requests at once", get() + get(target=b"/second")),
        up("well", "a body and the next request at once", sized(b"hello") + get(target=b"/second")),
        up("well", "chunks and the next request at once", post(CHUNKED, b"2\r\nhi\r\n0\r\n\r\n") + get(target=b"/second")),
        up("well", "five requests at once", b"".join(get(target=b"/%d" % n) for n in range(5))),
        up("well", "100-continue that the homeserver gives", post(b"Expect: 100-continue\r\nContent-Length: 5\r\n", b"hello"), script="continue"),
    ]
    return cases


def well_answers() -> list[Case]:
    fields = {
        "as Synapse writes them": b"Server: Synapse/1.3.1\r\nDate: Mon, 02 Sep 2019 10:00:00 GMT\r\nContent-Type: application/json\r\n",
        "none": b"",
        "names of every case": b"X-lOwEr: 1\r\nx-UPPER: 2\r\nETag: x\r\n",
        "three Set-Cookie": b"Set-Cookie: a=1; Path=/\r\nSet-Cookie: b=2\r\nSet-Cookie: c=3\r\n",
        "equal names": b"X-Same: 1\r\nX-Same: 2\r\nX-Same: 1\r\n",
        "Latin-1 in a value": b"X-Latin: \xe9\r\n",
        "an empty value": b"X-Empty: \r\n",
        "caching": b'ETag: "x"\r\nVary: Authorization, Accept\r\nLast-Modified: Mon, 02 Sep 2019 10:00:00 GMT\r\nExpires: 0\r\n',
        "CORS": b"Access-Control-Allow-Origin: *\r\nAccess-Control-Allow-Headers: X-Requested-With, Content-Type\r\n",
        "media": b"Content-Disposition: inline; filename*=utf-8''%C3%A4.png\r\nContent-Security-Policy: sandbox; default-src 'none';\r\n",
        "authentication": b'WWW-Authenticate: Bearer realm="x"\r\nProxy-Authenticate: Basic\r\n',
        "a redirect": b"Location: http://127.0.0.1:8008/x\r\nRefresh: 5; url=/y\r\n",
        "90 fields": repeated(b"X-Field", 90),
        "a field of 3 kB": b"X-Large: " + b"x" * 3000 + b"\r\n",
        "an underscore in a name": b"X_Under_Score: 1\r\n",
        "X-Accel": b"X-Accel-Buffering: no\r\n",
        "Link, Alt-Svc, Server-Timing": b"Link: </x>; rel=preload\r\nAlt-Svc: clear\r\nServer-Timing: a;dur=1\r\n",
        "Via": b"Via: 1.1 other\r\nAge: 3\r\n",
    }
    cases = [down("well", f"answer's fields: {name}", answer(lines)) for name, lines in fields.items()]
    for status in (
        "200 Fine By Me", "201 Created", "202 Accepted", "301 Moved Permanently", "302 Found", "307 Temporary Redirect", "400 Bad Request",
        "401 Unauthorized", "403 Forbidden", "404 Not Found", "405 Method Not Allowed", "413 Request Entity Too Large", "418 I'm a teapot",
        "429 Too Many Requests", "500 Internal Server Error", "502 Bad Gateway", "503 Service Unavailable", "504 Gateway Time-out",
        "599 Whatever", "200 ",
    ):  # fmt: skip
        cases.append(down("well", f"status {status}", answer(b"Retry-After: 1\r\n", status=status.encode()), b"POST"))
    every = bytes(range(256))
    head = b"HTTP/1.1 200 OK\r\n"
    cases += [
        down("well", "answer of 0 bytes", answer(body=b"")),
        down("well", "answer with every byte", answer(body=every)),
        down("well", "answer of 500 kB", answer(body=every * 2000)),
        down("well", "answer of 5 MB", answer(body=every * 20000)),
        down("well", "answer in one chunk", head + CHUNKED + b"\r\n5\r\nhello\r\n0\r\n\r\n"),
        down("well", "answer in no chunk", head + CHUNKED + b"\r\n0\r\n\r\n"),
        down("well", "answer in 200 kB of chunks", head + CHUNKED + b"\r\n" + b"".join(b"100\r\n" + every + b"\r\n" for _ in range(800)) + b"0\r\n\r\n"),
        down("well", "answer byte by byte", answer(b"X-A: 1\r\n"), split=1),
        down("well", "chunks of the answer byte by byte", head + CHUNKED + b"\r\n2\r\n{}\r\n0\r\n\r\n", split=1),
        down("well", "HEAD with a length", answer(b'ETag: "x"\r\n').replace(b"\r\n\r\n{}", b"\r\n\r\n"), b"HEAD"),
        down("well", "HEAD without a length", head + b"X-A: 1\r\n\r\n", b"HEAD"),
        down("well", "HEAD with 404", answer(body=b"", status=b"404 Not Found"), b"HEAD"),
        down("well", "204", b"HTTP/1.1 204 No Content\r\nX-A: 1\r\n\r\n"),
        down("well", "304 with an ETag", b'HTTP/1.1 304 Not Modified\r\nETag: "x"\r\n\r\n'),
        down("well", "304 with a length", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 12345\r\n\r\n"),
        down("well", "206", answer(b"Content-Range: bytes 0-1/9\r\n", status=b"206 Partial Content")),
        down("well", "OPTIONS", answer(b"Allow: GET, PUT\r\n", body=b""), b"OPTIONS"),
        down("well", "PUT", answer(), b"PUT"),
        down("well", "DELETE", answer(), b"DELETE"),
        down("well", "Connection: close behind a length", answer(b"Connection: close\r\n"), closes=True),
        Case("well", "down", "an answer before the body has come", post(b"Content-Length: 5\r\n"), answer(status=b"401 Unauthorized"), script="early"),
        Case("well", "down", "trailers of an answer to TE: trailers", get(b"TE: trailers\r\nConnection: TE\r\n"),
             head + b"Trailer: X-Sum\r\n" + CHUNKED + b"\r\n2\r\nhi\r\n0\r\nX-Sum: 1\r\n\r\n"),
        Case("well", "down", "100-continue refused with 401", post(b"Expect: 100-continue\r\nContent-Length: 5\r\n"),
             answer(status=b"401 Unauthorized"), script="early"),
        Case("well", "both", "a WebSocket, the server speaking first, half-closed", get(
            b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"),
             b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n[hi]",
             script="upgrade"),
        Case("well", "both", "another protocol", get(b"Connection: upgrade\r\nUpgrade: other/1\r\n"),
             b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: other/1\r\n\r\n[hi]", script="upgrade"),
    ]  # fmt: skip
    return cases


WELL = well_targets() + well_fields() + well_bodies() + well_answers()
