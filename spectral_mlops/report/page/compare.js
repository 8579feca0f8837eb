"use strict";
// The page of several runs: a run has one colour throughout, a group one panel.
function compare(data) {
  const runs = data.runs;
  const drawn = runs.filter((r) => r.layers);
  const apart = new Set(data.yardsticks).size > 1;
  const unique = (values) => [...new Set(values)];
  const layers = unique(drawn.flatMap((r) => r.layers));
  const groups = unique(drawn.flatMap((r) => r.groups));
  const quantities = ["gradient", "activation", "adjoint"].filter(
    (q) => runs.some((r) => known(r.final[`final/divergence_${q}`])) || drawn.some((r) => r.spectra.some((c) => c.quantity === q)));
  const sources = [["train", "training batches"], ["probe", "probe (held-out people)"]].filter(
    ([s]) => drawn.some((r) => r.spectra.some((c) => c.source === s)));
  const state = { quantity: quantities.includes("activation") ? "activation" : quantities[0], layer: layers[0],
    source: sources.length ? sources[0][0] : "train" };
  const title = (run) => `${run.number} ${short(run.name, 24)}`;
  const caution = "These runs have no common yardstick (another probe, grouping or relabelling): one symbol for those that do. "
    + "z of one symbol may not be compared with z of another.";
  const SYMBOLS = ["circle", "square", "diamond", "cross", "triangle-up", "star", "x", "hexagon"];
  const symbol = (run) => SYMBOLS[run.yardstick % SYMBOLS.length];

  function scatter() {
    const key = `final/divergence_${state.quantity}`;
    // Of runs of both tasks the first one's is shown: AUC and R² share no axis.
    const headline = runs[0].headline;
    const name = data.words[headline];
    const [y, words] = runs.some((r) => known(r.final[`final/probe_${headline}`])) ? [`final/probe_${headline}`, `${name} on the probe`] : [`final/${headline}`, `${name}, validation people`];
    const there = runs.filter((r) => known(r.final[key]) && known(r.final[y]));
    draw("scatter", `Divergence between groups on the probe (z, ${state.quantity}) and ${name}`, there.map((r) => ({
      x: [r.final[key]], y: [r.final[y]], mode: "markers+text", text: [r.number], textposition: "top center", name: title(r),
      marker: { color: r.style[0], size: 12, symbol: symbol(r) }, hovertemplate: `z %{x:.3g}, ${name} %{y:.3f}`,
    })), { xaxis: { title: { text: `z, ${state.quantity}` } }, yaxis: { title: { text: words } } });
    byId("scatter-note").textContent = (apart ? caution + " " : "")
      + "z says how detectable a difference is, not how large.";
  }

  function over() {
    const lines = [];
    for (const r of drawn) {
      const row = r.layers.indexOf(state.layer);
      const m = r.maps.find((one) => one.quantity === state.quantity);
      if (row < 0 || !m || !m.z[row].some(known)) continue;
      const there = m.epochs.map((_, i) => i).filter((i) => known(m.z[row][i]));
      lines.push({ x: there.map((i) => m.epochs[i]), y: there.map((i) => m.z[row][i]), name: title(r), mode: "lines+markers",
        line: { color: r.style[0], dash: r.style[1] }, marker: { color: r.style[0], size: 8, symbol: symbol(r) },
        hovertemplate: `epoch %{x}: z %{y:.3g}, ${short(m.group_a)} – ${short(m.group_b)}` });
    }
    draw("z", `Probe: z at ${short(state.layer)}, ${state.quantity}`, lines, {
      xaxis: { title: { text: "epoch" } }, yaxis: { title: { text: "z under relabelling" } } });
    const headline = `val/${runs[0].headline}`;
    const name = data.words[runs[0].headline];
    draw("auc", `${name} of validation people`, runs.filter((r) => r.curves[headline]).map((r) => ({
      x: r.curves[headline][0], y: r.curves[headline][1], name: title(r), hovertemplate: "epoch %{x}: %{y:.3f}",
      mode: r.curves[headline][0].length > 1 ? "lines" : "markers", line: { color: r.style[0], dash: r.style[1] },
      marker: { color: r.style[0] } })), { xaxis: { title: { text: "epoch" } }, yaxis: { title: { text: name } } });
    byId("over-note").textContent = apart ? caution : "";
  }

  // One panel a group, one line a run.
  function byGroup(id, words, cellsOf, make, axes) {
    const shown = groups.filter((g) => drawn.some((r) => cellsOf(r).some((c) => c.group === g)));
    const places = panels(Math.max(1, shown.length), 3, 0.06, 0.08);
    const layout = { annotations: [], height: 90 + 340 * places[0].rows };
    const traces = [];
    shown.forEach((group, i) => {
      layout[axisName("x", i)] = { ...AXIS, ...axes.x, domain: places[i].x, anchor: axisOf("y", i) };
      layout[axisName("y", i)] = { ...AXIS, ...axes.y, domain: places[i].y, anchor: axisOf("x", i), matches: i ? "y" : undefined };
      layout.annotations.push(heading(short(group), i));
      for (const r of drawn) {
        for (const c of cellsOf(r).filter((cell) => cell.group === group)) {
          const first = !traces.some((t) => t.legendgroup === r.number);
          traces.push({ ...make(c), name: title(r), legendgroup: r.number, showlegend: first, xaxis: axisOf("x", i),
            yaxis: axisOf("y", i), line: { color: r.style[0], dash: r.style[1], width: 2 }, marker: { color: r.style[0], size: 4 } });
        }
      }
    });
    draw(id, words, traces, layout);
  }

  function panelled() {
    const own = (cells) => (cells || []).filter((c) => c.layer === state.layer && c.quantity === state.quantity && c.source === state.source);
    const words = `${short(state.layer)}, ${state.quantity}, ${(sources.find(([s]) => s === state.source) || [0, ""])[1]}`;
    byGroup("ranks", `${sentence(data.summary).replace(".", "")}: ${words}`, (r) => own(r.trajectories), (c) => ({
      x: c.epochs, y: c.effective_rank[0], mode: c.epochs.length > 1 ? "lines+markers" : "markers",
      hovertemplate: "epoch %{x}: %{y:.4g}" }), { x: { title: { text: "epoch" } }, y: {} });
    byGroup("panels", `Singular values, scale mean: ${words}`, (r) => own(r.spectra), (c) => ({
      x: c.ranks, y: c.values[c.values.length - 1].map((v) => (v > 0 ? v : null)),
      mode: c.ranks.length > 1 ? "lines+markers" : "markers", hovertemplate: "σ<sub>%{x}</sub> = %{y:.4g}" }),
    { x: { title: { text: "position" } }, y: { type: "log", exponentformat: "power" } });
    byId("groups-note").textContent = "Ranks depend on how many people of a group are in a batch: compare a panel's runs only where batches are alike.";
    const without = drawn.filter((r) => !r.spectra.length).map((r) => r.number);
    const notes = [];
    if (drawn.length < runs.length) notes.push(`Drawn are the first ${drawn.length} of ${runs.length} runs; the table and the scatter have all.`);
    if (without.length) notes.push(`Without records in the folder, hence not drawn: ${without.join(", ")}.`);
    byId("spectra-note").textContent = notes.join(" ");
  }

  function all() {
    scatter();
    over();
    panelled();
  }

  const bar = byId("choose");
  const again = (name) => (value) => { state[name] = value; all(); };
  chooser(bar, "quantity", quantities.map((q) => [q, q]), state.quantity, again("quantity"));
  chooser(bar, "layer", layers.map((l) => [l, l]), state.layer, again("layer"));
  chooser(bar, "people", sources, state.source, again("source"));
  bar.hidden = !bar.children.length;
  all();
}
if (DATA.compare) compare(DATA.compare);
