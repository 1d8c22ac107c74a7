// node drive.cjs sdk2|sdk27
//
// A person with one version of matrix-js-sdk, doing each flow by that SDK's own code. One JSON object a line, both ways:
//
//   in   {"flow": "flag" | "register" | "password" | "add" | "phone", "base_url": ..., "id_server": null | "https://host:port",
//         "email": ..., "country", "phone_number", "username": ..., "password": ..., "access_token": ..., "user_id": ...}
//   out  {"http": {"method", "path", "sent", "status", "errcode"}}   every request, once it is answered
//   out  {"mail": {"sid": ...}}        a mail must have come: the parent clicks its link (or not), then says so:
//   in   {"clicked": true}
//   out  {"message": {"sid": ...}}     a message must have come, with a code:
//   in   {"code": "123456"}
//   out  {"result": {"ok": ...}} or {"result": {"failed": "M_..." or what the SDK threw}}
//
// Where the SDK leaves a step to the app, it is done as matrix-react-sdk of that time did it: InteractiveAuth is polled,
// the creds of a password reset and of an added address are put together from doesServerRequireIdServerParam and
// doesServerSupportSeparateAddAndBind.
"use strict";

const readline = require("node:readline");

// The SDKs print to the console as they like; standard output is ours.
for (const name of ["log", "info", "debug", "trace", "warn", "error"]) console[name] = () => {};

const version = process.argv[2];
const sdk = require(version);
const EMAIL = "m.login.email.identity";
/** As in a browser, only sooner: there it is every two seconds. */
const POLL_EVERY_MS = 50;
/** No flow of a few requests takes so long: what hangs is to be seen. */
const DEADLINE_MS = 120_000;
/** Polls after the click without an end: the user gives up. */
const PATIENCE = 20;

// submitAuthDict of a background poll is awaited by nobody, in the SDK neither.
process.on("unhandledRejection", () => {});

const say = (line) => process.stdout.write(JSON.stringify(line) + "\n");
const lines = readline.createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const hear = async () => {
  const { value, done } = await lines.next();
  if (done) process.exit(0);
  return JSON.parse(value);
};
const pause = () => new Promise((done) => setTimeout(done, POLL_EVERY_MS));

function record(method, url, sent, status, body) {
  const parsed = (text) => { try { return JSON.parse(text); } catch { return null; } };
  const errcode = parsed(body)?.errcode ?? null;
  say({ http: { method, path: new URL(url).pathname, sent: parsed(sent), status, errcode } });
}

/** Each SDK's own way to be given a transport, so that what it sends can be shown. */
const transport = {
  sdk2: () => {
    const request = require("request");
    return {
      request: (options, callback) => {
        // Without a login there is an access_token of undefined: left out in a browser, but sent as empty from here.
        const qs = Object.fromEntries(Object.entries(options.qs ?? {}).filter(([, value]) => value !== undefined));
        return request({ ...options, qs }, (error, response, body) => {
          record(options.method, options.uri, options.body, response?.statusCode ?? 0, body);
          callback(error, response, body);
        });
      },
    };
  },
  sdk27: () => ({
    fetchFn: async (url, options) => {
      const response = await fetch(url, options);
      record(options.method, url, options.body, response.status, await response.clone().text());
      return response;
    },
  }),
}[version];

function clientOf(job) {
  return sdk.createClient({
    baseUrl: job.base_url,
    idBaseUrl: job.id_server ?? undefined,
    accessToken: job.access_token,
    userId: job.user_id,
    ...transport(),
  });
}

const click = async (sid) => {
  say({ mail: { sid } });
  await hear();
};

/** What matrix-react-sdk puts into creds: the host of the identity server, if one has to be named. */
async function creds(client, sid, client_secret) {
  const made = { sid, client_secret };
  if (await client.doesServerRequireIdServerParam()) {
    made.id_server = (client.getIdentityServerUrl() ?? null)?.split("://")[1] ?? null;
  }
  return made;
}

async function register(client, job) {
  let asked = 0;
  const auth = new sdk.InteractiveAuth({
    matrixClient: client,
    inputs: { emailAddress: job.email },
    requestEmailToken: (email, secret, attempt) => client.requestRegisterEmailToken(email, secret, attempt),
    stateUpdated: () => {},
    doRequest: async (dict) => {
      const body = { username: job.username, password: job.password };
      if (dict?.session || dict?.type) body.auth = dict;
      asked += 1;
      return client.registerRequest(body);
    },
  });
  let ended;
  auth.attemptAuth().then((ok) => (ended = { ok }), (error) => (ended = { error }));
  const poll = async () => {
    const before = asked;
    // It asks nothing while an answer is awaited, and shows neither from outside.
    while (!ended && asked === before) {
      await auth.poll();
      await pause();
    }
  };
  while (!ended && !auth.getEmailSid()) await pause();
  if (!ended) {
    await poll();
    await click(auth.getEmailSid());
  }
  for (let polls = 0; !ended && polls < PATIENCE; polls += 1) await poll();
  if (!ended) throw new Error("still waiting after the click");
  if (ended.error) throw ended.error;
  return ended.ok;
}

/** As "I have verified my email address" is pressed: too early, then in time. */
async function twice(sid, submit) {
  // Where the identity server vouches at once nothing is left to be clicked.
  if (await submit().then(() => true, () => false)) return {};
  await click(sid);
  return submit();
}

async function password(client, job) {
  const secret = client.generateClientSecret();
  const { sid } = await client.requestPasswordEmailToken(job.email, secret, 1);
  return twice(sid, async () => {
    const made = await creds(client, sid, secret);
    return client.setPassword({ type: EMAIL, threepid_creds: made, threepidCreds: made }, job.password);
  });
}

async function add(client, job) {
  const secret = client.generateClientSecret();
  const { sid } = await client.requestAdd3pidEmailToken(job.email, secret, 1);
  if (await client.doesServerSupportSeparateAddAndBind()) {
    await click(sid);
    return addOnly(client, job, sid, secret);
  }
  return twice(sid, () => client.addThreePid(named(client, sid, secret), false));
}

async function phone(client, job) {
  const secret = client.generateClientSecret();
  const { sid, submit_url } = await client.requestAdd3pidMsisdnToken(job.country, job.phone_number, secret, 1);
  say({ message: { sid } });
  const { code } = await hear();
  const submitted = await client.submitMsisdnTokenOtherUrl(submit_url, sid, secret, code);
  if (!submitted.success) throw new Error("the code was not taken");
  if (await client.doesServerSupportSeparateAddAndBind()) return addOnly(client, job, sid, secret);
  return client.addThreePid(named(client, sid, secret), false);
}

/** On the old endpoint the identity server is named whenever there is one. */
function named(client, sid, client_secret) {
  return { sid, client_secret, id_server: client.getIdentityServerUrl()?.split("://")[1] };
}

async function addOnly(client, job, sid, client_secret) {
  try {
    return await client.addThreePidOnly({ sid, client_secret });
  } catch (error) {
    // MSC2290 wants user-interactive auth; the dialog asks for the password.
    if (error.httpStatus !== 401 || !error.data?.flows) throw error;
    const identifier = { type: "m.id.user", user: job.user_id };
    const auth = { type: "m.login.password", identifier, user: job.user_id, password: job.password };
    auth.session = error.data.session;
    return client.addThreePidOnly({ sid, client_secret, auth });
  }
}

const flows = {
  flag: async (client) => ({
    requires_id_server: await client.doesServerRequireIdServerParam(),
    separate_add_and_bind: Boolean(await client.doesServerSupportSeparateAddAndBind()),
  }),
  register,
  password,
  add,
  phone,
};

(async () => {
  for (;;) {
    const job = await hear();
    try {
      const flow = flows[job.flow](clientOf(job), job);
      let deadline;
      const late = new Promise((_, fail) => {
        deadline = setTimeout(() => fail(new Error(`${job.flow} has no end`)), DEADLINE_MS);
      });
      say({ result: { ok: await Promise.race([flow, late]).finally(() => clearTimeout(deadline)) ?? {} } });
    } catch (error) {
      say({ result: { failed: error?.errcode ?? String(error?.message ?? error), error: error?.data?.error ?? null } });
    }
  }
})();
