"""looks.py logo              a logo as PNG, on standard output
looks.py text FOLDER       holds the texts that `tests/looks` rendered to what a terminal and a telephone can show
looks.py mutt FOLDER       holds what mutt showed to what was to be seen

Exits with 1 when something does not hold, and says what.
"""

import email
import email.policy
import pathlib
import struct
import sys
import unicodedata
import zlib

COLUMNS = 78  # RFC 5322, 2.1.1
faults = []


def columns(text):
    wide = {"W": 2, "F": 2}
    return sum(0 if unicodedata.category(c) in ("Mn", "Me", "Cf") else wide.get(unicodedata.east_asian_width(c), 1) for c in text)


def hold(condition, *said):
    if not condition:
        faults.append(": ".join(map(str, said)))


def logo():
    """480 by 128: a disc and two bars, on nothing."""
    width, height = 480, 128
    rows = bytearray()
    for y in range(height):
        rows.append(0)
        for x in range(width):
            disc = (x - 64) ** 2 + (y - 64) ** 2 < 56**2
            bar = 150 < x < 150 + (300 if y < 64 else 200) and (28 < y < 56 or 72 < y < 100)
            rows += bytes((214, 64, 69, 255) if disc else (90, 110, 140, 255) if bar else (0, 0, 0, 0))

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    sys.stdout.buffer.write(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(rows), 9)) + chunk(b"IEND", b""))


def folders(looks):
    found = sorted(path for variant in ("plain", "branded") for path in (looks / variant).iterdir())
    hold(len(found) >= 24, looks, f"{len(found)} languages")
    return found


def text(looks):
    looked_at = 0
    for folder in folders(looks):
        for path in sorted(folder.glob("*.txt")):
            lines = path.read_text(encoding="utf-8").split("\n")
            if path.name.startswith("sms-"):
                hold(len([line for line in lines if line]) == 1, path, "a message is one line")
                continue
            for number, line in enumerate(lines, 1):
                hold(columns(line) <= COLUMNS, path, number, f"{columns(line)} columns: {line}")
                hold(line == line.rstrip() or line == "-- ", path, number, "ends with a space")
            looked_at += 1
    hold(looked_at >= 96, f"only {looked_at} mails")


def mutt(looks):
    for folder in folders(looks):
        shown = looks / "text" / f"{folder.parent.name}-{folder.name}.txt"
        screen = shown.read_text(encoding="utf-8")
        mail = email.message_from_bytes((folder / "mail-delegated.eml").read_bytes(), policy=email.policy.default)
        # Without what terminals treat in ways of their own: marks, isolates, and where a line ends.
        bare = lambda said: "".join(c for c in said if unicodedata.category(c) not in ("Mn", "Cf") and not c.isspace())
        plain = mail.get_body(("plain",)).get_content()
        hold(bare(mail["subject"])[:30] in bare(screen), shown, "its subject is not shown")
        link = next(line.strip() for line in plain.split("\n") if "://" in line)
        hold(link in [line.strip() for line in screen.split("\n")], shown, f"{link} is not a line of its own")
        last = bare(plain.rstrip().split("\n")[-1])
        hold(last in bare(screen), shown, f"its end is not shown: {last}")
        for odd in ("=?", "\\2", "\\3", "^M", "\ufffd", "?????", "=3D"):
            hold(odd not in screen, shown, f"shows {odd}")
    ascii_screen = (looks / "text" / "plain-en-ascii.txt").read_bytes()
    hold(ascii_screen.isascii() and b"Confirm that this is your email address" in ascii_screen, "plain-en-ascii.txt", "English is no ASCII")


{"logo": logo, "text": lambda: text(pathlib.Path(sys.argv[2])), "mutt": lambda: mutt(pathlib.Path(sys.argv[2]))}[sys.argv[1]]()
if faults:
    sys.exit("\n".join(faults))
