// SPDX-License-Identifier: GPL-2.0-or-later
// The view *write*: a module is typed, compiled for every architecture, and looked at in the other views.

import { button, choice, element, labelled, sentence } from "execmem/elements.js";
import { register } from "execmem/router.js";

const KEPT = 8000; // characters of an address that a source may take, packed: mail and chats send no more

// A text in as few characters as an address may have of it, and back.
export async function pack(text) {
  const bytes = new Uint8Array(await through(new TextEncoder().encode(text), new CompressionStream("deflate-raw")));
  let binary = "";
  for (const byte of bytes) binary += String.fromCharCode(byte);
  return btoa(binary).replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "");
}

export async function unpack(packed) {
  const binary = atob(packed.replaceAll("-", "+").replaceAll("_", "/"));
  const bytes = await through(Uint8Array.from(binary, (c) => c.charCodeAt(0)), new DecompressionStream("deflate-raw"));
  return new TextDecoder().decode(bytes);
}

function through(bytes, stream) { return new Response(new Blob([bytes]).stream().pipeThrough(stream)).arrayBuffer(); }

// The source that an address has in it; empty: none, or none that can be read.
export async function kept(state) {
  const packed = state.get("packed");
  try { return packed ? await unpack(packed) : ""; } catch { return ""; }
}

const FIRST = `#include "module.h"

int mine_sum(const u8 *bytes, int count)
{
	int sum = 0;

	while (count--)
		sum += *bytes++;
	return sum;
}

static int __init mine_init(void)
{
	pr_info("mine: loaded\\n");
	return 0;
}

module_init(mine_init);
MODULE_LICENSE("GPL");
`;

class Write {
  constructor(box, context) {
    this.context = context;
    const { state, offer } = context;
    this.kind = choice([["c", "C"], ["assembly", "assembly"]], state.get("kind", "c"), (kind) => state.set("kind", kind, "c"));
    this.text = element("textarea", { rows: 24, spellcheck: false, value: FIRST, "aria-label": "Source of the module" });
    this.text.addEventListener("change", () => this.keep());
    this.sent = element("p", { className: "note", role: "status", "aria-live": "polite" });
    this.output = element("div", { className: "output", role: "status", "aria-live": "polite" });
    const samples = choice([["", "choose"], ...offer.samples.map((name) => [name, name])], "", async (name) => {
      if (!name) return;
      this.text.value = await context.sample(name);
      this.kind.value = "c";
      this.keep();
    });
    this.go = button("Compile", () => this.build());
    const section = element("section", { "aria-label": "Source" });
    if (!offer.compilers.length) {
      section.append(element("p", { className: "note", textContent: "No compiler is installed on the server that it could confine: "
        + "gcc of an architecture, and Landlock. Pick a sample, or drop a module that you built." }));
    } else {
      section.append(element("div", { className: "move" }, labelled("Language", this.kind), labelled("Start from the sample", samples), this.go,
        element("span", { className: "note", textContent: `for ${offer.compilers.join(", ")}` })), this.text, this.sent, this.output);
    }
    box.append(section);
  }

  async start() {
    const { state } = this.context, text = await kept(state);
    if (text) this.text.value = text;
    else if (state.get("packed")) this.sent.textContent = "The source in this address cannot be read: part of it is missing. Here is another one.";
  }

  // Put the source into the address, where it fits.
  async keep() {
    const { state } = this.context, text = this.text.value, packed = text === FIRST ? "" : await pack(text);
    if (text !== this.text.value) return; // it was typed on meanwhile
    const fits = packed.length <= KEPT, size = (n) => n.toLocaleString("en");
    state.set("packed", fits ? packed : "");
    state.set("kind", this.kind.value, "c");
    this.sent.textContent = fits ? (packed ? "The address of this page has the source in it: send that." : "")
      : `Too long for an address (${size(packed.length)} characters, packed; ${size(KEPT)} fit): a link does not have this source, send it as a file.`;
  }

  async build() {
    await this.keep();
    this.go.disabled = true;
    this.output.replaceChildren(element("p", { className: "note", textContent: "It is compiled ..." }));
    const results = await this.context.build(this.kind.value, this.text.value);
    this.go.disabled = false;
    this.output.replaceChildren(...results.flatMap(({ arch, error, said }) => [
      element("p", { className: `verdict ${error ? "refused" : "direct"}`, textContent: error ? `${arch}: refused` : `${arch}: compiled` }),
      ...(error || said.length ? [element("pre", { textContent: error ?? said.join("\n"), tabIndex: 0 })] : [])]),
    element("p", { className: "note", textContent: results.some((r) => !r.error)
      ? "The module is chosen: look where it lies, what its relocations do, and run it." : "" }));
  }
}

register({
  name: "write", title: "Write", asks: true,
  absent: "A page that stands alone compiles nothing.", terminal: "execmem explain ./MODULE.ko --html FILE",
  question: "What becomes of my own code?",
  opening: () => sentence("Type a module in C or assembly. It is compiled for every architecture that the server has a compiler for, "
    + "with the flags that a kernel is built with; module.h has what it needs to know of the kernel."),
  async mount(box, context) { await new Write(box, context).start(); },
});
