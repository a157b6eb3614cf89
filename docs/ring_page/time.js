"use strict";

/* Time: one track a rank, blocks and messages as bars; the cursor is shared with a matrix of blocks. */

const ROW = ["rank", "what", "chunk", "hop", "peer", "bytes", "start", "end", "sent"];
const LANES = { height: 46, compute: 22, message: 11, left: 58, width: 1000, top: 22 };
const milliseconds = (us) => `${(us / 1000).toFixed(0)} ms`;

/* Rows of the page's recordings -> bars, with the last moment. */
function barsOf(rows) {
  const bars = rows.map((row) => Object.fromEntries(ROW.map((name, i) => [name, row[i]])));
  return { bars, end: Math.max(1, ...bars.map((bar) => bar.end)), trips: bars.some((bar) => bar.what === "back") ? 2 : 1 };
}

/* A trace -> bars: the message of a receive left its sender when the matching send began. */
function barsOfRun(run) {
  const left = new Map();
  const key = (from, to, e) => `${from} ${to} ${e.what} ${e.chunk} ${e.bytes}`;
  for (const e of run.events) if (e.kind === "send") left.set(key(e.rank, e.peer, e), [...(left.get(key(e.rank, e.peer, e)) ?? []), e.start]);
  const zero = Math.min(...run.events.map((e) => e.start));
  const rows = run.events.filter((e) => e.kind !== "send").map((e) => {
    const what = e.kind === "recv" ? e.what : e.kind;
    const sent = e.kind === "recv" ? left.get(key(e.peer, e.rank, e))?.shift() ?? e.start : e.start;
    return [e.rank, what, e.chunk, e.hop, e.peer, e.bytes, ...[e.start, e.end, sent].map((s) => (s - zero) * 1e6)];
  });
  return barsOf(rows);
}

const computes = (bar) => bar.what === "block" || bar.what === "back";

/* Of all time up to the end, what a rank computes. */
function busyShare({ bars, end }, world) {
  return add(bars.filter(computes).map((bar) => bar.end - bar.start)) / (world * end);
}

/* A block at a moment: 0 not begun, 1 computing, 2 its loss only (a second part will come), 3 done. */
function blockAt({ bars, trips }, rank, chunk, moment) {
  const parts = bars.filter((bar) => computes(bar) && bar.rank === rank && bar.chunk === chunk);
  if (parts.some((bar) => bar.start <= moment && moment < bar.end)) return 1;
  const over = parts.filter((bar) => bar.end <= moment);
  if (!over.length) return 0;
  if (trips === 2 && !over.some((bar) => bar.what === "back")) return 2;
  return over.length === parts.length ? 3 : 2;
}

function makeTime(host, world, recording, name) {
  const state = { world, recording, moment: recording.end, playing: 0 };
  const tracks = drawn("svg", { class: "tracks", role: "img" });
  const line = drawn("line", { class: "cursor", y1: LANES.top - 8 });
  const range = el("input", { type: "range", min: 0, max: 1000, "aria-label": `moment, ${name}`, on: { input: () => { pause(); at((Number(range.value) / 1000) * state.recording.end); } } });
  const said = el("output", { class: "moment" });
  const play = el("button", { type: "button", on: { click: () => (state.playing ? pause() : start()) } }, "play");
  const matrix = el("div", { class: "mini", role: "img" });
  host.replaceChildren(
    el("div", { class: "controls" }, play, range, said),
    el("div", { class: "shared" }, el("div", {}, matrix), el("div", { class: "wide", tabindex: "0", role: "group", "aria-label": "tracks of the ranks" }, tracks)));
  tracks.addEventListener("pointerdown", (event) => { pause(); drag(event); tracks.setPointerCapture(event.pointerId); });
  tracks.addEventListener("pointermove", (event) => event.buttons && drag(event));

  function drag(event) {
    const { left, width } = tracks.getBoundingClientRect();
    const x = ((event.clientX - left) / width) * LANES.width;
    at(Math.max(0, Math.min(1, (x - LANES.left) / (LANES.width - LANES.left - 8))) * state.recording.end);
  }

  const xOf = (us) => LANES.left + (us / state.recording.end) * (LANES.width - LANES.left - 8);

  function show(world, recording, moment = recording.end) {
    Object.assign(state, { world, recording });
    const height = LANES.top + world * LANES.height + 4;
    tracks.setAttribute("viewBox", `0 0 ${LANES.width} ${height}`);
    tracks.setAttribute("aria-label", `${name}: ${world} ranks, ${milliseconds(recording.end)}, computing ${(100 * busyShare(recording, world)).toFixed(0)} % of the time`);
    line.setAttribute("y2", height);
    const top = (rank) => LANES.top + rank * LANES.height;
    const ticks = count(6).map((k) => (k * recording.end) / 5);
    tracks.replaceChildren(
      ...ticks.map((us, k) => drawn("text", { x: Math.min(xOf(us), LANES.width - 4), y: 12, class: "tick", "text-anchor": k === 5 ? "end" : k ? "middle" : "start" }, milliseconds(us))),
      ...count(world).flatMap((rank) => [
        drawn("rect", { x: LANES.left, y: top(rank), width: LANES.width - LANES.left - 8, height: LANES.compute, class: "lane" }),
        drawn("text", { x: 0, y: top(rank) + 16, class: "name" }, `rank ${rank}`),
      ]),
      ...recording.bars.filter((bar) => !computes(bar) && bar.what !== "sum").map((bar) => {
        const [from, to] = [xOf(bar.sent), xOf(bar.end)];
        const y = top(bar.rank) + LANES.compute + 2 + (bar.what === "gradient" ? 9 : 0);
        const label = `${bar.what === "chunk" ? "texts" : "gradient of texts"} ${bar.chunk} from rank ${bar.peer} to rank ${bar.rank}, ${bar.bytes} bytes, ${milliseconds(bar.sent)} to ${milliseconds(bar.end)}`;
        return drawn("rect", { x: from, y, width: Math.max(1, to - from), height: 7, rx: 2, class: `message ${bar.what}`, style: `--hue: ${hue(bar.chunk)}` }, drawn("title", {}, label));
      }),
      ...recording.bars.filter(computes).flatMap((bar) => {
        const [from, to] = [xOf(bar.start), xOf(bar.end)];
        const label = `rank ${bar.rank} computes with texts ${bar.chunk}${recording.trips === 2 ? (bar.what === "back" ? ", second time" : ", first time") : ""}, ${milliseconds(bar.start)} to ${milliseconds(bar.end)}`;
        return [drawn("rect", { x: from, y: top(bar.rank), width: Math.max(1, to - from), height: LANES.compute, rx: 3, class: `block ${recording.trips === 2 && bar.what === "block" ? "first" : ""}`, style: `--hue: ${hue(bar.chunk)}` }, drawn("title", {}, label)),
          ...(to - from > 14 ? [drawn("text", { x: (from + to) / 2, y: top(bar.rank) + 16, "text-anchor": "middle", class: "inside" }, String(bar.chunk))] : [])];
      }),
      ...recording.bars.filter((bar) => bar.what === "sum").map((bar) => drawn("rect", { x: xOf(bar.start), y: top(bar.rank), width: Math.max(2, xOf(bar.end) - xOf(bar.start)), height: LANES.compute, class: "sum" }, drawn("title", {}, "sum over ranks"))),
      line);
    matrix.style.setProperty("--side", world);
    matrix.replaceChildren(...count(world).flatMap((rank) => count(world).map((chunk) => el("i", { style: `--hue: ${hue(chunk)}` }, String(chunk)))));
    at(Math.min(moment, recording.end));
  }

  function at(moment) {
    state.moment = moment;
    const { recording, world } = state;
    range.value = Math.round((1000 * moment) / recording.end);
    said.textContent = `${milliseconds(moment)} of ${milliseconds(recording.end)}`;
    range.setAttribute("aria-valuetext", said.textContent);
    line.setAttribute("x1", xOf(moment));
    line.setAttribute("x2", xOf(moment));
    const stages = count(world).flatMap((rank) => count(world).map((chunk) => blockAt(recording, rank, chunk, moment)));
    [...matrix.children].forEach((square, k) => { square.className = ["", "now half", "half", "done"][stages[k]]; });
    matrix.setAttribute("aria-label", `${stages.filter((s) => s === 3).length} of ${world ** 2} blocks done, ${stages.filter((s) => s === 1).length} being computed`);
  }

  function start() {
    if (state.moment >= state.recording.end) at(0);
    const [begin, from] = [performance.now(), state.moment];
    const speed = state.recording.end / 5000; // the whole in five seconds
    const next = (now) => {
      at(Math.min(state.recording.end, from + (now - begin) * speed));
      state.playing = state.moment < state.recording.end ? requestAnimationFrame(next) : 0;
      if (!state.playing) pause();
    };
    state.playing = requestAnimationFrame(next);
    play.textContent = "pause";
  }

  function pause() {
    cancelAnimationFrame(state.playing);
    state.playing = 0;
    play.textContent = "play";
  }

  show(world, recording);
  return { state, show, at };
}
