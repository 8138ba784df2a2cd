// The page: what is asked, in which order, and what happens when it is answered, stopped or refused.

import { attachment, kindOf, part, shown, watchDropsAndPastes } from "./attachments.js";
import { AskError, answer, modelName } from "./client.js";
import { plain } from "./places.js";
import { AnswerTurn, make, questionTurn } from "./turns.js";

const at = (id) => document.getElementById(id);
const question = at("question");

let waiting = []; // attachments of the next question
let turns = []; // {text, attachments, answer} that were answered
let running = null; // AbortController of the answer that is being written
let name = null; // of the model

async function meet() {
  try {
    name = await modelName(at("key").value);
    at("model").textContent = name;
    document.title = name;
    at("state").className = "state ready";
  } catch (error) {
    at("state").className = "state gone";
    if (error.status === 401) askForKey();
  }
}

function askForKey() {
  showSettings(true);
  tell("This server asks for an API key.");
  refuse("This server asks for an API key. Enter it under Settings.");
  at("key").focus();
}

function tell(words) {
  at("told").textContent = words;
}

function refuse(words) {
  at("refused").textContent = words;
  at("refused").hidden = !words;
}

function showSettings(isShown) {
  at("settings").hidden = !isShown;
  at("show-settings").setAttribute("aria-expanded", String(isShown));
}

// --- pictures and videos ------------------------------------------------------------------------------------------

async function take(files) {
  const unknown = files.filter((file) => !kindOf(file)).map((file) => file.name);
  refuse(unknown.length ? `Neither a picture nor a video: ${unknown.join(", ")}.` : "");
  for (const file of files.filter(kindOf)) {
    try {
      waiting.push(await attachment(file));
    } catch (error) {
      refuse(error.message);
    }
  }
  showWaiting();
  question.focus();
}

function showWaiting() {
  at("attachments").replaceChildren(
    ...waiting.map((one, index) => {
      const item = document.createElement("li");
      const remove = make("button", "quiet icon");
      remove.type = "button";
      remove.setAttribute("aria-label", `Remove ${one.name}`);
      remove.append(at("cross").content.cloneNode(true));
      remove.addEventListener("click", () => {
        waiting.splice(index, 1);
        URL.revokeObjectURL(one.url);
        showWaiting();
        question.focus();
      });
      item.append(shown(one, { controls: false }), make("span", "name", one.name), remove);
      return item;
    }),
  );
  tell(waiting.length ? `${waiting.length} to send` : "");
}

// --- asking -------------------------------------------------------------------------------------------------------

function messages(asked) {
  const system = at("system").value.trim();
  const found = system ? [{ role: "system", content: system }] : [];
  for (const turn of [...turns, asked]) {
    const text = { type: "text", text: turn.text };
    found.push({ role: "user", content: [...turn.attachments.map(part), text] });
    if (turn.answer !== undefined) found.push({ role: "assistant", content: turn.answer });
  }
  return found;
}

function wishes() {
  const number = (id, field) => (at(id).value === "" ? {} : { [field]: Number(at(id).value) });
  return { ...number("max-tokens", "max_completion_tokens"), ...number("temperature", "temperature") };
}

async function ask(asked) {
  const pictures = [...turns, asked].flatMap((turn) => turn.attachments).filter((one) => one.kind === "image");
  const shownAnswer = new AnswerTurn(pictures);
  at("conversation").append(shownAnswer.element);
  shownAnswer.element.scrollIntoView({ block: "end" });
  running = new AbortController();
  setRunning(true);
  tell("Answering");
  let end = null;
  let usage = null;
  try {
    // Marks around boxes are special tokens, without which a box is only numbers.
    const body = { messages: messages(asked), skip_special_tokens: false, ...wishes() };
    for await (const piece of answer(body, at("key").value, running.signal)) {
      if (piece.text) write(shownAnswer, piece.text);
      end = piece.finish ?? end;
      usage = piece.usage ?? usage;
    }
  } catch (error) {
    if (error.name !== "AbortError") {
      failed(error, asked, shownAnswer);
      return;
    }
    end = "stopped";
  } finally {
    running = null;
    setRunning(false);
  }
  shownAnswer.finish(end, usage);
  const said = plain(shownAnswer.text);
  turns.push({ ...asked, answer: said });
  tell(end === "stopped" ? "Stopped." : `Answer: ${said}`);
  at("state").className = "state ready";
  shownAnswer.element.scrollIntoView({ block: "end" });
}

function write(shownAnswer, text) {
  const isAtEnd = innerHeight + scrollY >= document.documentElement.scrollHeight - 80;
  shownAnswer.add(text);
  if (isAtEnd) scrollTo(0, document.documentElement.scrollHeight);
}

function failed(error, asked, shownAnswer) {
  if (!(error instanceof AskError)) console.error(error);
  if (!error.status) at("state").className = "state gone";
  shownAnswer.fail(error.message, () => {
    shownAnswer.element.remove();
    ask(asked);
    question.focus();
  });
  shownAnswer.element.scrollIntoView({ block: "end" });
  tell("");
  if (error.status === 401) askForKey();
}

function setRunning(isRunning) {
  at("send").hidden = isRunning;
  at("stop").hidden = !isRunning;
  at("new").disabled = isRunning;
}

function stop() {
  running?.abort();
  question.focus();
}

at("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = question.value.trim();
  if (running) return;
  if (!text) {
    refuse("Write a question first.");
    question.focus();
    return;
  }
  refuse("");
  const asked = { text, attachments: waiting };
  waiting = [];
  showWaiting();
  question.value = "";
  at("empty").hidden = true;
  at("conversation").append(questionTurn(asked));
  ask(asked);
});

question.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  at("composer").requestSubmit();
});
addEventListener("keydown", (event) => {
  if (event.key === "Escape") stop();
});
at("stop").addEventListener("click", stop);
at("add").addEventListener("click", () => at("files").click());
at("files").addEventListener("change", () => {
  take([...at("files").files]);
  at("files").value = "";
});
at("new").addEventListener("click", () => {
  for (const one of [...turns.flatMap((turn) => turn.attachments), ...waiting]) URL.revokeObjectURL(one.url);
  turns = [];
  waiting = [];
  at("conversation").replaceChildren();
  at("empty").hidden = false;
  refuse("");
  showWaiting();
  question.focus();
});
at("show-settings").addEventListener("click", () => showSettings(at("settings").hidden));
at("settings").addEventListener("submit", (event) => event.preventDefault());
at("key").addEventListener("change", () => {
  refuse("");
  meet();
});
watchDropsAndPastes(at("drop"), take);
meet();
question.focus();
