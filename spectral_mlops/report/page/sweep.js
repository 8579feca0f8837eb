"use strict";
// The page of a study: a trial is a point, blue if it is on the front.
function sweep(data) {
  const trials = data.trials;
  const z = (t) => t.z;
  const words = `z on the probe, ${data.quantity}`;
  const kinds = [
    ["on the front", (t) => t.front, "#0072B2", "circle"],
    ["finished", (t) => t.finished && t.allowed && !t.front, "#56B4E9", "circle-open"],
    ["not allowed", (t) => t.finished && !t.allowed, "#D55E00", "x"],
    ["stopped early", (t) => !t.finished, "#9aa1a9", "cross"],
  ];
  const points = (x, y, there = trials) => kinds.map(([name, test, color, symbol]) => {
    const some = there.filter((t) => test(t) && known(x(t)) && known(y(t)));
    return { x: some.map(x), y: some.map(y), name, text: some.map((t) => `trial ${t.trial}`), mode: "markers",
      marker: { color, symbol, size: 9 }, hovertemplate: "%{text}: %{x:.4g}, %{y:.4g}" };
  }).filter((trace) => trace.x.length);
  const level = (at, axis) => ({ type: "line", line: { color: "#9aa1a9", dash: "dot" }, ...(axis === "x"
    ? { x0: at, x1: at, y0: 0, y1: 1, yref: "paper" } : { y0: at, y1: at, x0: 0, x1: 1, xref: "paper" }) });

  function drive() {
    const settings = [...new Set(data.importances.map((row) => row.setting))].reverse();
    const colours = { [data.accuracy]: "#0072B2", "divergence": "#D55E00" };
    const methods = [...new Set(data.importances.map((row) => row.evaluator))];
    const targets = [...new Set(data.importances.map((row) => row.target))];
    const places = panels(Math.max(1, methods.length), 2, 0.12, 0.02);
    const layout = { annotations: [], barmode: "group", height: 150 + 50 * settings.length };
    const traces = [];
    methods.forEach((method, i) => {
      layout[axisName("x", i)] = { ...AXIS, domain: places[i].x, anchor: axisOf("y", i), title: { text: "importance" } };
      layout[axisName("y", i)] = { ...AXIS, domain: places[i].y, anchor: axisOf("x", i), showticklabels: !i,
        matches: i ? "y" : undefined };
      layout.annotations.push(heading(method, i));
      for (const target of targets) {
        const rows = data.importances.filter((row) => row.target === target && row.evaluator === method);
        const of = new Map(rows.map((row) => [row.setting, row.importance]));
        traces.push({ type: "bar", orientation: "h", y: settings.map((s) => short(s, 40)),
          x: settings.map((s) => (of.has(s) ? of.get(s) : null)), name: target, legendgroup: target, showlegend: !i,
          marker: { color: colours[target] }, xaxis: axisOf("x", i), yaxis: axisOf("y", i), hovertemplate: "%{y}: %{x:.3f}" });
      }
    });
    draw("drive", `Which settings drive ${data.accuracy}, and which divergence`, traces, layout);
  }

  function tradeoff() {
    const shapes = [level(data.detected, "x"), ...(known(data.confounds) ? [level(data.confounds, "y")] : [])];
    const front = trials.filter((t) => t.front).sort((a, b) => Math.max(0, a.z) - Math.max(0, b.z));
    const traces = points(z, (t) => t.accuracy);
    if (front.length > 1) traces.unshift({ x: front.map((t) => t.z), y: front.map((t) => t.accuracy), mode: "lines",
      line: { color: "#0072B2", width: 1, shape: "hv" }, showlegend: false, hoverinfo: "skip" });
    draw("tradeoff", `${data.accuracy} of validation people against divergence of the groups`, traces, {
      shapes, xaxis: { title: { text: words } }, yaxis: { title: { text: data.accuracy } } });
    byId("tradeoff-note").textContent = `On the front: no other trial allowed is as good in both; z below 0 counts as 0. Dotted: z = ${data.detected}`
      + (known(data.confounds) ? `, and the ${data.accuracy} that confounds alone reach.` : ".");
  }

  function slices(id, title, y, label) {
    const count = data.parameters.length;
    const places = panels(Math.max(1, count), 3, 0.08, 0.24);
    const layout = { annotations: [], height: 90 + 280 * places[0].rows };
    const traces = [];
    data.parameters.forEach((name, i) => {
      const x = (t) => t.values[i];
      const values = trials.map(x).filter(known);
      const numbers = values.every((v) => typeof v === "number");
      const log = numbers && Math.min(...values) > 0 && Math.max(...values) / Math.min(...values) > 20;
      layout[axisName("x", i)] = { ...AXIS, domain: places[i].x, anchor: axisOf("y", i), automargin: false, type: !numbers ? "category" : log ? "log" : "linear" };
      layout[axisName("y", i)] = { ...AXIS, domain: places[i].y, anchor: axisOf("x", i), automargin: false,
        showticklabels: i % 3 === 0, title: { text: i % 3 ? "" : label },
        matches: i ? "y" : undefined };
      layout.annotations.push(heading(short(name, 34), i));
      for (const trace of points((t) => (typeof x(t) === "string" ? short(x(t), 12) : x(t)), y)) {
        const first = !traces.some((t) => t.legendgroup === trace.name);
        traces.push({ ...trace, legendgroup: trace.name, showlegend: first, xaxis: axisOf("x", i), yaxis: axisOf("y", i) });
      }
    });
    draw(id, title, traces, layout);
  }

  // Settings of numbers that some trials have in other values than others.
  const numeric = data.parameters.map((name, i) => {
    const values = [...new Set(trials.map((t) => t.values[i]).filter(known))];
    return { name, i, ok: values.length > 1 && values.every((v) => typeof v === "number"),
      log: Math.min(...values) > 0 && Math.max(...values) / Math.min(...values) > 20,
      weight: Math.max(0, ...data.importances.filter((row) => row.setting === name).map((row) => row.importance)) };
  }).filter((s) => s.ok);
  const SIDE = 32; // cells of a surface
  const REACH = 0.1; // of a trial, as a share of an axis

  // The mean of trials near each place, weighted by nearness; blank where there is none.
  function surface(xs, ys, values) {
    const centres = Array.from({ length: SIDE }, (_, i) => i / (SIDE - 1));
    return centres.map((v) => centres.map((u) => {
      let [above, below] = [0, 0];
      values.forEach((value, k) => {
        const weight = Math.exp(-((xs[k] - u) ** 2 + (ys[k] - v) ** 2) / (2 * REACH ** 2));
        above += weight * value;
        below += weight;
      });
      return below < 0.1 ? null : above / below;
    }));
  }

  function contours(first, second) {
    const some = trials.filter((t) => t.finished && known(t.z) && known(t.values[first.i]) && known(t.values[second.i]));
    if (some.length < 6) {
      draw("contours", `${data.accuracy} and divergence over two settings`, []);
      return;
    }
    const scaled = ({ i, log }) => {
      const of = (t) => (log ? Math.log10(t.values[i]) : t.values[i]);
      const [low, high] = [Math.min(...some.map(of)), Math.max(...some.map(of))];
      const wide = high - low || 1;
      const back = (share) => (log ? 10 ** (low + share * wide) : low + share * wide);
      return { at: some.map((t) => (of(t) - low) / wide), grid: Array.from({ length: SIDE }, (_, k) => back(k / (SIDE - 1))) };
    };
    const [x, y] = [scaled(first), scaled(second)];
    const places = panels(2, 2, 0.14, 0.04);
    const layout = { annotations: [], height: 420 };
    const traces = [[data.accuracy, (t) => t.accuracy, "Viridis", {}], [words, z, DIVERGING, { zmid: 0 }]].flatMap(([name, value, colorscale, more], i) => {
      const axes = { xaxis: axisOf("x", i), yaxis: axisOf("y", i) };
      layout[axisName("x", i)] = { ...AXIS, domain: places[i].x, anchor: axisOf("y", i), type: first.log ? "log" : "linear",
        title: { text: short(first.name, 40) } };
      layout[axisName("y", i)] = { ...AXIS, domain: places[i].y, anchor: axisOf("x", i), type: second.log ? "log" : "linear",
        title: { text: i ? "" : short(second.name, 40) } };
      layout.annotations.push(heading(name, i));
      const values = some.map(value);
      return [
        { type: "contour", x: x.grid, y: y.grid, z: surface(x.at, y.at, values), colorscale, ...more, ...axes, ncontours: 12,
          line: { width: 0.5 }, colorbar: { x: places[i].x[1], xanchor: "left", xpad: 6, thickness: 10 }, hoverinfo: "skip", showlegend: false },
        { mode: "markers", x: some.map((t) => t.values[first.i]), y: some.map((t) => t.values[second.i]), ...axes, showlegend: false,
          text: some.map((t, k) => `trial ${t.trial}: ${fmt(values[k])}`), hovertemplate: "%{text}",
          marker: { color: "#fff", size: 6, line: { color: "#1b1f24", width: 1 } } },
      ];
    });
    draw("contours", `${data.accuracy} and divergence over two settings`, traces, layout);
  }

  function pairs() {
    const order = numeric.slice().sort((a, b) => b.weight - a.weight);
    const state = { x: order[0], y: order[1] };
    const show = (axis) => (value) => {
      state[axis] = value;
      contours(state.x, state.y);
    };
    if (numeric.length < 2) {
      draw("contours", `${data.accuracy} and divergence over two settings`, []);
      return;
    }
    const bar = byId("contours-bar");
    if (numeric.length > 2) for (const axis of ["x", "y"]) chooser(bar, axis === "x" ? "across" : "up", numeric.map((s) => [s, s.name]), state[axis], show(axis));
    contours(state.x, state.y);
    byId("contours-note").textContent = "Means of the finished trials near each place, weighted by nearness (circles: trials); blank where there are none. "
      + "The first pair is that of the largest importances. Other settings vary as well: a slope may be theirs.";
  }

  drive();
  tradeoff();
  pairs();
  slices("slices-accuracy", `${data.accuracy}, setting by setting`, (t) => t.accuracy, data.accuracy);
  slices("slices-z", `Divergence, setting by setting (${words})`, z, "z");
  byId("slices-note").textContent = "Settings of a branch are named after the choice they belong to.";
}
if (DATA.sweep) sweep(DATA.sweep);
