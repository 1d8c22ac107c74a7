// click.mjs URL [--button] [--follow] [--post URL | --cut] [--until TEXT] [--screenshot FILE] [--dark] [--mobile] [--no-js] [--lang TAG]
//
// Opens URL in Debian's chromium, as the person who got the mail would, and prints one JSON line:
//   {"url", "status", "headers", "title", "lang", "text", "buttons", "overflows", "background", "console", "requests", "loads", "before"}
// url to headers are those of the page that is shown at the end; `buttons` are the texts of its buttons, `overflows` says that it
// must be scrolled sideways, `console` what the browser complained of (CSP), `requests` every "METHOD URL" made on the way, `loads` how
// many of them were for a page. --post sends an empty object to another URL, as somebody else and once the page is there, and waits until the
// page says TEXT by itself; `before` is then the page without it. --cut takes the network away from it instead.
// --button clicks the only submit button and waits for the page after it; `before` is then the page with the button.
// --follow waits for the page that the first one goes on to by itself. --screenshot is taken of the last page.
// Exit code 1, with the reason on standard error, when any of it does not work.
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { chromium, devices } from "playwright-core";

process.on("uncaughtException", (error) => {
  console.error(`click.mjs: ${error.message}`);
  process.exit(1);
});

const { values: option, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    button: { type: "boolean" },
    follow: { type: "boolean" },
    post: { type: "string" },
    cut: { type: "boolean" },
    until: { type: "string" },
    screenshot: { type: "string" },
    dark: { type: "boolean" },
    mobile: { type: "boolean" },
    "no-js": { type: "boolean" },
    lang: { type: "string", default: "en" },
  },
});
if (positionals.length !== 1) throw new Error("usage: click.mjs URL [--button] [--follow] [--post URL | --cut] [--until TEXT] [--screenshot FILE] [--dark] [--mobile] [--no-js] [--lang TAG]");

const executablePath = process.env.CHROMIUM ?? "/usr/bin/chromium";
if (!existsSync(executablePath)) throw new Error(`${executablePath} is missing: apt-get install chromium (or run tests/run)`);

const profile = mkdtempSync(join(tmpdir(), "threepid-shim-browser-"));
const context = await chromium.launchPersistentContext(profile, {
  executablePath,
  // Without the background flags chromium looks for its maker's hosts at every start.
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"],
  ...(option.mobile ? devices["Pixel 5"] : { viewport: { width: 1024, height: 768 } }),
  colorScheme: option.dark ? "dark" : "light",
  javaScriptEnabled: !option["no-js"],
  locale: option.lang,
});

try {
  context.setDefaultTimeout(60_000);
  const page = context.pages()[0] ?? (await context.newPage());
  const requests = [];
  const complaints = [];
  page.on("request", (request) => requests.push(`${request.method()} ${request.url()}`));
  page.on("console", (message) => complaints.push(message.text()));

  const describe = async (response) => ({
    url: page.url(),
    status: response.status(),
    headers: Object.fromEntries((await response.headersArray()).map(({ name, value }) => [name.toLowerCase(), value])),
    title: await page.title(),
    lang: await page.locator("html").getAttribute("lang"),
    text: await page.locator("body").innerText(),
    buttons: await page.locator("button, input[type=submit]").allInnerTexts(),
    background: await page.evaluate(() => getComputedStyle(document.body).backgroundColor),
    overflows: await page.evaluate(() => document.documentElement.scrollWidth > document.documentElement.clientWidth),
  });

  // `request.isNavigationRequest` also holds for the redirects on the way: the last answer to come is the page's.
  const answers = [];
  page.on("response", (answer) => answer.request().isNavigationRequest() && answer.frame() === page.mainFrame() && answers.push(answer));
  await page.goto(positionals[0]);
  if (option.follow) await page.waitForURL((url) => url.href !== new URL(positionals[0]).href);
  let shown = await describe(answers.at(-1));
  if (option.button) {
    const button = page.locator("button[type=submit], button:not([type]), input[type=submit]");
    const count = await button.count();
    if (count !== 1) throw new Error(`expected one submit button, found ${count}: ${shown.text}`);
    const opened = answers.length;
    await Promise.all([page.waitForEvent("load"), button.click()]);
    if (answers.length === opened) throw new Error("the button led to no page");
    shown = { ...(await describe(answers.at(-1))), before: shown };
  }
  if (option.until) {
    if (option.post) await fetch(option.post, { method: "POST", body: "{}" });
    if (option.cut) await context.setOffline(true);
    await page.getByText(option.until).first().waitFor();
    shown = { ...(await describe(answers.at(-1))), before: shown };
  }
  if (option.screenshot) await page.screenshot({ path: option.screenshot, fullPage: true });
  console.log(JSON.stringify({ ...shown, console: complaints, requests, loads: answers.length }));
} finally {
  await context.close();
  rmSync(profile, { recursive: true, force: true });
}
