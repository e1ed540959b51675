// The dashboard: asks /v1, shows what comes, changes only what somebody pressed. No library, no build step.

const TOKEN = "relay-admin-token";
let token = sessionStorage.getItem(TOKEN) ?? "";
let overview = null;
let lost = "connecting";

// ---- elements ----

/** An element with attributes and children; texts are texts, never markup. */
function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "on") for (const [event, handler] of Object.entries(value)) element.addEventListener(event, handler);
    else if (value === true) element.setAttribute(key, "");
    else if (value !== false && value != null) element.setAttribute(key, value);
  }
  element.append(...children.flat().filter((child) => child != null));
  return element;
}

const byId = (id) => document.getElementById(id);
const number = (value) => Number(value).toLocaleString("en");
const rate = (value) => (value === 0 ? "0" : value < 10 ? value.toFixed(1) : number(Math.round(value)));

function span(seconds) {
  if (seconds == null) return "–";
  for (const [unit, size] of [["d", 86400], ["h", 3600], ["m", 60]]) {
    if (seconds >= 2 * size) return `${Math.floor(seconds / size)} ${unit}`;
  }
  return seconds >= 10 ? `${Math.floor(seconds)} s` : `${seconds.toFixed(1)} s`;
}

/** A time in the reader's own zone, in the one order that everybody reads alike. */
function when(text) {
  if (!text) return "–";
  const at = new Date(text);
  const two = (part) => String(part).padStart(2, "0");
  const date = `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())}`;
  return make("time", { datetime: text, title: text }, `${date} ${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}`);
}

function size(bytes) {
  if (bytes == null) return "–";
  const at = Math.min(3, Math.floor(Math.log2(Math.max(1, bytes)) / 10));
  return `${at ? (bytes / 1024 ** at).toFixed(1) : bytes} ${["B", "KiB", "MiB", "GiB"][at]}`;
}

const TONES = { succeeded: "good", failed: "bad", exhausted: "bad", expired: "warn", cancelled: "warn", leased: "" };
const badge = (state) => make("span", { class: `badge ${TONES[state] ?? "faint"}` }, state);

/** How the numbers went, oldest first. */
function spark(history, name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const most = Math.max(1, ...history);
  const step = 100 / Math.max(1, history.length - 1);
  const points = history.map((value, at) => `${(at * step).toFixed(1)} ${(19 - (value / most) * 18).toFixed(1)}`);
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", points.length > 1 ? `M${points.join("L")}` : "M0 19L100 19");
  for (const [key, value] of [["viewBox", "0 0 100 20"], ["preserveAspectRatio", "none"], ["class", "spark"], ["role", "img"],
    ["aria-label", `${name}: ${history.at(-1) ?? 0} wait now, ${most === 1 ? Math.max(0, ...history) : most} at most lately`]]) {
    svg.setAttribute(key, value);
  }
  svg.append(path);
  return svg;
}

/** A table; `columns` are [title, class], the first cell of each row names it. Where it is narrow, each other shows its title. */
function table(columns, rows, empty) {
  if (rows.length === 0) return make("div", { class: "scroll" }, make("p", { class: "empty" }, empty));
  const cell = (content, at) => make(at === 0 ? "th" : "td", { class: columns[at][1], scope: at === 0 ? "row" : null, "data-of": at > 0 && columns[at][0] || null }, content);
  return make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": columns[0][0] },
    make("table", {},
      make("thead", {}, make("tr", {}, columns.map(([title, kind]) => make("th", { class: kind, scope: "col" }, title)))),
      make("tbody", {}, rows.map((row) => make("tr", {}, row.map(cell))))));
}

const facts = (pairs) => make("dl", { class: "facts" },
  pairs.filter(([, value]) => value != null && value !== "").flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]));

// ---- asking ----

class Refused extends Error {
  constructor(status, text) { super(text); this.status = status; }
}

async function ask(path, options = {}) {
  const headers = { ...(token && { Authorization: `Bearer ${token}` }), ...options.headers };
  const response = await fetch(path, { ...options, headers });
  if (response.ok) return response;
  const problem = await response.json().catch(() => ({}));
  throw new Refused(response.status, problem.detail ?? `the server answered ${response.status}`);
}

const read = async (path) => (await ask(path)).json();
const change = async (path) => (await ask(path, { method: "POST" })).json();
const query = (values) => new URLSearchParams(Object.entries(values).filter(([, value]) => value)).toString();

function say(text) {
  byId("said").textContent = text;
  clearTimeout(say.timer);
  say.timer = setTimeout(() => { byId("said").textContent = ""; }, 6000);
}

/** A button that changes something: it can't be pressed twice, and says how it went. */
function act(label, what, path, done, name = label) {
  return make("button", { type: "button", "aria-label": name, "data-key": path.replace("/resume", "/pause"), on: { async click({ currentTarget: button }) {
    // Not `disabled`, which would take the focus away.
    if (button.getAttribute("aria-disabled")) return;
    button.setAttribute("aria-disabled", "true");
    try {
      await change(path);
      say(what);
      await done?.(button);
    } catch (error) {
      say(error.message);
    }
    button.removeAttribute("aria-disabled");
  } } }, label);
}

// ---- views ----

const sum = (queues, of) => queues.reduce((all, queue) => all + of(queue), 0);

function queuesView() {
  const { queues, sampled } = overview;
  const tile = (name, value, kind = "") => make("div", { class: "tile" }, make("dt", {}, name), make("dd", { class: kind }, value));
  const failed = sum(queues, ({ settled }) => settled.failed + settled.exhausted);
  const rows = queues.map((queue) => [
    [make("a", { href: `#/dead?queue=${queue.name}`, title: "its dead letters" }, queue.name), queue.paused ? make("span", {}, " ", make("span", { class: "badge warn" }, "paused")) : null],
    number(queue.waiting), spark(queue.history, queue.name), span(queue.oldest_seconds), number(queue.leased), number(queue.parked),
    rate(queue.submitted_rate), rate(queue.settled_rate), number(queue.settled.failed + queue.settled.exhausted),
    queue.paused
      ? act("Resume", `${queue.name} goes on`, `/v1/queues/${queue.name}/resume`, null, `Resume ${queue.name}`)
      : act("Pause", `${queue.name} is paused: jobs come in and wait`, `/v1/queues/${queue.name}/pause`, null, `Pause ${queue.name}`),
  ]);
  return [
    make("h1", {}, "Queues"),
    ...overview.reasons.map(({ reason, detail }) => make("p", { class: "notice" }, make("strong", {}, `Not ready (${reason}). `), detail)),
    ...overview.refusing.map(({ what, detail }) => make("p", { class: "notice" }, make("strong", {}, `Refused (${what}). `), detail)),
    make("dl", { class: "tiles" },
      tile("waiting", number(sum(queues, (queue) => queue.waiting))), tile("with workers", number(sum(queues, (queue) => queue.leased))),
      tile("accepted a second", rate(sum(queues, (queue) => queue.submitted_rate))),
      tile("ended a second", rate(sum(queues, (queue) => queue.settled_rate))),
      tile("failed since start", number(failed), failed ? "bad" : "")),
    table([["queue", ""], ["waiting", "num"], ["last minutes", ""], ["oldest", "num"], ["leased", "num"], ["parked", "num"], ["in/s", "num"],
      ["out/s", "num"], ["failed", "num"], ["", "num"]], rows, sampled ? "There are no queues." : "Waiting for the first reading of the broker."),
  ];
}

function clientsView() {
  const rows = overview.clients.map((client) => [
    make("a", { href: `#/jobs?client=${client.name}` }, client.name), number(client.submitted), number(client.replayed),
    ...["succeeded", "failed", "exhausted", "expired", "cancelled"].map((outcome) => number(client.settled[outcome])),
  ]);
  return [
    make("h1", {}, "Clients"),
    make("p", { class: "faint" }, `What this process counted since it started; ${number(rows.length)} of ${number(overview.clients_in_all)} clients, the busiest first.`),
    table([["client", ""], ["submitted", "num"], ["replayed", "num"], ["succeeded", "num"], ["failed", "num"], ["exhausted", "num"], ["expired", "num"], ["cancelled", "num"]],
      rows, "No client has submitted anything to this process yet."),
  ];
}

function workersView() {
  const rows = overview.workers.map((worker) => [worker.id, worker.queues.join(", "), number(worker.leased), `${span(worker.asked_seconds)} ago`]);
  return [
    make("h1", {}, "Workers"),
    make("p", { class: "faint" }, "Workers that asked this process for jobs within three minutes. Workers that lease from NATS themselves have admin ports of their own."),
    table([["worker", ""], ["queues", "wrap"], ["jobs given", "num"], ["asked", "num"]], rows, "No worker has asked this process for jobs within three minutes."),
  ];
}

const field = (name, label, value, more = {}) => make("label", {}, label, make("input", { name, value: value ?? "", autocomplete: "off", spellcheck: "false", ...more }));
const clientNames = () => make("datalist", { id: "clients" }, (overview?.clients ?? []).map(({ name }) => make("option", { value: name })));

function finder(values) {
  return make("form", { class: "find", role: "search", on: { submit(event) {
    event.preventDefault();
    const { find, client, queue, payload } = Object.fromEntries(new FormData(event.target));
    const isId = /^[0-9a-f]{8}-[0-9a-f-]{27}$/i.test(find.trim());
    if (!find.trim() && client) location.hash = `#/jobs?${query({ client, queue })}`;
    else location.hash = `#/job?${query({ [isId ? "id" : "key"]: find.trim(), client, queue, payload: payload && "true" })}`;
  } } },
    field("find", "job id, or key with its queue", values.id ?? values.key, { class: "wide", id: "find" }),
    field("queue", "queue", values.queue), field("client", "client, if known", values.client, { list: "clients" }), clientNames(),
    make("label", { class: "check" }, make("input", { type: "checkbox", name: "payload", checked: values.payload === "true" }), "show payloads"),
    make("button", { class: "primary" }, "Find"));
}

async function jobsView(values) {
  const head = [make("h1", {}, "Jobs"), finder(values)];
  if (!values.client) return [...head, make("p", { class: "faint" }, "Find one job by its id or key, or name a client to see its newest ones.")];
  const page = await read(`/v1/jobs?${query(values)}`);
  const rows = page.jobs.map((job) => [
    make("a", { class: "mono", href: `#/job?${query({ id: job.job_id, client: job.client })}` }, job.job_id), job.key && make("code", {}, job.key), job.queue, badge(job.state),
    number(job.attempt), size(job.size), when(job.accepted_at),
  ]);
  const states = ["", "queued", "leased", "succeeded", "failed", "exhausted", "expired", "cancelled"];
  const choose = make("select", { on: { change: ({ target }) => { location.hash = `#/jobs?${query({ ...values, state: target.value, after: "" })}`; } } },
    states.map((state) => make("option", { value: state, selected: state === (values.state ?? "") }, state || "any state")));
  const begins = field("key_prefix", "key begins with", values.key_prefix);
  const narrow = { submit(event) {
    event.preventDefault();
    const { key_prefix } = Object.fromEntries(new FormData(event.target));
    location.hash = `#/jobs?${query({ ...values, key_prefix: key_prefix.trim(), after: "" })}`;
  } };
  return [...head, make("form", { class: "find", on: narrow }, make("label", {}, "state", choose), begins),
    table([["job", ""], ["key", "wrap"], ["queue", ""], ["state", ""], ["attempt", "num"], ["size", "num"], ["accepted", ""]], rows, "This client has no such job here."),
    make("p", {}, page.next ? make("a", { href: `#/jobs?${query({ ...values, after: page.next })}` }, "Older ones") : null)];
}

async function jobView(values) {
  jobView.open = false;
  const { job, trace, result, dead_letter: dead } = await read(`/v1/job?${query(values)}`);
  const step = (at, text, kind = "") => at && make("li", { class: kind }, make("strong", {}, text), make("br"), make("span", { class: "faint" }, when(at)));
  const ended = job.outcome != null;
  jobView.open = !ended;
  const preview = (title, shown) => shown && [make("h2", {}, title, shown.cut ? " (its begin)" : ""), make("pre", { tabindex: "0" }, shown.text || "empty")];
  return [
    make("h1", {}, "Job ", make("span", { class: "mono" }, job.job_id)), finder(values),
    make("div", { class: "columns" },
      make("section", { class: "card" }, make("h2", {}, "Timeline of run ", String(job.generation)),
        make("ol", { class: "life" },
          step(job.accepted_at, "accepted"),
          step(job.started_at, `attempt ${job.attempt}${job.max_attempts ? ` of ${job.max_attempts}` : ""} started`),
          step(job.next_attempt_at, "may be taken again", "to-come"),
          ended ? step(job.finished_at, job.outcome, TONES[job.outcome] === "good" ? "end" : "bad") : step(job.expires_at, "expires, unless it ended before", "to-come")),
        result?.reason ? [make("p", { class: "bad" }, make("strong", {}, result.reason)), make("pre", { tabindex: "0" }, result.detail)] : null,
        dead ? make("p", {}, act("Start again", "started again, as the next run", `/v1/dead/${job.job_id}/${dead.run_id}/redrive`, show)) : null),
      make("section", { class: "card" }, make("h2", {}, "Details"),
        facts([["state", badge(job.state)], ["client", job.client], ["queue", job.queue], ["key", job.key && make("code", {}, job.key)], ["run", make("code", {}, job.run_id)],
          ["payload", job.content_type && `${job.content_type}, ${size(job.size)}`],
          ["result", result && (result.erased ? "erased" : `${result.content_type}, ${size(result.size)}`)],
          ...Object.entries(job.meta).map(([name, value]) => [`meta ${name}`, value]),
          ...Object.entries(trace).map(([name, value]) => [name, make("code", {}, value)])]),
        preview("Result", result?.preview), preview("Payload of the dead letter", dead?.preview))),
  ];
}

async function deadView(values) {
  const page = await read(`/v1/dead?${query(values)}`);
  const gone = (button) => button.closest("tr").remove();
  const rows = page.letters.map((letter) => [
    [make("a", { class: "mono", href: `#/job?${query({ id: letter.job_id, client: letter.client })}` }, letter.job_id), letter.key && make("div", { class: "key" }, make("code", {}, letter.key))], letter.client, letter.queue,
    [badge(letter.outcome), make("div", { class: "faint" }, `at\u00a0attempt\u00a0${letter.attempt}`)],
    [make("strong", {}, letter.failure.reason), make("div", { class: "faint" }, letter.failure.detail.slice(0, 300))], when(letter.at),
    act("Start again", `${letter.job_id} is started again, as its next run`, `/v1/dead/${letter.job_id}/${letter.run_id}/redrive`, gone, `Start ${letter.job_id} again`),
  ]);
  const queues = ["", ...(overview?.queues ?? []).map(({ name }) => name)];
  const choose = make("select", { on: { change: ({ target }) => { location.hash = `#/dead?${query({ queue: target.value })}`; } } },
    queues.map((name) => make("option", { value: name, selected: name === (values.queue ?? "") }, name || "all queues")));
  return [
    make("h1", {}, "Dead letters"),
    make("form", { class: "find" }, make("label", {}, "queue", choose)),
    table([["job, key", ""], ["client", ""], ["queue", ""], ["outcome", ""], ["why", "wrap"], ["when", ""], ["", "num"]], rows, "There are no dead letters: nothing was rejected or given up."),
    make("p", {}, page.next ? make("a", { href: `#/dead?${query({ ...values, before: page.next })}` }, "Older ones") : null),
  ];
}

function tokenView(wrong) {
  return [make("h1", {}, "This port asks for a token"),
    make("form", { class: "find", on: { submit(event) {
      event.preventDefault();
      token = new FormData(event.target).get("token").trim();
      sessionStorage.setItem(TOKEN, token);
      follow.again?.();
      show();
    } } }, field("token", "admin token", "", { type: "password", class: "wide", id: "token" }), make("button", { class: "primary" }, "Open")),
    wrong ? make("p", { class: "bad" }, wrong) : null];
}

// ---- which view ----

const LIVE = { "/": queuesView, "/clients": clientsView, "/workers": workersView };
const ASKED = { "/jobs": jobsView, "/job": jobView, "/dead": deadView };
const place = () => {
  const [path, text = ""] = location.hash.slice(1).split("?");
  return { path: path || "/", values: Object.fromEntries(new URLSearchParams(text)) };
};
let shown = 0;

/** Makes the children of `parent` like `nodes`. An element that looks the same stays the element that it is, so that a press
 *  that began on a button ends on that button. An element that listens is replaced whole where it differs, the rest is entered. */
function merge(parent, nodes) {
  const before = [...parent.childNodes];
  before.slice(nodes.length).forEach((node) => node.remove());
  nodes.forEach((node, at) => {
    const old = before[at];
    if (!old) parent.append(node);
    else if (old.isEqualNode(node)) return;
    else if (old.nodeName !== node.nodeName || !old.attributes || old.matches("button, form, select, svg")) old.replaceWith(node);
    else {
      for (const { name } of [...old.attributes]) if (!node.hasAttribute(name)) old.removeAttribute(name);
      for (const { name, value } of node.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
      merge(old, [...node.childNodes]);
    }
  });
}

/** Puts a view in place of the one before; a live one that comes again keeps its elements, and a button its focus. */
function put(nodes, live = null) {
  const main = byId("main");
  const focused = main.contains(document.activeElement) && document.activeElement;
  nodes = nodes.flat().filter(Boolean);
  if (live && put.live === live) merge(main, nodes); else main.replaceChildren(...nodes);
  put.live = live;
  if (!focused || focused.isConnected) return;
  const same = (element) => (focused.dataset.key ? element.dataset.key === focused.dataset.key : focused.href ? element.href === focused.href : element.className === focused.className);
  [...main.querySelectorAll(focused.localName)].find(same)?.focus({ preventScroll: true });
}

async function show() {
  const { path, values } = place();
  const mine = ++shown;
  for (const link of document.querySelectorAll("nav a")) {
    const here = link.hash.slice(1) === (path === "/job" ? "/jobs" : path);
    if (here) link.setAttribute("aria-current", "page"); else link.removeAttribute("aria-current");
  }
  try {
    if (LIVE[path]) return overview ? put(LIVE[path](), path) : put([make("p", { class: "empty" }, lost)]);
    const nodes = await (ASKED[path] ?? (async () => [make("h1", {}, "Not found")]))(values);
    if (mine === shown) put(nodes, path === "/job" ? location.hash : null);
  } catch (error) {
    if (mine !== shown) return;
    if (error.status === 401) return put(tokenView(token ? error.message : ""));
    put([make("h1", {}, "Error"), path === "/job" ? finder(values) : null, make("p", { class: "notice" }, error.message)]);
  }
}

/** What is always in sight: whether the process is ready, what it refuses, and how old that is. */
function head() {
  const state = byId("state");
  state.className = lost ? "lost" : !overview.ready ? "unready" : overview.refusing.length ? "refusing" : "ready";
  const refused = overview?.refusing.map(({ what }) => what).join(", ");
  byId("state-text").textContent = lost || (overview.ready ? (refused ? `ready, refuses: ${refused}` : "ready") : `not ready: ${overview.reasons.map(({ reason }) => reason).join(", ")}`);
  if (overview) byId("about").textContent = `relay ${overview.version}, ${overview.adapter ?? "no broker"}${overview.durability ? ` (${overview.durability})` : ""}, up ${span(overview.uptime_seconds)}`;
}

/** Follows what the process tells, and comes back when it was away. */
async function follow() {
  for (let pause = 500; ; pause = Math.min(2 * pause, 10000)) {
    try {
      const reader = (await ask("/v1/live")).body.pipeThrough(new TextDecoderStream()).getReader();
      let text = "";
      for (let { done, value } = await reader.read(); !done; { done, value } = await reader.read()) {
        text += value;
        const events = text.split("\n\n");
        text = events.pop();
        if (events.length === 0) continue;
        [overview, lost, pause] = [JSON.parse(events.at(-1).slice("data: ".length)), "", 500];
        head();
        // What somebody is about to copy or has just pressed is not taken away.
        const { path } = place();
        const live = LIVE[path] || (path === "/job" && jobView.open);
        if (live && getSelection().isCollapsed && !document.querySelector("main [aria-disabled]")) show();
      }
      lost = "the connection ended";
    } catch (error) {
      lost = error.status === 401 ? "a token is asked for" : "connection lost";
      if (error.status === 401 && !document.querySelector("#token")) { head(); put(tokenView(token ? error.message : "")); byId("token").focus(); }
    }
    head();
    await new Promise((resolve) => { follow.again = resolve; setTimeout(resolve, pause * (0.5 + Math.random() / 2)); });
  }
}

// ---- keys ----

const GO = { q: "#/", c: "#/clients", w: "#/workers", j: "#/jobs", d: "#/dead" };
let going = false;
addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, select, textarea")) return;
  if (event.key === "/") {
    event.preventDefault();
    if (!byId("find")) { location.hash = "#/jobs"; setTimeout(() => byId("find")?.focus(), 50); } else byId("find").focus();
  } else if (going && GO[event.key]) location.hash = GO[event.key];
  going = event.key === "g";
});
addEventListener("hashchange", () => { show(); byId("main").focus({ preventScroll: true }); scrollTo(0, 0); });

show();
follow();
