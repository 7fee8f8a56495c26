// Talks to the arena. What is asked may be asked again: every request is the same however often it is sent.

const TRIES = 6;

export class Refused extends Error {
  constructor(status, reason) { super(reason); this.status = status; }
}

export async function ask(path, body) {
  const response = await send(path, body);
  return response.json();
}

const pictures = new Map();

/** Returns the URL of a picture by its digest; fetched by hand, since an <img> sends no token. */
export function picture(digest) {
  if (!pictures.has(digest)) {
    const found = send(`api/pictures/${digest}.png`).then(async (response) => URL.createObjectURL(await response.blob()));
    found.catch(() => pictures.delete(digest));
    pictures.set(digest, found);
  }
  return pictures.get(digest);
}

export async function show(image, digest) {
  image.src = await picture(digest);
  await image.decode();
  image.classList.toggle("small", image.naturalWidth < 256);
}

export async function download(path, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(await (await send(path)).blob());
  link.download = name;
  link.click();
}

async function send(path, body) {
  const token = sessionStorage.getItem("token");
  const headers = token ? { authorization: `Bearer ${token}` } : {};
  const options = body === undefined ? { headers } : {
    method: "POST", headers: { ...headers, "content-type": "application/json" }, body: JSON.stringify(body),
  };
  let problem = new Refused(0, "The arena does not answer.");
  for (let attempt = 0; attempt < TRIES; attempt++) {
    if (attempt) await new Promise((resolve) => setTimeout(resolve, 200 * 2 ** attempt));
    let response;
    try { response = await fetch(path, options); } catch { continue; }
    if (response.ok) return response;
    const said = await response.json().catch(() => ({}));
    problem = new Refused(response.status, said.reason ?? `The arena answers with status ${response.status}.`);
    // A 404 without a reason is not the arena's: a proxy that has just started, and knows no route yet.
    if (said.reason && response.status < 500 && response.status !== 429) break;
  }
  throw problem;
}
