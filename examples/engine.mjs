// SigLIP's forward pass in plain JavaScript, as somebody would port it: no library, weights in Hugging Face's layout.
//
//   siglip-ref probe export probe --model mu/16
//   node engine.mjs probe answer.safetensors
//   siglip-ref check dump answer.safetensors --probe probe --forward-only
import { readFileSync, writeFileSync } from "node:fs";

// A safetensors file: 8 bytes of length, a JSON header, then the numbers. -> { name: { shape, data } }
function readTensors(path) {
  const file = readFileSync(path);
  const start = 8 + Number(file.readBigUInt64LE(0));
  const header = JSON.parse(file.subarray(8, start).toString("utf8"));
  const kinds = { F32: Float32Array, I64: BigInt64Array };
  delete header.__metadata__;
  return Object.fromEntries(Object.entries(header).map(([name, { dtype, shape, data_offsets: [from, to] }]) => {
    const bytes = file.buffer.slice(file.byteOffset + start + from, file.byteOffset + start + to);
    return [name, { shape, data: new kinds[dtype](bytes) }];
  }));
}

function writeTensors(path, tensors) {
  const header = {}, parts = [];
  let end = 0;
  for (const [name, { shape, data }] of Object.entries(tensors)) {
    const bytes = Buffer.from(Float32Array.from(data).buffer);
    header[name] = { dtype: "F32", shape, data_offsets: [end, (end += bytes.length)] };
    parts.push(bytes);
  }
  const text = Buffer.from(JSON.stringify(header));
  const size = Buffer.alloc(8);
  size.writeBigUInt64LE(BigInt(text.length));
  writeFileSync(path, Buffer.concat([size, text, ...parts]));
}

// x (rows, in) -> (rows, out); weight is (out, in), as Hugging Face keeps it
function linear(x, weight, bias) {
  const [outputs, inputs] = weight.shape, rows = x.length / inputs, out = new Float64Array(rows * outputs);
  for (let r = 0; r < rows; r++)
    for (let o = 0; o < outputs; o++) {
      let sum = bias.data[o];
      for (let i = 0; i < inputs; i++) sum += x[r * inputs + i] * weight.data[o * inputs + i];
      out[r * outputs + o] = sum;
    }
  return out;
}

function layerNorm(x, weight, bias, eps = 1e-6) {
  const width = weight.data.length, out = new Float64Array(x.length);
  for (let at = 0; at < x.length; at += width) {
    const row = x.subarray(at, at + width);
    const mean = row.reduce((a, b) => a + b) / width;
    const variance = row.reduce((a, b) => a + (b - mean) ** 2, 0) / width;
    for (let i = 0; i < width; i++)
      out[at + i] = ((row[i] - mean) / Math.sqrt(variance + eps)) * weight.data[i] + bias.data[i];
  }
  return out;
}

const gelu = (x) => x.map((v) => 0.5 * v * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (v + 0.044715 * v ** 3))));
const add = (x, y) => x.map((v, i) => v + y[i]);

// queries (B, N, C) on keys and values (B, M, C); no mask
function attend(q, k, v, batch, heads, width) {
  const size = width / heads, N = q.length / batch / width, M = k.length / batch / width;
  const out = new Float64Array(q.length);
  for (let b = 0; b < batch; b++)
    for (let h = 0; h < heads; h++)
      for (let n = 0; n < N; n++) {
        const at = (b * N + n) * width + h * size, scores = new Float64Array(M);
        for (let m = 0; m < M; m++)
          for (let i = 0; i < size; i++) scores[m] += (q[at + i] * k[(b * M + m) * width + h * size + i]) / Math.sqrt(size);
        const top = Math.max(...scores), shares = scores.map((s) => Math.exp(s - top));
        const sum = shares.reduce((a, c) => a + c);
        for (let m = 0; m < M; m++)
          for (let i = 0; i < size; i++) out[at + i] += (shares[m] / sum) * v[(b * M + m) * width + h * size + i];
      }
  return out;
}

const [folder, answer] = process.argv.slice(2);
const config = JSON.parse(readFileSync(`${folder}/model/config.json`, "utf8"));
const weights = readTensors(`${folder}/model/model.safetensors`);
const inputs = readTensors(`${folder}/inputs.safetensors`);
const pixels = inputs.pixel_values, tokens = inputs.tokens, batch = pixels.shape[0];
const shown = {};
const w = (name) => weights[name] ?? (() => { throw new Error(`no tensor ${name}`); })();
const dense = (x, name) => linear(x, w(`${name}.weight`), w(`${name}.bias`));
const norm = (x, name) => layerNorm(x, w(`${name}.weight`), w(`${name}.bias`));
const mlp = (x, name) => dense(gelu(dense(x, `${name}.fc1`)), `${name}.fc2`);
const show = (name, shape, data) => { shown[name] = { shape: [batch, ...shape], data }; return data; };

function encoder(x, tower, model, { num_hidden_layers: depth, num_attention_heads: heads, hidden_size: width }) {
  const shape = [x.length / batch / width, width];
  show(`${tower}/stem`, shape, x);
  for (let block = 0; block < depth; block++) {
    const layer = `${model}.encoder.layers.${block}`, name = `${tower}/block${String(block).padStart(2, "0")}`;
    const y = norm(x, `${layer}.layer_norm1`);
    const [q, k, v] = ["q", "k", "v"].map((part) => dense(y, `${layer}.self_attn.${part}_proj`));
    x = add(x, dense(attend(q, k, v, batch, heads, width), `${layer}.self_attn.out_proj`));
    show(`${name}/+attn`, shape, x);
    x = show(`${name}/+mlp`, shape, add(x, mlp(norm(x, `${layer}.layer_norm2`), `${layer}.mlp`)));
  }
  return show(`${tower}/norm`, shape, norm(x, `${model}.${tower === "image" ? "post" : "final"}_layer${tower === "image" ? "norm" : "_norm"}`));
}

// patches: each a row in the order channel, row, column, as the convolution's weight has them
function patches({ patch_size: patch, hidden_size: width }) {
  const [, channels, height, across] = pixels.shape, kernel = w("vision_model.embeddings.patch_embedding.weight");
  const flat = [];
  for (let b = 0; b < batch; b++)
    for (let top = 0; top + patch <= height; top += patch)
      for (let left = 0; left + patch <= across; left += patch)
        for (let c = 0; c < channels; c++)
          for (let y = 0; y < patch; y++)
            for (let x = 0; x < patch; x++)
              flat.push(pixels.data[((b * channels + c) * height + top + y) * across + left + x]);
  const shaped = { shape: [width, channels * patch * patch], data: kernel.data };
  return linear(Float64Array.from(flat), shaped, w("vision_model.embeddings.patch_embedding.bias"));
}

function withPositions(x, name) {
  const table = w(name).data;
  return x.map((value, i) => value + table[i % (x.length / batch)]);
}

function pooledImage(x, { num_attention_heads: heads, hidden_size: width }) {
  const head = "vision_model.head", fused = w(`${head}.attention.in_proj_weight`), bias = w(`${head}.attention.in_proj_bias`);
  const part = (i) => [
    { shape: [width, width], data: fused.data.subarray(i * width * width, (i + 1) * width * width) },
    { data: bias.data.subarray(i * width, (i + 1) * width) },
  ];
  const probe = Float64Array.from({ length: batch * width }, (_, i) => w(`${head}.probe`).data[i % width]);
  const mixed = attend(linear(probe, ...part(0)), linear(x, ...part(1)), linear(x, ...part(2)), batch, heads, width);
  const out = dense(mixed, `${head}.attention.out_proj`);
  return show("image/pool", [width], add(out, mlp(norm(out, `${head}.layernorm`), `${head}.mlp`)));
}

function unit(x, name) {
  const width = x.length / batch, out = new Float64Array(x.length);
  for (let b = 0; b < batch; b++) {
    const row = x.subarray(b * width, (b + 1) * width), length = Math.sqrt(row.reduce((a, v) => a + v * v, 0));
    row.forEach((v, i) => { out[b * width + i] = v / length; });
  }
  return show(`${name}/embed`, [width], out);
}

const { vision_config: vision, text_config: text } = config;
const seen = encoder(withPositions(patches(vision), "vision_model.embeddings.position_embedding.weight"), "image", "vision_model", vision);
const image = unit(pooledImage(seen, vision), "image");

const length = tokens.shape[1], width = text.hidden_size, table = w("text_model.embeddings.token_embedding.weight").data;
const words = new Float64Array(batch * length * width);
tokens.data.forEach((id, at) => words.set(table.subarray(Number(id) * width, (Number(id) + 1) * width), at * width));
const read = encoder(withPositions(words, "text_model.embeddings.position_embedding.weight"), "text", "text_model", text);
const last = new Float64Array(batch * width);
for (let b = 0; b < batch; b++) last.set(read.subarray(((b + 1) * length - 1) * width, (b + 1) * length * width), b * width);
show("text/pool", [width], last);
const caption = unit(show("text/head", [w("text_model.head.bias").shape[0]], dense(last, "text_model.head")), "text");

const scale = Math.exp(w("logit_scale").data[0]), shift = w("logit_bias").data[0], D = image.length / batch;
const logits = new Float64Array(batch * batch);
for (let i = 0; i < batch; i++)
  for (let j = 0; j < batch; j++) {
    let sum = 0;
    for (let d = 0; d < D; d++) sum += image[i * D + d] * caption[j * D + d];
    logits[i * batch + j] = scale * sum + shift;
  }
show("logits", [batch], logits);
writeTensors(answer, shown);
