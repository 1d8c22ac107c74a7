"""Both ends of a proxy on raw sockets: a homeserver that records every byte and plays a script, and a client that reads what comes."""

import re
import socket
import threading
import time

# Longer than any proxy here thinks before it answers; only cases that get no answer at all wait for it.
PATIENCE = 1.5
# Nothing more comes when nothing has come for so long.
QUIET = 0.06
# The shim's own question, at its start and every minute.
LOOK = re.compile(rb"GET /_matrix/client/versions HTTP/1.1\r\n(?:[^\r\n]+\r\n)*\r\n")


class Homeserver:
    """Listens on a port; `play` sets what it answers from now on."""

    def __init__(self, case):
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self.listener.getsockname()[1]
        self.lock = threading.Lock()
        self.lines: list[Line] = []
        self.case = case
        threading.Thread(target=self._accept, daemon=True).start()

    def play(self, case) -> None:
        # One that came late belongs to the case before; one that a proxy opened in reserve meanwhile serves this one.
        gone = self.hang_up()
        with self.lock:
            self.case = case
            self.lines = [line for line in self.lines if line not in gone]
            for line in self.lines:
                line.case = case

    def _accept(self) -> None:
        while True:
            conversation, _ = self.listener.accept()
            conversation.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self.lock:
                line = Line(conversation, self.case)
                self.lines.append(line)
            threading.Thread(target=line.serve, daemon=True).start()

    def streams(self) -> list[tuple[bytes, bool]]:
        """What came on each connection that was used, and whether its end did."""
        with self.lock:
            found = [(LOOK.sub(b"", bytes(line.came)), line.ended) for line in self.lines]
        return [(came, ended) for came, ended in found if came]

    def hang_up(self) -> list["Line"]:
        """Ends all connections and waits until the proxy has seen it, so that the next case begins on a fresh one."""
        with self.lock:
            lines = list(self.lines)
        for line in lines:
            line.hang_up()
        end = time.monotonic() + 0.5
        while time.monotonic() < end and not all(line.ended for line in lines):
            time.sleep(0.002)
        for line in lines:
            line.conversation.close()
        return lines


class Line:
    """One connection of the proxy's. It reads as a lenient server would, and records everything."""

    def __init__(self, conversation: socket.socket, case):
        self.conversation, self.case = conversation, case
        self.came = bytearray()
        self.ended = False

    def hang_up(self) -> None:
        try:
            self.conversation.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def serve(self) -> None:
        try:
            self._serve()
        except OSError:
            pass
        self.ended = True

    def _serve(self) -> None:
        at, asked = 0, False
        while True:
            rest = bytes(self.came[at:])
            head = re.search(rb"\r?\n\r?\n", rest.lstrip(b"\r\n"))
            if head and self.case.script == "early" and not asked:
                asked = True
                self.conversation.sendall(self.case.answer)
            if head and self.case.script == "continue" and not asked:
                asked = True
                self.conversation.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            if head and self.case.script == "upgrade":
                return self._tunnel(at + rest.index(head[0]) + len(head[0]))
            size = lenient_size(rest)
            if size is not None and size > 0:
                at += size
                if self.case.script != "early":
                    for piece in self.case.pieces():
                        self.conversation.sendall(piece)
                        if piece is not self.case.answer:
                            time.sleep(0.01)
                    if self.case.closes:
                        self.hang_up()
                asked = False
                continue
            if not self._read():
                return

    def _read(self) -> bool:
        got = self.conversation.recv(1 << 16)
        self.came += got
        return bool(got)

    def _tunnel(self, at: int) -> None:
        """Speaks first, then says back everything in capitals until the other half is closed, then its last word."""
        self.conversation.sendall(self.case.answer)
        while True:
            new = bytes(self.came[at:])
            at += len(new)
            self.conversation.sendall(new.upper())
            if not self._read():
                self.conversation.sendall(b"[bye]")
                return self.hang_up()


def lenient_size(stream: bytes) -> int | None:
    """How long the first request is for somebody who takes everything: any line end, the last length, any mention of chunked."""
    start = len(stream) - len(stream.lstrip(b"\r\n"))
    head = re.search(rb"\r?\n\r?\n", stream[start:])
    if not head:
        return None
    end = start + head.end()
    fields = stream[start:end].lower()
    if re.search(rb"\ntransfer[-_]encoding[ \t]*:[^\n]*chunked", fields):
        while True:
            size = re.match(rb"([0-9a-fA-F]+)[^\n]*\n", stream[end:])
            if not size:
                return None
            end += size.end() + int(size[1], 16)
            if int(size[1], 16) == 0:
                trailers = re.match(rb"(?:[^\r\n]+\r?\n)*\r?\n", stream[end:])
                return end + trailers.end() if trailers else None
            end += 2
    lengths = re.findall(rb"\ncontent[-_]length[ \t]*:[ \t+]*(\d+)", fields)
    end += int(lengths[-1]) if lengths else 0
    return end if len(stream) >= end else None


class Client:
    """Sends bytes and reads all that comes back."""

    def __init__(self, port: int):
        self.line = socket.create_connection(("127.0.0.1", port), 5)
        self.line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.came = b""
        self.ended = False

    def send(self, data: bytes) -> None:
        try:
            self.line.sendall(data)
        except OSError:
            # Refused and closed amid the request; the answer is there to be read all the same.
            pass

    def finish(self) -> None:
        try:
            self.line.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def read(self, until, patience: float = PATIENCE) -> None:
        """Reads until `until` of all that came is true, the connection ends or patience does."""
        end = time.monotonic() + patience
        while not self.ended and not until(self.came):
            left = end - time.monotonic()
            if left <= 0:
                return
            self._recv(left)

    def drain(self) -> None:
        while not self.ended:
            before = len(self.came)
            self._recv(QUIET)
            if len(self.came) == before:
                return

    def _recv(self, seconds: float) -> None:
        self.line.settimeout(seconds)
        try:
            got = self.line.recv(1 << 18)
        except TimeoutError:
            return
        except OSError:
            got = b""
        self.came += got
        self.ended = not got
