// What is counted of one answer while it arrives. Knows nothing of the page.

export class Tally {
  constructor() {
    this.text = "";
    this.pieces = []; // {text, drafter}; drafter null = the model's own choice
    this.steps = []; // {drafted, accepted}: tokens by drafter
    this.drafters = new Map(); // name -> {steps, drafted, accepted}
    this.drafted = this.accepted = this.draftSteps = 0;
    this.tokens = 0;
    this.usage = this.metrics = this.reason = null;
    this.began = performance.now();
    this.first = this.last = null; // when tokens came
  }

  // Count a chunk; return what is new in it.
  add(chunk) {
    if (chunk.usage) {
      this.usage = chunk.usage;
      this.metrics = chunk.metrics;
      this.tokens = chunk.usage.completion_tokens;
    }
    const choice = chunk.choices[0];
    this.reason = choice?.finish_reason ?? this.reason;
    const { pieces = [], steps = [] } = choice?.speculation ?? {};
    if (pieces.length || steps.length) this.#arrived();
    for (const piece of pieces) {
      this.text += piece.text;
      this.pieces.push(piece);
    }
    for (const step of steps) this.#step(step);
    return { pieces, steps };
  }

  get seconds() {
    return this.first === null ? 0 : (this.last - this.first) / 1000;
  }

  // Tokens a second after the first one: the server's figure once it is there. null = not known yet.
  get speed() {
    const told = this.metrics?.mean_itl_ms;
    if (told) return 1000 / told;
    return this.tokens > 1 && this.seconds > 0 ? (this.tokens - 1) / this.seconds : null;
  }

  get firstSeconds() {
    return this.first === null ? null : (this.first - this.began) / 1000;
  }

  get rate() {
    return this.drafted ? this.accepted / this.drafted : null;
  }

  // Tokens of each step that verified a draft, the model's own one included.
  get length() {
    return this.draftSteps ? 1 + this.accepted / this.draftSteps : null;
  }

  #arrived() {
    this.last = performance.now();
    if (this.first === null) {
      this.first = this.last;
      this.tokens = 1;
    }
  }

  #step(step) {
    this.steps.push(step);
    const drafted = total(step.drafted);
    const accepted = total(step.accepted);
    this.tokens += accepted + 1;
    this.drafted += drafted;
    this.accepted += accepted;
    this.draftSteps += drafted > 0 ? 1 : 0;
    for (const [name, count] of Object.entries(step.drafted)) {
      const own = this.drafters.get(name) ?? { steps: 0, drafted: 0, accepted: 0 };
      this.drafters.set(name, own);
      own.steps += 1;
      own.drafted += count;
      own.accepted += step.accepted[name] ?? 0;
    }
  }
}

export function total(counts) {
  return Object.values(counts).reduce((sum, count) => sum + count, 0);
}
