"use strict";
// Sorting, filtering, chart read-outs and the details of one node. Names only ever reach the page as text.
(() => {
  const nodes = JSON.parse(document.getElementById("nodes").textContent);
  const body = document.querySelector("#table tbody");
  const rows = [...body.rows];
  const dialog = document.querySelector("dialog");

  // ---- table
  const search = document.getElementById("search");
  const kind = document.getElementById("kind");
  const shown = document.getElementById("shown");
  const filter = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    for (const row of rows) {
      const n = nodes[row.dataset.i];
      const text = [n.name, n.op, n.source, n.cause, n.dtype].join(" ").toLowerCase();
      row.hidden = !(words.every((w) => text.includes(w)) && (!kind.value || n.op === kind.value));
      count += !row.hidden;
    }
    shown.textContent = count + " of " + rows.length + " nodes";
  };
  search.addEventListener("input", filter);
  kind.addEventListener("change", filter);
  const sort = (header, descending) => {
    const key = header.dataset.key;
    const value = (i) => {
      const v = key === "index" ? Number(i) : nodes[i][key];
      return Array.isArray(v) ? v[0] : v === null ? Infinity : v;
    };
    rows.sort((a, b) => {
      const [x, y] = [value(a.dataset.i), value(b.dataset.i)];
      const order = x < y ? -1 : x > y ? 1 : a.dataset.i - b.dataset.i;
      return descending ? -order : order;
    });
    body.append(...rows);
    for (const th of header.parentNode.cells) th.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", descending ? "descending" : "ascending");
  };
  for (const header of document.querySelectorAll("th[data-key]")) {
    header.querySelector("button").addEventListener("click", () => {
      const now = header.getAttribute("aria-sort");
      sort(header, now ? now === "ascending" : header.dataset.first === "down");
    });
  }
  body.addEventListener("click", (event) => {
    const row = event.target.closest("tr");
    if (row) open(Number(row.dataset.i));
  });

  // ---- charts
  for (const chart of document.querySelectorAll(".chart[data-nodes]")) {
    const readout = chart.parentNode.querySelector(".readout");
    const cursor = make(chart, "div", undefined, "cursor");
    cursor.hidden = true;
    const at = (event) => {
      const box = chart.getBoundingClientRect();
      const i = Math.floor(((event.clientX - box.left) / box.width) * nodes.length);
      return Math.min(Math.max(i, 0), nodes.length - 1);
    };
    let touched = false;  // a finger is too wide to hit a bar: it reads first, a tap on the text opens
    let i = 0;
    const show = (event) => {
      touched = event.pointerType === "touch";
      i = at(event);
      const n = nodes[i];
      cursor.hidden = false;
      cursor.style.left = (100 * (i + 0.5)) / nodes.length + "%";
      readout.textContent = (i + 1) + ". " + n.name + " (" + n.op + "): accumulated " +
        decibels(n.accumulated_db) + ", isolated " + decibels(n.isolated_db) + "; " + n.cause;
    };
    chart.addEventListener("pointermove", show);
    chart.addEventListener("pointerdown", show);
    chart.addEventListener("pointerleave", () => { cursor.hidden = true; });
    chart.addEventListener("click", () => touched || open(i));
    readout.addEventListener("click", () => open(i));
  }

  // ---- details
  const open = (i) => {
    const n = nodes[i];
    dialog.replaceChildren();
    const close = make(dialog, "button", "\u00d7", "close");
    close.setAttribute("aria-label", "close");
    close.addEventListener("click", () => dialog.close());
    make(dialog, "h2", n.name);
    make(dialog, "p", (i + 1) + " of " + nodes.length + ", " + n.op + (n.source ? ", from " + n.source : ""), "soft");
    causes(dialog, n.shares);
    histogram(dialog, n.histogram, n.interval, "float value in steps of the scale, log count; dashed: where the integers end");
    const list = make(dialog, "dl");
    const fact = (term, text) => { const d = make(list, "div"); make(d, "dt", term); make(d, "dd", text); };
    fact("accumulated SQNR", decibels(n.accumulated_db));
    fact("isolated SQNR", decibels(n.isolated_db));
    fact("stored SQNR", decibels(n.stored_db));
    fact("cosine", n.cosine === null ? "no signal" : n.cosine.toFixed(6));
    fact("largest error", number(n.max_error));
    fact("largest isolated error", number(n.max_error_isolated));
    fact("float range", span(n.float_range));
    fact("scale", span(n.scale) + (n.channels > 1 ? " (" + n.channels + " channels)" : ""));
    fact("type", n.dtype + " in [" + n.interval.join(", ") + "]");
    fact("integer range used", percent(n.range_used));
    fact("at an end of the range", percent(n.clip_rate));
    fact("float values beyond it", percent(n.outside));
    if (n.family) fact("approximation", n.family);
    if (n.macs) fact("multiply-accumulates", n.macs.toLocaleString("en") + " (" + percent(n.cost_share) + ")");
    if (!dialog.open) dialog.showModal();
    dialog.scrollTop = 0;
  };
  sort(document.querySelector("th[data-key=isolated_db]"), false);
  filter();
  const linked = () => {  // page.html#12 opens the twelfth node
    const i = Number(location.hash.slice(1)) - 1;
    if (nodes[i]) open(i);
  };
  addEventListener("hashchange", linked);
  linked();
})();
