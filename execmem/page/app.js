// SPDX-License-Identifier: GPL-2.0-or-later
// The page: which module is shown, which views there are, and one of them, once for every load.

import { button, choice, element, labelled, refocus } from "execmem/elements.js";
import { Load } from "execmem/load.js";
import "execmem/plain.js";
import { address, views } from "execmem/router.js";
import { open, shell } from "execmem/source.js";
import "execmem/views.js";
import { kept } from "execmem/write.js";

const $ = (id) => document.getElementById(id);
const EMBED = new URLSearchParams(location.search).has("embed");
const MINE = "mine"; // the module that was typed
const OWN = "own"; // the architecture of a file that was dropped

class App {
  constructor(source) {
    this.source = source;
    this.held = []; // of each column, what is loaded there: its name, and the promise of a Load
    this.leaving = [];
    this.turn = 0;
    this.columns = [];
    this.files = [];
    this.built = {}; // architecture -> the file that was compiled for it
  }

  get offer() { return this.source.offer; }

  // What can be chosen: [key, label] of every load of the module.
  loads() {
    if (this.source.alone) {
      return this.source.loads.map((v, n) => [String(n),
        `${v.title}, ${v.design}${v.kaslr === null ? "" : `, KASLR ${v.kaslr}`}`]);
    }
    if (this.booted()) return [[OWN, `${this.offer.kernel.name}, booted`]];
    if (this.module() === MINE) {
      return this.offer.archs.filter((a) => a.name in this.built || !Object.keys(this.built).length).map((a) => [a.name, a.title]);
    }
    if (this.files.includes(this.module())) return [[OWN, "its architecture"]];
    return this.offer.archs.map((a) => [a.name, a.title]);
  }

  module() { return address.get("module", this.offer?.samples.includes("mathuser") ? "mathuser" : this.offer?.samples[0]); }

  // Whether a booted kernel loads the module.
  booted() { return Boolean(this.offer?.kernel && address.get("kernel")); }

  // The keys of the loads that are shown; at least one.
  chosen() {
    const all = this.loads().map(([key]) => key);
    const found = address.get("loads").split(",").filter((key) => all.includes(key));
    return found.length ? found : [all[0]];
  }

  // MODULE and the options that make a load, as a command has them.
  words(key) {
    if (this.booted()) return [this.module(), "--kernel", this.offer.kernel.words];
    const found = [this.module()];
    if (this.module() === MINE) {
      if (!(key in this.built)) throw new Error("It is not compiled: the view Write does that.");
      found[0] = this.built[key];
    } else if (key !== OWN) found.push("--arch", key);
    for (const option of ["design", "kaslr"]) {
      const value = address.get(option);
      if (value && !(option === "design" && value === "default")) found.push(`--${option}`, value);
    }
    if (address.get("plt")) found.push("--with-plt");
    return found;
  }

  async load(key, column) {
    const name = this.source.alone ? key : JSON.stringify(this.words(key));
    if (this.held[column]?.name !== name) {
      const view = this.source.alone ? Promise.resolve(this.source.loads[+key])
        : this.source.ask(["explain", ...this.words(key)]).then((document) => document.views[0]);
      const found = view.then((each) => new Load(each, address.column(column)));
      this.held[column] = { name, found };
      found.catch(() => { if (this.held[column]?.found === found) delete this.held[column]; });
    }
    return this.held[column].found;
  }

  // Show these loads, side by side; what was chosen of a column goes with its load.
  arrange(keys) {
    const before = this.chosen(), old = new URLSearchParams(address.chosen);
    for (const name of old.keys()) if (/[.]\d+$/.test(name)) address.chosen.delete(name);
    const free = before.map((_, n) => n);
    keys.forEach((key, n) => {
      const at = free.findIndex((k) => before[k] === key);
      if (at < 0) return;
      const [from] = free.splice(at, 1);
      for (const [name, value] of old) if (name.endsWith(`.${from}`)) address.chosen.set(name.replace(/\d+$/, n), value);
    });
    this.held = [];
    this.choose({ loads: keys.join(",") });
  }

  // Header ----------------------------------------------------------------------------------

  subject() {
    const box = $("subject");
    if (this.view().module === false) { box.replaceChildren(); return; } // it shows no module
    if (this.source.alone) { box.replaceChildren(...this.beside()); return; }
    const modules = [...(Object.keys(this.built).length ? [[MINE, `${MINE} (compiled)`]] : []), ...this.files.map((f) => [f, `${f} (dropped)`]), ...this.offer.samples.map((s) => [s, s])];
    if (!modules.some(([name]) => name === this.module())) modules.unshift([this.module(), `${this.module()} (drop it again)`]);
    const file = element("input", { type: "file", id: "file", accept: ".ko,.xz,.gz,.zst" });
    file.addEventListener("change", () => { for (const each of file.files) this.drop(each); });
    box.replaceChildren(
      labelled("Module", this.booted() ? this.picked() : choice(modules, this.module(), (name) => this.choose({ module: name }), { id: "module" })),
      labelled("or drop one", file),
      labelled("Design", choice(this.offer.designs.map((d) => [d, d]), address.get("design", "default"),
        (name) => this.choose({ design: name }), { id: "design" })),
      labelled("KASLR", choice([["", "off"], ...["1", "2", "3"].map((n) => [n, `seed ${n}`])], address.get("kaslr"),
        (seed) => this.choose({ kaslr: seed }), { id: "kaslr" })),
      ...(this.offer.kernel ? [labelled("Kernel", choice([["", "modelled"], ["booted", `${this.offer.kernel.name}, booted`]],
        address.get("kernel"), (kernel) => this.of(kernel), { id: "kernel" }))] : []),
      ...this.beside());
  }

  // Another kernel has other modules: of them the one that was chosen, or the first.
  of(kernel) {
    const names = [...this.files, ...(kernel ? this.offer.kernel.modules : this.offer.samples)];
    this.choose({ kernel, module: names.includes(this.module()) || !names.length ? address.get("module") : kernel ? names[0] : "" });
  }

  // A booted kernel's modules are thousands: one is picked by typing a part of its name.
  picked() {
    const names = [...this.files, ...this.offer.kernel.modules];
    const list = element("datalist", { id: "modules" }, ...names.map((value) => element("option", { value })));
    const input = element("input", { id: "module", type: "search", size: 22, spellcheck: false, value: this.module(),
      placeholder: `one of ${names.length.toLocaleString("en")}` });
    input.setAttribute("list", "modules");
    input.addEventListener("change", () => {
      const name = input.value.trim(), found = names.find((each) => each === name) ?? names.find((each) => each === name.replaceAll("-", "_"));
      if (found) { this.say(""); this.choose({ module: found }); } else if (name) this.say(`${this.offer.kernel.name} has no module ${name}; drop its file here.`, true);
    });
    return element("span", {}, input, list);
  }

  beside() {
    const chosen = this.chosen(), left = this.loads().filter(([key]) => !chosen.includes(key));
    if (EMBED || !left.length) return [];
    return [button("Show another beside", () => this.arrange([...chosen, left[0][0]]), { id: "beside" })];
  }

  choose(what) {
    for (const [key, value] of Object.entries(what)) address.set(key, value);
    if (!("loads" in what)) this.held = [];
    if ("module" in what) for (const key of [...address.chosen.keys()]) {
      if (/[.]\d+$/.test(key) || key === "loads") address.set(key, "");
    }
    this.show();
  }

  async drop(file) {
    if (this.source.alone) {
      this.say(`${file.name} cannot be loaded here: nobody answers a page that stands alone. In a terminal: ${shell(["explain", file.name, "--html", "page.html"])}, or drop it on the page of execmem serve.`, true);
      return;
    }
    this.say(`${file.name} is sent ...`);
    try {
      const name = await this.source.put(file);
      if (!this.files.includes(name)) this.files.push(name);
      this.held = [];
      this.choose({ module: name });
      this.say("");
    } catch (error) { this.say(error.message, true); }
  }

  // Compile a text for every architecture that can be; what became of each: { arch, name, said } or { arch, error }.
  async build(kind, text) {
    const built = {}, results = await Promise.all(this.offer.compilers.map(async (arch) => {
      try {
        const found = await this.source.build(arch, kind, text);
        built[arch] = found.name;
        return { arch, ...found };
      } catch (error) { return { arch, error: error.message }; }
    }));
    if (Object.keys(built).length) {
      this.built = built;
      this.held = [];
      address.set("module", MINE);
      this.tabs();
      this.subject();
    }
    return results;
  }

  say(text, wrong = false) {
    $("said").textContent = text;
    $("said").className = wrong ? "verdict refused" : "note";
  }

  // Views -----------------------------------------------------------------------------------

  view() { return views.get(address.view) ?? views.get("where"); }

  tabs() {
    const now = this.view();
    $("views").replaceChildren(...[...views.values()].map((view) => {
      const link = element("a", { href: `#${address.text(view.name)}`, textContent: view.title, title: view.question });
      link.addEventListener("click", () => {
        address.keep();
        link.href = `#${address.text(view.name)}`;
      });
      if (view === now) link.setAttribute("aria-current", "page");
      return link;
    }));
  }

  async show() {
    if (!$("sharing").hidden) this.share(); // it was about what was shown before
    const turn = ++this.turn, view = this.view();
    address.view = view.name;
    document.body.dataset.ready = "";
    while (this.leaving.length) this.leaving.pop()();
    this.columns = [];
    const main = $("loads"), keys = view.each ? this.chosen() : [""];
    const boxes = keys.map((key, n) => this.column(key, n, keys));
    refocus(() => {
      this.tabs();
      this.subject();
      $("question").textContent = view.question;
      $("opening").replaceChildren(...(view.opening ? [view.opening()] : []));
      main.className = keys.length > 1 ? "beside" : "";
      main.dataset.view = view.name;
      main.replaceChildren(...boxes.map(([article]) => article));
    });
    await Promise.all(boxes.map(([, box], n) => this.fill(view, box, keys[n], n, turn)));
    if (turn !== this.turn) return;
    document.title = this.columns[0]?.load ? `${this.columns[0].load.view.module}: ${view.title}` : view.title;
    document.body.dataset.ready = "yes";
  }

  column(key, n, keys) {
    const box = element("div", { className: "view" });
    if (key === "") return [element("article", {}, box), box];
    const others = (value) => keys.map((each, k) => (k === n ? value : each));
    const head = element("header", { className: "load" }, labelled("Load", choice(this.loads(), key,
      (value) => this.arrange(others(value)), { id: n ? `view-${n}` : "view" })));
    if (keys.length > 1) {
      head.append(button("Close", () => this.arrange(keys.filter((_, k) => k !== n)),
        { "aria-label": `Close ${key}` }));
    }
    return [element("article", { "aria-label": this.loads().find(([each]) => each === key)?.[1] ?? "" }, head, box), box];
  }

  async fill(view, box, key, n, turn) {
    box.append(element("p", { className: "note waiting", role: "status", textContent: "It is being loaded ..." }));
    try {
      const load = view.each ? await this.load(key, n) : null;
      if (turn !== this.turn) return;
      box.replaceChildren(...(load ? [element("h2", { className: "title", textContent: load.title })] : []));
      if (view.asks && this.source.alone && !this.source.has(view.name)) {
        box.append(this.absent(view));
        return;
      }
      const column = { load };
      this.columns[n] = column;
      const leave = await view.mount(box, {
        load, offer: this.offer, alone: this.source.alone,
        values: (command, option) => this.source.values(command, option),
        ask: (words) => this.source.ask(words),
        put: (file) => this.source.put(file),
        build: (kind, text) => this.build(kind, text),
        sample: (name) => this.source.sample(name),
        module: () => this.words(key),
        state: view.each ? address.column(n) : address,
        expose: (parts) => Object.assign(column, parts),
      });
      if (leave && turn !== this.turn) leave();
      else if (leave) this.leaving.push(leave);
    } catch (error) {
      if (turn !== this.turn) return;
      box.replaceChildren(element("p", { className: "verdict refused", role: "alert", textContent: error.message }));
    }
  }

  // What is shown here, as a link and as a frame for a page of somebody's own.
  share() {
    const box = $("sharing"), here = `${location.href.split("#")[0]}#${address.text()}`, framed = new URL(here);
    framed.searchParams.set("embed", "");
    box.hidden = !box.hidden;
    $("share").setAttribute("aria-expanded", !box.hidden);
    const frame = element("iframe", { src: framed.href.replace("embed=", "embed"), width: "100%", height: "700", title: "execmem" }).outerHTML;
    box.replaceChildren(...[["Link", here], ["In a page of yours", frame]].map(([label, value]) => {
      const text = element("input", { readOnly: true, value });
      text.addEventListener("focus", () => text.select());
      return labelled(label, text);
    }), element("p", { className: "note", textContent: this.source.alone
      ? "All that it needs is in this file: send the file with it, or put it where others find it."
      : "It leads to this server: a module that was dropped has to be dropped again there, a source that was typed is in the link. "
        + "--frame ORIGIN lets another page embed it." }));
    if (!box.hidden) box.querySelector("input").focus();
  }

  // Why a page that stands alone does not have a view, and what has it.
  absent(view) {
    const { absent } = view, made = `execmem explain MODULE --with ${view.name}${view.name === "kernel" ? " --kernel PATH" : ""} --html FILE`;
    const served = view.name === "kernel" ? "execmem serve --kernel PATH" : "execmem serve";
    const code = (textContent) => element("code", { textContent });
    return element("section", { "aria-label": "Not in this page", id: "absent" },
      element("p", { textContent: absent ?? "This page was written without it." }),
      element("ul", {},
        ...(absent ? [] : [element("li", {}, code(made), " writes a page that has it.")]),
        element("li", {}, code(served), " opens a page that has it, in your browser."),
        ...(view.terminal ? [element("li", {}, "In a terminal: ", code(view.terminal))] : [])));
  }

  // What an address has typed in it is compiled when it is opened.
  async typed() {
    if (this.source.alone || this.module() !== MINE || !this.offer.compilers.length) return;
    const text = await kept(address);
    if (!text) return;
    this.say("What was typed is compiled ...");
    const results = await this.build(address.get("kind", "c"), text);
    const refused = results.filter((each) => each.error);
    this.say(refused.map((each) => `${each.arch}: ${each.error}`).join("\n"), refused.length > 0);
  }

  async start() {
    const dark = matchMedia("(prefers-color-scheme: dark)").matches;
    this.theme(address.get("theme") ? address.get("theme") === "dark" : dark);
    $("theme").addEventListener("click", () => {
      this.theme(!document.documentElement.classList.contains("dark"));
      address.set("theme", document.documentElement.classList.contains("dark") ? "dark" : "light");
    });
    $("share").addEventListener("click", () => this.share());
    if (EMBED) document.body.classList.add("embed");
    address.addEventListener("changed", ({ detail }) => {
      if (!detail.view) this.held = [];
      this.show();
    });
    matchMedia("(forced-colors: active)").addEventListener("change", () => this.repaint());
    addEventListener("beforeprint", () => this.print(true));
    addEventListener("afterprint", () => this.print(false));
    const over = (on) => document.body.classList.toggle("dropping", on);
    addEventListener("dragover", (e) => { e.preventDefault(); over(true); });
    addEventListener("dragleave", (e) => { if (!e.relatedTarget) over(false); });
    addEventListener("drop", (e) => { e.preventDefault(); over(false); for (const file of e.dataTransfer.files) this.drop(file); });
    await this.typed();
    return this.show();
  }

  theme(dark) {
    document.documentElement.classList.toggle("dark", dark);
    $("theme").textContent = dark ? "Light" : "Dark";
    $("theme").setAttribute("aria-pressed", dark);
    this.repaint();
  }

  // Draw what is drawn, and not made of elements, in the colours of now.
  repaint() { for (const column of this.columns) column?.repaint?.(); }

  // Paper is light, whatever the screen is.
  print(begins) {
    const { classList } = document.documentElement;
    if (begins) this.dark = classList.contains("dark");
    classList.toggle("dark", !begins && this.dark);
    document.body.classList.toggle("printing", begins);
    this.repaint();
  }
}

async function start() {
  try {
    const app = new App(await open());
    window.execmem = { // for tests, and for the curious
      app,
      get state() {
        const column = app.columns[0];
        return { motion: column?.load?.motion, load: column?.load, map: column?.map, views: app.source.loads };
      },
      place: (text, data) => app.columns[0].load.place(text, data),
      select: (i) => app.columns[0].load.select(i),
    };
    await app.start();
  } catch (error) {
    $("said").className = "verdict refused";
    $("said").textContent = error.message;
  }
}

start();
