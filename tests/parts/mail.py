"""mail.py < FILE: what Python's own email library, which shares no code with us, makes of a mail. Prints one JSON object:
{"headers": {name: [value, ...]}, "to": [address], "from": [[name, address]], "date": seconds, "type",
"parts": [{"type", "charset", "text", "links"}], "defects": what is against a standard, "ascii", "longest_line"}.
"""

import email
import email.policy
import json
import re
import sys

raw = sys.stdin.buffer.read()
mail = email.message_from_bytes(raw, policy=email.policy.default)
headers, defects = {}, [str(defect) for part in mail.walk() for defect in part.defects]
for name, value in mail.items():
    headers.setdefault(name.lower(), []).append(str(value))
    defects += [f"{name}: {defect}" for defect in getattr(value, "defects", [])]
parts = []
for part in mail.walk():
    if not part.is_multipart():
        text = part.get_content()
        text = text if isinstance(text, str) else f"{len(text)} bytes"
        links = re.findall(r"[a-z]+://[^\s\"<>]+", text)
        parts.append({"type": part.get_content_type(), "charset": part.get_content_charset(), "text": text, "links": links})
print(json.dumps({
    "headers": headers,
    "to": [address.addr_spec for address in mail["to"].addresses],
    "from": [[address.display_name, address.addr_spec] for address in mail["from"].addresses],
    "date": int(mail["date"].datetime.timestamp()),
    "type": mail.get_content_type(),
    "parts": parts,
    "defects": defects,
    "ascii": raw.isascii(),
    "longest_line": max(map(len, raw.split(b"\n"))),
}))
