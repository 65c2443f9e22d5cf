// SPDX-License-Identifier: GPL-2.0-or-later
// Names come from files, and files may be hostile: what would turn text around, or is not seen, is
// written out as the command line writes it. Nobody has to remember to: whatever comes into the page is
// looked at before it is drawn. What is painted, not written, goes through `plain` by itself.

const HIDDEN = /[\p{C}\p{Zl}\p{Zp}]/gu;
const WORDS = ["aria-label", "aria-valuetext", "data-note", "label", "placeholder", "title"];

export function plain(text) {
  return text.replace(HIDDEN, (c) => {
    if (c === "\n" || c === "\t") return c;
    const code = c.codePointAt(0), digits = code.toString(16);
    return code < 0x100 ? `\\x${digits.padStart(2, "0")}` : code < 0x10000 ? `\\u${digits.padStart(4, "0")}` : `\\U${digits.padStart(8, "0")}`;
  });
}

function clean(node) {
  if (node.nodeType === Node.TEXT_NODE) {
    const found = plain(node.data);
    if (found !== node.data) node.data = found;
    return;
  }
  if (node.nodeType !== Node.ELEMENT_NODE || node.tagName === "SCRIPT" || node.tagName === "STYLE") return;
  for (const name of WORDS) {
    const text = node.getAttribute(name);
    if (text !== null && plain(text) !== text) node.setAttribute(name, plain(text));
  }
  node.childNodes.forEach(clean);
}

new MutationObserver((changes) => {
  for (const change of changes) {
    if (change.type === "childList") change.addedNodes.forEach(clean);
    else clean(change.target);
  }
}).observe(document.documentElement, { subtree: true, childList: true, characterData: true, attributes: true, attributeFilter: WORDS });
