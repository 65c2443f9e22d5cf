// SPDX-License-Identifier: GPL-2.0-or-later
// Who answers: the server that sent the page, or nobody, and then what the page itself holds.

import { bytesOf } from "execmem/motion.js";

export class Refused extends Error {}

// A page that stands alone: the loads inside of it, and answers to what some views ask.
class Alone {
  constructor(document) {
    this.alone = true;
    this.loads = document.views;
    this.views = document.with ?? [];
    this.answers = new Map((document.answers ?? []).map((each) => [JSON.stringify(each.words), each.document]));
    const archs = new Map(document.views.map((v) => [v.arch, v.title]));
    this.offer = { archs: [...archs].map(([name, title]) => ({ name, title })), kernel: document.kernel ?? null,
      exports: document.exports ?? null, samples: [], compilers: [], designs: [] };
  }

  // Whether a view has its answers here.
  has(view) { return this.views.includes(view); }

  // Of the questions that a command can be asked here, the values of an option; null: any.
  values(command, option) {
    const found = new Set();
    for (const key of this.answers.keys()) {
      const words = JSON.parse(key), at = words.indexOf(option);
      if (words[0] === command && at > 0) found.add(words[at + 1]);
    }
    return found;
  }

  async ask(words) {
    const found = this.answers.get(JSON.stringify(words));
    if (!found) throw new Refused(`This page has no answer to that: execmem serve has, or in a terminal: ${shell(words)}`);
    return found;
  }
}

// A server: a question is the words of a command, the answer its document.
class Server {
  constructor(offer) {
    this.alone = false;
    this.offer = offer;
    this.known = new Map();
  }

  has() { return true; }

  values() { return null; }

  async request(method, path, body) {
    const response = await fetch(path, { method, body, headers: { "X-Execmem-Desk": this.offer.desk } });
    const found = await response.json().catch(() => ({ error: `the server answered ${response.status}` }));
    if (!response.ok) throw new Refused(found.error ?? `the server answered ${response.status}`);
    return found;
  }

  // The document of `execmem WORDS --json`; Refused with what the command said, where it printed none.
  ask(words) {
    const key = JSON.stringify(words);
    if (!this.known.has(key)) {
      const asked = this.request("POST", "/api/ask", JSON.stringify({ words })).then((found) => {
        if (found.document === null) throw new Refused(found.said.join("\n").replace(/^execmem: /, "") || `it ended with ${found.code}`);
        return { ...found.document, said: found.said };
      });
      asked.catch(() => this.known.delete(key)); // asked again, it may do
      this.known.set(key, asked);
    }
    return this.known.get(key);
  }

  // Compile a text for an architecture; name and warnings of the module, or Refused with the errors.
  async build(arch, kind, text) {
    const found = await this.request("POST", "/api/build", JSON.stringify({ arch, kind, text }));
    this.known.clear();
    return found;
  }

  async sample(name) { return (await this.request("GET", `/api/source/${name}`)).text; }

  // Give the server a file; the name that questions have for it.
  async put(file) {
    const found = await this.request("PUT", `/api/files/${encodeURIComponent(file.name)}`, file);
    this.known.clear();
    return found.name;
  }
}

export async function open() {
  const data = document.getElementById("data");
  if (data) {
    const packed = new Blob([bytesOf(data.textContent.trim())]);
    const text = await new Response(packed.stream().pipeThrough(new DecompressionStream("gzip"))).text();
    return new Alone(JSON.parse(text));
  }
  const response = await fetch("/api/desk", { method: "POST" });
  const offer = await response.json();
  if (!response.ok) throw new Refused(offer.error);
  return new Server(offer);
}

// A command as one types it.
export function shell(words) {
  return ["execmem", ...words].map((w) => (/^[\w@%+=:,./-]+$/.test(w) ? w : `'${w.replaceAll("'", "'\\''")}'`)).join(" ");
}
