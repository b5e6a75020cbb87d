// The page: a conversation, or a comparison, with what is served.

import { answer, key, model, setKey } from "./api.js";
import { Comparison, RUNS } from "./compare.js";
import { $, appendPieces, make, percent, times } from "./look.js";
import { Panel } from "./panel.js";
import { Tally } from "./tally.js";

const EXAMPLES = [
  "Repeat this sentence three times: The quick brown fox jumps over the lazy dog.",
  "Write the numbers from 1 to 20, one a line.",
  "Explain in three sentences why the sky is blue.",
];
const panel = new Panel();
let card = null; // of the model that is served
let messages = []; // of the conversation, without the system prompt
let running = null; // what ends the answer that is being written

const comparing = () => document.querySelector("input[name=mode]:checked").value === "compare";

function settings() {
  const most = $("most").valueAsNumber;
  const temperature = $("temperature").valueAsNumber;
  return {
    temperature: Number.isNaN(temperature) ? 0 : temperature,
    ...(Number.isNaN(most) ? {} : { max_tokens: most }),
  };
}

function withSystem(conversation) {
  const system = $("system").value.trim();
  return system ? [{ role: "system", content: system }, ...conversation] : conversation;
}

async function connect() {
  try {
    card = await model();
  } catch (error) {
    card = null;
    $("model").textContent = error.status === 401 ? "locked" : "not connected";
    if (error.status === 401) {
      $("key-row").hidden = false;
      $("settings").open = true;
      $("key").focus();
    }
    fail(error.status === 401 && !key() ? null : error);
    return;
  }
  const { device, draft, exact } = card.specport;
  const parts = [card.id, device, `drafts: ${draft}`, ...(exact ? [] : ["fast mode"])];
  $("model").textContent = parts.filter(Boolean).join(" · ");
  document.title = `${card.id} · specport`;
  fail(null);
}

function fail(error) {
  $("error").hidden = !error;
  $("error").textContent = error ? error.message : "";
}

// Write one answer; return its tally. take: called with what is new.
async function write(conversation, fields, take, signal) {
  const tally = new Tally();
  panel.show(tally);
  for await (const chunk of answer(card, conversation, fields, signal)) {
    const { pieces, steps } = tally.add(chunk);
    take(tally, pieces);
    panel.add(tally, steps);
  }
  panel.draw();
  return tally;
}

async function chat(prompt, signal) {
  messages.push({ role: "user", content: prompt });
  const text = make("div", { className: "text", dir: "auto" });
  const figures = make("p", { className: "figures", text: "…" });
  $("messages").append(
    make("p", { className: "user", text: prompt, dir: "auto" }),
    make("article", { className: "answer", "aria-label": "Answer" }, text, figures),
  );
  let seen = null;
  const take = (tally, pieces) => {
    seen = tally;
    follow(() => appendPieces(text, pieces));
  };
  try {
    const tally = await write(withSystem(messages), settings(), take, signal);
    if (tally.reason === "length") end(text, "cut at the limit of tokens");
  } catch (error) {
    if (!signal.aborted) {
      messages.pop(); // so that it can be sent again
      figures.textContent = "no answer";
      throw error;
    }
    end(text, "stopped");
  }
  figures.textContent = seen ? line(seen) : "no answer";
  if (seen?.text) messages.push({ role: "assistant", content: seen.text });
  else messages.pop();
  follow(() => {});
  $("news").textContent = figures.textContent;
}

// Say at a text's end why it ended there.
function end(text, why) {
  text.append(make("span", { className: "cut", text: ` … ${why}` }));
}

function line(tally) {
  const parts = times(tally);
  if (tally.drafted) parts.push(`${percent(tally.rate)} of ${tally.drafted} draft tokens accepted`);
  else parts.push("nothing drafted");
  const cached = tally.usage?.prompt_tokens_details?.cached_tokens;
  if (cached) parts.push(`${cached} of ${tally.usage.prompt_tokens} prompt tokens cached`);
  return parts.join(" · ");
}

async function compare(prompt, signal) {
  const view = new Comparison(prompt);
  follow(() => $("messages").append(view.element));
  const conversation = withSystem([{ role: "user", content: prompt }]);
  try {
    await write(conversation, { ...settings(), max_tokens: 1 }, () => {}, signal); // into the prefix cache
    const tallies = [];
    for (const [run, { fields }] of RUNS.entries()) {
      view.begin(run);
      const take = (tally, pieces) => follow(() => view.add(run, tally, pieces));
      tallies.push(await write(conversation, { ...settings(), ...fields }, take, signal));
      view.add(run, tallies[run], []);
    }
    view.end(tallies, { ...settings(), exact: card.specport.exact });
    panel.show(tallies[0], `${RUNS[0].name} answer`);
    panel.add(tallies[0], tallies[0].steps);
  } catch (error) {
    view.stop();
    if (!signal.aborted) throw error;
  } finally {
    follow(() => {});
    $("news").textContent = view.verdict.textContent;
  }
}

// Change the conversation; it stays at its end if it was there.
function follow(change) {
  const talk = $("talk");
  const atEnd = talk.scrollTop + talk.clientHeight >= talk.scrollHeight - 40;
  change();
  if (atEnd) talk.scrollTop = talk.scrollHeight;
}

async function send(prompt) {
  if (running || !prompt.trim()) return;
  if (!card) await connect();
  if (!card) return;
  running = new AbortController();
  busy(true);
  fail(null);
  $("start").hidden = true;
  $("prompt").value = "";
  fit();
  try {
    await (comparing() ? compare : chat)(prompt.trim(), running.signal);
  } catch (error) {
    fail(error);
    if (!$("prompt").value) $("prompt").value = prompt;
    if (error.status === 401) await connect();
  } finally {
    running = null;
    busy(false);
    if (matchMedia("(pointer: fine)").matches) $("prompt").focus(); // on a phone it would open the keyboard
  }
}

function busy(is) {
  document.body.classList.toggle("busy", is);
  $("send").hidden = is;
  $("stop").hidden = !is;
  $("anew").disabled = is;
  for (const input of $("modes").querySelectorAll("input")) input.disabled = is;
  if (is) $("stop").focus();
}

function anew() {
  messages = [];
  $("messages").replaceChildren();
  $("start").hidden = false;
  panel.show(null);
  fail(null);
  for (const intro of document.querySelectorAll("[data-mode]"))
    intro.hidden = comparing() !== (intro.dataset.mode === "compare");
  $("anew").textContent = comparing() ? "Clear" : "New chat";
  $("prompt").placeholder = comparing() ? "A prompt to answer twice" : "Write a message";
  $("prompt").focus();
}

// Make the field as high as its text.
function fit() {
  $("prompt").style.height = "auto";
  $("prompt").style.height = `${$("prompt").scrollHeight + 2}px`;
}

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send($("prompt").value);
});
$("prompt").addEventListener("input", fit);
$("prompt").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send($("prompt").value);
});
$("stop").addEventListener("click", () => running?.abort());
$("anew").addEventListener("click", anew);
$("modes").addEventListener("change", anew);
$("fields").addEventListener("submit", (event) => event.preventDefault());
$("key").addEventListener("change", () => {
  setKey($("key").value.trim());
  connect();
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  if (running) running.abort();
  else if ($("settings").open) {
    $("settings").open = false;
    $("settings").querySelector("summary").focus();
  }
});
document.addEventListener("pointerdown", (event) => {
  if (!$("settings").contains(event.target)) $("settings").open = false;
});
for (const example of EXAMPLES) {
  const button = make("button", { type: "button", text: example });
  button.addEventListener("click", () => send(example));
  $("examples").append(make("li", {}, button));
}
$("key").value = key();
$("prompt").focus();
connect();
