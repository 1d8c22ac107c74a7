"""The Autobahn cases against an echoing server, with and without something between.

    cases.py echo                      serves on a free port of loopback, which it prints, until its input ends
    cases.py compare DIRECT THROUGH    runs every case against both (host:port) and prints what differs
"""

import asyncio
import logging
import os
import sys

from kosoku import FailureError, run_fuzzingclient
from websockets.asyncio.server import serve

# Compression is between the ends; and of the large messages these take whole and in pieces up to 16 MB, the others only measure time.
LEFT_OUT = ["12.*", "13.*", "9.3.*", "9.4.*", "9.5.*", "9.6.*", "9.7.*", "9.8.*"]
MANY = 240


async def echo():
    # A case that breaks the protocol is no news.
    logging.getLogger("websockets").addHandler(logging.NullHandler())
    logging.getLogger("websockets").propagate = False

    async def back(connection):
        async for message in connection:
            await connection.send(message)

    async with serve(back, "127.0.0.1", 0, max_size=None, compression=None, ping_interval=None) as server:
        print(server.sockets[0].getsockname()[1], flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


def verdict(result):
    behavior = str(result.behavior)
    end = {
        "close": str(result.behavior_close),
        "code": result.remote_close_code,
        "reason": result.remote_close_reason,
        "clean": result.was_clean,
    }
    if result.remote_close_code not in (None, 1000):
        # Found at fault, the server sends back as much of what came before as it happens to have got to: not strict, but well.
        return {"behavior": behavior.replace("NON_STRICT", "OK"), **end}
    if "INFORMATIONAL" in behavior:
        # Whether messages behind a close are answered is left open by the protocol, and by this server to its timing.
        return {"behavior": behavior, **end}
    received = {"said": str(result.result), "received": str(result.received), "frames": sorted(result.rx_frame_stats.items())}
    return {"behavior": behavior, **end, **received}


async def results(address):
    try:
        found = await run_fuzzingclient(f"ws://{address}", exclude_cases=LEFT_OUT, concurrency=4)
    except FailureError as failed:
        # That the echoing server is not perfect is its own affair, as long as it is the same through anything.
        found = failed.results
    return {result.case_id: verdict(result) for result in found}


async def compare(direct, through):
    direct, through = await results(direct), await results(through)
    if len(direct) < MANY or direct.keys() != through.keys():
        sys.exit(f"{len(direct)} and {len(through)} cases ran")
    different = {case: (direct[case], through[case]) for case in direct if direct[case] != through[case]}
    for case, (without, with_it) in different.items():
        print(f"{case}: {without}\n  but {with_it}")
    failed = sorted(case for case in direct if "OK" not in direct[case]["behavior"])
    print(f"{len(direct)} cases, {len(different)} different, {len(failed)} not OK without anything between: {failed}")
    sys.stdout.flush()
    # Nothing that the runner's own connections do while they are torn down matters any more.
    os._exit(1 if different else 0)


if sys.argv[1] == "echo":
    asyncio.run(echo())
else:
    asyncio.run(compare(*sys.argv[2:4]))
