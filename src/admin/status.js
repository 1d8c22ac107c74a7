"use strict";
// Fetches the page again and puts what has changed in its place: nothing jumps, and a screen reader hears only what is new.
const EVERY = 5000;
const lost = document.getElementById("lost");

async function update() {
  if (!document.hidden) {
    try {
      const answer = await fetch(location.pathname, { cache: "no-store", redirect: "error", signal: AbortSignal.timeout(8000) });
      if (!answer.ok) throw new Error(answer.status);
      show(new DOMParser().parseFromString(await answer.text(), "text/html"));
      lost.hidden = true;
    } catch {
      lost.hidden = false;
    }
  }
  setTimeout(update, EVERY);
}

function show(next) {
  const differs = (selector) => next.querySelector(selector)?.textContent !== document.querySelector(selector).textContent;
  // Another version of the shim has another page.
  if (differs("style") || differs("script")) return location.reload();
  document.title = next.title;
  document.querySelector("link[rel=icon]").href = next.querySelector("link[rel=icon]").href;
  const selection = getSelection();
  for (const part of document.querySelectorAll("[data-part]")) {
    const replaced = next.querySelector(`[data-part="${part.dataset.part}"]`);
    const copying = !selection.isCollapsed && selection.containsNode(part, true);
    if (!replaced || copying || replaced.outerHTML === part.outerHTML) continue;
    part.className = replaced.className;
    part.replaceChildren(...replaced.childNodes);
  }
}

setTimeout(update, EVERY);
