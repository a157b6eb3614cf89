"use strict";

/* The losses and a small training, in plain numbers; `siglip_ref` is what the tests compare them with. */

const dot = (a, b) => a.reduce((sum, x, d) => sum + x * b[d], 0);
const unit = (row) => {
  const length = Math.sqrt(dot(row, row));
  return row.map((x) => x / length);
};
const softplus = (z) => Math.max(z, 0) + Math.log1p(Math.exp(-Math.abs(z)));

/* One sigmoid question for each pair. Loss and all gradients, as `sr.sigmoid_loss`. */
function sigmoidLoss(images, texts, logScale, bias) {
  const pairs = images.length;
  const scale = Math.exp(logScale);
  const similarities = images.map((x) => texts.map((y) => dot(x, y)));
  const losses = similarities.map((row, i) => row.map((s, j) => softplus((i === j ? -1 : 1) * (scale * s + bias))));
  const slopes = similarities.map((row, i) => row.map((s, j) => (i === j ? -sigmoid(-(scale * s + bias)) : sigmoid(scale * s + bias))));
  const width = images[0].length;
  return {
    similarities, losses, slopes,
    loss: add(losses.map(add)) / pairs,
    dImages: images.map((_, i) => count(width).map((d) => (scale / pairs) * add(texts.map((y, j) => slopes[i][j] * y[d])))),
    dTexts: texts.map((_, j) => count(width).map((d) => (scale / pairs) * add(images.map((x, i) => slopes[i][j] * x[d])))),
    dLogScale: (scale / pairs) * add(slopes.map((row, i) => add(row.map((g, j) => g * similarities[i][j])))),
    dBias: add(slopes.map(add)) / pairs,
  };
}

/* CLIP's loss: which of all texts, which of all images; the mean of both cross entropies. */
function softmaxLoss(images, texts, logScale) {
  const scale = Math.exp(logScale);
  const logits = images.map((x) => texts.map((y) => scale * dot(x, y)));
  const lse = (numbers) => {
    const top = Math.max(...numbers);
    return top + Math.log(add(numbers.map((z) => Math.exp(z - top))));
  };
  const columns = texts.map((_, j) => logits.map((row) => row[j]));
  const each = logits.map((row, i) => (lse(row) + lse(columns[i])) / 2 - row[i]);
  return { loss: add(each) / images.length, each };
}

/* What a fresh model shows, all of whose similarities are 0: `sr.expected_loss`. */
const expectedLoss = (pairs, bias) => softplus(-bias) + (pairs - 1) * softplus(bias);

/* Two towers of one layer each, learning by plain gradient descent: each state is what `step` makes of the one before. */
function beginTraining({ kernels }, bias) {
  return { image: kernels.image, text: kernels.text, logScale: Math.log(10), bias };
}

const tower = (inputs, kernel) => inputs.map((row) => count(kernel[0].length).map((e) => add(row.map((x, d) => x * kernel[d][e]))));

function measured({ images, texts }, state) {
  const raw = [tower(images, state.image), tower(texts, state.text)];
  const rows = raw.map((of) => of.map(unit));
  const found = sigmoidLoss(rows[0], rows[1], state.logScale, state.bias);
  const pairs = images.length;
  const matches = add(found.similarities.map((row, i) => row[i]));
  const right = found.similarities.filter((row, i) => row.every((s, j) => j === i || s < row[i])).length;
  return { raw, rows, found, loss: found.loss, matching: matches / pairs, others: (add(found.similarities.map(add)) - matches) / (pairs * (pairs - 1)), accuracy: right / pairs };
}

function step(data, state, rate, { raw, rows, found } = measured(data, state)) {
  const learned = (kernel, inputs, k, gradient) => {
    const d = gradient.map((g, i) => {
      const along = dot(rows[k][i], g);
      const length = Math.sqrt(dot(raw[k][i], raw[k][i]));
      return g.map((x, e) => (x - rows[k][i][e] * along) / length);
    });
    return kernel.map((row, a) => row.map((w, e) => w - rate * add(inputs.map((x, i) => x[a] * d[i][e]))));
  };
  return {
    image: learned(state.image, data.images, 0, found.dImages),
    text: learned(state.text, data.texts, 1, found.dTexts),
    logScale: state.logScale - rate * found.dLogScale,
    bias: state.bias - rate * found.dBias,
  };
}
