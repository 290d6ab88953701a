"use strict";
// What the scripts of all pages share. Names only ever reach a page as text.
const { decibels, percent, number, span, make, draw, histogram, causes } = (() => {
  const SVG = "http://www.w3.org/2000/svg";
  const decibels = (v) => (v === null ? "exact" : v.toFixed(1) + " dB");
  const percent = (v) => (v > 0 && v < 0.0001 ? "< 0.01 %" : (100 * v).toFixed(v < 0.1 ? 2 : 1) + " %");
  const number = (v) => String(Number(v.toPrecision(4)));
  const span = (a) => (a[0] === a[1] ? number(a[0]) : number(a[0]) + " .. " + number(a[1]));
  const make = (parent, tag, text, cls) => {
    const element = parent.appendChild(document.createElement(tag));
    if (text !== undefined) element.textContent = text;
    if (cls) element.className = cls;
    return element;
  };
  const draw = (parent, tag, attributes) => {
    const element = parent.appendChild(document.createElementNS(SVG, tag));
    for (const [k, v] of Object.entries(attributes)) element.setAttribute(k, v);
    return element;
  };
  // Counts evenly between lo and hi, on a logarithmic axis; `interval`, if any, is where integers end.
  const histogram = (parent, { lo, hi, counts }, interval, caption) => {
    const at = (q) => (100 * (q - lo)) / (hi - lo);
    const tall = Math.log1p(Math.max(1, ...counts));
    const svg = draw(parent, "svg", { viewBox: "0 0 100 100", preserveAspectRatio: "none", role: "img" });
    draw(svg, "title", {}).textContent = "distribution of the value";
    if (interval) {
      const [low, high] = interval.map((q) => Math.min(Math.max(at(q), 0), 100));
      draw(svg, "rect", { class: "zone", x: low, y: 0, width: high - low, height: 100 });
    }
    const wide = 100 / counts.length;
    counts.forEach((count, b) => {
      if (!count) return;
      const height = (94 * Math.log1p(count)) / tall;
      const middle = lo + ((b + 0.5) * (hi - lo)) / counts.length;
      const out = interval && (middle < interval[0] || middle > interval[1]);
      draw(svg, "rect", { class: out ? "bin out" : "bin", x: b * wide, y: 100 - height, width: wide * 0.88, height });
    });
    for (const q of interval || []) {
      const x = at(q);
      if (x >= 0 && x <= 100) draw(svg, "line", { class: "limit", x1: x, x2: x, y1: 0, y2: 100 });
    }
    const ends = make(parent, "div", undefined, "ends soft");
    make(ends, "span", number(lo));
    make(ends, "span", caption);
    make(ends, "span", number(hi));
  };
  // A bar of what a value's error comes from, and its key.
  const causes = (parent, shares) => {
    const bar = make(parent, "div", undefined, "split");
    const key = make(parent, "p", undefined, "soft key");
    for (const cause of ["rounding", "saturation", "computing", "inherited"]) {
      make(bar, "i", undefined, cause).style.width = 100 * shares[cause] + "%";
      const entry = make(key, "span");
      make(entry, "i", undefined, cause);
      entry.append(cause + " " + Math.round(100 * shares[cause]) + " %");
    }
  };
  return { decibels, percent, number, span, make, draw, histogram, causes };
})();
