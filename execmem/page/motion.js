// SPDX-License-Identifier: GPL-2.0-or-later
// What changes when a module moves: the rules of loader/motion.py, without a document to draw in.
// Relocations are sorted by X within classes that move alike, so a new place costs two binary
// searches a class, and then only what fails or goes through the PLT is looked at.

const MASK = (1n << 64n) - 1n;
export const OK = 0, VIA = 1, FAIL = 2;

export function bytesOf(text) {
  const binary = atob(text), out = new Uint8Array(binary.length);
  for (let i = 0; i < out.length; i++) out[i] = binary.charCodeAt(i);
  return out;
}

function unpack(text, Type) {
  const bytes = bytesOf(text);
  return new Type(bytes.buffer, 0, bytes.length / Type.BYTES_PER_ELEMENT);
}

export function signed(x) { return BigInt.asIntN(64, x); }

export function rounded(x, granule, bias) { return BigInt.asUintN(64, (x + BigInt(bias)) & -BigInt(granule)); }

export function hex(x) { return x < 0n ? "-0x" + (-x).toString(16) : "0x" + x.toString(16); }

const ARRAYS = {
  section: Uint16Array, offset: Uint32Array, type: Uint16Array, symbol: Uint32Array,
  addend: BigInt64Array, target: BigUint64Array, place_group: Int8Array, target_group: Int8Array,
  x: BigUint64Array, high: Int32Array, a: Int8Array, b: Int8Array, order: Uint32Array,
  code_start: Uint32Array, code_size: Uint8Array, before: Int32Array, after: Int32Array,
};

export class Motion {
  constructor(view) {
    this.view = view;
    for (const name in ARRAYS) this[name] = unpack(view[name], ARRAYS[name]);
    this.count = view.count;
    this.sections = new Map();
    for (const s of view.sections) this.sections.set(s.index, { ...s, start: BigInt(s.start) });
    this.contents = new Map();
    for (const index in view.contents) this.contents.set(+index, bytesOf(view.contents[index]));
    this.rows = {};
    for (const number in view.rows) {
      const row = view.rows[number];
      const lo = row.lo && integer(row.lo), hi = row.hi && integer(row.hi);
      this.rows[number] = { ...row, lo, hi, least: Number(lo), most: Number(hi) };
    }
    const plt = view.plt;
    this.entries = view.entries.map((e) => this.entry(e));
    this.plt = plt && { ...plt, lo: plt.lo && integer(plt.lo), hi: plt.hi && integer(plt.hi) };
    this.sorted = new BigUint64Array(this.order.length);
    for (let i = 0; i < this.sorted.length; i++) this.sorted[i] = this.x[this.order[i]];
    this.targetId = this.numberTargets();
    this.status = new Uint8Array(this.count);
    this.slot = new Int32Array(this.count);
    this.move(0n, 0n);
    this.loaded = new Map(); // branches that went through an entry when they were loaded
    for (let i = 0; i < this.count; i++) if (this.status[i] === VIA) this.loaded.set(i, this.entryOf(i));
  }

  // The entries of a section for them, and which branches may come there. A branch and its entry move
  // together, so how far it is to the first one is said once, in numbers that doubles have exactly.
  entry(e) {
    const start = BigInt(e.start), visits = unpack(e.visits, Uint32Array), far = new Float64Array(visits.length);
    visits.forEach((i, n) => {
      const row = this.rows[this.type[i]], s = this.sections.get(this.section[i]);
      const x = signed(this.compute(row, start, BigInt.asUintN(64, s.start + BigInt(this.offset[i]))));
      const [sign, letters, granule, bias] = row.terms[0];
      const plain = row.follows && this.place_group[i] === 1 && row.relative && row.lo !== null && row.bits >= 64
        && sign > 0 && letters === "SA" && granule === 1 && bias === 0;
      far[n] = plain && x > -(1n << 52n) && x < 1n << 52n ? Number(x) : NaN; // NaN: it is computed each time
    });
    return { ...e, start, visits, far, slots: e.slots === null ? null : BigInt(e.slots) };
  }

  numberTargets() {
    const known = new Map(), ids = new Uint32Array(this.count);
    for (let i = 0; i < this.count; i++) {
      const t = this.target[i];
      let id = known.get(t);
      if (id === undefined) known.set(t, (id = known.size));
      ids[i] = id;
    }
    return ids;
  }

  place(i) {
    return BigInt.asUintN(64, this.sections.get(this.section[i]).start + BigInt(this.offset[i])
      + this.shift(this.place_group[i]));
  }

  targetAt(i) { return BigInt.asUintN(64, this.target[i] + this.shift(this.target_group[i])); }

  shift(group) { return group === 1 ? this.text : group === 2 ? this.data : 0n; }

  // X at the present place, as a signed number; of a branch through an entry, to the entry.
  xOf(i) {
    const from = this.high[i] >= 0 ? this.high[i] : i, row = this.rows[this.type[from]];
    if (this.status[i] === VIA) return signed(this.compute(this.rows[this.type[i]], this.entryOf(i), this.place(i)));
    if (!row.follows) return signed(this.compute(row, this.targetAt(from), this.place(from)));
    return signed(this.x[from] + BigInt(this.a[from]) * this.text + BigInt(this.b[from]) * this.data);
  }

  // X of a row that takes S+A and P (archs/op.py, Op.compute), without its sign.
  compute(row, target, place) {
    let x = 0n;
    for (const [sign, letters, granule, bias] of row.terms) {
      const value = rounded(letters === "P" ? place : target, granule, bias);
      x += sign < 0 ? -value : value;
    }
    return row.bits < 64 ? BigInt.asIntN(row.bits, x) : x;
  }

  outside(row, x) { return signed(x) < row.lo || signed(x) >= row.hi; }

  entryOf(i) {
    const e = this.entries[this.slot[i] >> 24], number = this.slot[i] & 0xffffff;
    return BigInt.asUintN(64, e.start + this.text + BigInt(number * this.view.plt.size));
  }

  lowerBound(lo, hi, value) {
    while (lo < hi) {
      const middle = (lo + hi) >> 1;
      if (this.sorted[middle] < value) lo = middle + 1; else hi = middle;
    }
    return lo;
  }

  // Move text and data to so many bytes (multiples of a page) from where they were loaded.
  move(text, data) {
    this.text = text;
    this.data = data;
    this.status.fill(OK);
    this.failed = 0;
    for (const c of this.view.classes) {
      const row = this.rows[c.row];
      if (row.hi - row.lo > MASK) continue;
      if (!row.follows) {
        for (let n = c.start; n < c.end; n++) {
          const i = this.order[n];
          if (!this.outside(row, this.compute(row, this.targetAt(i), this.place(i)))) continue;
          this.status[i] = FAIL;
          this.failed++;
        }
        continue;
      }
      const k = BigInt(c.a) * text + BigInt(c.b) * data;
      // X0 + k lies in [lo, hi) modulo 2^64: X0 in an interval that may wrap around.
      const lo = BigInt.asUintN(64, row.lo - k), hi = BigInt.asUintN(64, row.hi - k);
      const i = this.lowerBound(c.start, c.end, lo), j = this.lowerBound(c.start, c.end, hi);
      const bad = lo < hi ? [[c.start, i], [j, c.end]] : [[j, i]];
      for (const [from, to] of bad) {
        for (let n = from; n < to; n++) this.status[this.order[n]] = FAIL;
        this.failed += Math.max(0, to - from);
      }
    }
    let before = 0; // slots are the whole module's
    this.used = this.entries.map((e, number) => {
      const used = this.takeEntries(e, number, before);
      before += used;
      return used;
    });
    this.via = 0;
    for (let i = 0; i < this.count; i++) this.via += this.status[i] === VIA;
    return this;
  }

  // Give branches out of reach an entry each, in the loader's order (loader/stubs.py).
  takeEntries(e, which, before) {
    const { size, sorts } = this.view.plt, known = new Map();
    let used = 0, last = -1;
    for (let n = 0; n < e.visits.length; n++) {
      const i = e.visits[n];
      if (this.status[i] !== FAIL) continue;
      const target = this.targetId[i];
      let number = known.get(target);
      if (number === undefined || (sorts && target !== last)) {
        if (used === e.reserved || !this.leads(e, used, before, i)) continue;
        known.set(target, (number = used++));
      }
      last = target;
      const row = this.rows[this.type[i]], x = e.far[n] + number * size;
      const reaches = x === x ? x >= row.least && x < row.most
        : !this.outside(row, this.compute(row, e.start + this.text + BigInt(number * size), this.place(i)));
      if (reaches) {
        this.status[i] = VIA;
        this.slot[i] = (which << 24) | number;
        this.failed--;
      }
    }
    return used;
  }

  // Whether the next entry would reach what it leads to (archs/levels/load.py, Plt.leads).
  leads(e, used, before, i) {
    if (this.plt.lo === null) return true;
    const at = BigInt.asUintN(64, e.start + this.text + BigInt(used * this.plt.size));
    const to = e.slots === null ? this.targetAt(i)
      : BigInt.asUintN(64, e.slots + this.shift(e.slots_group) + BigInt(8 * (before + used)));
    return !this.outside(this.plt, this.compute(this.plt, to, at));
  }

  // The nearest move of everything, up (1) or down (-1), at which something stops reaching.
  edge(direction, stubs) {
    let best = null;
    const page = BigInt(4096);
    for (const c of this.view.classes) {
      const row = this.rows[c.row], n = BigInt(c.a + c.b);
      if (!row.follows && (row.stub && this.entries.length > 0) === stubs) {
        for (let k = c.start; k < c.end; k++) {
          const pages = this.crossing(this.order[k], row, direction);
          if (pages !== null && (best === null || pages < best)) best = pages;
        }
        continue;
      }
      if (n === 0n || row.hi - row.lo > MASK || (row.stub && this.entries.length > 0) !== stubs) continue;
      const xs = [signed(this.sorted[c.start]), signed(this.sorted[c.end - 1])];
      for (const x of xs) {
        // The first whole number of pages p with x + n*p*page outside [lo, hi).
        const up = (n > 0n) === (direction > 0);
        const room = up ? row.hi - 1n - x : x - row.lo;
        const pages = room / (page * (n < 0n ? -n : n)) + 1n;
        if (pages > 0n && (best === null || pages < best)) best = pages;
      }
    }
    return best === null ? null : best * page * BigInt(direction);
  }

  // In how many pages, of a move of everything, a row that rounds to a region stops reaching.
  crossing(i, row, direction) {
    const page = 4096n, moves = (group) => (group ? 1n : 0n);
    const place = this.place(i) - this.shift(this.place_group[i]), target = this.target[i];
    let best = null;
    for (const [, letters, granule, bias] of row.terms) {
      const size = row.terms.reduce((most, term) => (term[2] > most ? term[2] : most), granule);
      const [at, group] = letters === "P" ? [place, this.place_group[i]] : [target, this.target_group[i]];
      const inside = (at + BigInt(bias)) & (BigInt(size) - 1n);
      const pages = ((direction > 0 ? BigInt(size) - inside : inside + 1n) + page - 1n) / page;
      const by = pages * page * BigInt(direction);
      const x = this.compute(row, target + moves(this.target_group[i]) * by, place + moves(this.place_group[i]) * by);
      if (group && this.outside(row, x) && (best === null || pages < best)) best = pages;
    }
    return best;
  }

  // The bytes of relocation i: what the file holds, or with X placed in the row's fields.
  bytes(i, after) {
    const row = this.rows[this.type[i]], contents = this.contents.get(this.section[i]);
    const start = this.code_size[i] ? this.code_start[i] : this.offset[i];
    const size = this.code_size[i] || row.size;
    const out = new Uint8Array(size);
    out.set(contents.subarray(start, start + size));
    if (!after || row.uleb || this.status[i] === FAIL) return out;
    const last = row.sums ? this.lastAt(i) : i, x = this.xOf(last);
    for (const part of this.rows[this.type[last]].parts) this.insert(out, this.offset[i] - start + part.offset, part, x);
    return out;
  }

  // Of several relocations that add up at one place, the last: its X is what stands there.
  lastAt(i) {
    if (this.lasts === undefined) {
      this.lasts = new Map();
      for (let n = 0; n < this.count; n++) {
        if (this.rows[this.type[n]].sums) this.lasts.set(this.section[n] * 2 ** 32 + this.offset[n], n);
      }
    }
    return this.lasts.get(this.section[i] * 2 ** 32 + this.offset[i]);
  }

  insert(bytes, at, part, x) {
    let word = 0n, value = x + BigInt(part.bias);
    for (let n = part.size - 1; n >= 0; n--) word = (word << 8n) | BigInt(bytes[at + n]);
    word &= ~BigInt(part.mask);
    if (part.movz) {
      if (value < 0n) value = ~value; else word |= BigInt(part.movz);
    }
    for (const [from, bits, to] of part.slices) {
      word |= ((value >> BigInt(from)) & ((1n << BigInt(bits)) - 1n)) << BigInt(to);
    }
    for (let n = 0; n < part.size; n++) bytes[at + n] = Number((word >> BigInt(8 * n)) & 255n);
  }

  // The disassembly before relocation: an empty field leads to the instruction itself.
  textBefore(i) {
    return this.view.texts[this.before[i]].replace(/0x[0-9a-f]{11,}/g, (word) =>
      hex(BigInt.asUintN(64, BigInt(word) + this.shift(this.place_group[i]))));
  }

  // The disassembly after relocation, with the numbers that a move changes put right.
  textAfter(i) {
    const text = this.view.texts[this.after[i]];
    const from = this.high[i] >= 0 ? this.high[i] : i;
    const entry = this.loaded.get(i);
    const target0 = entry ?? this.target[from];
    const x0 = entry === undefined ? signed(this.x[from]) : signed(this.compute(this.rows[this.type[i]], target0, this.place(i) - this.text));
    const row = this.rows[this.type[i]];
    const x = this.xOf(i);
    const toEntry = this.status[i] === VIA;
    const target = toEntry ? this.entryOf(i) : this.targetAt(from);
    const wide = row.parts.find((part) => part.bias), [slice] = (wide ?? row.parts[0])?.slices ?? [];
    const low = (v) => BigInt.asIntN(12, v);
    const high = (v) => ((v + BigInt(wide.bias)) >> BigInt(slice[0])) & ((1n << BigInt(slice[1])) - 1n);
    // A signed half that any X has, whose bits a move by pages changes too; zero is not printed
    // before a register.
    const half = !wide && row.parts.length === 1 && slice?.[0] === 0 && slice[1] > 12 && slice[1] < 32 && row.lo == null;
    const part = (v) => BigInt.asIntN(slice[1], v);
    if (half && text.includes("(")) {
      return text.replace(/(-?0x[0-9a-f]+|-?\d+)?\(/, part(x) === 0n ? "(" : `${digits(part(x))}(`);
    }
    let done = false; // of a pair the first number is the wide part, the next the low one
    return text.replace(/([-+] ?|)\b(0x[0-9a-f]+|\d+)\b/g, (word, sign, size) => {
      const value = sign.startsWith("-") ? -integer(size) : integer(size);
      const say = (v) => (sign.endsWith(" ") ? `${v < 0n ? "-" : "+"} ${digits(v < 0n ? -v : v)}` : digits(v));
      if (near(value, target0)) return say(BigInt.asUintN(64, target + (value - target0)));
      if (value === (target0 & ~4095n)) return say(target & ~4095n);
      if (wide && !done && value === high(x0)) {
        done = true;
        return say(high(x));
      }
      if (wide && done && row.parts.length > 1 && value === low(x0)) return say(low(x));
      if (half && value === part(x0)) return say(part(x));
      if (!wide && near(value, x0)) return say(x + (value - x0));
      return word;
    });
  }

  containing(i) {
    const list = this.view.functions, s = this.section[i], offset = this.offset[i];
    let lo = 0, hi = list.length;
    while (lo < hi) {
      const middle = (lo + hi) >> 1, f = list[middle];
      if (f[0] < s || (f[0] === s && f[1] <= offset)) lo = middle + 1; else hi = middle;
    }
    const f = list[lo - 1];
    if (!f || f[0] !== s || offset >= f[1] + Math.max(f[2], 1)) return "";
    return `${f[3]}+0x${(offset - f[1]).toString(16)}`;
  }
}

export function integer(text) { return text[0] === "-" ? -BigInt(text.slice(1)) : BigInt(text); }

// As the disassembler prints numbers: small ones in decimal.
function digits(x) { return x > -10n && x < 10n ? String(x) : hex(x); }

function near(a, b) { const d = a - b; return d >= -16n && d <= 16n; }
