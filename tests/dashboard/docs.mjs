// Reads the page about the HTTP API as a person would, in a headless Chromium.
// Called by tests/browser/docs_page.rs with the data port and a folder for pictures.

import assert from "node:assert/strict";
import chromium from "@sparticuz/chromium";
import puppeteer from "puppeteer-core";

const [http, pictures] = process.argv.slice(2);
const api = await (await fetch(`${http}/openapi.json`)).json();
const operations = Object.entries(api.paths).flatMap(([path, item]) =>
  Object.entries(item).map(([method, operation]) => ({ title: `${method.toUpperCase()} ${path}`, ...operation })));

const browser = await puppeteer.launch({ executablePath: await chromium.executablePath(), headless: "shell", args: chromium.args });
const page = await browser.newPage();

// Whatever the page complains of, a refusal by its own policy included, and whatever it asks for.
const complaints = [];
const asked = [];
page.on("console", (message) => complaints.push(message.text()));
page.on("pageerror", (error) => complaints.push(error.message));
page.on("request", (request) => asked.push(request.url()));

const scenes = {
  async "the page is all that is fetched, and its own policy lets its style through"() {
    await page.goto(`${http}/docs`, { waitUntil: "networkidle0" });
    assert.deepEqual(asked, [`${http}/docs`]);
    assert.match(await page.$eval("h3", (title) => getComputedStyle(title).fontFamily), /monospace/);
  },

  async "every operation is shown, with each of its parameters and answers, and is a press away"() {
    assert.ok(operations.length > 10, `${operations.length} operations`);
    for (const { title, operationId, summary, parameters = [], responses } of operations) {
      await page.click(`nav a[href="#${operationId}"]`);
      const top = await page.$eval(`#${operationId}`, (section) => section.getBoundingClientRect().top);
      assert.ok(top >= -1 && top < 600, `${title} is in sight after a press: ${top}`);
      const text = (await page.$eval(`#${operationId}`, (section) => section.innerText)).replaceAll("\u00a0", " ");
      for (const words of [title, summary.replaceAll("`", ""), ...parameters.map(({ name }) => name), ...Object.keys(responses)]) {
        assert.ok(text.includes(words), `${words} is missing in ${text}`);
      }
      await page.goto(`${http}/docs`);
    }
    assert.equal((await page.$$("section:not([id^=schema-])")).length, operations.length);
  },

  async "every link within the page leads somewhere"() {
    const astray = await page.$$eval('a[href^="#"]', (links) =>
      links.map((link) => link.getAttribute("href").slice(1)).filter((id) => !document.getElementById(id)));
    assert.deepEqual(astray, []);
  },

  async "nothing sticks out, and every word stands out from what is behind it, in either scheme and on a narrow screen"() {
    for (const [width, height] of [[1280, 900], [800, 1000], [390, 844]]) {
      for (const scheme of ["light", "dark"]) {
        await page.setViewport({ width, height });
        await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: scheme }]);
        for (const [name, hash] of [["top", ""], ["operation", `#${operations[0].operationId}`], ["problems", "#problems"], ["schemas", "#schemas"]]) {
          await page.goto("about:blank");
          await page.goto(`${http}/docs${hash}`);
          await page.screenshot({ path: `${pictures}/${name}-${width}-${scheme}.png` });
        }
        const out = await page.$$eval("body *", (nodes) =>
          nodes.filter((node) => node.getBoundingClientRect().right > document.documentElement.clientWidth).map((node) => node.innerText));
        assert.deepEqual(out, [], `on a screen of ${width}`);
        const bare = await page.$$eval("tbody td:not(:last-child):not(:empty)", (cells) => cells.filter((cell) =>
          !cell.closest("table").querySelector("thead").offsetHeight && getComputedStyle(cell, "::before").content === "none").map((cell) => cell.innerText));
        assert.deepEqual(bare, [], `every value has its heading in sight on a screen of ${width}`);
        assert.deepEqual(await page.evaluate(faint), [], scheme);
      }
    }
  },
};

/** Runs in the page: the kinds of text with less contrast than 4.5 to 1, which WCAG 2 asks for. */
function faint() {
  const canvas = Object.assign(document.createElement("canvas"), { width: 1, height: 1 }).getContext("2d", { willReadFrequently: true });
  // What is seen where these colours lie on each other, the lowest first.
  const seen = (colours) => {
    for (const colour of colours) {
      canvas.fillStyle = colour;
      canvas.fillRect(0, 0, 1, 1);
    }
    return [...canvas.getImageData(0, 0, 1, 1).data.slice(0, 3)];
  };
  const luminance = (rgb) => {
    const [r, g, b] = rgb.map((part) => part / 255).map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const sheet = matchMedia("(prefers-color-scheme: dark)").matches ? "rgb(18, 18, 18)" : "white";
  const found = new Set();
  for (const node of document.body.querySelectorAll("h1, h2, h3, p, li, a, b, th, td, code")) {
    const behind = [];
    for (let at = node; at; at = at.parentElement) behind.unshift(getComputedStyle(at).backgroundColor);
    const below = luminance(seen([sheet, ...behind]));
    const above = luminance(seen([sheet, ...behind, getComputedStyle(node).color]));
    const contrast = (Math.max(below, above) + 0.05) / (Math.min(below, above) + 0.05);
    if (contrast < 4.5) found.add(`${node.localName} ${node.className}: ${contrast.toFixed(1)}`);
  }
  return [...found];
}

let failed = 0;
for (const [name, scene] of Object.entries(scenes)) {
  try {
    await scene();
    assert.deepEqual(complaints, []);
    console.log(`ok ${name}`);
  } catch (error) {
    failed += 1;
    console.log(`FAILED ${name}: ${error.stack}\ncomplaints: ${complaints}`);
  }
  complaints.length = 0;
}
await browser.close();
process.exit(failed ? 1 : 0);
