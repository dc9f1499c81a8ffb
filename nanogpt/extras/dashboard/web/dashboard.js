// The page of `nanogpt dashboard`: fetches and shows new data every second.
// Everything that comes from a run is inserted as text (textContent, append), never as HTML.

import { Chart, short, smooth } from "/chart.js";

const COLORS = ["#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#17becf", "#bcbd22", "#7f7f7f"];
const TITLES = {
  loss: "loss, nats per token (thin: training, thick: validation)", val_bpb: "validation, bits per byte",
  lr: "learning rate", grad_norm: "gradient norm",
  tokens_per_second: "tokens per second", mfu: "MFU", memory: "memory, bytes", skipped_steps: "skipped steps",
};
const PLACES = new Map([["train_loss", "loss"], ["val_loss", "loss"], ["val_perplexity", null]]); // null: not shown
const NOISY = ["train_loss", "grad_norm", "tokens_per_second", "mfu"];
const MOST_CHARTS = 30;

const $ = (id) => document.getElementById(id);
let runs = [], incidental = []; // as /api/runs lists them
let range; // of x: [low, high], or undefined for the full range
let sampleStep = Infinity; // the newest
let trouble = ""; // an error message
// by the name of a run, except for the charts
const hidden = new Set(), charts = new Map(), curves = new Map(), samples = new Map(), colors = new Map();

function color(name) { // in the order in which runs appear, and never changes
  if (!colors.has(name)) colors.set(name, COLORS[colors.size % COLORS.length]);
  return colors.get(name);
}
const shown = () => runs.filter((run) => !hidden.has(run.name));
const placeOf = (key) => (PLACES.has(key) ? PLACES.get(key) : key);
const rank = (place) => (Object.keys(TITLES).indexOf(place) + 1 || Infinity);

function make(name, text = "", properties = {}) {
  return Object.assign(document.createElement(name), { textContent: text, ...properties });
}

// A name with line breaks after its punctuation, elsewhere only if needed.
function breakable(tag, name, properties = {}) {
  const element = make(tag, "", properties);
  for (const part of name.split(/(?<=[/_=,-])/)) element.append(part, make("wbr"));
  return element;
}

function swatch(name) {
  const square = make("span", "", { className: "swatch" });
  square.style.background = color(name);
  return square;
}

async function ask(path, query = []) {
  const answer = await fetch(`${path}?${new URLSearchParams(query)}`);
  if (!answer.ok) throw new Error(answer.statusText);
  return answer.json();
}

// The names of all charts, the usual ones first, MOST_CHARTS at most.
function places() {
  const all = [...new Set(shown().flatMap((run) => run.metrics).map(placeOf))].filter((place) => place !== null);
  const left = all.sort((a, b) => rank(a) - rank(b) || 0).slice(0, MOST_CHARTS);
  $("cut").hidden = left.length === all.length;
  return left;
}

// Fetches the curves and samples of a run if its version or the view has changed.
async function fetchRun(run, wanted) {
  const points = Math.round(Math.min(2000, $("charts").clientWidth * 1.2)), x = $("x").value;
  const keys = run.metrics.filter((key) => wanted.includes(placeOf(key)));
  const view = JSON.stringify([run.version, x, points, range, keys]);
  if (curves.get(run.name)?.view === view) return;
  const query = [["run", run.name], ["x", x], ["points", points], ...keys.map((key) => ["key", key])];
  if (range) query.push(["low", range[0]], ["high", range[1]]);
  const lines = keys.length ? await ask("/api/curves", query) : {};
  if (!run.samples) samples.delete(run.name); // the run may have begun anew
  if (samples.get(run.name)?.version !== run.version && run.samples) {
    samples.set(run.name, { version: run.version, texts: await ask("/api/samples", [["run", run.name]]) });
  }
  curves.set(run.name, { view, lines });
}

// A run that fails, perhaps because it was just deleted, does not keep the others from being shown.
async function fetchNew() {
  const wanted = places();
  const failed = (await Promise.allSettled(shown().map((run) => fetchRun(run, wanted)))).find((each) => each.reason);
  trouble = failed ? `some runs could not be loaded: ${failed.reason.message}` : "";
}

function drawRuns() {
  $("runs").replaceChildren(...runs.map((run) => {
    const box = make("input", "", { type: "checkbox", checked: !hidden.has(run.name) });
    box.addEventListener("change", () => {
      hidden[box.checked ? "delete" : "add"](run.name);
      refresh();
    });
    const label = make("label");
    const best = run.best === null ? "" : `, best ${run.best.toFixed(4)} at ${short(run.best_step)}`;
    label.append(box, swatch(run.name), breakable("span", run.name), make("small", `${run.status}, step ${short(run.step)}${best}`));
    const item = make("li");
    item.append(label);
    return item;
  }));
}

function drawAlerts() {
  $("alerts").replaceChildren(...shown().flatMap((run) => run.alerts.map((alert) => {
    const item = make("li", "", { className: alert.kind });
    item.append(swatch(run.name), breakable("span", run.name), `: ${alert.kind}: ${alert.text}`);
    return item;
  })));
}

function chartOf(place) {
  if (!charts.has(place)) {
    const chart = new Chart(Object.hasOwn(TITLES, place) ? TITLES[place] : place, choose, (x) => charts.forEach((each) => each.draw(x)));
    charts.set(place, chart);
    const sorted = [...charts.entries()].sort((a, b) => rank(a[0]) - rank(b[0]) || 0);
    $("charts").replaceChildren(...sorted.map(([, each]) => each.figure));
  }
  return charts.get(place);
}

function drawCharts() {
  const lines = new Map();
  for (const run of shown()) {
    for (const [key, [xs, ys]] of Object.entries(curves.get(run.name)?.lines ?? {})) {
      const place = placeOf(key);
      if (key === "skipped_steps" && !ys.some((y) => y > 0)) continue;
      if (!lines.has(place)) lines.set(place, []);
      const line = { label: place === "loss" ? `${key === "val_loss" ? "validation" : "training"}, ${run.name}` : run.name, color: color(run.name), xs };
      const into = lines.get(place);
      if (!NOISY.includes(key)) into.push({ ...line, ys, width: key === "val_loss" ? 2.5 : 1.5 });
      else into.push({ ...line, label: "", ys, width: 1, alpha: 0.2 }, { ...line, ys: smooth(ys, +$("smooth").value), width: 1 });
    }
  }
  for (const [place, chart] of charts) chart.figure.hidden = !lines.has(place);
  for (const [place, each] of lines) chartOf(place).show(each, range, place === "loss" && $("log").checked);
}

function drawSamples() {
  const steps = [...new Set(shown().flatMap((run) => (samples.get(run.name)?.texts ?? []).map((each) => each.step)))];
  steps.sort((a, b) => a - b);
  const control = $("sample-step"), slider = control.querySelector("input");
  control.hidden = steps.length < 2;
  const place = sampleStep === Infinity ? steps.length - 1 : Math.max(0, steps.findLastIndex((step) => step <= sampleStep));
  slider.max = steps.length - 1;
  slider.value = place;
  slider.oninput = () => {
    sampleStep = +slider.value === steps.length - 1 ? Infinity : steps[slider.value];
    drawSamples();
  };
  control.querySelector("output").textContent = short(steps[place]);
  $("samples").replaceChildren(...shown().flatMap((run) => {
    const text = (samples.get(run.name)?.texts ?? []).findLast((each) => each.step <= steps[place]);
    if (!text) return [];
    const article = make("article");
    article.append(swatch(run.name), breakable("b", run.name), ` at step ${short(text.step)}`, make("pre", text.text));
    return [article];
  }));
}

function drawSettings() {
  const columns = shown(), names = [...new Set(columns.flatMap((run) => Object.keys(run.settings)))];
  const head = make("tr");
  head.append(make("th", "setting"), ...columns.map((run) => breakable("th", run.name)));
  const rows = names.map((name) => {
    const row = make("tr"), values = columns.map((run) => (Object.hasOwn(run.settings, name) ? run.settings[name] : "–"));
    row.append(make("td", name), ...values.map((value) => make("td", value)));
    row.className = new Set(values).size > 1 && !incidental.includes(name) ? "differs" : "";
    return row;
  });
  const some = columns.length > 1 && $("differences").checked ? rows.filter((row) => row.className) : rows;
  $("settings").replaceChildren(head, ...some);
}

function choose(low, high) {
  range = low === undefined ? undefined : [low, high];
  $("whole").hidden = !range;
  refresh();
}

async function refresh() {
  await fetchNew();
  drawAlerts();
  drawCharts();
  drawSamples();
  drawSettings();
}

// Runs every second, one request at a time; a hidden page requests nothing.
async function follow() {
  try {
    if (!document.hidden) {
      const before = JSON.stringify(runs);
      ({ runs, incidental } = await ask("/api/runs"));
      $("empty").hidden = runs.length > 0;
      $("content").hidden = !runs.length;
      if (trouble || JSON.stringify(runs) !== before) {
        drawRuns();
        await refresh();
      }
      $("state").textContent = trouble || (runs.length ? `${runs.length} run${runs.length > 1 ? "s" : ""}` : "no runs yet");
    }
  } catch (error) {
    $("state").textContent = `no connection: ${error.message}`;
  }
  setTimeout(follow, 1000);
}

$("x").addEventListener("change", () => choose());
$("whole").addEventListener("click", () => choose());
$("smooth").addEventListener("input", drawCharts);
$("log").addEventListener("change", drawCharts);
$("differences").addEventListener("change", drawSettings);
addEventListener("resize", refresh);
follow();
