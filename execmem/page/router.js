// SPDX-License-Identifier: GPL-2.0-or-later
// Which views there are, and the address: `#VIEW?key=value` says all that a reader chose.
//
// A view registers itself:
//   register({ name, title, question, each, mount(box, context) })
// `name` stands in the address, `title` on the tab, `question` opens the view. With `each` it is
// mounted once for every load that is shown, side by side, and context.load is that; otherwise once.
// What mount returns, or resolves to, is called when the view goes.

export const views = new Map();

export function register(view) { views.set(view.name, view); }

class Address extends EventTarget {
  constructor() {
    super();
    this.read();
    addEventListener("hashchange", (event) => {
      const hash = new URL(event.newURL).hash;
      if (hash.slice(1) === this.text()) return;
      this.keep();
      const before = this.chosen.toString();
      this.read(hash);
      // Whether nothing but the view is another.
      this.dispatchEvent(new CustomEvent("changed", { detail: { view: this.chosen.toString() === before } }));
    });
  }

  read(hash = location.hash) {
    const [view, , rest] = hash.slice(1).match(/^([^?]*)([?](.*))?$/).slice(1);
    this.view = view;
    this.chosen = new URLSearchParams(rest ?? "");
  }

  text(view = this.view) {
    const rest = this.chosen.toString();
    return rest ? `${view}?${rest}` : view;
  }

  get(key, otherwise = "") { return this.chosen.get(key) ?? otherwise; }

  // Note what was chosen; what is chosen without being asked need not stand in the address.
  set(key, value, otherwise = "") {
    if (String(value) === String(otherwise)) this.chosen.delete(key);
    else this.chosen.set(key, value);
    this.write();
  }

  // A slider writes often, and browsers let an address change only so often.
  write() {
    if (this.pending) return;
    this.pending = setTimeout(() => { this.pending = 0; history.replaceState(null, "", `#${this.text()}`); }, 250);
  }

  // Write nothing that was to be written: the address changes by itself.
  keep() {
    clearTimeout(this.pending);
    this.pending = 0;
  }

  // What belongs to one of several columns.
  column(n) {
    return {
      get: (key, otherwise) => this.get(`${key}.${n}`, otherwise),
      set: (key, value, otherwise) => this.set(`${key}.${n}`, value, otherwise),
    };
  }
}

export const address = new Address();
