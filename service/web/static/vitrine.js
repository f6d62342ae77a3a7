// The page to try the service on. It uses the public API only: what it can do, every client can.

const $ = (id) => document.getElementById(id);
const SMALL = 160; // pictures up to this side are shown with their pixels

function make(tag, attributes = {}, ...children) {
  const node = tag.startsWith("svg:")
    ? document.createElementNS("http://www.w3.org/2000/svg", tag.slice(4))
    : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

// A service that others reach asks for a key. It is kept until the tab is closed.
const KEY = "vitrine-api-key";

async function send(path, options = {}) {
  const key = sessionStorage.getItem(KEY);
  const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
  const answer = await fetch(path, { ...options, headers });
  if (answer.ok) return answer;
  const problem = await answer.json().catch(() => null);
  if (answer.status === 401 && (await askForKey(problem?.detail))) return send(path, options);
  throw new Error(problem?.detail ?? `The service answered ${answer.status}.`);
}

/** Show the field for the key; whether one was given. */
function askForKey(reason) {
  const dialog = $("key-dialog");
  if (dialog.open) return Promise.resolve(false);
  $("key-reason").textContent = reason ?? "";
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      const given = dialog.returnValue === "use" && $("key").value.trim();
      if (given) sessionStorage.setItem(KEY, given);
      $("key").value = "";
      resolve(Boolean(given));
    }, { once: true });
  });
}

const call = async (path, options) => (await send(path, options)).json();

/** Fetch a medium, which an <img> could not do with a key, and return a URL for it. */
const medium = async (path) => URL.createObjectURL(await (await send(path)).blob());

function say(id, text, bad = false) {
  $(id).textContent = text;
  $(id).classList.toggle("bad", bad);
}

const percent = (score) => `${(100 * score).toFixed(score > 0.0995 ? 0 : 1)} %`;
const note = (text, kind = "") => make("p", { class: `note ${kind}` }, text);

// Health

async function watchHealth() {
  const shown = $("health");
  try {
    const answer = await fetch("/readyz");
    const state = await answer.json();
    shown.className = `health ${state.ready ? "ready" : ""}`;
    shown.textContent = state.ready ? "ready" : state.missing[0];
  } catch {
    shown.className = "health down";
    shown.textContent = "not reachable";
  }
  setTimeout(watchHealth, 5000);
}

// Look

let current = null; // the file on the stage
let asked = 0; // only the newest question may show its answer

const question = () => document.querySelector("[name=question]:checked").value;
const isVideo = (file) => file.type.startsWith("video/");

function show(file) {
  current = file;
  const stage = $("stage");
  for (const old of stage.querySelectorAll("img, video")) URL.revokeObjectURL(old.src);
  const medium = make(isVideo(file) ? "video" : "img", { alt: "What was sent" });
  medium.src = URL.createObjectURL(file);
  if (isVideo(file)) {
    medium.muted = true;
    medium.controls = true;
    document.querySelector("[value=deepfake]").checked = true;
  } else {
    medium.onload = () => medium.classList.toggle("small", medium.naturalWidth <= SMALL);
  }
  stage.replaceChildren(medium);
  stage.hidden = false;
  $("invitation").hidden = true;
  ask();
}

async function ask() {
  describe();
  if (!current) return;
  const turn = ++asked;
  const task = question();
  $("answer").replaceChildren();
  $("stage").querySelector("svg")?.remove();
  say("look-status", "looking…");
  const started = performance.now();
  try {
    const type = current.type || "application/octet-stream";
    const answer = await call(`/v1/${task}`, {
      method: "POST",
      body: current,
      headers: { "Content-Type": type },
    });
    if (turn !== asked) return;
    say("look-status", `${answer.model}, ${Math.round(performance.now() - started)} ms`);
    $("answer").replaceChildren(...(task === "classify" ? labels(answer) : verdict(answer)));
    if (answer.warning) $("answer").append(note(answer.warning, "warning"));
  } catch (error) {
    if (turn === asked) say("look-status", error.message, true);
  }
}

function labels(answer) {
  const list = make("ol", { class: "labels" });
  for (const { label, score } of answer.predictions) {
    const fill = make("span");
    list.append(
      make("li", {},
        make("span", { class: "name" }, label),
        make("span", { class: "score" }, percent(score)),
        make("span", { class: "bar" }, fill)),
    );
    requestAnimationFrame(() => requestAnimationFrame(() => { fill.style.width = `${100 * score}%`; }));
  }
  return [list];
}

const VERDICTS = { fake: "Looks manipulated", real: "Looks real", not_applicable: "No face found" };
const DOUBTS = {
  no_face: "no face was found",
  few_frames: "the face is in few frames",
  too_short: "the clip is very short",
  small_face: "the face is small",
  blurry: "the face is blurry",
};

function verdict(answer) {
  const head = make("p", { class: `verdict ${answer.verdict}` },
    make("strong", {}, VERDICTS[answer.verdict] ?? answer.verdict));
  if (answer.score !== null) {
    head.append(`${percent(answer.score)} likely manipulated (threshold ${percent(answer.threshold)})`);
  }
  const shown = [head];
  const moments = answer.timeline.filter((moment) => moment.score !== null);
  if (answer.timeline.length > 1) shown.push(chart(answer));
  if (moments.length) point(answer, moments[0]);
  const doubts = answer.quality.map((doubt) => DOUBTS[doubt] ?? doubt);
  if (doubts.length) shown.push(note(`Be careful: ${doubts.join(", ")}.`));
  const people = answer.faces.length;
  if (people > 1) {
    const each = answer.faces.map((face) => percent(face.score)).join(", ");
    shown.push(note(`${people} people seen, each on their own: ${each}.`));
  }
  return shown;
}

/** Draw the boxes of one sampled frame over the medium, and go there in a video. */
function point(answer, moment) {
  const stage = $("stage");
  const { width, height } = answer.sampling;
  stage.querySelector("svg")?.remove();
  const overlay = make("svg:svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none" });
  for (const face of moment.faces) {
    const [left, top, right, bottom] = face.box;
    overlay.append(make("svg:rect", {
      class: `box ${face.score >= answer.threshold ? "fake" : "real"}`,
      x: left, y: top, width: right - left, height: bottom - top, rx: 4,
    }));
  }
  stage.append(overlay);
  const video = stage.querySelector("video");
  if (video) {
    video.pause();
    video.currentTime = moment.t;
    video.onplay = () => overlay.remove();
  }
}

function chart(answer) {
  const [width, height, left, bottom, top] = [560, 190, 42, 24, 10];
  const end = Math.max(...answer.timeline.map((moment) => moment.t), 0.001);
  const x = (t) => left + (t / end) * (width - left - 10);
  const y = (score) => top + (1 - score) * (height - top - bottom);
  const drawing = make("svg:svg", {
    class: "chart", viewBox: `0 0 ${width} ${height}`, role: "img",
    "aria-label": "Score over time: click a point to see its frame",
  });
  for (const level of [0, 0.5, 1]) {
    drawing.append(
      make("svg:line", { class: "grid", x1: left, x2: width - 10, y1: y(level), y2: y(level) }),
      make("svg:text", { x: left - 6, y: y(level) + 4, "text-anchor": "end" }, `${100 * level}%`),
    );
  }
  for (const { start_s: from, end_s: to } of answer.segments) {
    drawing.append(make("svg:rect", {
      class: "segment", x: x(from) - 4, y: top, width: x(to) - x(from) + 8, height: height - top - bottom, rx: 4,
    }));
  }
  const threshold = y(answer.threshold);
  drawing.append(make("svg:line", { class: "threshold", x1: left, x2: width - 10, y1: threshold, y2: threshold }));
  let path = "";
  let gap = true;
  for (const { t, score } of answer.timeline) {
    if (score !== null) path += `${gap ? "M" : "L"}${x(t).toFixed(1)} ${y(score).toFixed(1)}`;
    gap = score === null;
  }
  drawing.append(make("svg:path", { class: "line", d: path }));
  for (const moment of answer.timeline) {
    if (moment.score === null) continue;
    const kind = moment.score >= answer.threshold ? "fake" : "real";
    const dot = make("svg:circle", { class: kind, cx: x(moment.t), cy: y(moment.score), r: 5 },
      make("svg:title", {}, `${moment.t.toFixed(2)} s: ${percent(moment.score)}`));
    dot.addEventListener("click", () => {
      for (const other of drawing.querySelectorAll(".now")) other.classList.remove("now");
      dot.classList.add("now");
      point(answer, moment);
    });
    drawing.append(dot);
  }
  drawing.append(
    make("svg:text", { x: left, y: height - 6 }, "0 s"),
    make("svg:text", { x: width - 10, y: height - 6, "text-anchor": "end" }, `${end.toFixed(1)} s`),
  );
  return drawing;
}

function drawShape() {
  const side = 64;
  const canvas = make("canvas", { width: side, height: side });
  const pen = canvas.getContext("2d");
  const pick = (list) => list[Math.floor(Math.random() * list.length)];
  pen.fillStyle = pick(["#d9d5cc", "#20262b", "#f1efe9"]);
  pen.fillRect(0, 0, side, side);
  pen.fillStyle = pick(["#d62828", "#2a6fdb", "#2f9e44", "#f2b705"]);
  const [cx, cy, r] = [32, 32, 15 + 6 * Math.random()];
  const corners = pick([0, 3, 4]);
  pen.beginPath();
  if (corners === 0) pen.arc(cx, cy, r, 0, 2 * Math.PI);
  for (let i = 0; i < corners; i += 1) {
    const angle = (2 * Math.PI * i) / corners - Math.PI / 2 + (corners === 4 ? Math.PI / 4 : 0);
    pen.lineTo(cx + r * Math.cos(angle), cy + r * Math.sin(angle));
  }
  pen.fill();
  document.querySelector("[value=classify]").checked = true;
  canvas.toBlob((blob) => show(new File([blob], "shape.png", { type: "image/png" })));
}

// Make

let job = null;

async function generate(event) {
  event.preventDefault();
  const body = { prompt: $("prompt").value };
  for (const name of ["n", "steps", "seed"]) if ($(name).value) body[name] = Number($(name).value);
  busy(true);
  say("make-status", "sending…");
  try {
    job = await call("/v1/generate/image", {
      method: "POST",
      body: JSON.stringify(body),
      headers: { "Content-Type": "application/json", "Idempotency-Key": crypto.randomUUID?.() ?? `${Math.random()}` },
    });
    $("cancel").hidden = false;
    const state = await follow(job);
    if (state === "succeeded") await hang(job.links.result);
    else if (state === "canceled") say("make-status", "canceled");
    else {
      const ended = await call(job.links.self);
      say("make-status", ended.error?.message ?? `the job is ${state}`, true);
    }
  } catch (error) {
    say("make-status", error.message, true);
  } finally {
    busy(false);
  }
}

/** Show a job's events until its final state, and return that. A stream that breaks is resumed. */
async function follow({ links }) {
  let seen = "";
  for (;;) {
    try {
      for await (const { id, event, data } of events(links.events, seen)) {
        seen = id ?? seen;
        if (event === "progress") {
          const { percent: done, stage, step, steps } = data;
          $("progress").value = done;
          say("make-status", steps ? `${stage}, step ${step} of ${steps}` : stage);
        } else if (data.state === "queued" || data.state === "running") {
          say("make-status", data.state === "queued" ? "waiting for its turn…" : "starting…");
        } else {
          return data.state;
        }
      }
    } catch (error) {
      if (!(error instanceof TypeError)) throw error; // refused; what broke on the way is a TypeError
    }
    await new Promise((resolve) => setTimeout(resolve, 2000));
  }
}

/** Yield server-sent events. EventSource would do, but it cannot send a key. */
async function* events(path, after) {
  const headers = { Accept: "text/event-stream", ...(after && { "Last-Event-ID": after }) };
  const answer = await send(path, { headers });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const blocks = (text + value.replaceAll("\r", "")).split("\n\n");
    text = blocks.pop();
    for (const block of blocks) {
      const fields = block.split("\n").map((line) => line.match(/^(\w+): ?(.*)$/)).filter(Boolean);
      const found = Object.fromEntries(fields.map(([, name, field]) => [name, field]));
      if (found.data) yield { ...found, data: JSON.parse(found.data) };
    }
  }
}

async function hang(path) {
  const result = await call(path, { headers: { Accept: "application/json" } });
  const { images, model, prompt, warning } = result.document;
  const urls = await Promise.all(
    images.map((image) => medium(result.files.find((file) => file.name === image.name).url)),
  );
  const pictures = images.map((image, i) => {
    const url = urls[i];
    const kind = image.width <= SMALL ? "small" : "";
    return make("figure", {},
      make("a", { href: url, target: "_blank", rel: "noopener" }, make("img", { src: url, alt: prompt, class: kind })),
      make("figcaption", {}, `seed ${image.seed}`));
  });
  $("gallery").prepend(note(`“${prompt}”`), ...pictures);
  if (warning && !$("gallery").querySelector(".warning")) $("gallery").append(note(warning, "warning"));
  say("make-status", `made by ${model}`);
}

function busy(on) {
  $("start").disabled = on;
  $("progress").hidden = !on;
  $("progress").value = 0;
  if (!on) $("cancel").hidden = true;
}

// The same from a shell

function describe() {
  const file = current?.name ?? "photo.jpg";
  $("curl").textContent = `curl -F file=@${file} ${location.origin}/v1/${question()}`;
}

// Wiring

$("file").addEventListener("change", (event) => event.target.files[0] && show(event.target.files[0]));
$("sample").addEventListener("click", drawShape);
for (const choice of document.querySelectorAll("[name=question]")) choice.addEventListener("change", ask);
for (const kind of ["dragover", "dragleave", "drop"]) {
  $("drop").addEventListener(kind, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop" && event.dataTransfer.files[0]) show(event.dataTransfer.files[0]);
  });
}
document.addEventListener("paste", (event) => {
  const [file] = event.clipboardData.files;
  if (file) show(file);
});
$("make").addEventListener("submit", generate);
$("models").addEventListener("click", (event) => {
  event.preventDefault(); // a link sends no key
  medium("/v1/models").then((url) => location.assign(url), () => {});
});
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  $("key-dialog").close("use");
});
$("key-cancel").addEventListener("click", () => $("key-dialog").close(""));
$("cancel").addEventListener("click", () => job && call(job.links.self, { method: "DELETE" }).catch(() => {}));
describe();
watchHealth();
