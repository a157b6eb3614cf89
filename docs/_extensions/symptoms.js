"use strict";

/* Entries of the catalogue whose words are those of a question; rare words weigh more. */

const symptomRows = JSON.parse(document.getElementById("symptom-data").textContent);
const SAME = { bigger: "large", huge: "large", high: "large", low: "small", tiny: "small", grad: "gradient", gradients: "gradient", embeddings: "embedding", gpus: "ranks", gpu: "ranks", devices: "ranks", processes: "ranks", w: "ranks", multiplied: "times", divided: "1/w", factor: "times", temperature: "scale", softmax: "clip" };
const wordsOf = (text) => (text.toLowerCase().match(/[a-z0-9/]+/g) ?? []).map((word) => SAME[word] ?? word);
const symptomWords = symptomRows.map(([id, text, shows]) => wordsOf(`${id.replaceAll("-", " ")} ${text} ${shows}`));
const alike = (a, b) => a === b || (Math.min(a.length, b.length) >= 4 && (a.startsWith(b) || b.startsWith(a)));
const holds = (words, wanted) => words.some((word) => alike(word, wanted));
/* Two words of the question that stand side by side in the entry mean more than both apart. */
const together = (words, a, b) => words.some((word, k) => k > 0 && ((alike(words[k - 1], a) && alike(word, b)) || (alike(words[k - 1], b) && alike(word, a))));

function symptomSearch(question) {
  const wanted = [...new Set(wordsOf(question))].filter((word) => word.length > 2 && !["the", "are", "too", "and", "not", "but", "mine"].includes(word));
  const weights = wanted.map((word) => Math.log((symptomRows.length + 1) / (symptomWords.filter((words) => holds(words, word)).length + 0.5)));
  const scored = symptomRows.map((row, k) => [wanted.reduce((sum, word, n) => sum + (holds(symptomWords[k], word) ? weights[n] : 0) + (n > 0 && together(symptomWords[k], wanted[n - 1], word) ? 3 : 0), 0), row]);
  return scored.filter(([score]) => score > 0).sort((a, b) => b[0] - a[0]).slice(0, 8).map(([, row]) => row);
}

document.getElementById("symptom").addEventListener("input", (event) => {
  document.getElementById("symptom-found").replaceChildren(...symptomSearch(event.target.value).map(([id, text, shows, href]) => {
    const link = Object.assign(document.createElement("a"), { href, textContent: text });
    const item = document.createElement("li");
    item.append(link, `: ${shows} (${id})`);
    return item;
  }));
});
