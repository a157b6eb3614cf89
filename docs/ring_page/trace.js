"use strict";

/* A trace: checked, replayed as steps, and computed again. Nothing here touches the page. */

const FORMAT = "siglip-ring-trace/1";
const COLUMNS = ["rank", "kind", "what", "chunk", "hop", "peer", "bytes", "pairs", "loss", "start", "end"];
const MOST_RANKS = 32;
const OPEN_THIS = "Open the trace.json that `siglip-ring trace FOLDER` wrote.";

class BadTrace extends Error {}

const add = (numbers) => numbers.reduce((sum, x) => sum + x, 0);
const count = (n) => Array.from({ length: n }, (_, i) => i);
const whole = (x) => Number.isInteger(x) && x >= 0;

/* Text of a file -> the document, or a BadTrace that says what is wrong and what to do. */
function readTrace(text) {
  let doc;
  try {
    doc = JSON.parse(text);
  } catch (error) {
    throw new BadTrace(`This file is not JSON (${error.message}). ${OPEN_THIS}`);
  }
  if (doc === null || typeof doc !== "object" || Array.isArray(doc)) throw new BadTrace(`This is JSON, but no trace. ${OPEN_THIS}`);
  if ("traceEvents" in doc) throw new BadTrace("This is perfetto.json, for ui.perfetto.dev. Open the trace.json beside it.");
  const demand = (holds, expected, got) => {
    if (!holds) throw new BadTrace(`Expected ${expected}; got ${JSON.stringify(got) ?? "nothing"}. ${OPEN_THIS}`);
  };
  demand(doc.format === FORMAT, `"format": "${FORMAT}"`, doc.format);
  demand(typeof doc.scheme === "string", '"scheme": the name of a scheme', doc.scheme);
  demand(["float32", "float64"].includes(doc.dtype), '"dtype": float32 or float64', doc.dtype);
  demand(Array.isArray(doc.sizes) && doc.sizes.length > 0 && doc.sizes.every(whole), '"sizes": pairs of every rank', doc.sizes);
  demand(doc.sizes.length <= MOST_RANKS, `${MOST_RANKS} ranks at most, for more cannot be seen here`, doc.sizes.length);
  demand(add(doc.sizes) > 0, "at least one pair", 0);
  demand(whole(doc.width) && doc.width > 0, '"width": the width of an embedding', doc.width);
  demand(Number.isFinite(doc.loss), '"loss": a number', doc.loss);
  demand(JSON.stringify(doc.columns) === JSON.stringify(COLUMNS), `"columns": ${COLUMNS.join(", ")}`, doc.columns);
  demand(Array.isArray(doc.events), '"events": a list of rows', doc.events);
  doc.events.forEach((row, number) => checkEvent(row, number, doc.sizes.length, demand));
  if (doc.numbers !== undefined) checkNumbers(doc, demand);
  return doc;
}

function checkEvent(row, number, world, demand) {
  const where = `event ${number}`;
  demand(Array.isArray(row) && row.length === COLUMNS.length, `${where} to have ${COLUMNS.length} values`, row);
  const [rank, kind, what, chunk, hop, peer, bytes, pairs, ...numbers] = row;
  demand(whole(rank) && rank < world, `${where} to be of a rank below ${world}`, rank);
  demand(["send", "recv", "block", "sum"].includes(kind), `${where} to be send, recv, block or sum`, kind);
  demand(["", "chunk", "gradient"].includes(what), `${where} to carry a chunk or a gradient`, what);
  if (kind !== "sum") demand(whole(chunk) && chunk < world, `${where} to name the texts of a rank below ${world}`, chunk);
  if (kind !== "sum") demand(whole(hop) && hop <= world, `${where} to have a hop from 0 to ${world}`, hop);
  if (kind === "send" || kind === "recv") demand(whole(peer) && peer < world, `${where} to name the other rank`, peer);
  demand(whole(bytes) && whole(pairs), `${where} to count bytes and pairs`, [bytes, pairs]);
  demand(numbers.every(Number.isFinite), `${where} to end in three numbers: loss, start, end`, numbers);
}

function checkNumbers(doc, demand) {
  const { images, texts, ...scalars } = doc.numbers ?? {};
  const pairs = add(doc.sizes);
  for (const [name, rows] of Object.entries({ images, texts })) {
    const right = Array.isArray(rows) && rows.length === pairs
      && rows.every((row) => Array.isArray(row) && row.length === doc.width && row.every(Number.isFinite));
    demand(right, `"numbers"."${name}": ${pairs} rows of ${doc.width} numbers`, Array.isArray(rows) ? `${rows.length} rows` : rows);
  }
  for (const name of ["log_scale", "bias", "d_log_scale", "d_bias"])
    demand(Number.isFinite(scalars[name]), `"numbers"."${name}": a number`, scalars[name]);
}

/* The document -> a run: every event has a step; all that happens in one step happens together.
   In a ring, step s is hop s, step W brings the gradients home, and the last step is the sum over ranks. */
function replay(doc) {
  const world = doc.sizes.length;
  const events = doc.events.map((row) => Object.fromEntries(COLUMNS.map((name, i) => [name, row[i]])));
  const firsts = doc.sizes.map((_, rank) => add(doc.sizes.slice(0, rank)));
  const run = { ...doc, world, events, firsts, total: add(doc.sizes), item: doc.dtype === "float64" ? 8 : 4 };
  for (const rank of count(world)) {
    const mine = events.filter((event) => event.rank === rank);
    const sums = mine.filter((event) => event.kind === "sum");
    const seen = { send: 0, recv: 0, arrived: 0, sums: 0 };
    for (const event of mine) {
      if (event.kind === "sum") {
        event.role = event === sums.at(-1) ? "total" : event === sums[0] ? "agreement" : "inner";
        event.step = event.role === "inner" ? Math.floor(seen.sums++ / 2) : event.role === "agreement" ? 0 : Infinity;
      } else event.step = stepOf(event, run, seen);
      event.graded = event.kind === "block" && run.scheme === "autograd-like" ? 2 * world - 2 - event.hop : event.step;
    }
  }
  run.last = Math.max(0, ...events.map((event) => Math.max(event.step, event.graded)).filter(Number.isFinite)) + 1;
  for (const event of events) if (event.step === Infinity) event.step = event.graded = run.last;
  run.blocks = events.filter((event) => event.kind === "block");
  run.moves = single(run);
  return run;
}

function stepOf(event, run, seen) {
  const { scheme, world } = run;
  if (event.kind === "recv" && event.what === "chunk") seen.arrived = Math.max(seen.arrived, event.hop);
  if (scheme === "autograd-like" && event.what === "gradient") return 2 * world - 2 - (event.hop % world);
  if (scheme === "allgather" && event.kind === "block") return world;
  if (scheme === "allgather" && event.what === "gradient") return world + (seen[event.kind] += 1);
  if (scheme === "bidirectional" && event.kind === "block") return seen.arrived;
  if (scheme === "masked-allreduce") return event.chunk;
  return event.hop;
}

/* Whether every chunk is in one place at a time, so that it can be shown travelling. */
function single(run) {
  const taken = new Set();
  for (const event of run.events.filter((e) => e.kind === "recv")) {
    const key = `${event.what} ${event.chunk} ${event.step}`;
    if (taken.has(key)) return false;
    taken.add(key);
  }
  return taken.size > 0 && run.scheme !== "allgather";
}

/* What is wrong with a run, as `mpi.trace.faults` says it; an empty list if nothing is. */
function faults(run) {
  const wrong = [];
  for (const rank of count(run.world))
    for (const chunk of count(run.world)) {
      const met = add(run.blocks.filter((e) => e.rank === rank && e.chunk === chunk).map((e) => e.pairs));
      const due = run.sizes[rank] * run.sizes[chunk];
      if (met !== due) wrong.push(`block (${rank}, ${chunk}): ${met} pairs, not ${due}`);
    }
  const balance = new Map();
  for (const e of run.events.filter((event) => event.kind === "send" || event.kind === "recv")) {
    const [from, to] = e.kind === "send" ? [e.rank, e.peer] : [e.peer, e.rank];
    const key = `${e.what} ${e.chunk} from ${from} to ${to}, ${e.bytes} bytes`;
    balance.set(key, (balance.get(key) ?? 0) + (e.kind === "send" ? 1 : -1));
  }
  for (const [key, rest] of balance) if (rest !== 0) wrong.push(`${key}: sent and received do not agree`);
  const home = new Set(run.events.filter((e) => e.kind === "recv" && e.what === "gradient" && e.rank === e.chunk).map((e) => e.chunk));
  if (balance.size) for (const chunk of count(run.world)) if (!home.has(chunk)) wrong.push(`the gradient of chunk ${chunk} never came home`);
  return wrong;
}

/* The loss of all blocks done up to a step, added as the ranks add: each its own, then in the order of ranks. */
function lossAt(run, step, lossOf = (block) => block.loss) {
  const sums = count(run.world).map((rank) => add(run.blocks.filter((e) => e.rank === rank && e.step <= step).map(lossOf)));
  return { sums, sum: add(sums), loss: add(sums) / run.total };
}

/* What one rank has sent up to a step. */
function sent(run, rank, step) {
  const mine = run.events.filter((e) => e.rank === rank && e.step <= step);
  const messages = mine.filter((e) => e.kind === "send");
  return { messages: messages.length, bytes: add(messages.map((e) => e.bytes)), sums: mine.filter((e) => e.kind === "sum").length };
}

const most = (run, of) => Math.max(...count(run.world).map(of));

/* Steps in which messages travel. */
const rounds = (run, step) =>
  new Set(run.events.filter((e) => e.step <= step && (e.kind === "recv" || e.role === "inner")).map((e) => e.step)).size;

/* Bytes of others' that wait on a rank for a later step: texts, gradients, logits. null: this page does not know the scheme. */
function waiting(run, rank, step) {
  const { world, sizes, item, width } = run;
  const owner = (hop) => (((rank + hop) % world) + world) % world;
  const chunk = (hop) => sizes[owner(hop)] * width * item;
  const foreign = count(world).slice(1);
  if (step < 0 || step >= run.last || world === 1) return 0;
  if (run.scheme === "blocking") return step > 0 && step < world ? 2 * chunk(step) : 0;
  if (run.scheme === "overlapped") return step < world ? 2 * (step > 0) * chunk(step) + (step + 1 < world) * chunk(step + 1) : 0;
  if (run.scheme === "bidirectional") return step > 0 && step < world ? chunk(step) + chunk(-step) : 0;
  if (run.scheme === "masked-allreduce") return 2 * sizes[Math.min(step, world - 1)] * width * item;
  if (run.scheme === "allgather") {
    const texts = add(foreign.filter((hop) => hop <= step).map(chunk));
    return step < world ? texts : 2 * texts;
  }
  if (run.scheme !== "autograd-like") return null;
  const logits = (hop) => sizes[rank] * sizes[owner(hop)] * (item + 1); // beside each logit, whether it is a match
  const kept = step < world ? step : 2 * world - 3 - step; // the last hop whose texts and logits are still there
  const returning = step >= world && step < 2 * world - 2 ? chunk(2 * world - 2 - step) : 0;
  return returning + add(foreign.filter((hop) => hop <= kept).map(chunk)) + add(count(Math.max(kept + 1, 0)).map(logits));
}

/* One pair, computed again from the embeddings. */
function pairOf(numbers, i, j) {
  const terms = numbers.images[i].map((x, d) => x * numbers.texts[j][d]);
  const similarity = add(terms);
  const scale = Math.exp(numbers.log_scale);
  const logit = scale * similarity + numbers.bias;
  const match = i === j;
  const wrongness = match ? -logit : logit; // how sure the model is of the wrong answer
  const loss = Math.max(wrongness, 0) + Math.log1p(Math.exp(-Math.abs(wrongness)));
  const probability = sigmoid(logit);
  const gradient = match ? -sigmoid(-logit) : probability;
  return { terms, similarity, scale, logit, match, probability, loss, gradient };
}

function sigmoid(z) {
  const decay = Math.exp(-Math.abs(z));
  return (z > 0 ? 1 : decay) / (1 + decay);
}

const rowsOf = (run, rank) => count(run.sizes[rank]).map((i) => run.firsts[rank] + i);
const pairsOf = (run, rank, chunk) => rowsOf(run, rank).flatMap((i) => rowsOf(run, chunk).map((j) => pairOf(run.numbers, i, j)));

/* The loss, computed again from the embeddings in the order of the run. */
const recomputed = (run) => lossAt(run, run.last, (block) => add(pairsOf(run, block.rank, block.chunk).map((pair) => pair.loss)));

/* What one rank puts into the last sum: loss, d_log_scale, d_bias of its pairs. */
function threeSums(run, rank) {
  const pairs = run.blocks.filter((e) => e.rank === rank).flatMap((e) => pairsOf(run, rank, e.chunk));
  return [add(pairs.map((p) => p.loss)), add(pairs.map((p) => p.gradient * p.similarity * p.scale)), add(pairs.map((p) => p.gradient))];
}

/* The gradient of a chunk's texts as far as some ranks have answered; not yet divided by the number of images. */
function gradientOfTexts(run, chunk, ranks) {
  return rowsOf(run, chunk).map((j) => count(run.width).map((d) => add(ranks.flatMap((rank) => rowsOf(run, rank).map((i) => {
    const pair = pairOf(run.numbers, i, j);
    return pair.scale * pair.gradient * run.numbers.images[i][d];
  })))));
}

/* The ranks whose answers a chunk's gradient holds, without its owner's own, which waits at home. */
const answered = (run, chunk, step) =>
  run.blocks.filter((e) => e.chunk === chunk && e.rank !== chunk && e.graded <= step).sort((a, b) => a.graded - b.graded).map((e) => e.rank);

/* Where a chunk is, or its gradient: the last that received one of them. */
function placeOf(run, chunk, step) {
  const came = run.events.filter((e) => e.kind === "recv" && e.chunk === chunk && e.step <= step);
  const latest = Math.max(-1, ...came.map((e) => e.step));
  const there = came.filter((e) => e.step === latest);
  return { rank: there.length ? there[0].rank : chunk, carries: there.map((e) => e.what) };
}

const digits = (x) => String(Number(x.toPrecision(15)));

/* For ui.perfetto.dev, as `mpi.trace.as_perfetto`: a lane a rank for blocks, another for messages, arrows between them. */
function asPerfetto(run) {
  const lanes = { block: 0, sum: 0, send: 1, recv: 2 };
  const name = (pid, tid, kind, title) => ({ ph: "M", name: kind, pid, tid, args: { name: title } });
  const out = count(run.world).flatMap((rank) => [name(rank, 0, "process_name", `rank ${rank}`),
    ...["computes", "sends", "receives"].map((title, tid) => name(rank, tid, "thread_name", title))]);
  const seen = new Map();
  for (const e of run.events) {
    const place = { pid: e.rank, tid: lanes[e.kind] };
    const title = { block: `block (${e.rank}, ${e.chunk})`, sum: "sum over ranks" }[e.kind] ?? `${e.kind} ${e.what} ${e.chunk}`;
    const [ts, dur] = [e.start * 1e6, Math.max((e.end - e.start) * 1e6, 0.001)];
    out.push({ ph: "X", name: title, cat: e.what || e.kind, ts, dur, args: { hop: e.hop, bytes: e.bytes, pairs: e.pairs, loss: e.loss }, ...place });
    if (e.kind !== "send" && e.kind !== "recv") continue;
    const [from, to] = e.kind === "send" ? [e.rank, e.peer] : [e.peer, e.rank];
    const key = `${from} ${to} ${e.what} ${e.chunk}`;
    seen.set(`${e.kind} ${key}`, (seen.get(`${e.kind} ${key}`) ?? 0) + 1);
    const point = e.kind === "send" ? { ph: "s", ts } : { ph: "f", bp: "e", ts: ts + dur };
    out.push({ name: e.what, cat: "message", id: `${key} ${seen.get(`${e.kind} ${key}`)}`, ...point, ...place });
  }
  return { traceEvents: out, displayTimeUnit: "ms" };
}
