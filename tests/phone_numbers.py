#!/usr/bin/env python3
"""Makes tests/it/phone_numbers.tsv: what PyPI phonenumbers, the parser of Synapse, makes of phone numbers as people write them.

    tests/phone_numbers.py > tests/it/phone_numbers.tsv
    tests/phone_numbers.py --large > /tmp/large.tsv    # 48,603 numbers of every region, to compare another parser with

Run by hand, when phonenumbers or the list of inputs changes. Two versions answer: the one that Synapse 1.3.1 runs with, and the newest
when the table was made. Each is installed in a venv of its own (THREEPID_SHIM_TEST_CACHE). The inputs are grown from the newest one's
example numbers with a fixed seed: the same versions give the same table, byte for byte.

Columns: country, number (a JSON string), msisdn by OLD, msisdn by NEW ("-": not parsed), and by NEW of that msisdn: its INTERNATIONAL
format, its region ("-": none), its type.
"""
import json
import os
import random
import subprocess
import sys

OLD, NEW = "8.10.16", "9.0.43"
COUNTRIES = (
    "US CA JM DO GB GG IM FR RE DE AT CH IT SM VA ES PT NL BE LU IE DK SE NO SJ FI AX EE LV LT PL CZ SK HU RO BG GR TR UA RU KZ IL SA AE "
    "EG MA ZA NG KE CI IN PK BD LK CN HK TW JP KR SG MY ID TH VN PH AU CX NZ BR AR MX CL CO PE UY CR"
).split()
# PhoneNumberType by its numbers, which the old version has no names for; 99 is UNKNOWN.
KINDS = "FIXED_LINE MOBILE FIXED_LINE_OR_MOBILE TOLL_FREE PREMIUM_RATE SHARED_COST VOIP PERSONAL_NUMBER PAGER UAN VOICEMAIL".split()
# More than one country needs: carriers, mobile tokens, zeros that stay.
SPECIAL = [
    # Argentina: 9 abroad, 15 at home.
    ("AR", "+54 9 11 2345-6789"), ("AR", "011 15 2345-6789"), ("AR", "0343 15 555 1212"), ("AR", "+54 343 15 555 1212"),
    ("AR", "11 2345 6789"), ("AR", "15 2345 6789"), ("AR", "0 11 15 23456789"), ("AR", "+54 (0) 11 2345 6789"),
    # Mexico: 1 abroad, 01, 044 and 045 at home until 2019.
    ("MX", "+52 1 55 1234 5678"), ("MX", "044 55 1234 5678"), ("MX", "045 33 1234 5678"), ("MX", "01 55 1234 5678"),
    ("MX", "55 1234 5678"), ("MX", "1 55 1234 5678"), ("MX", "+52 55 1234 5678"), ("MX", "+52 044 55 1234 5678"),
    # Brazil: the carrier between 0 and the area.
    ("BR", "0 15 11 96123-4567"), ("BR", "0 31 21 3123-4567"), ("BR", "(11) 96123-4567"), ("BR", "+55 11 96123 4567"),
    ("BR", "90 21 11 96123 4567"), ("BR", "0xx11 96123-4567"), ("BR", "+55 (0xx11) 96123-4567"),
    # Italy and San Marino: the zero is a part of the number.
    ("IT", "06 1234 5678"), ("IT", "+39 06 1234 5678"), ("IT", "+39 6 1234 5678"), ("IT", "02 36618 300"), ("IT", "312 345 6789"),
    ("IT", "+39 312 345 6789"), ("IT", "0039 02 36618300"), ("SM", "0549 886377"), ("SM", "886377"), ("VA", "06 698 12345"),
    ("IT", "0 0 6 1234 5678"), ("CI", "01 23 45 67 89"), ("CI", "+225 01 23 45 67 89"), ("CI", "+225 21 23 45 67"),
    # The whole world, satellites, personal and premium numbers.
    ("GB", "+800 1234 5678"), ("GB", "+808 1234 5678"), ("GB", "+870 773 111 632"), ("GB", "+878 10 1234 567890"),
    ("GB", "+881 6 1234 5678"), ("US", "+8816 315 10000"), ("US", "+882 16 34567890"), ("GB", "+882 13 12345678"),
    ("GB", "+883 510 012345678"), ("GB", "+883 5100 12345678"), ("GB", "+888 123 456 789 01"), ("GB", "+979 1 2345 6789"),
    ("GB", "+881"), ("GB", "+882 1"), ("GB", "00 881 6 1234 5678"), ("US", "011 870 773111632"), ("GB", "+888123456"),
    ("US", "1-900-234-5678"), ("US", "+1 900 555 1234"), ("GB", "0909 879 0000"), ("GB", "09011 234567"), ("GB", "070 1234 5678"),
    ("DE", "0900 1 234567"), ("FR", "0899 12 34 56"), ("NL", "0900 1234"), ("NL", "0906-1234"), ("GB", "0843 123 4567"),
    ("GB", "0345 123 4567"), ("GB", "116 123"), ("US", "911"), ("GB", "999"), ("DE", "110"), ("DE", "115"), ("FR", "3631"), ("US", "12345"),
    # Vanity.
    ("US", "1-800-FLOWERS"), ("US", "1 800 MICROSOFT"), ("US", "+1-800-six-flags"), ("AU", "13 CATS"), ("GB", "0800 REVERSE"),
    ("US", "ABC-DEF-GHIJ"), ("US", "1800 GOT MILK"), ("FR", "+3367a829916"), ("NZ", "0800 DDA 005"), ("US", "a2025550123"),
    # Uniform resource identifiers.
    ("GB", "tel:+44-20-7946-0018"), ("GB", "tel:020-7946-0018;phone-context=+44"), ("US", "tel:2025550123;phone-context=+1"),
    ("US", "tel:253-0000;phone-context=example.com"), ("US", "tel:253-0000;phone-context=+1-650"), ("GB", "tel:+442079460018;ext=12"),
    ("GB", "tel:+442079460018;isub=12345"), ("GB", "tel:442079460018"), ("GB", "TEL:+442079460018"), ("GB", "tel://02079460018"),
    ("GB", "02079460018;phone-context="), ("GB", ";phone-context=+44"), ("GB", "tel:;phone-context=+442079460018"), ("GB", "sms:+447400123456"),
    # What is no number.
    ("GB", ""), ("GB", " "), ("GB", "+"), ("GB", "++"), ("GB", "0"), ("GB", "1"), ("GB", "12"), ("GB", "123"), ("GB", "00"), ("GB", "0000000000"),
    ("GB", "+0"), ("GB", "+00"), ("GB", "+0 7400 123456"), ("GB", "+000 44 7400 123456"), ("GB", "+1"), ("GB", "+44"), ("GB", "+44 0"),
    ("GB", "+44 1"), ("GB", "+44 12"), ("GB", "+44 0000000000"), ("GB", "+999 1234567"), ("GB", "+210 1234567"), ("GB", "+7"), ("GB", "+ 44 7400 123456"),
    ("GB", "hello"), ("GB", "a@b.example"), ("GB", "someletters1110@x.example"), ("GB", "()"), ("GB", "(((((07400123456"), ("GB", "07400123456)))))"),
    ("GB", "-07400123456"), ("GB", "07400 123456 or 07400 123457"), ("GB", "07400123456/07400123457"), ("GB", "07400123456, 07400123457"),
    ("GB", "07400123456\\"), ("GB", "07400123456;"), ("GB", "07400123456,,,12"), ("GB", "07400123456*31#"), ("GB", "*31#07400123456"),
    ("GB", "07400~123456"), ("GB", "07400[123456]"), ("GB", "07400'123456"), ("GB", "07400\"123456\""), ("GB", "07400_123456"), ("GB", "1e10"),
    ("GB", "0x1234567890"), ("GB", "07400 123456 x"), ("GB", "07400 123456 x1234567"), ("GB", "07400 123456 x12345678"), ("GB", "07400:123456"),
    ("GB", "1.5e10"), ("GB", "123456789012345678901234567890"), ("GB", "+44" + "0" * 29), ("GB", "0" * 32), ("GB", "9" * 32), ("GB", "+" * 32),
    ("GB", "+447400123456\r\nBcc: x"), ("GB", "07400\t123456"), ("GB", "07400\n123456"), ("GB", "07400123456\n"), ("GB", "07400123456\0"), ("GB", "\ufeff07400123456"),
    ("GB", "+44+7400123456"), ("GB", "0044+7400123456"), ("GB", "00+447400123456"), ("GB", "44+7400123456"), ("GB", "07400+123456"), ("GB", "07400123456+"),
    ("CH", "003-836-4618x3001"), ("US", "  2 22#:"), ("NZ", "+01164 3 331 6005"), ("NZ", "+ 00 64 3 331 6005"), ("US", "0xd2dc00a30027c9d5"),
    ("US", "+1 520-878-2491"), ("DE", "+49 (0) 30 123456"), ("DE", "+490301234567"), ("DE", "0049 030 123456"), ("DE", "49 30 123456"), ("DE", "4930123456"),
    ("RU", "8 10 44 7400 123456"), ("RU", "8~10 44 7400 123456"), ("RU", "8 (912) 345-67-89"), ("RU", "+8 912 345 67 89"), ("RU", "89123456789"), ("KZ", "8 771 000 9998"),
    ("AU", "0011 44 7400 123456"), ("AU", "0014 44 7400 123456"), ("AU", "+61 (04) 1234 5678"), ("JP", "010 44 7400 123456"), ("KR", "002 44 7400 123456"),
    ("HK", "001 44 7400 123456"), ("SG", "001 44 7400 123456"), ("IL", "012 44 7400 123456"), ("TH", "001 44 7400 123456"), ("FI", "990 44 7400 123456"),
    ("HU", "06 20 123 4567"), ("LT", "8 612 34567"), ("LT", "0 612 34567"), ("GG", "07781 123456"), ("IM", "07924 123456"), ("JM", "876 210 1234"), ("JM", "2101234"),
    ("US", "555 0123"), ("US", "202 555 0123"), ("US", "1 202 555 0123"), ("US", "11 202 555 0123"), ("US", "2025550123 ext 4"), ("US", "(202) 555-0123 #4"),
    ("CN", "0086 138 0013 8000"), ("CN", "17951 138 0013 8000"), ("CN", "+86 (0)10 1234 5678"), ("IN", "0 98765 43210"), ("IN", "091 98765 43210"), ("IN", "91 98765 43210"),
    # A country that has no numbers of its own, one that is none, and case.
    ("AQ", "+44 7400 123456"), ("AQ", "07400 123456"), ("XX", "+44 7400 123456"), ("XX", "07400 123456"), ("UK", "07400 123456"), ("UK", "+44 7400 123456"),
    ("gb", "07400 123456"), ("gb", "+44 7400 123456"), ("", "+44 7400 123456"), ("", "07400 123456"), ("GBR", "07400 123456"), ("001", "+800 1234 5678"), ("ZZ", "+44 7400 123456"),
]


def inputs(large):
    import phonenumbers as p
    from phonenumbers import PhoneNumberFormat as F

    pick = random.Random(2263)
    types = [p.PhoneNumberType.MOBILE, p.PhoneNumberType.FIXED_LINE, p.PhoneNumberType.TOLL_FREE, p.PhoneNumberType.PREMIUM_RATE,
             p.PhoneNumberType.SHARED_COST, p.PhoneNumberType.VOIP, p.PhoneNumberType.PERSONAL_NUMBER, p.PhoneNumberType.UAN]
    dress = [
        lambda n, nat: nat.replace(" ", ""), lambda n, nat: nat.replace(" ", "-"), lambda n, nat: nat.replace(" ", "."),
        lambda n, nat: f"  {nat}  ", lambda n, nat: nat.replace(" ", "  "), lambda n, nat: nat.replace(" ", "/"),
        lambda n, nat: "(" + nat.replace(" ", ") ", 1), lambda n, nat: str(n.national_number), lambda n, nat: f"0{n.national_number}",
        lambda n, nat: f"+{n.country_code} (0) {n.national_number}", lambda n, nat: f"+{n.country_code} (0){n.national_number}", lambda n, nat: f"+{n.country_code}0{n.national_number}",
        lambda n, nat: f"00{n.country_code} {n.national_number}", lambda n, nat: f"00 {n.country_code}-{n.national_number}",
        lambda n, nat: f"011 {n.country_code} {n.national_number}", lambda n, nat: f"++{n.country_code} {n.national_number}",
        lambda n, nat: f"{n.country_code}{n.national_number}", lambda n, nat: f"(+{n.country_code}) {n.national_number}",
        lambda n, nat: p.format_number(n, F.RFC3966), lambda n, nat: f"{nat} x12", lambda n, nat: f"{nat} ext. 345", lambda n, nat: f"{nat};ext=7",
        lambda n, nat: f"{nat}#99", lambda n, nat: f"{n.national_number};phone-context=+{n.country_code}",
        lambda n, nat: nat[:-3] + "CAT", lambda n, nat: nat + " home",
        lambda n, nat: nat.translate({48 + d: 0xFF10 + d for d in range(10)}), lambda n, nat: nat.translate({48 + d: 0x660 + d for d in range(10)}),
        lambda n, nat: p.format_number(n, F.E164).translate({48 + d: 0x6F0 + d for d in range(10)}),
        lambda n, nat: nat.replace(" ", "\xa0"), lambda n, nat: nat.replace("-", "\u2011").replace(" ", "\u2010"), lambda n, nat: "\uff0b" + p.format_number(n, F.E164)[1:],
        lambda n, nat: "\u202a" + p.format_number(n, F.INTERNATIONAL) + "\u202c",
        lambda n, nat: str(n.national_number)[:pick.randint(1, 5)], lambda n, nat: nat + str(pick.randint(10, 9999999)),
        lambda n, nat: f"+{n.country_code}" + "".join(pick.choice("0123456789") for _ in range(pick.randint(2, 17))),
        lambda n, nat: "".join(pick.choice("0123456789") for _ in range(pick.randint(3, 14))),
        lambda n, nat: "".join(pick.choice("0123456789 +-()./x*#") for _ in range(pick.randint(3, 20))),
    ]
    rows = list(SPECIAL)
    for country in sorted(p.SUPPORTED_REGIONS) if large else COUNTRIES:
        examples = [e for e in (p.example_number_for_type(country, t) for t in types) if e]
        for example in examples:
            rows.append((country, p.format_number(example, F.NATIONAL)))
            rows.append((country, p.format_number(example, F.E164)))
        for number in examples[:2]:
            other = pick.choice([c for c in COUNTRIES if c != country])
            rows.append((other, p.format_number(number, F.INTERNATIONAL)))
            rows.append((country, p.format_number(number, F.INTERNATIONAL)))
            rows.append((other, p.format_out_of_country_calling_number(number, other)))
            rows.append((country, p.format_out_of_country_calling_number(p.example_number_for_type(other, 1), country)))
        for make in dress * 5 if large else pick.sample(dress, 14):
            number = p.PhoneNumber()
            number.merge_from(pick.choice(examples[:2] * 4 + examples))
            digits = str(number.national_number)
            keep = min(len(digits), pick.choice([2, 3, 4, len(digits)]))
            number.national_number = int(digits[:keep] + "".join(pick.choice("0123456789") for _ in digits[keep:]))
            rows.append((country, make(number, p.format_number(number, F.NATIONAL))))
    return list(dict.fromkeys(rows))


def answers(rows):
    """What this version says: parse, then E.164 without its plus sign, as Synapse's phone_number_to_msisdn does."""
    import phonenumbers as p

    for country, number in rows:
        try:
            parsed = p.parse(number, country)
        except p.NumberParseException:
            yield ["-"] * 4
            continue
        parsed.extension = None  # no part of E.164
        kind = p.number_type(parsed)
        international = p.format_number(parsed, p.PhoneNumberFormat.INTERNATIONAL)
        yield [p.format_number(parsed, p.PhoneNumberFormat.E164)[1:], international, p.region_code_for_number(parsed) or "-",
               KINDS[kind] if kind < len(KINDS) else "UNKNOWN"]


def ask(version, *what, rows=()):
    cache = os.environ.get("THREEPID_SHIM_TEST_CACHE", os.path.expanduser("~/.cache/threepid-shim-tests"))
    venv = os.path.join(cache, f"phonenumbers-{version}")
    python = os.path.join(venv, "bin", "python")
    if not os.path.exists(os.path.join(venv, ".installed")):
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", "--disable-pip-version-check", f"phonenumbers=={version}"], check=True, stdout=sys.stderr)
        open(os.path.join(venv, ".installed"), "w").close()
    run = subprocess.run([python, __file__, *what], input=json.dumps(list(rows)), capture_output=True, text=True, check=False)
    if run.returncode:
        sys.exit(f"phonenumbers {version}: {run.stderr}")
    return json.loads(run.stdout)


def main():
    if sys.argv[1:2] == ["inputs"]:
        return json.dump(inputs("--large" in sys.argv), sys.stdout)
    if sys.argv[1:] == ["answers"]:
        return json.dump(list(answers(json.load(sys.stdin))), sys.stdout)
    rows = ask(NEW, "inputs", *sys.argv[1:])
    old, new = ask(OLD, "answers", rows=rows), ask(NEW, "answers", rows=rows)
    print(f"# tests/phone_numbers.py: PyPI phonenumbers {OLD} and {NEW}", "country, number, msisdn by each, format, region, type", sep=": ")
    for (country, number), before, now in zip(rows, old, new):
        print(country, json.dumps(number), before[0], *now, sep="\t")


main()
