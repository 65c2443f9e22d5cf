// SPDX-License-Identifier: GPL-2.0-or-later
// A run of a workload as a film (execmem/comparing/film.py): what each page holds at any of its moments, and
// the drawing of it. A film tells changes; here they are added up.

import { KINDS } from "execmem/map.js";

const BARE = 0; // the number of the palette for pages where nothing is mapped

export class Film {
  constructor(told) {
    this.told = told;
    this.frames = told.frames;
    this.pages = told.large / told.page;
    this.starts = told.chunks.map((at) => BigInt(at));
    // As they lie in memory, whenever they were told of first.
    this.order = this.starts.map((_, n) => n).sort((a, b) => (this.starts[a] < this.starts[b] ? -1 : 1));
    this.rewind();
  }

  rewind() {
    this.at = -1;
    this.chunks = this.starts.map(() => ({ cells: new Uint16Array(this.pages), live: 0 }));
    this.blocks = new Uint8Array(Math.ceil(this.told.memory / this.told.large));
    this.split = this.healed = 0;
    this.changed = new Set();
  }

  get last() { return this.frames.length - 1; }

  get frame() { return this.frames[this.at]; }

  // Go to a moment, there or back.
  seek(n) {
    n = Math.max(0, Math.min(this.last, n));
    if (n < this.at) this.rewind();
    while (this.at < n) this.next();
  }

  next() {
    const frame = this.frames[++this.at];
    this.changed = new Set();
    for (const { chunk, runs, live } of frame.chunks) {
      const cells = this.chunks[chunk].cells;
      let at = 0;
      for (let i = 0; i < runs.length; i += 2) cells.fill(runs[i], at, at += runs[i + 1]);
      this.chunks[chunk].live = live;
      this.changed.add(chunk);
    }
    for (const each of frame.direct_map) this.blocks[each >> 2] = each & 3;
    this.split += frame.events.leaf_splits ?? 0;
    this.healed += frame.events.collapses ?? 0;
  }

  // Runs of equal pages of a chunk: [cell of the palette, first page, pages].
  runs(chunk) {
    const { cells } = this.chunks[chunk], found = [];
    for (let at = 0, end; at < cells.length; at = end) {
      for (end = at + 1; end < cells.length && cells[end] === cells[at];) end++;
      found.push([this.told.palette[cells[at]], at, end - at]);
    }
    return found;
  }

  // What maps a chunk: "large", "pages", or "" for nothing; which types live there, and how.
  about(chunk) {
    const runs = this.runs(chunk), mapped = runs.filter(([cell]) => cell.leaf);
    const types = new Map();
    for (const [cell, , count] of mapped) if (cell.type) types.set(cell.type, (types.get(cell.type) ?? 0) + count);
    return {
      leaf: !mapped.length ? "" : mapped.every(([cell]) => cell.leaf >= this.told.large) ? "large" : "pages",
      leaves: mapped.reduce((sum, [cell, , count]) => sum + (cell.leaf >= this.told.large ? 0 : count), 0),
      mapped: mapped.reduce((sum, [, , count]) => sum + count, 0),
      prots: [...new Set(mapped.map(([cell]) => cell.prot))],
      types: [...types].sort((a, b) => b[1] - a[1]).map(([type]) => type),
      live: this.chunks[chunk].live,
    };
  }

  // In which area of the address space a chunk lies.
  area(chunk) {
    const at = this.starts[chunk], end = at + BigInt(this.told.large);
    return this.told.areas.find((a) => BigInt(a.start) < end && at < BigInt(a.end))?.kind ?? "";
  }
}

const ROWS = 8, GAP = 6, LABEL = 15, WIDEST = 168, NARROWEST = 96;

// Draws the chunks of a film: each page a small box, each large leaf one frame around them.
export class FilmCanvas {
  constructor(canvas, film, picked) {
    Object.assign(this, { canvas, film, picked, pick: -1 });
    this.watch = new ResizeObserver(() => this.draw());
    this.watch.observe(canvas.parentElement);
    canvas.addEventListener("pointermove", (e) => this.point(e));
    canvas.addEventListener("click", (e) => this.point(e));
    canvas.addEventListener("keydown", (e) => {
      const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -this.columns, ArrowDown: this.columns,
        Home: -1e6, End: 1e6 }[e.key];
      if (!by) return;
      e.preventDefault();
      e.stopPropagation(); // the same keys move through the film elsewhere
      this.choose(Math.max(0, Math.min(this.film.order.length - 1, this.pick + by)));
    });
  }

  close() { this.watch.disconnect(); }

  choose(n) {
    this.pick = n;
    this.picked(this.film.order[n]);
    this.draw();
  }

  point(e) {
    const column = Math.floor((e.offsetX - this.left) / this.width), row = Math.floor(e.offsetY / this.height);
    const n = row * this.columns + column;
    if (column >= 0 && column < this.columns && n >= 0 && n < this.film.order.length && n !== this.pick) this.choose(n);
  }

  // Many chunks have smaller boxes, so that all of them are seen.
  layout() {
    const room = this.canvas.parentElement.clientWidth, count = Math.max(1, this.film.order.length);
    let columns = Math.max(1, Math.floor(room / WIDEST));
    while (count / columns > 12 && room / (columns + 1) >= NARROWEST) columns++;
    this.columns = Math.min(columns, count);
    this.width = Math.min(room / this.columns, WIDEST * 1.4);
    this.left = 0;
    this.height = 46 + LABEL;
    this.room = room;
    this.total = Math.ceil(count / this.columns) * this.height + 4;
  }

  draw() {
    const { canvas, film } = this, ratio = devicePixelRatio || 1;
    this.layout();
    canvas.style.height = `${this.total}px`;
    canvas.width = this.room * ratio;
    canvas.height = this.total * ratio;
    const g = canvas.getContext("2d"), style = getComputedStyle(document.documentElement);
    this.colour = (name) => style.getPropertyValue(`--${name}`).trim();
    g.setTransform(ratio, 0, 0, ratio, 0, 0);
    g.clearRect(0, 0, this.room, this.total);
    g.font = "11px ui-monospace, monospace";
    g.textBaseline = "middle";
    film.order.forEach((chunk, n) => this.chunk(g, chunk,
      this.left + (n % this.columns) * this.width, Math.floor(n / this.columns) * this.height, n));
  }

  chunk(g, chunk, x, y, n) {
    const { film } = this, width = this.width - GAP, height = this.height - LABEL - 6;
    const across = film.pages / ROWS, w = width / across, h = height / ROWS;
    const { cells, live } = film.chunks[chunk], { palette } = film.told, about = film.about(chunk);
    for (let at = 0, end; at < cells.length; at = end) {
      const row = Math.floor(at / across), stop = (row + 1) * across;
      for (end = at + 1; end < stop && cells[end] === cells[at];) end++;
      if (cells[at] === BARE) continue;
      const cell = palette[cells[at]], px = x + (at % across) * w, py = y + LABEL + row * h, span = (end - at) * w;
      g.globalAlpha = cell.type ? 1 : 0.3;
      g.fillStyle = this.colour(cell.type ? KINDS[cell.type][2] : FREE[cell.prot] ?? "kernel");
      g.fillRect(px, py, Math.max(span, 0.7), h);
      if (cell.leaf < film.told.large) { // pages: each one stands for itself
        g.globalAlpha = 1;
        g.fillStyle = this.colour("panel");
        for (let k = at; k <= end; k++) g.fillRect(x + (k % across || (k === end && k > at ? across : 0)) * w - 0.25, py, 0.5, h);
        g.fillRect(px, py + h - 0.6, span, 0.6);
      }
    }
    g.globalAlpha = 1;
    g.lineWidth = about.leaf === "large" ? 2 : 1;
    g.strokeStyle = this.colour(about.leaf === "large" ? "ink" : "line");
    g.setLineDash(about.leaf === "large" ? [] : [3, 3]);
    g.strokeRect(x + 1, y + LABEL, width - 1, height);
    g.setLineDash([]);
    if (film.changed.has(chunk) && film.at > 0) {
      g.fillStyle = this.colour("fail");
      g.beginPath();
      g.moveTo(x + width - 9, y + LABEL);
      g.lineTo(x + width, y + LABEL);
      g.lineTo(x + width, y + LABEL + 9);
      g.fill();
    }
    if (n === this.pick) {
      g.strokeStyle = this.colour("text");
      g.lineWidth = 3;
      g.strokeRect(x + 1.5, y + LABEL - 1, width - 2, height + 3);
    }
    g.fillStyle = this.colour("ink");
    const letters = about.types.map((type) => KINDS[type][1]).join(" ");
    const label = about.leaf ? `${letters || "free"} ${Math.round(live / film.told.large * 100)}%` : "";
    g.fillText(label, x + 2, y + LABEL / 2);
  }
}

export const FREE = { "R-X": "text", "RW-": "data", "R--": "rodata" };

// Draws the direct map: each block of a large leaf a box, by the size of the leaves that map it.
export function directMap(canvas, film) {
  const ratio = devicePixelRatio || 1, room = canvas.parentElement.clientWidth, count = film.blocks.length;
  const across = room < 500 ? 128 : 256, rows = Math.ceil(count / across), side = room / across, h = Math.max(side, 3);
  canvas.style.height = `${rows * h}px`;
  canvas.width = room * ratio;
  canvas.height = rows * h * ratio;
  const g = canvas.getContext("2d"), style = getComputedStyle(document.documentElement);
  const colours = ["--panel", "--fail", "--via", "--map"].map((name) => style.getPropertyValue(name).trim());
  g.setTransform(ratio, 0, 0, ratio, 0, 0);
  for (let n = 0; n < count; n++) {
    g.fillStyle = colours[film.blocks[n]];
    const size = film.blocks[n] === 3 ? 0 : 0.4; // a leaf of 1 GiB has no seams
    g.fillRect((n % across) * side, Math.floor(n / across) * h, side - size, h - size);
  }
}
