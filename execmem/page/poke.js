// SPDX-License-Identifier: GPL-2.0-or-later
// The view *poke*: CPUs side by side, one that patches text and one that executes it. A reader steps
// either of them; what may happen is a graph (execmem/interleaved.py), and a schedule a walk in it.

import { button, choice, element, facts, labelled, refocus, sentence, table } from "execmem/elements.js";
import { register } from "execmem/router.js";
import { shell } from "execmem/source.js";

// What each step of the CPU that patches is for.
const WHY = {
  LookInside: "A CPU that stands between two instructions of the site would go on in the middle of the new one.",
  Arm: "Whoever meets the breakpoint traps; the trap handler must know then what to do instead.",
  MapAlias: "The text is read-only, for the kernel too: the same frames are mapped a second time, writable and not executable.",
  Put: "One [granule]: only that much is stored at once, so others may come between two of them.",
  FlushAlias: "The CPU's TLB still leads from the alias to this frame; the next [poke] would land in it.",
  Maintain: "What was stored is in this CPU's data cache or store buffer; others may go on fetching what stood there.",
  Sync: "A CPU goes on executing what it had fetched. It has to drop that before anything else may be relied on ([sync]).",
  Stop: "Nobody may be here while the bytes are neither old nor new.",
  Go: "The bytes are whole again, and everybody has fetched anew.",
  Lock: "There is one alias: two CPUs that use it at a time write into each other's frames.",
  Unlock: "The next one may patch.",
  Done: "From here on only the new instruction may be executed.",
  Protect: "What the page allows changes.",
  FlushText: "TLBs may still have the rights from before.",
};

const UNMAP = "A writable mapping of text that stays would let anything write to it.";

// Names of mistakes are short; these are sentences, and where there is none the title stands.
const BREAKS = [
  [/^no-sync/, "leave out a synchronisation"], [/^no-flush/, "leave out the flushes"], [/^no-mutex/, "leave out the lock"],
  [/^no-stop/, "do not stop the others"], [/^look-first/, "look too early where they stand"],
  [/^no-breakpoint/, "write the first byte early, without a breakpoint"], [/^early-forget/, "forget the sites too early"],
  [/^late-handler/, "tell the handler too late"], [/^unmasked/, "interrupt the handler"], [/^unsorted/, "do not sort the batch"],
];

class Poke {
  constructor(box, context) {
    Object.assign(this, { box, context, state: context.state, path: [] });
  }

  async start() {
    const archs = this.context.offer.archs.map((a) => [a.name, a.title]), named = this.state.get("arch");
    this.arch = choice(archs, archs.some(([name]) => name === named) ? named : archs[0][0], (value) => this.choose({ arch: value, way: "", schedule: "" }));
    this.place = element("div");
    this.wait = element("p", { className: "note", role: "status" });
    this.box.append(this.place, this.wait);
    await this.ask();
  }

  choose(what) {
    for (const [key, value] of Object.entries(what)) this.state.set(key, value);
    return "arch" in what ? this.ask() : this.show();
  }

  async ask() {
    const words = ["race", "--graph", "--arch", this.arch.value];
    this.wait.textContent = "Everything that can happen is worked out ...";
    this.told = await this.context.ask(words);
    this.wait.replaceChildren("In a terminal: ", element("code", { textContent: shell([...words, "--json"]) }));
    this.show();
  }

  show() { refocus(() => this.shown()); }

  shown() {
    const { told } = this, first = element("div", { className: "move" }, labelled("Architecture", this.arch));
    if (told.why) {
      this.place.replaceChildren(element("section", { "aria-label": "Poke" }, first, element("p", { className: "verdict refused", textContent: told.why })));
      return;
    }
    const named = new Set();
    this.keys = told.scenarios.map((s, n) => { // two of one name are told apart
      const key = !s.name || named.has(s.name) ? `${s.name || "way"}-${n}` : s.name;
      named.add(key);
      return key;
    });
    const at = Math.max(0, this.keys.indexOf(this.state.get("way")));
    this.way = choice(this.keys.map((key, n) => [key, this.label(told.scenarios[n])]), this.keys[at], (key) => this.choose({ way: key, schedule: "" }));
    this.scenario = told.scenarios[at];
    this.restore();
    this.lanes = element("div", { className: "lanes" });
    this.verdict = element("p", { id: "verdict", role: "status", "aria-live": "polite" });
    this.log = element("ol", { className: "log", tabIndex: 0, "aria-label": "The schedule so far" });
    this.find = button("Show what goes wrong", () => this.wrong());
    this.undo = button("Undo", () => this.back());
    this.again = button("Start over", () => { this.path = []; this.draw(); });
    first.append(labelled("How", this.way));
    const bar = element("div", { className: "move", role: "group", "aria-label": "Schedule" }, this.undo, this.again, this.find);
    this.section = element("section", { "aria-label": "Poke", tabIndex: -1 }, first,
      element("p", { className: "note", textContent: this.covered() }), bar, this.verdict);
    this.section.addEventListener("keydown", (e) => this.key(e));
    this.place.replaceChildren(this.section, this.lanes,
      element("section", { "aria-label": "Schedule" }, element("h3", { textContent: "What happened, step by step" }), this.log), this.mechanism());
    this.draw();
  }

  label(scenario) {
    const broken = BREAKS.find(([name]) => name.test(scenario.name));
    return broken ? `${broken[1]}: ${scenario.title}` : scenario.name ? scenario.title : `as the kernel does it: ${scenario.title}`;
  }

  // What all schedules together come to.
  covered() {
    const { states } = this.scenario, wrong = states.filter((s) => s.wrong.length).length;
    const all = `${states.length.toLocaleString("en")} states can be reached, in any order of steps.`;
    return wrong ? `${all} In ${wrong.toLocaleString("en")} of them something has gone wrong.` : `${all} Nothing goes wrong in any of them.`;
  }

  // The walk --------------------------------------------------------------------------------

  get at() { return this.path.length ? this.path[this.path.length - 1].to : 0; }

  restore() {
    this.path = [];
    const picks = this.state.get("schedule").split(".").filter(Boolean).map(Number);
    for (const pick of picks) {
      const step = this.scenario.steps[this.at][pick];
      if (!step) break;
      this.path.push({ pick, cpu: step[0], text: step[1], from: this.at, to: step[2] });
    }
  }

  take(pick) {
    const step = this.scenario.steps[this.at][pick];
    if (!step) return;
    this.path.push({ pick, cpu: step[0], text: step[1], from: this.at, to: step[2] });
    this.draw();
  }

  back() { this.path.pop(); this.draw(); }

  // A CPU goes on by itself until it has to wait, is done, or has to choose what it sees.
  run(cpu) {
    for (let n = 0; n < 1000; n++) {
      const picks = this.picks(cpu);
      const good = picks.filter(([, step]) => !this.scenario.states[step[2]].wrong.length);
      if (!good.length) break;
      const step = good[0][1];
      this.path.push({ pick: good[0][0], cpu, text: step[1], from: this.at, to: step[2] });
      if (cpu >= this.scenario.patching) break;
    }
    this.draw();
  }

  picks(cpu) { return this.scenario.steps[this.at].map((step, pick) => [pick, step]).filter(([, step]) => step[0] === cpu); }

  // The shortest way from here to a state in which something is wrong.
  wrong() {
    const from = new Map([[this.at, null]]), queue = [this.at];
    for (const state of queue) {
      if (this.scenario.states[state].wrong.length && state !== this.at) {
        const found = [];
        for (let s = state; from.get(s); s = from.get(s).from) found.unshift(from.get(s));
        this.path.push(...found);
        this.draw();
        return;
      }
      this.scenario.steps[state].forEach(([cpu, text, to], pick) => {
        if (!from.has(to)) { from.set(to, { pick, cpu, text, from: state, to }); queue.push(to); }
      });
    }
    this.nothing = true;
    this.draw();
  }

  key(e) {
    if (["SELECT", "INPUT"].includes(e.target.tagName)) return;
    if (e.key === "Backspace") { e.preventDefault(); this.back(); return; }
    if (!/^[0-9]$/.test(e.key)) return;
    const picks = this.picks(Number(e.key));
    if (picks.length === 1) { e.preventDefault(); this.take(picks[0][0]); }
    else if (picks.length) this.lanes.querySelector(`[data-cpu="${e.key}"] button.step`)?.focus();
  }

  // Drawing ---------------------------------------------------------------------------------

  draw() { refocus(() => this.drawn()); }

  drawn() {
    this.state.set("schedule", this.path.map((p) => p.pick).join("."));
    const now = this.scenario.states[this.at], focused = document.activeElement?.dataset?.cpu;
    const lanes = [];
    for (let cpu = 0; cpu < this.scenario.patching; cpu++) lanes.push(this.patching(cpu, now));
    lanes.push(this.memory(now));
    for (let n = 0; n < this.scenario.executing; n++) lanes.push(this.executing(this.scenario.patching + n, n, now));
    this.lanes.replaceChildren(...lanes);
    if (focused) this.lanes.querySelector(`button.step[data-cpu="${focused}"]`)?.focus();
    this.log.replaceChildren(...this.path.map((p) => element("li", { className: `cpu${p.cpu < this.scenario.patching ? 0 : 1}` },
      element("b", { textContent: `CPU ${p.cpu} ` }), p.text)));
    this.log.scrollTop = this.log.scrollHeight;
    this.say(now);
    this.undo.disabled = this.again.disabled = !this.path.length;
  }

  say(now) {
    const { told, scenario } = this, over = now.at.every((at, n) => at === scenario.programs[n].length);
    this.verdict.className = `verdict ${now.wrong.length ? "refused" : "direct"}`;
    if (now.wrong.length) {
      const { kind, text } = now.wrong[0];
      this.verdict.textContent = `Wrong: ${told.kinds[kind] ?? kind}: ${text}.`;
    } else if (this.nothing) {
      this.verdict.textContent = "Whatever the CPUs do from here, nothing goes wrong.";
    } else if (over) {
      this.verdict.textContent = "All is patched. From here on CPUs execute the new instruction.";
    } else {
      this.verdict.textContent = this.path.length ? `CPU ${this.path[this.path.length - 1].cpu} ${this.path[this.path.length - 1].text}.`
        : "CPU 0 is about to patch text that another CPU executes. Let either of them do a step.";
    }
    this.nothing = false;
  }

  lane(title, cpu, ...parts) {
    const found = element("section", { className: "lane", "aria-label": title }, element("h3", { textContent: title }), ...parts);
    if (cpu !== null) found.dataset.cpu = cpu;
    return found;
  }

  // Buttons for what a CPU may do next; several where chance decides what it sees.
  buttons(cpu, waits) {
    const picks = this.picks(cpu), label = (text) => `CPU ${cpu} ${text}`;
    const found = picks.map(([pick, [, text, to]]) => {
      const one = button(text, () => this.take(pick), { className: "step", "aria-label": label(text) });
      one.dataset.cpu = cpu;
      if (this.scenario.states[to].wrong.length > this.scenario.states[this.at].wrong.length) one.classList.add("bad");
      return one;
    });
    if (!found.length) found.push(element("p", { className: "note", textContent: waits }));
    return element("div", { className: "choices", role: "group", "aria-label": `What CPU ${cpu} may do` }, ...found);
  }

  patching(cpu, now) {
    const program = this.scenario.programs[cpu], at = now.at[cpu];
    const list = element("ol", { className: "program" }, ...program.map((op, n) => {
      const line = element("li", { className: n < at ? "done" : n === at ? "next" : "", textContent: op.text });
      if (n === at) line.setAttribute("aria-current", "step");
      return line;
    }));
    const next = program[at], why = next ? (next.text.startsWith("unmaps") ? UNMAP : WHY[next.does]) : undefined;
    const whole = button("Let it go on", () => this.run(cpu));
    whole.disabled = !this.picks(cpu).length;
    return this.lane(`CPU ${cpu} patches`, cpu, this.buttons(cpu, next ? "It waits for another CPU." : "It is done."), whole,
      ...(why ? [sentence(why, { className: "note why" })] : []), list);
  }

  executing(cpu, n, now) {
    const { scenario } = this, here = now.cpus[n], site = here.site === null ? null : scenario.places[here.site];
    const gone = now.wrong.length && !this.picks(cpu).length;
    const where = gone ? "It has gone wrong, and goes on no more." : here.stopped ? "It is stopped, between two instructions."
      : here.trapped ? `It met the breakpoint at ${site.address}, and is in the trap handler.`
        : site ? `It stands inside of the site, at ${site.address} + ${here.offset}.` : "It may arrive at any moment.";
    return this.lane(`CPU ${cpu} executes`, cpu, element("p", { textContent: where }),
      this.buttons(cpu, here.stopped ? "It waits until it is let go." : gone ? "" : "It has nothing to do."),
      sentence("Where it may do several things, chance decides what it still sees: choose the unlucky one.", { className: "note" }));
  }

  memory(now) {
    const { scenario } = this, parts = [];
    scenario.places.forEach((place, n) => {
      const cells = place.cells, bytes = cells.map((c) => now.memory[c]).join("");
      const stands = bytes === place.new ? "the new code" : bytes === place.old ? "the old code" : "neither";
      const code = (lines) => lines.map(([, text]) => text).join("; ");
      parts.push(facts([["site", place.address], ["old", `${place.old}  ${code(place.old_text)}`], ["new", `${place.new}  ${code(place.new_text)}`],
        ["memory holds", stands, stands === "neither" ? "bad" : "mono"]]));
      const seen = Array.from({ length: scenario.executing }, (_, cpu) => cpu);
      parts.push(table(["byte", "memory", ...seen.map((cpu) => `CPU ${scenario.patching + cpu} may also see`)], cells.map((cell, k) => {
        const now8 = now.memory[cell], at = k * scenario.granule * 2, fresh = place.new.slice(at, at + now8.length), old = place.old.slice(at, at + now8.length);
        const kind = (text) => (text === fresh && text === old ? "" : text === fresh ? "new" : text === old ? "old" : "other");
        const word = (text) => element("span", { className: `byte ${kind(text)}`, title: { new: "new", old: "old", other: "a breakpoint, or another store", "": "the same" }[kind(text)], textContent: text });
        return [`+${k * scenario.granule}`, word(now8), ...seen.map((cpu) => (now.views[cpu][cell].length
          ? element("span", {}, ...now.views[cpu][cell].map(word)) : "\u2013"))];
      })));
      if (n + 1 < scenario.places.length) parts.push(element("hr"));
    });
    parts.push(element("p", { className: "note" }, element("span", { className: "byte new", textContent: "new" }), element("span", { className: "byte old", textContent: "old" }),
      ...(this.told.mechanism.breakpoint ? [element("span", { className: "byte other", textContent: "a breakpoint" })] : [])));
    const rows = [["handler knows", now.handler.join(", ") || "nothing"]];
    now.aliases.forEach((alias, page) => {
      const kept = alias.kept.map((one, cpu) => (one.length ? `CPU ${cpu}'s TLB may still lead to ${one.join(", ")}` : "")).filter(Boolean).join("; ");
      rows.push([now.aliases.length > 1 ? `alias, page ${page}` : "alias", `${alias.frame === null ? "not mapped" : `writable, frame ${alias.frame}`}${kept ? `; ${kept}` : ""}`]);
    });
    if (this.scenario.patching > 1) rows.push(["text_mutex", now.owner === null ? "free" : `CPU ${now.owner}'s`]);
    parts.push(facts(rows));
    return this.lane("Memory", null, ...parts);
  }

  mechanism() {
    const m = this.told.mechanism, { title } = this.told;
    const told = [
      `${title} writes finished text with ${m.name}: the frames are mapped ${m.private ? "in a private address space" : "in the fixmap"}, ${m.pages === 1 ? "a page" : `${m.pages} pages`} at a time, `
        + `and bytes are stored in [granule|granules] of ${m.granule}. Dropping the [alias] flushes ${m.broadcast ? "the TLBs of all CPUs" : "the TLB of this CPU"}.`,
      `Why [sync]: a CPU executes what it fetched, and no store of another one changes that. What makes it fetch anew here: ${m.sync}.`,
      ...(m.breakpoint === null
        ? [`There is no breakpoint protocol here (${m.live}). Other CPUs may be executing what is written: ${m.rule}. Everything else is written while they are stopped.`]
        : [`Longer instructions go through a breakpoint (${m.live}): ${m.breakpoint} over the first byte, then the other bytes, then the first one, with a synchronisation after each. `
          + "Who arrives meanwhile traps, and the handler does the work of the new instruction. So nobody ever executes half of one.",
          `Why not simply store: other CPUs may be executing it, and ${m.rule}.`]),
    ];
    const left = this.told.left_out.map((each) => `${each.title}: more than ${each.states.toLocaleString("en")} states, so it is not shown here; execmem race searches it.`);
    return element("section", { "aria-label": "What it is for" }, element("h3", { textContent: `How ${title} does it, and what each part is for` }),
      ...told.map((text) => sentence(text)), ...left.map((text) => element("p", { className: "note", textContent: text })),
      element("p", { className: "note", textContent: "Keys: 0, 1 ... let that CPU do its step (or lead to its choices), Backspace takes a step back." }));
  }
}

register({
  name: "poke", title: "Poke", asks: true, module: false, terminal: "execmem race",
  question: "How is code changed that another CPU executes?",
  opening: () => sentence("Kernels change their own code while it runs: a trace is switched on, a branch turned. But bytes are stored one [granule] after the other, "
    + "and no CPU notices by itself. Step both CPUs, in any order you like, and try to make the one on the right execute something that nobody wrote. Then break "
    + "the protocol, and try again."),
  async mount(box, context) {
    const poke = new Poke(box, context);
    context.expose({ poke });
    await poke.start();
  },
});
