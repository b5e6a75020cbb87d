// Elements, colours of drafters, and figures as text. Text of others is only ever set as text, never as HTML.

const COLOURS = 6;
const order = new Map(); // drafter -> its number, by first appearance

export const $ = (id) => document.getElementById(id);

// Return a new element. text: its content; children: further nodes.
export function make(name, { className, text, ...attributes } = {}, ...children) {
  const element = document.createElement(name);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

// Return the class that colours what a drafter proposed.
export function colour(drafter) {
  if (!order.has(drafter)) order.set(drafter, order.size % COLOURS);
  return `by-${order.get(drafter)}`;
}

// Append pieces of an answer to an element.
export function appendPieces(element, pieces) {
  for (const { text, drafter } of pieces) {
    if (drafter === null) element.append(text);
    else {
      const look = { className: `piece ${colour(drafter)}`, title: `proposed by ${drafter}` };
      element.append(make("span", { ...look, text }));
    }
  }
}

export const number = (value, digits = 1) => (value === null ? "–" : value.toFixed(digits));
export const percent = (value) => (value === null ? "–" : `${Math.round(100 * value)} %`);

export function duration(seconds) {
  if (seconds === null) return "–";
  return seconds < 1 ? `${Math.round(1000 * seconds)} ms` : `${seconds.toFixed(2)} s`;
}

// Return the length and the times of an answer, as parts of a line.
export function times({ tokens, speed, firstSeconds }) {
  const count = `${tokens} token${tokens === 1 ? "" : "s"}`;
  return [count, `${number(speed)} a second`, `first after ${duration(firstSeconds)}`];
}
