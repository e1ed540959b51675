// Looks at the dashboard as a person would, in a headless Chromium: what is seen, what keys do, what follows from a press.
// Called by tests/browser/dashboard.rs with the admin port, the data port and a folder for pictures.

import assert from "node:assert/strict";
import chromium from "@sparticuz/chromium";
import puppeteer from "puppeteer-core";

const [admin, http, pictures] = process.argv.slice(2);
const browser = await puppeteer.launch({ executablePath: await chromium.executablePath(), headless: "shell", args: chromium.args });
const page = await browser.newPage();

// Whatever the page complains of, a refusal by its own policy included, and whatever it fetches from elsewhere.
const complaints = [];
page.on("console", (message) => message.type() !== "log" && complaints.push(message.text()));
page.on("pageerror", (error) => complaints.push(error.message));
page.on("request", (request) => !request.url().startsWith(admin) && complaints.push(`asked ${request.url()}`));

/** Waits for the text anywhere in sight. */
const see = (text) => page.waitForFunction((text) => document.body.innerText.includes(text), { timeout: 20_000 }, text);
const gone = (text) => page.waitForFunction((text) => !document.body.innerText.includes(text), { timeout: 20_000 }, text);
const heading = (text) => page.waitForFunction((text) => document.querySelector("h1")?.innerText === text, { timeout: 20_000 }, text);
const metric = async (line) => (await (await fetch(`${admin}/metrics`)).text()).includes(`${line}\n`);
const submit = async (client, queue, lines) => {
  const headers = { "Relay-Client": client, "Content-Type": "application/x-ndjson" };
  const answer = await fetch(`${http}/v1/queues/${queue}/batch`, { method: "POST", headers, body: lines.map((line) => JSON.stringify(line)).join("\n") });
  assert.equal(answer.status, 200, await answer.text());
};

const scenes = {
  async "what waits is shown as soon as it comes, without a reload"() {
    await page.goto(admin);
    await see("ready");
    await see("slow");
    for (let batch = 0; batch < 10; batch++) {
      await submit("shop", "slow", Array.from({ length: 1000 }, (_, at) => ({ key: `k-${batch * 1000 + at}`, text: "x" })));
    }
    await see("10,000");
  },

  async "a queue is paused and resumed with the keyboard alone"() {
    await page.focus('[aria-label="Pause slow"]');
    await page.keyboard.press("Enter");
    await page.waitForSelector('[aria-label="Resume slow"]');
    assert.ok(await metric('relay_queue_paused{queue="slow"} 1'));
    assert.equal(await page.evaluate(() => document.activeElement.innerText), "Resume", "the focus stays where it was");
    await page.keyboard.press("Space");
    await page.waitForSelector('[aria-label="Pause slow"]');
    assert.ok(await metric('relay_queue_paused{queue="slow"} 0'));
  },

  async "a press that lasts while numbers come is a press"() {
    const button = await page.$('[aria-label="Pause slow"]');
    const { x, y, width, height } = await button.boundingBox();
    await page.mouse.move(x + width / 2, y + height / 2);
    await page.mouse.down();
    // Two looks at the broker change the age of the oldest job in line.
    for (let look = 0; look < 2; look++) {
      const before = await page.evaluate(() => document.querySelector("main").innerText);
      await page.waitForFunction((before) => document.querySelector("main").innerText !== before, { timeout: 20_000 }, before);
    }
    assert.ok(await button.evaluate((element) => element.isConnected), "the button is the one that was pressed");
    await page.mouse.up();
    await page.waitForSelector('[aria-label="Resume slow"]');
    await page.click('[aria-label="Resume slow"]');
    await page.waitForSelector('[aria-label="Pause slow"]');
  },

  async "every section is two keys away"() {
    for (const [key, title] of [["c", "Clients"], ["w", "Workers"], ["j", "Jobs"], ["d", "Dead letters"], ["q", "Queues"]]) {
      await page.keyboard.press("g");
      await page.keyboard.press(key);
      await heading(title);
      assert.equal(await page.$eval("nav [aria-current]", (link) => link.innerText), title);
    }
  },

  async "a client's jobs come in pages"() {
    await page.goto(`${admin}/#/jobs?client=shop`);
    await see("Older ones");
    assert.equal((await page.$$("tbody tr")).length, 50);
    const first = await page.$eval("tbody a", (link) => link.innerText);
    await page.evaluate(() => [...document.querySelectorAll("a")].find((link) => link.innerText === "Older ones").click());
    await gone(first);
    assert.equal((await page.$$("tbody tr")).length, 50);
  },

  async "a job is found by its key, with its life and, if asked for, its payload"() {
    await submit("shop", "bad", [{ key: "order-7", text: "no such <b>thing</b>", meta: { tenant: "eu" } }]);
    await page.keyboard.press("/");
    await page.waitForFunction(() => document.activeElement?.id === "find");
    await page.keyboard.type("order-7");
    await page.keyboard.press("Tab");
    await page.keyboard.type("bad");
    await page.keyboard.press("Enter");
    await see("exit-code");
    await see("no such <b>thing</b> is known");
    for (const text of ["accepted", "attempt 1 of 10 started", "failed", "meta tenant", "order-7"]) await see(text);
    assert.ok(!(await page.evaluate(() => document.body.innerText)).includes("Payload of the dead letter"));
    await page.click("[name=payload]");
    await page.click("form.find button");
    await see("Payload of the dead letter");
    assert.equal(await page.$("main b"), null, "what a handler says is a text and no markup");
  },

  async "the page of a job that goes on shows its end by itself, and takes nothing that is typed"() {
    await submit("shop", "slow", [{ key: "last", text: "x" }]);
    await page.goto(`${admin}/#/job?key=last&queue=slow&client=shop`);
    await see("expires, unless it ended before");
    await page.type("#find", "another");
    const [job] = (await (await fetch(`${http}/v1/jobs?queue=slow&limit=1`, { headers: { "Relay-Client": "shop" } })).json()).jobs;
    const cancelled = await fetch(`${http}/v1/jobs/${job.job_id}/cancel`, { method: "POST", headers: { "Relay-Client": "shop" } });
    assert.equal(cancelled.status, 200, await cancelled.text());
    await page.waitForFunction(() => document.querySelector(".life .bad")?.innerText.startsWith("cancelled"), { timeout: 20_000 });
    assert.equal(await page.$eval("#find", (field) => field.value), "anotherlast");
  },

  async "a dead letter's job is started again and is gone from the list"() {
    await page.goto(`${admin}/#/dead`);
    // The page before has the same text.
    await page.waitForFunction(() => document.querySelector("h1")?.innerText === "Dead letters" && document.querySelector("tbody a"));
    await see("no such <b>thing</b> is known");
    const id = await page.$eval("tbody a", (link) => link.innerText);
    await page.click("tbody button");
    await see("is started again");
    await page.goto(`${admin}/#/job?id=${id}`);
    await see("Timeline of run 2");
  },

  async "nothing sticks out, in either scheme and on a narrow screen"() {
    for (const [width, height] of [[1280, 800], [390, 844]]) {
      for (const scheme of ["light", "dark"]) {
        await page.setViewport({ width, height });
        await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: scheme }]);
        for (const [name, hash] of [["queues", "#/"], ["clients", "#/clients"], ["workers", "#/workers"], ["jobs", "#/jobs?client=shop"],
          ["job", "#/job?key=order-7&queue=bad&payload=true"], ["dead", "#/dead"]]) {
          await page.goto(`${admin}/${hash}`);
          await page.waitForFunction(() => document.querySelector("h1") && document.querySelector("#state.ready"));
          if (name === "job") await see("Details");
          const wide = await page.evaluate(() => document.documentElement.scrollWidth);
          assert.ok(wide <= width, `${name} is ${wide} wide on a screen of ${width}`);
          assert.deepEqual(await page.evaluate(unseen), [], `${name} on a screen of ${width}`);
          await page.screenshot({ path: `${pictures}/${name}-${width}-${scheme}.png` });
        }
      }
    }
  },

  async "what is said of a press covers neither what was pressed nor the footer"() {
    for (const [width, height] of [[1280, 800], [390, 844], [390, 500]]) {
      await page.setViewport({ width, height });
      await page.goto(`${admin}/#/`);
      for (const [press, says] of [["Pause slow", "slow is paused"], ["Resume slow", "slow goes on"]]) {
        await page.waitForSelector(`[aria-label="${press}"]`);
        await page.click(`[aria-label="${press}"]`);
        await see(says);
        await page.evaluate(() => scrollTo(0, document.body.scrollHeight));
        if (press.startsWith("Pause")) await page.screenshot({ path: `${pictures}/said-${width}-${height}.png` });
        const covered = await page.evaluate(() => {
          const of = (selector) => document.querySelector(selector).getBoundingClientRect();
          const said = of("#said");
          return ["footer", '[aria-label$=" slow"]'].filter((other) => of(other).top < said.bottom && of(other).bottom > said.top);
        });
        assert.deepEqual(covered, [], `${press} on a screen of ${width} by ${height}`);
      }
    }
  },

  async "the page says so when the process goes away"() {
    console.log("stop");
    await see("connection lost");
  },
};

/** Runs in the page: buttons that are beside the screen, and values of a table whose heading is not in sight. */
function unseen() {
  const beside = [...document.querySelectorAll("main button")].filter((button) => {
    const { left, right } = button.getBoundingClientRect();
    return left < 0 || right > innerWidth;
  });
  const bare = [...document.querySelectorAll("tbody td")].filter((cell) => !cell.querySelector("button")
    && !cell.closest("table").querySelector("thead").offsetHeight && getComputedStyle(cell, "::before").content === "none");
  return [...beside, ...bare].map((element) => element.innerText);
}

let failed = 0;
for (const [name, scene] of Object.entries(scenes)) {
  const away = name.includes("goes away");
  try {
    await scene();
    if (!away) assert.deepEqual(complaints, []);
    console.log(`ok ${name}`);
  } catch (error) {
    failed += 1;
    console.log(`FAILED ${name}: ${error.stack}\nin sight: ${await page.evaluate(() => document.body.innerText).catch(() => "")}\ncomplaints: ${complaints}`);
  }
  complaints.length = 0;
}
await browser.close();
process.exit(failed ? 1 : 0);
