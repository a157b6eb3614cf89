"use strict";

/* The stage: one run, step by step. makeStage(host, run) draws it and returns what drives it. */

const VIEWS = {
  loss: ["loss", (pair) => pair.loss],
  similarity: ["similarity", (pair) => pair.similarity],
  logit: ["logit", (pair) => pair.logit],
  probability: ["probability", (pair) => pair.probability],
  gradient: ["gradient", (pair) => pair.gradient],
};
const PART = 650; // milliseconds of one part of a step
const MOST_CELLS = 24; // pairs up to which every pair has a cell; above, every block has one

let stages = 0;

function makeStage(host, first, { worlds = null } = {}) {
  const id = `stage${(stages += 1)}`;
  const state = { run: first, step: -1, phase: 1, view: "loss", picked: null, playing: 0, listeners: [] };

  const caption = el("p", { class: "caption", "aria-live": "polite" });
  const board = el("div", { class: "board" });
  const range = el("input", { type: "range", min: -1, "aria-label": "step", on: { input: () => go(Number(range.value)) } });
  const button = (label, sign, action) => el("button", { type: "button", "aria-label": label, title: label, on: { click: action } }, sign);
  const play = button("play", "▶", () => toggle());
  const ring = makeRing((chunk) => { state.picked = state.picked?.chunk === chunk ? null : { chunk }; draw(); });
  const inside = el("input", { type: "range", min: 0, max: 100, "aria-label": "inside this hop", on: { input: () => { stop(); atPhase(Number(inside.value) / 100); } } });
  const part = el("span", { class: "part" });
  const total = el("p", { class: "total" });
  const counters = el("dl", { class: "counters" });
  const inspect = el("div", { class: "inspect" });
  const views = choice(`${id}-view`, "show", Object.entries(VIEWS).map(([key, [label]]) => [key, label]), "loss", (view) => {
    state.view = view;
    draw();
    for (const listener of state.listeners) listener(state);
  });
  const chosen = worlds ? choice(`${id}-world`, "ranks", worlds.map((w) => [String(w), String(w)]), String(first.world), (w) => show(worlds.open(w), Math.min(state.step, worlds.open(w).last))) : null;
  host.replaceChildren(
    el("div", { class: "bar" }, chosen, views),
    caption,
    board,
    el("div", { class: "controls" }, button("back to the start", "|◀", () => go(-1)), button("one step back", "◀", () => go(state.step - 1)), range,
      button("one step on", "▶", () => go(state.step + 1)), play),
    el("div", { class: "controls within" }, el("span", {}, "inside the hop"), inside, part),
    total, counters, inspect,
  );
  play.textContent = "play";

  let cells, lanes, numbers, largest, whose, which;
  let frame = 0;

  function show(run, step = -1) {
    Object.assign(state, { run, picked: null });
    range.max = run.last;
    views.hidden = !run.numbers || run.total > MOST_CELLS;
    layout();
    go(step);
  }

  /* Everything that does not change from step to step. */
  function layout() {
    const { run } = state;
    const fine = run.total <= MOST_CELLS && run.sizes.every((size) => size > 0);
    const sizes = fine ? run.sizes : run.sizes.map(() => 1);
    const starts = fine ? run.firsts : count(run.world);
    const side = add(sizes);
    board.style.setProperty("--side", side);
    board.classList.toggle("dense", side > 10);
    const ranks = count(run.world);
    const heads = el("div", { class: "heads", "aria-hidden": "true" }, ...ranks.map((chunk) =>
      el("span", { style: `--hue: ${hue(chunk)}; flex-grow: ${sizes[chunk]}` }, el("span", { class: "long" }, "texts "), String(chunk))));
    lanes = ranks.map((rank) => {
      const images = el("span", { class: "share", title: "blocks in the gradient of its images" }, ...ranks.map(() => el("i")));
      const texts = el("span", { class: "share", title: "blocks in the gradient of its own texts, as far as they are at home" }, ...ranks.map(() => el("i")));
      const box = el("div", { class: "rank", style: `flex-grow: ${sizes[rank]}` }, el("b", {}, el("span", { class: "long" }, "rank "), String(rank)),
        el("span", { class: "owner" }, el("small", {}, "∂ images"), images), el("span", { class: "owner" }, el("small", {}, "∂ texts"), texts));
      return { box, images, texts };
    });
    cells = [];
    const rows = count(side).map((i) => {
      const rank = starts.findLastIndex((start) => start <= i);
      return el("div", { role: "row", class: "row" }, ...count(side).map((j) => {
        const chunk = starts.findLastIndex((start) => start <= j);
        const edge = `${starts.includes(i) && i ? " above" : ""}${starts.includes(j) && j ? " beside" : ""}`;
        const node = el("div", { role: "gridcell", class: `cell${edge}`, tabindex: i + j ? -1 : 0, style: `--hue: ${hue(chunk)}` });
        cells.push({ node, i, j, rank, chunk, fine, blocks: run.blocks.filter((e) => e.rank === rank && e.chunk === chunk) });
        return node;
      }));
    });
    const grid = el("div", { class: "matrix", role: "grid", "aria-label": "images by texts, every cell a pair", on: { click: pick, keydown: walk, focusin: pick } }, ...rows);
    ring.layout(run);
    board.replaceChildren(
      el("div", { class: "corner", "aria-hidden": "true" }, "images of"), heads, el("div", { class: "held", "aria-hidden": "true" }),
      el("div", { class: "ranks" }, ...lanes.map((lane) => lane.box)), grid, ring.host,
    );
  }

  function pick(event) {
    const cell = cells.find(({ node }) => node === event.target.closest(".cell"));
    if (!cell) return;
    for (const { node } of cells) node.tabIndex = node === cell.node ? 0 : -1;
    state.picked = { cell };
    draw();
  }

  /* Arrow keys inside the matrix go from cell to cell. */
  function walk(event) {
    const by = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    const here = cells.find(({ node }) => node === event.target);
    if (!by || !here) return;
    event.preventDefault();
    event.stopPropagation();
    cells.find(({ i, j }) => i === here.i + by[0] && j === here.j + by[1])?.node.focus();
  }

  function go(step) {
    const from = state.step;
    state.step = Math.max(-1, Math.min(step, state.run.last));
    stop();
    const parts = partsOf(state.run, state.step).length;
    state.phase = calm() || state.step !== from + 1 || parts === 0 ? 1 : 0;
    draw();
    if (state.phase < 1) glide(PART * parts);
    for (const listener of state.listeners) listener(state);
  }

  /* Let the step happen, part by part. */
  function glide(length) {
    const begin = performance.now();
    const next = (now) => {
      atPhase(Math.min(1, (now - begin) / length));
      frame = state.phase < 1 ? requestAnimationFrame(next) : 0;
    };
    frame = requestAnimationFrame(next);
  }

  function stop() {
    cancelAnimationFrame(frame);
    frame = 0;
  }

  /* The same step at another phase: only what moves is drawn anew. */
  function atPhase(phase) {
    const parts = partsOf(state.run, state.step);
    const before = partAt(parts, state.phase).number;
    const ended = phase >= 1 || state.phase >= 1;
    state.phase = phase;
    if (ended || partAt(parts, phase).number !== before) draw();
    else drawMoving();
  }

  function drawMoving() {
    const parts = partsOf(state.run, state.step);
    inside.value = Math.round(state.phase * 100);
    inside.disabled = parts.length === 0;
    const words = parts.length === 0 ? "" : state.phase >= 1 ? "done" : partAt(parts, state.phase).name;
    part.textContent = words;
    inside.setAttribute("aria-valuetext", words);
    ring.draw(state.run, state.step, state.phase, state.picked?.chunk ?? null);
  }

  /* Up to which step blocks are computed: within a step, its own come with its part "compute". */
  const computedTo = () => state.step - (progressOf(partsOf(state.run, state.step), state.phase, "block") > 0 ? 0 : 1);

  function toggle(on = !state.playing) {
    clearInterval(state.playing);
    state.playing = 0;
    if (on) {
      if (state.step === state.run.last) go(-1);
      state.playing = setInterval(() => (state.step < state.run.last ? go(state.step + 1) : toggle(false)), calm() ? 1600 : 4 * PART + 900);
    }
    play.textContent = on ? "pause" : "play";
    play.setAttribute("aria-label", on ? "pause" : "play");
  }

  /* Everything that belongs to a step. */
  function draw() {
    const { run, step } = state;
    host.dataset.step = step;
    range.value = step;
    range.setAttribute("aria-valuetext", title(run, step));
    const said = `${title(run, step)} ${say(run, step)}`;
    if (caption.textContent !== said) caption.replaceChildren(el("b", {}, title(run, step)), " ", say(run, step)); // told once
    drawMoving();
    drawCells();
    drawLanes();
    drawTotal();
    drawCounters();
    drawInspect();
  }

  function drawCells() {
    const { run, step, view } = state;
    const computed = computedTo();
    const computing = state.phase < 1 && partAt(partsOf(run, step), state.phase).kind === "block";
    const valueOf = (i, j, fine, blocks) => (fine && run.numbers ? VIEWS[view][1](pairOf(run.numbers, i, j)) : fine ? null : add(blocks.map((e) => e.loss)));
    if (whose !== run || which !== view) {
      numbers = cells.map(({ i, j, fine, blocks }) => valueOf(i, j, fine, blocks));
      largest = Math.max(1e-300, ...numbers.map((x) => Math.abs(x ?? 0)));
      [whose, which] = [run, view];
    }
    cells.forEach(({ node, i, j, rank, chunk, fine, blocks: all }, k) => {
      const blocks = all.filter((e) => e.step <= computed);
      const done = blocks.length > 0;
      const now = blocks.some((e) => e.step === step) && step < run.last;
      const match = fine ? i === j : rank === chunk;
      const marks = { done, empty: !done, now, half: done && blocks.some((e) => e.graded > step), match, computing: now && computing,
        picked: state.picked?.cell?.node === node, followed: state.picked?.chunk === chunk };
      for (const [name, on] of Object.entries(marks)) node.classList.toggle(name, on);
      const value = done ? (fine && run.numbers ? numbers[k] : valueOf(i, j, fine, blocks)) : null;
      const said = `${view} ${done} ${value}`;
      if (cells[k].said === said) return; // what stays is not laid out anew
      cells[k].said = said;
      node.style.setProperty("--heat", value === null ? 0 : Math.sqrt(Math.abs(value) / largest).toFixed(3));
      const words = fine ? `image ${i}, text ${j}${match ? ", a match" : ""}` : `images of rank ${rank}, texts of rank ${chunk}`;
      node.textContent = value === null ? "" : run.total > 10 && fine ? tight(value) : short(value, fine && Math.abs(value) < 10 ? 2 : 1);
      node.setAttribute("aria-label", `${words}: ${value === null ? (done ? "done" : "not yet") : `${fine ? VIEWS[view][0] : "loss"} ${value.toFixed(3)}`}`);
    });
  }

  function drawLanes() {
    const { run, step } = state;
    for (const rank of count(run.world)) {
      const mine = run.blocks.filter((e) => e.rank === rank && e.graded <= step).sort((a, b) => a.graded - b.graded);
      fill(lanes[rank].images, mine.map((e) => e.chunk));
      const home = step >= 0 && run.events.some((e) => e.kind === "recv" && e.what === "gradient" && e.rank === rank && e.chunk === rank && e.step <= step);
      const own = run.blocks.filter((e) => e.chunk === rank && e.graded <= step && (e.rank === rank || home || !run.moves));
      fill(lanes[rank].texts, own.map(() => rank));
    }
  }

  function fill(bar, chunks) {
    [...bar.children].forEach((part, k) => {
      part.style.setProperty("--hue", k < chunks.length ? hue(chunks[k]) : "transparent");
      part.classList.toggle("on", k < chunks.length);
    });
  }

  function drawTotal() {
    const { run, step } = state;
    const { sum, loss } = lossAt(run, computedTo());
    const end = step === run.last;
    const value = el("output", { title: digits(loss), "data-exact": digits(loss) }, end ? digits(loss) : loss.toFixed(4));
    total.replaceChildren(el("span", {}, end ? "loss" : "loss so far"), " ", value, " ", el("small", {}, `= ${sum.toFixed(4)} / ${run.total} images`));
    if (!end) return;
    const told = loss === run.loss ? "equal to the trace, bit for bit" : Math.abs(loss - run.loss) <= 1e-12 * Math.abs(run.loss) ? "equal to the trace but for the order of adding" : "NOT the loss of the trace";
    const again = run.numbers ? digits(recomputed(run).loss) : null;
    const same = again === digits(run.loss) ? "the same in all 15 digits" : `${again}, not the same`;
    total.append(el("small", { class: "check" }, `${told}${again ? `; computed again here from the embeddings: ${same}` : ""}`));
  }

  function drawCounters() {
    const { run, step } = state;
    const each = (of) => most(run, (rank) => of(sent(run, rank, step)));
    const end = (of) => most(run, (rank) => of(sent(run, rank, run.last)));
    const held = most(run, (rank) => waiting(run, rank, step) ?? 0);
    const peak = Math.max(...count(run.last).map((s) => most(run, (rank) => waiting(run, rank, s) ?? 0)));
    const rows = [
      ["rounds", rounds(run, step), rounds(run, run.last)],
      ["messages", each((s) => s.messages), end((s) => s.messages)],
      ["bytes sent", each((s) => s.bytes), end((s) => s.bytes)],
      ["bytes held", held, peak],
    ];
    counters.replaceChildren(...rows.map(([name, now, all]) => el("div", {}, el("dt", {}, name), el("dd", { "data-counter": name }, el("b", {}, grouped(now)), el("small", {}, ` ${name === "bytes held" ? "at most" : "of"} ${grouped(all)}`)))));
  }

  function drawInspect() {
    fillInspect();
    host.classList.toggle("picking", Boolean(state.picked));
    if (state.picked) inspect.prepend(el("button", { type: "button", class: "close", "aria-label": "stop showing this", on: { click: () => { state.picked = null; draw(); } } }, "×"));
  }

  function fillInspect() {
    const { run, step, picked } = state;
    if (!run.numbers) return inspect.replaceChildren(el("p", { class: "faint" }, "This trace holds no embeddings (they are kept up to 64 pairs), so cells show the loss of blocks."));
    if (step === run.last && !picked) return inspect.replaceChildren(sumsTable(run));
    if (picked?.chunk !== undefined) return inspect.replaceChildren(gradientTable(run, picked.chunk, step));
    const current = cells.find(({ node }) => node.classList.contains("now") && node.classList.contains("match")) ?? cells.find(({ node }) => node.classList.contains("now"));
    const cell = picked?.cell ?? current ?? cells[0];
    if (!cell.fine) return inspect.replaceChildren(el("p", { class: "faint" }, `With more than ${MOST_CELLS} pairs a cell is a block: its loss, summed over its pairs.`));
    inspect.replaceChildren(...pairWords(run, cell.i, cell.j, cell.node.classList.contains("done")));
  }

  show(first);
  return { state, go, show, toggle, atPhase, host, pickView: (view) => host.querySelector(`input[value="${view}"]`)?.click() };
}

/* How the number in a cell is made. */
function pairWords(run, i, j, done) {
  const p = pairOf(run.numbers, i, j);
  const factor = (x) => (x < 0 ? `(${fixed(x, 3)})` : fixed(x, 3));
  const products = run.numbers.images[i].map((x, d) => `${factor(x)}·${factor(run.numbers.texts[j][d])}`);
  const sign = p.match ? "\u2212" : "";
  return [
    el("p", { class: "head" }, `Image ${i} and text ${j}`, el("small", {}, p.match ? " belong together" : " do not belong together", done ? "" : ", and have not met yet")),
    el("dl", { class: "steps" },
      el("dt", {}, "similarity"), el("dd", {}, run.width <= 4 ? `${products.join(" + ")} = ` : `a product of ${run.width} numbers = `, el("b", {}, fixed(p.similarity, 4))),
      el("dt", {}, "logit"), el("dd", {}, `${fixed(p.scale, 2)} · ${p.similarity < 0 ? `(${fixed(p.similarity, 4)})` : fixed(p.similarity, 4)} ${run.numbers.bias < 0 ? "\u2212" : "+"} ${Math.abs(run.numbers.bias).toFixed(4)} = `, el("b", {}, fixed(p.logit, 4))),
      el("dt", {}, "loss"), el("dd", {}, `log(1 + exp(${sign}logit)) = `, el("b", {}, p.loss.toFixed(4))),
      el("dt", {}, "gradient"), el("dd", {}, p.match ? "\u2212sigmoid(\u2212logit) = " : "sigmoid(logit) = ", el("b", {}, fixed(p.gradient, 4)))),
  ];
}

/* The travelling gradient of one chunk, number by number. */
function gradientTable(run, chunk, step) {
  const ranks = answered(run, chunk, step);
  const owner = run.blocks.some((e) => e.rank === chunk && e.chunk === chunk && e.graded <= step);
  const home = step >= run.last - 1;
  const parts = home && owner ? [...ranks, chunk] : ranks;
  const head = el("p", { class: "head" }, home ? `The gradient of texts ${chunk}, complete at rank ${chunk}` : `The gradient that travels with texts ${chunk}`,
    el("small", {}, parts.length ? ` parts from ranks ${listed(parts.map(String))}, before the division by ${run.total}` : " does not exist yet: no other rank has computed a block with these texts"));
  const way = el("p", {}, "On its way: ", count(Math.max(step, 0) + 1).filter((s) => s <= run.world).map((s) => `rank ${placeOf(run, chunk, s).rank}`).join(" \u2192 "), ".");
  if (!parts.length) return el("div", {}, head, way);
  const rows = gradientOfTexts(run, chunk, parts).map((row, k) => el("tr", {}, el("th", { scope: "row" }, `text ${rowsOf(run, chunk)[k]}`), ...row.map((x) => el("td", {}, fixed(x, 4)))));
  return el("div", {}, head, way, el("table", {}, el("tbody", {}, ...rows)));
}

/* The last sum: three numbers a rank. */
function sumsTable(run) {
  const ranks = count(run.world).map((rank) => threeSums(run, rank));
  const totals = count(3).map((k) => add(ranks.map((three) => three[k])));
  const row = (name, three, places, kind = "") => el("tr", { class: kind }, el("th", { scope: "row" }, name), ...three.map((x) => el("td", {}, fixed(x, places).slice(0, 6 - places || undefined), places > 6 ? el("span", { class: "more" }, fixed(x, places).slice(6 - places)) : null)));
  return el("div", {},
    el("p", { class: "head" }, "One small sum over all ranks", el("small", {}, " three numbers each, 24 bytes")),
    el("table", { class: "sums" },
      el("thead", {}, el("tr", {}, el("td"), ...["loss", "d_log_scale", "d_bias"].map((name) => el("th", { scope: "col" }, name)))),
      el("tbody", {}, ...ranks.map((three, rank) => row(`rank ${rank}`, three, 6)), row("sum", totals, 6, "line"), row(`sum / ${run.total}`, totals.map((x) => x / run.total), 12, "strong"))));
}

/* A step's name, and what happens in it, in words. */
function title(run, step) {
  if (step < 0) return "Before the start.";
  if (step === run.last) return "The sum.";
  if (["blocking", "overlapped", "bidirectional"].includes(run.scheme)) return step === run.world ? "Home." : `Hop ${step}.`;
  return `Step ${step}.`;
}

function say(run, step) {
  const W = run.world;
  const came = run.events.filter((e) => e.kind === "recv" && e.step === step);
  const met = run.blocks.filter((e) => e.step === step && e.rank === 0);
  if (step < 0) return `${plural(W, "rank")}, ${run.total} pairs: every image must meet every text, ${grouped(run.total ** 2)} cells. Nothing is computed yet.`;
  if (step === run.last) return W === 1 ? "One rank has it all." : "Loss, d_log_scale and d_bias of all ranks are added: three numbers. Every other result is complete on its rank.";
  if (step === 0 && met.length) return "Every rank computes the block of its own images and its own texts: the only blocks with matches. No message yet.";
  const bytes = add(came.map((e) => e.bytes));
  const kinds = [...new Set(came.map((e) => ({ chunk: "texts", gradient: "their gradient" })[e.what]))];
  const gradientOnly = kinds.length === 1 && kinds[0] === "their gradient";
  const moved = came.length === 0 ? "No message arrives." : `${gradientOnly ? "Gradients" : `The ${listed(kinds)}`} arrive: ${plural(came.length, "message")}, ${grouped(bytes)} bytes, all ranks together.`;
  const meets = met.length === 0 ? "" : ` Rank 0 computes its block with texts ${listed(met.map((e) => String(e.chunk)))}.`;
  const born = run.scheme === "blocking" && step === 1 ? " Here each chunk\u2019s gradient begins." : "";
  const homeward = run.moves && step === run.last - 1 && gradientOnly ? " Each gradient is added to the part that stayed at its owner." : "";
  const hatched = run.blocks.some((e) => e.step <= step && e.graded > step) ? " Hatched cells have their loss; their logits wait for the gradient." : "";
  return moved + meets + born + homeward + hatched;
}
