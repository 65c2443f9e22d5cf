// SPDX-License-Identifier: GPL-2.0-or-later
// The page: what is chosen, typed, slid and selected, and what is shown for it.
"use strict";

const $ = (id) => document.getElementById(id);
const PAGE = 4096n;
const ROW = 22;
const STATUS = ["reaches", "through the PLT", "out of reach"];
const MARK = ["", "P", "!"];
const CLASS = ["ok", "via", "fail"];

const state = { motion: null, map: null, shown: [], selected: -1 };

function element(tag, properties = {}, ...children) {
  const found = Object.assign(document.createElement(tag), properties);
  found.append(...children);
  return found;
}

// Placement -----------------------------------------------------------------------------------

function slideToMove(value) {
  const pages = Math.round(2 ** (Math.abs(value) / 1000 * 22)) - 1;
  return BigInt(Math.sign(value) * pages) * PAGE;
}

function moveToSlide(move) {
  const pages = Number(move < 0n ? -move : move) / 4096;
  return Math.max(-1000, Math.min(1000, Math.sign(Number(move)) * Math.log2(pages + 1) / 22 * 1000));
}

function signedSize(move) {
  return move === 0n ? "not moved" : `${move < 0n ? "-" : "+"}${sizeText(move < 0n ? -move : move)} (${hex(move)})`;
}

function groupStart(group) {
  const starts = state.motion.view.regions.filter((r) => r.group === group).map((r) => BigInt(r.start));
  return starts.length ? starts.reduce((a, b) => (a < b ? a : b)) : null;
}

function place(text, data, from = null) {
  const { motion, map } = state;
  motion.move(text, data);
  for (const [group, input, move] of [[1, $("text-at"), text], [2, $("data-at"), data]]) {
    const start = groupStart(group);
    input.disabled = start === null;
    if (input !== from) input.value = start === null ? "" : hex(BigInt.asUintN(64, start + move));
    input.setCustomValidity("");
  }
  const slides = { both: text, text, data }[$("what").value];
  if ($("slide") !== from) $("slide").value = moveToSlide(slides);
  const both = text === data;
  $("moved").textContent = both ? signedSize(text) : `text ${signedSize(text)}, data ${signedSize(data)}`;
  $("slide").setAttribute("aria-valuetext", $("moved").textContent);
  verdict();
  filter(false);
  detail();
  map.draw();
}

function verdict() {
  const m = state.motion, box = $("verdict");
  const slots = m.entries.map((e, n) => `${m.used[n]} of ${e.reserved} entries of ${e.name}`)
    .filter((_, n) => m.used[n]).join(", ");
  const direct = m.count - m.failed - m.via;
  const way = m.via ? `, ${m.via} go through the PLT (${slots})` : "";
  box.className = m.failed ? "refused" : m.via ? "via" : "direct";
  box.textContent = m.failed
    ? `Refused: ${m.failed} of ${m.count} relocations are out of reach${way}.`
    : `Loads: ${direct} of ${m.count} relocations reach${way}. ${inWindow()}`;
  box.dataset.failed = m.failed;
  box.dataset.via = m.via;
  box.dataset.used = m.used.join(",");
}

function inWindow() {
  const m = state.motion;
  const windows = m.view.bands.filter((b) => b.kind.endsWith("window"));
  const outside = state.map.regions().some(([lo, hi]) =>
    !windows.some((w) => lo >= BigInt(w.start) && hi <= BigInt(w.end)));
  return outside ? "No kernel would place it there: it leaves the module window." : "";
}

function typed(input, group) {
  let value;
  try { value = BigInt(input.value.trim()); } catch { value = null; }
  if (value === null || value < 0n || value >= 1n << 64n || value % PAGE) {
    input.setCustomValidity("an address, a multiple of 0x1000");
    input.reportValidity();
    return;
  }
  const move = signed(value - groupStart(group)), { motion } = state;
  const both = $("what").value === "both";
  if (group === 1) place(move, both ? move : motion.data, input);
  else place(both ? move : motion.text, move, input);
}

function slid() {
  const move = slideToMove(+$("slide").value), { motion } = state;
  const what = $("what").value;
  place(what === "data" ? motion.text : move, what === "text" ? motion.data : move, $("slide"));
}

function edge(direction, stubs) {
  const { motion } = state;
  motion.move(0n, 0n);
  const move = motion.edge(direction, stubs);
  if (move === null) {
    place(0n, 0n);
    $("verdict").textContent += stubs ? " No move needs a PLT entry." : " No move is refused.";
    return;
  }
  $("what").value = "both";
  place(move, move);
  state.map.reach();
  const first = state.shown.find((i) => motion.status[i] === (stubs ? VIA : FAIL));
  if (first !== undefined) select(first);
}

// Relocations ---------------------------------------------------------------------------------

function filter(reset = true) {
  const m = state.motion, which = $("which").value, words = $("find").value.trim().toLowerCase();
  const wanted = { all: -1, direct: OK, via: VIA, fail: FAIL }[which];
  state.shown = [];
  for (let i = 0; i < m.count; i++) {
    if (wanted >= 0 && m.status[i] !== wanted) continue;
    if (words && !state.keys[i].includes(words)) continue;
    state.shown.push(i);
  }
  $("matching").textContent = `${state.shown.length} of ${m.count}`;
  $("rows").style.height = `${state.shown.length * ROW}px`;
  if (reset) $("list").scrollTop = 0;
  rows();
}

function rows() {
  const m = state.motion, list = $("list"), first = Math.max(0, Math.floor(list.scrollTop / ROW) - 4);
  const last = Math.min(state.shown.length, first + Math.ceil(list.clientHeight / ROW) + 8);
  const found = [];
  for (let n = first; n < last; n++) {
    const i = state.shown[n], row = m.rows[m.type[i]];
    const status = CLASS[m.status[i]];
    const one = element("div", { className: `row ${status}`, id: `r${i}` },
      element("b", { textContent: MARK[m.status[i]], title: STATUS[m.status[i]] }),
      element("span", { textContent: `${m.sections.get(m.section[i]).name}+0x${m.offset[i].toString(16)}` }),
      element("span", { textContent: row.name }),
      element("span", { textContent: name(i) }));
    one.style.top = `${n * ROW}px`;
    one.setAttribute("role", "option");
    one.setAttribute("aria-selected", i === state.selected);
    one.addEventListener("click", () => select(i));
    found.push(one);
  }
  $("rows").replaceChildren(...found);
}

function name(i) {
  const m = state.motion, a = m.addend[i], symbol = m.view.names[m.symbol[i]];
  return a === 0n ? symbol : `${symbol}${a < 0n ? "-" : "+"}${hex(a < 0n ? -a : a)}`;
}

function select(i) {
  state.selected = state.map.selected = i;
  const at = state.shown.indexOf(i), list = $("list");
  if (at >= 0 && (at * ROW < list.scrollTop || (at + 1) * ROW > list.scrollTop + list.clientHeight)) {
    list.scrollTop = at * ROW - list.clientHeight / 2;
  }
  list.setAttribute("aria-activedescendant", `r${i}`);
  rows();
  detail();
  state.map.draw();
}

function step(by) {
  if (!state.shown.length) return;
  const at = state.shown.indexOf(state.selected);
  select(state.shown[Math.max(0, Math.min(state.shown.length - 1, at < 0 ? 0 : at + by))]);
}

function detail() {
  const box = $("detail"), m = state.motion, i = state.selected;
  if (i < 0) {
    box.replaceChildren(element("p", { className: "note",
      textContent: "Select a relocation: click it, or use the arrow keys in the list." }));
    return;
  }
  const row = m.rows[m.type[i]], x = m.xOf(i), status = m.status[i];
  const out = element("dl");
  const add = (term, text, className = "mono") => out.append(
    element("dt", { textContent: term }), element("dd", { textContent: text, className }));
  const where = m.containing(i);
  add("place P", `${hex(m.place(i))}${where ? ` in ${where}` : ""}`);
  add("symbol", name(i));
  add("S+A", hex(m.targetAt(i)));
  if (status === VIA) add("goes to", `${hex(m.entryOf(i))}, entry ${m.slot[i] & 0xffffff} of ${m.entries[m.slot[i] >> 24].name}`);
  add("type", `${row.name}: X = ${row.formula}`);
  if (row.parts.length || row.uleb) add("X", `${formula(i, row)}${hex(x)}`);
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
    const code = [...m.bytes(i, after)].map((b) => b.toString(16).padStart(2, "0")).join(" ");
    const text = m.before[i] < 0 ? "" : after ? m.textAfter(i) : m.textBefore(i);
    add(label, text ? `${code}   ${text}` : code);
  }
  box.replaceChildren(out);
}

// The terms of X with their numbers; empty where they are more than addresses.
function formula(i, row) {
  const m = state.motion, s = m.targetAt(i) - m.addend[i], a = m.addend[i], via = m.status[i] === VIA;
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

// Time line -----------------------------------------------------------------------------------

function timeLine() {
  const steps = state.motion.view.steps;
  $("steps").replaceChildren(...steps.map((s, n) => {
    const button = element("button", { type: "button", textContent: `${n} ${s.name}` });
    button.setAttribute("role", "tab");
    button.addEventListener("click", () => showStep(n));
    button.addEventListener("keydown", (e) => {
      const by = { ArrowLeft: -1, ArrowRight: 1 }[e.key];
      const next = by && $("steps").children[n + by];
      if (next) { next.focus(); next.click(); }
    });
    return button;
  }));
  if (steps.length) showStep(steps.length - 1); else $("step").replaceChildren();
}

function showStep(n) {
  const s = state.motion.view.steps[n];
  [...$("steps").children].forEach((b, k) => {
    b.setAttribute("aria-selected", k === n);
    b.tabIndex = k === n ? 0 : -1;
  });
  const rows = s.spans.map((span) => [
    `${hex(BigInt(span.start))}`, sizeText(BigInt(span.end) - BigInt(span.start)), span.prot, span.leaf,
    span.own ? "holds this module" : ""]);
  const events = Object.entries(s.events).map(([k, v]) => `${k.replaceAll("_", " ")} ${v}`).join(", ");
  $("step").replaceChildren(
    element("p", { textContent: s.what }),
    table(["mapped at", "size", "protection", "leaf", ""], rows, s.spans.map((x) => x.own)),
    element("p", { className: "note", textContent: events ? `Counted in this step: ${events}.` : "" }));
  state.map.step = n;
  state.map.draw();
}

function table(heads, lines, own = []) {
  const head = element("tr", {}, ...heads.map((h) => element("th", { textContent: h })));
  const body = lines.map((cells, n) => element("tr", { className: own[n] ? "own" : "" },
    ...cells.map((c) => element("td", { textContent: c, className: "mono" }))));
  return element("table", {}, element("thead", {}, head), element("tbody", {}, ...body));
}

// The whole -----------------------------------------------------------------------------------

function show(view) {
  const motion = new Motion(view);
  state.motion = motion;
  state.selected = -1;
  state.keys = Array.from({ length: motion.count }, (_, i) =>
    `${view.names[motion.symbol[i]]} ${motion.rows[motion.type[i]].name} ${motion.sections.get(motion.section[i]).name}`.toLowerCase());
  $("title").textContent = `${view.module} on ${view.title}, design ${view.design}`;
  const spread = motion.entries.length > 0;
  for (const id of ["plt-down", "plt-up"]) $(id).hidden = !spread;
  $("regions").replaceChildren(
    table(["region", "address", "size", "protection"], view.regions.map((r) =>
      [r.type, hex(BigInt(r.start)), sizeText(BigInt(r.size)), r.freed ? `${r.prot}, freed` : r.prot])),
    table(["section", "in", "address", "size"], view.sections.map((s) =>
      [s.name, s.type, hex(BigInt(s.start)), `0x${s.size.toString(16)}`])));
  state.map.step = undefined;
  state.map.show(motion);
  timeLine();
  legend();
  $("what").value = "both";
  place(0n, 0n);
}

function legend() {
  const types = new Set(state.motion.view.regions.map((r) => r.type));
  const colours = [...types].map((t) => {
    const [label, letter, colour] = KINDS[t];
    const mark = element("i", { textContent: letter });
    mark.style.background = `var(--${colour})`;
    return element("span", {}, mark, label);
  });
  const line = (label, colour, dash) => {
    const box = element("span");
    box.innerHTML = `<svg width="34" height="8"><path d="M0 4H34" stroke="var(--${colour})" stroke-width="2" stroke-dasharray="${dash}"/></svg>`;
    box.append(label);
    return box;
  };
  $("legend").replaceChildren(...colours, line("reaches", "ok", ""), line("through the PLT", "via", "2 3"),
    line("out of reach", "fail", "7 4"), "hatched: 4 KiB leaves, and regions that were freed");
}

function theme(dark) {
  document.documentElement.classList.toggle("dark", dark);
  $("theme").textContent = dark ? "Light" : "Dark";
  $("theme").setAttribute("aria-pressed", dark);
  state.map?.draw();
}

async function start() {
  const packed = new Blob([bytesOf($("data").textContent.trim())]);
  const text = await new Response(packed.stream().pipeThrough(new DecompressionStream("gzip"))).text();
  state.views = JSON.parse(text).views;
  state.map = new AddressMap($("map"), (words) => { $("under").textContent = words; });
  const { views, map } = state;
  $("view").replaceChildren(...views.map((v, n) => element("option", { value: n,
    textContent: `${v.title}, ${v.design}${v.kaslr === null ? "" : `, KASLR ${v.kaslr}`}` })));
  $("view").addEventListener("change", () => show(views[+$("view").value]));
  const zooms = [["2^64", "everything"], ["Kernel half", "kernelHalf"], ["Reach", "reach"], ["Module", "module"],
    ["Text", "text"], ["Selection", "selection"], ["Instruction", "instruction"]];
  $("zoom").replaceChildren(...zooms.map(([label, method]) => {
    const button = element("button", { type: "button", textContent: label });
    button.addEventListener("click", () => map[method]());
    return button;
  }), ...[["-", 2], ["+", 0.5]].map(([label, factor]) => {
    const button = element("button", { type: "button", textContent: label, ariaLabel: factor > 1 ? "Zoom out" : "Zoom in" });
    button.addEventListener("click", () => map.zoom(factor));
    return button;
  }));
  $("slide").addEventListener("input", slid);
  $("what").addEventListener("change", () => place(state.motion.text, state.motion.data));
  $("text-at").addEventListener("change", () => typed($("text-at"), 1));
  $("data-at").addEventListener("change", () => typed($("data-at"), 2));
  $("home").addEventListener("click", () => place(0n, 0n));
  $("fail-down").addEventListener("click", () => edge(-1, false));
  $("fail-up").addEventListener("click", () => edge(1, false));
  $("plt-down").addEventListener("click", () => edge(-1, true));
  $("plt-up").addEventListener("click", () => edge(1, true));
  $("which").addEventListener("change", () => filter());
  $("find").addEventListener("input", () => filter());
  $("list").addEventListener("scroll", rows);
  $("list").addEventListener("keydown", (e) => {
    const by = { ArrowDown: 1, ArrowUp: -1, PageDown: 12, PageUp: -12, Home: -1e9, End: 1e9 }[e.key];
    if (by) { step(by); e.preventDefault(); }
  });
  $("theme").addEventListener("click", () => theme(!document.documentElement.classList.contains("dark")));
  theme(matchMedia("(prefers-color-scheme: dark)").matches);
  show(views[0]);
  document.body.dataset.ready = "yes";
}

window.execmem = { state, place, select };
start();
