// Draws the figures of a report when they come into view, and keeps them legible: light, dark, phone, print, keyboard.
//
// A figure is JSON in the page (plots.py says what is in it); plotly.js itself waits compressed in the page, so that
// text and tables are there before three megabytes of program have been read.
"use strict";

const UNITS = [["KiB", 2 ** 10], ["MiB", 2 ** 20], ["GiB", 2 ** 30]];
const NARROW = 600;
const LONGEST_NAME = 118; // of a stage that is written upright, in pixels
const byId = (id) => document.getElementById(id);
const figureOf = (holder) => JSON.parse(byId(`data-${holder.dataset.figure}`).textContent);
const drawn = new Set();
const changes = new Map(); // by id of a figure: a function that changes the figure before it is drawn
let library = null;

function plotly() {
  library ??= (async () => {
    const packed = Uint8Array.from(atob(byId("plotly").textContent), (letter) => letter.charCodeAt(0));
    const plain = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(plain).text();
    document.head.append(script);
    return window.Plotly;
  })();
  return library;
}

// "var:name" stands for the present value of the CSS variable --name.
function themed(value, styles) {
  if (typeof value === "string") {
    return value.startsWith("var:") ? styles.getPropertyValue(`--${value.slice(4)}`).trim() : value;
  }
  if (Array.isArray(value)) {
    return typeof value.at(-1) === "number" ? value : value.map((one) => themed(one, styles));
  }
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([key, one]) => [key, themed(one, styles)]));
}

// A size as size_text of wording.py writes it: three digits and the unit that suits it.
function sizeText(bytes) {
  const size = Math.abs(bytes);
  const sign = bytes < 0 ? "-" : "";
  if (size < 1024) return `${sign}${size} B`;
  for (const [unit, unitBytes] of UNITS) {
    for (const digits of [3, 2, 1, 0]) {
      const text = (size / unitBytes).toFixed(digits);
      if (Number(text) * 10 ** digits < 999.5) return `${sign}${text} ${unit}`;
    }
  }
  return `${sign}${Math.round(size / UNITS[2][1]).toLocaleString("en")} GiB`;
}

// Puts the sizes of a trace on its axis, in the unit of the figure, and their texts into what hovering shows.
function sized(trace, figure, isNarrow) {
  const axis = trace.meta?.size;
  // An account below zero (the books explain too much) has no height to stack; hovering shows its bytes.
  const least = trace.stackgroup ? 0 : -Infinity;
  const shown = (size) => (Array.isArray(size) ? size.map(shown) : size === null ? null : Math.max(least, size / figure.unit_bytes));
  const sign = (size) => (trace.meta?.signed && size > 0 ? "+" : "");
  const told = (size) => (Array.isArray(size) ? size.map(told) : size === null ? "" : `${sign(size)}${sizeText(size)}`);
  const filled = axis ? { ...trace, [axis]: trace.customdata.map(shown) } : trace;
  if (axis) filled[trace.type === "heatmap" ? "text" : "hovertext"] = trace.customdata.map(told);
  if (trace.meta?.lines) filled.text = trace.text.map(inLines);
  if (filled.stackgroup) filled.x ??= figure.data[0].x;
  // Cells that are too small for a number of 12 px show none; hovering still shows it.
  if (isNarrow && filled.type === "heatmap") return { ...filled, showscale: false, texttemplate: filled.x.length > 4 ? "" : filled.texttemplate };
  return filled;
}

function axis(given, colours) {
  return {
    gridcolor: colours.line, linecolor: colours.line, zerolinecolor: colours.line, automargin: true, ...given,
    tickfont: { size: 12 }, title: { font: { size: 13 }, ...given?.title },
  };
}

// In texts of a run <, > and & are escaped for plotly.js; this gives back the text itself.
function lettersOf(text) {
  const area = document.createElement("textarea");
  area.innerHTML = text;
  return area.value;
}

// In a text of a figure a new line is <br>; plotly.js escapes nothing that plots.py has not escaped before.
const inLines = (text) => text.replaceAll("\n", "<br>");

const ruler = document.createElement("canvas").getContext("2d");
function widthOf(text) {
  ruler.font = "12px system-ui, sans-serif";
  return ruler.measureText(text).width;
}

function shortened(text) {
  if (widthOf(text) <= LONGEST_NAME) return text;
  const letters = [...text];
  while (letters.length && widthOf(`${letters.join("")}...`) > LONGEST_NAME) letters.pop();
  return `${letters.join("")}...`;
}

// Names of stages have a lane of their own above the areas: across where the stage is wide enough, else upright where
// no other name is; the longest stages choose first. A stage without room is told by hovering.
function laned(notes, width, length) {
  const bands = notes.filter((note) => note.name?.startsWith("band "));
  if (bands.length === 0) return { notes, lane: 0 };
  const taken = [];
  let lane = 20;
  const share = (note) => Number(note.name.slice(5));
  const placed = new Map();
  for (const note of [...bands].sort((a, b) => share(b) - share(a))) {
    const text = lettersOf(note.text);
    const middle = (note.x / length) * width;
    const isAcross = share(note) * width > widthOf(text) + 6;
    const half = isAcross ? widthOf(text) / 2 + 3 : 8;
    const isFree = middle > 4 && taken.every(([from, to]) => middle + half <= from || middle - half >= to);
    placed.set(note, { visible: isFree, textangle: isAcross ? 0 : -90, text: isAcross ? note.text : escapedText(shortened(text)) });
    if (!isFree) continue;
    taken.push([middle - half, middle + half]);
    if (!isAcross) lane = Math.max(lane, Math.min(widthOf(text), LONGEST_NAME) + 10);
  }
  const moved = notes.map((note) => (placed.has(note) ? { ...note, ...placed.get(note), font: { ...note.font, size: 12 } } : note));
  return { notes: moved, lane };
}

function escapedText(text) {
  const span = document.createElement("span");
  span.textContent = text;
  return span.innerHTML;
}

// Black or white, whichever can be read on a colour: one of them always has a contrast of 4.5.
function textOn(colour) {
  const channels = /^#(..)(..)(..)$/.exec(colour)?.slice(1).map((two) => parseInt(two, 16) / 255);
  if (!channels) return undefined;
  const [red, green, blue] = channels.map((one) => (one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4));
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.179 ? "#000000" : "#ffffff";
}

function legible(trace) {
  const colours = trace.marker?.colors;
  if (!Array.isArray(colours)) return trace;
  const font = { size: 12, color: colours.map(textOn) };
  return { ...trace, textfont: font, insidetextfont: font, outsidetextfont: font, pathbar: { ...trace.pathbar, textfont: font } };
}

function layoutOf(figure, width, styles) {
  const colours = Object.fromEntries(["ink", "paper", "line"].map((n) => [n, styles.getPropertyValue(`--${n}`).trim()]));
  const given = themed(figure.layout, styles);
  const narrow = width < NARROW;
  const layout = {
    ...given,
    // On a phone the legend has a line for each entry.
    width, height: figure.height + (narrow ? 19 * figure.data.filter((trace) => trace.showlegend !== false).length : 0),
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: "system-ui, sans-serif", size: 12, color: colours.ink },
    hoverlabel: { bgcolor: colours.paper, bordercolor: colours.line, font: { size: 12, color: colours.ink } },
    margin: { l: narrow ? 44 : 60, r: 12, t: 24, b: 44, ...given.margin },
    // The legend is as far below the axis as the axis numbers need, whatever the height of the figure.
    legend: { orientation: "h", yref: "paper", y: -30 / (figure.height - 68), yanchor: "top", font: { size: 12 }, ...given.legend },
    dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
    xaxis: axis(given.xaxis, colours), yaxis: axis(given.yaxis, colours),
  };
  if (given.yaxis2) layout.yaxis2 = axis(given.yaxis2, colours);
  if (given.annotations) {
    const room = width - layout.margin.l - layout.margin.r;
    const { notes, lane } = laned(given.annotations, room, given.xaxis?.range?.[1] || 1);
    layout.annotations = notes.map((note) => ({ ...note, text: inLines(note.text) }));
    if (lane) {
      layout.margin.t = lane;
      layout.height += lane;
      // The bands reach up to their names, whatever height the legend leaves for the areas.
      const bands = layout.shapes.filter((shape) => shape.type === "rect");
      const upwards = { ysizemode: "pixel", yanchor: 1, y0: 0, y1: lane };
      layout.shapes = [...layout.shapes, ...bands.map((shape) => ({ ...shape, ...upwards }))];
    }
  }
  return layout;
}

function draw(holder, width) {
  const figure = figureOf(holder);
  changes.get(holder.dataset.figure)?.(figure);
  const styles = getComputedStyle(document.documentElement);
  const traces = figure.data.map((trace) => legible(themed(sized(trace, figure, holder.clientWidth < NARROW), styles)));
  // No buttons of plotly.js: no key reaches them, they lie on what is drawn, and one of them sends data away.
  const config = { displaylogo: false, displayModeBar: false };
  if (!drawn.has(holder)) addTools(holder, figure);
  drawn.add(holder);
  return window.Plotly.react(holder, traces, layoutOf(figure, width ?? holder.clientWidth, styles), config);
}

function tool(text, label, act) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = text;
  button.setAttribute("aria-label", `${text}: ${label}`);
  button.addEventListener("click", act);
  return button;
}

function addTools(holder, figure) {
  const label = holder.getAttribute("aria-label");
  const row = document.createElement("div");
  row.className = "tools";
  // Of a treemap and of a flame graph, the bar at the top zooms out.
  if (figure.layout.xaxis) row.append(tool("Reset zoom", label, () => draw(holder)));
  const save = { format: "png", filename: holder.dataset.figure, scale: 2 };
  row.append(tool("Save picture", label, () => window.Plotly.downloadImage(holder, { ...save, width: holder.clientWidth, height: holder.layout.height })));
  holder.before(row);
}

const isShown = (holder) => holder.offsetParent !== null;

async function drawSoon(holder) {
  await plotly();
  if (isShown(holder)) await draw(holder);
  holder.setAttribute("data-drawn", "");
}

function redraw(width) {
  for (const holder of drawn) if (isShown(holder)) draw(holder, width);
}

// ---- tabs: one stop of the Tab key, arrows move, as in the ARIA authoring practices ----

function choose(tab) {
  for (const other of tab.parentElement.children) {
    const isChosen = other === tab;
    other.setAttribute("aria-selected", String(isChosen));
    other.tabIndex = isChosen ? 0 : -1;
    byId(other.getAttribute("aria-controls")).hidden = !isChosen;
  }
  for (const holder of byId(tab.getAttribute("aria-controls")).querySelectorAll("[data-figure]")) drawSoon(holder);
}

function onKey(event) {
  const tabs = [...event.currentTarget.children];
  const at = tabs.indexOf(document.activeElement);
  const last = tabs.length - 1;
  const next = { ArrowRight: at === last ? 0 : at + 1, ArrowLeft: at === 0 ? last : at - 1, Home: 0, End: last }[event.key];
  if (next === undefined || at < 0) return;
  event.preventDefault();
  tabs[next].focus();
  choose(tabs[next]);
}

// ---- a figure's numbers as a table, made when somebody opens it ----

function cell(row, kind, text) {
  const made = document.createElement(kind);
  made.textContent = text;
  row.append(made);
  return made;
}

function tabulate(details) {
  const figure = JSON.parse(byId(`data-${details.dataset.tableOf}`).textContent);
  const shown = figure.data.filter((trace) => trace.customdata);
  const columns = shown.map((trace) => {
    const x = trace.x ?? figure.data[0].x;
    return new Map(x.map((at, index) => [at, trace.customdata[index]]));
  });
  const table = document.createElement("table");
  const head = table.createTHead().insertRow();
  cell(head, "th", "second");
  for (const trace of shown) cell(head, "th", lettersOf(trace.name));
  const body = table.createTBody();
  for (const at of [...new Set(columns.flatMap((column) => [...column.keys()]))].sort((a, b) => a - b)) {
    const row = body.insertRow();
    cell(row, "th", at.toFixed(3));
    for (const column of columns) {
      const size = column.get(at);
      const made = cell(row, "td", size === undefined ? "" : sizeText(size));
      if (size !== undefined) made.title = `${size.toLocaleString("en")} bytes`;
    }
  }
  details.querySelector(".scroll").replaceChildren(table);
}

// ---- beginning ----

const light = matchMedia("(prefers-color-scheme: dark)");
light.addEventListener("change", () => redraw());
let timer = 0;
addEventListener("resize", () => {
  clearTimeout(timer);
  timer = setTimeout(() => redraw(), 150);
});
addEventListener("beforeprint", () => {
  document.documentElement.classList.add("printing");
  if (!window.Plotly) return;
  for (const holder of document.querySelectorAll("[data-figure]")) if (isShown(holder)) draw(holder, PRINT_WIDTH);
});
addEventListener("afterprint", () => {
  document.documentElement.classList.remove("printing");
  redraw();
});
const PRINT_WIDTH = 690; // of A4 within its margins

for (const list of document.querySelectorAll("[role=tablist]")) {
  list.addEventListener("keydown", onKey);
  for (const tab of list.children) tab.addEventListener("click", () => choose(tab));
}
for (const details of document.querySelectorAll("[data-table-of]")) {
  details.addEventListener("toggle", () => tabulate(details), { once: true });
}
const watcher = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (!isIntersecting) continue;
    watcher.unobserve(target);
    drawSoon(target);
  }
}, { rootMargin: "300px" });
for (const holder of document.querySelectorAll("[data-figure]")) watcher.observe(holder);
// Figures further down are drawn when the browser has nothing else to do: printing must not wait for scrolling.
addEventListener("load", () => {
  const waiting = [...document.querySelectorAll("[data-figure]")];
  const next = async () => {
    const holder = waiting.find((one) => isShown(one) && !one.hasAttribute("data-drawn"));
    if (holder === undefined) return document.documentElement.setAttribute("data-ready", "");
    await drawSoon(holder);
    setTimeout(next, 0);
  };
  setTimeout(next, 200);
});
