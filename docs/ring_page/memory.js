"use strict";

/* Memory: what a rank needs at its peak beside its own shards, by the formulas of mpi/cost.py, which were compared with measurements. */

const HOLDERS = [["allgather", "all-gather"], ["autograd-like", "autograd ring"], ["softmax ring", "softmax ring"], ["blocking", "one trip, blocking"], ["bidirectional", "one trip, both ways"]];
const TILE = 128;

/* Numbers that a rank has at its peak: mpi.cost.memory. */
function heldNumbers(scheme, pairs, world, dim, tile = TILE, item = 4) {
  const b = pairs / world;
  const side = Math.min(b, tile);
  const block = 5 * side * side + 5 * side * dim;
  if (scheme === "autograd-like") return Math.ceil((pairs + 2 * b) * dim + pairs * b * (1 + 1 / item) + 6 * b * b);
  if (scheme === "allgather") return Math.ceil((2 * pairs + 2 * b) * dim + block);
  if (scheme === "softmax ring") return Math.ceil(10 * b * dim + 4.5 * b * b);
  const chunks = { blocking: 8, overlapped: 9, bidirectional: 5, "masked-allreduce": 6 }[scheme];
  return Math.ceil((world > 1 ? chunks : 2) * b * dim + block);
}

/* Bytes of others' that wait on a rank, step by step, at any size: the same counts as on the stage. */
function heldSteps(scheme, b, world, dim, item = 4) {
  const run = { scheme, world, sizes: Array(world).fill(b), item, width: dim, last: { "autograd-like": 2 * world - 1, allgather: 2 * world }[scheme] ?? world + 1 };
  return count(run.last).map((step) => waiting(run, 0, step));
}

const bytesIn = (bytes) => {
  const power = Math.min(4, Math.floor(Math.log10(Math.max(1, bytes)) / 3));
  const value = bytes / 1000 ** power;
  return `${value.toFixed(value < 10 ? 2 : value < 100 ? 1 : 0)} ${["B", "kB", "MB", "GB", "TB"][power]}`;
};

function makeMemory(host) {
  const state = { world: 64, b: 512, dim: 1152 };
  const slider = (label, key, values, unit) => {
    const said = el("output", {});
    const input = el("input", { type: "range", min: 0, max: values.length - 1, value: values.indexOf(state[key]), "aria-label": label, on: { input: () => set() } });
    const set = () => {
      state[key] = values[Number(input.value)];
      said.textContent = `${grouped(state[key])}${unit}`;
      input.setAttribute("aria-valuetext", said.textContent);
      if (bars.isConnected) draw();
    };
    const row = el("label", { class: "slider" }, el("span", {}, label), input, said);
    return { row, set };
  };
  const bars = el("div", { class: "holders" });
  const steps = el("div", { class: "stepbars" });
  const told = el("p", { class: "faint" });
  const powers = (from, to) => count(to - from + 1).map((k) => 2 ** (from + k));
  const sliders = [slider("ranks W", "world", powers(1, 10), ""), slider("pairs a rank b", "b", powers(1, 13), ""), slider("width D", "dim", [3, 64, 256, 512, 768, 1024, 1152], "")];
  host.replaceChildren(el("div", { class: "sliders" }, ...sliders.map((one) => one.row)), told, bars, el("h3", {}, "Step by step"), el("p", { class: "faint" }, "What is held after each step: texts, gradients and logits of other ranks, without buffers and temporaries. One scale for all."), steps);
  for (const one of sliders) one.set();

  function draw() {
    const { world, b, dim } = state;
    const peaks = HOLDERS.map(([scheme]) => 4 * heldNumbers(scheme, b * world, world, dim));
    const most = Math.max(...peaks);
    told.textContent = `Peak memory of one rank, beside its own images and texts. A batch of ${grouped(b * world)} pairs, float32, tiles of ${TILE}.`;
    bars.replaceChildren(...HOLDERS.map(([scheme, name], k) => el("div", { class: "holder", "data-scheme": scheme, "data-bytes": peaks[k] },
      el("span", {}, name), el("i", { style: `width: ${Math.max(0.4, (100 * peaks[k]) / most)}%` }), el("b", {}, bytesIn(peaks[k])))));
    const three = ["allgather", "autograd-like", "blocking"].map((scheme) => [scheme, heldSteps(scheme, b, world, dim)]);
    const top = Math.max(...three.flatMap(([, held]) => held));
    steps.replaceChildren(...three.map(([scheme, held]) => {
      const thin = held.length > 160 ? Math.ceil(held.length / 160) : 1;
      return el("figure", { "data-scheme": scheme, "data-peak": Math.max(...held) },
        el("div", { class: "bars", role: "img", "aria-label": `${scheme}: ${held.length} steps, at most ${bytesIn(Math.max(...held))}` }, ...held.filter((_, s) => s % thin === 0).map((bytes) => el("i", { style: `height: ${(100 * bytes) / top}%` }))),
        el("figcaption", {}, HOLDERS.find(([key]) => key === scheme)[1], ": at most ", el("b", {}, bytesIn(Math.max(...held)))));
    }));
  }

  draw();
  return { state, draw };
}
