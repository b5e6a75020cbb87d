// The strip of verify steps: a column each, with what was drafted and accepted. SVG, drawn step by step.

import { colour } from "./look.js";
import { total } from "./tally.js";

const SVG = "http://www.w3.org/2000/svg";
const COLUMN = 9; // pixels, gap included
const GAP = 2;

// One sentence on a step; index: counted from 0.
export function sentence(step, index) {
  const names = Object.entries(step.drafted);
  if (!names.length) return `Step ${index + 1}: nothing drafted`;
  const told = names.map(
    ([name, count]) => `${name} drafted ${count}, accepted ${step.accepted[name] ?? 0}`,
  );
  return `Step ${index + 1}: ${told.join("; ")}`;
}

export class Strip {
  #place;
  #columns;
  #svg;
  #count = 0;
  #tallest = 4;

  constructor(place) {
    this.#place = place;
    this.clear();
  }

  clear() {
    this.#count = 0;
    this.#tallest = 4;
    this.#svg = shape("svg", { "aria-hidden": "true", width: 0 });
    this.#columns = shape("g", {});
    this.#svg.append(this.#columns);
    this.#place.replaceChildren(this.#svg);
    this.#place.setAttribute("aria-label", "No steps yet");
  }

  add(steps, tally) {
    if (!steps.length) return;
    const atEnd = this.#place.scrollLeft + this.#place.clientWidth >= this.#place.scrollWidth - 2 * COLUMN;
    for (const step of steps) this.#column(step);
    const height = this.#place.clientHeight || 96;
    this.#svg.setAttribute("width", this.#count * COLUMN);
    this.#svg.setAttribute("height", height);
    // In the group a token is one unit high, and up is up.
    const scale = Math.min(12, height / this.#tallest);
    this.#columns.setAttribute("transform", `translate(0 ${height}) scale(1 ${-scale})`);
    const last = sentence(steps.at(-1), this.#count - 1);
    const sum = `${this.#count} steps; ${tally.accepted} of ${tally.drafted} draft tokens accepted`;
    this.#place.setAttribute("aria-label", `${sum}. ${last}`);
    if (atEnd) this.#place.scrollLeft = this.#place.scrollWidth;
  }

  #column(step) {
    const group = shape("g", {});
    const title = shape("title", {});
    title.textContent = sentence(step, this.#count);
    group.append(title);
    const cell = (y, name) =>
      group.append(
        shape("rect", { x: this.#count * COLUMN, y: y + 0.1, width: COLUMN - GAP, height: 0.8, class: name }),
      );
    let y = 0;
    cell(y++, "cell own");
    for (const [name, count] of Object.entries(step.accepted))
      for (let i = 0; i < count; i++) cell(y++, `cell ${colour(name)}`);
    for (const [name, count] of Object.entries(step.drafted))
      for (let i = step.accepted[name] ?? 0; i < count; i++) cell(y++, `cell hollow ${colour(name)}`);
    this.#columns.append(group);
    this.#count += 1;
    this.#tallest = Math.max(this.#tallest, 1 + total(step.drafted));
  }
}

function shape(name, attributes) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}
