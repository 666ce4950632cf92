for (const root of document.querySelectorAll(".lrc-moving:not([data-ready])")) (root => {
  root.dataset.ready = "";
  const data = JSON.parse(root.querySelector("script[type='application/json']").textContent);
  const make = (tag, into, props = {}) => into.appendChild(Object.assign(document.createElement(tag), props));
  const at = data.controls.map(() => 0);
  const bar = make("div", root), panels = make("div", root, {className: "lrc-panels"}), said = make("output", root);
  const stops = ["053061", "2166ac", "4393c3", "92c5de", "d1e5f0", "f7f7f7", "fddbc7", "f4a582", "d6604d", "b2182b", "67001f"]
    .map(h => [0, 2, 4].map(i => parseInt(h.slice(i, i + 2), 16)));
  const colour = v => {  // of -1 to 1
    const t = (Math.max(-1, Math.min(1, v)) + 1) / 2 * (stops.length - 1), i = Math.min(stops.length - 2, Math.floor(t));
    return "rgb(" + stops[i].map((c, k) => Math.round(c + (t - i) * (stops[i + 1][k] - c))) + ")";
  };
  const rest = "Point at a cell, or move with the arrow keys, to read its value.";
  let cell = null;  // of all matrices: row, column

  data.controls.forEach((control, c) => {
    const set = make("fieldset", bar);
    make("legend", set, {textContent: control.name});
    if (control.slider) {
      const input = make("input", set, {type: "range", min: 0, max: control.choices.length - 1, value: 0});
      input.setAttribute("aria-label", control.name);
      const value = make("span", set);
      const tell = () => { value.textContent = control.choices[at[c]]; input.setAttribute("aria-valuetext", value.textContent); };
      input.addEventListener("input", () => { at[c] = +input.value; tell(); draw(); });
      tell();
    } else {
      const buttons = control.choices.map((text, i) => make("button", set, {type: "button", textContent: text,
        onclick() { at[c] = i; press(); draw(); }}));
      const press = () => buttons.forEach((b, i) => b.setAttribute("aria-pressed", i === at[c]));
      press();
    }
  });

  function matrix(place, panel) {
    const k = panel.matrix.length, many = k > 24, names = many ? data.groups : data.classes;
    const canvas = make("canvas", place, {width: 960, tabIndex: 0}), pen = canvas.getContext("2d");
    const font = many ? 20 : Math.min(30, 640 / k);
    pen.font = font + "px sans-serif";
    const left = 12 + Math.max(0, ...names.map(n => pen.measureText(n).width)), size = 960 - left, step = size / k;
    canvas.height = size + left;
    pen.font = font + "px sans-serif";
    pen.fillStyle = getComputedStyle(root).color;
    pen.textBaseline = "middle";
    const ends = data.sizes.reduce((s, n) => [...s, (s.at(-1) ?? 0) + n], []);
    const middles = many ? ends.map((e, i) => e - data.sizes[i] / 2) : names.map((_, i) => i + 0.5);
    names.forEach((name, i) => {
      pen.textAlign = "right";
      pen.fillText(name, left - 8, middles[i] * step);
      pen.save(); pen.translate(left + middles[i] * step, size + 8); pen.rotate(-Math.PI / 2);
      pen.fillText(name, 0, 0); pen.restore();
    });
    panel.matrix.forEach((row, i) => row.forEach((v, j) => {
      pen.fillStyle = colour(v);
      pen.fillRect(left + j * step, i * step, step + 0.5, step + 0.5);
    }));
    pen.lineWidth = 3; pen.strokeStyle = "#111";
    ends.forEach((e, i) => { const s = data.sizes[i] * step, o = e * step - s; pen.strokeRect(left + o, o, s, s); });
    if (cell && cell[0] < k) {
      pen.strokeStyle = "#00a000"; pen.lineWidth = 5;
      pen.strokeRect(left + cell[1] * step, cell[0] * step, step, step);
    }
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `${panel.title || "matrix"}: ${k} by ${k} classes`);
    const go = (i, j, focus) => { cell = [i, j].map(v => Math.max(0, Math.min(k - 1, v))); draw(focus); };
    canvas.onpointermove = e => {
      const box = canvas.getBoundingClientRect(), unit = 960 / box.width;
      const j = Math.floor(((e.clientX - box.left) * unit - left) / step), i = Math.floor((e.clientY - box.top) * unit / step);
      if (i >= 0 && j >= 0 && i < k && j < k && (!cell || i !== cell[0] || j !== cell[1])) go(i, j);
    };
    canvas.onkeydown = e => {
      const move = {ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1]}[e.key];
      if (move) { e.preventDefault(); const [i, j] = cell ?? [0, 0]; go(i + move[0], j + move[1], canvas.dataset.i); }
    };
    return canvas;
  }

  function images(place, panel) {
    const sheet = make("div", place, {className: "lrc-images"});
    panel.images.forEach((src, i) => {
      const figure = make("figure", sheet), label = panel.labels[i] ?? "";
      make("img", figure, {src, alt: label || `${panel.title || "image"} ${i + 1}`});
      if (label) make("figcaption", figure, {textContent: label});
    });
  }

  // Bars of all frames share one scale, so that they can be compared.
  const longest = Math.max(1e-9, ...data.frames.flat().flatMap(p => p.bars ?? []).map(b => Math.abs(b[1])));
  const lowest = Math.min(0, ...data.frames.flat().flatMap(p => p.bars ?? []).map(b => b[1]));
  function bars(place, panel) {
    const list = make("table", place, {className: "lrc-bars"});
    for (const [name, value] of panel.bars) {
      const row = make("tr", list), unit = 100 / (longest - lowest);
      make("th", row, {scope: "row", textContent: name});
      const bar = make("i", make("td", row));
      bar.style.marginLeft = `${(Math.min(0, value) - lowest) * unit}%`;
      bar.style.width = `${Math.abs(value) * unit}%`;
      make("td", row, {textContent: value.toFixed(2)});
    }
  }

  function draw(focus) {
    const index = data.controls.reduce((n, c, i) => n * c.choices.length + at[i], 0), frame = data.frames[index];
    panels.textContent = "";
    const canvases = frame.map((panel, i) => {
      const place = make("div", panels);
      if (panel.title) make("p", place, {textContent: panel.title});
      const canvas = panel.matrix ? matrix(place, panel) : panel.bars ? bars(place, panel) : images(place, panel);
      if (canvas) canvas.dataset.i = i;
      return canvas;
    });
    if (focus !== undefined) canvases[focus].focus({preventScroll: true});
    const drawn = frame.filter(p => p.matrix);
    said.textContent = !drawn.length ? "" : !cell ? rest : `${data.classes[cell[0]]}, ${data.classes[cell[1]]}: ` +
      drawn.map(p => (p.title && drawn.length > 1 ? p.title + " " : "") + p.matrix[cell[0]][cell[1]].toFixed(2)).join("; ");
  }
  if (data.frames[0].some(p => p.matrix)) {
    const scale = make("p", root);
    scale.append("−1 ", make("span", scale, {className: "lrc-scale"}), " 1");
  }
  draw();
  // The names on a canvas have the colour of the page, which may turn dark after this.
  new MutationObserver(() => draw()).observe(document.documentElement, {attributeFilter: ["data-theme"]});
})(root);
