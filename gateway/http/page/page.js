// The playground: sends searches to this gateway's HTTP API and shows what each stage made of them.
// Whatever comes from documents and responses enters the page as text nodes, never as HTML.

const ROWS = 10; // shown at first, and added by "Show more"
const CANDIDATES = 50; // the contract's default
const SNIPPET = 220; // characters, of which two lines show about the half
const SEARCHED = 5_000; // characters of a text in which the snippet is looked for
const GRPC_PORT = 50050; // default of GATEWAY_LISTEN

const SAMPLE = {
  query: "delete a directory and all its files",
  documents: [
    "shutil.rmtree: delete a whole directory tree, with all files and subdirectories in it.",
    "os.remove: delete one file. A directory is refused.",
    "os.rmdir: remove a directory, which must be empty.",
    "tempfile.TemporaryDirectory: create a directory that is deleted when the context ends.",
    "shutil.copytree: copy a whole directory tree to another place.",
    "os.listdir: list all files in a directory.",
    "dict.clear: delete all items of a dictionary.",
    "zipfile.extractall: unpack all files of an archive into a directory.",
  ],
};

const $ = (id) => document.getElementById(id);
const source = () => document.querySelector("input[name=source]:checked").value;
const plural = (count, noun) => `${number(count)} ${noun}${count === 1 ? "" : "s"}`;
const number = (value, digits = 0) =>
  value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
const duration = (ms) => (ms >= 1000 ? `${number(ms / 1000, 2)} s` : `${number(ms, ms < 10 ? 1 : 0)} ms`);

/** An element with properties and children; strings become text nodes. */
function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children.filter((child) => child !== null));
  return made;
}

// ---- The gateway -----------------------------------------------------------------------------------------------

class ApiError extends Error {
  constructor(title, message, details = []) {
    super(message);
    Object.assign(this, { title, details });
  }
}

/** The JSON answer of the gateway; a body makes it a POST. Throws ApiError, which says what to do. */
async function call(path, body, signal) {
  const headers = { Accept: "application/json" };
  if ($("token").value) headers.Authorization = `Bearer ${$("token").value}`;
  if (body) headers["Content-Type"] = "application/json";
  let response, answer;
  try {
    response = await fetch(path, {
      method: body ? "POST" : "GET",
      headers,
      body: body && JSON.stringify(body),
      signal,
      credentials: "omit",
    });
    answer = await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    if (!response) throw new ApiError("No answer", "The gateway cannot be reached. Is it still running?");
    throw new ApiError(`HTTP ${response.status}`, "The answer is not JSON. Is there a proxy before the gateway?");
  }
  if (response.ok) return answer;
  const problem = answer.error ?? answer;
  const details = [];
  if (response.status === 401) details.push("Enter a bearer token under Options.");
  const delay = response.headers.get("Retry-After");
  if (delay) details.push(`Try again in ${plural(Number(delay), "second")}.`);
  const title = String(problem.status ?? problem.code ?? `HTTP ${response.status}`);
  throw new ApiError(title, problem.message ?? "The request failed.", details);
}

/** Documents as they are pasted: separated by blank lines if there are any, else one per line. */
function pasted(text) {
  const parts = /\n\s*\n/.test(text.trim()) ? text.split(/\n\s*\n/) : text.split("\n");
  return parts.map((part) => part.trim()).filter(Boolean);
}

let weight = null; // of the first stage; null: the gateway's default

/** The form as a SearchRequest in proto JSON. All candidates are asked for: both columns need their scores. */
function searchRequest() {
  const request = { query: $("query").value };
  if (source() === "collection") {
    request.collection = { name: $("collection").value };
    if ($("filter").value.trim()) request.collection.filter = $("filter").value.trim();
  } else {
    request.documents = { documents: pasted($("documents").value).map((text) => ({ text })) };
  }
  if ($("instruction").value.trim()) request.instruction = $("instruction").value.trim();
  if ($("candidates").value) request.candidates = Number($("candidates").value);
  request.topN = request.candidates ?? CANDIDATES;
  if ($("rerank").value) request.rerank = $("rerank").value;
  if (weight !== null) request.retrievalWeight = weight;
  return request;
}

async function listCollections() {
  let names = [];
  let note = "There are no collections yet. Make one with: winnow ingest NAME FILE.jsonl";
  try {
    const found = (await call("v1/collections?page_size=1000")).collections ?? [];
    names = found.map(({ name, documentCount }) => ({ name, count: Number(documentCount ?? 0) }));
    if (names.length) note = "";
  } catch (error) {
    note = error.message;
  }
  const chosen = $("collection").value;
  $("collection").replaceChildren(
    ...names.map(
      ({ name, count }) => new Option(`${name} · ${plural(count, "document")}`, name, false, name === chosen),
    ),
  );
  $("collection").disabled = !names.length;
  $("collection-note").textContent = note;
  return names.length;
}

// ---- A search --------------------------------------------------------------------------------------------------

let running = null; // AbortController of the search under way; a newer search replaces it
let shown = null; // the last answer: { request, response, roundTrip }
let rows = ROWS;

async function search() {
  running?.abort();
  const own = (running = new AbortController());
  const request = searchRequest();
  setBusy(true);
  const began = performance.now();
  try {
    const response = await call("v1/search", request, own.signal);
    shown = { response, request, roundTrip: performance.now() - began };
    rows = ROWS;
    showError(null);
    showResponse();
    if (matchMedia("(max-width: 1099px)").matches) $("status").scrollIntoView();
  } catch (error) {
    if (own.signal.aborted) return;
    showError(error);
  }
  running = null;
  setBusy(false);
}

function setBusy(busy) {
  $("results").ariaBusy = String(busy);
  $("submit").textContent = busy ? "Searching…" : "Search";
}

function showError(error) {
  $("error").replaceChildren();
  if (!error) return;
  $("status").textContent = "";
  $("degraded").replaceChildren();
  $("found").hidden = true;
  $("empty").hidden = true;
  $("error").append(
    element(
      "div",
      { className: "message error" },
      element("p", {}, element("strong", {}, error.title ?? error.name)),
      element("p", {}, error.message),
      ...(error.details ?? []).map((line) => element("p", {}, line)),
    ),
  );
}

function showResponse() {
  const { response } = shown;
  const hits = response.hits ?? [];
  $("empty").hidden = true;
  $("found").hidden = false;
  $("stages").hidden = !hits.length;
  showDegradations(response.degradations ?? []);
  showWaterfall(response.timings ?? {});
  showModels(response);
  if (weight === null && response.rerankModel) {
    $("weight").value = response.retrievalWeight ?? 0;
    $("weight-value").textContent = `default (${number(response.retrievalWeight ?? 0, 2)})`;
  }
  showStages(hits);
}

const STAGES = { EMBED: "The embedding model", RERANK: "The reranker" };
const REASONS = {
  UNAVAILABLE: "could not be reached",
  DEADLINE: "did not have enough time",
  OVERLOADED: "has too much work",
  PARTIAL: "answered for a part of the documents only",
};
const INDEX_REASONS = {
  SHARD_UNAVAILABLE: "A part of the index did not answer: documents may be missing.",
  SHARD_INCOMPLETE: "The index has lost documents. Upsert them again.",
  RETRIEVE_OVERLOADED: "The index has too many requests: documents may be missing.",
};

/** A degradation's reason in words; a reason that this page does not know stays as it is. */
function inWords(reason) {
  if (INDEX_REASONS[reason]) return INDEX_REASONS[reason];
  const [, stage, kind] = /^(EMBED|RERANK)_(\w+)$/.exec(reason) ?? [];
  if (!REASONS[kind]) return `${reason}.`;
  const effect = stage === "RERANK" && kind !== "PARTIAL" ? ": the hits are in the order of the first stage" : "";
  return `${STAGES[stage]} ${REASONS[kind]}${effect}.`;
}

function showDegradations(degradations) {
  $("degraded").replaceChildren(
    ...degradations.map(({ reason, message }) =>
      element(
        "div",
        { className: "message warn" },
        element("p", {}, element("strong", {}, inWords(reason ?? ""))),
        element("p", {}, message ?? ""),
      ),
    ),
  );
}

function showWaterfall(timings) {
  const { embedMs = 0, retrieveMs = 0, rerankMs = 0, totalMs = 0 } = timings;
  const stages = [
    ["Embed", embedMs],
    ["Retrieve", retrieveMs],
    ["Rerank", rerankMs],
  ];
  const spent = embedMs + retrieveMs + rerankMs;
  const whole = Math.max(totalMs, spent, 0.001);
  let from = 0;
  const body = element("tbody");
  for (const [name, took] of [...stages, ["Other", Math.max(0, totalMs - spent)]]) {
    const bar = element("i", { className: name === "Other" ? "rest" : "", hidden: took === 0 });
    bar.style.setProperty("--from", `${(100 * from) / whole}%`);
    bar.style.setProperty("--share", `${(100 * took) / whole}%`);
    from += took;
    body.append(
      element(
        "tr",
        {},
        element("th", { scope: "row" }, name),
        element("td", { ariaHidden: "true" }, element("div", { className: "track" }, bar)),
        element("td", {}, took ? duration(took) : "–"),
      ),
    );
  }
  $("waterfall").replaceChildren(element("caption", { className: "hidden" }, "Time of each stage"), body);
  $("total").textContent = `${duration(totalMs)} in the gateway, ${duration(shown.roundTrip)} for this page`;
}

function showModels({ embedModel, embedUsage = {}, rerankModel, rerankUsage = {} }) {
  const name = (model) => (model ? [model.name, model.revision].filter(Boolean).join(" @ ") : "did not answer");
  const print = (model) => element("code", { title: model?.fingerprint ?? "" }, model?.fingerprint ?? "–");
  const hits = (usage) => usage.cacheHits ?? 0;
  const cached = (usage) => `${number(hits(usage))} of ${number(hits(usage) + (usage.cacheMisses ?? 0))}`;
  const tokens = (usage) => number(Number(usage.inputTokens ?? 0));
  const row = (label, first, second) =>
    element("tr", {}, element("th", { scope: "row" }, label), element("td", {}, first), element("td", {}, second));
  $("models").replaceChildren(
    element("tr", {}, element("td"), ...["First stage", "Reranker"].map((one) => element("th", { scope: "col" }, one))),
    row("Model", name(embedModel), name(rerankModel)),
    row("Fingerprint", print(embedModel), print(rerankModel)),
    row("Tokens", tokens(embedUsage), tokens(rerankUsage)),
    row("Cached", cached(embedUsage), cached(rerankUsage)),
  );
}

// ---- The two columns -------------------------------------------------------------------------------------------

/** Hits with their rank in both stages; `rise` is how many ranks the reranker lifted one. */
function ranked(hits) {
  return hits.map((hit, index) => {
    const first = hit.retrievalRank ?? index + 1;
    return { hit, key: String(index), first, final: index + 1, rise: first - (index + 1) };
  });
}

function showStages(hits) {
  const final = ranked(hits);
  const first = [...final].sort((a, b) => a.first - b.first);
  const reranked = hits.some((hit) => hit.rerankScore !== undefined);
  const words = queryWords(shown.request.query);
  const weightUsed = shown.response.retrievalWeight ?? 0;
  $("first").replaceChildren(...first.slice(0, rows).map((one) => card(one, words, false)));
  $("final").replaceChildren(...final.slice(0, rows).map((one) => card(one, words, true)));
  $("final-title").textContent = reranked ? "After reranking" : "Not reranked";
  $("formula").textContent = !reranked
    ? "the order of the first stage"
    : weightUsed
      ? `${number(weightUsed, 2)} × cosine + ${number(1 - weightUsed, 2)} × probability`
      : "probability that it answers";
  $("more").parentElement.hidden = rows >= hits.length;
  $("more").textContent = `Show ${Math.min(ROWS, hits.length - rows)} more`;
  showStatus(final);
  drawLines();
}

function showStatus(final) {
  if (!final.length) {
    const hint = shown.request.collection?.filter
      ? "No document matches the filter. A document without a member that the filter names does not match."
      : "No documents were found.";
    $("status").replaceChildren(element("strong", {}, "Nothing found. "), hint);
    return;
  }
  const moved = final.filter(({ rise }) => rise).length;
  const entered = final.slice(0, rows).filter(({ first }) => first > rows).length;
  const parts = [
    `in ${duration(shown.response.timings?.totalMs ?? 0)}`,
    moved ? `${number(moved)} moved` : "none moved",
  ];
  if (entered) parts.push(`${number(entered)} rose into the top ${rows}`);
  $("status").replaceChildren(element("strong", {}, plural(final.length, "candidate")), ` ${parts.join(" · ")}`);
}

/** A document in one of the columns. */
function card({ hit, key, first, final, rise }, words, isFinal) {
  const rank = isFinal ? final : first;
  const score = isFinal ? (hit.score ?? 0) : (hit.retrievalScore ?? 0);
  const text = hit.text ?? "";
  const title = shown.request.documents ? `Document ${Number(hit.id) + 1}` : hit.id; // pasted ones have no name
  const moved = rise > 0 ? `▲ ${rise}` : rise < 0 ? `▼ ${-rise}` : "=";
  const spoken = rise ? `${rise > 0 ? "up" : "down"} ${plural(Math.abs(rise), "rank")}` : "unmoved";
  const foot = element("div", { className: "foot" });
  const made = element(
    "li",
    { className: `hit${rise > 0 ? " up" : ""}` },
    element("span", { className: `rank${rank > 99 ? " long" : ""}` }, String(rank)),
    element("h4", { title }, title),
    element("span", { className: "score" }, number(score, 3)),
    element("div", { className: "text" }, ...marked(snippet(text, words), words)),
    foot,
  );
  made.dataset.key = key;
  if (!isFinal) {
    foot.append(final === first ? "stays" : `goes to ${final}`);
    return made;
  }
  foot.append(
    element("span", { className: "moved", ariaHidden: "true" }, moved),
    element("span", { className: "hidden" }, spoken),
    element("span", { className: "cosine" }, `cosine ${number(hit.retrievalScore ?? 0, 3)}`),
    element("span", {}, hit.rerankScore === undefined ? "not reranked" : `rerank ${number(hit.rerankScore, 3)}`),
    disclosure(made, hit, title, words),
  );
  return made;
}

/** A button that shows the whole text and the metadata below a card. */
function disclosure(owner, hit, title, words) {
  const full = element("div", { className: "full", id: `full-${owner.dataset.key}`, hidden: true, tabIndex: 0 });
  const button = element(
    "button",
    { type: "button", className: "link", ariaExpanded: "false" },
    "Text",
    element("span", { className: "hidden" }, ` of ${title}`),
  );
  button.setAttribute("aria-controls", full.id);
  button.addEventListener("click", () => {
    full.hidden = !full.hidden;
    button.ariaExpanded = String(!full.hidden);
    if (!full.childNodes.length) {
      full.append(...marked(hit.text ?? "", words));
      if (hit.metadataJson) full.append("\n\n", element("code", {}, hit.metadataJson));
    }
  });
  owner.append(full);
  return button;
}

/** Lines from each document's place in the first stage to its place after reranking. */
function drawLines() {
  const svg = $("lines");
  const { top, width } = svg.getBoundingClientRect();
  const [left, right] = [places("first", top), places("final", top)];
  const hits = ranked(shown?.response.hits ?? []).filter(({ first, final }) => Math.min(first, final) <= rows);
  const paths = hits.map(({ key, first, final, rise }) => {
    const [from, to] = [left(first), right(final)];
    const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
    path.setAttribute("d", `M0 ${from}C${width / 2} ${from} ${width / 2} ${to} ${width} ${to}`);
    path.classList.toggle("up", rise > 0);
    path.classList.toggle("partly", Math.max(first, final) > rows);
    path.dataset.key = key;
    return path;
  });
  // Those that rose are drawn last, over the others.
  svg.replaceChildren(...paths.sort((a, b) => a.classList.contains("up") - b.classList.contains("up")));
}

/** The height of a rank's line in a column; ranks that are not shown continue below its end. */
function places(list, top) {
  const boxes = [...$(list).children].map((one) => one.getBoundingClientRect());
  const closed = Math.min(...boxes.map((box) => box.height)); // a line meets an opened card where it was before
  const middles = boxes.map((box) => box.top - top + closed / 2);
  const pitch = boxes.length > 1 ? boxes[1].top - boxes[0].top : 0;
  return (rank) => middles[rank - 1] ?? middles.at(-1) + pitch * (rank - middles.length);
}

/** Highlights one document in both columns, and its line; null: none. */
function highlight(key) {
  $("lines").classList.toggle("focus", key !== null);
  for (const one of $("stages").querySelectorAll("[data-key]")) one.classList.toggle("on", one.dataset.key === key);
}

// ---- Matched words ---------------------------------------------------------------------------------------------

const COMMON = new Set(
  (
    "a an and are as at be by can do does for from how i in is it its of on or that the to what when where which who " +
    "why with"
  ).split(" "),
);
const segmenter = globalThis.Intl?.Segmenter && new Intl.Segmenter(undefined, { granularity: "word" });

/** The words of a text as [start, word], in any script. */
function wordsOf(text) {
  if (segmenter) return [...segmenter.segment(text)].filter((s) => s.isWordLike).map((s) => [s.index, s.segment]);
  return [...text.matchAll(/[\p{L}\p{N}]+/gu)].map((match) => [match.index, match[0]]);
}

/** A word without the endings of English grammar, so that "deletes" matches "delete". */
const stem = (word) => word.toLowerCase().replace(/(?<=\p{L}{3})(ies|es|s|ed|ing|e|y)$/u, "");

function queryWords(query) {
  return new Set(
    wordsOf(query)
      .map(([, word]) => word.toLowerCase())
      .filter((word) => !COMMON.has(word))
      .map(stem),
  );
}

/** The part of a text with the most words of the query. */
function snippet(text, words) {
  const flat = text.replace(/\s+/g, " ").trim();
  const found = wordsOf(flat.slice(0, SEARCHED))
    .map(([start, word]) => [start, stem(word)])
    .filter(([, word]) => words.has(word));
  let best = 0;
  let most = 0;
  for (const [start] of found) {
    const near = found.filter(([place]) => place >= start && place < start + SNIPPET / 2);
    const distinct = new Set(near.map(([, word]) => word)).size;
    if (distinct > most) [best, most] = [start, distinct];
  }
  if (best < SNIPPET / 3) return flat.slice(0, SNIPPET);
  const start = flat.lastIndexOf(" ", best - SNIPPET / 10) + 1;
  return `… ${flat.slice(start, start + SNIPPET)}`;
}

/** The text as nodes, with a <mark> for each word of the query. */
function marked(text, words) {
  const nodes = [];
  let end = 0;
  for (const [start, word] of wordsOf(text)) {
    if (!words.has(stem(word))) continue;
    nodes.push(text.slice(end, start), element("mark", {}, word));
    end = start + word.length;
  }
  nodes.push(text.slice(end));
  return nodes;
}

// ---- The request as code ---------------------------------------------------------------------------------------

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`; // for a POSIX shell

const CODE = {
  curl(request) {
    const token = $("token").value ? ' \\\n  -H "Authorization: Bearer $WINNOW_TOKEN"' : "";
    const url = new URL("v1/search", document.baseURI);
    const body = quoted(JSON.stringify(request, null, 2));
    return `curl ${url} -H 'Content-Type: application/json'${token} \\\n  -d ${body}`;
  },
  grpcurl(request) {
    const plain = location.protocol === "https:" ? "" : " -plaintext";
    const token = $("token").value ? ' -H "Authorization: Bearer $WINNOW_TOKEN"' : "";
    const method = "winnow.retrieval.v1.RetrievalService/Search";
    return `grpcurl${plain}${token} -d ${quoted(JSON.stringify(request, null, 2))} \\\n  ${grpcAddress()} ${method}`;
  },
  python: pythonCode,
};

const grpcAddress = () => `${location.hostname || "localhost"}:${GRPC_PORT}`;

function pythonCode(request) {
  const text = JSON.stringify; // a JSON string is a Python string
  const fields = [`query=${text(request.query)}`];
  if (request.collection) {
    const filter = request.collection.filter ? `, filter=${text(request.collection.filter)}` : "";
    fields.push(`collection=pb.CollectionSource(name=${text(request.collection.name)}${filter})`);
  } else {
    const documents = request.documents.documents.map((one) => `        pb.Document(text=${text(one.text)}),\n`);
    fields.push(`documents=pb.InlineDocuments(documents=[\n${documents.join("")}    ])`);
  }
  if (request.instruction) fields.push(`instruction=${text(request.instruction)}`);
  if (request.candidates) fields.push(`candidates=${request.candidates}`);
  fields.push(`top_n=${request.topN}`);
  if (request.rerank) fields.push(`rerank=pb.${request.rerank}`);
  if (request.retrievalWeight !== undefined) fields.push(`retrieval_weight=${request.retrievalWeight}`);
  const secure = location.protocol === "https:";
  const token = Boolean($("token").value);
  const channel = secure ? "secure_channel(address, grpc.ssl_channel_credentials())" : "insecure_channel(address)";
  return [
    ...(token ? ["import os", ""] : []),
    "import grpc",
    "from winnow.retrieval.v1 import retrieval_pb2 as pb",
    "from winnow.retrieval.v1 import retrieval_pb2_grpc",
    "",
    `address = "${grpcAddress()}"  # GATEWAY_LISTEN`,
    `retrieval = retrieval_pb2_grpc.RetrievalServiceStub(grpc.${channel})`,
    "request = pb.SearchRequest(",
    ...fields.map((field) => `    ${field},`),
    ")",
    ...(token ? ['metadata = [("authorization", f"Bearer {os.environ[\'WINNOW_TOKEN\']}")]'] : []),
    `response = retrieval.Search(request, timeout=30${token ? ", metadata=metadata" : ""})`,
    "for hit in response.hits:",
    '    print(f"{hit.score:.4f}  {hit.id}")',
  ].join("\n");
}

const tabs = [...document.querySelectorAll("[role=tab]")];

function showCode() {
  const chosen = tabs.find((tab) => tab.ariaSelected === "true");
  $("code").setAttribute("aria-labelledby", chosen.id);
  $("code").textContent = CODE[chosen.id.replace("tab-", "")](searchRequest());
}

function choose(tab) {
  for (const one of tabs) {
    one.ariaSelected = String(one === tab);
    one.tabIndex = one === tab ? 0 : -1;
  }
  showCode();
}

async function copy() {
  try {
    await navigator.clipboard.writeText($("code").textContent);
    $("copy").textContent = "Copied";
  } catch {
    getSelection().selectAllChildren($("code")); // without a secure origin there is no clipboard
    $("copy").textContent = "Press Ctrl-C";
  }
}

// ---- The form --------------------------------------------------------------------------------------------------

function showForm() {
  const inline = source() === "documents";
  $("documents-source").hidden = !inline;
  $("collection-source").hidden = inline;
  const count = pasted($("documents").value).length;
  $("documents-note").textContent = `${plural(count, "document")}. One per line, or separated by blank lines.`;
  $("copy").textContent = "Copy";
  showCode();
}

function setWeight(value) {
  weight = value;
  $("weight-value").textContent = value === null ? "default" : number(value, 2);
}

$("search").addEventListener("submit", (event) => {
  event.preventDefault();
  search();
});
document.addEventListener("input", showForm);
$("weight").addEventListener("input", () => {
  setWeight(Number($("weight").value));
  showForm();
});
$("weight").addEventListener("change", () => shown && search()); // scores are cached: this costs no model time
$("weight-default").addEventListener("click", () => {
  setWeight(null);
  showForm();
  if (shown) search();
});
$("token").addEventListener("change", listCollections);
$("more").addEventListener("click", () => {
  rows += ROWS;
  showStages(shown.response.hits);
});
$("copy").addEventListener("click", copy);
for (const tab of tabs) {
  tab.addEventListener("click", () => choose(tab));
  tab.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = tabs.at((tabs.indexOf(tab) + step) % tabs.length);
    choose(next);
    next.focus();
  });
}
for (const [type, leaves] of [
  ["pointerover", "pointerleave"],
  ["focusin", "focusout"],
]) {
  $("stages").addEventListener(type, (event) => highlight(event.target.closest(".hit")?.dataset.key ?? null));
  $("stages").addEventListener(leaves, () => highlight(null));
}
new ResizeObserver(drawLines).observe($("stages"));

$("query").value = SAMPLE.query;
$("documents").value = SAMPLE.documents.join("\n");
$("options").open = matchMedia("(min-width: 1100px)").matches;
setWeight(null);
showForm();
$("query").focus();
let untouched = true; // a slow list does not change what the user has chosen by then
document.addEventListener("input", () => (untouched = false), { once: true });
if ((await listCollections()) && untouched && !shown) document.querySelector("input[value=collection]").checked = true;
showForm();
