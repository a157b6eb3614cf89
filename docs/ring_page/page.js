"use strict";

/* The page: the story drives the stage; three schemes in step; broken rings; the reader's own trace. */

const DATA = JSON.parse(document.getElementById("data").textContent);
const RUNS = {};
const openRun = (scheme, world) => (RUNS[`${scheme} ${world}`] ??= replay(DATA.runs[scheme][world]));
const $ = (selector, inside = document) => inside.querySelector(selector);
const $$ = (selector, inside = document) => [...inside.querySelectorAll(selector)];
const root = document.documentElement;

/* ---- the story ---- */

const main = makeStage($("#stage"), openRun("blocking", 4), { worlds: Object.assign([2, 3, 4, 8], { open: (w) => openRun("blocking", w) }) });

/* A section's step, on the ring of the reader's choice: numbers are hops, words are ends. */
function stepOfSection(section) {
  const { run } = main.state;
  const { step } = section.dataset;
  return { start: -1, last: run.world - 1, home: run.world, sum: run.last }[step] ?? Math.min(Number(step), run.world - 1);
}

const sections = $$("#story [data-step]");
let active = null;
const seen = new Map();
const watcher = new IntersectionObserver((entries) => {
  for (const entry of entries) seen.set(entry.target, entry.isIntersecting ? entry.intersectionRatio : 0);
  const top = sections.filter((section) => seen.get(section) > 0).at(-1);
  if (!top || top === active) return;
  active = top;
  for (const section of sections) section.classList.toggle("active", section === top);
  if (!main.state.playing && !root.classList.contains("present")) main.go(stepOfSection(top));
}, { rootMargin: "-45% 0px -45% 0px" });
sections.forEach((section) => watcher.observe(section));

$(".sums-here").append(sumsTable(openRun("blocking", 4))); // where the stage has no room for it

/* ---- predict before you see ---- */

const bytesOf = (scheme, world) => sent(openRun(scheme, world), 0, Infinity).bytes;
const messagesOf = (scheme, world) => sent(openRun(scheme, world), 0, Infinity).messages;
const QUESTIONS = {
  holds: { options: ["texts 0", "texts 1", "texts 2", "texts 3"], right: () => `texts ${openRun("blocking", 4).blocks.find((e) => e.rank === 2 && e.hop === 3).chunk}` },
  moves: {
    options: ["only texts", "only gradients", "both", "nothing"],
    right: () => {
      const kinds = new Set(openRun("blocking", 4).events.filter((e) => e.kind === "recv" && e.hop === 4).map((e) => e.what));
      return kinds.size === 2 ? "both" : kinds.has("gradient") ? "only gradients" : kinds.has("chunk") ? "only texts" : "nothing";
    },
  },
  sums: { options: ["all gradients", "the texts\u2019 gradients", "three numbers"], right: () => `${{ 3: "three" }[openRun("blocking", 4).events.findLast((e) => e.role === "total").bytes / 8]} numbers` },
  bytes: { options: ["it sends fewer bytes", "it sends the same bytes", "it sends more bytes"],
    right: () => `it sends ${["fewer", "the same", "more"][1 + Math.sign(bytesOf("blocking", 4) - bytesOf("autograd-like", 4))]} bytes` },
  double: { options: ["7 messages", "12 messages", "14 messages", "56 messages"], right: () => `${messagesOf("blocking", 8)} messages` },
};

for (const box of $$(".predict")) {
  const question = QUESTIONS[box.dataset.question];
  const answer = $("details", box);
  const said = el("p", { class: "said", role: "status" });
  const buttons = question.options.map((option) => el("button", { type: "button", on: { click: () => reveal(option) } }, option));
  answer.before(el("div", { class: "options" }, ...buttons), said);
  answer.hidden = true;
  function reveal(option) {
    const right = question.right();
    box.dataset.answered = option === right ? "right" : "wrong";
    buttons.forEach((button) => {
      button.disabled = true;
      button.classList.toggle("right", button.textContent === right);
      button.classList.toggle("wrong", button.textContent === option && option !== right);
    });
    said.textContent = option === right ? "✓ Yes." : `✗ No: ${right}.`;
    answer.hidden = false;
    answer.open = true;
  }
}

/* ---- three schemes ---- */

const CARDS = [
  ["allgather", "All-gather", "Every rank collects all texts, computes, and sends every gradient to its owner."],
  ["autograd-like", "Autograd ring", "Texts travel forward. Texts and logits wait for a backward trip, which brings the gradients home."],
  ["blocking", "One trip", "Texts travel with their gradient. Nothing waits but what is in the hand."],
];
const side = { world: 4, step: 0, cards: [] };

function drawSchemes() {
  const runs = CARDS.map(([scheme]) => openRun(scheme, side.world));
  const last = Math.max(...runs.map((run) => run.last));
  side.step = Math.min(side.step, last);
  const range = $("#side-range");
  range.max = last;
  range.value = side.step;
  range.setAttribute("aria-valuetext", `step ${side.step} of ${last}`);
  $("#side-step").textContent = `step ${side.step} of ${last}`;
  runs.forEach((run, k) => {
    const [scheme, name, told] = CARDS[k];
    const step = Math.min(side.step, run.last);
    const squares = count(run.world).flatMap((rank) => count(run.world).map((chunk) => {
      const block = run.blocks.find((e) => e.rank === rank && e.chunk === chunk);
      const mode = block.graded <= step ? "done" : block.step <= step ? "half" : "";
      return el("i", { class: `${mode}${block.step === step && step < run.last ? " now" : ""}`, style: `--hue: ${hue(chunk)}` });
    }));
    const held = most(run, (rank) => waiting(run, rank, step));
    const peak = Math.max(...count(run.last).map((s) => most(run, (rank) => waiting(run, rank, s))));
    const at = sent(run, 0, step);
    const end = sent(run, 0, run.last);
    const rows = [["rounds", rounds(run, step), rounds(run, run.last)], ["messages", at.messages, end.messages], ["bytes sent", at.bytes, end.bytes], ["bytes waiting", held, peak]];
    const met = run.blocks.filter((e) => e.step <= step).length;
    const ready = run.blocks.filter((e) => e.graded <= step).length;
    side.cards[k].replaceChildren(
      el("h3", {}, name), el("p", { class: "faint" }, told),
      el("div", { class: "mini", role: "img", "aria-label": `${met} of ${run.world ** 2} blocks met, ${ready} with their gradients`, style: `--side: ${run.world}` }, ...squares),
      el("dl", { class: "counters" }, ...rows.map(([label, now, all]) => el("div", {}, el("dt", {}, label), el("dd", {}, el("b", {}, grouped(now)), el("small", {}, ` ${label === "bytes waiting" ? "peak" : "of"} ${grouped(all)}`))))),
      el("p", { class: "finish" }, step === run.last ? `done: loss ${digits(lossAt(run, step).loss)}` : "\u00a0"));
    side.cards[k].dataset.scheme = scheme;
  });
}

const sideStep = (step) => { side.step = Math.max(0, step); drawSchemes(); };
side.cards = CARDS.map(() => el("article", { class: "card" }));
$("#schemes").replaceChildren(
  el("div", { class: "bar" }, choice("side-world", "ranks", [2, 3, 4, 8].map((w) => [String(w), String(w)]), "4", (w) => { side.world = Number(w); drawSchemes(); })),
  el("div", { class: "controls" },
    el("button", { type: "button", "aria-label": "one step back, all schemes", on: { click: () => sideStep(side.step - 1) } }, "◀"),
    el("input", { type: "range", id: "side-range", min: 0, "aria-label": "step of all schemes", on: { input: (event) => sideStep(Number(event.target.value)) } }),
    el("button", { type: "button", "aria-label": "one step on, all schemes", on: { click: () => sideStep(side.step + 1) } }, "▶"),
    el("span", { id: "side-step", class: "faint" })),
  el("div", { class: "cards three" }, ...side.cards));
drawSchemes();

/* ---- break it ---- */

function drawBreak(name) {
  const broken = DATA.breaks.find((one) => one.name === name);
  const run = openRun("blocking", 4);
  const place = $("#broken");
  place.dataset.diagnosis = broken?.diagnosis ?? "";
  const matrix = count(4).flatMap((rank) => count(4).map((chunk) => {
    const right = run.blocks.find((e) => e.rank === rank && e.chunk === chunk).loss;
    const met = broken ? broken.meetings.filter(([r, owner]) => r === rank && owner === chunk) : [[rank, chunk, chunk, right]];
    const stranger = met.find(([, , actual]) => actual !== chunk);
    const word = met.length === 0 ? "never met" : met.length > 1 ? "met twice" : stranger ? (stranger[2] < 0 ? "met zeros" : `met texts ${stranger[2]}`) : "";
    const value = met.length ? add(met.map((one) => one[3])).toFixed(2) : "\u2013";
    return el("div", { class: `block${word ? " wrong" : ""}`, style: `--hue: ${hue(chunk)}` }, el("b", {}, value), el("small", {}, word));
  }));
  const names = ["rank 0", "rank 1", "rank 2", "rank 3"];
  const parts = [["∂ images", "d_image_embed"], ["∂ texts", "d_text_embed"], ["∂ log_scale", "d_log_scale"], ["∂ bias", "d_bias"]];
  const mark = ([error, factor]) => {
    if (error <= 1e-12) return el("td", { class: "good" }, "✓");
    const words = factor ? `× ${Number(factor.toFixed(4))}` : error >= 0.005 ? `${(100 * error).toFixed(0)} %` : error.toExponential(0);
    return el("td", { class: "bad" }, factor ? words : `✗ ${words}`);
  };
  const owners = el("table", { class: "owners" },
    el("caption", {}, "Error of each gradient, at its owner"),
    el("thead", {}, el("tr", {}, el("td"), ...names.map((n) => el("th", { scope: "col" }, n)))),
    el("tbody", {}, ...parts.map(([label, key]) => el("tr", {}, el("th", { scope: "row" }, label), ...names.map((_, rank) => mark(broken ? broken.harm[key][rank] : [0, 1]))))));
  const [value, right] = broken ? [broken.harm.loss, broken.harm["right loss"]] : [run.loss, run.loss];
  const near = Math.abs(value - right) <= 1e-12 * right;
  const loss = el("p", { class: "total" }, "loss ", el("output", {}, digits(value)), el("small", { class: near ? "good" : "bad" }, near ? " ✓ right" : ` ✗ not ${digits(right)}`));
  place.replaceChildren(
    el("div", { class: "two" },
      el("div", {}, el("div", { class: "blocks" }, el("span"), ...count(4).map((chunk) => el("span", { class: "faint" }, `texts ${chunk}`)),
        ...count(4).flatMap((rank) => [el("span", { class: "faint side" }, `rank ${rank}`), ...matrix.slice(4 * rank, 4 * rank + 4)])), loss),
      el("div", {}, el("div", { class: "wide" }, owners), checkerCard(broken))));
}

function checkerCard(broken) {
  if (!broken) return el("div", { class: "card verdict" }, el("p", {}, "Nothing is broken yet. Choose a mistake above: each is a real ring with one line changed, run on the toy and judged by the checker."));
  const row = ([name, verdict, error, , ratio]) => el("tr", { class: verdict === "FAIL" ? "bad" : "good" },
    el("td", {}, name.replace("image_embed", "∂ image_embed").replace("text_embed", "∂ text_embed").replace("log_scale", "∂ log_scale").replace(/^bias$/, "∂ bias")), el("td", {}, error.toExponential(1)), el("td", {}, ratio.toFixed(4)), el("td", {}, verdict));
  return el("div", { class: "card verdict bad" },
    el("p", { class: "faint" }, broken.told),
    el("pre", { class: "diff", tabindex: "0", role: "group", "aria-label": `the change in ${broken.file}` }, el("span", { class: "faint" }, `${broken.file}\n`), el("del", {}, `- ${broken.old}\n`), el("ins", {}, broken.new.split("\n").map((line) => `+ ${line}`).join("\n"))),
    el("p", { class: "faint" }, "The checker, given that ring:"),
    el("p", { class: "diagnosis" }, el("b", {}, `${broken.verdict}  ${broken.diagnosis}`)),
    el("p", {}, broken.evidence),
    el("p", {}, el("b", {}, "repair: "), broken.repair),
    broken.seen ? el("p", { class: "faint" }, `seen: ${broken.seen}`) : null,
    el("details", {}, el("summary", {}, "its table"), el("div", { class: "wide" }, el("table", {}, el("thead", {}, el("tr", {}, ...["tensor", "error", "ratio", "verdict"].map((h) => el("th", { scope: "col" }, h)))), el("tbody", {}, ...broken.rows.map(row))))));
}

$("#switch").replaceChildren(choice("break", "Break it", [["none", "as it is"], ...DATA.breaks.map((one) => [one.name, one.title])], "none", drawBreak));
drawBreak("none");

/* ---- the reader's own run ---- */

async function openFile(file) {
  const error = $("#trace-error");
  const told = $("#trace-told");
  error.hidden = true;
  told.replaceChildren();
  try {
    const run = replay(readTrace(await file.text()));
    const wrong = faults(run);
    told.append(
      el("p", {}, el("b", {}, file.name), `: scheme ${run.scheme}, ${plural(run.world, "rank")}, ${plural(run.total, "pair")}, width ${run.width}, ${run.dtype}, ${plural(run.events.length, "event")}; loss ${digits(run.loss)}.`),
      wrong.length ? el("p", { class: "bad" }, `✗ ${wrong.slice(0, 5).join("; ")}${wrong.length > 5 ? `; and ${wrong.length - 5} more` : ""}`) : el("p", { class: "good" }, "✓ Every ordered pair of chunks met once, every message sent was received, every gradient came home."));
    $("#own").hidden = false;
    window.ownStage = makeStage($("#own-stage"), run);
    window.ownStage.go(0);
  } catch (problem) {
    if (!(problem instanceof BadTrace)) throw problem;
    $("#own").hidden = true;
    error.textContent = problem.message;
    error.hidden = false;
  }
}

$("#trace-file").addEventListener("change", (event) => event.target.files.length && openFile(event.target.files[0]));
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  event.preventDefault();
  if (event.dataTransfer.files.length) {
    $("#yours").scrollIntoView();
    openFile(event.dataTransfer.files[0]);
  }
});

/* ---- presentation, light and dark, keys ---- */

function present(on = !root.classList.contains("present")) {
  root.classList.toggle("present", on);
  $("#present").setAttribute("aria-pressed", String(on));
  history.replaceState(null, "", on ? "#present" : location.pathname.startsWith("/") ? "#" : "");
  if (on) $("#stage").focus();
}

$("#present").addEventListener("click", () => present());
$("#leave").addEventListener("click", () => present(false));
$("#theme").addEventListener("click", () => {
  const dark = getComputedStyle(root).colorScheme === "dark" || (root.style.colorScheme !== "light" && matchMedia("(prefers-color-scheme: dark)").matches);
  root.style.colorScheme = dark ? "light" : "dark";
});
if (location.hash === "#present") present(true);

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const field = event.target.closest("input, textarea, select");
  const onButton = event.target.closest("button, summary, a, label");
  const steps = { ArrowRight: 1, PageDown: 1, ArrowLeft: -1, PageUp: -1 };
  const paging = event.key.startsWith("Page");
  if (event.key in steps && !field && (!paging || root.classList.contains("present"))) {
    event.preventDefault();
    main.go(main.state.step + steps[event.key]);
  } else if (event.key === " " && !field && !onButton && root.classList.contains("present")) {
    event.preventDefault();
    main.toggle();
  } else if (event.key === "Escape") present(false);
  else if (event.key === "p" && !field) present();
  else if (["2", "3", "4", "8"].includes(event.key) && !field) $(`#stage input[value="${event.key}"]`).click();
});
