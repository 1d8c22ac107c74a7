"""The figures and their limits, as they are promised."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    key: str
    title: str
    unit: str
    # At most this: times `against` (best: the better of the two; nginx; haproxy), or without one the value itself.
    limit: float
    against: str = ""
    digits: int = 1


FIGURES = [
    Figure("small_get", "GET answered with 200 B, 64 connections: CPU per request", "µs", 0.93, "best"),
    Figure("small_put", "PUT of 1 kB, 64 connections: CPU per request", "µs", 0.95, "best"),
    Figure("open_loop", "GET, open loop at 2,000/s: CPU per request", "µs", 0.80, "nginx"),
    Figure("added_p50", "the same: p50 above that without a proxy", "µs", 1.00, "nginx"),
    Figure("down_1m", "1 MB down, 4 connections: the core's time per GB (HAProxy: splice)", "s", 1.10, "haproxy", 3),
    Figure("up_1m", "1 MB up, 4 connections: the core's time per GB (HAProxy: splice)", "s", 1.10, "haproxy", 3),
    Figure("down_100m", "100 MB down, 2 connections: the core's time per GB (HAProxy: splice)", "s", 0.85, "haproxy", 3),
    Figure("up_100m", "100 MB up, 2 connections: the core's time per GB (HAProxy: splice)", "s", 0.85, "haproxy", 3),
    Figure("held", "a held long-poll of 10,000 (of 9,900 where 20,000 descriptors are the limit), all answered: resident memory", "kB", 20),
    Figure("crowd", "10 GB up while they are held, all answered after: what resident memory grew by", "MB", 1, digits=2),
    Figure("tls_handshake", "TLS 1.3, a new connection and one GET: CPU", "µs", 0.70, "nginx"),
    Figure("tls_get", "TLS, GET answered with 200 B, 64 connections: CPU per request", "µs", 0.90, "nginx"),
    Figure("unix_get", "GET answered with 200 B, homeserver on a unix socket: CPU per request", "µs", 0.93, "best"),
    Figure("cold_start", "from the start of the process to its first answer", "ms", 20),
    Figure("idle_rss", "idle after its first answer: resident memory", "MB", 6),
    Figure("idle_private", "the same: what is the process's alone", "MB", 6),
    Figure("binary", "the binary, stripped", "MB", 10),
    Figure("intercepted", "requestToken asked again, no mail: the shim's CPU, the homeserver's call over TLS within", "µs", 150),
]
