"use strict";

/* Broken rings: each steps beside the right one, and shows where it goes wrong; then the checker's words on it. */

const RANKS = 4;

/* Up to a hop: what one block of the broken ring was computed with. Word "" if that is right. */
function fateOf(broken, rank, chunk, hop) {
  const due = (chunk - rank + RANKS) % RANKS;
  const met = broken.meetings.filter(([r, h, owner]) => r === rank && owner === chunk && h <= hop);
  if (!met.length) return { word: due <= hop ? "never computed" : "", loss: null };
  const strangers = met.filter(([, , , actual]) => actual !== chunk).map(([, , , actual]) => actual);
  const value = add(met.map((one) => one[4]));
  const word = met.length > 1 ? "computed twice" : !strangers.length ? "" : strangers[0] === -1 ? "with zeros" : strangers[0] === -2 ? "with mixed texts" : `with texts ${strangers[0]}`;
  const right = openRun("blocking", RANKS).blocks.find((e) => e.rank === rank && e.chunk === chunk).loss;
  const off = !word && Math.abs(value - right) > 1e-9;
  return { word: off ? "wrong matches" : word, loss: value };
}

/* The first hop at which a block is wrong; after all hops if none is. */
function firstWrong(broken) {
  const wrongAt = (hop) => count(RANKS).some((rank) => count(RANKS).some((chunk) => fateOf(broken, rank, chunk, hop).word));
  return count(RANKS).find(wrongAt) ?? RANKS;
}

function makeBreaks(host, breaks) {
  const state = { name: "none", hop: RANKS };
  const range = el("input", { type: "range", min: 0, max: RANKS, "aria-label": "hop of both rings", on: { input: () => at(Number(range.value)) } });
  const said = el("span", { class: "faint" });
  const button = (label, sign, by) => el("button", { type: "button", "aria-label": label, on: { click: () => at(state.hop + by) } }, sign);
  const controls = el("div", { class: "controls" }, button("one hop back, both rings", "\u25c0", -1), range, button("one hop on, both rings", "\u25b6", 1), said);
  const rings = el("div", { class: "pair" });
  const after = el("div", {});
  host.replaceChildren(el("div", { class: "two" }, el("div", {}, controls, rings), after));

  function at(hop) {
    state.hop = Math.max(0, Math.min(RANKS, hop));
    const broken = breaks.find((one) => one.name === state.name);
    range.value = state.hop;
    const first = broken ? firstWrong(broken) : RANKS + 1;
    const where = state.hop === RANKS ? "home, and the sum" : `hop ${state.hop}`;
    said.textContent = where;
    range.setAttribute("aria-valuetext", where);
    const words = !broken ? "" : first < RANKS ? `Goes wrong at hop ${first}.` : `All blocks are right. It goes wrong after hop ${RANKS - 1}.`;
    rings.replaceChildren(blocksOf(null, "right"), ...(broken ? [blocksOf(broken, "broken")] : []), el("p", { class: `where ${state.hop >= first ? "bad" : "faint"}` }, words));
  }

  function blocksOf(broken, name) {
    const run = openRun("blocking", RANKS);
    const squares = count(RANKS).flatMap((rank) => [el("span", { class: "faint side" }, `rank ${rank}`), ...count(RANKS).map((chunk) => {
      const hop = (chunk - rank + RANKS) % RANKS;
      const right = { word: "", loss: hop <= state.hop ? run.blocks.find((e) => e.rank === rank && e.chunk === chunk).loss : null };
      const { word, loss } = broken ? fateOf(broken, rank, chunk, state.hop) : right;
      const empty = loss === null && !word;
      return el("div", { class: `block${word ? " wrong" : empty ? " empty" : ""}${hop === state.hop ? " now" : ""}`, style: `--hue: ${hue(chunk)}` }, el("b", {}, loss === null ? "\u2013" : short(loss, 2)), el("small", {}, word));
    })]);
    return el("figure", { class: name }, el("figcaption", {}, name === "right" ? "the ring as it is" : "the broken ring"),
      el("div", { class: "blocks" }, el("span"), ...count(RANKS).map((chunk) => el("span", { class: "faint" }, `texts ${chunk}`)), ...squares));
  }

  function show(name) {
    state.name = name;
    const broken = breaks.find((one) => one.name === name);
    host.dataset.diagnosis = broken?.diagnosis ?? "";
    after.replaceChildren(el("div", { class: "wide" }, ownersTable(broken)), lossLine(broken), verdictCard(broken));
    at(RANKS);
  }

  return { state, show, at };
}

/* How far each gradient is off at its owner. */
function ownersTable(broken) {
  const names = count(RANKS).map((rank) => `rank ${rank}`);
  const parts = [["∂ images", "d_image_embed"], ["∂ texts", "d_text_embed"], ["∂ log_scale", "d_log_scale"], ["∂ bias", "d_bias"]];
  const mark = ([error, factor]) => {
    if (error <= 1e-12) return el("td", { class: "good" }, "✓");
    const words = factor ? `× ${Number(factor.toFixed(4))}` : error >= 0.005 ? `${(100 * error).toFixed(0)} %` : `${Number((100 * error).toPrecision(1))} %`;
    return el("td", { class: "bad" }, factor ? words : `✗ ${words}`);
  };
  return el("table", { class: "owners" },
    el("caption", {}, "Error of each gradient, at its owner"),
    el("thead", {}, el("tr", {}, el("td"), ...names.map((n) => el("th", { scope: "col" }, n)))),
    el("tbody", {}, ...parts.map(([label, key]) => el("tr", {}, el("th", { scope: "row" }, label), ...names.map((_, rank) => mark(broken ? broken.harm[key][rank] : [0, 1]))))));
}

function lossLine(broken) {
  const run = openRun("blocking", RANKS);
  const [value, right] = broken ? [broken.harm.loss, broken.harm["right loss"]] : [run.loss, run.loss];
  const near = Math.abs(value - right) <= 1e-12 * right;
  return el("p", { class: "total" }, "loss ", el("output", { title: digits(value), "data-exact": digits(value) }, value.toFixed(4)), el("small", { class: near ? "good" : "bad" }, near ? " ✓ right" : ` ✗ not ${right.toFixed(4)}`));
}

function verdictCard(broken) {
  if (!broken) return el("div", { class: "card verdict" }, el("p", {}, "Nothing is broken yet. Choose a mistake above: each is a real ring with one change. It ran on the toy, and the checker judged it."));
  const named = (name) => name.replace("image_embed", "∂ image_embed").replace("text_embed", "∂ text_embed").replace("log_scale", "∂ log_scale").replace(/^bias$/, "∂ bias");
  const row = ([name, verdict, error, , ratio]) => el("tr", { class: verdict === "FAIL" ? "bad" : "good" }, el("td", {}, named(name)), el("td", {}, error.toExponential(1)), el("td", {}, ratio.toFixed(4)), el("td", {}, verdict));
  return el("div", { class: "card verdict bad" },
    el("p", { class: "faint" }, ...nobreak(minus(broken.told))),
    el("pre", { class: "diff", tabindex: "0", role: "group", "aria-label": `the change in ${broken.file}` }, el("span", { class: "faint" }, broken.file), el("del", {}, ...broken.old.split("\n").map((line) => el("span", { class: "line" }, line))), el("ins", {}, broken.new.split("\n").map((line) => `+ ${line}`).join("\n"))),
    el("p", { class: "faint" }, broken.asked),
    el("p", { class: "diagnosis" }, el("b", {}, broken.diagnosis === "convention" ? broken.verdict : `${broken.verdict}  ${broken.diagnosis}`)),
    el("p", {}, ...nobreak(broken.evidence)),
    el("p", {}, el("b", {}, "repair: "), ...nobreak(broken.repair)),
    broken.here ? el("p", {}, el("b", {}, "in this ring: "), ...nobreak(broken.here)) : null,
    broken.seen ? el("p", { class: "faint" }, ...nobreak(`reports: ${broken.seen}`)) : null,
    el("details", {}, el("summary", {}, "its table"), el("div", { class: "wide" }, el("table", {}, el("thead", {}, el("tr", {}, ...["tensor", "error", "ratio", "verdict"].map((h) => el("th", { scope: "col" }, h)))), el("tbody", {}, ...broken.rows.map(row))))));
}
