// What ComfyUI's importA1111 makes of texts: of each the settings of the graph's nodes, by the kind of node, or null where
// it makes no graph. make_infotext.py gives {source, texts, samplers} to the standard input.
import { text } from "node:stream/consumers";

const { source, texts, samplers } = JSON.parse(await text(process.stdin));
const CHOICES = { ckpt_name: ["base.safetensors", "merged.safetensors"], sampler_name: samplers };
const WIDGETS = [
  "ckpt_name", "text", "seed", "steps", "cfg", "sampler_name", "scheduler", "width", "height", "lora_name",
  "strength_model", "strength_clip",
]; // of any node here

function createNode(type) {
  const widgets = WIDGETS.map((name) => ({ name, value: null, options: { values: CHOICES[name] ?? [] } }));
  return { type, widgets, connect() {} };
}

globalThis.LiteGraph = { createNode };
globalThis.api = { getEmbeddings: async () => [] };
console.warn = () => {}; // it names the settings that it has no use for

const alone = source.replace(/^import .*$/gm, "");
const { importA1111 } = await import("data:text/javascript," + encodeURIComponent(alone));
const found = [];
for (const one of texts) {
  const nodes = [];
  await importA1111({ clear() {}, arrange() {}, add: (node) => nodes.push(node) }, one);
  const settings = {};
  for (const { type, widgets } of nodes)
    for (const { name, value } of widgets) if (value !== null) ((settings[type] ??= {})[name] ??= []).push(value);
  found.push(nodes.length ? settings : null);
}
console.log(JSON.stringify(found));
