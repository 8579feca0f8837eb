"use strict";
// What both kinds of page share. Names come from users: they reach the page as text
// (textContent) and Plotly through safe(), because Plotly reads tags in any text.
const DATA = JSON.parse(document.getElementById("data").textContent);
const STAR = "★";
// ColorBrewer's red and blue: most colour-blind people tell them apart; white is zero.
const DIVERGING = ["#053061", "#2166ac", "#4393c3", "#92c5de", "#d1e5f0", "#f7f7f7", "#fddbc7", "#f4a582", "#d6604d",
  "#b2182b", "#67001f"].map((colour, i) => [i / 10, colour]);
const MINUS = "−";
const CROWD = 8; // With more lines than this bands hide each other, and a legend stands beside.

const safe = (text) =>
  String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const short = (text, most = 28) =>
  safe(String(text).length > most ? String(text).slice(0, most - 1) + "…" : text);
const byId = (id) => document.getElementById(id);
const known = (x) => x !== null && x !== undefined;
const fmt = (x, digits = 3) =>
  known(x) ? Number(x.toPrecision(digits)).toString().replace("-", MINUS) : "–";

function element(kind, text, parent, className) {
  const made = document.createElement(kind);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  if (parent) parent.appendChild(made);
  return made;
}

// A labelled list to choose from; options are [value, words]. One option: no list.
function chooser(bar, words, options, value, onChange) {
  if (options.length < 2) return;
  const label = element("label", words + " ", bar);
  const list = element("select", undefined, label);
  options.forEach(([, text], place) => {
    element("option", text, list).value = place;
  });
  list.value = Math.max(0, options.findIndex(([v]) => v === value));
  list.addEventListener("change", () => onChange(options[list.value][0]));
}

// A slider over a few values, with a button that runs through them.
function slider(bar, words, values, onChange) {
  const label = element("label", words + " ", bar, "slider");
  const range = element("input", undefined, label);
  Object.assign(range, { type: "range", min: 0, max: values.length - 1, step: 1 });
  range.value = values.length - 1;
  const shown = element("output", values[values.length - 1], label);
  const show = () => {
    shown.textContent = String(values[range.value]).replace("-", MINUS);
    onChange(values[range.value]);
  };
  range.addEventListener("input", show);
  if (values.length < 2) {
    label.hidden = true;
    return;
  }
  const play = element("button", "▶", bar);
  play.type = "button";
  play.title = "run through";
  let timer = null;
  play.addEventListener("click", () => {
    if (timer) {
      clearInterval(timer);
      timer = null;
      play.textContent = "▶";
      return;
    }
    play.textContent = "❚❚";
    range.value = 0;
    show();
    timer = setInterval(() => {
      if (Number(range.value) >= values.length - 1) play.click();
      else {
        range.value = Number(range.value) + 1;
        show();
      }
    }, 450);
  });
}

const AXIS = { zeroline: false, gridcolor: "#e6e8eb", linecolor: "#9aa1a9", ticks: "outside",
  tickcolor: "#9aa1a9", automargin: true };

function draw(id, title, traces, layout = {}) {
  const place = byId(`plot-${id}`);
  if (!place) return;
  if (!traces.length) {
    Plotly.purge(place);
    place.replaceChildren();
    element("p", `${title}: nothing recorded.`, place, "note nothing");
    return;
  }
  if (place.querySelector(".nothing")) place.replaceChildren();
  const { xaxis = {}, yaxis = {}, ...rest } = layout;
  const named = traces.filter((t) => t.showlegend !== false && t.type !== "heatmap" && t.type !== "bar").length;
  const legend = named > CROWD ? { x: 1.01, y: 1, font: { size: 10 } } : { orientation: "h", x: 0, y: 1.01, yanchor: "bottom" };
  Plotly.react(
    place,
    traces,
    {
      title: { text: title, font: { size: 14 }, x: 0, xref: "paper", xanchor: "left", y: 0.98, yref: "container",
        yanchor: "top" },
      height: 400,
      margin: { l: 64, r: 16, t: 70, b: 48 },
      font: { family: "system-ui, sans-serif", size: 12, color: "#1b1f24" },
      paper_bgcolor: "#fff",
      plot_bgcolor: "#fff",
      hoverlabel: { namelength: -1 },
      legend,
      xaxis: { ...AXIS, ...xaxis },
      yaxis: { ...AXIS, ...yaxis },
      ...rest,
    },
    { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["lasso2d", "select2d"] },
  );
}

// Where some small panels stand: rows of at most `most`, each a share of the whole.
function panels(count, most, gap = 0.06, below = 0.1) {
  const columns = Math.min(count, most);
  const rows = Math.ceil(count / columns);
  return Array.from({ length: count }, (_, i) => {
    const [row, column] = [Math.floor(i / columns), i % columns];
    const [width, height] = [1 / columns, 1 / rows];
    return {
      x: [column * width + gap / 2, (column + 1) * width - gap / 2],
      y: [1 - (row + 1) * height + (below * height) / 2, 1 - row * height - below * height],
      rows,
    };
  });
}

const axisName = (letter, number) => `${letter}axis${number ? number + 1 : ""}`;
const axisOf = (letter, number) => `${letter}${number ? number + 1 : ""}`;

// What stands above a panel.
const heading = (text, number) => ({
  text, showarrow: false, x: 0.5, y: 1.01, xref: `${axisOf("x", number)} domain`, yref: `${axisOf("y", number)} domain`,
  yanchor: "bottom", font: { size: 12 },
});

const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1) + (text.endsWith(".") ? "" : ".");

function rgba(colour, share) {
  const parts = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
  return `rgba(${parts.join(",")},${share})`;
}

// Mean and SD over folds as a line in a band; a lone fold is a line.
function banded(x, [mean, spread], style, name, group = name) {
  const line = {
    x, y: mean, name: short(name), legendgroup: group, mode: x.length > 1 ? "lines+markers" : "markers",
    line: { color: style[0], dash: style[1], width: 2 }, marker: { color: style[0], size: 5 },
    hovertemplate: "epoch %{x}: %{y:.4g}",
  };
  const inside = x.map((_, i) => i).filter((i) => known(mean[i]) && known(spread[i]));
  if (inside.length < 2) return [line];
  const up = inside.map((i) => mean[i] + spread[i]);
  const down = inside.map((i) => mean[i] - spread[i]);
  const xs = inside.map((i) => x[i]);
  const band = {
    x: [...xs, ...xs.slice().reverse()], y: [...up, ...down.reverse()], fill: "toself",
    fillcolor: rgba(style[0], 0.13), line: { width: 0 }, hoverinfo: "skip", mode: "lines",
    showlegend: false, legendgroup: group,
  };
  return [band, line];
}

// Search and sort in every table of the page.
function liven(table) {
  const body = table.tBodies[0];
  const rows = [...body.rows];
  if (rows.length > 8) {
    const search = element("input");
    Object.assign(search, { type: "search", placeholder: "search", className: "search" });
    search.addEventListener("input", () => {
      const word = search.value.toLowerCase();
      for (const row of rows) row.hidden = !row.textContent.toLowerCase().includes(word);
    });
    table.parentElement.before(search);
  }
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    let turn = 1;
    head.addEventListener("click", () => {
      const key = (row) => {
        const cell = row.cells[column];
        if (cell.dataset.v === undefined) return cell.textContent;
        const value = Number(cell.dataset.v);
        return Number.isNaN(value) ? Infinity : value;
      };
      const sorted = rows.slice().sort((a, b) => {
        const [u, v] = [key(a), key(b)];
        return turn * (u < v ? -1 : u > v ? 1 : 0);
      });
      turn = -turn;
      body.append(...sorted);
    });
  });
}
document.querySelectorAll("table").forEach(liven);
