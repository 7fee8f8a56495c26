// Compare: two pictures without names; names come after the vote. The next pair is fetched while one looks.

import { ask, picture, show } from "./api.js";

const id = (name) => document.getElementById(name);
const KEYS = { ArrowLeft: "left", ArrowRight: "right", ArrowDown: "tie", ArrowUp: "both_bad" };
const REVEAL_MS = 900;
let told, now = null, next = null, last = null, since = 0, busy = false;

export function begin(_, problem) {
  told = problem;
  for (const button of document.querySelectorAll("[data-choice]")) {
    button.addEventListener("click", () => vote(button.dataset.choice));
  }
  id("undo").addEventListener("click", undo);
}

export async function open() { if (!now) await turn(); }

export function key(name) {
  if (name in KEYS) { vote(KEYS[name]); return true; }
  if (name.toLowerCase() === "u") { undo(); return true; }
  return false;
}

/** A name that says nothing of a person, kept by this browser. */
function voter() {
  let name = localStorage.getItem("voter");
  if (!name) {
    const bytes = crypto.getRandomValues(new Uint8Array(8));
    name = `v-${[...bytes].map((one) => one.toString(16).padStart(2, "0")).join("")}`;
    localStorage.setItem("voter", name);
  }
  return name;
}

async function fetchPair() {
  const pair = await ask("api/pairs", { voter: voter() });
  await Promise.all([picture(pair.left), picture(pair.right)]);
  return pair;
}

async function turn(pair) {
  const prepared = next;
  next = null;
  now = pair ?? await (prepared ?? fetchPair());
  id("asked").textContent = `“${now.prompt}”`;
  await Promise.all([show(id("left"), now.left), show(id("right"), now.right)]);
  for (const side of ["left", "right"]) {
    id(`${side}-who`).classList.remove("shown");
    document.querySelector(`.picture[data-choice=${side}]`).classList.remove("chosen");
  }
  count(now.votes);
  since = performance.now();
  document.body.dataset.pair = now.token.slice(-12);
  next = fetchPair();
  next.catch(() => { next = null; });
}

async function vote(choice) {
  if (!now || busy) return;
  busy = true;
  try {
    const seconds = (performance.now() - since) / 1000;
    const taken = await ask("api/votes", { token: now.token, choice, seconds });
    told(null);
    last = now;
    id("undo").disabled = false;
    count(taken.votes);
    for (const side of ["left", "right"]) {
      id(`${side}-who`).textContent = taken[side].generator;
      id(`${side}-who`).classList.add("shown");
    }
    document.querySelector(`.picture[data-choice=${choice}]`)?.classList.add("chosen");
    await new Promise((resolve) => setTimeout(resolve, REVEAL_MS));
    await turn();
  } catch (error) {
    told(error);
    if (error.status === 409 || error.status === 422) await turn().catch(told);
  } finally { busy = false; }
}

async function undo() {
  if (!last || busy) return;
  busy = true;
  try {
    const again = await ask("api/votes/undo", { token: last.token });
    last = null;
    id("undo").disabled = true;
    await turn(again);
  } catch (error) { told(error); } finally { busy = false; }
}

function count(votes) { id("progress").textContent = `${votes} vote${votes === 1 ? "" : "s"} of yours`; }
