// A detector that amiss exported, run by Node.js: no Python, no native code.
//
//     amiss export part.amiss --to onnx --input original
//     npm install
//     node predict.mjs part.onnx photo.png
//
// Prints one JSON object: score, threshold, is_anomalous, the highest value of the map and where.
import { readFileSync } from "node:fs";
import * as ort from "onnxruntime-web";
import { PNG } from "pngjs";

// The manifest of amiss lies in the ONNX file itself, as the value of the metadata key "amiss":
// field 14 of the outermost protobuf message holds {1: key, 2: value}.
function readManifest(file) {
  for (const entry of fields(file, 14)) {
    const [key] = fields(entry, 1);
    if (key.toString() === "amiss") return JSON.parse([...fields(entry, 2)][0].toString());
  }
  throw new Error("this file was not written by amiss");
}

function* fields(bytes, wanted) {
  let at = 0;
  const varint = () => {
    for (let value = 0, scale = 1; ; scale *= 128) {
      const byte = bytes[at++];
      value += (byte & 127) * scale;
      if (byte < 128) return value;
    }
  };
  while (at < bytes.length) {
    const tag = varint();
    const kind = tag % 8;
    if (kind === 2) {
      const length = varint();
      if (Math.floor(tag / 8) === wanted) yield bytes.subarray(at, at + length);
      at += length;
    } else if (kind === 0) varint();
    else at += kind === 1 ? 8 : 4;
  }
}

// (1, height, width, 3) uint8 RGB, the contract of the graph. PNG hands over RGBA.
function readImage(path) {
  const { width, height, data } = PNG.sync.read(readFileSync(path));
  const pixels = new Uint8Array(width * height * 3);
  for (let i = 0; i < width * height; i++) pixels.set(data.subarray(4 * i, 4 * i + 3), 3 * i);
  return new ort.Tensor("uint8", pixels, [1, height, width, 3]);
}

const [modelPath, imagePath] = process.argv.slice(2);
const model = readFileSync(modelPath);
const { calibration } = readManifest(model);
const session = await ort.InferenceSession.create(model);
const { score, anomaly_map: map } = await session.run({ images: readImage(imagePath) });

const highest = map.data.reduce((best, value, i) => (value > map.data[best] ? i : best), 0);
const width = map.dims[2];
console.log(
  JSON.stringify({
    score: score.data[0],
    threshold: calibration.threshold,
    is_anomalous: score.data[0] > calibration.threshold,
    map: { height: map.dims[1], width, peak: map.data[highest],
           row: Math.floor(highest / width), column: highest % width },
  }),
);
