"""The person in deploy/try: a client that never sends id_server, a mailbox and a browser, in the standard library alone.

Says what it does before each step and shows the lines that matter; ends with 1 at the first answer that is not as expected."""
import argparse
import email
import email.policy
import html.parser
import json
import os
import re
import secrets
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

ADDRESS = "alice@example.com"
R0 = "/_matrix/client/r0"
COLOUR = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
# Everything is on loopback: no proxy of the environment's.
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Unexpected(Exception):
    pass


def say(text):
    print("\n%s== %s%s" % ("\033[1m" if COLOUR else "", text, "\033[0m" if COLOUR else ""), flush=True)


def show(arrow, text):
    # A token for the account is nobody's business, not even here.
    text = re.sub(r'("access_token": ?)"[^"]*"', r'\1"..."', text)
    for line in text.split("\n"):
        print(("   %s %s" % (arrow, line if len(line) <= 400 else line[:400] + " ...")).rstrip(), flush=True)


def fetch(method, url, body=None, headers=None):
    """One request; answers of any status come back as (status, headers, text)."""
    request = urllib.request.Request(url, body, headers or {}, method=method)
    try:
        answer = OPENER.open(request, timeout=90)
    except urllib.error.HTTPError as error:
        answer = error
    with answer:
        return answer.status, answer.headers, answer.read().decode()


class Client:
    """A Matrix client."""

    def __init__(self, base):
        self.base = base

    def call(self, method, path, body=None, expect=200, errcode=None, token=None):
        headers = {"Content-Type": "application/json"}
        if token:
            headers["Authorization"] = "Bearer " + token
        shown = json.dumps(body) if body is not None else ""
        show(">", "%s %s %s" % (method, path, shown))
        status, _, text = fetch(method, self.base + path, shown.encode() if body is not None else None, headers)
        show("<", "%d %s" % (status, text))
        try:
            answer = json.loads(text)
        except ValueError:
            raise Unexpected("that is not JSON") from None
        if status != expect or (errcode and answer.get("errcode") != errcode):
            raise Unexpected("expected %d%s" % (expect, " " + errcode if errcode else ""))
        return answer

    def request_token(self, path):
        """Asks for a mail, without id_server, and gives back what later proves the address."""
        client_secret = secrets.token_urlsafe(16)
        answer = self.call("POST", R0 + path, {"email": ADDRESS, "client_secret": client_secret, "send_attempt": 1})
        if not answer.get("sid"):
            raise Unexpected("there is no sid in it")
        return {"sid": answer["sid"], "client_secret": client_secret}

    def login(self, password, expect=200):
        identifier = {"type": "m.id.thirdparty", "medium": "email", "address": ADDRESS}
        return self.call("POST", R0 + "/login", {"type": "m.login.password", "identifier": identifier, "password": password}, expect)


def mails_with(outbox, sid):
    """Those in which this sid stands; a folder of files, as a maildir has them too."""
    for name in os.listdir(outbox) if os.path.isdir(outbox) else []:
        if not name.startswith("."):
            with open(os.path.join(outbox, name), "rb") as file:
                mail = email.message_from_binary_file(file, policy=email.policy.default)
            if sid in mail.get_body(("plain",)).get_content():
                yield mail


def read_mail(outbox, sid, base):
    """The mail of this sid, and the link in it."""
    deadline = time.monotonic() + 10
    while not (found := list(mails_with(outbox, sid))):
        if time.monotonic() > deadline:
            raise Unexpected("no mail for %s in the outbox" % sid)
        time.sleep(0.1)
    if len(found) != 1:
        raise Unexpected("expected one mail, found %d" % len(found))
    mail = found[0]
    text = mail.get_body(("plain",)).get_content()
    show("|", "\n".join("%s: %s" % (name, mail[name]) for name in ("From", "To", "Subject", "Date")) + "\n\n" + text.strip())
    links = re.findall(re.escape(base) + r"/[^\s<>\"]+", text)
    if mail["To"].addresses[0].addr_spec != ADDRESS or len(links) != 1:
        raise Unexpected("expected a mail to %s with one link, found %s" % (ADDRESS, links))
    return links[0]


class Page(html.parser.HTMLParser):
    """What a person sees of a page, and what its button would send."""

    def __init__(self, url, text):
        super().__init__()
        self.url, self.words, self.fields, self.action, self.buttons, self.hidden = url, [], [], None, 0, 0
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.hidden += tag in ("style", "script", "title")
        if tag == "form" and attributes.get("method", "").lower() == "post":
            self.action = urllib.parse.urljoin(self.url, attributes.get("action") or self.url)
        elif tag == "input" and attributes.get("type") == "hidden":
            self.fields.append((attributes["name"], attributes.get("value", "")))
        elif tag == "button":
            self.buttons += 1

    def handle_endtag(self, tag):
        self.hidden -= tag in ("style", "script", "title")

    def handle_data(self, data):
        if data.strip() and not self.hidden:
            self.words.append(" ".join(data.split()))


def look_and_click(link, still_waiting):
    """Opens the link; checks that looking changed nothing; presses the button."""
    say("Opening the link shows a page with a button")
    path = urllib.parse.urlsplit(link).path
    show(">", "GET %s?..." % path)
    status, _, text = fetch("GET", link, headers={"Accept": "text/html"})
    page = Page(link, text)
    show("|", "\n".join(page.words))
    if status != 200 or not page.action or page.buttons != 1:
        raise Unexpected("expected 200 and a form with one button, got %d" % status)
    say("Looking at it changed nothing (mail scanners follow links too): the homeserver still waits")
    still_waiting()
    say("Pressing the button")
    show(">", "POST %s %s" % (urllib.parse.urlsplit(page.action).path, " ".join("%s=..." % name for name, _ in page.fields)))
    # As a browser does from a page with Referrer-Policy: no-referrer.
    headers = {"Content-Type": "application/x-www-form-urlencoded", "Origin": "null", "Sec-Fetch-Site": "same-origin"}
    status, _, text = fetch("POST", page.action, urllib.parse.urlencode(page.fields).encode(), headers)
    show("|", "\n".join(["%d" % status] + Page(link, text).words))
    if status != 200:
        raise Unexpected("expected 200")


def register(client, outbox):
    password = secrets.token_urlsafe(9)
    wish = {"username": "alice", "password": password}

    say("Registering: the homeserver demands an e-mail address")
    session = client.call("POST", R0 + "/register", wish, expect=401)["session"]
    say("Asking for a mail to %s, again without id_server, but through the shim" % ADDRESS)
    creds = client.request_token("/register/email/requestToken")
    say("Reading the mail")
    link = read_mail(outbox, creds["sid"], client.base)
    auth = {"type": "m.login.email.identity", "session": session, "threepid_creds": creds}
    finish = {**wish, "auth": auth}
    look_and_click(link, lambda: client.call("POST", R0 + "/register", finish, expect=401))
    say("Completing the registration, without id_server")
    account = client.call("POST", R0 + "/register", finish)
    if not account.get("user_id", "").startswith("@alice:"):
        raise Unexpected("expected the user id of alice")
    say("The address belongs to the account")
    threepids = client.call("GET", R0 + "/account/3pid", token=account["access_token"])["threepids"]
    if [t["address"] for t in threepids] != [ADDRESS]:
        raise Unexpected("expected %s" % ADDRESS)
    say("Logging in with address and password")
    client.login(password)
    return account["user_id"], password


def reset_password(client, outbox, old_password):
    say("The password is forgotten: asking for a mail to reset it")
    creds = client.request_token("/account/password/email/requestToken")
    say("Reading the mail")
    link = read_mail(outbox, creds["sid"], client.base)
    new_password = secrets.token_urlsafe(9)
    finish = {"new_password": new_password, "auth": {"type": "m.login.email.identity", "threepid_creds": creds}}
    look_and_click(link, lambda: client.call("POST", R0 + "/account/password", finish, expect=401))
    say("Setting the new password, without id_server")
    client.call("POST", R0 + "/account/password", finish)
    say("The old password is refused, the new one is taken")
    client.login(old_password, expect=403)
    client.login(new_password)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option in ("client", "homeserver", "outbox"):
        parser.add_argument("--" + option, required=True)
    option = parser.parse_args()
    bare, client = Client(option.homeserver), Client(option.client)

    say("The bare homeserver refuses a client that sends no id_server")
    body = {"email": ADDRESS, "client_secret": secrets.token_urlsafe(16), "send_attempt": 1}
    bare.call("POST", R0 + "/register/email/requestToken", body, expect=400, errcode="M_MISSING_PARAM")
    say("What it says of itself, and what the shim makes of it")
    flag = "m.require_identity_server"
    if flag in bare.call("GET", "/_matrix/client/versions")["unstable_features"]:
        raise Unexpected("this homeserver needs no shim")
    if client.call("GET", "/_matrix/client/versions")["unstable_features"].get(flag) is not False:
        raise Unexpected("expected %s: false" % flag)

    user_id, password = register(client, option.outbox)
    reset_password(client, option.outbox, password)
    say("Done: %s registered, logged in and got a new password by e-mail, and no request named an id_server" % user_id)


if __name__ == "__main__":
    try:
        main()
    except (Unexpected, OSError, KeyError) as error:
        sys.stdout.flush()
        print("\nNOT AS IT SHOULD BE: %s" % (error if not isinstance(error, KeyError) else "there is no %s in it" % error), file=sys.stderr)
        sys.exit(1)
