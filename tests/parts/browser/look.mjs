// look.mjs FOLDER LOGO.png
//
// Opens every HTML that `tests/looks` has rendered into FOLDER/{plain,branded}/LANGUAGE in Debian's chromium and holds it to what is
// said there. Pictures go to FOLDER/pictures and FOLDER/sheets. In a mail LOGO.png stands for the image that is sent with it.
// Exit code 1, with each fault on a line of standard error, when something does not hold.
import { mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { chromium } from "playwright-core";

const [folder, logo] = process.argv.slice(2);
const cid = `data:image/png;base64,${readFileSync(logo).toString("base64")}`;
const telephone = { width: 360, height: 740 };
const modes = [
  { name: "light", viewport: { width: 760, height: 720 }, colorScheme: "light" },
  { name: "dark", viewport: { width: 760, height: 720 }, colorScheme: "dark" },
  { name: "telephone", viewport: telephone, colorScheme: "light" },
];
// Every one of them is opened; of these there are pictures in every language, of the others in English.
const pictured = ["mail-delegated.html", "page-confirm-delegated-then-elsewhere.html"];

const faults = [];
const profile = mkdtempSync(join(tmpdir(), "threepid-shim-looks-"));
const context = await chromium.launchPersistentContext(profile, {
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"],
});

// What is seen, as the page itself measures it.
const measure = (drawnBefore) => {
  const root = document.documentElement;
  const heading = document.querySelector("h1");
  const button = document.querySelector("button, main a[style*=inline-block]");
  const light = ([r, g, b]) => [r, g, b].map((part) => part / 255).map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)).reduce((sum, part, at) => sum + part * [0.2126, 0.7152, 0.0722][at], 0);
  const colour = (said) => said.match(/[\d.]+/g).map(Number);
  const contrast = (one, other) => {
    const [a, b] = [light(colour(one)), light(colour(other))];
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  };
  const style = button && getComputedStyle(button);
  // A character that no font has is drawn as the same box as one that nothing can have.
  const canvas = Object.assign(document.createElement("canvas"), { width: 40, height: 40 });
  const brush = canvas.getContext("2d", { willReadFrequently: true });
  brush.font = `24px ${getComputedStyle(document.body).fontFamily}`;
  const drawn = (character) => {
    brush.clearRect(0, 0, 40, 40);
    brush.fillText(character, 4, 30);
    return brush.getImageData(0, 0, 40, 40).data.join();
  };
  const box = drawn("\u{10fffd}");
  const characters = [...new Set(document.body.innerText)].filter((character) => !/[\s\p{M}\p{C}]/u.test(character) && !drawnBefore.includes(character));
  const range = document.createRange();
  range.selectNodeContents(heading);
  const text = range.getClientRects()[0];
  const around = heading.getBoundingClientRect();
  return {
    lang: root.lang,
    width: root.scrollWidth,
    direction: getComputedStyle(heading).direction,
    beginsAtTheRight: Math.abs(text.right - around.right) < 2,
    beginsAtTheLeft: Math.abs(text.left - around.left) < 2,
    characters,
    boxes: characters.filter((character) => drawn(character) === box),
    readable: style ? contrast(style.color, style.backgroundColor) : 21,
    images: [...document.images].every((image) => image.naturalWidth > 0),
    imageCount: document.images.length,
  };
};

try {
  const page = context.pages()[0] ?? (await context.newPage());
  const odd = [];
  page.on("request", (request) => /^(data|about):/.test(request.url()) || odd.push(`asks for ${request.url()}`));
  page.on("console", (message) => odd.push(`the console says ${message.text()}`));
  page.on("pageerror", (error) => odd.push(`fails with ${error.message}`));
  let opened = 0;
  const pictures = new Map();
  // The characters of each language; in every mode they have the same fonts.
  const drawn = new Map();
  for (const mode of modes) {
    await page.setViewportSize(mode.viewport);
    await page.emulateMedia({ colorScheme: mode.colorScheme });
    for (const variant of ["plain", "branded"]) {
      for (const language of readdirSync(join(folder, variant))) {
        for (const file of readdirSync(join(folder, variant, language)).filter((name) => name.endsWith(".html"))) {
          const wanted = pictured.includes(file) || language === "en";
          // The telephone is the narrowest: there all are measured, but branded ones, which differ alike.
          if (!wanted && (mode.name !== "telephone" || variant === "branded")) continue;
          const name = `${variant}/${language}/${file} (${mode.name})`;
          const html = readFileSync(join(folder, variant, language, file), "utf8").replaceAll("cid:logo@threepid-shim", cid);
          await page.setContent(html, { waitUntil: "load" });
          const before = drawn.get(language) ?? [];
          const seen = await page.evaluate(measure, before);
          drawn.set(language, [...before, ...seen.characters]);
          const hold = (condition, said) => condition || faults.push(`${name}: ${said}`);
          const direction = language === "ar" ? "rtl" : "ltr";
          hold(seen.lang === language, `is in ${seen.lang}`);
          hold(seen.width <= mode.viewport.width, `is ${seen.width} px wide`);
          hold(seen.direction === direction && (direction === "rtl" ? seen.beginsAtTheRight : seen.beginsAtTheLeft), `runs ${seen.direction}`);
          hold(seen.boxes.length === 0, `no font has ${seen.boxes.join("")}`);
          hold(seen.readable >= 4.5, `its button has a contrast of ${seen.readable.toFixed(2)}`);
          hold(seen.images && seen.imageCount === (variant === "branded" ? 1 : 0), `shows ${seen.imageCount} images`);
          odd.splice(0).forEach((said) => hold(false, said));
          opened += 1;
          if (!wanted) continue;
          const into = join(folder, "pictures", variant, language);
          mkdirSync(into, { recursive: true });
          const path = join(into, file.replace(".html", `-${mode.name}.png`));
          await page.screenshot({ path, fullPage: true });
          const add = (sheet) => pictures.set(sheet, [...(pictures.get(sheet) ?? []), { path, width: mode.viewport.width }]);
          if (pictured.includes(file)) add(`${variant}-${file.split("-")[0]}-${mode.name}`);
          if (language === "en") add(`${variant}-english-${mode.name}`);
        }
      }
    }
  }
  if (opened < 12 * 17 + 5 * 39) faults.push(`only ${opened} were opened`);

  // Many at once, to look at.
  mkdirSync(join(folder, "sheets"), { recursive: true });
  await page.emulateMedia({ colorScheme: "light" });
  await page.setViewportSize({ width: 1640, height: 900 });
  const sheet = join(folder, "sheet.html");
  for (const [name, shown] of pictures) {
    const images = shown.map(({ path, width }) => `<figure><img src="file://${path}" width="${width > 400 ? 390 : 260}"></figure>`);
    writeFileSync(sheet, `<!DOCTYPE html><meta charset="utf-8"><style>body{margin:8px;background:#888;display:flex;flex-wrap:wrap;gap:8px;align-items:flex-start}figure{margin:0}img{display:block}</style>${images.join("")}`);
    await page.goto(`file://${sheet}`, { waitUntil: "load" });
    await page.screenshot({ path: join(folder, "sheets", `${name}.png`), fullPage: true });
  }
  rmSync(sheet);
  console.log(`${opened} opened, ${pictures.size} sheets in ${join(folder, "sheets")}`);
} finally {
  await context.close();
  rmSync(profile, { recursive: true, force: true });
}
if (faults.length > 0) {
  console.error(faults.join("\n"));
  process.exit(1);
}
