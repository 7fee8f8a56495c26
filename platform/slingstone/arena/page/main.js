// Chooses the view by the address, and what all views share: errors, the token, light and dark.

import { ask } from "./api.js";
import * as compare from "./compare.js";
import * as results from "./results.js";
import * as tries from "./try.js";

const VIEWS = { try: tries, compare, results };
const id = (name) => document.getElementById(name);
let arena;

export function problem(error) {
  if (error?.status === 401) { id("entry").hidden = false; id("token").focus(); }
  id("problem").textContent = error ? error.message : "";
  id("problem").hidden = !error;
}

async function go() {
  const name = location.hash.slice(1) in VIEWS ? location.hash.slice(1) : "try";
  for (const view of Object.keys(VIEWS)) id(view).hidden = view !== name;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  try { await VIEWS[name].open(arena); problem(null); } catch (error) { problem(error); }
}

async function begin() {
  try { arena = await ask("api/arena"); } catch (error) { problem(error); return; }
  problem(null);
  id("entry").hidden = true;
  id("name").textContent = arena.name;
  document.title = `${arena.name} · arena`;
  for (const view of Object.values(VIEWS)) view.begin(arena, problem);
  window.addEventListener("hashchange", go);
  await go();
}

id("entry").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("token", id("token").value);
  begin();
});

id("theme").addEventListener("click", () => {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const now = document.documentElement.dataset.theme ?? (dark ? "dark" : "light");
  localStorage.setItem("theme", document.documentElement.dataset.theme = now === "dark" ? "light" : "dark");
});
if (localStorage.getItem("theme")) document.documentElement.dataset.theme = localStorage.getItem("theme");

document.addEventListener("keydown", (event) => {
  const typing = event.target.matches("input") && event.target.type !== "checkbox";
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  const open = Object.keys(VIEWS).find((name) => !id(name).hidden);
  if (open && VIEWS[open].key?.(event.key)) event.preventDefault();
});

begin();
