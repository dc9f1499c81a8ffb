// The page of `nanogpt page`: loads the model and continues prompts with it, by transformers.js.
// A page on file:// may read nothing but scripts. So all files come as scripts that call `put`, with their contents
// gzipped and in base64; transformers.js finds them by its `env.fetch`. FACTS, in facts.js, is about the model.

const $ = (id) => document.getElementById(id);
const pieces = {}, files = {}; // by name: base64, then bytes
let library, tokenizer, model, stopper, started = performance.now();

function put(name, piece) {
  (pieces[name] ??= []).push(piece);
}

function load(script) {
  return new Promise((resolve, reject) => {
    const failed = () => reject(new Error(`${script} is missing`));
    document.head.append(Object.assign(document.createElement("script"), { src: script, onload: resolve, onerror: failed }));
  });
}

async function unpack(name) {
  const zipped = pieces[name].map((piece) => Uint8Array.from(atob(piece), (c) => c.charCodeAt(0)));
  delete pieces[name];
  const stream = new Blob(zipped).stream().pipeThrough(new DecompressionStream("gzip"));
  files[name] = new Uint8Array(await new Response(stream).arrayBuffer());
}

const moduleOf = (name) => URL.createObjectURL(new Blob([files[name]], { type: "text/javascript" }));

async function loadModel() {
  for (const [i, script] of FACTS.scripts.entries()) {
    await load(script);
    $("progress").value = (i + 1) / (FACTS.scripts.length + 1);
  }
  await Promise.all(Object.keys(pieces).map(unpack));
  library = await import(moduleOf("transformers.js"));
  const { env } = library;
  Object.assign(env, { allowLocalModels: true, allowRemoteModels: false, useBrowserCache: false, useWasmCache: false });
  env.fetch = async (url) => {
    const name = Object.keys(files).find((name) => String(url).endsWith(`/${name}`));
    return name ? new Response(files[name]) : new Response(null, { status: 404 });
  };
  const wasm = { numThreads: 1, wasmBinary: files["ort.wasm"], wasmPaths: { mjs: moduleOf("ort.mjs") } };
  Object.assign(env.backends.onnx.wasm, wasm);
  tokenizer = await library.AutoTokenizer.from_pretrained("model");
  model = await library.AutoModelForCausalLM.from_pretrained("model", { dtype: "fp32", device: "wasm" });
  const forward = model.forward.bind(model);
  let painted = 0;
  model.forward = async (inputs) => { // the browser shows nothing while WebAssembly computes
    if (performance.now() - painted > 30) {
      await new Promise((resolve) => setTimeout(resolve));
      painted = performance.now();
    }
    return forward(inputs);
  };
}

// Continues the tokens `ids` by `length`, fewer if the text ends; calls `show` with each. A full context goes on with
// its newer half, as in nanogpt.sample.
async function generate(ids, length, temperature, show) {
  const { Tensor, TextStreamer, InterruptableStoppingCriteria } = library;
  const size = FACTS.block_size, ends = [model.generation_config?.eos_token_id ?? []].flat();
  let context = ids.slice(-size), left = length, last;
  stopper = new InterruptableStoppingCriteria();
  const streamer = () => new TextStreamer(tokenizer, {
    skip_prompt: true, callback_function: () => {},
    token_callback_function: ([token]) => { last = Number(token); left--; show(last); },
  });
  while (left > 0 && !stopper.interrupted && !ends.includes(last)) {
    if (context.length > size) context = context.slice(-Math.max(1, size >> 1));
    const shape = [1, context.length];
    const output = await model.generate({
      input_ids: new Tensor("int64", BigInt64Array.from(context, BigInt), shape),
      attention_mask: new Tensor("int64", new BigInt64Array(context.length).fill(1n), shape),
      max_new_tokens: Math.min(left, size + 1 - context.length),
      do_sample: temperature > 0, temperature: temperature || 1, top_k: 0,
      stopping_criteria: stopper, streamer: streamer(),
    });
    context = output.tolist()[0].map(Number);
  }
}

async function write() {
  const read = tokenizer.encode($("prompt").value, { add_special_tokens: false });
  const prompt = read.filter((id) => id !== undefined && id !== null); // characters without a token
  if (!prompt.length) return say("The prompt is empty: give at least one character that the model knows.");
  const length = $("length").valueAsNumber; // NaN for an empty field
  if (!(length >= 1)) return say("Give the number of tokens to write: 1 or more.");
  const left_out = read.length - prompt.length;
  const decode = (ids) => tokenizer.decode(ids, { skip_special_tokens: true });
  const ids = [...prompt], start = performance.now(), shown = document.createTextNode("");
  const beginning = Object.assign(document.createElement("b"), { textContent: decode(prompt) });
  $("text").replaceChildren(beginning, shown);
  let first;
  const show = (token) => {
    ids.push(token);
    shown.data = decode(ids).slice(beginning.textContent.length).replace(/\ufffd$/, ""); // half a character
    first ??= performance.now() - start;
  };
  busy(true);
  say("writing …");
  try {
    await generate(prompt, length, Number($("temperature").value), show);
    const count = ids.length - prompt.length, seconds = (performance.now() - start) / 1000;
    const note = left_out ? ` ${left_out} characters of the prompt are unknown to the model and were left out.` : "";
    const latency = count ? `, the first after ${first.toFixed(0)} ms` : ""; // it may be stopped before
    say(`${count} tokens in ${seconds.toFixed(1)} s: ${(count / seconds).toFixed(0)} a second${latency}.${note}`);
  } catch (error) {
    say(`It failed: ${error.message}`);
    throw error;
  } finally {
    busy(false);
  }
}

function busy(writing) {
  $("write").disabled = writing;
  $("stop").hidden = !writing;
}

function say(text) {
  $("state").textContent = text;
}

function describe() {
  document.title = $("title").textContent = FACTS.title;
  $("about").textContent = FACTS.about;
  $("prompt").value = FACTS.prompt;
  for (const [name, value] of FACTS.facts) {
    $("facts").append(Object.assign(document.createElement("dt"), { textContent: name }),
      Object.assign(document.createElement("dd"), { textContent: value }));
  }
  if (FACTS.curve) {
    $("curve").src = "curve.png";
    $("training").hidden = false;
  }
}

describe();
$("form").onsubmit = (event) => { event.preventDefault(); write(); };
$("stop").onclick = () => stopper.interrupt();
$("temperature").oninput = () => { $("shown").textContent = Number($("temperature").value).toFixed(2); };
loadModel().then(() => {
  $("progress").hidden = true;
  busy(false);
  say(`ready after ${((performance.now() - started) / 1000).toFixed(1)} s`);
}, (error) => {
  say(`The model cannot be loaded: ${error.message}`);
  throw error;
});
