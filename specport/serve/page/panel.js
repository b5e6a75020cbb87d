// The figures of the answer that is being written.

import { $, colour, duration, make, number, percent } from "./look.js";
import { Strip, sentence } from "./strip.js";

export class Panel {
  #strip = new Strip($("strip"));
  #tally = null;
  #waiting = false;

  // Show this answer from now on; null = none.
  show(tally, title = "This answer") {
    this.#tally = tally;
    $("figures-title").textContent = title;
    this.#strip.clear();
    $("step").textContent = "Each column is one step of the model.";
    this.draw();
  }

  // Take the new steps of an answer; another one's are not shown.
  add(tally, steps) {
    if (tally !== this.#tally) return;
    this.#strip.add(steps, tally);
    if (steps.length) $("step").textContent = sentence(steps.at(-1), tally.steps.length - 1);
    if (this.#waiting) return;
    this.#waiting = true;
    requestAnimationFrame(() => {
      this.#waiting = false;
      this.draw();
    });
  }

  draw() {
    const tally = this.#tally;
    $("speed").textContent = number(tally?.speed ?? null);
    $("first").textContent = duration(tally?.firstSeconds ?? null);
    $("rate").textContent = percent(tally?.rate ?? null);
    $("length").textContent = number(tally?.length ?? null, 2);
    const rows = [...(tally?.drafters ?? [])].map(([name, own]) => {
      const mark = make("i", { className: `cell ${colour(name)}` });
      return make(
        "tr",
        {},
        make("th", { scope: "row" }, mark, ` ${name}`),
        ...[own.steps, own.drafted, own.accepted].map((count) => make("td", { text: String(count) })),
      );
    });
    $("drafters").hidden = !rows.length;
    $("drafters").tBodies[0].replaceChildren(...rows);
  }
}
