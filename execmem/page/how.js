// SPDX-License-Identifier: GPL-2.0-or-later
// The view *how*: the load, step by step, as the page table around the module sees it.

import { button, element, sentence, sizeText, table } from "execmem/elements.js";
import { hex } from "execmem/motion.js";
import { register } from "execmem/router.js";

class How {
  constructor(box, context) {
    this.load = context.load;
    this.remember = context.state;
    const { steps } = this.load.view;
    if (!steps.length) {
      box.append(element("p", { className: "note", textContent: "The steps of this load were not recorded: a booted kernel does them by itself. "
        + "The kernel modelled here shows each: leave out --kernel, or choose the kernel \"modelled\" above." }));
      return;
    }
    this.tabs = element("div", { className: "steps", role: "tablist", "aria-label": "Steps of the load" },
      ...steps.map((s, n) => {
        const found = button(`${n} ${s.name}`, () => this.show(n), { role: "tab" });
        found.addEventListener("keydown", (e) => {
          const by = { ArrowLeft: -1, ArrowRight: 1 }[e.key], next = by && this.tabs.children[n + by];
          if (next) { next.focus(); next.click(); }
        });
        return found;
      }));
    this.panel = element("div", { className: "step", role: "tabpanel", "aria-live": "polite" });
    box.append(element("section", { "aria-label": `Time line of the load on ${this.load.view.title}, ${this.load.view.design}` }, this.tabs, this.panel),
      element("details", { className: "regions" }, element("summary", { textContent: "Regions and sections" }), this.memory()));
    this.show(Math.max(0, Math.min(steps.length - 1, Number(this.remember.get("step", steps.length - 1)) || 0)));
  }

  show(n) {
    const { steps } = this.load.view, s = steps[n];
    this.remember.set("step", n, steps.length - 1);
    [...this.tabs.children].forEach((b, k) => {
      b.setAttribute("aria-selected", k === n);
      b.tabIndex = k === n ? 0 : -1;
    });
    this.panel.setAttribute("aria-label", `Step ${n}: ${s.name}`);
    const before = new Set((steps[n - 1]?.spans ?? s.spans).map(key));
    const rows = s.spans.map((span) => [
      hex(BigInt(span.start)), sizeText(BigInt(span.end) - BigInt(span.start)), span.prot, span.leaf,
      [span.own ? "holds this module" : "", before.has(key(span)) ? "" : "changed"].filter(Boolean).join(", ")]);
    const events = Object.entries(s.events).map(([k, v]) => `${k.replaceAll("_", " ")} ${v}`).join(", ");
    this.panel.replaceChildren(
      element("p", { textContent: s.what }),
      table(["mapped at", "size", "protection", "leaf", "of it"], rows, s.spans.map((x) => x.own)),
      element("p", { className: "note", textContent: events ? `Counted in this step: ${events}.` : "Nothing was counted in this step." }));
  }

  memory() {
    const { regions, sections } = this.load.view;
    return element("div", {},
      table(["region", "address", "size", "protection"], regions.map((r) =>
        [r.type, hex(BigInt(r.start)), sizeText(BigInt(r.size)), r.freed ? `${r.prot}, freed` : r.prot])),
      table(["section", "in", "address", "size"], sections.map((s) =>
        [s.name, s.type, hex(BigInt(s.start)), `0x${s.size.toString(16)}`])));
  }
}

function key(span) { return [span.start, span.end, span.prot, span.leaf].join(" "); }

register({
  name: "how", title: "How", each: true,
  question: "How does a module come into memory?",
  opening: () => sentence("Memory is never writable and executable at once, so a load goes in steps: bytes are made in a buffer, "
    + "written, and only then executable. Each step shows the page table around the module, a line for each run of equal [leaf|leaves]."),
  mount(box, context) { new How(box, context); },
});
