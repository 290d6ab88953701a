// The state of the page (pass, view, value, search), which its address names, and the views besides the drawing.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const { passes, lines } = data;
  const VIEWS = ["graph", "diff", "kernels", "about"];
  const FOUND = 40;
  for (const pass of passes) {
    pass.names = new Map(pass.rows.map((i) => [lines[i].name, i]).filter(([name]) => name !== undefined));
    pass.nodes = pass.rows.filter((i) => lines[i].kind === "node").length;
  }
  const state = { pass: data.start.pass, view: data.start.view, node: null, at: null, query: "" };
  const record = (pass, name) => lines[passes[pass].names.get(name)];
  const records = (pass) => ({ get: (name) => record(pass, name) });
  const dtypes = new Set(["int8", "int16", "int32"]);

  // ---- what a pass changed: by name "new" or "edit", and the names that are gone
  const changes = passes.map((pass, p) => {
    const marks = new Map(), gone = [];
    const before = p ? passes[p - 1].names : pass.names;
    for (const [name, i] of pass.names) {
      if (!before.has(name)) marks.set(name, "new");
      else if (before.get(name) !== i) marks.set(name, "edit");
    }
    for (const name of before.keys()) if (!pass.names.has(name)) gone.push(name);
    return { marks, gone };
  });
  const counted = (p) => {
    const kinds = [...changes[p].marks.values()];
    return { new: kinds.filter((k) => k === "new").length, edit: kinds.filter((k) => k === "edit").length, gone: changes[p].gone.length };
  };

  // ---- drawing
  const view = new GraphView($("canvas"), $("overview"), (name) => go(name || null));
  const isolated = (name) => { const n = data.measured[name]; return n && n.isolated_db !== null ? n.isolated_db : undefined; };
  const colours = {
    type: (b) => (b.record.dtype === "float32" ? "float" : b.record.dtype === "uint8" ? "int8" : dtypes.has(b.record.dtype) ? b.record.dtype : "other"),
    change: (b) => (changes[state.pass].marks.get(b.name) ? "zone" : "card"),
    error: (b) => {
      const db = b.record.interval ? isolated(b.name) : undefined;
      if (db === undefined) return "card";
      const bad = Math.min(1, Math.max(0, (50 - db) / 40));  // 50 dB and better: green, 10 dB and worse: red
      return "hsl(" + Math.round(130 * (1 - bad)) + " 60% " + (matchMedia("(prefers-color-scheme: dark)").matches ? "30%" : "78%") + ")";
    },
  };
  const KEYS = {
    type: [["--float", "float"], ["--int8", "8 bits"], ["--int16", "16"], ["--int32", "32"], ["--other", "other"]],
    change: [["--new", "added"], ["--edit", "changed"]],
    error: [["hsl(0 60% 60%)", "10 dB and less"], ["hsl(65 60% 60%)", "30 dB"], ["hsl(130 60% 60%)", "50 dB and more, the node alone"]],
  };
  const recolour = () => {
    const kind = $("colour").value;
    view.colour = colours[kind];
    const legend = $("legend");
    legend.replaceChildren(passes[state.pass].nodes + " nodes");
    for (const [colour, text] of KEYS[kind]) {
      make(legend, "i").style.background = colour.startsWith("--") ? "var(" + colour + ")" : colour;
      legend.append(text);
    }
    mark();
  };
  const mark = () => {
    const marks = new Map();
    if ($("colour").value === "change") for (const [name, kind] of changes[state.pass].marks) marks.set(name, kind);
    for (const name of state.hits || []) marks.set(name, "hit");
    view.marks = marks;
    view.draw();
  };
  $("colour").addEventListener("change", recolour);
  if (!Object.keys(data.measured).length) $("colour").querySelector("[value=error]").remove();
  $("in").addEventListener("click", () => view.zoom(1.4));
  $("out").addEventListener("click", () => view.zoom(1 / 1.4));
  $("fit").addEventListener("click", () => view.fit());

  // ---- diff, side by side
  const cell = (parent, p, i, kind, other) => {
    const element = make(parent, "div", undefined, kind);
    if (i === null) return;
    const line = lines[i];
    if (other === undefined) element.textContent = line.text;
    else marked(element, line.text, other);
    if (line.name) {
      element.dataset.name = line.name;
      element.addEventListener("click", () => getSelection().isCollapsed && go(line.name, undefined, p));
    }
  };
  const marked = (element, text, other) => {  // what differs between the common ends of two lines
    let a = 0, z = 0;
    while (a < Math.min(text.length, other.length) && text[a] === other[a]) a++;
    while (z < Math.min(text.length, other.length) - a && text[text.length - 1 - z] === other[other.length - 1 - z]) z++;
    element.append(text.slice(0, a));
    if (text.length - z > a) make(element, "mark", text.slice(a, text.length - z));
    element.append(text.slice(text.length - z));
  };
  const sides = (parent, p, i, j) => {
    const row = make(parent, "div", undefined, "sides");
    const same = i !== null && j !== null && lines[i].name !== undefined && lines[i].name === lines[j].name;
    cell(row, p - 1, i, i === null ? "none" : i === j ? "" : same ? "edit" : "del", same && i !== j ? lines[j].text : undefined);
    cell(row, p, j, j === null ? "none" : i === j ? "" : same ? "edit" : "add", same && i !== j ? lines[i].text : undefined);
  };
  const drawDiff = () => {
    const p = state.pass, panel = $("diff");
    panel.replaceChildren();
    const pass = passes[p], before = passes[Math.max(0, p - 1)];
    const heads = make(panel, "div", undefined, "sides heads");
    const n = counted(p);
    make(heads, "div", p ? "after " + before.name : "as imported");
    make(heads, "div", "after " + pass.name + ": " + n.new + " added, " + n.edit + " changed, " + n.gone + " removed");
    let equal = [];
    const flush = () => {
      const kept = equal;
      equal = [];
      if (!kept.length) return;
      const button = make(panel, "button", "\u22ee " + kept.length + " equal", "equal");
      button.addEventListener("click", () => {
        const box = document.createElement("div");
        for (const [i, j] of kept) sides(box, p, i, j);
        button.replaceWith(...box.childNodes);
      });
    };
    for (const [first, second, count] of pass.pairs) for (let k = 0; k < count; k++) {
      const i = first === null ? null : before.rows[first + k], j = second === null ? null : pass.rows[second + k];
      if (i === j) { equal.push([i, j]); continue; }
      flush();
      sides(panel, p, i, j);
    }
    flush();
  };

  // ---- kernels and passes as tables
  const drawKernels = () => {
    const panel = $("kernels");
    const calls = {};
    for (const [value, names] of Object.entries(data.kernels)) for (const name of names) (calls[name] = calls[name] || []).push(value);
    panel.replaceChildren();
    const card = make(panel, "div", undefined, "card");
    if (!Object.keys(data.sizes).length) { make(card, "p", "Kernels are generated for integer graphs: give an artifact, or an ONNX file with calibration data.", "soft"); return; }
    const table = make(card, "table");
    const head = make(make(table, "thead"), "tr");
    for (const title of ["kernel", "calls", "sources", "first computes"]) make(head, "th", title, "name");
    const body = make(table, "tbody");
    for (const [kernel, sizes] of Object.entries(data.sizes)) {
      const row = make(body, "tr");
      make(row, "td", kernel, "name");
      make(row, "td", String((calls[kernel] || []).length), "name");
      const sources = make(row, "td", undefined, "name");
      for (const [language, size] of Object.entries(sizes)) {
        make(sources, "button", language + " " + size.toLocaleString("en"), "link").addEventListener("click", () => showCode(data, kernel, language));
        sources.append(" ");
      }
      const value = (calls[kernel] || [])[0];
      const first = make(row, "td", undefined, "name");
      if (value) make(first, "button", value, "link").addEventListener("click", () => go(value, passes.length - 1));
    }
  };
  const body = document.querySelector("#passes tbody");
  passes.forEach((pass, p) => {
    const row = make(body, "tr"), n = counted(p);
    make(make(row, "td"), "button", pass.name, "link").addEventListener("click", () => { state.pass = p; state.view = p ? "diff" : "graph"; show(true); });
    for (const text of [pass.nodes, n.new || "", n.edit || "", n.gone || ""]) make(row, "td", String(text));
    const option = make($("pass"), "option", p + " " + pass.name + " (" + pass.nodes + " nodes" + (p && !pass.changed ? ", unchanged)" : ")"));
    option.value = p;
  });

  // ---- search
  const find = () => {
    const words = $("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const box = $("found");
    state.query = $("search").value;
    box.replaceChildren();
    box.hidden = !words.length;
    const hits = !words.length ? [] : passes[state.pass].rows.filter((i) => {
      const r = lines[i];
      return r.name !== undefined && words.every((w) => r.text.toLowerCase().includes(w));
    });
    const rank = ({ op, name }) => (words.every((w) => op === w) ? 0 : words.every((w) => op === w || name.toLowerCase().includes(w)) ? 1 : 2);
    hits.sort((a, b) => rank(lines[a]) - rank(lines[b]));
    state.hits = hits.map((i) => lines[i].name);
    mark();
    if (!words.length) return;
    make(box, "p", hits.length + " in the graph after " + passes[state.pass].name, "soft");
    for (const i of hits.slice(0, FOUND)) {
      const r = lines[i];
      const button = make(box, "button", r.name);
      make(button, "small", (r.op || r.kind) + " " + r.dtype + r.shape + (r.source ? ", from " + r.source : ""));
      button.addEventListener("click", () => { box.hidden = true; $("canvas").focus(); go(r.name); });
    }
  };
  $("search").addEventListener("input", find);
  $("search").addEventListener("focus", find);
  $("search").addEventListener("keydown", (e) => {
    const buttons = [...$("found").querySelectorAll("button")];
    const now = buttons.findIndex((b) => b.classList.contains("chosen"));
    if (e.key === "Enter" && buttons.length) buttons[Math.max(0, now)].click();
    if (e.key === "Escape") { $("found").hidden = true; $("search").blur(); }
    if (e.key === "ArrowDown" || e.key === "ArrowUp") {
      e.preventDefault();
      const next = (now + (e.key === "ArrowDown" ? 1 : -1) + buttons.length) % (buttons.length || 1);
      buttons.forEach((b, i) => b.classList.toggle("chosen", i === next));
      if (buttons[next]) buttons[next].scrollIntoView({ block: "nearest" });
    }
    e.stopPropagation();
  });
  document.addEventListener("pointerdown", (e) => { if (!e.target.closest(".find")) $("found").hidden = true; });

  // ---- the state, its address, and everything that follows from it
  const usersOf = (p) => (name) => passes[p].rows.filter((i) => (lines[i].inputs || []).includes(name)).map((i) => lines[i].name);
  let drawn = {};
  const go = (name, pass, at) => {  // `at`: of a diff's left side, the pass before
    if (pass !== undefined) state.pass = pass;
    if (pass !== undefined && state.view === "kernels") state.view = "graph";
    state.node = name;
    state.at = at === undefined ? state.pass : at;
    show(true, at === undefined);
  };
  const show = (remember, move = true) => {
    const { pass, view: kind } = state;
    const r = state.node === null ? undefined : record(state.at === null ? pass : state.at, state.node);
    if (!r) state.node = null;
    for (const name of VIEWS) $(name).hidden = name !== kind;
    for (const tab of document.querySelectorAll("nav button")) tab.setAttribute("aria-selected", tab.dataset.view === kind);
    $("pass").value = pass;
    $("previous").disabled = pass === 0;
    $("next").disabled = pass === passes.length - 1;
    const panel = $("details");
    panel.hidden = !r;
    if (r) detailsOf(panel, data, state.at === null ? pass : state.at, r, records(state.at === null ? pass : state.at), usersOf(state.at === null ? pass : state.at), go);
    if (r) panel.scrollTop = 0;
    view.picked = state.node;
    if (kind === "graph") {
      const first = drawn.graph !== pass;
      if (first) {
        const kept = drawn.graph !== undefined && passes[drawn.graph].rows === passes[pass].rows;
        view.show(passes[pass], records(pass));
        drawn.graph = pass;
        recolour();
        if (state.query) find();
        $("found").hidden = true;
        if (!kept && !(r && view.focus(r.name, covered()))) view.start();
      }
      if (r && move && !visible(r.name)) view.focus(r.name, covered());
      view.draw();
    }
    if (kind === "diff") {
      if (drawn.diff !== pass) { drawDiff(); drawn.diff = pass; }
      for (const element of document.querySelectorAll("#diff .shown")) element.classList.remove("shown");
      const cells = r ? [...document.querySelectorAll("#diff [data-name]")].filter((e) => e.dataset.name === r.name) : [];
      cells.forEach((e) => e.classList.add("shown"));
      if (cells.length && move) cells[cells.length - 1].scrollIntoView({ block: covered() ? "start" : "center" });
    }
    if (kind === "kernels" && !drawn.kernels) { drawKernels(); drawn.kernels = true; }
    if (remember) address();
  };
  const covered = () => (!$("details").hidden && getComputedStyle($("details")).position === "absolute" ? $("details").clientHeight : 0);
  const visible = (name) => {
    const box = view.place(name);
    if (!box) return true;
    const [w, h] = view.size();
    return view.scale > 0.3 && box[0] > 0 && box[1] > 0 && box[2] < w - 20 && box[3] < h - covered();
  };
  const address = () => {
    if (!location.protocol.startsWith("file") && !location.protocol.startsWith("http")) return;  // a frame's own text
    const parts = { pass: passes[state.pass].name, view: state.view };
    if (state.node !== null) parts.node = state.node;
    history.replaceState(null, "", "#" + new URLSearchParams(parts));
  };
  const read = () => {
    const given = new URLSearchParams(location.hash.slice(1));
    const pass = passes.findIndex((p) => p.name === given.get("pass"));
    if (pass >= 0) state.pass = pass;
    if (VIEWS.includes(given.get("view"))) state.view = given.get("view");
    state.node = given.get("node");
    state.at = null;
    if (given.get("colour")) $("colour").value = given.get("colour");
    if (given.get("search")) $("search").value = given.get("search");
    show(false);
    if (given.get("search")) find();
    const [kernel, language] = (given.get("code") || "").split(" ");
    if (data.sizes[kernel] && data.sizes[kernel][language]) showCode(data, kernel, language);
  };

  const step = (by) => { state.pass = Math.min(passes.length - 1, Math.max(0, state.pass + by)); state.at = null; show(true); };
  $("pass").addEventListener("change", () => { state.pass = Number($("pass").value); state.at = null; show(true); });
  $("previous").addEventListener("click", () => step(-1));
  $("next").addEventListener("click", () => step(1));
  for (const tab of document.querySelectorAll("nav button")) tab.addEventListener("click", () => { state.view = tab.dataset.view; show(true); });
  document.addEventListener("keydown", (e) => {
    if (e.target.closest("input, select, dialog") || e.ctrlKey || e.metaKey || e.altKey) return;
    if (e.key === "/") { e.preventDefault(); $("search").focus(); }
    if (e.key === "[") step(-1);
    if (e.key === "]") step(1);
    if (e.key === "Escape") go(null);
    const b = state.view === "graph" && state.node !== null ? view.graph.byName.get(state.node) : undefined;
    if (!b || !e.key.startsWith("Arrow")) return;
    e.preventDefault();
    const row = view.graph.rows[b.y], beside = row[row.indexOf(b) + (e.key === "ArrowRight" ? 1 : -1)];
    const next = e.key === "ArrowUp" ? (b.record.inputs || []).map((n) => view.graph.byName.get(n)).find(Boolean)
      : e.key === "ArrowDown" ? (view.graph.users.get(b.name) || [])[0] : beside;
    if (next) go(next.name);
  });
  addEventListener("hashchange", read);
  read();
})();
