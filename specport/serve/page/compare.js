// Plain against speculative: the same prompt twice, one after the other.

import { appendPieces, make, number, times } from "./look.js";

// The speculative answer comes first: drafters may learn from answers, and must not learn from the plain one.
export const RUNS = [
  { name: "Speculative", about: "the server’s drafts", fields: {} },
  { name: "Plain", about: "one token a step", fields: { speculative: { draft: "none" } } },
];

export class Comparison {
  constructor(prompt) {
    this.columns = RUNS.map(({ name, about }) => {
      const text = make("div", { className: "text", dir: "auto" });
      const figures = make("p", { className: "figures", text: "waits" });
      const title = make("h3", { text: name }, make("small", { text: about }));
      return { text, figures, root: make("section", { "aria-label": name }, title, text, figures) };
    });
    const text = "Reading the prompt once, so that both begin alike …";
    this.verdict = make("p", { className: "verdict", text });
    this.element = make(
      "article",
      { className: "comparison" },
      make("p", { className: "user", text: prompt, dir: "auto" }),
      make("div", { className: "columns" }, ...this.columns.map(({ root }) => root)),
      this.verdict,
    );
  }

  begin(run) {
    this.verdict.textContent = `${RUNS[run].name} decoding …`;
  }

  add(run, tally, pieces) {
    appendPieces(this.columns[run].text, pieces);
    this.columns[run].figures.textContent = times(tally).join(" · ");
  }

  // Say what came out. exact: whether the server computes bit for bit alike with and without drafts.
  end([speculative, plain], { temperature, exact }) {
    const same = speculative.text === plain.text && speculative.reason === plain.reason;
    this.verdict.classList.add(same ? "same" : "other");
    this.verdict.replaceChildren(
      make("strong", { text: same ? "The texts are equal. " : "The texts differ. " }),
      `${same ? "" : `${why(temperature, exact)} `}${ratio(speculative, plain)}`,
    );
  }

  stop() {
    this.verdict.textContent = "Stopped: nothing was compared.";
  }
}

function why(temperature, exact) {
  if (temperature !== 0) return "Above temperature 0 each is drawn by chance.";
  if (!exact) return "In fast mode two tokens that are almost equally likely may change places.";
  return "That must not happen at temperature 0: please report it.";
}

function ratio(speculative, plain) {
  if (!speculative.speed || !plain.speed) return "They are too short to compare times.";
  const times = speculative.speed / plain.speed;
  const speeds = `${number(speculative.speed)} against ${number(plain.speed)}`;
  const both = `${speeds} tokens a second after the first token`;
  if (Math.abs(times - 1) < 0.03) return `Speculation made no difference: ${both}.`;
  return `Speculation was ${times.toFixed(2)} times as fast: ${both}.`;
}
