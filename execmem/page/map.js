// SPDX-License-Identifier: GPL-2.0-or-later
// The address space to scale, from 2^64 down to one instruction. Addresses are BigInts; what is
// visible becomes pixels as doubles, which is exact enough at every zoom.

import { FAIL, VIA, hex } from "execmem/motion.js";
import { sizeText } from "execmem/elements.js";
import { plain } from "execmem/plain.js";

export const KINDS = {
  TEXT: ["text", "T", "text"], DATA: ["data", "D", "data"], RODATA: ["rodata", "R", "rodata"],
  RO_AFTER_INIT: ["ro_after_init", "A", "sealed"], INIT_TEXT: ["init text", "iT", "init"],
  INIT_DATA: ["init data", "iD", "init"], INIT_RODATA: ["init rodata", "iR", "init"],
};
const BANDS = { "kernel image": "kernel", "module window": "window", "fallback window": "fallback",
  "direct map": "map", "vmalloc": "map" };
const ALL = 1n << 64n;
const PAGE = 4096n;
// Rows from above, in pixels: where arcs end, then bars, each under its caption.
const ROWS = { arcs: 178, space: [214, 26], pages: [262, 18], regions: [302, 24], sections: [348, 20], bytes: [390, 20] };
const CAPTIONS = { space: "address space", pages: "page table", regions: "the module's regions", sections: "its sections", bytes: "bytes of the selected relocation" };
const FAR = 4000; // pixels beyond the edge, where arcs end that end further
const ARCS = 2500; // drawn at once; more fall together where they start and end in the same pixels

export class AddressMap {
  // `changed` is told what a pointer is on.
  constructor(canvas, load, changed) {
    this.canvas = canvas;
    this.load = load;
    this.changed = changed;
    this.context = canvas.getContext("2d");
    this.pending = false;
    this.setUp();
    this.watch = new ResizeObserver(() => this.draw());
    this.watch.observe(canvas);
    this.show(load.motion);
  }

  close() { this.watch.disconnect(); }

  get selected() { return this.load.selected; }

  show(motion) {
    this.motion = motion;
    const n = motion.count, base = BigInt(motion.view.regions[0]?.start ?? 0);
    this.base = base;
    this.placeAt = new Float64Array(n);
    this.targetAt = new Float64Array(n);
    for (let i = 0; i < n; i++) {
      const s = motion.sections.get(motion.section[i]);
      this.placeAt[i] = Number(s.start - base) + motion.offset[i];
      this.targetAt[i] = Number(motion.target[i] - base);
    }
    this.reach();
  }

  // Views ---------------------------------------------------------------------------------

  look(start, span) {
    if (span < 16n) span = 16n;
    if (span > ALL) span = ALL;
    if (start < 0n) start = 0n;
    if (start + span > ALL) start = ALL - span;
    this.start = start;
    this.span = span;
    this.draw();
  }

  around(intervals, margin) {
    const starts = intervals.map((i) => i[0]), ends = intervals.map((i) => i[1]);
    const lo = starts.reduce((a, b) => (a < b ? a : b)), hi = ends.reduce((a, b) => (a > b ? a : b));
    const room = (hi - lo) / BigInt(margin) + 8n;
    this.look(lo - room, hi - lo + 2n * room);
  }

  everything() { this.look(0n, ALL); }

  kernelHalf() { this.look(1n << 63n, 1n << 63n); }

  reach() {
    const bands = this.motion.view.bands.filter((b) => b.kind !== "direct map" && b.kind !== "vmalloc");
    this.around([...bands.map((b) => [BigInt(b.start), BigInt(b.end)]), ...this.regions()], 20);
  }

  module() { this.around(this.regions(), 12); }

  text() {
    const own = this.motion.view.regions.map((r, i) => [r, this.regions()[i]]);
    this.around(own.filter(([r]) => r.group === 1).map(([, i]) => i), 30);
  }

  selection() {
    if (this.selected < 0) return;
    const m = this.motion, place = m.place(this.selected);
    const target = m.status[this.selected] === VIA ? m.entryOf(this.selected) : m.targetAt(this.selected);
    this.around([[place, place + 16n], [target, target + 16n]], 8);
  }

  instruction() {
    if (this.selected < 0) return;
    const m = this.motion, i = this.selected;
    const at = m.place(i) - BigInt(m.code_size[i] ? m.offset[i] - m.code_start[i] : 0);
    this.around([[at, at + BigInt(Math.max(m.code_size[i], 4))]], 2);
  }

  regions() { return this.load.regions(); }

  zoom(factor, at = 0.5) {
    const span = BigInt(Math.max(16, Math.round(Number(this.span) * factor)));
    const fixed = this.start + BigInt(Math.round(Number(this.span) * at));
    this.look(fixed - BigInt(Math.round(Number(span) * at)), span);
  }

  pan(part) { this.look(this.start + BigInt(Math.round(Number(this.span) * part)), this.span); }

  // Hands ---------------------------------------------------------------------------------

  setUp() {
    const c = this.canvas;
    c.addEventListener("wheel", (e) => {
      e.preventDefault();
      this.zoom(e.deltaY > 0 ? 1.5 : 1 / 1.5, e.offsetX / c.clientWidth);
    }, { passive: false });
    let from = null;
    c.addEventListener("pointerdown", (e) => {
      const group = this.grabbed(e.offsetX, e.offsetY);
      from = { x: e.clientX, start: this.start, group, text: this.motion.text, data: this.motion.data };
      c.setPointerCapture(e.pointerId);
    });
    c.addEventListener("pointermove", (e) => {
      this.point(e.offsetX);
      c.style.cursor = this.grabbed(e.offsetX, e.offsetY) ? "ew-resize" : "grab";
      if (!from) return;
      const by = BigInt(Math.round(Number(this.span) * ((e.clientX - from.x) / c.clientWidth)));
      if (from.group) this.drag(from, (by / PAGE) * PAGE);
      else this.look(from.start - by, this.span);
    });
    for (const end of ["pointerup", "pointercancel"]) c.addEventListener(end, () => { from = null; });
    c.addEventListener("keydown", (e) => {
      const keys = { ArrowLeft: () => this.pan(-0.15), ArrowRight: () => this.pan(0.15),
        "+": () => this.zoom(0.5), "=": () => this.zoom(0.5), "-": () => this.zoom(2),
        Home: () => this.module(), End: () => this.everything() };
      if (keys[e.key]) { keys[e.key](); e.preventDefault(); }
    });
  }

  // The group of the region that a pointer is on: 1 text, 2 data; 0: on none.
  grabbed(x, y) {
    const [top, height] = ROWS.regions;
    if (y < top || y >= top + height) return 0;
    const at = this.regions().findIndex(([lo, hi]) => x >= this.x(lo) - 2 && x <= this.x(hi) + 2);
    return at < 0 ? 0 : this.motion.view.regions[at].group;
  }

  drag(from, by) {
    const text = from.group === 1 || this.together() ? from.text + by : from.text;
    const data = from.group === 2 || this.together() ? from.data + by : from.data;
    this.load.place(text, data);
  }

  together() { return true; }

  point(x) {
    const address = this.start + BigInt(Math.round(Number(this.span) * (x / this.canvas.clientWidth)));
    const m = this.motion, found = [];
    for (const b of m.view.bands) if (address >= BigInt(b.start) && address < BigInt(b.end)) found.push(b.kind);
    this.regions().forEach(([lo, hi], i) => {
      if (address >= lo && address < hi) found.push(KINDS[m.view.regions[i].type][0]);
    });
    for (const s of m.sections.values()) {
      const start = s.start + m.shift(s.group);
      if (address >= start && address < start + BigInt(s.size)) found.push(`${s.name}+${hex(address - start)}`);
    }
    this.changed(`${hex(address)} ${found.join(", ")}`);
  }

  // Drawing -------------------------------------------------------------------------------

  draw() {
    if (this.pending || !this.motion) return;
    this.pending = true;
    requestAnimationFrame(() => { this.pending = false; this.paint(); });
  }

  x(address) { return (Number(address - this.start) / Number(this.span)) * this.width; }

  paint() {
    const c = this.canvas, ratio = devicePixelRatio || 1;
    this.width = c.clientWidth;
    this.height = c.clientHeight;
    const [wide, high] = [Math.round(this.width * ratio), Math.round(this.height * ratio)];
    if (c.width !== wide || c.height !== high) [c.width, c.height] = [wide, high]; // which costs, and clears
    const g = this.context, style = getComputedStyle(document.documentElement);
    this.colour = (name) => style.getPropertyValue("--" + name).trim();
    g.setTransform(ratio, 0, 0, ratio, 0, 0);
    g.clearRect(0, 0, this.width, this.height);
    g.font = "12px system-ui, sans-serif";
    g.textBaseline = "middle";
    this.ruler(18);
    this.captions();
    this.paintBands(...ROWS.space);
    this.paintLeaves(...ROWS.pages);
    this.paintRegions(...ROWS.regions);
    this.paintSections(...ROWS.sections);
    this.paintArcs(ROWS.arcs);
    this.paintBytes(...ROWS.bytes);
  }

  captions() {
    const g = this.context;
    g.fillStyle = this.colour("soft");
    g.font = "11px system-ui, sans-serif";
    this.taken = {};
    for (const row in CAPTIONS) {
      if (row === "bytes" && !this.bytesShow()) continue;
      g.fillText(CAPTIONS[row], 4, ROWS[row][0] - 9);
      // What stands in the lines above a row, the lowest first: from where to where.
      this.taken[row] = [[[0, 4 + g.measureText(CAPTIONS[row]).width + 14]], ...(row === "space" ? [[]] : [])];
    }
    g.font = "12px system-ui, sans-serif";
  }

  // The name of a bar that is too narrow for it, above it, in the first line that has room.
  callout(row, x, name) {
    const g = this.context, text = plain(name), width = g.measureText(text).width;
    if (x < 0 || x > this.width) return;
    const at = Math.max(0, Math.min(x, this.width - width - 4));
    const line = this.taken[row].findIndex((spans) => spans.every(([lo, hi]) => at >= hi || at + width <= lo));
    if (line < 0) return;
    this.taken[row][line].push([at, at + width + 10]);
    g.fillStyle = this.colour("ink");
    g.fillText(text, at, ROWS[row][0] - 9 - 13 * line);
    if (line === 0) g.fillRect(x, ROWS[row][0] - 4, 1, 4);
  }

  ruler(y) {
    const g = this.context;
    g.fillStyle = this.colour("soft");
    const step = niceStep(Number(this.span) / (this.width / 190));
    const first = (this.start / step + 1n) * step;
    for (let at = first, n = 0; at < this.start + this.span && n < 30; at += step, n++) {
      const x = this.x(at);
      g.fillRect(x, y - 12, 1, 8);
      if (x < this.width - 140) g.fillText(hex(at), x + 4, y - 8);
    }
    g.fillText(`${sizeText(this.span)} wide`, 4, this.height - 8);
  }

  // Return whether the bar says its name, or is not seen.
  bar(lo, hi, y, height, colour, label, pattern) {
    const x = Math.max(this.x(lo), -2), end = Math.min(this.x(hi), this.width + 2);
    if (end < 0 || x > this.width) return true;
    const g = this.context, width = Math.max(end - x, 2);
    g.fillStyle = colour;
    g.fillRect(x, y, width, height);
    if (pattern) {
      g.save();
      g.beginPath();
      g.rect(x, y, width, height);
      g.clip();
      g.strokeStyle = this.colour("panel");
      g.beginPath();
      for (let d = x - height; d < x + width && width > 4; d += 7) { g.moveTo(d, y + height); g.lineTo(d + height, y); }
      g.stroke();
      g.restore();
    }
    if (width <= g.measureText(label).width + 6) return false;
    g.fillStyle = contrast(colour);
    g.fillText(plain(label), Math.max(x, 0) + 4, y + height / 2);
    return true;
  }

  paintBands(y, height) {
    const order = ["direct map", "vmalloc", "fallback window", "module window", "kernel image"];
    const narrow = [];
    for (const kind of order) {
      for (const b of this.motion.view.bands.filter((each) => each.kind === kind)) {
        const lo = BigInt(b.start), hi = BigInt(b.end), label = `${kind}, ${sizeText(hi - lo)}`;
        if (!this.bar(lo, hi, y, height, this.colour(BANDS[kind]), label)) narrow.unshift([this.x(lo), label]);
      }
    }
    for (const [x, label] of narrow) this.callout("space", x, label); // the kernel image first
  }

  paintLeaves(y, height) {
    const steps = this.motion.view.steps, step = steps[this.step ?? steps.length - 1];
    if (!step) return;
    for (const s of step.spans) {
      const colour = s.prot.includes("X") ? "text" : s.prot.includes("W") ? "data" : "rodata";
      this.bar(BigInt(s.start), BigInt(s.end), y, height, this.colour(colour), `${s.prot} ${s.leaf}`, s.leaf === "4 KiB");
    }
  }

  paintRegions(y, height) {
    const regions = this.regions(), narrow = [];
    this.motion.view.regions.forEach((r, i) => {
      const [name, letter, colour] = KINDS[r.type];
      const [lo, hi] = regions[i];
      const wide = this.x(hi) - this.x(lo) > 70;
      if (!this.bar(lo, hi, y, height, this.colour(colour), wide ? `${letter} ${name}` : letter, r.freed)) {
        narrow.push([this.x(lo), name]);
      }
    });
    for (const [x, label] of narrow.sort((a, b) => a[0] - b[0])) this.callout("regions", x, label);
  }

  paintSections(y, height) {
    for (const s of this.motion.sections.values()) {
      const lo = s.start + this.motion.shift(s.group), hi = lo + BigInt(s.size);
      if (this.x(hi) - this.x(lo) > 3) this.bar(lo, hi, y, height, this.colour(s.exec ? "text" : "kernel"), s.name);
    }
  }

  paintArcs(y) {
    const m = this.motion, g = this.context, n = m.count;
    const scale = this.width / Number(this.span), zero = Number(this.base - this.start), far = this.width + FAR;
    const shifts = [0, Number(m.text), Number(m.data)];
    const seen = new Set(), lines = [[], [], []];
    let total = 0;
    for (let i = 0; i < n; i++) {
      const a = Math.max(-FAR, Math.min(far, (this.placeAt[i] + shifts[m.place_group[i]] + zero) * scale));
      const b = Math.max(-FAR, Math.min(far, (this.targetAt[i] + shifts[m.target_group[i]] + zero) * scale));
      if ((a < -50 && b < -50) || (a > this.width + 50 && b > this.width + 50)) continue;
      if (a < -50 && b > this.width + 50) continue;
      const status = m.status[i];
      const key = (Math.round(a / 2) * 40009 + Math.round(b / 2)) * 3 + status;
      if (seen.has(key)) continue;
      seen.add(key);
      if (++total > ARCS && status !== FAIL) continue;
      lines[status].push(a, b);
    }
    const styles = [["ok", 1, []], ["via", 1.3, [2, 3]], ["fail", 1.6, [7, 4]]];
    styles.forEach(([colour, width, dash], status) => {
      g.strokeStyle = this.colour(colour);
      g.lineWidth = width;
      g.setLineDash(dash);
      g.globalAlpha = status === 0 ? Math.max(0.12, Math.min(0.8, 60 / (lines[0].length / 2 + 1))) : 0.8;
      g.beginPath();
      for (let k = 0; k < lines[status].length; k += 2) this.arc(lines[status][k], lines[status][k + 1], y);
      g.stroke();
    });
    g.globalAlpha = 1;
    g.setLineDash([]);
    g.lineWidth = 1;
    this.crosses(lines[FAIL], y);
    if (this.selected >= 0) this.paintSelected(y);
  }

  // What is out of reach ends at a cross, in the middle of its arc where the end is not seen.
  crosses(ends, y) {
    const g = this.context;
    g.strokeStyle = this.colour("fail");
    g.lineWidth = 2.5;
    g.beginPath();
    for (let k = 0; k < Math.min(ends.length, 400); k += 2) {
      const b = Math.max(8, Math.min(this.width - 8, ends[k + 1]));
      g.moveTo(b - 5, y - 11); g.lineTo(b + 5, y - 1);
      g.moveTo(b + 5, y - 11); g.lineTo(b - 5, y - 1);
    }
    g.stroke();
    g.lineWidth = 1;
  }

  arc(a, b, y) {
    const clamp = (v) => Math.max(-FAR, Math.min(this.width + FAR, v));
    a = clamp(a);
    b = clamp(b);
    const height = Math.min(24 + Math.abs(b - a) * 0.28, 150);
    this.context.moveTo(a, y);
    this.context.quadraticCurveTo((a + b) / 2, y - 2 * height, b, y);
  }

  paintSelected(y) {
    const m = this.motion, g = this.context, i = this.selected;
    const place = this.x(m.place(i));
    const row = m.rows[m.type[i]];
    if (row.lo !== null && row.hi - row.lo < ALL && row.relative) {
      const from = -m.compute(row, 0n, m.place(i)); // where X is 0
      const lo = this.x(from + row.lo), hi = this.x(from + row.hi);
      g.fillStyle = this.colour("pick");
      g.globalAlpha = 0.7;
      g.fillRect(Math.max(lo, -2), y - 8, Math.min(hi, this.width + 2) - Math.max(lo, -2), 8);
      g.globalAlpha = 1;
      g.strokeStyle = this.colour("ink");
      g.strokeRect(Math.max(lo, -2), y - 8, Math.min(hi, this.width + 2) - Math.max(lo, -2), 8);
    }
    g.strokeStyle = this.colour("ink");
    g.lineWidth = 2.5;
    g.beginPath();
    const target = m.status[i] === VIA ? m.entryOf(i) : m.targetAt(m.high[i] >= 0 ? m.high[i] : i);
    this.arc(place, this.x(target), y);
    g.stroke();
    g.lineWidth = 1;
    g.fillStyle = this.colour("ink");
    g.beginPath();
    g.arc(place, y, 4, 0, 7);
    g.fill();
  }

  bytesShow() { return this.selected >= 0 && this.width / Number(this.span) >= 14; }

  paintBytes(y, height) {
    const per = this.width / Number(this.span);
    if (!this.bytesShow()) return;
    const m = this.motion, i = this.selected, g = this.context, bytes = m.bytes(i, true);
    const start = m.place(i) - BigInt(m.code_size[i] ? m.offset[i] - m.code_start[i] : 0);
    g.font = "12px ui-monospace, monospace";
    bytes.forEach((byte, n) => {
      const x = this.x(start + BigInt(n));
      g.strokeStyle = this.colour("line");
      g.strokeRect(x, y, per, height);
      g.fillStyle = this.colour("ink");
      g.fillText(byte.toString(16).padStart(2, "0"), x + per / 2 - 7, y + 11);
    });
  }
}

function niceStep(wanted) {
  let step = 1n;
  while (Number(step) < wanted) step *= 2n;
  return step;
}

function contrast(colour) {
  const n = parseInt(colour.slice(1), 16), r = n >> 16, gr = (n >> 8) & 255, b = n & 255;
  return 0.3 * r + 0.59 * gr + 0.11 * b > 140 ? "#111" : "#fff";
}
