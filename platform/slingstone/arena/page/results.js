// Results: who is preferred, how surely, by whom.

import { ask, download, show } from "./api.js";

const id = (name) => document.getElementById(name);
const percent = (value) => `${(100 * value).toFixed(0)} %`;
let told, name;

export function begin(arena, problem) {
  told = problem;
  name = arena.name;
  id("export").addEventListener("click", () => download("api/votes.parquet", `${name}.parquet`).catch(told));
}

export async function open() {
  const found = await ask("api/results");
  id("counts").textContent = found.votes
    ? `${found.votes} votes of ${found.voters} voter${found.voters === 1 ? "" : "s"} on ${found.prompts} prompts`
    : "No votes yet: compare some pictures first.";
  ranking(found.generators);
  matrix(found.matrix);
  days(found.days);
  voters(found);
  await latest(found.latest);
}

function element(tag, text = "", attributes = {}) {
  const made = Object.assign(document.createElement(tag), { textContent: text });
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function ranking(rows) {
  const low = Math.min(...rows.map((row) => row.low)), high = Math.max(...rows.map((row) => row.high));
  const at = (value) => high > low ? 2 + 96 * (value - low) / (high - low) : 50;
  id("ranking").tBodies[0].replaceChildren(...rows.map((row) => {
    const line = element("tr"), cell = element("td"), range = element("div", "", { class: "range" });
    const text = `${row.rating.toFixed(0)}, from ${row.low.toFixed(0)} to ${row.high.toFixed(0)}`;
    range.setAttribute("role", "img");
    range.setAttribute("aria-label", text);
    range.title = text;
    const [bar, mark] = [element("i"), element("b")];
    bar.style.left = `${at(row.low)}%`;
    bar.style.width = `${at(row.high) - at(row.low)}%`;
    mark.style.left = `${at(row.rating)}%`;
    range.append(bar, mark);
    cell.append(range);
    line.append(element("th", row.name, { scope: "row" }), element("td", row.rating.toFixed(0)), cell);
    line.append(...[row.wins, row.losses, row.ties].map((count) => element("td", count)));
    return line;
  }));
}

function matrix({ names, share, votes }) {
  const head = element("tr");
  head.append(element("td"), ...names.map((one) => element("th", one, { scope: "col" })));
  const rows = names.map((one, i) => {
    const line = element("tr");
    line.append(element("th", one, { scope: "row" }), ...names.map((_, j) => {
      const cell = element("td", share[i][j] === null ? "–" : percent(share[i][j]));
      if (share[i][j] !== null) {
        cell.title = `${votes[i][j]} votes`;
        cell.style.background = `color-mix(in srgb, var(--accent) ${Math.round(38 * share[i][j])}%, transparent)`;
      }
      return cell;
    }));
    return line;
  });
  const body = element("tbody");
  body.append(head, ...rows);
  id("matrix").replaceChildren(body);
}

function days(rows) {
  if (!rows.length) { id("days").replaceChildren(element("p", "–")); return; }
  const most = Math.max(...rows.map(([, count]) => count)), width = Math.min(40, 400 / rows.length);
  const bars = rows.map(([day, count], place) => {
    const height = 90 * count / most;
    return `<rect x="${place * width + 1}" y="${100 - height}" width="${width - 2}" height="${height}" rx="2"><title>${day}: ${count}</title></rect>`;
  });
  const text = `${rows[0][0]}${rows.length > 1 ? ` to ${rows.at(-1)[0]}` : ""}, at most ${most} a day`;
  id("days").innerHTML = `<svg viewBox="0 0 400 122" role="img" aria-label="${text}">${bars.join("")}<text x="0" y="117">${text}</text></svg>`;
}

function voters({ agreement, position }) {
  const told = (found) => found.high - found.low > 0.99 ? "unknown" : `${percent(found.value)} (${percent(found.low)} to ${percent(found.high)})`;
  const rows = [
    ["Voters agree with one another", told(agreement.between_voters)],
    ["Voters agree with themselves", told(agreement.with_themselves)],
    ["Left one chosen", told(position)],
  ];
  id("agreement").replaceChildren(...rows.flatMap(([term, value]) => [element("dt", term), element("dd", value)]));
  const head = element("tr");
  head.append(...["Voter", "Votes", "Agrees"].map((text) => element("th", text, { scope: "col" })));
  const body = element("tbody");
  body.append(head, ...agreement.voters.slice(0, 8).map((one) => {
    const line = element("tr");
    line.append(element("td", one.voter), element("td", one.votes), element("td", told(one.agrees)));
    if (one.at_chance) line.append(element("td", "as a coin would", { class: "warn" }));
    return line;
  }));
  id("voters").replaceChildren(body);
}

async function latest(rows) {
  const SAID = { first: "", second: "", tie: "as good", both_bad: "both bad" };
  id("latest").replaceChildren(...rows.map(({ prompt, sides, choice }) => {
    const item = element("li"), text = element("div", prompt);
    sides.forEach((side, place) => {
      const image = Object.assign(new Image(), { alt: side.model ?? "unknown" });
      image.classList.toggle("won", choice === ["first", "second"][place]);
      show(image, side.picture).catch(() => image.remove());
      item.append(image);
    });
    const winner = { first: sides[0].model, second: sides[1].model }[choice];
    const loser = { first: sides[1].model, second: sides[0].model }[choice];
    text.append(element("small", winner ? `${winner} over ${loser}` : `${sides[0].model}, ${sides[1].model}: ${SAID[choice]}`));
    item.append(text);
    return item;
  }));
}
