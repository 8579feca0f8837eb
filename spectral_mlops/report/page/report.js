"use strict";
// The page of one run.
function report(data) {
  const sources = [["train", "training batches"], ["probe", "probe (held-out people)"]].filter(
    ([source]) => data.spectra.some((c) => c.source === source));
  const groupings = Object.keys(data.groupings);
  const state = {
    grouping: data.primary, pair: 0, layer: data.layers[0],
    quantity: data.quantities.includes(data.quantity) ? data.quantity : data.quantities[0],
    source: sources.length ? sources[0][0] : "train", epoch: null, summary: "effective_rank",
  };
  const words = Object.fromEntries(sources);
  const where = () => `${short(state.layer)}, ${state.quantity}, ${words[state.source] || ""}`;
  const style = (group) =>
    group === data.pooled ? [data.pooledColour, "dot"]
      : (data.styles[state.grouping] || {})[group] || [data.pooledColour, "solid"];
  const label = (group) => (group === data.pooled ? "everyone" : group);

  const chosen = (cells) => cells.filter((c) => c.source === state.source
    && c.layer === state.layer && c.quantity === state.quantity
    && (c.grouping === state.grouping || c.group === data.pooled))
    .sort((a, b) => order(a.group) - order(b.group));
  const order = (group) => (data.groupings[state.grouping] || []).indexOf(group);
  const pairs = () => {
    const found = new Map();
    for (const m of data.maps) {
      if (m.grouping === state.grouping) found.set(JSON.stringify([m.group_a, m.group_b]), m);
    }
    return [...found.values()];
  };
  const mapOf = (source) => {
    const pair = pairs()[state.pair];
    return pair && data.maps.find((m) => m.source === source && m.quantity === state.quantity
      && m.grouping === state.grouping && m.group_a === pair.group_a && m.group_b === pair.group_b);
  };

  function bars() {
    const bar = byId("choose");
    bar.replaceChildren();
    const again = (name) => (value) => {
      state[name] = value;
      if (name === "grouping") { state.pair = 0; bars(); }
      all();
    };
    chooser(bar, "grouping", groupings.map((g) => [g, g]), state.grouping, again("grouping"));
    chooser(bar, "pair", pairs().map((m, i) => [i, `${m.group_a} – ${m.group_b}`]), state.pair, again("pair"));
    chooser(bar, "quantity", data.quantities.map((q) => [q, q]), state.quantity, again("quantity"));
    chooser(bar, "layer", data.layers.map((l) => [l, l]), state.layer, again("layer"));
    chooser(bar, "people", sources, state.source, again("source"));
    bar.hidden = !bar.children.length;
  }

  const epochs = [...new Set(data.spectra.flatMap((c) => c.epochs))].sort((a, b) => a - b);
  const at = (cell) => {
    // The chosen epoch, or the last measured before it: the probe is passed now and then.
    let found = 0;
    cell.epochs.forEach((e, i) => { if (state.epoch === null || e <= state.epoch) found = i; });
    return found;
  };

  function spectra() {
    const cells = chosen(data.spectra);
    const all = cells.flatMap((c) => c.values.flat()).filter((v) => v > 0);
    const top = Math.log10(Math.max(...all));
    const bottom = Math.max(Math.log10(Math.min(...all)), top - 5);
    const traces = cells.map((c) => ({
      x: c.ranks, y: c.values[at(c)].map((v) => (v > 0 ? v : null)), name: short(label(c.group)),
      mode: c.ranks.length > 1 ? "lines+markers" : "markers",
      line: { color: style(c.group)[0], dash: style(c.group)[1], width: 2 },
      marker: { color: style(c.group)[0], size: 4 }, hovertemplate: "σ<sub>%{x}</sub> = %{y:.4g}",
    }));
    const epoch = cells.length ? cells[0].epochs[at(cells[0])] : "";
    draw("spectra", `Singular values: ${where()}, epoch ${fmt(epoch)}`, traces, {
      xaxis: { title: { text: "position" } },
      yaxis: { title: { text: "singular value, scale mean" }, type: "log", range: [bottom - 0.1, top + 0.1],
        exponentformat: "power" },
    });
    ridge(cells, bottom, top);
  }

  function ridge(cells, bottom, top) {
    const epochs = [...new Set(cells.flatMap((c) => c.epochs))].sort((a, b) => a - b);
    const most = 12;
    const step = Math.max(1, Math.ceil(epochs.length / most));
    const shown = epochs.filter((_, i) => (epochs.length - 1 - i) % step === 0);
    const traces = [];
    const low = Math.max(bottom, top - 3);
    const height = (v) => (v > 0 ? 0.94 * Math.max(0, (Math.log10(v) - low) / (top - low || 1)) : 0);
    shown.forEach((epoch, row) => {
      const base = shown.length - 1 - row;
      for (const c of cells) {
        if (c.group === data.pooled || !c.epochs.includes(epoch)) continue;
        const values = c.values[c.epochs.indexOf(epoch)];
        const [colour, dash] = style(c.group);
        const last = c.ranks.length - 1;
        traces.push({
          x: [c.ranks[0], ...c.ranks, c.ranks[last]],
          y: [base, ...values.map((v) => base + height(v)), base], fill: "toself",
          customdata: [null, ...values, null], name: short(c.group), legendgroup: c.group,
          showlegend: row === 0, mode: "lines", line: { color: colour, dash, width: 1.4 },
          fillcolor: rgba(colour, cells.length > CROWD ? 0 : 0.1), hoveron: "points",
          hovertemplate: `epoch ${epoch}, σ<sub>%{x}</sub> = %{customdata:.3g}`,
        });
      }
    });
    draw("ridge", `Over training, first epoch on top: log height, three decades at most`, traces, {
      xaxis: { title: { text: "position" } },
      yaxis: { title: { text: "epoch" }, tickvals: shown.map((_, i) => shown.length - 1 - i),
        ticktext: shown.map((e) => fmt(e)), showgrid: false },
    });
  }

  function trajectories() {
    const cells = chosen(data.trajectories);
    const sizes = cells.map((c) => `${label(c.group)}: ${fmt(c.samples)}`).join(", ");
    for (const [id, name] of [["rank", state.summary], ["norm", "frobenius_norm"]]) {
      const there = cells.filter((c) => c[name]);
      const traces = there.flatMap((c) => banded(c.epochs, there.length > CROWD ? [c[name][0], []] : c[name],
        style(c.group), label(c.group)));
      draw(id, `${data.summaries[name]}: ${where()}`, traces, {
        xaxis: { title: { text: "epoch" } }, yaxis: { title: { text: data.summaries[name] } },
      });
    }
    const trends = [trend("rank-apart", "effective_rank_difference", "Effective ranks apart", "|difference of effective ranks|"),
      trend("norm-apart", "unbiased_norm_ratio", "Norms apart (unbiased; gradients alone)", "larger norm / smaller norm")];
    apart();
    const note = byId("trajectories-note");
    if (note) {
      const told = data.trends.length
        ? "what relabelling gives for them stands in the two plots of how far they are apart, always on the probe "
          + `(${STAR}: p max ≤ ${data.level}, adjusted over epochs and layers; exploratory), ` : "no null is recorded for them, ";
      note.textContent = `Bands of ranks and norms per group: SD over folds, which is variability and no evidence; ${told}`
        + `and they depend on how many people of a group there are (on average ${sizes}). `
        + trends.flat().map(sentence).join(" ") + " "
        + (mapOf(state.source) || { reasons: [] }).reasons.filter((r) => r.startsWith("descriptive")).map(sentence).join(" ");
    }
  }

  // Two groups' ranks or norms apart on the probe, in the band of the same relabellings.
  function trend(id, statistic, title, axis) {
    const pair = pairs()[state.pair];
    const c = pair && state.grouping === data.primary && data.trends.find((t) => t.statistic === statistic
      && t.quantity === state.quantity && t.layer === state.layer && t.group_a === pair.group_a && t.group_b === pair.group_b);
    const whole = `${title}: ${short(state.layer)}, ${state.quantity}, probe`;
    if (!c) {
      draw(id, whole, []);
      return [];
    }
    const traces = [];
    const inside = c.epochs.map((_, i) => i).filter((i) => known(c.null_05[i]) && known(c.null_95[i]));
    const of = (field) => inside.map((i) => c[field][i]);
    const xs = inside.map((i) => c.epochs[i]);
    if (inside.length === 1) {
      traces.push({ x: [xs[0], xs[0]], y: [c.null_05[inside[0]], c.null_95[inside[0]]], mode: "lines", hoverinfo: "skip",
        line: { color: "rgba(90,98,110,0.35)", width: 14 }, name: "relabelled: 5 to 95 %" });
    } else if (inside.length) {
      traces.push({ x: [...xs, ...xs.slice().reverse()], y: [...of("null_95"), ...of("null_05").reverse()], fill: "toself",
        mode: "lines", line: { width: 0 }, fillcolor: "rgba(90,98,110,0.18)", name: "relabelled: 5 to 95 %", hoverinfo: "skip" },
      { x: xs, y: of("null_mean"), mode: "lines", line: { color: "#5a626e", width: 1, dash: "dash" },
        name: "relabelled: mean", hovertemplate: "%{y:.4g}" });
    }
    const hover = c.epochs.map((e, i) => `epoch ${e}: ${fmt(c.value[i])}`
      + (known(c.z[i]) ? `, z ${fmt(c.z[i])}` : "") + (known(c.p_max[i]) ? `, p max ${fmt(c.p_max[i])}` : ""));
    traces.push({ x: c.epochs, y: c.value, text: hover, hovertemplate: "%{text}<extra></extra>", mode: "lines+markers",
      line: { color: "#1b1f24", width: 2 }, marker: { color: "#1b1f24", size: 5 },
      name: `${short(c.group_a)} – ${short(c.group_b)}` });
    traces.push(...stars(c.epochs, c.value, c.p_max));
    draw(id, whole, traces, { xaxis: { title: { text: "epoch" } }, yaxis: { title: { text: axis } } });
    return c.reasons;
  }

  // Stars on what is significant after adjusting.
  function stars(x, y, p) {
    const marks = x.map((_, i) => i).filter((i) => known(y[i]) && known(p[i]) && p[i] <= data.level);
    return marks.length ? [{ x: marks.map((i) => x[i]), y: marks.map((i) => y[i]), mode: "markers",
      marker: { symbol: "star", size: 14, color: "#D55E00", line: { color: "#fff", width: 1 } },
      name: `p max ≤ ${data.level}`, hoverinfo: "skip" }] : [];
  }

  const rooted = (m) => m.divergence.startsWith("js");
  const shownValue = (m, v) => (known(v) ? (rooted(m) ? Math.sqrt(Math.max(0, v)) : v) : null);
  const named = (m) => (rooted(m) ? `√${m.divergence}` : m.divergence);

  function apart() {
    const m = mapOf(state.source);
    const row = data.layers.indexOf(state.layer);
    const title = `Distance of the groups: ${where()}`;
    if (!m || !m.value[row].some(known)) {
      draw("apart", title, []);
      return;
    }
    const traces = [];
    const withNull = m.epochs.map((_, i) => i).filter((i) => known(m.null_mean[row][i]) && known(m.null_sd[row][i]));
    // Where the groups are the target, relabelling tells of their sizes alone.
    const descriptive = m.reasons.some((r) => r.startsWith("descriptive"));
    const chance = descriptive ? "groups of these sizes by chance, no test" : "relabelled";
    if (withNull.length) {
      const edge = (sign) => withNull.map((i) => shownValue(m, m.null_mean[row][i] + sign * 2 * m.null_sd[row][i]));
      const xs = withNull.map((i) => m.epochs[i]);
      traces.push({
        x: [...xs, ...xs.slice().reverse()], y: [...edge(1), ...edge(-1).reverse()], fill: "toself", mode: "lines",
        line: { width: 0 }, fillcolor: "rgba(90,98,110,0.18)", name: `${chance}: mean ± 2 SD (one fold)`, hoverinfo: "skip",
      }, { x: xs, y: withNull.map((i) => shownValue(m, m.null_mean[row][i])), mode: "lines",
        line: { color: "#5a626e", width: 1, dash: "dash" }, name: `${chance}: mean`, hovertemplate: "%{y:.4g}" });
    }
    const y = m.value[row].map((v) => shownValue(m, v));
    const hover = m.epochs.map((e, i) => `epoch ${e}: ${fmt(y[i])}`
      + (known(m.z[row][i]) ? `, z ${fmt(m.z[row][i])}` : "")
      + (known(m.p_max[row][i]) ? `, p max ${fmt(m.p_max[row][i])}` : ""));
    traces.push({ x: m.epochs, y, text: hover, hovertemplate: "%{text}<extra></extra>", mode: "lines+markers",
      line: { color: "#1b1f24", width: 2 }, marker: { color: "#1b1f24", size: 5 },
      name: `${short(m.group_a)} – ${short(m.group_b)}` });
    traces.push(...stars(m.epochs, y, m.p_max[row]));
    const inCluster = m.epochs.map((_, i) => i).filter((i) => known(m.cluster_p[row][i]) && m.cluster_p[row][i] <= data.level);
    if (inCluster.length) {
      traces.push({ x: m.epochs, y: m.epochs.map((_, i) => (inCluster.includes(i) ? 0 : null)), mode: "lines+markers",
        line: { color: "#E69F00", width: 6 }, marker: { symbol: "square", size: 6, color: "#E69F00" },
        name: `cluster of epochs, p ≤ ${data.level}`, hoverinfo: "skip" });
    }
    draw("apart", title, traces, {
      xaxis: { title: { text: "epoch" } }, yaxis: { title: { text: named(m) }, rangemode: "tozero" },
    });
  }

  const TESTED = {
    joint: "z and p are of all folds together, adjusted over epochs and layers",
    one: "p is adjusted over layers",
    folds: "z is the mean over folds; no joint p is recorded for this grouping, so nothing is marked",
  };

  function maps() {
    const notes = [];
    const train = mapOf("train");
    heat("map-train", "Training batches (descriptive)", train, (m) => m.value.map((r) => r.map((v) => shownValue(m, v))),
      { colorscale: "Cividis", colorbar: { title: { text: train ? named(train) : "" }, thickness: 12 } });
    const probe = mapOf("probe");
    if (!probe) notes.push("This run has no probe: nothing here has a p.");
    const size = probe ? Math.max(3, ...probe.z.flat().filter(known).map(Math.abs)) : 3;
    heat("map-probe", `Probe: z under relabelling (${STAR}: p max ≤ ${data.level})`, probe, (m) => m.z,
      { colorscale: DIVERGING, zmin: -size, zmax: size, colorbar: { title: { text: "z" }, thickness: 12 } },
      (m, l, e) => (known(m.p_max[l][e]) && m.p_max[l][e] <= data.level ? STAR : ""));
    if (probe) notes.push(sentence(`On the probe ${TESTED[probe.tested]}`));
    for (const m of [train, probe]) if (m) notes.push(...m.reasons.map((r) => sentence(`${m.source}: ${r}`)));
    if (probe) notes.push("All but the declared primary outcome is exploratory.");
    byId("maps-note").textContent = [...new Set(notes)].join(" ");
  }

  function heat(id, title, m, values, look, marks) {
    const whole = m ? values(m) : [];
    const columns = m ? m.epochs.map((_, e) => e).filter((e) => whole.some((r) => known(r[e]))) : [];
    if (!columns.length) {
      draw(id, title, []);
      return;
    }
    const pick = (make) => whole.map((r, l) => columns.map((e) => make(l, e)));
    const z = pick((l, e) => whole[l][e]);
    const text = pick((l, e) => {
      const part = (name, v) => (known(v) ? `<br>${name} ${fmt(v)}` : "");
      return `${short(data.layers[l])}, epoch ${m.epochs[e]}${part(safe(m.divergence), m.value[l][e])}`
        + part("relabelled", m.null_mean[l][e]) + part("excess", m.excess[l][e]) + part("z", m.z[l][e])
        + part("p max", m.p_max[l][e]);
    });
    const trace = { type: "heatmap", x: columns.map((e) => fmt(m.epochs[e])), y: data.layers.map((_, i) => i), z,
      hovertext: text, hovertemplate: "%{hovertext}<extra></extra>", xgap: 1, ygap: 1, ...look };
    if (marks) {
      trace.text = pick((l, e) => marks(m, l, e));
      trace.texttemplate = "%{text}";
      trace.textfont = { size: 15 };
    }
    draw(id, title, [trace], {
      height: Math.max(280, Math.min(900, 120 + 26 * data.layers.length)), margin: { l: 64, r: 16, t: 40, b: 48 },
      xaxis: { title: { text: "epoch" }, type: "category", showgrid: false },
      yaxis: { autorange: "reversed", tickvals: data.layers.map((_, i) => i), ticktext: data.layers.map((l) => short(l)),
        showgrid: false },
    });
  }

  function performance() {
    const groups = data.groupings[data.primary] || [];
    const own = (name) => (data.styles[data.primary] || {})[name] || [data.pooledColour, "solid"];
    const { words, told } = data.performance;
    const kinds = Object.keys(data.performance.groups).map((k) => [k, `${words[k] || k} per group`]);
    if (Object.keys(data.performance.overall).length) kinds.push(["", "overall"]);
    let kind = kinds.length ? kinds[0][0] : "";
    const show = () => {
      const lines = Object.entries(kind ? data.performance.groups[kind] : data.performance.overall).map(([name, [x, y]], i) => {
        const [color, dash] = kind === ""
          ? [["#4D4D4D", "#0072B2", "#009E73", "#CC79A7"][i % 4], "solid"] : own(name);
        return { x, y, name: short(name), mode: x.length > 1 ? "lines" : "markers", line: { color, dash, width: 2 },
          marker: { color, size: 8 }, hovertemplate: "epoch %{x}: %{y:.4g}" };
      });
      draw("curves", "Validation people over training: " + (kinds.find(([k]) => k === kind) || [0, ""])[1], lines,
        { xaxis: { title: { text: "epoch" } } });
    };
    const bar = byId("performance-bar");
    if (!bar) return;
    chooser(bar, "show", kinds, kind, (value) => { kind = value; show(); });
    show();
    const last = Object.entries(data.performance.groups[told.kind] || {}).map(([group, [, y]]) => ({ group, [told.name]: y[y.length - 1] }));
    const people = data.people.length ? data.people : last;
    const beside = ["loss", "auc", "recall", "r2", "pearson"];
    draw("people", data.people.length ? "At the end, validation people" : `At the last epoch, validation people: ${told.words}`,
      people.length ? [{ type: "bar", x: people.map((_, i) => i), y: people.map((p) => p[told.name]),
        marker: { color: people.map((p) => (p.pooled ? data.pooledColour : own(p.group)[0])) },
        text: people.map((p) => fmt(p[told.name]) + (known(p.n) ? ` (n = ${p.n})` : "")), hoverinfo: "text",
        hovertext: people.map((p) => `${safe(label(p.group))}: ${told.words} ${fmt(p[told.name])}` + beside.map((k) => (known(p[k]) ? `, ${k} ${fmt(p[k])}` : "")).join("")) }] : [],
      { xaxis: { tickvals: people.map((_, i) => i), ticktext: people.map((p) => short(label(p.group), 18)) },
        yaxis: { title: { text: told.words }, ...(told.bounded ? { range: [0, 1.08] } : { rangemode: "tozero" }) } });
    byId("performance-note").textContent = groups.length
      ? "These people chose the checkpoints; the probe was never touched before."
        + (told.name === "accuracy" ? " Of a group with one class accuracy is its recall." : "") : "";
  }

  function connectome() {
    const there = data.where.quantities;
    if (!there) return;
    const quantities = Object.keys(there);
    let [quantity, rank] = [quantities.includes(data.quantity) ? data.quantity : quantities[0], 0];
    const most = Math.max(...Object.values(there).flatMap((q) => q.groups.map((g) => g.matrices.length)));
    const ranks = ["1st", "2nd", "3rd"];
    const show = () => {
      const { groups, limit, title } = there[quantity];
      const drawn = groups.filter((g) => g.matrices.length > rank);
      const names = data.where.names.length ? data.where.names : Array.from({ length: data.where.size }, (_, i) => i + 1);
      const domains = data.where.domains;
      const columns = byId("plot-connectome").clientWidth < 700 ? 1 : 3;
      const places = panels(drawn.length, columns, 0.07, drawn.length > columns ? 0.14 : 0.02);
      const layout = { shapes: [], annotations: [], showlegend: false, height: 60 + 380 * (places.length ? places[0].rows : 1),
        plot_bgcolor: "#d9d9d9", margin: { l: 40, r: 20, t: 70, b: 30 } };
      const traces = drawn.map((g, i) => {
        const axes = { showgrid: false, zeroline: false, constrain: "domain", ticks: "",
          tickvals: domains.map(([, a, b]) => (a + b - 1) / 2), ticktext: domains.map(([d]) => short(d, 8)), tickfont: { size: 9 } };
        if (!domains.length) Object.assign(axes, { tickvals: [], ticktext: [] });
        layout[axisName("x", i)] = { ...axes, domain: places[i].x, anchor: axisOf("y", i) };
        layout[axisName("y", i)] = { ...axes, domain: places[i].y, anchor: axisOf("x", i), autorange: "reversed",
          scaleanchor: axisOf("x", i) };
        for (const [, start] of domains.slice(1)) {
          for (const line of [{ x0: start - 0.5, x1: start - 0.5, y0: -0.5, y1: names.length - 0.5 },
            { y0: start - 0.5, y1: start - 0.5, x0: -0.5, x1: names.length - 0.5 }]) {
            layout.shapes.push({ type: "line", xref: axisOf("x", i), yref: axisOf("y", i), ...line, line: { color: "#6b7280", width: 0.6 } });
          }
        }
        layout.annotations.push(heading(`${short(label(g.name))}, ${fmt(100 * g.shares[rank])} % of energy`, i));
        const matrix = g.matrices[rank];
        return { type: "heatmap", z: matrix, xaxis: axisOf("x", i), yaxis: axisOf("y", i), zmin: -limit, zmax: limit,
          colorscale: DIVERGING, showscale: i === drawn.length - 1, colorbar: { thickness: 12, title: { text: "loading" } },
          hovertext: matrix.map((r, a) => r.map((v, b) => `${safe(names[a])} – ${safe(names[b])}: ${fmt(v)}`)),
          hovertemplate: "%{hovertext}<extra></extra>" };
      });
      draw("connectome", safe(title).replace("\n", "; ") + `: ${ranks[rank] || rank + 1 + "th"} direction`, traces, layout);
    };
    const bar = byId("where-bar");
    chooser(bar, "quantity", quantities.map((q) => [q, q]), quantity, (v) => { quantity = v; show(); });
    chooser(bar, "direction", Array.from({ length: most }, (_, i) => [i, ranks[i] || `${i + 1}th`]), rank, (v) => { rank = v; show(); });
    byId("where-note").textContent = "Signs are arbitrary: the largest loading is positive, groups are turned to face the pooled one. "
      + "Directions depend on the size of the groups; those of equal singular values are any basis of their space. White is zero, grey is no feature.";
    show();
  }

  function influence() {
    const found = data.influence;
    if (!found.groups) return;
    let [layer, epoch, kind] = [0, found.epochs[found.epochs.length - 1], "cosine"];
    const show = () => {
      const z = found[kind][layer][found.epochs.indexOf(epoch)];
      const size = kind === "cosine" ? 1 : Math.max(1e-30, ...found[kind][layer].flat(2).filter(known).map(Math.abs));
      const labels = found.groups.map((g) => short(g, 18));
      const places = found.groups.map((_, i) => i);
      draw("influence", `${kind === "cosine" ? "Cosine of the groups' gradients" : "First-order change of the loss"}: `
        + `${short(found.layers[layer])}, epoch ${epoch}`, [{
        type: "heatmap", x: places, y: places, z, zmin: -size, zmax: size, colorscale: DIVERGING,
        text: z.map((r) => r.map((v) => fmt(v, 2))), texttemplate: found.groups.length < 9 ? "%{text}" : "",
        hovertext: z.map((r, a) => r.map((v, b) => `step on ${safe(found.groups[a])}, loss of ${safe(found.groups[b])}: ${fmt(v)}`)),
        hovertemplate: "%{hovertext}<extra></extra>", colorbar: { thickness: 12 } }], {
        margin: { l: 64, r: 16, t: 40, b: 48 },
        xaxis: { title: { text: "loss of" }, tickvals: places, ticktext: labels, showgrid: false },
        yaxis: { title: { text: "step on" }, tickvals: places, ticktext: labels, autorange: "reversed", showgrid: false },
      });
    };
    const bar = byId("influence-bar");
    chooser(bar, "show", [["cosine", "cosine"], ["value", "−lr ⟨G, G⟩"]], kind, (v) => { kind = v; show(); });
    chooser(bar, "layer", found.layers.map((l, i) => [i, l]), layer, (v) => { layer = v; show(); });
    slider(bar, "epoch", found.epochs, (v) => { epoch = v; show(); });
    byId("influence-note").textContent = "−lr ⟨G_a, G_b⟩ is the first-order change of group b's part of the loss by a plain gradient step on "
      + "group a's part, mean over watched training batches and folds: negative is help. For Adam it is the form that plain SGD would have.";
    show();
  }

  function cost() {
    const seconds = (name) => name.endsWith("_s");
    for (const [id, title, wanted] of [["seconds", "Seconds per epoch", seconds], ["counts", "Points not yet sent", (n) => !seconds(n)]]) {
      const traces = Object.entries(data.cost).filter(([name]) => wanted(name)).map(([name, [x, y]]) => ({
        x, y, name: short(name), showlegend: true, mode: x.length > 1 ? "lines+markers" : "markers",
        hovertemplate: "epoch %{x}: %{y:.3g}" }));
      draw(id, title, traces, { colorway: ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00"], height: 280,
        xaxis: { title: { text: "epoch" } } });
    }
  }

  function all() {
    if (byId("spectra-bar")) spectra();
    if (byId("trajectories-bar")) trajectories();
    if (byId("maps-bar")) maps();
  }

  bars();
  if (byId("spectra-bar")) {
    slider(byId("spectra-bar"), "epoch", epochs, (e) => { state.epoch = e; spectra(); });
    byId("spectra-note").textContent = ["Mean spectra by rank position, over batches and folds, for drawing only.", ...data.notes].join(" ");
  }
  if (byId("trajectories-bar")) {
    chooser(byId("trajectories-bar"), "left plot", Object.entries(data.summaries), state.summary, (v) => { state.summary = v; trajectories(); });
  }
  all();
  performance();
  connectome();
  influence();
  if (byId("cost-bar")) cost();
}
if (DATA.report) report(DATA.report);
