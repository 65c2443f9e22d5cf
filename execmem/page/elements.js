// SPDX-License-Identifier: GPL-2.0-or-later
// What views are made of: elements whose contents are text, tables, sizes, words with an explanation.

import glossary from "execmem/glossary.js";

// An element with properties, attributes (names with a dash, and role) and children.
export function element(tag, properties = {}, ...children) {
  const found = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "role" || name === "for" || name.includes("-")) found.setAttribute(name, value);
    else found[name] = value;
  }
  found.append(...children);
  return found;
}

export function button(label, act, properties = {}) {
  const found = element("button", { type: "button", textContent: label, ...properties });
  found.addEventListener("click", act);
  return found;
}

// A choice among [value, label]; the first is chosen unless `chosen` says otherwise.
export function choice(options, chosen, act, properties = {}) {
  const found = element("select", properties,
    ...options.map(([value, label]) => element("option", { value, textContent: label })));
  if (chosen !== undefined) found.value = chosen;
  found.addEventListener("change", () => act(found.value));
  return found;
}

export function labelled(text, input) {
  return element("label", {}, `${text} `, input);
}

// Lines of cells; an element as a cell stays one. `own` marks lines.
export function table(heads, lines, own = []) {
  const head = element("tr", {}, ...heads.map((h) => element("th", { textContent: h, scope: "col" })));
  const body = lines.map((cells, n) => element("tr", { className: own[n] ? "own" : "" },
    ...cells.map((c) => element("td", { className: "mono" }, c))));
  return element("div", { className: "scroll", tabIndex: 0, role: "group", "aria-label": heads.filter(Boolean).join(", ") },
    element("table", {}, element("thead", {}, head), element("tbody", {}, ...body)));
}

// Terms and texts in turn, as a list of descriptions.
export function facts(pairs) {
  const found = element("dl");
  for (const [term, text, className = "mono"] of pairs) {
    found.append(element("dt", {}, term), element("dd", { className }, text));
  }
  return found;
}

// A word of the glossary, which explains itself where a pointer or the keyboard is on it.
export function term(word, shown = word) {
  const note = glossary[word];
  if (note === undefined) return element("span", { textContent: shown });
  return element("span", { className: "term", tabIndex: 0, textContent: shown, role: "note",
    "aria-label": `${shown}: ${note}`, "data-note": note });
}

// A sentence in which [words in brackets] are of the glossary: [leaf], or [leaf|leaves].
export function sentence(text, properties = {}) {
  const parts = text.split(/\[([^\]]+)\]/);
  return element("p", properties, ...parts.map((part, n) => {
    if (n % 2 === 0) return part;
    const [word, shown] = part.split("|");
    return term(word, shown);
  }));
}

// Do what makes parts of the page anew; who stood on one of them with the keyboard stands there again.
export function refocus(act) {
  const was = document.activeElement, told = (each) => each.id || `${each.getAttribute("aria-label") ?? ""} ${each.textContent}`;
  const alike = () => [...document.querySelectorAll(was.tagName)].filter((each) => told(each) === words);
  const words = was && told(was), at = was && was !== document.body ? alike().indexOf(was) : -1;
  const found = act();
  if (at >= 0 && !was.isConnected) (alike()[at] ?? alike()[0])?.focus();
  return found;
}

export function sizeText(bytes) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
  let n = Number(bytes), u = 0;
  while (n >= 1024 && u < units.length - 1) { n /= 1024; u++; }
  return `${+n.toFixed(n < 10 ? 2 : n < 100 ? 1 : 0)} ${units[u]}`;
}
