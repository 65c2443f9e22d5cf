// SPDX-License-Identifier: GPL-2.0-or-later
// The view *designs*: one workload under two designs of executable memory, as two films side by side.

import { button, choice, element, labelled, sentence, sizeText, table, term } from "execmem/elements.js";
import { Film, FilmCanvas, directMap } from "execmem/film.js";
import { KINDS } from "execmem/map.js";
import { hex } from "execmem/motion.js";
import { register } from "execmem/router.js";
import { shell } from "execmem/source.js";

const SIDES = ["left", "right"], FIRST = { left: "vmalloc", right: "strata" };
const CALM = matchMedia("(prefers-reduced-motion: reduce)").matches ? "slow" : "normal";
const MOMENTS = 80, PACE = { slow: 900, normal: 300, fast: 90 };
const count = (value) => value.toLocaleString("en");
const share = (value) => `${Math.round(value * 100)} %`;
const sum = (leaves, name) => Object.values(leaves).reduce((n, each) => n + (each[name] ?? 0), 0);

// [words, the value of a film's present moment, how it is written, whether less is better]
const ROWS = [
  ["modules loaded", (f) => f.frame.measures.modules, count, null],
  ["requests refused", (f) => f.frame.measures.refused, count, true],
  ["[leaf|leaves] that map text", (f) => Object.values(f.frame.measures.leaves.TEXT).reduce((a, b) => a + b, 0), count, true],
  ["small leaves of all types", (f) => sum(f.frame.measures.leaves, f.small), count, true],
  ["large leaves of all types", (f) => sum(f.frame.measures.leaves, f.big), count, null],
  ["text under large leaves", (f) => f.frame.measures.large_share.TEXT, share, false],
  ["large leaves split so far", (f) => f.split, count, true],
  ["healed again ([collapse])", (f) => f.healed, count, null],
  ["splits of the [direct map]", (f) => f.frame.measures.direct_map_splits, count, true],
  ["TLB flushes of all CPUs", (f) => f.frame.measures.tlb_flushes_all, count, true],
  ["TLB flushes of one CPU", (f) => f.frame.measures.tlb_flushes_local, count, true],
  ["[poke|pokes]", (f) => f.frame.measures.pokes, count, true],
  ["modules before the first [PLT] entry", (f) => f.frame.measures.modules_before_first_plt, count, false],
  ["PLT entries reserved", (f) => f.frame.measures.plt_slots, count, true],
  ["module window taken", (f) => f.frame.measures.window_used + f.frame.measures.fallback_used, sizeText, true],
  ["padding", (f) => f.frame.measures.padding_bytes, sizeText, true],
  ["mapped and unused", (f) => f.frame.measures.free_mapped_bytes, sizeText, true],
];

class Designs {
  constructor(box, context) {
    Object.assign(this, { box, context, state: context.state, films: {}, timer: 0, turn: 0 });
    this.at = Number(this.state.get("at", "0")) || 0;
  }

  async start() {
    this.offer = await this.context.ask(["compare", "--list"]);
    const only = (option, all) => {
      const held = this.context.values("compare", option);
      return held ? all.filter(([name]) => held.has(name)) : all;
    };
    const names = only("--workload", this.offer.workloads.map((w) => [w.name, w.name]));
    const designs = only("--design", this.offer.designs.filter((d) => !d.error).map((d) => [d.name, d.name]));
    const archs = only("--arch", this.context.offer.archs.map((a) => [a.name, a.title]));
    this.arch = this.chosen("arch", archs, archs[0]?.[0]);
    this.workload = this.chosen("workload", names, names.some(([n]) => n === "server") ? "server" : names[0][0]);
    this.design = Object.fromEntries(SIDES.map((side) => [side, this.chosen(side, designs, FIRST[side])]));
    this.about = element("p", { className: "note" });
    this.wait = element("p", { className: "note", role: "status" });
    this.play = button("Play", () => this.run(!this.timer), { id: "play" });
    this.scrub = element("input", { type: "range", id: "scrub", min: 0, max: 0, value: 0, step: 1, "aria-label": "Moment" });
    this.scrub.addEventListener("input", () => { this.run(false); this.seek(Number(this.scrub.value)); });
    this.pace = choice(Object.keys(PACE).map((p) => [p, p]), this.state.get("pace", CALM),
      (value) => { this.state.set("pace", value, CALM); if (this.timer) { this.run(false); this.run(true); } });
    this.close = button("Look inside the next operation", () => this.closely());
    this.moment = element("p", { className: "verdict direct", id: "moment", role: "status", "aria-live": "polite" });
    this.counters = element("div", { className: "counters" });
    this.panels = element("div", { className: "beside" });
    const controls = element("div", { className: "move" },
      labelled("Workload", this.workload), labelled("Architecture", this.arch),
      labelled("Left", this.design.left), labelled("Right", this.design.right));
    const film = element("div", { className: "move", role: "group", "aria-label": "Film" },
      this.play, button("Back", () => this.step(-1)), button("On", () => this.step(1)), this.scrub,
      labelled("Pace", this.pace), this.close);
    if (this.context.alone) {
      this.close.disabled = true;
      film.append(element("span", { className: "note" }, "Other workloads and designs, and the inside of an operation: ", element("code", { textContent: "execmem serve" })));
    }
    this.section = element("section", { "aria-label": "Designs", tabIndex: -1 }, controls, this.about, film, this.moment);
    this.section.addEventListener("keydown", (e) => this.key(e));
    this.box.append(this.section, this.panels, element("section", { "aria-label": "Counters" }, element("h3", { textContent: "So far" }), this.counters, this.wait),
      this.legend());
    await this.film();
  }

  chosen(key, options, otherwise) {
    const found = choice(options, options.some(([o]) => o === this.state.get(key)) ? this.state.get(key) : otherwise, (value) => {
      this.state.set(key, value, otherwise);
      this.state.set("closely", "");
      this.at = 0;
      this.film();
    });
    found.dataset.key = key;
    return found;
  }

  // Each side is asked for by itself, so that one stays while the other changes.
  words(...sides) {
    const near = !this.context.alone && this.state.get("closely");
    return ["compare", "--workload", this.workload.value, "--arch", this.arch.value,
      ...[...new Set(sides.map((side) => this.design[side].value))].flatMap((d) => ["--design", d]),
      "--film", String(MOMENTS), ...(near ? ["--closely", near] : [])];
  }

  async film() {
    this.run(false);
    const turn = ++this.turn;
    this.wait.textContent = "The workload runs ...";
    try {
      const told = await Promise.all(SIDES.map((side) => this.context.ask(this.words(side))));
      if (turn !== this.turn) return;
      for (const [n, side] of SIDES.entries()) {
        if (told[n].errors?.length) throw new Error(told[n].errors[0].error);
        const film = new Film(told[n].runs[0].film);
        film.big = leafName(film.told.large);
        film.small = leafName(film.told.page);
        this.films[side] = film;
      }
    } catch (error) {
      if (turn !== this.turn) return;
      this.wait.textContent = "";
      this.moment.className = "verdict refused";
      this.moment.textContent = /allocate memory/i.test(error.message)
        ? `${error.message}: this workload needs more than an answer may have (execmem serve --memory 9000 gives more).` : error.message;
      return;
    }
    this.wait.replaceChildren("In a terminal: ", element("code", { textContent: shell([...this.words(...SIDES), "--json"]) }));
    const summary = this.offer.workloads.find((w) => w.name === this.workload.value)?.summary ?? "";
    this.about.textContent = `${summary}; ${count(this.films.left.told.operations)} operations.`;
    this.last = Math.max(...SIDES.map((side) => this.films[side].last));
    this.scrub.max = this.last;
    if (this.state.get("closely") && !this.state.get("at")) this.at = this.films.left.frames.findIndex((f) => f.inside);
    this.show();
    this.seek(this.at);
  }

  show() {
    for (const panel of this.shown ?? []) panel.canvas.close();
    this.shown = SIDES.map((side) => new Panel(side, this.films[side], this.offer.designs.find((d) => d.name === this.design[side].value)));
    this.panels.replaceChildren(...this.shown.map((panel) => panel.article));
  }

  // Moving through the film ------------------------------------------------------------------

  key(e) {
    if (["INPUT", "SELECT", "BUTTON", "CANVAS"].includes(e.target.tagName) && e.key === " ") return;
    if (["SELECT", "CANVAS"].includes(e.target.tagName) || e.target === this.scrub) return;
    const keys = { " ": () => this.run(!this.timer), ArrowLeft: () => this.step(-1), ArrowRight: () => this.step(1),
      Home: () => this.seek(0), End: () => this.seek(this.last) };
    if (keys[e.key]) { e.preventDefault(); keys[e.key](); }
  }

  step(by) { this.run(false); this.seek(this.at + by); }

  run(on) {
    clearInterval(this.timer);
    this.timer = 0;
    if (on && this.last) {
      if (this.at >= this.last) this.seek(0);
      this.timer = setInterval(() => (this.at < this.last ? this.seek(this.at + 1) : this.run(false)), PACE[this.pace.value]);
    }
    if (this.play) {
      this.play.textContent = this.timer ? "Pause" : "Play";
      this.play.setAttribute("aria-pressed", Boolean(this.timer));
      this.moment.setAttribute("aria-live", this.timer ? "off" : "polite"); // nobody listens that fast
    }
  }

  seek(n) {
    this.at = Math.max(0, Math.min(this.last, n));
    this.state.set("at", this.at, 0);
    for (const side of SIDES) this.films[side].seek(this.at);
    const { frame, told } = this.films.left;
    this.scrub.value = this.at;
    const where = `${count(frame.operation)} of ${count(told.operations)} operations`;
    const text = frame.last ? `${where}, last: ${frame.last}` : "Before everything: nothing is loaded.";
    this.scrub.setAttribute("aria-valuetext", text);
    this.moment.className = "verdict direct";
    this.moment.textContent = text;
    const inside = Boolean(this.state.get("closely"));
    this.close.textContent = inside ? "Back to the whole film" : "Look inside the next operation";
    this.close.disabled = this.context.alone || (!inside && frame.operation >= told.operations);
    this.count();
    for (const panel of this.shown) panel.show();
  }

  // One operation, moment by moment: leaves that split and heal in it are seen.
  closely() {
    const { frame } = this.films.left;
    if (this.state.get("closely")) {
      this.state.set("closely", "");
      this.at = Number(this.state.get("from", "0")) || 0;
    } else {
      this.state.set("closely", frame.operation + 1);
      this.state.set("from", this.at, 0);
      this.state.set("at", "");
      this.at = 0;
    }
    this.film();
  }

  // Counters ---------------------------------------------------------------------------------

  count() {
    const [left, right] = SIDES.map((side) => this.films[side]);
    const lines = ROWS.map(([words, value, written, less]) => {
      const [a, b] = [value(left), value(right)], most = Math.max(a, b, 1e-9);
      const better = less === null || a === b ? "" : (a < b) === less ? "a" : "b";
      return [inline(words), bar(a / most, written(a), better === "a"), bar(b / most, written(b), better === "b")];
    });
    const found = table(["counted", this.design.left.value, this.design.right.value], lines);
    found.setAttribute("aria-label", "Counters of both designs");
    this.counters.replaceChildren(found);
  }

  legend() {
    const marks = Object.entries(KINDS).map(([, [label, letter, colour]]) => {
      const mark = element("i", { textContent: letter, className: "plate" });
      mark.style.setProperty("--plate", `var(--${colour})`);
      return element("span", {}, mark, label);
    });
    return element("section", { "aria-label": "What is drawn" },
      element("p", { className: "legend" }, ...marks, "pale: mapped, and nobody's"),
      sentence("Each box is a [chunk]: as much as one large [leaf] maps. A firm frame is a large leaf; a dashed one with seams is mapped in "
        + "small pages, or not at all. A corner in orange changed in the last moment. The number is how much of it is in use. "
        + "Under each design lies the [direct map]: blue blocks have lost their largest leaf, orange ones are in pages.", { className: "note" }),
      sentence("Keys: space plays, arrows step, Home and End go to the ends; in a picture arrows go from box to box.", { className: "note" }));
  }
}

// A sentence that is a part of a line.
function inline(text) { return element("span", {}, ...sentence(text).childNodes); }

// A number with a bar behind it, and a mark where it is the better one.
function bar(part, text, better) {
  const found = element("span", { className: `bar${better ? " better" : ""}` }, element("span", { textContent: text }));
  found.style.setProperty("--part", part);
  if (better) found.append(element("span", { className: "mark", title: "the better one", "aria-label": "the better one", role: "img", textContent: "\u2713" }));
  return found;
}

function leafName(size) { return sizeText(size).replace(" ", ""); }

class Panel {
  constructor(side, film, design) {
    this.film = film;
    this.picture = element("canvas", { className: "film", tabIndex: 0, role: "img", "aria-label": "" });
    this.direct = element("canvas", { className: "direct-map", role: "img", "aria-label": "" });
    this.detail = element("p", { className: "note under", role: "status", "aria-live": "polite" });
    this.told = element("div");
    this.details = element("details", {}, element("summary", { textContent: "As a table" }), this.told);
    this.details.addEventListener("toggle", () => this.list());
    this.leaves = element("p", { className: "note" });
    this.article = element("article", { "aria-label": `${film.told.design} on ${film.told.title}`, className: side },
      element("section", {}, element("h3", { textContent: film.told.design }),
        element("p", { className: "note", textContent: design?.summary ?? "" }),
        element("div", {}, this.picture), this.detail, element("div", {}, this.direct), this.leaves, this.details));
    this.canvas = new FilmCanvas(this.picture, film, (chunk) => { this.picked = chunk; this.tell(); });
  }

  show() {
    const { film } = this, abouts = film.order.map((chunk) => film.about(chunk));
    const large = abouts.filter((a) => a.leaf === "large").length, small = abouts.filter((a) => a.leaf === "pages").length;
    this.picture.setAttribute("aria-label", `${film.told.design}: ${large} chunks under large leaves, ${small} in small pages. `
      + "Arrow keys go from chunk to chunk; the table below says the same.");
    this.canvas.draw();
    directMap(this.direct, film);
    const leaves = Object.entries(film.frame.measures.direct_map_after).filter(([, n]) => n).map(([size, n]) => `${count(n)} of ${size}`).join(", ");
    this.leaves.replaceChildren(term("direct map"), `: leaves ${leaves}`);
    this.direct.setAttribute("aria-label", `Direct map: leaves ${leaves}`);
    this.tell();
    this.list();
  }

  tell() {
    const { film, picked } = this;
    if (picked === undefined) { this.detail.textContent = "Point at a box, or use the arrow keys."; return; }
    this.detail.textContent = `${hex(film.starts[picked])} in the ${film.area(picked)}: ${described(film, picked)}`;
  }

  list() {
    if (!this.details.open) return;
    const { film } = this;
    this.told.replaceChildren(table(["chunk", "in", "mapped by", "rights", "holds", "in use"], film.order.map((chunk) => {
      const a = film.about(chunk);
      return [hex(film.starts[chunk]), film.area(chunk), mapping(film, a), a.prots.join(" "), a.types.map((t) => KINDS[t][0]).join(", "), sizeText(a.live)];
    }), film.order.map((chunk) => film.changed.has(chunk))));
  }
}

function mapping(film, about) {
  if (!about.leaf) return "nothing";
  if (about.leaf === "large") return `a leaf of ${sizeText(film.told.large)}`;
  return `${count(about.leaves)} leaves of ${sizeText(film.told.page)}`;
}

function described(film, chunk) {
  const about = film.about(chunk);
  if (!about.leaf) return "nothing is mapped";
  const holds = about.types.map((t) => KINDS[t][0]).join(", ") || "nothing yet";
  return `${mapping(film, about)}, ${about.prots.join(" ")}, holds ${holds}, ${sizeText(about.live)} in use`;
}

register({
  name: "designs", title: "Designs", asks: true, module: false, terminal: "execmem compare --design vmalloc --design strata",
  question: "What does a design of executable memory do to large pages?",
  opening: () => sentence("A kernel that gives every module pages of its own breaks large pages ([leaf|leaves]) into small ones, and each CPU remembers "
    + "only so many translations. A design decides where text and data lie and how they are mapped. Here the same modules are loaded under two of them: "
    + "watch boxes fill, split and heal, and compare the counters, which are those of execmem compare."),
  async mount(box, context) {
    const designs = new Designs(box, context);
    context.expose({ designs, repaint: () => { for (const panel of designs.shown ?? []) panel.show(); } });
    await designs.start();
    return () => { designs.run(false); for (const panel of designs.shown ?? []) panel.canvas.close(); };
  },
});
