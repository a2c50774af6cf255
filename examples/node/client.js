// Runs the server's part of a bundle once, through the plain protobuf messages of offload.proto.
//
//   npm install && node client.js 127.0.0.1:50051 net.bundle 'pool1=<f4:1x64x56x56:pool1.bin'
//
// For each tensor that the plan uploads: its name, dtype, shape and a file with its little-endian
// bytes. Prints one JSON line for each answer, with the bytes in base64.
import { readFileSync } from "node:fs";
import { crc32 } from "node:zlib";
import grpc from "@grpc/grpc-js";
import loader from "@grpc/proto-loader";
import protobuf from "protobufjs";

const PROTO = new URL("../../runtimes/offload_runtimes/protocol/offload.proto", import.meta.url).pathname;
const [address, bundle, ...tensors] = process.argv.slice(2);
const { digest } = JSON.parse(readFileSync(`${bundle}/manifest.json`));
const { downloads } = JSON.parse(readFileSync(`${bundle}/plan.json`));
const { Runtime } = grpc.loadPackageDefinition(loader.loadSync(PROTO, { longs: String })).onnx_offload.v1;
const Layout = protobuf.loadSync(PROTO).lookupType("onnx_offload.v1.Layout");

// The checksum of Tensor: a CRC-32 that goes on over small tensors; of large ones, the words are added.
function checksum(frame, plan, layout, data) {
  const head = crc32(Buffer.concat([Buffer.from(`${frame}|${plan}|`), layout]));
  if (data.length <= 16384) return String(crc32(data, head));
  const words = new BigUint64Array(Math.ceil(data.length / 8));
  new Uint8Array(words.buffer).set(data);
  return String(BigInt.asUintN(64, words.reduce((sum, word) => sum + word, BigInt(head))));
}

function message(text) {
  const [, name, dtype, shape, file] = text.match(/^(.*)=([^:]*):([^:]*):(.*)$/);
  const sizes = shape ? shape.split("x").map(Number) : [];
  const layout = Layout.encode({ name, dtype, shape: sizes, encoding: "raw" }).finish();
  const data = readFileSync(file);
  return { tensor: { frame: 1, plan: 0, layout, checksum: checksum(1, 0, layout, data) }, data };
}

function fail(sentence) {
  console.error(`error: ${sentence}`);
  process.exit(1);
}

const limit = { "grpc.max_receive_message_length": -1, "grpc.max_send_message_length": -1 };
const call = new Runtime(address, grpc.credentials.createInsecure(), limit).Session();
const missing = new Set(downloads.map((send) => send.tensor));
call.on("data", ({ welcome, failure, tensor, data }) => {
  if (failure) return fail(failure.sentence);
  if (welcome) for (const text of tensors) call.write(message(text));
  if (!tensor) return;
  const { name, dtype, shape } = Layout.decode(tensor.layout);
  console.log(JSON.stringify({ name, dtype, shape: shape.map(Number), base64: data.toString("base64") }));
  missing.delete(name);
  if (!missing.size) call.end();
});
call.on("error", (error) => fail(error.message));
call.write({ hello: { protocol: 5, bundle: digest } });
