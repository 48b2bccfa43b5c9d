// A part of a page with data-refresh="SECONDS" is asked for again and put in its own place.
// With data-reload the whole page is loaded anew as soon as the server can answer.

const part = document.querySelector("[data-refresh]");

function isInUse(node) {
  const active = document.activeElement;
  return node.contains(active) && active.matches("input, select, textarea, summary");
}

function keepOpen(from, into) {
  for (const details of from.querySelectorAll("details[open][id]")) {
    into.querySelector(`#${CSS.escape(details.id)}`)?.setAttribute("open", "");
  }
}

async function refresh(node) {
  const answer = await fetch(location.href, { headers: { Accept: "text/html" }, redirect: "manual" });
  if (answer.type === "opaqueredirect" || (node.hasAttribute("data-reload") && answer.ok)) {
    location.reload();
    return node;
  }
  if (!answer.ok) return node;
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  const fresh = page.getElementById(node.id);
  if (!fresh || isInUse(node)) return node;
  keepOpen(node, fresh);
  document.adoptNode(fresh);
  node.replaceWith(fresh);
  return fresh;
}

async function run(node) {
  for (;;) {
    await new Promise((done) => setTimeout(done, Number(node.dataset.refresh) * 1000));
    if (document.hidden) continue;
    try {
      node = await refresh(node);
      node.classList.remove("stale");
    } catch {
      node.classList.add("stale");
    }
  }
}

if (part) run(part);

// On a phone the pages' names may not all fit: show the one that this is.
document.querySelector(".top nav [aria-current]")?.scrollIntoView({ inline: "center", block: "nearest" });
