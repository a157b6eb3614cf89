"use strict";

/* The page of the loss: a matrix with sliders, the boundary, the gradients, a fresh model, a training. */

const DATA = JSON.parse($("#data").textContent);
themeButton($("#theme"));

/* ---- the sliders that all pictures share ---- */

const state = { mode: "sigmoid", pairs: 8, scale: 10, bias: -10, trained: 0, cell: [2, 5] };
const ROWS = { pairs: [2, 12, 1, (x) => String(x)], scale: [1, 120, 1, (x) => String(x)], bias: [-20, 5, 0.5, (x) => fixed(x, 1)], trained: [0, 1, 0.01, (x) => x.toFixed(2)] };
const LABELS = { pairs: "batch size B", scale: "scale (temperature 1 / scale)", bias: "bias", trained: "similarity: how far texts are moved to their images" };

function slider(key) {
  const [min, max, by, words] = ROWS[key];
  const said = el("output", {}, words(state[key]));
  const input = el("input", { type: "range", min, max, step: by, value: state[key], id: `slider-${key}`, "aria-label": LABELS[key], on: { input: () => {
    state[key] = Number(input.value);
    said.textContent = words(state[key]);
    input.setAttribute("aria-valuetext", said.textContent);
    draw();
  } } });
  return el("label", { class: "slider" }, el("span", {}, LABELS[key]), input, said);
}

/* The toy's rows: the first B pairs; a text is moved towards its image by the slider. */
function batch() {
  const images = DATA.images.slice(0, state.pairs);
  const texts = DATA.texts.slice(0, state.pairs).map((y, i) => unit(y.map((v, d) => (1 - state.trained) * v + state.trained * images[i][d])));
  return { images, texts };
}

/* ---- the matrix: what must be known first ---- */

const matrix = el("div", { class: "cells", role: "grid", "aria-label": "images by texts" });
const told = el("p", { class: "told", role: "status" });
const losses = el("dl", { class: "counters" });
$("#play").replaceChildren(
  choice("mode", "loss", [["sigmoid", "sigmoid (SigLIP)"], ["softmax", "softmax (CLIP)"]], state.mode, (mode) => { state.mode = mode; draw(); }),
  el("div", { class: "playground" }, el("div", {}, matrix, told), el("div", {}, ...Object.keys(ROWS).map(slider), losses)));

function pickCell(i, j, focus = false) {
  state.cell = [Math.max(0, Math.min(state.pairs - 1, i)), Math.max(0, Math.min(state.pairs - 1, j))];
  draw();
  if (focus) $('.one[tabindex="0"]', matrix).focus();
}

/* Cells whose numbers must be known before the gradient of one cell is. */
const needed = (mode, [i, j], a, b) => (mode === "softmax" ? a === i || b === j : a === i && b === j);

function drawMatrix(found, softmax) {
  const n = state.pairs;
  state.cell = state.cell.map((k) => Math.min(k, n - 1));
  const most = Math.max(...found.losses.flat());
  matrix.style.setProperty("--side", n);
  const old = matrix.querySelectorAll(".one");
  if (old.length !== n * n) matrix.replaceChildren(...count(n).map((i) => el("div", { role: "row", class: "row" }, ...count(n).map((j) => el("div", { role: "gridcell", class: `one${i === j ? " match" : ""}`, on: { click: () => pickCell(i, j), keydown: (event) => walk(event, i, j) } })))));
  [...matrix.querySelectorAll(".one")].forEach((node, k) => {
    const [i, j] = [Math.floor(k / n), k % n];
    const mine = i === state.cell[0] && j === state.cell[1];
    node.tabIndex = mine ? 0 : -1;
    node.classList.toggle("needed", needed(state.mode, state.cell, i, j));
    node.classList.toggle("mine", mine);
    const value = state.mode === "sigmoid" ? found.losses[i][j] : found.similarities[i][j];
    node.style.setProperty("--heat", (state.mode === "sigmoid" ? Math.sqrt(value / most) : Math.max(0, value)).toFixed(3));
    node.textContent = n > 10 ? "" : short(value, 2);
    node.setAttribute("aria-label", `image ${i}, text ${j}${i === j ? ", a match" : ""}: ${state.mode === "sigmoid" ? "loss" : "similarity"} ${value.toFixed(4)}`);
  });
  const [i, j] = state.cell;
  const cells = state.mode === "softmax" ? 2 * n - 1 : 1;
  told.textContent = state.mode === "softmax"
    ? `Softmax: before the gradient of cell (${i}, ${j}) is known, its whole row and column must be: ${plural(cells, "cell")} of ${n * n}. On a ring they are on other ranks.`
    : `Sigmoid: the gradient of cell (${i}, ${j}) is ${short(found.slopes[i][j], 4)} / ${n}. It needs ${plural(cells, "cell")}: its own.`;
  const rows = [["sigmoid loss", found.loss], ["softmax loss", softmax.loss], ["fresh model, sigmoid", expectedLoss(n, state.bias)], ["fresh model, softmax", Math.log(n)]];
  losses.replaceChildren(...rows.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", { "data-loss": name, "data-exact": digits(value) }, el("b", {}, short(value, 4))))));
}

function walk(event, i, j) {
  const by = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
  if (by) {
    event.preventDefault();
    pickCell(i + by[0], j + by[1], true);
  } else if (event.key === "Enter" || event.key === " ") {
    event.preventDefault();
    pickCell(i, j, true);
  }
}

/* ---- the boundary, and two histograms ---- */

const boundary = drawn("svg", { viewBox: "0 0 600 162", class: "plot", role: "img" });
const pulls = drawn("svg", { viewBox: "0 0 600 210", class: "plot", role: "img" });
const balance = el("p", { class: "told" });
$("#boundary").replaceChildren(boundary);
$("#gradients").replaceChildren(pulls, balance);

function drawBoundary(found) {
  const x = (s) => 30 + ((s + 1) / 2) * 540;
  const at = -state.bias / state.scale;
  const inside = at >= -1 && at <= 1;
  const dots = found.similarities.flatMap((row, i) => row.map((s, j) => drawn("circle", { cx: x(s), cy: i === j ? 44 : 92, r: 4.5, class: i === j ? "match" : "other" })));
  boundary.replaceChildren(
    drawn("rect", { x: 30, y: 22, width: Math.max(0, x(Math.max(-1, Math.min(1, at))) - 30), height: 92, class: "no" }),
    drawn("rect", { x: x(Math.max(-1, Math.min(1, at))), y: 22, width: Math.max(0, 570 - x(Math.max(-1, Math.min(1, at)))), height: 92, class: "yes" }),
    ...dots,
    drawn("text", { x: 30, y: 16 }, "“no”"), drawn("text", { x: 570, y: 16, "text-anchor": "end" }, "“yes”"),
    ...[-1, -0.5, 0, 0.5, 1].map((s) => drawn("text", { x: x(s), y: 132, "text-anchor": "middle" }, fixed(s, 1))),
    drawn("text", { x: 300, y: 156, "text-anchor": "middle" }, "similarity; matches above, negatives below"));
  const words = inside ? `The boundary is at similarity −bias / scale = ${fixed(at, 3)}.` : `The boundary, −bias / scale = ${fixed(at, 3)}, is outside of all possible similarities: the model says “${at > 1 ? "no" : "yes"}” to everything.`;
  boundary.setAttribute("aria-label", words);
  $("#boundary-words").textContent = words;
}

function histogram(values, bins = 20) {
  const bars = Array(bins).fill(0);
  for (const value of values) bars[Math.min(bins - 1, Math.floor(Math.abs(value) * bins))] += 1;
  return bars;
}

function drawGradients(found) {
  const n = state.pairs;
  const positive = found.slopes.map((row, i) => row[i]);
  const negative = found.slopes.flatMap((row, i) => row.filter((_, j) => j !== i));
  const panel = (values, left, name, kind) => {
    const bars = histogram(values);
    const top = Math.max(...bars);
    return [
      ...bars.map((height, k) => drawn("rect", { x: left + k * 13, y: 160 - (height / top) * 130, width: 11, height: (height / top) * 130, class: kind })),
      drawn("text", { x: left, y: 18 }, name), drawn("text", { x: left, y: 180 }, "0"), drawn("text", { x: left + 260, y: 180, "text-anchor": "end" }, "1"),
      drawn("text", { x: left + 130, y: 202, "text-anchor": "middle" }, "size of the gradient of a pair")];
  };
  pulls.replaceChildren(...panel(positive, 20, plural(n, "match").replace("matchs", "matches"), "match"), ...panel(negative, 320, plural(n * n - n, "negative"), "other"));
  const [pull, push] = [-add(positive) / n, add(negative) / n];
  pulls.setAttribute("aria-label", `gradients of ${n} matches and ${n * n - n} negatives`);
  balance.replaceChildren("For each image, matches pull with ", el("b", { "data-exact": digits(pull), id: "pull" }, short(pull, 4)), ", negatives push with ", el("b", { "data-exact": digits(push), id: "push" }, short(push, 4)), `; the gradient of the bias is ${fixed(push - pull, 4)}.`);
}

/* ---- a fresh model ---- */

const fresh = { power: 15, bias: -10 };
const freshTold = el("p", { class: "told", role: "status" });
const freshRow = (label, key, min, max, by, words) => {
  const said = el("output", {}, words(fresh[key]));
  const input = el("input", { type: "range", min, max, step: by, value: fresh[key], "aria-label": label, id: `fresh-${key}`, on: { input: () => { fresh[key] = Number(input.value); said.textContent = words(fresh[key]); drawFresh(); } } });
  return el("label", { class: "slider" }, el("span", {}, label), input, said);
};
$("#fresh").replaceChildren(freshRow("pairs in the batch", "power", 1, 20, 1, (p) => grouped(2 ** p)), freshRow("bias at the start", "bias", -15, 2, 0.5, (b) => fixed(b, 1)), freshTold);

function drawFresh() {
  const pairs = 2 ** fresh.power;
  const value = expectedLoss(pairs, fresh.bias);
  const share = softplus(-fresh.bias) / value;
  freshTold.replaceChildren("Expected loss ", el("b", { id: "fresh-loss", "data-exact": digits(value) }, value < 1000 ? value.toFixed(4) : grouped(Math.round(value))),
    `; of it ${(100 * share).toFixed(share > 0.999 || share < 0.01 ? 2 : 0)} % is the match, the rest ${grouped(pairs - 1)} negatives. At bias 0 it is B log 2 = ${grouped(Math.round(pairs * Math.log(2)))}.`);
}
drawFresh();

/* ---- a training, here ---- */

const STEPS = 200;
const RATE = DATA.rate;
const runs = { "0": null, "-10": null };
const curves = drawn("svg", { viewBox: "0 0 670 260", class: "plot", role: "img", "aria-label": "similarity of matches and of negatives, step by step" });
const trainingTold = el("div", { class: "wide", tabindex: "0", role: "group", "aria-label": "the two trainings" });
const train = el("button", { type: "button", id: "train", on: { click: () => trainBoth() } }, "train both");
$("#training").replaceChildren(el("div", { class: "controls" }, train), curves, trainingTold);

function trainBoth() {
  train.disabled = true;
  const begun = Object.keys(runs).map((bias) => ({ bias, now: beginTraining(DATA.training, Number(bias)), seen: [] }));
  const advance = (many) => {
    for (const run of begun)
      for (let k = 0; k < many && run.seen.length <= STEPS; k += 1) {
        const known = measured(DATA.training, run.now);
        const { loss, matching, others, accuracy } = known;
        run.seen.push({ loss, matching, others, accuracy, bias: run.now.bias, scale: Math.exp(run.now.logScale) });
        run.now = step(DATA.training, run.now, RATE, known);
      }
    for (const run of begun) runs[run.bias] = run.seen;
    drawTraining();
    if (begun[0].seen.length <= STEPS) (calm() ? (go) => setTimeout(go, 0) : requestAnimationFrame)(() => advance(1));
    else train.disabled = false;
  };
  advance(1);
}

function drawTraining() {
  const x = (k) => 40 + (k / STEPS) * 480;
  const y = (s) => 20 + ((1 - s) / 2) * 210;
  const line = (seen, key, kind) => drawn("path", { d: seen.map((at, k) => `${k ? "L" : "M"}${x(k).toFixed(1)} ${y(at[key]).toFixed(1)}`).join(""), class: kind });
  const shown = Object.entries(runs).filter(([, seen]) => seen?.length);
  curves.replaceChildren(
    ...[-1, 0, 1].flatMap((s) => [drawn("line", { x1: 40, x2: 520, y1: y(s), y2: y(s), class: "axis" }), drawn("text", { x: 34, y: y(s) + 5, "text-anchor": "end" }, String(s).replace("-", "−"))]),
    drawn("text", { x: 280, y: 254, "text-anchor": "middle" }, `step, 0 to ${STEPS}`),
    ...shown.flatMap(([bias, seen]) => {
      const kind = bias === "0" ? "collapse" : "learns";
      const last = seen.at(-1);
      const gap = Math.abs(y(last.matching) - y(last.others)) < 30;
      const label = gap ? [drawn("text", { x: x(seen.length) + 4, y: y(last.matching) + (bias === "0" ? 14 : 4), class: kind }, `bias ${bias.replace("-", "−")}`)]
        : ["matching", "others"].map((key) => drawn("text", { x: x(seen.length) + 4, y: y(last[key]) + 4, class: kind }, `${bias.replace("-", "−")}, ${key === "matching" ? "matches" : "negatives"}`));
      return [line(seen, "matching", kind), line(seen, "others", `${kind} dashed`), ...label];
    }));
  for (const node of [curves, trainingTold]) node.toggleAttribute("hidden", shown.length === 0);
  const cell = (value, places) => el("td", { "data-exact": digits(value) }, fixed(value, places));
  trainingTold.replaceChildren(el("table", {},
    el("caption", {}, "Solid: similarity of matches. Dashed: of negatives. Retrieved: images whose own text is the nearest of 32."),
    el("thead", {}, el("tr", {}, ...["bias at the start", "step", "loss", "matches", "negatives", "retrieved", "scale", "bias now"].map((head) => el("th", { scope: "col" }, head)))),
    el("tbody", {}, ...shown.map(([bias, seen]) => {
      const last = seen.at(-1);
      return el("tr", { "data-bias": bias }, el("th", { scope: "row" }, bias.replace("-", "−")), el("td", {}, String(seen.length - 1)), cell(last.loss, 4), cell(last.matching, 3), cell(last.others, 3), el("td", {}, `${(100 * last.accuracy).toFixed(0)} %`), cell(last.scale, 2), cell(last.bias, 2));
    }))));
}
drawTraining();

/* ---- predictions ---- */

askPredictions({
  known: { options: ["1 cell", "8 cells", "15 cells", "64 cells"], right: () => `${count(8).flatMap((a) => count(8).filter((b) => needed("softmax", [2, 5], a, b))).length} cells` },
  fresh: { options: ["about 0.7", "about 10", "about 22,700"], right: () => (expectedLoss(32768, -10) < 12 ? "about 10" : "about 22,700") },
  collapse: {
    options: ["both learn", "bias 0 collapses", "bias −10 collapses"],
    right: () => {
      let now = beginTraining(DATA.training, 0);
      for (let k = 0; k < 20; k += 1) now = step(DATA.training, now, RATE);
      const { matching, others } = measured(DATA.training, now);
      return Math.abs(matching - others) < 0.05 ? "bias 0 collapses" : "both learn";
    },
  },
});

function draw() {
  const { images, texts } = batch();
  const found = sigmoidLoss(images, texts, Math.log(state.scale), state.bias);
  drawMatrix(found, softmaxLoss(images, texts, Math.log(state.scale)));
  drawBoundary(found);
  drawGradients(found);
}
draw();
