// SPDX-License-Identifier: GPL-2.0-or-later
// The view *where*: the address space with the module in it, and what happens as it moves.

import { button, choice, element, labelled, sentence, sizeText } from "execmem/elements.js";
import { KINDS, AddressMap } from "execmem/map.js";
import { hex, signed } from "execmem/motion.js";
import { register } from "execmem/router.js";

const PAGE = 4096n;
const ZOOMS = [["2^64", "everything"], ["Kernel half", "kernelHalf"], ["Reach", "reach"], ["Module", "module"],
  ["Text", "text"], ["Selection", "selection"], ["Instruction", "instruction"]];

// A page more with each step near the middle, so that a key always moves something; further out, by powers.
function slideToMove(value) {
  const pages = Math.max(Math.abs(value), Math.round(2 ** (Math.abs(value) / 1000 * 22)) - 1);
  return BigInt(Math.sign(value) * pages) * PAGE;
}

function moveToSlide(move) {
  const pages = Number(move < 0n ? -move : move) / 4096;
  return Math.sign(Number(move)) * Math.min(1000, pages, Math.log2(pages + 1) / 22 * 1000);
}

function signedSize(move) {
  return move === 0n ? "not moved" : `${move < 0n ? "-" : "+"}${sizeText(move < 0n ? -move : move)} (${hex(move)})`;
}

class Where {
  constructor(box, load) {
    this.load = load;
    this.verdict = element("p", { className: "verdict", role: "status", "aria-live": "polite" });
    this.what = choice([["both", "text and data together"], ["text", "text alone"], ["data", "data alone"]],
      "both", () => this.show(), { "aria-label": "What moves" });
    this.slide = element("input", { type: "range", min: -1000, max: 1000, value: 0, step: 1, className: "slide",
      "aria-label": "Move the module" });
    this.moved = element("output", { className: "moved" });
    this.at = [1, 2].map((group) => element("input", { spellcheck: false, size: 20,
      className: group === 1 ? "text-at" : "data-at" }));
    this.slide.addEventListener("input", () => this.slid());
    this.at.forEach((input, n) => input.addEventListener("change", () => this.typed(input, n + 1)));
    this.under = element("p", { className: "note under" });
    const canvas = element("canvas", { tabIndex: 0, className: "map", role: "img",
      "aria-label": "Address space to scale. Arrow keys pan, plus and minus zoom, Home shows the module." });
    box.append(
      element("section", { "aria-label": `Placement on ${load.view.title}, ${load.view.design}`, className: "placement" }, this.verdict,
        element("div", { className: "move" }, element("span", { textContent: "Move" }), this.what, this.slide, this.moved),
        element("div", { className: "move" }, labelled("Text at", this.at[0]), labelled("Data at", this.at[1])),
        this.buttons(),
        element("p", { className: "note", textContent: "The slider is logarithmic: a page next to the middle, 16 GiB at "
          + "the ends. Addresses can be typed, regions dragged on the map; everything moves by whole pages." })),
      element("section", { "aria-label": `Address space of ${load.view.title}, ${load.view.design}`, className: "space" }, this.zooms(), canvas, this.legend(), this.under));
    this.map = new AddressMap(canvas, load, (words) => { this.under.textContent = words; });
    this.map.together = () => this.what.value === "both";
    const shown = (event) => this.show(event.detail);
    load.addEventListener("moved", shown);
    load.addEventListener("selected", shown);
    this.close = () => {
      load.removeEventListener("moved", shown);
      load.removeEventListener("selected", shown);
      this.map.close();
    };
    this.show();
  }

  buttons() {
    const why = this.load.withoutPlt;
    const edge = (label, direction, stubs) => button(label, () => this.edge(direction, stubs),
      stubs && why ? { "aria-disabled": "true", title: why } : {});
    const found = element("div", { className: "move" },
      button("Where it was loaded", () => this.load.place(0n, 0n)),
      edge("First refusal below", -1, false), edge("First refusal above", 1, false),
      edge("First PLT entry below", -1, true), edge("First PLT entry above", 1, true));
    if (why) found.append(element("span", { className: "note", textContent: `${why}.` }));
    return found;
  }

  edge(direction, stubs) {
    const why = stubs && this.load.withoutPlt;
    if (why) {
      this.verdict.textContent = `${this.load.verdict()} No move needs a PLT entry: ${why}.`;
      return;
    }
    this.what.value = "both";
    if (this.load.edge(direction, stubs)) this.map.reach();
    else this.verdict.textContent += stubs ? " No move needs a PLT entry." : " No move is refused.";
  }

  zooms() {
    const found = element("div", { className: "zoom", role: "toolbar", "aria-label": "Zoom" },
      ...ZOOMS.map(([label, method]) => button(label, () => this.map[method]())));
    for (const [label, factor, name] of [["-", 2, "Zoom out"], ["+", 0.5, "Zoom in"]]) {
      found.append(button(label, () => this.map.zoom(factor), { "aria-label": name }));
    }
    return found;
  }

  legend() {
    const found = element("p", { className: "legend" });
    for (const type of new Set(this.load.view.regions.map((r) => r.type))) {
      const [label, letter, colour] = KINDS[type];
      const mark = element("i", { textContent: letter, className: colour });
      mark.style.background = `var(--${colour})`;
      found.append(element("span", {}, mark, label));
    }
    for (const [label, name] of [["reaches", "ok"], ["through the PLT", "via"], ["out of reach", "fail"]]) {
      found.append(element("span", {}, element("b", { className: `line ${name}` }), label));
    }
    found.append("hatched: 4 KiB leaves, and regions that were freed");
    return found;
  }

  show(from = null) {
    const { load } = this, m = load.motion;
    this.at.forEach((input, n) => {
      const start = load.groupStart(n + 1), move = n ? m.data : m.text;
      input.disabled = start === null;
      if (input !== from) input.value = start === null ? "" : hex(BigInt.asUintN(64, start + move));
      input.setCustomValidity("");
    });
    if (this.slide !== from) this.slide.value = moveToSlide(this.what.value === "data" ? m.data : m.text);
    this.moved.textContent = m.text === m.data ? signedSize(m.text)
      : `text ${signedSize(m.text)}, data ${signedSize(m.data)}`;
    this.slide.setAttribute("aria-valuetext", this.moved.textContent);
    this.verdict.className = `verdict ${m.failed ? "refused" : m.via ? "via" : "direct"}`;
    this.verdict.textContent = load.verdict();
    Object.assign(this.verdict.dataset, { failed: m.failed, via: m.via, used: m.used.join(",") });
    this.map.draw();
  }

  typed(input, group) {
    const { load } = this;
    let value;
    try { value = BigInt(input.value.trim()); } catch { value = null; }
    if (value === null || value < 0n || value >= 1n << 64n || value % PAGE) {
      input.setCustomValidity("an address, a multiple of 0x1000");
      input.reportValidity();
      return;
    }
    const move = signed(value - load.groupStart(group)), m = load.motion;
    const both = this.what.value === "both";
    if (group === 1) load.place(move, both ? move : m.data, input);
    else load.place(both ? move : m.text, move, input);
  }

  slid() {
    const move = slideToMove(+this.slide.value), m = this.load.motion, what = this.what.value;
    this.load.place(what === "data" ? m.text : move, what === "text" ? m.data : move, this.slide);
  }
}

register({
  name: "where", title: "Where", each: true,
  question: "Why can a module not live anywhere?",
  opening: () => sentence("Instructions name addresses in few bits, so each gets only so far: its [reach]. Move the module "
    + "and see which of its relocations still get to the kernel, which need a [PLT] entry, and when the load is refused."),
  mount(box, context) {
    const view = new Where(box, context.load);
    context.expose({ map: view.map, repaint: () => view.map.paint() });
    return () => view.close();
  },
});
