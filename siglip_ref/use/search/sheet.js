const cards = [...document.querySelectorAll("ol a")];
const row = (card) => Math.round(card.getBoundingClientRect().top + scrollY);
const middle = (card) => { const box = card.getBoundingClientRect(); return box.left + box.width / 2; };
function beyond(at, step) {
  const rows = [...new Set(cards.map(row))].sort((a, b) => a - b);
  const wanted = rows[rows.indexOf(row(cards[at])) + step];
  const there = cards.map((card, i) => i).filter((i) => row(cards[i]) === wanted);
  const far = (i) => Math.abs(middle(cards[i]) - middle(cards[at]));
  return there.length ? there.reduce((a, b) => (far(b) < far(a) ? b : a)) : at;
}
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  const at = cards.indexOf(document.activeElement);
  const moves = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: cards.length - 1 };
  if (at >= 0) Object.assign(moves, { ArrowDown: beyond(at, 1), ArrowUp: beyond(at, -1) });
  const to = cards[at < 0 && event.key.startsWith("Arrow") ? 0 : moves[event.key]];
  if (!to) return;
  event.preventDefault();
  to.focus();
});
