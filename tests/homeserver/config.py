"""Writes Synapse's homeserver.yaml (and log.yaml beside it), from the environment `up` sets.

JSON is YAML, so the file is JSON: it needs nothing but the standard library.
Runs under the venv's Python, 3.7 or later."""
import json
import os

env = os.environ.get
state = os.environ["STATE"]
version = tuple(int(x) for x in os.environ["VERSION"].split(".")[:2])
port = int(os.environ["PORT"])
password_reset = env("PASSWORD_RESET") or "remote"

cfg = {
    "server_name": env("SERVER_NAME") or "localhost",
    "public_baseurl": "http://127.0.0.1:%d/" % port,
    "pid_file": os.path.join(state, "synapse-own.pid"),
    "listeners": [
        {
            "port": port,
            "bind_addresses": ["127.0.0.1"],
            "type": "http",
            "tls": False,
            "x_forwarded": True,
            "resources": [{"names": ["client"], "compress": False}],
        }
    ],
    "database": {"name": "sqlite3", "args": {"database": os.path.join(state, "homeserver.db")}},
    "log_config": os.path.join(state, "log.yaml"),
    "media_store_path": os.path.join(state, "media"),
    "uploads_path": os.path.join(state, "uploads"),
    "signing_key_path": os.path.join(state, "signing.key"),
    "macaroon_secret_key": "legacy-macaroon-secret",
    "form_secret": "legacy-form-secret",
    "registration_shared_secret": env("SHARED_SECRET") or "legacy-shared-secret",
    "report_stats": False,
    "enable_registration": True,
    "enable_registration_captcha": False,
    "registrations_require_3pid": (env("REQUIRE_3PID") or "").split(),
    "trusted_third_party_id_servers": (env("ID_SERVER") or "localhost:8091").split(),
    "bcrypt_rounds": 4,
    "use_presence": False,
    # No federation: nothing is asked of, or sent to, any other homeserver.
    "trusted_key_servers": [],
    "perspectives": {"servers": {}},
    "suppress_key_server_warning": True,
    "federation_domain_whitelist": [],
    "url_preview_enabled": False,
}

email = {}
if env("SMTP_PORT"):
    email = {
        "smtp_host": "127.0.0.1",
        "smtp_port": int(env("SMTP_PORT")),
        "require_transport_security": False,
        "notif_from": "%(app)s <homeserver@localhost>",
        "app_name": "Matrix",
    }
if version < (1, 4):
    # 0.99 knows no such option and always asks the identity server; from 1.0 to 1.3 password
    # resets are off unless there is an email section or this is set.
    if password_reset == "remote":
        email["trust_identity_server_for_password_resets"] = True
else:
    delegates = {}
    if env("DELEGATE_EMAIL"):
        delegates["email"] = env("DELEGATE_EMAIL")
    if env("DELEGATE_MSISDN"):
        delegates["msisdn"] = env("DELEGATE_MSISDN")
    if delegates:
        cfg["account_threepid_delegates"] = delegates
if email and password_reset != "off":
    cfg["email"] = email

if version >= (1, 25):
    # From 1.25 calls to identity servers obey ip_range_blacklist, which has loopback.
    cfg["ip_range_whitelist"] = ["127.0.0.0/8", "::1/128"]
if version >= (1, 64):
    cfg["enable_registration_without_verification"] = True

rate = env("RATE") or "1000"
if rate != "stock":
    one = {"per_second": float(rate), "burst_count": int(float(rate))}
    for key in ("rc_message", "rc_registration", "rc_admin_redaction", "rc_3pid_validation"):
        cfg[key] = one
    cfg["rc_login"] = {"address": one, "account": one, "failed_attempts": one}

# From 1.30 Synapse adds the request to a record by itself, and the filter is elsewhere.
adds_request = version < (1, 30)
log = {
    "version": 1,
    "formatters": {
        "precise": {
            "format": "%(asctime)s - %(name)s - %(lineno)d - %(levelname)s - "
            + ("%(request)s - " if adds_request else "")
            + "%(message)s"
        }
    },
    "filters": {"context": {"()": "synapse.util.logcontext.LoggingContextFilter", "request": ""}} if adds_request else {},
    "handlers": {
        "file": {
            "class": "logging.FileHandler",
            "filename": os.path.join(state, "homeserver.log"),
            "formatter": "precise",
            "filters": ["context"] if adds_request else [],
        }
    },
    "loggers": {"synapse": {"level": env("LOG_LEVEL") or "INFO"}},
    "root": {"level": env("LOG_LEVEL") or "INFO", "handlers": ["file"]},
    "disable_existing_loggers": False,
}
with open(os.path.join(state, "log.yaml"), "w") as f:
    json.dump(log, f, indent=1)
print(json.dumps(cfg, indent=1))
