// What pages do beyond what forms can: live progress, files that are dropped, chats that are streamed, lines to copy.

// Progress: the page says where its fragment and its events are; each event renews the fragment.
let isLeaving = false; // a form was sent, and its answer is awaited
const ended = ["done", "failed", "stopped", "died"];

// What goes on elsewhere stands at the head of each page, and is looked at again every few seconds.
const busy = document.querySelector("[data-busy]");
const lookAround = async () => {
  if (!busy || document.hidden || busy.contains(document.activeElement)) return;
  const answer = await fetch(`${busy.dataset.busy}?at=${encodeURIComponent(location.pathname)}`).catch(() => null);
  const html = answer?.ok ? await answer.text() : null;
  if (html !== null && html !== busy.dataset.was) busy.innerHTML = busy.dataset.was = html;
};
setInterval(lookAround, 5000);
document.addEventListener("visibilitychange", lookAround);

// A server that stays away: its buttons would lead nowhere.
let away = null;
const gone = (isGone) => {
  document.querySelector("[data-gone]").hidden = !isGone;
  for (const each of document.querySelectorAll("[data-live], [data-busy]")) each.inert = isGone;
};
for (const live of document.querySelectorAll("[data-live]")) {
  if (ended.includes(live.dataset.state)) continue;
  const say = document.querySelector("[data-say]");
  let events = null, isOver = false, isRenewing = false, isOld = false, said = 0;
  const renew = async () => {
    const answer = await fetch(live.dataset.live).catch(() => null); // the server is away: its events come again with it
    if (!answer?.ok) return;
    const open = [...live.querySelectorAll("details")].map((each) => each.open);
    const focused = live.contains(document.activeElement) ? document.activeElement.textContent : null;
    live.innerHTML = await answer.text(); // rendered by the server, where all text is escaped
    copyable(live);
    live.querySelectorAll("details").forEach((each, i) => { if (i < open.length) each.open = open[i]; });
    if (focused) [...live.querySelectorAll("button, a, summary")].find((each) => each.textContent === focused)?.focus();
    if (say && (isOver || Date.now() - said > 10000)) {
      said = Date.now();
      say.textContent = live.querySelector("[data-summary]")?.textContent ?? "";
    }
  };
  const soon = async () => {
    isOld = true;
    if (isRenewing) return;
    isRenewing = true;
    for (let pause = 100; isOld;) {
      await new Promise((done) => setTimeout(done, pause));
      isOld = false;
      const begun = performance.now();
      await renew();
      pause = Math.min(300, Math.max(100, 2 * (performance.now() - begun))); // the processor is the training's
    }
    isRenewing = false;
  };
  const listen = () => { // a tab that nobody sees needs no connection, of which a browser has six
    events?.close();
    clearTimeout(away);
    away = null;
    if (document.hidden || isOver) return;
    events = new EventSource(live.dataset.events);
    events.addEventListener("open", () => { clearTimeout(away); away = null; gone(false); });
    events.addEventListener("error", () => {
      if (events.readyState === EventSource.CONNECTING) away ??= setTimeout(gone, 3000, true); // it tries each second
    });
    events.addEventListener("news", soon);
    events.addEventListener("state", (event) => {
      isOver = ended.includes(event.data);
      if (isOver) events.close();
      if (isOver && live.dataset.then !== undefined) {
        if (!isLeaving) location.reload(); // else what was sent ended it, and leads on
      }
      else soon();
      lookAround();
    });
  };
  document.addEventListener("visibilitychange", listen);
  listen();
}

// A forecast holds for what was chosen when it was made; what is changed since makes it old, and its buttons with it.
for (const place of document.querySelectorAll("[data-of]")) {
  const form = document.getElementById(place.dataset.of), forecast = place.querySelector("[data-forecast]");
  const chosen = () => new URLSearchParams(new FormData(form)).toString();
  const was = chosen();
  form.addEventListener("input", () => {
    forecast.inert = chosen() !== was;
    place.querySelector("[data-old]").hidden = !forecast.inert || !forecast.childElementCount;
  });
}

// Files: dropped or chosen, sent as they are.
for (const drop of document.querySelectorAll("[data-upload]")) {
  const input = drop.querySelector("input[type=file]");
  const told = drop.querySelector("[data-told]");
  const send = async (file) => {
    told.textContent = `${file.name} …`;
    const request = new XMLHttpRequest();
    request.open("POST", drop.dataset.upload + encodeURIComponent(file.name));
    request.setRequestHeader("content-type", "application/octet-stream");
    request.upload.onprogress = (event) => { told.textContent = `${file.name}: ${Math.floor((100 * event.loaded) / event.total)} %`; };
    request.onload = () => {
      if (request.status === 200) location.assign(JSON.parse(request.responseText).page);
      const isText = request.getResponseHeader("content-type")?.startsWith("text/plain");
      if (request.status !== 200) told.textContent = isText ? request.responseText : drop.dataset.failed;
    };
    request.onerror = () => { told.textContent = drop.dataset.failed; };
    request.send(file);
  };
  const chosen = () => { if (input.files[0]) send(input.files[0]); };
  input.addEventListener("change", chosen);
  chosen(); // before this script was here
  for (const name of ["dragover", "dragleave", "drop"]) {
    drop.addEventListener(name, (event) => {
      event.preventDefault();
      drop.classList.toggle("over", name === "dragover");
      if (name === "drop" && event.dataTransfer.files[0]) send(event.dataTransfer.files[0]);
    });
  }
}

// Lines to copy.
function copyable(root) {
  for (const block of root.querySelectorAll("pre.copy")) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = document.body.dataset.copy;
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(block.textContent);
      button.textContent = document.body.dataset.copied;
    });
    block.after(button);
  }
}
copyable(document);

// What was sent is not sent again by a second click.
document.addEventListener("submit", (event) => {
  if (event.defaultPrevented || (event.submitter?.formMethod || event.target.method) !== "post") return;
  if (event.target.dataset.sent) event.preventDefault();
  else isLeaving = true;
  event.target.dataset.sent = "yes";
});

// A server that is being loaded: the page comes again once that is over.
for (const wait of document.querySelectorAll("[data-wait]")) {
  const look = async () => {
    try {
      const answer = await fetch(wait.dataset.wait);
      const now = answer.ok ? await answer.json() : null;
      if (now && now.state !== "loading") return location.reload();
      if (now) wait.querySelector("[data-seconds]").textContent = now.seconds;
    } catch { /* the page's server is away: it is asked again */ }
    setTimeout(look, 1000);
  };
  addEventListener("load", () => setTimeout(look, 1000)); // what is not there yet is not loaded again
}

// Chats: all models are asked at one time, and their answers are shown as they come. What was said is kept here alone,
// and sent along; each model goes on from its own answers.
for (const chat of document.querySelectorAll("[data-chat]")) {
  const form = chat.querySelector("[data-turns] ~ form"), leave = chat.querySelector("[data-leave]");
  const say = chat.querySelector("[data-say]"), anew = chat.querySelector("[data-anew]");
  const turns = JSON.parse(chat.dataset.history); // of each question, pairs of a model and its answer; if it was alone
  const kept = `chat ${chat.dataset.chat}`; // by what the tab knows what was said, when the page comes again
  const acting = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069]/g;
  const shown = (text) => text.replace(acting, (sign) => "\\u" + sign.charCodeAt(0).toString(16).padStart(4, "0"));
  let leaving = null;
  const failed = (note, error) => {
    note.textContent = chat.dataset.failed;
    if (error instanceof TypeError) return; // nobody is there to say more
    const said = document.createElement("span");
    said.setAttribute("lang", "en");
    said.textContent = ` ${shown(error.message)}`;
    note.append(said);
  };
  const answer = async (section, body, signal) => {
    const box = section.querySelector("[data-answer]"), note = section.querySelector("[data-note]");
    const model = section.dataset.model;
    let text = "", rest = "";
    const take = (line) => {
      if (!line.startsWith("data: {")) return;
      const frame = JSON.parse(line.slice(6));
      if (frame.error) throw new Error(frame.error.message);
      const choice = frame.choices[0];
      if (choice?.delta?.content) box.textContent = shown(text += choice.delta.content);
      if (choice?.finish_reason === "length") note.textContent = chat.dataset.cut;
    };
    const messages = (body.alone ? [] : turns).flatMap(([prompt, answers]) => {
      const own = Object.fromEntries(answers)[model];
      return own ? [{ role: "user", content: prompt }, { role: "assistant", content: own }] : [];
    });
    messages.push({ role: "user", content: body.prompt });
    try {
      const reply = await fetch(`${chat.dataset.chat}/answer`, {
        method: "POST", headers: { "content-type": "application/json" }, signal,
        body: JSON.stringify({ ...body, messages, model }),
      });
      if (!reply.ok) throw new Error((await reply.json().catch(() => null))?.error?.message ?? "");
      const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
      for (let part = await reader.read(); !part.done; part = await reader.read()) {
        const lines = (rest + part.value).split("\n");
        rest = lines.pop();
        lines.forEach(take);
      }
    } catch (error) {
      if (error.name !== "AbortError") failed(note, error);
    }
    return [model, text];
  };
  const begun = (prompt) => { // a place for a question and its answers
    const made = chat.querySelector("template").content.firstElementChild.cloneNode(true);
    made.dataset.turn = turns.length;
    made.querySelector("[data-number]").textContent = turns.length + 1;
    made.querySelector("[data-prompt]").textContent = shown(prompt);
    chat.querySelector("[data-turns]").append(made);
    return made;
  };
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (leaving) return;
    leaving = new AbortController();
    const given = Object.fromEntries(new FormData(form));
    const body = { prompt: given.prompt, temperature: given.temperature, seed: given.seed, alone: given.alone === "yes" };
    const place = begun(given.prompt);
    leave.hidden = anew.hidden = false;
    form.elements.prompt.value = "";
    place.scrollIntoView({ block: "nearest" });
    const sections = [...place.querySelectorAll("[data-model]")];
    const answers = await Promise.all(sections.map((each) => answer(each, body, leaving.signal)));
    leaving = null;
    leave.hidden = true;
    say.textContent = "";
    say.textContent = chat.dataset.done;
    if (answers.some((each) => each[1])) {
      turns.push([given.prompt, answers, body.alone]);
      try { sessionStorage.setItem(kept, JSON.stringify(turns)); } catch { /* it is full: a reload loses what was said */ }
    } else form.elements.prompt.value ||= given.prompt; // to be asked again
    judged(place, answers);
  });
  const judged = (place, answers) => {
    const better = place.querySelector("[data-better]");
    if (better) better.hidden = new Set(answers.map((each) => each[1])).size < 2;
  };
  anew.addEventListener("click", () => sessionStorage.removeItem(kept));
  if (!turns.length) {
    for (const [prompt, answers, alone] of JSON.parse(sessionStorage.getItem(kept) ?? "[]")) {
      const place = begun(prompt), sections = [...place.querySelectorAll("[data-model]")];
      if (String(sections.map((each) => each.dataset.model)) !== String(answers.map((each) => each[0]))) {
        place.remove(); // it was said by other models
        break;
      }
      sections.forEach((each, i) => { each.querySelector("[data-answer]").textContent = shown(answers[i][1]); });
      judged(place, answers);
      anew.hidden = false;
      turns.push([prompt, answers, alone]);
    }
  }
  leave.addEventListener("click", () => leaving?.abort());
  chat.addEventListener("submit", async (event) => {
    const better = event.target.closest("[data-better]");
    if (!better) return;
    event.preventDefault();
    const turn = better.closest("[data-turn]").dataset.turn, history = JSON.stringify(turns);
    const reply = await fetch(better.action, {
      method: "POST", headers: { "content-type": "application/json" },
      body: JSON.stringify({ history, turn, chosen: event.submitter.value }),
    }).catch(() => null);
    better.querySelector("[data-told]").textContent = reply?.ok ? chat.dataset.kept : chat.dataset.failed;
    better.querySelector("fieldset").disabled = Boolean(reply?.ok); // once is enough
  });
}
