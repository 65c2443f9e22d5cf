// SPDX-License-Identifier: GPL-2.0-or-later
// The view *what*: every relocation, with its numbers, its bits, and what it is for.

import { choice, element, facts, labelled, sentence } from "execmem/elements.js";
import { FAIL, OK, VIA, hex, rounded } from "execmem/motion.js";
import { register } from "execmem/router.js";

const ROW = 22;
const STATUS = ["reaches", "through the PLT", "out of reach"];
const MARK = ["", "P", "!"];
const CLASS = ["ok", "via", "fail"];

// What a row computes, in words; of its terms, so that no row is without.
export function meaning(row) {
  const about = (letters) => letters.includes("P") ? "where the relocation itself is, P"
    : letters.includes("G") ? "the target's entry of the GOT" : letters === "A" ? "the addend, A"
      : "where the symbol is, S, and the addend, A";
  const parts = row.terms.map(([sign, letters, granule, bias], n) => {
    const rounded = granule > 1 ? `, rounded ${bias ? "to the nearest" : "down to a multiple of"} ${granule} bytes` : "";
    return `${sign < 0 ? "less " : n ? "plus " : ""}${about(letters)}${rounded}`;
  });
  const whole = parts.length ? parts.join(", ") : "what another relocation of the pair computes";
  const how = row.relative ? "A distance, the same wherever both move together: " : "An address, or a part of one: ";
  const bits = row.parts.reduce((sum, part) => sum + part.slices.reduce((n, [, size]) => n + size, 0), 0);
  const field = row.uleb ? "It is written as a number of variable length."
    : row.sums ? "It is added to, or taken from, what stands there."
      : bits ? `${bits} ${bits === 1 ? "bit of it goes" : "bits of it go"} into the ${row.parts.length > 1 ? "fields of two instructions" : "field"}.` : "Nothing is written.";
  return `${how}${whole}. ${field}`;
}

function wordAt(bytes, at, size) {
  let word = 0n;
  for (let n = size - 1; n >= 0; n--) word = (word << 8n) | BigInt(bytes[at + n]);
  return word;
}

// What data says, a word for each field.
function words(row, bytes) {
  return row.parts.map((part) => `0x${wordAt(bytes, part.offset, part.size).toString(16).padStart(2 * part.size, "0")}`).join(" ");
}

class What {
  constructor(box, load) {
    this.load = load;
    this.shown = [];
    this.which = choice([["all", "all"], ["direct", "that reach"], ["via", "through the PLT"], ["fail", "out of reach"]],
      "all", () => this.filter(), { className: "which" });
    this.find = element("input", { type: "search", placeholder: "symbol, type, section", className: "find" });
    this.find.addEventListener("input", () => { this.named = null; this.filter(); });
    this.matching = element("span", { className: "note", role: "status" });
    this.rows = element("div", { className: "rows" });
    this.list = element("div", { className: "list", tabIndex: 0, role: "listbox", "aria-label": "Relocations" }, this.rows);
    this.list.addEventListener("scroll", () => this.draw());
    this.list.addEventListener("keydown", (e) => {
      const by = { ArrowDown: 1, ArrowUp: -1, PageDown: 12, PageUp: -12, Home: -1e9, End: 1e9 }[e.key];
      if (by) { this.step(by); e.preventDefault(); }
    });
    this.detail = element("div", { className: "detail", role: "region", "aria-label": `The selected relocation on ${load.view.title}, ${load.view.design}`, "aria-live": "polite" });
    box.append(element("section", { "aria-label": `Relocations on ${load.view.title}, ${load.view.design}`, className: "relocations" },
      element("div", { className: "filters" }, labelled("Show", this.which), labelled("Find", this.find), this.matching),
      element("div", { className: "two" }, this.list, this.detail)));
    const moved = () => { this.moved(); this.tell(); }, chosen = () => this.selected();
    load.addEventListener("moved", moved);
    load.addEventListener("selected", chosen);
    this.watch = new ResizeObserver(() => this.draw());
    this.watch.observe(this.list);
    this.close = () => {
      this.watch.disconnect();
      load.removeEventListener("moved", moved);
      load.removeEventListener("selected", chosen);
    };
    this.filter();
    this.selected();
  }

  // Those that the words are about, wherever the module lies.
  matches() {
    if (!this.named) {
      const words = this.find.value.trim().toLowerCase(), { keys } = this.load;
      this.named = Uint32Array.from(keys.keys());
      if (words) this.named = this.named.filter((i) => keys[i].includes(words));
    }
    return this.named;
  }

  // What is another after a move: with a choice of outcomes the list, otherwise the marks of what is seen.
  moved() {
    if (this.which.value !== "all") { this.filter(false); return; }
    const { status } = this.load.motion;
    for (const line of this.rows.children) {
      const now = status[line.dataset.number];
      if (line.dataset.status !== String(now)) this.mark(line, now);
    }
  }

  mark(line, status) {
    line.dataset.status = status;
    line.className = `row ${CLASS[status]}`;
    Object.assign(line.firstChild, { textContent: MARK[status], title: STATUS[status] });
  }

  filter(reset = true) {
    const m = this.load.motion, wanted = { all: -1, direct: OK, via: VIA, fail: FAIL }[this.which.value];
    const named = this.matches();
    this.shown = wanted < 0 ? named : named.filter((i) => m.status[i] === wanted);
    this.matching.textContent = `${this.shown.length} of ${m.count}`;
    this.rows.style.height = `${this.shown.length * ROW}px`;
    if (reset) this.list.scrollTop = 0;
    this.draw();
  }

  draw() {
    const { list, load } = this, m = load.motion, first = Math.max(0, Math.floor(list.scrollTop / ROW) - 4);
    const last = Math.min(this.shown.length, first + Math.ceil(list.clientHeight / ROW) + 8);
    const found = [];
    for (let n = first; n < last; n++) {
      const i = this.shown[n], row = m.rows[m.type[i]];
      const one = element("div", { id: this.id(i), role: "option",
        "aria-selected": i === load.selected, "aria-posinset": n + 1, "aria-setsize": this.shown.length },
      element("b"),
      element("span", { textContent: `${m.sections.get(m.section[i]).name}+0x${m.offset[i].toString(16)}` }),
      element("span", { textContent: row.name }),
      element("span", { textContent: load.name(i) }));
      one.dataset.number = i;
      this.mark(one, m.status[i]);
      one.style.top = `${n * ROW}px`;
      one.addEventListener("click", () => load.select(i));
      found.push(one);
    }
    this.rows.replaceChildren(...found);
  }

  id(i) { return `r${i}-${this.load.view.arch}-${this.load.view.design}`; }

  selected() {
    const i = this.load.selected, at = this.shown.indexOf(i), { list } = this;
    if (at >= 0 && (at * ROW < list.scrollTop || (at + 1) * ROW > list.scrollTop + list.clientHeight)) {
      list.scrollTop = at * ROW - list.clientHeight / 2;
    }
    if (i >= 0) list.setAttribute("aria-activedescendant", this.id(i));
    this.draw();
    this.tell();
  }

  step(by) {
    if (!this.shown.length) return;
    const at = this.shown.indexOf(this.load.selected);
    this.load.select(this.shown[Math.max(0, Math.min(this.shown.length - 1, at < 0 ? 0 : at + by))]);
  }

  tell() {
    const { load } = this, m = load.motion, i = load.selected;
    if (i < 0) {
      this.detail.replaceChildren(element("p", { className: "note",
        textContent: "This module has no relocations." }));
      return;
    }
    const row = m.rows[m.type[i]], x = m.xOf(i), status = m.status[i];
    const where = m.containing(i), lines = [];
    const add = (...line) => lines.push(line);
    add("place P", `${hex(m.place(i))}${where ? ` in ${where}` : ""}`);
    add("symbol", load.name(i));
    add("S+A", hex(m.targetAt(i)));
    if (status === VIA) {
      add("goes to", `${hex(m.entryOf(i))}, entry ${m.slot[i] & 0xffffff} of ${m.entries[m.slot[i] >> 24].name}`);
    }
    add("type", `${row.name}: X = ${row.formula}`);
    if (row.parts.length || row.uleb) add("X", `${this.formula(i, row)}${hex(row.address ? BigInt.asUintN(64, x) : x)}`);
    if (row.lo !== null && row.hi - row.lo < 1n << 64n) {
      const reach = `[${hex(row.lo)}, ${hex(row.hi)})`;
      add("reach", status === FAIL ? `${hex(x)} is not in ${reach}` : `${hex(x)} is in ${reach}`,
        status === FAIL ? "mono bad" : "mono");
    }
    const fields = row.parts.map((p) => p.slices.map(([from, bits, to]) =>
      `X[${from + bits - 1}:${from}] to bits ${to + bits - 1}:${to}`).join(", ")
      + (p.bias ? ` of X+${hex(BigInt(p.bias))}` : "")).join("; ");
    if (fields) add("fields", fields);
    for (const [after, label] of [[false, "before"], [true, "after"]]) {
      if (after && status === FAIL) { add(label, "no bytes: the module is refused", "bad"); continue; }
      if (after && row.uleb) { add(label, "X, as a number of variable length (ULEB128)", ""); continue; }
      const bytes = m.bytes(i, after), code = [...bytes].map((b) => b.toString(16).padStart(2, "0")).join(" ");
      const text = m.before[i] < 0 ? words(row, bytes) : after ? m.textAfter(i) : m.textBefore(i);
      add(label, text ? `${code}   ${text}` : code);
    }
    this.detail.replaceChildren(element("p", { textContent: meaning(row) }), facts(lines), this.bits(i, row));
  }

  // The words of the fields, bit by bit, those of the fields lit.
  bits(i, row) {
    const m = this.load.motion, box = element("div", { className: "words" });
    const start = m.code_size[i] ? m.code_start[i] : m.offset[i], states = [["before", m.bytes(i, false)]];
    if (m.status[i] !== FAIL) states.push(["after", m.bytes(i, true)]);
    for (const part of row.parts) {
      const at = m.offset[i] - start + part.offset, lit = new Set();
      for (const [, bits, to] of part.slices) for (let n = to; n < to + bits; n++) lit.add(n);
      for (const [label, bytes] of states) {
        const word = wordAt(bytes, at, part.size);
        const cells = []; // a byte of them stays on one line
        for (let n = part.size * 8 - 1; n >= 0; n--) {
          const bit = (word >> BigInt(n)) & 1n;
          if (n % 8 === 7) cells.push(element("span"));
          cells[cells.length - 1].append(element("i", { textContent: String(bit), className: lit.has(n) ? "lit" : "" }));
        }
        box.append(element("div", { className: "word", role: "img",
          "aria-label": `${label}: ${hex(word)}; ${lit.size} bits of ${part.size * 8} are the field` },
        element("span", { textContent: label }), element("span", { className: "bits" }, ...cells)));
      }
    }
    return box;
  }

  // The terms of X with their numbers; empty where they are more than addresses.
  formula(i, row) {
    const m = this.load.motion, s = m.targetAt(i) - m.addend[i], a = m.addend[i], via = m.status[i] === VIA;
    if ((row.got && !via) || row.sums || row.terms.some(([, letters]) => letters !== "SA" && letters !== "P")) return "";
    const target = via ? m.entryOf(i) : m.targetAt(i);
    const sum = via ? hex(target) : `${hex(BigInt.asUintN(64, s))} ${a < 0n ? "-" : "+"} ${hex(a < 0n ? -a : a)}`;
    const text = row.terms.map(([sign, letters, granule, bias], n) => {
      const value = letters === "P" ? m.place(i) : target, plain = granule === 1 && bias === 0;
      const shown = !plain ? hex(rounded(value, granule, bias)) : letters === "P" ? hex(value) : sum;
      return `${sign < 0 ? " - " : n ? " + " : ""}${shown}`;
    }).join("");
    return text ? `${text} = ` : "";
  }
}

register({
  name: "what", title: "What", each: true,
  question: "What does each relocation change?",
  opening: () => sentence("A module's file leaves holes where addresses belong. A relocation says what to compute for a hole, "
    + "from [S, A, P, X|S, A and P], and in which bits of the instruction it goes."),
  mount(box, context) {
    if (context.load.selected < 0 && context.load.motion.count) context.load.selected = 0;
    const view = new What(box, context.load);
    context.expose({ what: view });
    return () => view.close();
  },
});
