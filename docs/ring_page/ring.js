"use strict";

/* The ring, drawn: ranks on a circle, texts as cards, their gradient as a pack that grows, messages as arrows with bytes. */

const CARDS_AT = 37; // radius of the cards, in hundredths of the drawing
const PACK_BELOW = 7.6; // how far below its card a gradient rides
const FINE = 5; // segments a pack can show without growing wider

/* Rank 0 is at the top, and the right neighbour of a rank comes next clockwise: texts, which go left, turn against the clock. */
const angleOf = (run, rank) => (2 * Math.PI * rank) / run.world;
const onCircle = (angle, radius) => [50 + radius * Math.sin(angle), 50 - radius * Math.cos(angle)];

/* What happens inside one step, in order: [name, kind]. As in mpi/ring.py texts come first, their gradient follows after the block. */
function partsOf(run, step) {
  if (step < 0) return [];
  if (step === run.last) return [["sum over ranks", "sum"]];
  const came = run.events.filter((e) => e.kind === "recv" && e.step === step);
  const texts = came.some((e) => e.what === "chunk");
  const gradients = came.some((e) => e.what === "gradient");
  const blocks = run.blocks.some((e) => e.step === step);
  return [
    texts && ["send texts", "chunk"],
    blocks && ["compute", "block"],
    gradients && [blocks ? "gradients follow" : "send gradients", "gradient"],
    (gradients || blocks) && [gradients ? "add" : step ? "a gradient begins" : "keep the own part", "add"],
  ].filter(Boolean);
}

/* Where in a step a phase from 0 to 1 is: the part's number, its kind, and how far it is. */
function partAt(parts, phase) {
  const place = Math.min(phase * parts.length, parts.length - 1e-9);
  const number = Math.max(0, Math.floor(place));
  return { number, name: parts[number]?.[0] ?? "", kind: parts[number]?.[1] ?? "", done: phase >= 1 ? 1 : place - number };
}

/* How far one part has come when a step is at a phase: 0 before it, 1 after it. */
function progressOf(parts, phase, kind) {
  const number = parts.findIndex((part) => part[1] === kind);
  if (number < 0) return 1;
  return Math.max(0, Math.min(1, phase * parts.length - number));
}

function makeRing(pickChunk) {
  const arrows = drawn("svg", { viewBox: "0 0 100 100", class: "arrows", "aria-hidden": "true" });
  const middle = el("p", { class: "middle", "aria-hidden": "true" });
  const host = el("div", { class: "ring" });
  let nodes, cards, packs, latest;

  function layout(run) {
    host.classList.toggle("many", run.world > 5);
    host.classList.toggle("crowded", run.world > 10);
    nodes = count(run.world).map((rank) => {
      const [x, y] = onCircle(angleOf(run, rank), run.world > 5 ? 17 : 15);
      return el("span", { class: "node", "aria-hidden": "true", style: `--hue: ${hue(rank)}; left: ${x}%; top: ${y}%` }, el("b", {}, el("span", { class: "long" }, "rank "), String(rank)));
    });
    const travellers = run.moves ? count(run.world) : [];
    cards = travellers.map((chunk) => el("button", { type: "button", class: "chip", style: `--hue: ${hue(chunk)}`, on: { click: () => pickChunk(chunk) } }));
    packs = travellers.map((chunk) => el("span", { class: "pack share", "aria-hidden": "true", style: `--hue: ${hue(chunk)}; --parts: ${Math.min(run.world - 1, FINE)}` }, ...count(run.world - 1).map(() => el("i"))));
    host.replaceChildren(arrows, ...nodes, middle, ...packs, ...cards);
    latest = "";
  }

  /* One step at one phase. */
  function draw(run, step, phase, followed) {
    const parts = partsOf(run, step);
    const part = partAt(parts, phase);
    const added = phase >= 1 || progressOf(parts, phase, "add") >= 0.5;
    const moment = `${step} ${phase >= 1 ? "done" : part.number} ${added} ${followed}`;
    if (moment !== latest) settle(run, step, phase, followed, parts, part, added);
    latest = moment;
    cards.forEach((card, chunk) => place(run, chunk, step, phase, parts));
  }

  /* All that stays until the next part of the step begins. */
  function settle(run, step, phase, followed, parts, part, added) {
    const came = run.events.filter((e) => e.kind === "recv" && e.step === step);
    const flying = phase < 1 && ["chunk", "gradient"].includes(part.kind) ? part.kind : null;
    drawArrows(run, step, came, flying, followed);
    nodes.forEach((node, rank) => node.classList.toggle("busy", phase < 1 && part.kind === "block" && run.blocks.some((e) => e.rank === rank && e.step === step)));
    const bytes = add(came.filter((e) => e.what === flying).map((e) => e.bytes));
    const now = phase < 1 ? part.name : ""; // at rest the caption says it
    middle.replaceChildren(el("b", {}, now), flying ? el("span", {}, `${grouped(bytes)} B, all ranks`) : "");
    cards.forEach((card, chunk) => drawCard(run, chunk, card, packs[chunk], step, phase, parts, followed, added));
  }

  /* Between neighbours arrows on the circle; between others, chords. */
  function drawArrows(run, step, came, flying, followed) {
    arrows.replaceChildren(drawn("defs", {}, ...["idle", "live"].map((name) => drawn("marker", { id: `tip-${name}`, class: name, viewBox: "0 0 6 6", refX: 4, refY: 3, markerWidth: name === "live" ? 3.4 : 4, markerHeight: name === "live" ? 3.4 : 4, orient: "auto" }, drawn("path", { d: "M0 0L6 3L0 6z" })))));
    const lines = new Map();
    if (run.moves && run.world > 1) for (const rank of count(run.world)) lines.set(`${rank} ${(rank + run.world - 1) % run.world}`, []);
    for (const e of came) {
      const key = `${e.peer} ${e.rank}`;
      if (!lines.has(key)) lines.set(key, []);
      lines.get(key).push(e);
    }
    for (const [key, messages] of lines) {
      const [from, to] = key.split(" ").map(Number);
      const live = flying ? messages.filter((e) => e.what === flying) : [];
      const dim = followed !== null && !messages.some((e) => e.chunk === followed);
      const { path, at } = wire(run, from, to);
      const color = live.length ? ` --hue: ${hue(live[0].chunk)}` : "";
      arrows.append(drawn("path", { d: path, class: `wire${live.length ? " live" : ""}${dim ? " dim" : ""}`, style: color, "marker-end": `url(#tip-${live.length ? "live" : "idle"})` }));
      const labelled = flying ? live : messages;
      if (!labelled.length || run.world > 10) continue;
      const words = [...new Set(labelled.map((e) => `${grouped(e.bytes)} B`))].join(" + ");
      arrows.append(drawn("text", { x: at[0], y: at[1], class: `bytes${dim ? " dim" : ""}` }, words));
    }
  }

  function wire(run, from, to) {
    const [a, b] = [angleOf(run, from), angleOf(run, to)];
    const left = (from + run.world - 1) % run.world === to;
    const right = (from + 1) % run.world === to;
    if (run.world > 1 && (left || right)) {
      const gap = run.world > 5 ? 0.36 : 0.24;
      const turn = left ? -1 : 1;
      const span = (2 * Math.PI) / run.world;
      const radius = CARDS_AT + (left ? 0 : -6);
      const [x0, y0] = onCircle(a + turn * span * gap, radius);
      const [x1, y1] = onCircle(a + turn * span * (1 - gap), radius);
      const path = `M${x0} ${y0}A${radius} ${radius} 0 0 ${left ? 0 : 1} ${x1} ${y1}`;
      return { path, at: onCircle(a + (turn * span) / 2, !left ? radius - 5 : run.world < 3 ? radius - 8 : radius + 10.5) };
    }
    const [x0, y0] = onCircle(a, 26);
    const [x1, y1] = onCircle(b, 27);
    return { path: `M${x0} ${y0}Q50 50 ${x1} ${y1}`, at: onCircle(a + 0.12, 31) };
  }

  /* Where a chunk of texts is, and the gradient that follows it. */
  let ways = new Map();

  function place(run, chunk, step, phase, parts) {
    const { from, to, alone } = ways.get(chunk);
    put(cards[chunk], between(run, from, to, progressOf(parts, phase, alone ? "gradient" : "chunk")), 0);
    put(packs[chunk], between(run, from, to, parts.some((part) => part[1] === "gradient") ? progressOf(parts, phase, "gradient") : 1), PACK_BELOW);
  }

  /* What a card says, and of how many parts its gradient is. */
  function drawCard(run, chunk, card, pack, step, phase, parts, followed, added) {
    const now = placeOf(run, chunk, step);
    const before = step > 0 && step < run.last ? placeOf(run, chunk, step - 1) : now;
    const answers = answered(run, chunk, step);
    const home = step >= run.last - 1 && now.carries.includes("gradient") && now.rank === chunk;
    const alone = now.carries.length === 1 && now.carries[0] === "gradient" && !run.blocks.some((e) => e.rank === now.rank && e.chunk === chunk && e.step === step);
    ways.set(chunk, { from: before.rank, to: now.rank, alone });
    const shown = added ? answers : answered(run, chunk, step - 1);
    card.classList.toggle("alone", alone);
    card.classList.toggle("dim", followed !== null && followed !== chunk);
    pack.classList.toggle("dim", followed !== null && followed !== chunk);
    pack.classList.toggle("born", shown.length > 0);
    pack.classList.toggle("grows", phase < 1 && added && parts.some((part) => part[1] === "add"));
    card.replaceChildren(home ? `home ${chunk}` : alone ? `∂ texts ${chunk}` : `texts ${chunk}`);
    card.setAttribute("aria-label", home ? `gradient of texts ${chunk}, home` : `texts ${chunk} on rank ${now.rank}, gradient of ${answers.length} ranks with them`);
    [...pack.children].forEach((segment, k) => {
      segment.style.setProperty("--hue", k < shown.length ? hue(shown[k]) : "transparent");
      segment.classList.toggle("on", k < shown.length);
    });
  }

  /* An angle on the shorter way from one rank to another. */
  function between(run, from, to, share) {
    const span = (2 * Math.PI) / run.world;
    const steps = ((((to - from) % run.world) + run.world + Math.floor((run.world - 1) / 2)) % run.world) - Math.floor((run.world - 1) / 2);
    const turn = run.world === 2 && steps ? -1 : steps;
    const smooth = share * share * (3 - 2 * share);
    return angleOf(run, from) + turn * span * smooth;
  }

  function put(node, angle, below) {
    const [x, y] = onCircle(angle, CARDS_AT);
    node.style.left = `${x}%`;
    node.style.top = `${y + below}%`;
  }

  return { host, layout, draw };
}
