// Try: one prompt, the pictures of all generators side by side as they come, their time and their rewards.

import { ask, picture, show } from "./api.js";

const id = (name) => document.getElementById(name);
const history = [];
let arena, told, turn = 0;

export function begin(found, problem) {
  arena = found;
  told = problem;
  id("prompt").maxLength = arena.max_prompt_characters;
  id("prompt").value = arena.prompts[0] ?? "";
  id("prompt").readOnly = !arena.typed_prompts;
  id("examples").replaceChildren(...arena.prompts.map((text) => new Option(text, text)));
  id("generators").append(...arena.generators.map(({ name }) => {
    const label = document.createElement("label");
    const box = Object.assign(document.createElement("input"), { type: "checkbox", checked: true, value: name });
    label.append(box, name);
    return label;
  }));
  id("prompt-form").addEventListener("submit", (event) => { event.preventDefault(); draw(); });
  id("reroll").addEventListener("click", reroll);
  id("surprise").addEventListener("click", surprise);
}

export function open() { if (!turn) return draw(); }

export function key(name) {
  const does = { r: reroll, p: surprise }[name.toLowerCase()];
  does?.();
  return Boolean(does);
}

function reroll() { id("seed").value = Math.floor(Math.random() * 1e6); return draw(); }

function surprise() {
  id("prompt").value = arena.prompts[Math.floor(Math.random() * arena.prompts.length)];
  return draw();
}

async function draw() {
  const mine = ++turn, prompt = id("prompt").value, seed = Number(id("seed").value);
  const chosen = [...id("generators").querySelectorAll("input:checked")].map((box) => box.value);
  const cards = chosen.map((name) => card(arena.generators.find((one) => one.name === name)));
  id("drawn").replaceChildren(...cards.map((one) => one.figure));
  const scores = new Map();
  told(null);
  const found = await Promise.all(chosen.map(async (generator, place) => {
    try {
      const drawing = await ask("api/draw", { generator, prompt, seed });
      if (mine !== turn) return;
      await fill(cards[place], drawing, `${generator}: ${prompt}`);
      if (arena.rewards.length) {
        scores.set(generator, await ask("api/scores", { picture: drawing.picture, prompt }));
        if (mine === turn) rank(chosen, cards, scores);
      }
      return drawing;
    } catch (error) {
      cards[place].figure.classList.remove("waiting");
      cards[place].facts.textContent = error.message;
      if (error.status === 401) told(error);
    }
  }));
  if (mine === turn && found[0]) remember(prompt, seed, found[0].picture);
}

function card({ name, steps, parameters }) {
  const figure = document.createElement("figure");
  figure.className = "card waiting";
  figure.innerHTML = `<div class="frame"></div><figcaption><h3><span></span><span class="time"></span></h3>
    <p class="facts"><span></span></p><dl class="scores"></dl></figcaption>`;
  figure.querySelector("h3 span").textContent = name;
  const facts = figure.querySelector(".facts span");
  facts.textContent = `${steps} step${steps === 1 ? "" : "s"}${parameters ? `, ${parameters}` : ""}`;
  return { figure, facts, name, time: figure.querySelector(".time"), scores: figure.querySelector("dl") };
}

async function fill(card, drawing, text) {
  const image = Object.assign(new Image(), { alt: text });
  await show(image, drawing.picture);
  card.figure.querySelector(".frame").replaceWith(image);
  card.figure.classList.remove("waiting");
  card.time.textContent = `${drawing.seconds.toFixed(drawing.seconds < 1 ? 3 : 2)} s`;
  const count = drawing.network_evaluations;
  card.facts.textContent += ` · ${count} network evaluation${count === 1 ? "" : "s"}`;
  const save = Object.assign(document.createElement("a"), {
    href: await picture(drawing.picture), download: `${card.name}-${drawing.seed}.png`, textContent: "save",
  });
  save.setAttribute("aria-label", `Save the picture of ${card.name}`);
  card.facts.after(save);
}

/** Bars compare the cards at hand: a reward has no scale of its own. */
function rank(chosen, cards, scores) {
  for (const [place, name] of chosen.entries()) {
    if (!scores.has(name)) continue;
    cards[place].scores.replaceChildren(...arena.rewards.flatMap((reward) => {
      const all = [...scores.values()].map((one) => one[reward]);
      const own = scores.get(name)[reward], low = Math.min(...all), high = Math.max(...all);
      const share = high > low ? (own - low) / (high - low) : 1;
      const [term, bar, value] = ["dt", "div", "dd"].map((tag) => document.createElement(tag));
      term.textContent = reward;
      bar.className = "bar";
      bar.append(document.createElement("i"));
      bar.firstChild.style.width = `${8 + 92 * share}%`;
      value.textContent = own.toFixed(3);
      value.classList.toggle("best", own === high && all.length > 1);
      return [term, bar, value];
    }));
  }
}

async function remember(prompt, seed, digest) {
  if (history.some((one) => one.prompt === prompt && one.seed === seed)) return;
  history.unshift({ prompt, seed });
  const button = Object.assign(document.createElement("button"), { type: "button" });
  const image = Object.assign(new Image(), { alt: "" });
  const text = Object.assign(document.createElement("span"), { textContent: `${prompt} · seed ${seed}` });
  button.append(image, text);
  button.addEventListener("click", () => {
    id("prompt").value = prompt;
    id("seed").value = seed;
    draw();
  });
  const item = document.createElement("li");
  item.append(button);
  id("history").prepend(item);
  while (id("history").children.length > 12) id("history").lastChild.remove();
  id("history-part").hidden = false;
  await show(image, digest);
}
