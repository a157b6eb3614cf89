"use strict";

/* The page: the story drives the stage; three schemes in step; broken rings; the reader's own trace. */

const DATA = JSON.parse(document.getElementById("data").textContent);
const RUNS = {};
const openRun = (scheme, world) => (RUNS[`${scheme} ${world}`] ??= replay(DATA.runs[scheme][world]));
const root = document.documentElement;

/* ---- the story ---- */

const main = makeStage($("#stage"), openRun("blocking", 4), { worlds: Object.assign([2, 3, 4, 8], { open: (w) => openRun("blocking", w) }) });

/* A section's step, on the ring of the reader's choice: numbers are hops, words are ends. */
function stepOfSection(section) {
  const { run } = main.state;
  const { step } = section.dataset;
  return { start: -1, last: run.world - 1, home: run.world, sum: run.last }[step] ?? Math.min(Number(step), run.world - 1);
}

const fold = el("button", { type: "button", class: "fold", "aria-pressed": "false", on: { click: () => {
  const open = $("#stage").classList.toggle("unfolded");
  fold.setAttribute("aria-pressed", String(open));
  fold.textContent = open ? "smaller" : "larger";
  if (open) $("#stage").scrollIntoView({ behavior: "instant" });
} } }, "larger");
$("#stage .controls").append(fold);

const sections = $$("#story [data-step]");
let active = null;
let steered = false; // a key or a link moved the stage: what scrolls from it, however late, does not move it back
for (const act of ["wheel", "touchmove", "pointerdown", "keydown"]) {
  window.addEventListener(act, () => { steered = false; }, { capture: true, passive: true });
}
const seen = new Map();
const watcher = new IntersectionObserver((entries) => {
  for (const entry of entries) seen.set(entry.target, entry.isIntersecting ? entry.intersectionRatio : 0);
  const top = sections.filter((section) => seen.get(section) > 0).at(-1);
  if (!top || top === active) return;
  active = top;
  for (const section of sections) section.classList.toggle("active", section === top);
  if (!main.state.playing && !root.classList.contains("present") && !steered) main.go(stepOfSection(top));
}, { rootMargin: "-45% 0px -45% 0px" });
sections.forEach((section) => watcher.observe(section));

/* The text goes where the stage is: the last section that begins at this step or before it. */
function sectionAt(step) {
  return sections.findLast((section) => stepOfSection(section) <= step) ?? sections[0];
}

/* By a key or a link: the stage first, then the text. */
function steer(step) {
  steered = true;
  main.go(step);
  if (!root.classList.contains("present")) sectionAt(main.state.step).scrollIntoView({ block: "center", behavior: "instant" });
}

/* In the lecture hall the question of the section stands beside the stage, before its answer does. */
main.state.listeners.push(({ step }) => {
  for (const section of sections) section.classList.toggle("here", section === sectionAt(step) && stepOfSection(section) === step);
});

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

askPredictions(QUESTIONS);

/* ---- three schemes ---- */

const CARDS = [
  ["allgather", "All-gather", "Every rank collects all texts, computes, and sends every gradient to its owner."],
  ["autograd-like", "Autograd ring", "Texts travel forward. Texts and logits wait for a backward trip, which brings the gradients home."],
  ["blocking", "One trip, blocking", "Texts travel with their gradient. Between hops only the current chunk and its gradient are held."],
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
    const rows = [["rounds", rounds(run, step), rounds(run, run.last)], ["messages", at.messages, end.messages], ["bytes sent", at.bytes, end.bytes], ["bytes held", held, peak]];
    const met = run.blocks.filter((e) => e.step <= step).length;
    const ready = run.blocks.filter((e) => e.graded <= step).length;
    side.cards[k].replaceChildren(
      el("h3", {}, name), el("p", { class: "faint" }, told),
      el("div", { class: "mini", role: "img", "aria-label": `${met} of ${run.world ** 2} blocks computed, ${ready} with their gradients`, style: `--side: ${run.world}` }, ...squares),
      el("dl", { class: "counters" }, ...rows.map(([label, now, all]) => el("div", {}, el("dt", {}, label), el("dd", {}, el("b", {}, grouped(now)), el("small", {}, `${label === "bytes held" ? ", at most" : " of"} ${grouped(all)}`))))),
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

/* ---- in time, and memory ---- */

const TIMED = [["blocking", "one trip, blocking"], ["overlapped", "one trip, overlapped"], ["bidirectional", "one trip, both ways"], ["autograd-like", "autograd ring"], ["allgather", "all-gather"], ["softmax ring", "softmax ring (CLIP)"]];
const recordingOf = (scheme, world) => barsOf(DATA.times[scheme][world]);
const timed = { scheme: "blocking", world: 4 };
const timeHost = el("div", {});
const race = el("div", { class: "race" });
$("#tracks").replaceChildren(
  el("div", { class: "bar" },
    choice("time-scheme", "scheme", TIMED, "blocking", (scheme) => { timed.scheme = scheme; drawTime(); }),
    choice("time-world", "ranks", [2, 3, 4, 8].map((w) => [String(w), String(w)]), "4", (w) => { timed.world = Number(w); drawTime(); })),
  timeHost, el("h3", {}, "All of them, on one scale"), race);
const clock = makeTime(timeHost, 4, recordingOf("blocking", 4), "the ranks in time");

function drawTime() {
  clock.show(timed.world, recordingOf(timed.scheme, timed.world));
  const all = TIMED.map(([scheme, name]) => [scheme, name, recordingOf(scheme, timed.world)]);
  const longest = Math.max(...all.map(([, , recording]) => recording.end));
  race.replaceChildren(...all.map(([scheme, name, recording]) => {
    const busy = busyShare(recording, timed.world);
    return el("div", { class: "holder", "data-scheme": scheme, "data-end": recording.end }, el("span", {}, name),
      el("i", { style: `width: ${(100 * recording.end) / longest}%; --busy: ${(100 * busy).toFixed(1)}%` }), el("b", {}, `${milliseconds(recording.end)}, computing ${(100 * busy).toFixed(0)} %`));
  }));
}
drawTime();
makeMemory($("#held"));

/* ---- break it ---- */

const breaking = makeBreaks($("#broken"), DATA.breaks);
$("#switch").replaceChildren(choice("break", "Break it", [["none", "as it is"], ...DATA.breaks.map((one) => [one.name, minus(one.title)])], "none", breaking.show));
breaking.show("none");

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
      wrong.length ? el("p", { class: "bad" }, `✗ ${wrong.slice(0, 5).join("; ")}${wrong.length > 5 ? `; and ${wrong.length - 5} more` : ""}`) : el("p", { class: "good" }, "✓ Every pair of chunks was computed once, every message sent was received, every gradient came home."));
    $("#own").hidden = false;
    window.ownStage = makeStage($("#own-stage"), run);
    window.ownStage.go(0);
    makeTime($("#own-time"), run.world, barsOfRun(run), "your ranks in time");
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

/* The only button that asks a network for anything: it opens Perfetto's page, which asks for the trace when it is ready. */
const PERFETTO = "https://ui.perfetto.dev";
const perfetto = el("button", { type: "button", id: "perfetto", on: { click: () => {
  const run = window.ownStage?.state.run ?? main.state.run;
  const buffer = new TextEncoder().encode(JSON.stringify(asPerfetto(run))).buffer;
  const tab = window.open(PERFETTO);
  if (!tab) return;
  const asking = setInterval(() => tab.postMessage("PING", PERFETTO), 100);
  const answer = (event) => {
    if (event.origin !== PERFETTO || event.data !== "PONG") return;
    clearInterval(asking);
    removeEventListener("message", answer);
    tab.postMessage({ perfetto: { buffer, title: `siglip-ring, ${run.scheme}, ${run.world} ranks` } }, PERFETTO);
  };
  addEventListener("message", answer);
  setTimeout(() => clearInterval(asking), 30000);
} } }, "open this trace in Perfetto (asks ui.perfetto.dev)");
$("#trace-told").before(el("p", {}, perfetto));

/* ---- presentation, light and dark, keys ---- */

function present(on = !root.classList.contains("present")) {
  root.classList.toggle("present", on);
  $("#present").setAttribute("aria-pressed", String(on));
  remember();
  if (on) $("#stage").focus();
}

$("#present").addEventListener("click", () => present());
$("#leave").addEventListener("click", () => present(false));
themeButton($("#theme"));

/* The address holds the state: #W=8&hop=3&view=gradient&present. A link from a slide opens the page there. */
function remember() {
  const { run, step, view } = main.state;
  const parts = [`W=${run.world}`, `hop=${step}`, `view=${view}`, ...(root.classList.contains("present") ? ["present"] : [])];
  history.replaceState(null, "", `#${parts.join("&")}`);
}

function recall() {
  const wanted = new URLSearchParams(location.hash.slice(1));
  const world = Number(wanted.get("W"));
  if ([2, 3, 4, 8].includes(world)) $(`#stage input[value="${world}"]`).click();
  if (wanted.get("view") in VIEWS) main.pickView(wanted.get("view"));
  if (wanted.has("present")) present(true);
  if (/^-?\d+$/.test(wanted.get("hop") ?? "")) steer(Number(wanted.get("hop")));
}
recall();
let remembering = 0;
main.state.listeners.push(() => {
  clearTimeout(remembering);
  remembering = setTimeout(remember, 200); // a slider that is dragged is remembered once
});
window.addEventListener("hashchange", recall);

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const field = event.target.closest("input, textarea, select");
  const onButton = event.target.closest("button, summary, a, label");
  const steps = { ArrowRight: 1, PageDown: 1, ArrowLeft: -1, PageUp: -1 };
  const paging = event.key.startsWith("Page");
  if (event.key in steps && !field && (!paging || root.classList.contains("present"))) {
    event.preventDefault();
    steer(main.state.step + steps[event.key]);
  } else if (event.key === " " && !field && !onButton && root.classList.contains("present")) {
    event.preventDefault();
    main.toggle();
  } else if (event.key === "Escape") present(false);
  else if (event.key === "p" && !field) present();
  else if (["2", "3", "4", "8"].includes(event.key) && !field) $(`#stage input[value="${event.key}"]`).click();
});
