// SPDX-License-Identifier: GPL-2.0-or-later
// The view *course*: lessons with a question first, and tasks that are checked as `execmem course` does.

import { button, choice, element, labelled, refocus, sentence, table } from "execmem/elements.js";
import { register } from "execmem/router.js";
import { shell } from "execmem/source.js";

const KEPT = "execmem-course"; // what this browser remembers: tasks that were passed

function passed() {
  try { return JSON.parse(localStorage.getItem(KEPT) ?? "{}"); } catch { return {}; }
}

function remember(verdict) {
  const found = passed(), key = `${verdict.task} ${verdict.arch}`;
  if (!(key in found) || verdict.score < found[key]) found[key] = verdict.score;
  try { localStorage.setItem(KEPT, JSON.stringify(found)); } catch { /* a browser may keep nothing */ }
}

class Course {
  constructor(box, context) { Object.assign(this, { box, context, state: context.state }); }

  async start() {
    this.told = await this.context.ask(["course"]);
    this.list = element("nav", { className: "lessons", "aria-label": "Lessons" });
    this.lesson = element("div", { className: "lesson" });
    this.box.replaceChildren(element("div", { className: "course" }, element("section", { "aria-label": "Course" }, this.list), this.lesson));
    const first = this.told.lessons[0].name;
    await this.show(this.told.lessons.some((l) => l.name === this.state.get("lesson")) ? this.state.get("lesson") : first);
  }

  contents(now) { refocus(() => this.listed(now)); }

  listed(now) {
    const done = passed();
    this.list.replaceChildren(element("p", { className: "marks", textContent: "○ has a task, ✓ was passed in this browser" }), ...this.told.chapters.flatMap((chapter) => [
      element("h3", { textContent: `${chapter.number} ${chapter.title}` }),
      element("p", { className: "note", textContent: chapter.about }),
      ...this.told.lessons.filter((l) => l.chapter === chapter.title).map((lesson) => {
        const known = lesson.tasks.map((name) => this.task(name)).filter((task) => Object.keys(task.archs).some((a) => `${task.name} ${a}` in done));
        const mark = lesson.tasks.length ? (known.length === lesson.tasks.length ? " ✓" : " ○") : "";
        const found = button(`${lesson.number} ${lesson.name}${mark}`, () => this.show(lesson.name), { title: lesson.title });
        if (mark) found.setAttribute("aria-label", `${lesson.number} ${lesson.name}, ${mark === " ✓" ? "task passed" : "has a task"}`);
        if (lesson.name === now) found.setAttribute("aria-current", "true");
        return found;
      }),
    ]));
  }

  task(name) { return this.told.tasks.find((task) => task.name === name); }

  async show(name) {
    const lesson = this.told.lessons.find((each) => each.name === name);
    this.state.set("lesson", name, this.told.lessons[0].name);
    this.contents(name);
    const output = element("div", { className: "output", role: "region", "aria-label": "What the lesson computes", "aria-live": "polite" });
    const go = button("Compute the answer", () => this.compute(lesson, output, go));
    this.lesson.replaceChildren(
      element("section", { "aria-label": `${lesson.number} ${lesson.name}` },
        element("h2", { textContent: `${lesson.number} ${lesson.title}` }),
        element("p", { className: "ask", textContent: lesson.question }),
        element("p", { className: "note" }, `About ${lesson.minutes} minutes. Think of an answer first. `, go),
        output),
      ...lesson.tasks.map((each) => this.work(this.task(each))));
  }

  async compute(lesson, output, go) {
    go.disabled = true;
    output.replaceChildren(element("p", { className: "note", textContent: "It is being computed ..." }));
    try {
      const found = await this.context.ask(["demo", lesson.name]), parts = [];
      if (found.picture) parts.push(element("img", { className: "slide", alt: `${found.title}: ${found.idea}`, src: `data:image/svg+xml,${encodeURIComponent(found.picture)}` }));
      for (const part of found.parts.slice(1)) { // the question stands above
        if (part.kind === "heading") parts.push(element("h3", { textContent: part.lines[0] }));
        else if (part.kind === "grid") parts.push(table(part.columns, part.rows));
        else if (part.kind === "lines") parts.push(element("pre", { textContent: part.lines.join("\n"), tabIndex: 0 }));
        else parts.push(element("p", { textContent: part.lines[0] }));
      }
      output.replaceChildren(...parts);
    } catch (error) {
      output.replaceChildren(element("p", { className: "verdict refused", textContent: error.message }));
    }
    go.disabled = false;
  }

  work(task) {
    const names = Object.keys(task.archs), titles = this.context.offer.archs;
    let arch = names.includes(this.state.get("arch")) ? this.state.get("arch") : names[0], hint = 0;
    const answer = element("textarea", { rows: 18, spellcheck: false, className: "answer", id: `answer-${task.name}`, "aria-label": `Answer to ${task.name}` });
    const output = element("div", { className: "output", role: "region", "aria-label": "Verdict", "aria-live": "polite" });
    const hints = element("div", { "aria-live": "polite" });
    const begin = () => { answer.value = task.archs[arch].template; output.replaceChildren(); };
    const check = button("Check", () => this.check(task, answer.value, output, check), { className: "check" });
    const more = button("A hint", () => {
      hints.append(element("p", { className: "note", textContent: `Hint ${hint + 1} of ${task.hints.length}: ${task.hints[hint]}` }));
      if (++hint === task.hints.length) more.disabled = true;
    });
    begin();
    return element("section", { "aria-label": `Task ${task.name}` },
      element("h2", { textContent: `Task: ${task.title}` }),
      element("div", { className: "move" },
        labelled("For", choice(names.map((n) => [n, titles.find((a) => a.name === n)?.title ?? n]), arch, (name) => { arch = name; this.state.set("arch", name); begin(); })),
        ...(this.context.alone ? [] : [check]), more, button("Begin anew", begin)),
      answer, hints, output,
      this.context.alone
        ? element("p", { className: "note" }, "Nobody checks it in a page that stands alone. In a terminal: ", element("code", { textContent: shell(["course", "new", task.name]) }),
          " writes this file, ", element("code", { textContent: shell(["course", "check", task.file]) }), " checks it; and so does the page of ", element("code", { textContent: "execmem serve" }), ".")
        : element("p", { className: "note" }, "In a terminal: ", element("code", { textContent: shell(["course", "new", task.name]) })));
  }

  async check(task, text, output, check) {
    check.disabled = true;
    output.replaceChildren(element("p", { className: "note", textContent: "It is being checked ..." }));
    try {
      const name = await this.context.put(new File([text], task.file));
      const { verdicts: [verdict] } = await this.context.ask(["course", "check", name]);
      if (verdict.passed) remember(verdict);
      const parts = [
        element("p", { className: `verdict ${verdict.passed ? "direct" : "refused"}`, textContent: `${verdict.task} on ${verdict.arch}: ${verdict.passed ? "passed" : "not yet"}` }),
        table(["", "what", "yours", "wanted"], verdict.checks.map((c) => [c.passed ? "✓" : "✗", c.what, c.found, c.wanted])),
      ];
      if (verdict.passed && verdict.score !== null) {
        parts.push(element("p", { textContent: `Score: ${verdict.score.toLocaleString("en")} ${verdict.unit} (best known: ${verdict.best.toLocaleString("en")}; fewer is better).` }));
      }
      output.replaceChildren(...parts);
      this.contents(this.state.get("lesson", this.told.lessons[0].name));
    } catch (error) {
      output.replaceChildren(element("p", { className: "verdict refused", textContent: error.message }));
    }
    check.disabled = false;
  }
}

register({
  name: "course", title: "Course", asks: true, module: false, terminal: "execmem course",
  question: "Did you understand it?",
  opening: () => sentence("Four chapters of lessons: a question first, then an answer that is computed, and a task that is checked, with numbers. "
    + "Words such as [reach], [PLT], [leaf], [poke] explain themselves where they stand underlined."),
  async mount(box, context) { await new Course(box, context).start(); },
});
