// How turns look: a question with its pictures, and an answer that grows, with its places drawn and its figures told.

import { shown } from "./attachments.js";
import { drawn, segments } from "./places.js";

/** The element of a question. */
export function questionTurn({ text, attachments }) {
  const article = turn("question", "You");
  if (attachments.length) {
    const list = make("ul", "media");
    list.append(...attachments.map((one) => wrapped("li", shown(one, { controls: true }))));
    article.append(list);
  }
  article.append(make("p", "words", text));
  return article;
}

/** An answer: `element`, and what may happen to it. */
export class AnswerTurn {
  constructor(pictures) {
    this.pictures = pictures;
    this.text = "";
    this.element = turn("answer", "Answer");
    this.element.setAttribute("aria-busy", "true");
    this.words = make("p", "words");
    this.element.append(this.words);
    this.started = performance.now();
    this.firstAt = null;
  }

  add(text) {
    this.firstAt ??= performance.now();
    this.text += text;
    let number = 0;
    this.words.replaceChildren(
      ...segments(this.text).map(({ words, place }) => {
        if (!place) return document.createTextNode(words);
        number += 1;
        return make("span", "place", ` [${number}] `);
      }),
    );
  }

  /** It is over. `end`: why; `usage`: tokens, where the server told them. */
  finish(end, usage) {
    this.element.setAttribute("aria-busy", "false");
    const places = segments(this.text).flatMap((one) => (one.place ? [one.place] : []));
    if (places.length) this.element.append(this.located(places));
    this.element.append(this.facts(end, usage));
  }

  /** It failed; `again` asks once more. */
  fail(message, again) {
    this.element.setAttribute("aria-busy", "false");
    if (!this.text) this.words.remove();
    const problem = make("p", "problem", message);
    problem.setAttribute("role", "alert");
    const button = make("button", "quiet again", "Try again");
    button.type = "button";
    button.addEventListener("click", again);
    this.element.append(problem, button);
  }

  /** The places of the answer, drawn; where several pictures could be meant, on the one that is picked. */
  located(places) {
    const figure = document.createElement("figure");
    const caption = make("figcaption", "", places.map(sentence).join(" · "));
    if (this.pictures.length === 1) {
      figure.append(drawn(this.pictures[0], places));
    } else if (this.pictures.length > 1) {
      figure.append(this.picker(figure, places));
    }
    figure.append(caption);
    return figure;
  }

  picker(figure, places) {
    const row = make("div", "pick", "The answer does not say in which picture. Draw on picture ");
    row.setAttribute("role", "group");
    row.setAttribute("aria-label", "Draw the places on a picture");
    const buttons = this.pictures.map((picture, index) => {
      const button = make("button", "", String(index + 1));
      button.type = "button";
      button.setAttribute("aria-pressed", "false");
      button.setAttribute("aria-label", `Picture ${index + 1}, ${picture.name}`);
      button.addEventListener("click", () => {
        figure.querySelector(".drawn")?.remove();
        row.after(drawn(picture, places));
        for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
      });
      return button;
    });
    row.append(...buttons);
    return row;
  }

  facts(end, usage) {
    const list = make("p", "facts");
    const say = (words) => list.append(make("span", "", words));
    if (end === "stopped") say("stopped");
    if (end === "length") say("cut at the longest answer");
    const now = performance.now();
    if (this.firstAt !== null) say(`first word after ${seconds(this.firstAt - this.started)}`);
    if (usage) {
      const reused = usage.prompt_tokens_details?.cached_tokens;
      say(`${usage.prompt_tokens} tokens read${reused ? `, ${reused} of them known` : ""}`);
      say(`${usage.completion_tokens} written`);
      const time = (now - (this.firstAt ?? now)) / 1000;
      if (usage.completion_tokens > 1 && time > 0.02) say(`${((usage.completion_tokens - 1) / time).toFixed(1)} tokens/s`);
    }
    say(`${seconds(now - this.started)} in all`);
    return list;
  }
}

function sentence({ kind, label, points }, index) {
  const what = label ? `${label}, ${kind}` : kind;
  const where = points.map(([x, y]) => `${x / 10} % across, ${y / 10} % down`).join(" to ");
  return `${index + 1}: ${what} at ${where}`;
}

function seconds(milliseconds) {
  return `${(milliseconds / 1000).toFixed(milliseconds < 9950 ? 2 : 0)} s`;
}

function turn(kind, title) {
  const article = make("article", kind);
  article.setAttribute("aria-label", title);
  article.append(make("h2", kind === "question" ? "unseen" : "", title));
  return article;
}

function wrapped(name, child) {
  const element = document.createElement(name);
  element.append(child);
  return element;
}

/** An element with a class and a text. */
export function make(name, className, text = "") {
  const element = document.createElement(name);
  if (className) element.className = className;
  element.textContent = text;
  return element;
}
