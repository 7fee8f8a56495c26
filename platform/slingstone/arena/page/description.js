// The API's page: what openapi.json says, as one reads it.

import { ask } from "./api.js";

const id = (name) => document.getElementById(name);

function element(tag, text, ...children) {
  const made = document.createElement(tag);
  made.textContent = text;
  made.append(...children);
  return made;
}

/** Returns the fields of a request: name, whether it must be given, type, and bounds. */
function fields(operation, schemas) {
  const body = operation.requestBody?.content["application/json"].schema.$ref?.split("/").pop();
  const { properties = {}, required = [] } = schemas[body] ?? {};
  const inPath = (operation.parameters ?? []).map((one) => [one.name, one.schema, one.required]);
  const inBody = Object.entries(properties).map(([name, schema]) => [name, schema, required.includes(name)]);
  return [...inPath, ...inBody].map(([name, schema, needed]) => {
    const kinds = (schema.anyOf ?? [schema]).map((one) => one.enum?.join(" | ") ?? one.type ?? "any");
    const bounds = ["pattern", "minimum", "maximum", "maxLength"].filter((key) => key in schema);
    const row = [name, kinds.join(" | "), needed ? "must be given" : "may be left out"];
    return element("tr", "", ...[...row, bounds.map((key) => `${key} ${schema[key]}`).join(", ")].map((text) => element("td", text)));
  });
}

function request(path, method, operation, schemas) {
  const made = element("section", "", element("h2", `${method.toUpperCase()} ${path}`), element("p", operation.description ?? ""));
  const rows = fields(operation, schemas);
  if (rows.length) made.append(element("table", "", element("tbody", "", ...rows)));
  return made;
}

try {
  const said = await ask("api/openapi.json");
  for (const [path, methods] of Object.entries(said.paths)) {
    for (const [method, operation] of Object.entries(methods)) {
      id("requests").append(request(path, method, operation, said.components?.schemas ?? {}));
    }
  }
} catch (error) {
  id("problem").textContent = error.message;
  id("problem").hidden = false;
}
