"""Odd cases and hostile ones."""

from fidelity_cases import CHUNKED, HOST, OK, SMUGGLED, Case, answer, down, get, post, repeated, request, sized, up

HEAD = b"HTTP/1.1 200 OK\r\n"


def odd_requests() -> list[Case]:
    plain = get()
    cases = [
        up("odd", "a fragment", get(target=b"/a#fragment"), meant=get(target=b"/a")),
        up("odd", "absolute form", get(target=b"http://example.org/path?q"), meant=get(target=b"/path?q")),
        up("odd", "absolute form with https", get(target=b"https://example.org/path"), meant=get(target=b"/path")),
        up("odd", "absolute form without a path", get(target=b"http://EXAMPLE.org"), meant=get(target=b"/")),
        up("odd", "OPTIONS *", request(b"OPTIONS * HTTP/1.1")),
        up("odd", "HTTP/1.0", request(b"GET /path HTTP/1.0")),
        up("odd", "HTTP/1.0 without Host", request(b"GET /path HTTP/1.0", host=b"")),
        up("odd", "blanks around a value", get(b"X-Blank:   inner  space  \t\r\n")),
        up("odd", "no blank behind the colon", get(b"X-Tight:tight\r\n")),
        up("odd", "a line that ends in LF only", get(b"X-Lf: 1\nX-Next: 2\r\n"), meant=get(b"X-Lf: 1\r\nX-Next: 2\r\n")),
        up("odd", "all lines end in LF only", plain.replace(b"\r\n", b"\n"), meant=plain),
        up("odd", "an empty line before the request", b"\r\n" + plain, meant=plain),
        up("odd", "two equal Content-Lengths", post(b"Content-Length: 2\r\nContent-Length: 2\r\n", b"hi"), meant=sized(b"hi")),
        up("odd", "chunk extensions", post(CHUNKED, b'5;ext=1;b="c"\r\nhello\r\n0;last\r\n\r\n')),
        up("odd", "trailers that were not announced", post(CHUNKED, b"2\r\nhi\r\n0\r\nX-Sum: 1\r\n\r\n")),
        up("odd", "GET with a body", sized(b"hello", b"GET")),
        up("odd", "GET with chunks", post(CHUNKED, b"2\r\n{}\r\n0\r\n\r\n", b"GET")),
        up("odd", "POST without a length", post(b"")),
        up("odd", "method get", request(b"get /path HTTP/1.1")),
        up("odd", "method X_Y", request(b"X_Y /path HTTP/1.1")),
        up("odd", "method TRACE", request(b"TRACE /path HTTP/1.1")),
        up("odd", "an unknown expectation", sized(b"hi", b"POST", b"Expect: something-else\r\n")),
        up("odd", "100-continue for no body", sized(b"", b"POST", b"Expect: 100-continue\r\n")),
        up("odd", "Connection names a field", get(b"Connection: X-Gone, keep-alive\r\nX-Gone: 1\r\nX-Stays: 1\r\n")),
        up("odd", "two Connection lines", get(b"Connection: x-one\r\nConnection: X-TWO\r\nX-One: 1\r\nX-Two: 2\r\n")),
        up("odd", "Keep-Alive and Proxy-Connection", get(b"Keep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\n")),
        up("odd", "Proxy-Authorization", get(b"Proxy-Authorization: Basic eDp5\r\n")),
        up("odd", "150 fields", get(repeated(b"X-Field", 150))),
        up("odd", "190 fields", get(repeated(b"X-Field", 190))),
        up("odd", "a field of 60 kB", get(b"X-Large: " + b"x" * 60_000 + b"\r\n")),
        up("odd", "a target of 60 kB", get(target=b"/" + b"x" * 60_000)),
        up("odd", "a client that sends no more", plain, script="half"),
        up("odd", "a client that sends no more behind a body", sized(b"hello"), script="half"),
    ]
    for target in ("/ümlaut", '/{"json":1}', "/a|b^c", "/a[0]\\b", "/less<than>", "/back`tick", '/quote"d'):
        cases.append(up("odd", f"target {target}", get(target=target.encode())))
    return cases


def odd_answers() -> list[Case]:
    plain = answer(b"X-A: 1\r\n")
    return [
        down("odd", "an answer that ends with the connection", HEAD + b"X-A: 1\r\n\r\nhello", closes=True),
        down("odd", "HTTP/1.0 that ends with the connection", b"HTTP/1.0 200 OK\r\n\r\nhello", closes=True),
        down("odd", "HTTP/1.0 with a length", plain.replace(b"/1.1", b"/1.0"), closes=True),
        down("odd", "a status without a reason", answer(status=b"200"), meant=answer(status=b"200 ")),
        down("odd", "100 that nobody waits for", b"HTTP/1.1 100 Continue\r\n\r\n" + plain),
        down("odd", "102", b"HTTP/1.1 102 Processing\r\n\r\n" + plain),
        down("odd", "103 with links", b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + plain),
        down("odd", "an answer whose lines end in LF only", plain.replace(b"\r\n", b"\n"), meant=plain),
        down("odd", "204 with a length", b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n"),
        down("odd", "205", answer(body=b"", status=b"205 Reset Content")),
        down("odd", "status 799", answer(status=b"799 Odd")),
        down("odd", "an answer with chunk extensions", HEAD + CHUNKED + b"\r\n0005;x=y\r\nhello\r\n00\r\n\r\n"),
        down("odd", "trailers of an answer that nobody asked for", HEAD + CHUNKED + b"\r\n2\r\n{}\r\n0\r\nX-Sum: 1\r\n\r\n"),
        down("odd", "HEAD with chunked", HEAD + CHUNKED + b"X-A: 1\r\n\r\n", b"HEAD"),
        down("odd", "Keep-Alive in an answer", answer(b"Keep-Alive: timeout=5\r\nConnection: keep-alive\r\n")),
        down("odd", "Connection names a field of an answer", answer(b"Connection: x-hop\r\nX-Hop: 1\r\nX-Stays: 1\r\n")),
        down("odd", "Upgrade in an answer", answer(b"Upgrade: h2c\r\nConnection: Upgrade\r\n")),
        down("odd", "blanks around an answer's value", answer(b"X-Trail:  inner  \t\r\n")),
        down("odd", "150 fields in an answer", answer(repeated(b"X-Field", 150))),
        down("odd", "a field of 60 kB in an answer", answer(b"X-Large: " + b"x" * 60_000 + b"\r\n")),
    ]


def hostile_framing() -> list[Case]:
    """Where a body ends: two readings let a request hide in it."""
    chunks = b"0\r\n\r\n" + SMUGGLED
    lengths = [b"+2", b"-2", b"0x2", b"", b"99999999999999999999", b"18446744073709551618", b"02", b"2, 2", b"2, 3", b"2 3", b"2;", b"2.0", b"2\x0b"]
    cases = [up("hostile", f"Content-Length: {length.decode()!r}", post(b"Content-Length: " + length + b"\r\n", b"hi" + SMUGGLED)) for length in lengths]
    length = b"Content-Length: %d\r\n" % len(chunks)
    codings = [
        b"Chunked", b"xchunked", b"", b"chunkedx", b"gzip, chunked", b"chunked, chunked", b",chunked", b"chunked,", b"chunked, identity", b"identity, chunked",
        b"identity", b"\x0bchunked", b"chunked\x00", b'"chunked"', b"chunked;q=1",
    ]  # fmt: skip
    for coding in codings:
        line = b"Transfer-Encoding: " + coding + b"\r\n"
        cases.append(up("hostile", f"Transfer-Encoding: {coding.decode()!r}", post(line, b"2\r\nhi\r\n0\r\n\r\n")))
        cases.append(up("hostile", f"Transfer-Encoding: {coding.decode()!r} beside a length", post(line + length, chunks)))
    spelled = {
        "a blank before the colon": b"Transfer-Encoding : chunked\r\n",
        "a tab before the colon": b"Transfer-Encoding\t: chunked\r\n",
        "a blank before the name": b"X: y\r\n Transfer-Encoding: chunked\r\n",
        "folded": b"Transfer-Encoding:\r\n chunked\r\n",
        "an underscore": b"Transfer_Encoding: chunked\r\n",
        "a NUL in the name": b"Transfer-Encoding\x00: chunked\r\n",
        "behind a bare CR": b"X: y\rTransfer-Encoding: chunked\r\n",
        "behind a bare LF": b"X: y\nTransfer-Encoding: chunked\r\n",
        "ended by a bare LF": b"Transfer-Encoding: chunked\n",
        "a NUL before the value": b"Transfer-Encoding: \0chunked\r\n",
        "a vertical tab before the colon": b"Transfer-Encoding\x0b: chunked\r\n",
        "the head ends in LF LF": b"Transfer-Encoding: chunked\n\n",
        "twice": CHUNKED + CHUNKED,
        "and once unknown": CHUNKED + b"Transfer-Encoding: cow\r\n",
        "unknown first": b"Transfer-Encoding: cow\r\n" + CHUNKED,
        "plain": CHUNKED,
    }
    cases += [up("hostile", f"chunked beside a length: {name}", post(length + lines, chunks)) for name, lines in spelled.items()]
    cases += [
        up("hostile", "two lengths", post(b"Content-Length: 2\r\nContent-Length: 3\r\n", b"hi!")),
        up("hostile", "two lengths, one with an underscore", post(b"Content-Length: 2\r\nContent_Length: 40\r\n", b"hi" + SMUGGLED)),
        up("hostile", "chunked in HTTP/1.0", request(b"POST /path HTTP/1.0", CHUNKED, chunks)),
        up("hostile", "chunked in HTTP/1.0 beside a length", request(b"POST /path HTTP/1.0", CHUNKED + length, chunks)),
        up("hostile", "chunked in HTTP/1.0 that is to be kept", request(b"POST /path HTTP/1.0", b"Connection: keep-alive\r\n" + CHUNKED, chunks)),
        up("hostile", "a length and none for the next in one piece", post(b"Content-Length: 0\r\n") + post(CHUNKED + length, chunks)),
        up("hostile", "two lengths apart", post(b"Content-Length: 2\r\nX-Between: 1\r\nContent-Length: %d\r\n" % (2 + len(SMUGGLED)), b"hi" + SMUGGLED)),
        up("hostile", "two lengths, one behind a blank", post(b"Content-Length: 2\r\n Content-Length: 40\r\n", b"hi" + SMUGGLED)),
        up("hostile", "absolute form with another Host", request(b"POST http://evil.example/path HTTP/1.1", b"Content-Length: 2\r\n", b"hi")),
        up("hostile", "absolute form with another port", request(b"POST http://example.org:81/path HTTP/1.1", b"Content-Length: 2\r\n", b"hi")),
        up("hostile", "a body cut by length", post(b"Content-Length: 9\r\n", b"hello"), script="cut"),
        up("hostile", "a body cut between chunks", post(CHUNKED, b"5\r\nhello\r\n"), script="cut"),
        up("hostile", "a body cut inside a chunk", post(CHUNKED, b"9\r\nhello"), script="cut"),
    ]
    for size in (b"-1", b"+2", b"0x2", b"FFFFFFFFFFFFFFFF2", b"10000000000000002", b"", b"2 2", b"2;a\nb", b"2\x00", b"g",
                 b"2;a\rb", b"2;a\x00b", b"2 ;a", b"2\t", b" 2", b"2;" + b"x" * 200_000, b"2;a=\"\nb\"", b"0;\n2"):
        cases.append(up("hostile", f"chunk size {size.decode()!r}", post(CHUNKED, size + b"\r\nhi\r\n0\r\n\r\n" + SMUGGLED)))
    cases += [
        up("hostile", "a chunk longer than its size", post(CHUNKED, b"2\r\nhi!!\r\n0\r\n\r\n")),
        up("hostile", "a chunk size behind LF only", post(CHUNKED, b"2\nhi\r\n0\r\n\r\n")),
        up("hostile", "a chunk that ends in LF only", post(CHUNKED, b"2\r\nhi\n0\r\n\r\n")),
        up("hostile", "trailers with a length and a token", post(CHUNKED, b"2\r\nhi\r\n0\r\nContent-Length: 9\r\nAuthorization: x\r\nHost: evil\r\n\r\n"),
           must_not=rb"\r\n0\r\n(?s:.*)(?i:content-length|authorization|host)"),
    ]  # fmt: skip
    return cases


def hostile_heads() -> list[Case]:
    lines = {
        "two blanks": b"GET  /path HTTP/1.1", "a blank in the target": b"GET /sp ace HTTP/1.1", "HTTP/1.2": b"GET /path HTTP/1.2", "HTTP/3.0": b"GET /path HTTP/3.0",
        "http/1.1": b"GET /path http/1.1", "no version": b"GET /path", "a relative target": b"GET relative/path HTTP/1.1", "CONNECT": b"CONNECT example.org:80 HTTP/1.1",
        "an authority as target": b"GET example.org:80 HTTP/1.1", "another host in the target": b"GET http://evil.example/ HTTP/1.1",
        "a user in the target": b"GET http://user@example.org/ HTTP/1.1", "ftp": b"GET ftp://example.org/ HTTP/1.1", "a NUL in the target": b"GET /a\0b HTTP/1.1",
        "a CR in the target": b"GET /a\rb HTTP/1.1", "a tab behind the method": b"GET\t/path HTTP/1.1", "a method with brackets": b"G(T /path HTTP/1.1",
        "GET *": b"GET * HTTP/1.1",
    }  # fmt: skip
    cases = [up("hostile", f"request line: {name}", request(line)) for name, line in lines.items()]
    hosts = [b"", b"Host:\r\n", b"Host: a b\r\n", b"Host: a/b\r\n", b"Host: a,b\r\n", b"Host: user@a\r\n", b"Host: a:99999\r\n", b"Host: a:b\r\n", b"Host: [::g]\r\n",
             b"Host: a\r\nHost: b\r\n", HOST + HOST, b"Host: a?b\r\n", b"Host: a\\b\r\n", b"Host : example.org\r\n"]  # fmt: skip
    cases += [up("hostile", f"Host: {host.decode()!r}", request(b"GET / HTTP/1.1", host=host)) for host in hosts]
    fields = {
        "a NUL": b"X-Nul: a\0b\r\n", "a bare CR": b"X-Cr: a\rb\r\n", "folded": b"X-Fold: 1\r\n 2\r\n", "the first is folded": b" X-Fold: 1\r\n", "no colon": b"No colon\r\n",
        "no name": b": value\r\n", "a blank before the colon": b"X-Space : 1\r\n", "Latin-1 in a name": b"X-\xe9: 1\r\n", "an escape": b"X-Esc: \x1b[2J\r\n",
        "DEL": b"X-Del: \x7f\r\n", "300 fields": repeated(b"X-Field", 300), "a field of 200 kB": b"X-Large: " + b"x" * 200_000 + b"\r\n",
    }  # fmt: skip
    cases += [up("hostile", f"fields: {name}", get(lines)) for name, lines in fields.items()]
    kept = {"X-Forwarded-For": rb"203\.0\.113\.9", "Host": rb"\nHost: example\.org\r", "Authorization": rb"\nAuthorization: x\r", "Cookie": rb"\nCookie: y\r"}
    for name, must in kept.items():
        sent = get(f"Connection: close, {name}\r\nAuthorization: x\r\nCookie: y\r\n".encode())
        cases.append(up("hostile", f"Connection: {name}", sent, must=b"(?i)" + must))
    cases += [
        up("hostile", "Connection: Content-Length", post(b"Connection: Content-Length\r\nContent-Length: %d\r\n" % len(SMUGGLED), SMUGGLED)),
        up("hostile", "an upgrade to h2c", get(b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMA\r\n"), must_not=rb"(?i)\nupgrade: *h2c"),
        up("hostile", "HTTP/2's preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        up("hostile", "a TLS handshake", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 64),
        up("hostile", "PROXY", b"PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\n" + get()),
        up("hostile", "a spoofed Forwarded-For in two lines", get(b"X-Forwarded_For: 127.0.0.1\r\n"), must=rb"203\.0\.113\.9"),
    ]  # fmt: skip
    return cases


def hostile_answers() -> list[Case]:
    two = b"Content-Length: 2\r\n"
    fields = {
        "a length and chunked": two + CHUNKED + b"\r\n0\r\n\r\n", "equal lengths": two + two + b"\r\n{}", "two lengths": two + b"Content-Length: 3\r\n\r\n{}",
        "a list of lengths": b"Content-Length: 2, 2\r\n\r\n{}", "+2": b"Content-Length: +2\r\n\r\n{}", "02": b"Content-Length: 02\r\n\r\n{}", "no digits": b"Content-Length:\r\n\r\n{}",
        "Chunked": b"Transfer-Encoding: Chunked\r\n\r\n0\r\n\r\n", "gzip, chunked": b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "chunked twice": CHUNKED + CHUNKED + b"\r\n0\r\n\r\n", "identity": b"Transfer-Encoding: identity\r\n" + two + b"\r\n{}",
        "Transfer_Encoding": b"Transfer_Encoding: chunked\r\n" + two + b"\r\n{}", "Content_Length": b"Content_Length: 5\r\n" + two + b"\r\n{}",
        "a blank before the colon": b"X-Space : 1\r\n" + two + b"\r\n{}", "folded": b"X-Fold: 1\r\n Set-Cookie: evil\r\n" + two + b"\r\n{}",
        "a NUL": b"X-Nul: a\0b\r\n" + two + b"\r\n{}", "a bare CR": b"X-Cr: a\rSet-Cookie: evil\r\n" + two + b"\r\n{}", "no colon": b"No colon\r\n" + two + b"\r\n{}",
        "300 fields": repeated(b"X-Field", 300) + two + b"\r\n{}", "a field of 200 kB": b"X-Large: " + b"x" * 200_000 + b"\r\n" + two + b"\r\n{}",
    }  # fmt: skip
    cases = [down("hostile", f"answer: {name}", HEAD + rest) for name, rest in fields.items()]
    whole = {
        "HTTP/2.0": b"HTTP/2.0 200 OK\r\n" + two + b"\r\n{}", "ICY": b"ICY 200 OK\r\n\r\n", "status 20": b"HTTP/1.1 20 OK\r\n" + two + b"\r\n{}",
        "status 000": b"HTTP/1.1 000 OK\r\n" + two + b"\r\n{}", "SSH": b"SSH-2.0-OpenSSH_9.6\r\n", "chunked in HTTP/1.0": b"HTTP/1.0 200 OK\r\n" + CHUNKED + b"\r\n0\r\n\r\n",
        "101 that was not asked for": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        "nothing": b"", "a head cut": HEAD + b"Content-Le", "a body cut by length": HEAD + b"Content-Length: 9\r\n\r\nhello",
        "a body cut between chunks": HEAD + CHUNKED + b"\r\n5\r\nhello\r\n", "a body cut inside a chunk": HEAD + CHUNKED + b"\r\n9\r\nhello",
        "a body cut before its last line": HEAD + CHUNKED + b"\r\n5\r\nhello\r\n0\r\n", "a chunk size that is none": HEAD + CHUNKED + b"\r\n5\r\nhello\r\nzz\r\n",
        "a chunk size that overflows": HEAD + CHUNKED + b"\r\n10000000000000002\r\nhi\r\n0\r\n\r\n", "a chunk longer than its size": HEAD + CHUNKED + b"\r\n2\r\nhello\r\n0\r\n\r\n",
        "more than was announced": HEAD + two + b"\r\nhello",
    }  # fmt: skip
    cases += [down("hostile", f"answer: {name}", came, closes=True) for name, came in whole.items()]
    injected = answer(b"X-Injected: 1\r\n", b"injected")
    cases += [
        down("hostile", "answer: a second one behind it", OK + injected, then=get(target=b"/next"), must_not=b"injected"),
        down("hostile", "answer: a second one behind a 204", b"HTTP/1.1 204 No Content\r\n\r\n" + injected, then=get(target=b"/next"), must_not=b"injected"),
        down("hostile", "answer: a body behind a 304", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 8\r\n\r\ninjected", then=get(target=b"/next"), must_not=b"injected"),
        down("hostile", "answer: a body behind a 204 with a length", b"HTTP/1.1 204 No Content\r\nContent-Length: 8\r\n\r\ninjected", then=get(target=b"/next"), must_not=b"injected"),
        down("hostile", "answer: a body behind a chunked 204", b"HTTP/1.1 204 No Content\r\n" + CHUNKED + b"\r\n8\r\ninjected\r\n0\r\n\r\n", then=get(target=b"/next"), must_not=b"injected"),
        down("hostile", "answer: a body behind a chunked 304", b"HTTP/1.1 304 Not Modified\r\n" + CHUNKED + b"\r\n8\r\ninjected\r\n0\r\n\r\n", then=get(target=b"/next"), must_not=b"injected"),
        down("hostile", "answer: a length on 100", b"HTTP/1.1 100 Continue\r\nContent-Length: 8\r\n\r\ninjected" + OK, then=get(target=b"/next"), must_not=b"injected"),
        down("hostile", "answer: a length on 103", b"HTTP/1.1 103 Early Hints\r\nContent-Length: 8\r\n\r\ninjected" + OK, then=get(target=b"/next"), must_not=b"injected"),
        down("hostile", "answer: a body behind HEAD", answer(body=b"injected"), b"HEAD", must_not=b"injected"),
    ]  # fmt: skip
    return cases


ODD = odd_requests() + odd_answers()
HOSTILE = hostile_framing() + hostile_heads() + hostile_answers()
