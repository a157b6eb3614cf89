"use strict";

/* The stage: one run, step by step. makeStage(host, run) draws it and returns what drives it. */

const VIEWS = {
  loss: ["loss", (pair) => pair.loss],
  similarity: ["similarity", (pair) => pair.similarity],
  logit: ["logit", (pair) => pair.logit],
  probability: ["probability", (pair) => pair.probability],
  gradient: ["gradient", (pair) => pair.gradient],
};
const calm = () => matchMedia("(prefers-reduced-motion: reduce)").matches;
const MOST_CELLS = 24; // pairs up to which every pair has a cell; above, every block has one

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

const fixed = (x, places) => (x < 0 ? "\u2212" : "") + Math.abs(x).toFixed(places);
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

let stages = 0;

function makeStage(host, first, { worlds = null } = {}) {
  const id = `stage${(stages += 1)}`;
  const state = { run: first, step: -1, view: "loss", picked: null, playing: 0, listeners: [] };

  const caption = el("p", { class: "caption", "aria-live": "polite" });
  const board = el("div", { class: "board" });
  const range = el("input", { type: "range", min: -1, "aria-label": "step", on: { input: () => go(Number(range.value)) } });
  const button = (label, sign, action) => el("button", { type: "button", "aria-label": label, title: label, on: { click: action } }, sign);
  const play = button("play", "▶", () => toggle());
  const total = el("p", { class: "total" });
  const counters = el("dl", { class: "counters" });
  const inspect = el("div", { class: "inspect" });
  const views = choice(`${id}-view`, "show", Object.entries(VIEWS).map(([key, [label]]) => [key, label]), "loss", (view) => {
    state.view = view;
    draw();
  });
  const chosen = worlds ? choice(`${id}-world`, "ranks", worlds.map((w) => [String(w), String(w)]), String(first.world), (w) => show(worlds.open(w), Math.min(state.step, worlds.open(w).last))) : null;
  host.replaceChildren(
    el("div", { class: "bar" }, chosen, views),
    caption,
    board,
    el("div", { class: "controls" }, button("back to the start", "0", () => go(-1)), button("one step back", "◀", () => go(state.step - 1)), range,
      button("one step on", "▶", () => go(state.step + 1)), play),
    total, counters, inspect,
  );
  play.textContent = "play";

  let cells, chips, lanes;

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
      const box = el("div", { class: "rank", style: `flex-grow: ${sizes[rank]}` }, el("b", {}, "rank ", String(rank)),
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
        cells.push({ node, i, j, rank, chunk, fine });
        return node;
      }));
    });
    const grid = el("div", { class: "matrix", role: "grid", "aria-label": "images by texts, every cell a pair", on: { click: pick, keydown: walk, focusin: pick } }, ...rows);
    chips = run.moves ? ranks.map((chunk) => el("button", { type: "button", class: "chip", style: `--hue: ${hue(chunk)}`, on: { click: () => { state.picked = { chunk }; draw(); } } },
      el("span", { class: "texts" }), el("span", { class: "share" }, ...ranks.slice(1).map(() => el("i"))))) : [];
    const road = el("div", { class: "road" }, ...(run.moves ? chips : [el("p", { class: "faint" })]));
    board.replaceChildren(
      el("div", { class: "corner", "aria-hidden": "true" }, "images of"), heads, el("div", { class: "held", "aria-hidden": "true" }, run.moves ? "held now" : "messages"),
      el("div", { class: "ranks" }, ...lanes.map((lane) => lane.box)), grid, road,
    );
    board.querySelectorAll(".chip").forEach((chip, chunk) => { chip.before = chunk; });
    state.place = (rank) => (starts[rank] + sizes[rank] / 2) / side;
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
    state.step = Math.max(-1, Math.min(step, state.run.last));
    draw();
    for (const listener of state.listeners) listener(state);
  }

  function toggle(on = !state.playing) {
    clearInterval(state.playing);
    state.playing = 0;
    if (on) {
      if (state.step === state.run.last) go(-1);
      state.playing = setInterval(() => (state.step < state.run.last ? go(state.step + 1) : toggle(false)), 1600);
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
    caption.replaceChildren(el("b", {}, title(run, step)), " ", say(run, step));
    drawCells();
    drawLanes();
    drawTotal();
    drawCounters();
    drawInspect();
  }

  function drawCells() {
    const { run, step, view } = state;
    for (const { node, i, j, rank, chunk, fine } of cells) {
      const blocks = run.blocks.filter((e) => e.rank === rank && e.chunk === chunk && e.step <= step);
      const done = blocks.length > 0;
      const now = blocks.some((e) => e.step === step) && step < run.last;
      const half = done && blocks.some((e) => e.graded > step);
      const match = fine ? i === j : rank === chunk;
      node.className = `${node.className.replace(/ (done|now|half|match|picked|empty)/g, "")}${done ? " done" : " empty"}${now ? " now" : ""}${half ? " half" : ""}${match ? " match" : ""}`;
      const value = !done ? null : fine && run.numbers ? VIEWS[view][1](pairOf(run.numbers, i, j)) : fine ? null : add(blocks.map((e) => e.loss));
      const words = fine ? `image ${i}, text ${j}${match ? ", a match" : ""}` : `images of rank ${rank}, texts of rank ${chunk}`;
      node.textContent = value === null ? "" : fixed(value, run.total > 10 || !fine ? 1 : 2);
      node.setAttribute("aria-label", `${words}: ${value === null ? (done ? "done" : "not yet") : `${fine ? VIEWS[view][0] : "loss"} ${value.toFixed(3)}`}`);
      if (state.picked?.cell?.node === node) node.classList.add("picked");
    }
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
    chips.forEach((chip, chunk) => {
      const { rank, carries } = placeOf(run, chunk, step);
      const answers = answered(run, chunk, step);
      const home = step >= run.last - 1 && carries.includes("gradient") && rank === chunk;
      const alone = carries.length === 1 && carries[0] === "gradient" && !run.blocks.some((e) => e.rank === rank && e.chunk === chunk && e.step === step);
      const wraps = rank > chip.before && rank - chip.before > 1;
      chip.classList.toggle("alone", alone);
      chip.classList.toggle("born", answers.length > 0);
      chip.firstChild.textContent = home ? `home ${chunk}` : alone ? `∂ texts ${chunk}` : `texts ${chunk}`;
      const said = home ? `gradient of texts ${chunk}, home` : `texts ${chunk} on rank ${rank}, gradient of ${answers.length} ranks with them`;
      chip.setAttribute("aria-label", said);
      fill(chip.lastChild, answers);
      chip.style.setProperty("--at", state.place(rank));
      if (wraps && !calm()) chip.animate([{ translate: "0 0" }, { translate: "1.3rem 0", offset: 0.5 }, { translate: "0 0" }], 700);
      chip.before = rank;
    });
    if (!run.moves) {
      const here = run.events.filter((e) => e.kind === "recv" && e.step === step);
      board.querySelector(".road p").textContent = here.slice(0, 24).map((e) => `${e.what} ${e.chunk}: ${e.peer} → ${e.rank}`).join("\n");
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
    const { sum, loss } = lossAt(run, step);
    const end = step === run.last;
    const value = el("output", {}, digits(loss));
    total.replaceChildren(el("span", {}, end ? "loss" : "loss so far"), " ", value, " ", el("small", {}, `= ${sum.toFixed(6)} / ${run.total} images`));
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
      ["bytes waiting", held, peak],
    ];
    counters.replaceChildren(...rows.map(([name, now, all]) => el("div", {}, el("dt", {}, name), el("dd", { "data-counter": name }, el("b", {}, grouped(now)), el("small", {}, ` ${name === "bytes waiting" ? "peak" : "of"} ${grouped(all)}`)))));
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
  return { state, go, show, toggle, host };
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
    el("small", {}, parts.length ? ` answers of ranks ${listed(parts.map(String))}, before the division by ${run.total}` : " is not born yet: no other rank has answered"));
  if (!parts.length) return head;
  const rows = gradientOfTexts(run, chunk, parts).map((row, k) => el("tr", {}, el("th", { scope: "row" }, `text ${rowsOf(run, chunk)[k]}`), ...row.map((x) => el("td", {}, fixed(x, 4)))));
  return el("div", {}, head, el("table", {}, el("tbody", {}, ...rows)));
}

/* The last sum: three numbers a rank. */
function sumsTable(run) {
  const ranks = count(run.world).map((rank) => threeSums(run, rank));
  const totals = count(3).map((k) => add(ranks.map((three) => three[k])));
  const row = (name, three, places, kind = "") => el("tr", { class: kind }, el("th", { scope: "row" }, name), ...three.map((x) => el("td", {}, fixed(x, places))));
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
  if (step < 0) return `${plural(W, "rank")}, ${run.total} pairs: every image must meet every text, ${grouped(run.total ** 2)} cells. Nothing has met yet.`;
  if (step === run.last) return W === 1 ? "One rank has it all." : "Loss, d_log_scale and d_bias of all ranks are added: three numbers. Every other result is complete where it lies.";
  if (step === 0 && met.length) return "Every rank meets its own images with its own texts: the only blocks in which pairs belong together. No message yet.";
  const bytes = add(came.map((e) => e.bytes));
  const kinds = [...new Set(came.map((e) => ({ chunk: "texts", gradient: "their gradient" })[e.what]))];
  const gradientOnly = kinds.length === 1 && kinds[0] === "their gradient";
  const moved = came.length === 0 ? "No message arrives." : `${gradientOnly ? "Gradients" : `The ${listed(kinds)}`} arrive: ${plural(came.length, "message")}, ${grouped(bytes)} bytes, all ranks together.`;
  const meets = met.length === 0 ? "" : met.length === 1 ? ` Rank 0 holds texts ${met[0].chunk} and meets them.` : ` Rank 0 meets texts ${listed(met.map((e) => String(e.chunk)))}.`;
  const born = run.scheme === "blocking" && step === 1 ? " Each chunk\u2019s gradient is born here, on its first stranger." : "";
  const homeward = run.moves && step === run.last - 1 && gradientOnly ? " Each gradient joins the share that stayed at its owner." : "";
  const hatched = run.blocks.some((e) => e.step <= step && e.graded > step) ? " Hatched cells have their loss; their logits wait for the gradient." : "";
  return moved + meets + born + homeward + hatched;
}
