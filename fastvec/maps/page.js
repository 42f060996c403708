"use strict";
// Draws the map of the page's data with BokehJS. Texts are shown only by textContent, never as HTML.
(() => {
  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("data").textContent);
  const count = data.x.length;
  const DIMMED = count > 5000 ? 0.07 : 0.15; // opacity of points that a search does not find
  const [SMALLEST, LARGEST] = [2.5, 12]; // pixels

  const element = (tag, parent, properties = {}) => {
    const made = document.createElement(tag);
    const { style, ...others } = properties;
    Object.assign(made, others);
    Object.assign(made.style, style ?? {});
    parent.append(made);
    return made;
  };

  // the points

  const source = new Bokeh.ColumnDataSource({
    data: { x: data.x, y: data.y, color: data.color.map((index) => data.palette[index]) },
  });
  const range = () => new Bokeh.Range1d({ start: 0, end: 1 });
  const plot = new Bokeh.Plot({
    x_range: range(),
    y_range: range(),
    sizing_mode: "stretch_both",
    output_backend: "webgl",
    min_border: 0,
    outline_line_color: null,
    toolbar_location: null,
  });
  const glyph = (properties) =>
    new Bokeh.Scatter({
      x: { field: "x" },
      y: { field: "y" },
      fill_color: { field: "color" },
      line_color: null,
      ...properties,
    });
  const opacity = count > 5000 ? 0.65 : 0.8;
  const renderer = new Bokeh.GlyphRenderer({
    data_source: source,
    glyph: glyph({ fill_alpha: opacity }),
    selection_glyph: glyph({ fill_alpha: 1, line_color: "#1f2328", line_width: 0.75 }),
    nonselection_glyph: glyph({ fill_alpha: DIMMED }),
    hover_glyph: glyph({ fill_alpha: 1, line_color: "#1f2328", line_width: 1.5 }),
  });
  plot.renderers = [renderer];

  // BokehJS asks for every point under the mouse, and shows what is not null: the nearest point's card
  const card = (_, { index, x, y }) => {
    const away = (one) => (data.x[one] - x) ** 2 + (data.y[one] - y) ** 2;
    const { indices } = source.inspected;
    if (indices.some((one) => away(one) < away(index) || (away(one) === away(index) && one < index))) return null;
    const more = indices.length > 1 ? ` · ${indices.length - 1} more here` : "";
    const box = document.createElement("div");
    Object.assign(box.style, {
      width: "320px", padding: "4px 6px", whiteSpace: "pre-line", overflowWrap: "anywhere", background: "#fff",
      font: "13px/1.4 system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', 'DejaVu Sans', sans-serif",
    });
    element("div", box, { textContent: data.heading[index], style: { fontWeight: "600", color: "#1f2328" } });
    element("div", box, { textContent: data.text[index], style: { color: "#3d444d" } });
    element("div", box, { textContent: data.place[index] + more, style: { color: "#656d76", fontSize: "12px" } });
    return box;
  };
  const wheel = new Bokeh.WheelZoomTool();
  const pan = new Bokeh.PanTool();
  plot.toolbar.tools = [pan, wheel, new Bokeh.HoverTool({ tooltips: card })];
  plot.toolbar.active_scroll = wheel;
  plot.toolbar.active_drag = pan;

  // the view: the same scale on both axes

  const extent = (values) => values.reduce(([low, high], one) => [Math.min(low, one), Math.max(high, one)], [Infinity, -Infinity]);
  const [[left, right], [bottom, top]] = [extent(data.x), extent(data.y)];
  let fitted = 1; // units per pixel when everything is visible
  const unit = () => (plot.x_range.end - plot.x_range.start) / plot.inner_width;

  const show = (x, y, scale) => {
    const [width, height] = [plot.inner_width * scale, plot.inner_height * scale];
    plot.x_range.setv({ start: x - width / 2, end: x + width / 2 });
    plot.y_range.setv({ start: y - height / 2, end: y + height / 2 });
  };
  const fit = () => {
    const [width, height] = [plot.inner_width, plot.inner_height];
    if (!(width > 0 && height > 0)) return;
    const [across, down] = [120, data.labels.some((label) => label.above) ? 130 : 80]; // pixels of margins, for labels
    fitted = Math.max((right - left) / Math.max(width - across, 50), (top - bottom) / Math.max(height - down, 50)) || 1;
    show((left + right) / 2, (bottom + top) / 2, fitted);
  };

  // points grow a little when they are zoomed into

  let size = 0;
  const resize = () => {
    const area = plot.inner_width * plot.inner_height;
    const first = Math.min(9, Math.max(SMALLEST, 0.42 * Math.sqrt(area / count)));
    const zoomed = Math.min(Math.max(first, LARGEST), first * Math.sqrt(Math.max(1, fitted / unit())));
    if (Math.abs(zoomed - size) < 0.05 * size) return;
    size = zoomed;
    for (const one of [renderer.glyph, renderer.nonselection_glyph]) one.size = { value: size };
    for (const one of [renderer.selection_glyph, renderer.hover_glyph]) one.size = { value: Math.max(size + 2, 6) };
  };

  // labels: a label that would overlap an earlier one waits until there is room

  const labels = data.labels.map((label) => ({
    ...label,
    box: element("div", byId("labels"), { textContent: label.text, style: { color: label.color } }),
  }));
  const place = () => {
    const taken = [];
    const [scale, x0, y1] = [unit(), plot.x_range.start, plot.y_range.end];
    const [width, height] = [plot.inner_width, plot.inner_height];
    for (const label of labels) {
      label.width ??= label.box.offsetWidth;
      label.height ??= label.box.offsetHeight;
      const x = Math.round((label.x - x0) / scale - label.width / 2);
      const y = Math.round((y1 - label.y) / scale - (label.above ? label.height + size / 2 + 1 : label.height / 2));
      const edges = [x - 4, x + label.width + 4, y - 2, y + label.height + 2];
      const [l, r, t, b] = edges;
      const isFree = taken.every(([l2, r2, t2, b2]) => r < l2 || l > r2 || b < t2 || t > b2);
      const isInside = r > 0 && l < width && b > 0 && t < height;
      if (isFree && isInside) taken.push(edges);
      label.box.style.visibility = isFree && isInside ? "visible" : "hidden";
      label.box.style.transform = `translate(${x}px, ${y}px)`;
    }
  };

  let isWaiting = false;
  const redraw = () => {
    if (isWaiting) return;
    isWaiting = true;
    requestAnimationFrame(() => {
      isWaiting = false;
      resize();
      place();
    });
  };

  // search: points whose title and text contain all words; case and accents do not matter

  const folded = (text) => text.normalize("NFD").replace(/\p{M}/gu, "").toLowerCase();
  let searched = null;
  let shown = null; // the value of the legend that is highlighted
  const highlight = (indices, message, value = null) => {
    shown = value;
    source.selected.indices = indices;
    byId("found").textContent = message;
    byId("labels").style.opacity = indices.length ? "0.35" : "1";
  };
  const search = () => {
    const words = folded(byId("search").value).split(/\s+/).filter(Boolean);
    if (!words.length) return highlight([], "");
    searched ??= data.text.map((text, index) => folded(`${data.heading[index]}\n${text}`));
    const found = [];
    searched.forEach((text, index) => {
      if (words.every((word) => text.includes(word))) found.push(index);
    });
    highlight(found, found.length ? `${found.length.toLocaleString("en")} of ${count.toLocaleString("en")}` : "nothing found");
  };
  byId("search").addEventListener("input", search);

  // the legend: a click highlights the points of a value

  const legend = () => {
    const { column, names, counts, ends } = data.legend;
    if (!column) return;
    const box = byId("legend");
    box.hidden = false;
    element("h2", box, { textContent: column });
    if (ends.length) {
      const colors = data.palette.slice(0, -1).join(", ");
      element("div", box, { className: "scale", style: { background: `linear-gradient(to right, ${colors})` } });
      const row = element("div", box, { className: "ends" });
      for (const end of ends) element("span", row, { textContent: end });
    }
    names.forEach((name, index) => {
      const row = element("div", box, { style: { cursor: "pointer" } });
      element("span", row, { className: "swatch", style: { background: data.palette[index] } });
      element("span", row, { textContent: name });
      element("span", row, { className: "count", textContent: counts[index].toLocaleString("en") });
      row.addEventListener("click", () => {
        byId("search").value = "";
        if (shown === index) return highlight([], "");
        highlight(data.color.flatMap((color, point) => (color === index ? [point] : [])), name, index);
      });
    });
  };

  const fitAndDraw = () => {
    fit();
    redraw();
  };
  legend();
  Bokeh.Plotting.show(plot, "#plot").then(() => {
    fitAndDraw();
    plot.properties.inner_width.change.connect(fitAndDraw);
    plot.properties.inner_height.change.connect(fitAndDraw);
    for (const one of [plot.x_range, plot.y_range]) {
      one.properties.start.change.connect(redraw);
      one.properties.end.change.connect(redraw);
    }
    byId("reset").addEventListener("click", () => {
      byId("search").value = "";
      search();
      fitAndDraw();
    });
    document.body.dataset.ready = "true";
    window.fastvecMap = { plot, source, data, labels }; // for tests, and for the browser's console
  });
})();
