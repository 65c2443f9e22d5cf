// SPDX-License-Identifier: GPL-2.0-or-later
// The view *kernel*: the page tables of a booted kernel as a map, down to single entries, and who lies where.

import { button, element, facts, labelled, refocus, sentence, sizeText, table } from "execmem/elements.js";
import { hex } from "execmem/motion.js";
import { register } from "execmem/router.js";
import { shell } from "execmem/source.js";

const AT_ONCE = 64; // entries that a table shows
const END = 1n << 64n;

// What the kernel's words for bits of an entry mean, those that a reader meets most.
const WORDS = {
  RW: "may be written", ro: "may only be read", NX: "may not be executed", x: "may be executed",
  PSE: "one entry maps a large [leaf]", BLK: "one entry maps a large [leaf]", CON: "one of several in a row that a TLB may keep as one",
  GLB: "stays in TLBs when processes change", G: "stays in TLBs when processes change", USR: "processes may use it", U: "processes may use it",
  AF: "was used", A: "was used", D: "was written", SHD: "is the same for all CPUs", UXN: "processes may not execute it",
  PWT: "is written through caches", PCD: "is not kept in caches", PAT: "is kept in caches as a table says",
  "MEM/NORMAL": "ordinary memory, kept in caches", "MEM/NORMAL-NC": "memory that is not kept in caches",
  "MEM/NORMAL-TAGGED": "memory whose pointers are checked by tags", "DEVICE/nGnRE": "registers of a device", "DEVICE/nGnRnE": "registers of a device",
  R: "may be read", W: "may be written", X: "may be executed", V: "is there",
};

// What may be done with memory, by the words that kernels have for it.
export function rights(flags) {
  const words = flags.split(/\s+/);
  const write = words.includes("RW") || words.includes("W"), execute = words.includes("x") || words.includes("X");
  return `R${write ? "W" : "-"}${execute ? "X" : "-"}`;
}

const COLOURS = { "R-X": "text", "RW-": "data", "R--": "rodata", RWX: "fail" };
const NAMES = { "R-X": "code: read and executed", "RW-": "data: read and written", "R--": "read only", RWX: "written and executed: must not be" };

class Line {
  constructor(told) {
    this.told = told;
    this.start = BigInt(told.start);
    this.end = BigInt(told.end) || END;
    this.size = this.end - this.start;
    this.page = BigInt(told.page);
    this.mapped = told.physical !== null;
    this.rights = this.mapped ? rights(told.flags) : "";
    this.count = this.mapped ? this.size / this.page : 0n;
  }
}

class Kernel {
  constructor(box, context) {
    Object.assign(this, { box, context, state: context.state, first: 0 });
  }

  async start() {
    const served = this.context.offer.kernel;
    if (!served) {
      this.box.append(element("p", { className: "verdict refused" }, "No kernel is there: start ", element("code", { textContent: "execmem serve --kernel PATH" }),
        ", PATH being an image, a package, or a tree of one."));
      return;
    }
    this.box.append(element("p", { className: "note waiting", role: "status", textContent: "The kernel boots, which takes seconds the first time ..." }));
    this.told = await this.context.ask(["kernel", served.words, "--ptdump"]);
    this.served = served;
    this.lines = this.told.lines.map((each) => new Line(each));
    this.runs = this.told.runs.map((run) => ({ start: BigInt(run.address), physical: BigInt(run.physical), size: BigInt(run.size) }));
    this.regions = [];
    for (const line of this.lines) {
      const last = this.regions[this.regions.length - 1];
      if (last?.name === line.told.under) last.lines.push(line);
      else this.regions.push({ name: line.told.under, lines: [line] });
    }
    this.regions = this.regions.filter((region) => region.lines.some((line) => line.mapped));
    this.box.replaceChildren(this.head(), this.search(), this.map(), this.panel());
    const at = this.state.get("line");
    const line = this.lines.find((each) => each.told.start === at && each.mapped);
    if (line) this.choose(line);
    if (this.state.get("find")) this.lookUp(this.state.get("find"));
  }

  head() {
    const mapped = this.lines.filter((line) => line.mapped), by = new Map();
    for (const line of mapped) {
      const held = by.get(line.told.page) ?? [0n, 0n];
      by.set(line.told.page, [held[0] + line.count, held[1] + line.size]);
    }
    const open = mapped.filter((line) => line.rights === "RWX");
    const verdict = element("p", { className: `verdict ${open.length ? "refused" : "direct"}`, id: "open" });
    verdict.textContent = open.length
      ? `${open.length} stretches may be written and executed: ${open.map((line) => line.told.start).join(", ")}.`
      : "Nothing may be written and executed at one address.";
    const leaves = [...by].sort((a, b) => a[0] - b[0]).map(([page, [n, size]]) => [sizeText(page), n.toLocaleString("en"), sizeText(size)]);
    const notes = (this.told.notices ?? []).map((text) => element("p", { className: "note", textContent: text }));
    return element("section", { "aria-label": "Kernel" },
      element("h3", { textContent: `Linux ${this.told.release}, ${this.told.arch}` }), verdict,
      table(["an entry maps", "entries", "in all"], leaves), ...notes,
      element("p", { className: "note" }, "In a terminal: ", element("code", { textContent: shell(["kernel", this.served.name, "--ptdump"]) })));
  }

  // Symbols ---------------------------------------------------------------------------------

  search() {
    this.query = element("input", { type: "search", id: "find", size: 28, spellcheck: false, value: this.state.get("find"), placeholder: "kfree, kstrto*, 0xffff..." });
    this.found = element("div", { className: "found", role: "region", "aria-label": "Symbols that were found", "aria-live": "polite" });
    const form = element("form", { className: "move" }, labelled("Find a symbol", this.query), element("button", { type: "submit", textContent: "Find" }));
    form.addEventListener("submit", (e) => { e.preventDefault(); this.lookUp(this.query.value); });
    return element("section", { "aria-label": "Symbols" }, form, this.found);
  }

  async lookUp(text) {
    text = text.trim();
    this.state.set("find", text);
    if (!text) { this.found.replaceChildren(); return; }
    const asked = /[*?[]|^0x/.test(text) ? text : `*${text}*`, turn = this.turn = Symbol(text);
    this.found.replaceChildren(element("p", { className: "note", textContent: "Looking ..." }));
    try {
      const told = await this.symbols(asked);
      if (turn !== this.turn) return;
      const places = Object.entries(told).filter(([, place]) => place.address !== null)
        .sort(([a], [b]) => (b === text) - (a === text) || a.length - b.length || (a < b ? -1 : 1));
      this.shown(places, text);
    } catch (error) {
      if (turn === this.turn) this.found.replaceChildren(element("p", { className: "verdict refused", textContent: error.message }));
    }
  }

  // Symbols like a pattern, and where they are; a page that stands alone has those that are exported.
  async symbols(asked) {
    const { exports } = this.context.offer;
    if (!exports) return (await this.context.ask(["kernel", this.served.words, "--symbol", asked])).places;
    if (asked.startsWith("0x")) throw new Error("Who lies at an address is not known in this page, which has the exported symbols only: execmem serve --kernel PATH knows all.");
    const like = pattern(asked);
    return Object.fromEntries(Object.entries(exports).filter(([name]) => like.test(name))
      .map(([name, [address, gpl]]) => [name, { address, exported: true, gpl: Boolean(gpl), prototype: null }]));
  }

  shown(places, text) {
    if (!places.length) {
      const which = this.context.offer.exports ? "No exported symbol is like it, and others are not in this page (execmem serve --kernel PATH has them):" : "No symbol is like";
      this.found.replaceChildren(element("p", { className: "note", textContent: `${which} ${text}.` }));
      return;
    }
    const rows = places.slice(0, AT_ONCE).map(([name, place]) => {
      const line = this.holding(BigInt(place.address));
      return [button(place.address, () => this.choose(line, BigInt(place.address)), { disabled: !line, "aria-label": `Show ${name} at ${place.address}` }),
        name, line ? line.rights : "not mapped", place.exported ? (place.gpl ? "GPL modules" : "modules") : "", place.prototype ?? ""];
    });
    const more = places.length > AT_ONCE ? [element("p", { className: "note", textContent: `${places.length.toLocaleString("en")} were found, the first ${AT_ONCE} are shown.` })] : [];
    this.found.replaceChildren(table(["address", "symbol", "rights", "exported to", "as C"], rows), ...more);
  }

  holding(address) { return this.lines.find((line) => line.mapped && line.start <= address && address < line.end); }

  // The map ---------------------------------------------------------------------------------

  // A strip for each part of the address space: its stretches in order, as wide as the log of their entries.
  map() {
    const seen = [...new Set(this.lines.map((line) => line.rights).filter(Boolean))];
    const legend = element("p", { className: "legend" }, ...seen.map((each) => {
      const mark = element("i", { textContent: each, className: "plate" });
      mark.style.setProperty("--plate", `var(--${COLOURS[each] ?? "kernel"})`);
      return element("span", {}, mark, NAMES[each] ?? each);
    }));
    return element("section", { "aria-label": "Map" }, element("h3", { textContent: "What is mapped, part by part" }),
      sentence("Each block is a stretch of entries that are alike. A high block is made of large [leaf|leaves], a low one of small ones; "
        + "holes are left out. Arrow keys go from block to block.", { className: "note" }),
      legend, ...this.regions.map((region) => this.strip(region)));
  }

  strip(region) {
    const mapped = region.lines.filter((line) => line.mapped), smallest = mapped.reduce((a, line) => (line.page < a ? line.page : a), END);
    const size = mapped.reduce((sum, line) => sum + line.size, 0n);
    const blocks = mapped.map((line) => {
      const found = element("button", { type: "button", className: "block", tabIndex: -1,
        title: `${line.told.start}: ${sizeText(line.size)} ${line.rights}`,
        "aria-label": `${line.told.start}, ${sizeText(line.size)}, ${line.rights}, ${line.count} entries of ${sizeText(line.page)}` });
      found.style.flexGrow = String(1 + Math.log2(Number(line.count)));
      found.style.background = `var(--${COLOURS[line.rights] ?? "kernel"})`;
      found.classList.toggle("large", line.page > 4096n * 16n || line.page > smallest);
      found.addEventListener("click", () => this.choose(line));
      found.addEventListener("keydown", (e) => {
        const by = { ArrowLeft: -1, ArrowRight: 1, Home: -1e6, End: 1e6 }[e.key];
        if (!by) return;
        e.preventDefault();
        const at = Math.max(0, Math.min(blocks.length - 1, blocks.indexOf(found) + by));
        blocks[at].focus();
        this.choose(mapped[at]);
      });
      line.block = found;
      return found;
    });
    if (blocks.length) blocks[0].tabIndex = 0;
    return element("div", { className: "strip" },
      element("h4", { textContent: `${region.name} from ${region.lines[0].told.start}: ${sizeText(size)} in ${mapped.length === 1 ? "one stretch" : `${mapped.length} stretches`}` }),
      element("div", { className: "blocks", role: "group", "aria-label": region.name }, ...blocks),
      element("details", {}, element("summary", { textContent: "As a table" }), table(["from", "to", "size", "entries", "of", "rights", "the kernel's words"],
        mapped.map((line) => [button(line.told.start, () => this.choose(line)), line.told.end, sizeText(line.size), line.count.toLocaleString("en"),
          sizeText(line.page), line.rights, line.told.flags]))));
  }

  // One stretch -----------------------------------------------------------------------------

  panel() {
    this.detail = element("section", { "aria-label": "Entries", id: "entries" },
      element("p", { className: "note", textContent: "Choose a block of the map, or find a symbol, to see its entries." }));
    return this.detail;
  }

  choose(line, address = line.start) {
    this.line?.block?.removeAttribute("aria-pressed");
    this.line = line;
    line.block.setAttribute("aria-pressed", "true");
    this.state.set("line", line.told.start);
    this.first = Number((address - line.start) / line.page / BigInt(AT_ONCE)) * AT_ONCE;
    this.address = address;
    this.entries();
  }

  // Where an entry leads; null: to no memory that this machine has, and only the first is told.
  leads(address, line) {
    const run = this.runs.find((each) => each.start <= address && address < each.start + each.size);
    if (run) return run.physical + address - run.start;
    return address === line.start ? BigInt(line.told.physical) : null;
  }

  entries() {
    const { line, first } = this, count = Number(line.count), last = Math.min(count, first + AT_ONCE), rows = [], own = [];
    for (let n = first; n < last; n++) {
      const at = line.start + BigInt(n) * line.page;
      const leads = this.leads(at, line);
      own.push(this.address !== line.start && at <= this.address && this.address < at + line.page);
      rows.push([n.toLocaleString("en"), hex(at), leads === null ? "a device" : hex(leads), `${sizeText(line.page)}`]);
    }
    const words = line.told.flags.split(/\s+/).filter((word) => WORDS[word]);
    const go = (label, to) => button(label, () => { this.first = to; refocus(() => this.entries()); }, { disabled: to < 0 || to >= count });
    this.detail.replaceChildren(element("h3", { textContent: `${line.told.under}: ${line.told.start} to ${line.told.end}` }),
      facts([["size", sizeText(line.size)], ["entries", `${line.count.toLocaleString("en")} of ${sizeText(line.page)}, on level ${line.told.level}`],
        ["first leads to", line.told.physical], ["rights", `${line.rights}: ${NAMES[line.rights] ?? ""}`], ["the kernel's words", line.told.flags]]),
      element("ul", { className: "words" }, ...words.map((word) => element("li", {}, element("code", { textContent: word }), ": ", ...sentence(WORDS[word]).childNodes))),
      button("Who lies at its beginning?", () => { this.query.value = hex(this.address); this.lookUp(hex(this.address)); }),
      element("div", { className: "move", role: "group", "aria-label": "Entries" }, go("Earlier", first - AT_ONCE), go("Later", first + AT_ONCE),
        element("span", { className: "note", textContent: `${first.toLocaleString("en")} to ${(last - 1).toLocaleString("en")} of ${count.toLocaleString("en")}` })),
      table(["entry", "address", "leads to", "maps"], rows, own));
  }
}

// A pattern of a shell, as an expression for whole names.
function pattern(text) {
  const parts = text.replace(/[.+^${}()|\\]/g, "\\$&").replaceAll("*", ".*").replaceAll("?", ".").replaceAll("[!", "[^");
  try { return new RegExp(`^(?:${parts})$`, "s"); } catch { return new RegExp(`^${text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")}$`); }
}

register({
  name: "kernel", title: "Kernel", asks: true, module: false, terminal: "execmem kernel PATH --ptdump",
  question: "What does a booted kernel have in memory, and what may be done with it?",
  opening: () => sentence("A kernel reaches memory through page tables. Each entry maps a [leaf] and says what may be done there: read, write, execute. Here are "
    + "all entries of a real kernel that was booted, as it prints them itself: choose a part, go down to single entries, or look who lies where."),
  async mount(box, context) {
    const kernel = new Kernel(box, context);
    context.expose({ kernel });
    await kernel.start();
  },
});
