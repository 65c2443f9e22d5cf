// SPDX-License-Identifier: GPL-2.0-or-later
// The view *run*: a function of the module is called, and what it did is shown.

import { choice, element, labelled, sentence, table } from "execmem/elements.js";
import { register } from "execmem/router.js";
import { shell } from "execmem/source.js";

const EVENTS = ["result", "tree", "registers"];

class Run {
  constructor(box, context) {
    this.context = context;
    const { state, load } = context, code = new Set(load.view.sections.filter((s) => s.exec).map((s) => s.index));
    const names = load.view.functions.filter((f) => code.has(f[0])).map((f) => f[3]);
    this.function = choice([["", "init alone"], ...[...new Set(names)].sort().map((n) => [n, n])], state.get("function", ""),
      (value) => state.set("function", value));
    this.args = element("input", { size: 24, spellcheck: false, value: state.get("args", ""), placeholder: "21 6, str:text, out:16" });
    this.args.addEventListener("change", () => state.set("args", this.args.value));
    this.returns = element("input", { size: 6, spellcheck: false, value: state.get("returns", "u64") });
    this.returns.addEventListener("change", () => state.set("returns", this.returns.value, "u64"));
    this.show = choice([["result", "what it returns"], ["tree", "the tree of calls"], ["registers", "registers at a breakpoint"]],
      EVENTS.includes(state.get("show")) ? state.get("show") : "result", (value) => {
      state.set("show", value, "result");
      this.breakpoint.hidden = value !== "registers";
    });
    this.at = element("input", { size: 24, spellcheck: false, value: state.get("at", ""), placeholder: "function+0x4; its beginning" });
    this.at.addEventListener("change", () => state.set("at", this.at.value));
    this.breakpoint = labelled("Breakpoint", this.at);
    this.breakpoint.hidden = this.show.value !== "registers";
    this.go = element("button", { type: "submit", textContent: "Run" }); // so that Enter runs, too
    this.output = element("div", { className: "output", role: "region", "aria-label": `What came of it on ${load.view.title}, ${load.view.design}`, "aria-live": "polite" });
    const form = element("form", { className: "move" }, labelled("Function", this.function), labelled("Arguments", this.args),
      labelled("Returns", this.returns), labelled("Show", this.show), this.breakpoint, this.go);
    form.addEventListener("submit", (e) => { e.preventDefault(); this.run(); });
    box.append(element("section", { "aria-label": `Call on ${load.view.title}, ${load.view.design}` }, form, this.output));
  }

  words() {
    const { context } = this, called = this.function.value, args = split(this.args.value);
    const [module, ...options] = context.module();
    const returns = this.returns.value === "u64" ? [] : ["--returns", this.returns.value];
    if (!called) return ["run", module, ...options];
    if (this.show.value === "tree") return ["trace", module, "--args", ...returns, ...options, "--", called, ...args];
    if (this.show.value === "registers") return ["probe", `${module}:${this.at.value.trim() || called}`, ...returns, ...options, "--", called, ...args];
    return ["run", module, ...returns, ...options, "--", called, ...args];
  }

  async run() {
    const words = this.words();
    this.go.disabled = true;
    this.output.replaceChildren(element("p", { className: "note", textContent: "It runs..." }));
    try {
      this.tell(words, await this.context.ask(words));
    } catch (error) {
      this.output.replaceChildren(element("p", { className: "verdict refused", textContent: error.message }));
    }
    this.go.disabled = false;
    this.output.append(element("p", { className: "note" }, "In a terminal: ", element("code", { textContent: shell(words) })));
  }

  tell(words, found) {
    const parts = [], log = found.log ?? [];
    if (found.fault) parts.push(element("p", { className: "verdict refused", textContent: found.fault }));
    if (found.result != null) parts.push(element("p", { className: "verdict direct result", textContent: `${this.function.value} = ${found.result} (${decimal(found.result)})` }));
    else if (words[0] === "run" && !this.function.value) parts.push(element("p", { className: "verdict direct result", textContent: found.init_result == null ? "it has no init" : `init returned ${found.init_result}` }));
    for (const output of found.outputs ?? []) parts.push(element("p", { className: "mono", textContent: `out: ${output}` }));
    if (found.calls) parts.push(flames(found.calls), table(["instructions", "call"],
      found.calls.map((c) => [c.instructions ?? "-", `${"\u00a0\u00a0".repeat(c.depth)}${c.text || c.function}`])));
    if (found.hits) parts.push(...stops(found));
    parts.push(element("h3", { textContent: "Kernel log" }),
      log.length ? element("pre", { textContent: log.join("\n"), tabIndex: 0 }) : element("p", { className: "note", textContent: "The kernel logged nothing." }));
    this.output.replaceChildren(...parts);
  }
}

const STOPS = 12; // that are shown beside each other

// The registers at each stop of a breakpoint, a column for each; what is another than before is marked.
function stops(found) {
  const shown = found.hits.slice(0, STOPS), text = `${found.instruction} at ${found.where} was reached ${found.hits.length} times`;
  const lines = Object.keys(shown[0] ?? {}).map((name) => [name, ...shown.map((hit, n) =>
    element("span", { className: n && hit[name] !== shown[n - 1][name] ? "changed" : "", textContent: hit[name] }))]);
  return [element("p", { textContent: found.hits.length > STOPS ? `${text}; the first ${STOPS}:` : `${text}.` }),
    ...(lines.length ? [table(["register", ...shown.map((_, n) => `stop ${n + 1}`)], lines)] : [])];
}

// A tree of calls, as wide as its instructions: callees under their callers.
function flames(calls) {
  const box = element("div", { className: "flames", role: "img", "aria-label": "The tree of calls, each as wide as its instructions; the table below says the same" });
  const total = calls.filter((c) => c.depth === 0).reduce((sum, c) => sum + (c.instructions ?? 1), 0) || 1;
  const ends = []; // by depth, where the next call of a caller begins
  for (const c of calls) {
    const start = ends[c.depth] ?? (c.depth ? ends.start?.[c.depth - 1] ?? 0 : 0), width = c.instructions ?? 1;
    ends[c.depth] = start + width;
    (ends.start ??= [])[c.depth] = start;
    ends[c.depth + 1] = start;
    const bar = element("span", { textContent: c.function, title: `${c.text || c.function}: ${c.instructions ?? "?"} instructions` });
    bar.style.left = `${start / total * 100}%`;
    bar.style.width = `${Math.max(width / total * 100, 0.3)}%`;
    bar.style.top = `${c.depth * 24}px`;
    box.append(bar);
  }
  box.style.height = `${(Math.max(0, ...calls.map((c) => c.depth)) + 1) * 24}px`;
  return box;
}

function decimal(text) {
  try { return (text.startsWith("-") ? -BigInt(text.slice(1)) : BigInt(text)).toString(); } catch { return text; }
}

// Words between spaces; a word may be in quotes.
function split(text) {
  return [...text.matchAll(/"([^"]*)"|(\S+?)"([^"]*)"|(\S+)/g)].map((m) => m[1] ?? (m[2] === undefined ? m[4] : m[2] + m[3]));
}

register({
  name: "run", title: "Run", each: true, asks: true,
  absent: "No code runs in a page that stands alone.", terminal: "execmem run MODULE FUNCTION ARG...",
  question: "What does the module do?",
  opening: () => sentence("The module's code runs in an emulated CPU, in a process that has given up files and network. Choose a "
    + "function, give it arguments, and see what it returns, whom it calls, and what the kernel logs."),
  mount(box, context) { new Run(box, context); },
});
