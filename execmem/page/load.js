// SPDX-License-Identifier: GPL-2.0-or-later
// One load of a module, wherever it is moved to: what several views show together.

import { Motion, VIA, hex } from "execmem/motion.js";

export class Load extends EventTarget {
  // `remember` keeps what was chosen: get(key), set(key, value, otherwise).
  constructor(view, remember) {
    super();
    this.view = view;
    this.motion = new Motion(view);
    this.selected = -1;
    this.remember = remember;
    const m = this.motion;
    this.keys = Array.from({ length: m.count }, (_, i) =>
      `${view.names[m.symbol[i]]} ${m.rows[m.type[i]].name} ${m.sections.get(m.section[i]).name}`.toLowerCase());
    const [text, data] = [remember.get("text", "0"), remember.get("data", "0")].map(whole);
    if (text || data) m.move(text, data);
    const pick = Number(remember.get("pick", "-1"));
    if (Number.isInteger(pick) && pick < m.count) this.selected = pick;
  }

  get title() { return `${this.view.module} on ${this.view.title}, design ${this.view.design}`; }

  // Move text and data to so many bytes from where they were loaded.
  place(text, data, from = null) {
    this.motion.move(text, data);
    this.remember.set("text", hex(text), "0x0");
    this.remember.set("data", hex(data), "0x0");
    this.dispatchEvent(new CustomEvent("moved", { detail: from }));
  }

  select(i) {
    this.selected = i;
    this.remember.set("pick", i, -1);
    this.dispatchEvent(new Event("selected"));
  }

  // Where a group of regions begins, not moved: 1 text, 2 data; null: the module has none.
  groupStart(group) {
    const starts = this.view.regions.filter((r) => r.group === group).map((r) => BigInt(r.start));
    return starts.length ? starts.reduce((a, b) => (a < b ? a : b)) : null;
  }

  regions() {
    return this.view.regions.map((r) => {
      const start = BigInt.asUintN(64, BigInt(r.start) + this.motion.shift(r.group));
      return [start, start + BigInt(r.size)];
    });
  }

  // Symbol and addend of a relocation.
  name(i) {
    const m = this.motion, a = m.addend[i], symbol = this.view.names[m.symbol[i]];
    return a === 0n ? symbol : `${symbol}${a < 0n ? "-" : "+"}${hex(a < 0n ? -a : a)}`;
  }

  // Why no branch of it goes through a PLT, wherever it lies; empty: some may.
  get withoutPlt() {
    if (this.motion.entries.length) return "";
    if (this.view.plt === null) return `${this.view.title} modules have no PLT: a branch that does not reach is refused`;
    return "This module was built without room for PLT entries";
  }

  verdict() {
    const m = this.motion;
    const slots = m.entries.map((e, n) => `${m.used[n]} of ${e.reserved} entries of ${e.name}`)
      .filter((_, n) => m.used[n]).join(", ");
    const direct = m.count - m.failed - m.via;
    const way = m.via ? `, ${m.via} go through the PLT (${slots})` : "";
    if (m.failed) return `Refused: ${m.failed} of ${m.count} relocations are out of reach${way}.`;
    const text = `Loads: ${direct} of ${m.count} relocations reach${way}.`;
    return this.outside() ? `${text} No kernel would place it there: it leaves the module window.` : text;
  }

  outside() {
    const windows = this.view.bands.filter((b) => b.kind.endsWith("window"));
    return this.regions().some(([lo, hi]) => !windows.some((w) => lo >= BigInt(w.start) && hi <= BigInt(w.end)));
  }

  // Move to the nearest page at which something stops reaching; return whether there is one.
  edge(direction, stubs) {
    this.motion.move(0n, 0n);
    const move = this.motion.edge(direction, stubs);
    if (move === null) {
      this.place(0n, 0n);
      return false;
    }
    this.place(move, move);
    const wanted = stubs ? VIA : 2;
    const first = this.motion.status.indexOf(wanted);
    if (first >= 0) this.select(first);
    return true;
  }
}

function whole(text) {
  try {
    const found = text.startsWith("-") ? -BigInt(text.slice(1)) : BigInt(text);
    return found % 4096n ? 0n : found;
  } catch { return 0n; }
}
