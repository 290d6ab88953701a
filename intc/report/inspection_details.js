// What is known of one value, and the sources of a kernel.
const { detailsOf, showCode } = (() => {
  const integers = (a) => a[0].toLocaleString("en") + " .. " + a[1].toLocaleString("en");
  const plural = (n, word) => n.toLocaleString("en") + " " + word + (n === 1 ? "" : "s");

  // `go(name, pass)` shows another value; `data` is the page's; `recordOf` maps the pass's names to records.
  const detailsOf = (panel, data, passIndex, record, recordOf, usersOf, go) => {
    panel.replaceChildren();
    const close = make(panel, "button", "\u00d7", "close");
    close.setAttribute("aria-label", "close");
    close.addEventListener("click", () => go(null));
    make(panel, "h2", record.name || record.text);
    if (!record.name) return;
    const from = record.source ? ", from " + record.source : "";
    make(panel, "p", (record.op || record.kind) + from + "; after " + data.passes[passIndex].name, "soft");
    facts(panel, data, record);
    parts(panel, data, record);
    if (record.formula !== undefined) { make(panel, "h3", fused(record) ? "operator" : "formula"); make(panel, "pre", data.formulas[record.formula]); }
    if (record.attributes) { make(panel, "h3", "attributes"); make(panel, "pre", record.attributes); }
    listed(panel, "computed from", record.inputs || [], recordOf, go, (i) => "x" + i + " = ");
    listed(panel, "used by", usersOf(record.name), recordOf, go);
    errors(panel, data, record);
    distribution(panel, data, record, go);
    kernels(panel, data, record, go);
    history(panel, data, passIndex, record, go);
  };

  const fact = (list, term, text) => {
    const d = make(list, "div");
    make(d, "dt", term);
    make(d, "dd", text);
  };

  const facts = (panel, data, record) => {
    const list = make(panel, "dl");
    fact(list, "type", record.dtype + record.shape);
    if (record.interval) fact(list, "interval", integers(record.interval));
    if (record.scale) {
      const [low, high, count] = record.scale;
      fact(list, "scale", span([low, high]) + (count > 1 ? " (" + plural(count, "channel") + ")" : ""));
    }
    const proof = record.interval && record.kind === "node" && data.proofs[record.name];
    if (!proof) return;
    fact(list, "proven of the final graph", integers(proof.proven));
    fact(list, "widest intermediate", integers(proof.widest) + ", " + proof.bits + " bits");
  };

  const fused = (record) => record.op === "linear" || record.op === "attention";

  const parts = (panel, data, record) => {
    const numbers = fused(record) ? data.parts[record.name] || [] : [];
    if (!numbers.length) return;
    make(panel, "h3", "formula: " + plural(numbers.length, "plain operator"));
    const short = (name) => {
      const i = record.inputs.indexOf(name);
      return i >= 0 ? "x" + i : name === record.name ? "y" : name.startsWith(record.name + "/") ? name.slice(record.name.length + 1) : name;
    };
    for (const number of numbers) {
      const part = data.lines[number], proof = data.proofs[part.name];
      const more = make(panel, "details", undefined, "part");
      make(more, "summary", short(part.name) + " = " + part.op + "(" + part.inputs.map(short).join(", ") + ")");
      make(more, "pre", data.formulas[part.formula]);
      make(more, "pre", part.text);
      if (proof) make(more, "p", "proven " + integers(proof.proven) + "; widest intermediate " + integers(proof.widest) + ", " + proof.bits + " bits", "soft");
    }
  };

  const listed = (panel, title, names, recordOf, go, prefix) => {
    if (!names.length) return;
    make(panel, "h3", title);
    const list = make(panel, "ul");
    names.forEach((name, i) => {
      const item = make(list, "li", prefix ? prefix(i) : "");
      const other = recordOf.get(name);
      make(item, "button", name, "link").addEventListener("click", () => go(name));
      if (other) make(item, "small", " " + (other.op || other.kind) + " " + other.dtype + other.shape);
    });
  };

  const errors = (panel, data, record) => {
    if (!record.interval) return;
    const n = data.measured[record.name], check = data.checked[record.name];
    if (n) {
      make(panel, "h3", "error against the float model: " + n.cause);
      causes(panel, n.shares);
      const list = make(panel, "dl");
      fact(list, "accumulated SQNR", decibels(n.accumulated_db));
      fact(list, "isolated SQNR", decibels(n.isolated_db));
      fact(list, "stored SQNR", decibels(n.stored_db));
      fact(list, "largest error", number(n.max_error));
      fact(list, "float range", span(n.float_range));
      fact(list, "integer range used", percent(n.range_used));
      fact(list, "at an end of the range", percent(n.clip_rate));
      if (n.macs) fact(list, "multiply-accumulates", n.macs.toLocaleString("en") + " (" + percent(n.cost_share) + ")");
    }
    if (!check) return;
    make(panel, "h3", "checked on data");
    const list = make(panel, "dl");
    fact(list, "kernel and reference", check.differences ? plural(check.differences, "element") + " differ, by at most " + check.largest : "equal");
    fact(list, "seen", integers(check.seen));
    fact(list, "at an end of the interval", percent(check.saturated));
    if (check.sqnr_db !== null) fact(list, "SQNR to float", decibels(check.sqnr_db));
    if (check.cosine !== null) fact(list, "cosine to float", check.cosine.toFixed(5));
  };

  const distribution = (panel, data, record, go) => {
    if (record.histogram) {
      make(panel, "h3", "distribution");
      const every = record.histogram.every;
      histogram(panel, record.histogram, undefined, every > 1 ? "one element in " + every + ", log count" : "log count");
      return;
    }
    const name = record.interval ? record.name : data.standsFor[record.name];
    const n = data.measured[name];
    if (!n) return;
    make(panel, "h3", "distribution on the calibration samples");
    if (!record.interval) {
      const line = make(panel, "p", "In steps of the integers that stand for it later, ", "soft");
      const last = data.passes.length - 1;
      make(line, "button", name, "link").addEventListener("click", () => go(name, last));
      line.append("; float range " + span(n.float_range) + ".");
    }
    histogram(panel, n.histogram, n.interval, "float value in steps of the scale, log count; dashed: where the integers end");
  };

  const kernels = (panel, data, record, go) => {
    const names = record.kind === "node" ? data.kernels[record.name] || [] : [];
    const holder = record.kind === "node" && data.holders[record.name];
    if (!names.length && !holder) return;
    make(panel, "h3", "kernel");
    if (holder) {
      const line = make(panel, "p", "none: the same bytes as ", "soft");
      make(line, "button", holder, "link").addEventListener("click", () => go(holder, data.passes.length - 1));
    }
    for (const kernel of new Set(names)) {
      const line = make(panel, "p", kernel + " ");
      for (const [language, size] of Object.entries(data.sizes[kernel])) {
        const button = make(line, "button", language + " (" + plural(size, "line") + ")");
        button.addEventListener("click", () => showCode(data, kernel, language));
        line.append(" ");
      }
    }
  };

  // The passes in which the line of this value differs from the one before.
  const history = (panel, data, passIndex, record, go) => {
    const steps = [];
    let before;
    data.passes.forEach((pass, i) => {
      const now = pass.names.get(record.name);
      if (now !== before) steps.push([i, before === undefined ? "appears" : now === undefined ? "is gone" : "changes", now]);
      before = now;
    });
    if (!steps.length || (steps.length === 1 && data.passes.length === 1)) return;
    make(panel, "h3", "through the passes");
    const list = make(panel, "ul");
    for (const [i, what, number] of steps) {
      const item = make(list, "li", what + " with ");
      make(item, "button", data.passes[i].name, "link").addEventListener("click", () => go(record.name, what === "is gone" ? i - 1 : i));
      if (number === undefined || number < 0) continue;
      const line = data.lines[number];
      make(item, "small", " " + (line.op || line.kind) + " " + line.dtype + line.shape);
    }
  };

  let code;  // the sources, read on first use
  const showCode = (data, kernel, language) => {
    code = code || JSON.parse(document.getElementById("code-data").textContent);
    const dialog = document.getElementById("code");
    dialog.replaceChildren();
    const close = make(dialog, "button", "\u00d7", "close");
    close.setAttribute("aria-label", "close");
    close.addEventListener("click", () => dialog.close());
    make(dialog, "h2", kernel);
    const tools = make(dialog, "div", undefined, "tools");
    for (const other of Object.keys(code[kernel])) {
      const button = make(tools, "button", other);
      button.setAttribute("aria-pressed", other === language);
      button.addEventListener("click", () => showCode(data, kernel, other));
    }
    const copy = make(tools, "button", "copy");
    copy.addEventListener("click", () => navigator.clipboard.writeText(code[kernel][language]).then(
      () => { copy.textContent = "copied"; }, () => { copy.textContent = "not allowed here"; }));
    const text = make(dialog, "pre", code[kernel][language]);
    text.tabIndex = 0;
    if (!dialog.open) dialog.showModal();
    text.scrollTop = 0;
  };

  return { detailsOf, showCode };
})();
