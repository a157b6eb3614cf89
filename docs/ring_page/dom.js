"use strict";

/* What both pages are made of: elements, drawings, numbers in words. */

const SVG = "http://www.w3.org/2000/svg";
const $ = (selector, inside = document) => inside.querySelector(selector);
const $$ = (selector, inside = document) => [...inside.querySelectorAll(selector)];
const calm = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

/* An element with classes, attributes and children; text stays text. */
function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "on") for (const [event, listener] of Object.entries(value)) node.addEventListener(event, listener);
    else if (value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

/* A number in a text: with a true minus, and never "-0.00". */
const fixed = (x, places) => (x < 0 && Number(x.toFixed(places)) !== 0 ? "\u2212" : "") + Math.abs(x).toFixed(places);
/* A number in a cell: what is not zero does not look like zero. */
const short = (x, places) => (x !== 0 && Number(x.toFixed(places)) === 0 ? "\u22480" : fixed(x, places));
/* A sentence of a program, with a true minus. */
const minus = (text) => text.replaceAll(" - ", " \u2212 ");
/* The parts of a sentence: no line ends inside r - 1. */
const nobreak = (text) => text.split(/(\b[rW] [-+\u2212] \d)/).map((part, k) => (k % 2 ? el("span", { class: "whole" }, part) : part));
/* In three signs, for a small cell: what is wider would be cut, and a cut number is another number. */
const tight = (x) => {
  const words = short(x, 1).replace("\u22120.", "\u2212.");
  return words.length > 3 ? short(x, 0) : words;
};
const grouped = (n) => n.toLocaleString("en-US");
const plural = (n, word) => `${grouped(n)} ${word}${n === 1 ? "" : "s"}`;
const listed = (names) => (names.length < 2 ? names.join("") : `${names.slice(0, -1).join(", ")} and ${names.at(-1)}`);
const hue = (chunk) => `var(--hue-${chunk % 8})`;

/* A row of radio buttons. */
function choice(name, legend, options, chosen, pick) {
  const box = el("fieldset", { class: "choice" }, el("legend", {}, legend));
  for (const [value, label] of options) {
    const input = el("input", { type: "radio", name, value, on: { change: () => pick(value) } });
    input.checked = value === chosen;
    box.append(el("label", {}, input, el("span", {}, label)));
  }
  return box;
}

/* An element of a drawing. */
function drawn(tag, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

/* Light or dark by a button, whatever the system says. */
function themeButton(button) {
  const root = document.documentElement;
  button.addEventListener("click", () => {
    const dark = root.style.colorScheme === "dark" || (root.style.colorScheme !== "light" && matchMedia("(prefers-color-scheme: dark)").matches);
    root.style.colorScheme = dark ? "light" : "dark";
  });
}

/* Predict before you see: the right answer comes from the numbers on the page. */
function askPredictions(questions) {
  for (const box of $$(".predict")) {
    const question = questions[box.dataset.question];
    const answer = $("details", box);
    const said = el("p", { class: "said", role: "status" });
    const buttons = question.options.map((option) => el("button", { type: "button", on: { click: () => reveal(option) } }, option));
    answer.before(el("div", { class: "options" }, ...buttons), said);
    answer.hidden = true;
    const reveal = (option) => {
      const right = question.right();
      box.dataset.answered = option === right ? "right" : "wrong";
      buttons.forEach((button) => {
        button.disabled = true;
        button.classList.toggle("right", button.textContent === right);
        button.classList.toggle("wrong", button.textContent === option && option !== right);
      });
      said.textContent = option === right ? "\u2713 Yes." : `\u2717 No: ${right}.`;
      answer.hidden = false;
      answer.open = true;
    };
  }
}
