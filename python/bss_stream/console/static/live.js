// The live page: one message a second from the server, and what it says put in place as text.

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 240;
const HEIGHT = 44;
const EVENTS_SHOWN = 16;
const number = new Intl.NumberFormat("en").format;

const byId = (id) => document.getElementById(id);

function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function linked(text, path) {
  const link = element("a", text);
  link.href = path;
  return link;
}

function drawn(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function spark(svg, counts) {
  const most = Math.max(1, ...counts);
  const step = WIDTH / (counts.length - 1);
  const points = counts.map((count, at) => {
    const y = HEIGHT - 2 - (count / most) * (HEIGHT - 6);
    return `${(at * step).toFixed(1)},${y.toFixed(1)}`;
  });
  svg.replaceChildren(
    drawn("polygon", { points: `0,${HEIGHT} ${points.join(" ")} ${WIDTH},${HEIGHT}` }),
    drawn("polyline", { points: points.join(" ") }),
  );
}

function rate(perSecond) {
  return perSecond >= 100 ? number(Math.round(perSecond)) : perSecond.toFixed(1);
}

function figures(told) {
  for (const tile of document.querySelectorAll("[data-figure]")) {
    const name = tile.dataset.figure;
    say(tile.querySelector("[data-rate]"), rate(told.rates[name]));
    say(tile.querySelector("[data-total]"), number(told.totals[name]));
    tile.classList.toggle("alarm", name === "letters" && told.rates[name] > 0);
    spark(tile.querySelector(".spark"), told.series[name]);
  }
  for (const name of ["p50", "p99"]) {
    const lag = told[`lag_${name}_ms`];
    say(document.querySelector(`[data-lag="${name}"]`), lag === null ? "–" : number(lag));
  }
  say(document.querySelector("[data-behind]"), behind(told.database_behind_ms));
  say(document.querySelector("[data-now]"), told.now);
}

function behind(ms) {
  if (ms === null) return "–";
  return ms < 1000 ? "up to date" : `${number(Math.round(ms / 1000))} s behind`;
}

function outcomes(pairs) {
  const all = pairs.reduce((sum, [, count]) => sum + count, 0);
  const ok = pairs.find(([reason]) => reason === "ok")?.[1] ?? 0;
  const refused = pairs.filter(([reason]) => reason !== "ok");
  const share = byId("ok-share");
  byId("no-outcomes").hidden = all > 0;
  byId("refused-head").hidden = refused.length === 0;
  share.hidden = all === 0;
  say(share.querySelector("[data-text]"), `${((100 * ok) / Math.max(all, 1)).toFixed(1)} %`);
  say(share.querySelector("[data-of]"), `ok, ${number(ok)} of ${number(all)}`);
  const most = Math.max(1, ...refused.map(([, count]) => count));
  byId("outcomes").tBodies[0].replaceChildren(
    ...refused.map(([reason, count]) => {
      const row = element("tr", undefined, "refused");
      const name = element("th", reason.replaceAll("_", " "));
      name.scope = "row";
      const cell = element("td", undefined, "share");
      const bar = drawn("svg", { class: "bar", viewBox: "0 0 100 6", preserveAspectRatio: "none", "aria-hidden": "true" });
      bar.append(
        drawn("rect", { class: "track", width: 100, height: 6 }),
        drawn("rect", { class: "fill", width: ((100 * count) / most).toFixed(1), height: 6 }),
      );
      cell.append(bar);
      row.append(name, cell, element("td", number(count), "number"));
      return row;
    }),
  );
}

function events(list) {
  const table = byId("events");
  // Whoever is about to follow a link must find it where it was.
  if (table.contains(document.activeElement) || table.matches(":hover")) return;
  byId("no-events").hidden = list.length > 0;
  table.tHead.hidden = list.length === 0;
  table.tBodies[0].replaceChildren(
    ...list.slice(0, EVENTS_SHOWN).map((event) => {
      const row = element("tr", undefined, event.type);
      const what = element("td");
      const plan = element("td", undefined, "plan");
      if (event.letter) what.append(linked(`dead letter: ${event.what}`, `/dead-letters/${event.letter}`));
      else what.append(event.what);
      if (event.plan_id) plan.append(linked(event.plan_id, `/plans/${encodeURIComponent(event.plan_id)}`));
      row.append(
        element("td", event.at, "time"),
        what,
        plan,
        element("td", event.detail, "detail"),
      );
      return row;
    }),
  );
}

function fault(id, text) {
  const notice = byId(id);
  notice.hidden = !text;
  say(notice.querySelector("[data-text]"), text);
}

function show(told) {
  fault("log-fault", told.log_fault);
  fault("database-fault", told.database_fault);
  figures(told);
  outcomes(told.outcomes);
  events(told.events);
}

function state(name) {
  const stream = byId("stream");
  if (stream.dataset.state === name) return;
  stream.dataset.state = name;
  say(stream.querySelector("[data-text]"), name);
}

async function again() {
  try {
    const answer = await fetch("/", { headers: { Accept: "text/html" }, redirect: "manual" });
    if (answer.type === "opaqueredirect") return location.reload();
  } catch {
    // Not there yet: the stream will say so again.
  }
  return watch();
}

function watch() {
  const source = new EventSource("/live/events");
  source.addEventListener("message", (message) => {
    state("live");
    show(JSON.parse(message.data));
  });
  source.addEventListener("error", () => {
    state("reconnecting");
    // The browser tries again by itself, unless it was refused: then somebody has to log in.
    if (source.readyState === EventSource.CLOSED) setTimeout(again, 3000);
  });
}

watch();
