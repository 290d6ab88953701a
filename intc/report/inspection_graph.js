// The drawing: boxes in rows, each use a line through the rows between. Only what is in sight is drawn.
const GraphView = (() => {
  const BOX = { wide: 190, high: 60, gapX: 22, gapY: 34 };
  const STEP = { x: BOX.wide + BOX.gapX, y: BOX.high + BOX.gapY };
  const NAMES = ["text", "soft", "line", "page", "card", "accent", "box", "float", "int8", "int16", "int32",
    "other", "new", "edit", "gone", "hit", "zone"];

  // Rows of boxes and the lines between rows, from the places that the page holds.
  const arrange = (pass, recordOf) => {
    const boxes = pass.places.map(([name, x, y]) => ({ name, x, y, record: recordOf.get(name) }));
    const byName = new Map(boxes.map((b) => [b.name, b]));
    const rows = [], lines = [];
    for (const b of boxes) (rows[b.y] = rows[b.y] || []).push(b);
    for (const row of rows) row.sort((a, b) => a.x - b.x);
    const users = new Map();
    for (const b of boxes) for (const name of new Set(b.record.inputs || [])) {
      const from = byName.get(name);
      if (!from) continue;
      if (!users.has(name)) users.set(name, []);
      users.get(name).push(b);
      const lane = pass.lanes[name] || [];
      for (let y = from.y; y < b.y; y++) {
        const x0 = y === from.y ? from.x : lane[y - from.y - 1];
        const x1 = y + 1 === b.y ? b.x : lane[y - from.y];
        const shared = y + 1 < b.y && users.get(name).some((u) => u !== b && u.y > y + 1);
        (lines[y] = lines[y] || []).push({ x0, x1, from: name, to: b.name, lane0: y > from.y, lane1: y + 1 < b.y, shared });
      }
    }
    return { boxes, byName, rows, lines, users, wide: Math.max(1, ...boxes.map((b) => b.x + 1)) * STEP.x, high: rows.length * STEP.y };
  };

  return class {
    constructor(canvas, overview, pick) {
      Object.assign(this, { canvas, overview, scale: 1, left: 0, top: 0, colour: () => "other", marks: new Map(), picked: null });
      this.ink = {};
      matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { this.readInk(); this.draw(); });
      new ResizeObserver(() => this.draw()).observe(canvas);
      this.readInk();
      this.listen(pick);
    }

    readInk() {
      const style = getComputedStyle(document.documentElement);
      for (const name of NAMES) this.ink[name] = style.getPropertyValue("--" + name).trim();
    }

    show(pass, recordOf) {
      this.graph = arrange(pass, recordOf);
      this.marks = new Map();
    }

    place(name) {  // left, top, right and bottom of a box on the screen
      const b = this.graph.byName.get(name);
      if (!b) return undefined;
      const [x, y] = [(b.x * STEP.x - this.left) * this.scale, (b.y * STEP.y - this.top) * this.scale];
      return [x, y, x + BOX.wide * this.scale, y + BOX.high * this.scale];
    }

    size() {
      return [this.canvas.clientWidth, this.canvas.clientHeight];
    }

    start() {  // from the top, as large as can be read
      const [w] = this.size();
      this.scale = Math.min(1, Math.max(0.45, (w - 40) / this.graph.wide));
      const first = this.graph.rows[0] || [];
      const middle = first.length ? (first[0].x + first[first.length - 1].x) / 2 * STEP.x + BOX.wide / 2 : 0;
      const fits = this.graph.wide * this.scale < w - 20;
      this.left = (fits ? this.graph.wide / 2 : middle) - w / 2 / this.scale;
      this.top = -40 / this.scale;
      this.draw();
    }

    fit() {  // all of it where that can be read, else its whole width
      const [w, h] = this.size();
      const [across, down] = [(w - 50) / this.graph.wide, (h - 60) / this.graph.high];
      const middle = this.top + h / this.scale / 2;
      this.scale = Math.min(1, down > 0.3 ? Math.min(across, down) : Math.max(across, 0.02));
      this.left = (this.graph.wide - w / this.scale) / 2;
      const [tall, edge] = [h / this.scale, 40 / this.scale];
      this.top = down > 0.3 ? (this.graph.high - tall) / 2
        : Math.max(-edge, Math.min(middle - tall / 2, this.graph.high + edge - tall));
      this.draw();
    }

    zoom(factor, x, y) {
      const [w, h] = this.size();
      const [px, py] = [x === undefined ? w / 2 : x, y === undefined ? h / 2 : y];
      const scale = Math.min(3, Math.max(0.02, this.scale * factor));
      this.left += px / this.scale - px / scale;
      this.top += py / this.scale - py / scale;
      this.scale = scale;
      this.draw();
    }

    focus(name, covered = 0) {  // into the middle of what is not covered below
      const b = this.graph.byName.get(name);
      if (!b) return false;
      const [w, h] = this.size();
      if (this.scale < 0.6) this.scale = 0.8;
      this.left = b.x * STEP.x + BOX.wide / 2 - w / 2 / this.scale;
      this.top = b.y * STEP.y + BOX.high / 2 - (h - covered) / 2 / this.scale;
      this.draw();
      return true;
    }

    at(px, py) {
      const [x, y] = [px / this.scale + this.left, py / this.scale + this.top];
      const row = this.graph.rows[Math.floor(y / STEP.y)] || [];
      if (y % STEP.y > BOX.high) return undefined;
      return row.find((b) => x >= b.x * STEP.x && x <= b.x * STEP.x + BOX.wide);
    }

    draw() {
      if (!this.graph || this.waiting) return;
      this.waiting = requestAnimationFrame(() => { this.waiting = 0; this.paint(); });
    }

    paint() {
      const [w, h] = this.size();
      if (!w || !h) return;
      const c = fresh(this.canvas, w, h);
      c.scale(this.scale, this.scale);
      c.translate(-this.left, -this.top);
      const last = this.graph.rows.length - 1;
      const from = Math.max(0, Math.floor(this.top / STEP.y) - 1);
      const to = Math.min(last, Math.ceil((this.top + h / this.scale) / STEP.y));
      for (const bright of [false, true]) {
        for (let y = from; y <= to; y++) for (const l of this.graph.lines[y] || []) {
          const near = l.from === this.picked || l.to === this.picked;
          if (near === bright && !(l.shared && !near)) this.line(c, l, y, near);
        }
      }
      for (let y = from; y <= to; y++) for (const b of this.graph.rows[y] || []) {
        const x = b.x * STEP.x;
        if (x + BOX.wide >= this.left && x <= this.left + w / this.scale) this.box(c, b, x, y * STEP.y);
      }
      this.paintOverview(h);
    }

    line(c, l, y, near) {
      const middle = BOX.wide / 2;
      const [x0, y0, x1, y1] = [l.x0 * STEP.x + middle, y * STEP.y + (l.lane0 ? 0 : BOX.high), l.x1 * STEP.x + middle, (y + 1) * STEP.y];
      c.strokeStyle = near ? this.ink.accent : this.ink.box;
      c.globalAlpha = near ? 1 : 0.65;
      c.lineWidth = (near ? 2.2 : 1) / Math.min(1, Math.max(this.scale, 0.4));
      c.beginPath();
      c.moveTo(x0, y0);
      const start = y * STEP.y + BOX.high;
      if (l.lane0) c.lineTo(x0, start);
      c.bezierCurveTo(x0, start + BOX.gapY / 2, x1, y1 - BOX.gapY / 2, x1, y1);
      c.stroke();
      c.globalAlpha = 1;
    }

    box(c, b, x, y) {
      const mark = this.marks.get(b.name);
      c.fillStyle = this.ink[this.colour(b)] || this.colour(b);
      c.strokeStyle = b.name === this.picked ? this.ink.accent : mark ? this.ink[mark] : this.ink.box;
      c.lineWidth = b.name === this.picked || mark ? 3 : 1;
      c.beginPath();
      c.roundRect(x, y, BOX.wide, BOX.high, 6);
      c.fill();
      if (this.scale > 0.12 || mark || b.name === this.picked) c.stroke();
      if (this.scale < 0.28) return;
      const r = b.record;
      c.fillStyle = this.ink.text;
      c.font = "600 14px system-ui, sans-serif";
      c.fillText(clip(c, r.op || "input", BOX.wide - 16), x + 8, y + 19);
      c.fillStyle = this.ink.soft;
      c.font = "11.5px ui-monospace, monospace";
      c.fillText(clip(c, r.dtype + r.shape, BOX.wide - 16), x + 8, y + 35);
      c.font = "10px system-ui, sans-serif";
      c.fillText(clip(c, b.name, BOX.wide - 16, true), x + 8, y + 51);
    }

    paintOverview(h) {
      const w = this.overview.clientWidth;
      if (!w) return;
      const c = fresh(this.overview, w, h);
      const rows = this.graph.rows.length || 1;
      this.graph.rows.forEach((row, y) => row.forEach((b) => {
        const mark = this.marks.get(b.name);
        const tone = b.name === this.picked ? "accent" : mark;
        c.fillStyle = this.ink[tone] || this.ink[this.colour(b)] || this.colour(b);
        const wide = tone ? w : 6 * Math.min(2, row.length);
        c.fillRect(tone ? 0 : (w - wide) / 2, (y / rows) * h, wide, Math.max(1.5, h / rows - 0.5));
      }));
      const visible = this.size()[1] / this.scale;
      c.strokeStyle = this.ink.text;
      c.lineWidth = 1.5;
      c.strokeRect(1, Math.max(0, (this.top / this.graph.high) * h), w - 2, Math.max(6, (Math.min(visible, this.graph.high) / this.graph.high) * h));
    }

    listen(pick) {
      const fingers = new Map();
      let moved = 0;
      const place = (e) => { const r = this.canvas.getBoundingClientRect(); return [e.clientX - r.left, e.clientY - r.top]; };
      this.canvas.addEventListener("pointerdown", (e) => {
        this.canvas.setPointerCapture(e.pointerId);
        fingers.set(e.pointerId, place(e));
        if (fingers.size === 1) moved = 0;
      });
      this.canvas.addEventListener("pointermove", (e) => {
        const now = place(e), before = fingers.get(e.pointerId);
        if (!before) { this.canvas.style.cursor = this.graph && this.at(...now) ? "pointer" : "grab"; return; }
        moved += Math.abs(now[0] - before[0]) + Math.abs(now[1] - before[1]);
        const other = [...fingers].find(([id]) => id !== e.pointerId);
        fingers.set(e.pointerId, now);
        const share = other ? 2 : 1;
        this.left -= (now[0] - before[0]) / this.scale / share;
        this.top -= (now[1] - before[1]) / this.scale / share;
        if (!other) { this.draw(); return; }
        const apart = (p) => Math.max(10, Math.hypot(p[0] - other[1][0], p[1] - other[1][1]));
        this.zoom(apart(now) / apart(before), (now[0] + other[1][0]) / 2, (now[1] + other[1][1]) / 2);
      });
      for (const end of ["pointerup", "pointercancel"]) this.canvas.addEventListener(end, (e) => {
        const alone = fingers.delete(e.pointerId) && !fingers.size;
        if (end === "pointerup" && alone && moved < 8) { const b = this.at(...place(e)); pick(b && b.name); }
      });
      this.canvas.addEventListener("wheel", (e) => {
        e.preventDefault();
        const lines = e.deltaMode === 1 ? 30 : 1;
        if (e.ctrlKey || e.metaKey) { this.zoom(Math.exp((-e.deltaY * lines) / 300), ...place(e)); return; }
        this.left += ((e.shiftKey ? e.deltaY : e.deltaX) * lines) / this.scale;
        this.top += e.shiftKey ? 0 : (e.deltaY * lines) / this.scale;
        this.draw();
      }, { passive: false });
      const jump = (e) => {
        if (!(e.buttons & 1)) return;
        const r = this.overview.getBoundingClientRect();
        this.top = ((e.clientY - r.top) / r.height) * this.graph.high - this.size()[1] / this.scale / 2;
        this.draw();
      };
      this.overview.addEventListener("pointerdown", (e) => { this.overview.setPointerCapture(e.pointerId); jump(e); });
      this.overview.addEventListener("pointermove", jump);
    }
  };

  function fresh(canvas, w, h) {
    const dots = devicePixelRatio || 1;
    if (canvas.width !== Math.round(w * dots) || canvas.height !== Math.round(h * dots)) {
      canvas.width = Math.round(w * dots);
      canvas.height = Math.round(h * dots);
    }
    const c = canvas.getContext("2d");
    c.setTransform(dots, 0, 0, dots, 0, 0);
    c.clearRect(0, 0, w, h);
    return c;
  }

  function clip(c, text, wide, end = false) {  // the beginning, or the end, of what is too long
    if (c.measureText(text).width <= wide) return text;
    const kept = Math.max(1, Math.floor((text.length * wide) / c.measureText(text).width) - 2);
    return end ? "\u2026" + text.slice(-kept) : text.slice(0, kept) + "\u2026";
  }
})();
